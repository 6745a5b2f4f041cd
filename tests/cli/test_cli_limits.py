"""`gateway limits` and what `explain` says of a limit: on a real Redis, for people and for programs."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.app import run
from gateway.client import Client
from gateway.limits import Limit

_numbers = itertools.count(1)
Gateway = Callable[..., tuple[int, str, str]]


@pytest.fixture
def queue() -> str:
    return f"limits-{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def gateway(redis_url: str, queue: str, capsys: pytest.CaptureFixture[str]) -> Gateway:
    """Runs one command line in this process: exit code, standard output, standard error."""

    def gateway(*arguments: str) -> tuple[int, str, str]:
        code = run([*arguments, "--redis-url", redis_url, "--queue", queue])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return gateway


@pytest.fixture
def client(redis_url: str, queue: str) -> Iterator[Client]:
    with Client(redis_url, queue=queue) as client:
        yield client


def _shown(gateway: Gateway) -> dict[str, Any]:
    code, out, _ = gateway("limits", "show", "--json")
    assert code == 0
    found: dict[str, Any] = json.loads(out)
    return found


def test_limits_are_set_shown_and_lifted(gateway: Gateway) -> None:
    """What is set is the queue's at once, in the same words for people and for programs."""
    assert "nothing is limited" in gateway("limits", "show")[1]
    assert gateway("limits", "set", "service", "comfyui", "--running-max", "8")[0] == 0
    assert gateway("limits", "set", "tenant", "*", "--rate", "100", "--rate-s", "60", "--burst", "5")[0] == 0
    shown = _shown(gateway)
    assert shown["aging_s"] == 60
    assert [limit["name"] for limit in shown["limits"]] == ["service comfyui", "tenant *"]
    assert [limit["running_max"] for limit in shown["limits"]] == [8, None]
    assert shown["limits"][1]["starts_per_s"] == pytest.approx(100 / 60)
    assert gateway("limits", "unset", "service", "comfyui")[0] == 0
    assert gateway("limits", "aging", "5")[0] == 0
    shown = _shown(gateway)
    assert ([limit["name"] for limit in shown["limits"]], shown["aging_s"]) == (["tenant *"], 5)
    assert gateway("limits", "aging")[0] == 0
    assert _shown(gateway)["aging_s"] == 60


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["set", "worker", "x", "--running-max", "1"], "limit 'worker x': use 'service NAME'"),
        (["set", "service", "a b", "--running-max", "1"], "limit 'service a b'"),
        (["set", "tenant", "a"], "give running_max, rate or both"),
        (["set", "tenant", "a", "--running-max", "-1"], "running_max = -1"),
        (["set", "tenant", "a", "--rate", "0"], "rate = 0"),
        (["set", "tenant", "a", "--rate", "1", "--burst", "0"], "burst = 0"),
        (["set", "tenant", "a", "--rate", "1", "--rate-s", "0"], "rate_s = 0"),
        (["set", "tenant", "a", "--rate", "1", "--rate-s", "600000", "--burst", "1000000"], "longer than"),
        (["aging", "0"], "aging_s = 0"),
        (["aging", "9000001"], "aging_s = 9e+06"),
        (["apply"], "no [limits.services]"),
    ],
)
def test_an_impossible_limit_is_one_line_and_changes_nothing(
    gateway: Gateway, arguments: list[str], fragment: str
) -> None:
    """Exit code 2, what is wrong with which limit, and an untouched queue."""
    code, out, err = gateway("limits", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert fragment in err
    assert _shown(gateway) == {"aging_s": 60, "limits": []}


def test_a_configuration_is_applied_on_demand(gateway: Gateway, tmp_path: Path) -> None:
    """`apply` makes the file's limits the queue's and leaves others alone; a mistake names file and key."""
    path = tmp_path / "gateway.toml"
    path.write_text('[limits]\naging_s = 30\n[limits.tenants."*"]\nrunning_max = 4\n')
    assert gateway("limits", "set", "service", "comfyui", "--running-max", "8")[0] == 0
    assert gateway("limits", "apply", "--config", str(path))[0] == 0
    shown = _shown(gateway)
    assert {limit["name"]: limit["running_max"] for limit in shown["limits"]} == {
        "service comfyui": 8,
        "tenant *": 4,
    }
    assert shown["aging_s"] == 30
    path.write_text('[limits.tenants."a b"]\nrunning_max = 4\n')
    code, _, err = gateway("limits", "apply", "--config", str(path))
    assert code == 2
    assert str(path) in err
    assert "limit 'tenant a b'" in err


def test_overrides_for_the_fleet_leave_limits_to_their_own_command(gateway: Gateway) -> None:
    """There is one truth: what the queue keeps itself cannot be overridden beside it."""
    for key in ("limits.aging_s", "limits.tenants.acme.running_max"):
        code, _, err = gateway("config", "set", key, "5")
        assert (code, "use `gateway limits` instead" in err) == (2, True)


def test_explain_names_the_limit_that_holds_a_job_back(gateway: Gateway, client: Client) -> None:
    """Whoever asks why a job waits is told the limit, the count, and when the next start is due."""
    client.submit("simulation", job_id="mine", tenant="acme")
    assert "limit" not in gateway("explain", "mine")[1]
    client.set_limits({"tenant acme": Limit(running_max=0)})
    assert "A limit holds it back: tenant acme: 0 of at most 0 jobs run." in gateway("explain", "mine")[1]
    client.set_limits({"tenant acme": None, "tenant *": Limit(running_max=0)})
    assert "tenant acme: 0 of at most 0" in gateway("explain", "mine")[1]
    client.set_limits({"tenant *": None})
    assert "limit" not in gateway("explain", "mine")[1]
