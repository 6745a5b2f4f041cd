"""Deadlines, unique jobs, dependencies and schedules on the command line, on a real Redis."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gateway.cli.app import run
from gateway.client import Client
from tests.support.hand_worker import HandWorker, fresh_queue, hand_worker

Gateway = Callable[..., tuple[int, str, str]]


@pytest.fixture
def queue() -> str:
    return f"cli-{os.getpid()}-{fresh_queue()}"


@pytest.fixture
def gateway(redis_url: str, queue: str, capsys: pytest.CaptureFixture[str]) -> Gateway:
    """Runs one command line in this process, on the test's own queue: code, output, errors."""

    def gateway(*arguments: str) -> tuple[int, str, str]:
        code = run([*arguments, "--redis-url", redis_url, "--queue", queue])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return gateway


@pytest.fixture
def client(redis_url: str, queue: str) -> Iterator[Client]:
    with Client(redis_url, queue=queue) as client:
        yield client


@pytest.fixture
def worker(redis_url: str, queue: str) -> Iterator[HandWorker]:
    with hand_worker(redis_url, queue) as worker:
        yield worker


def test_submit_takes_every_condition(gateway: Gateway, client: Client) -> None:
    """Each option reaches the job, and its status shows it."""
    parents = [client.submit("simulation", number).job_id for number in range(2)]
    code, out, _ = gateway(
        *("submit", "simulation", "--expires-in", "60", "--unique", "cover", "--unique-for", "5"),
        *(
            "--after",
            parents[0],
            "--after",
            parents[1],
            "--on-parent-failure",
            "release",
            "--job-id",
            "child",
        ),
    )
    assert (code, out) == (0, "child\n")
    view = client.get("child")
    assert (view.unique_key, view.spec.after, view.parents_left) == ("cover", tuple(parents), 2)
    assert view.expires_ms > 0
    shown = gateway("status", "child")[1]
    for text in ("deadline", "cover", parents[1]):
        assert text in shown
    code, out, err = gateway("submit", "simulation", "--unique", "cover")
    assert (code, out) == (0, "child\n")
    assert "an earlier job with the same id or key took its place" in err
    assert "waiting" in gateway("status")[1]
    told = gateway("explain", "child")[1]
    assert f"It waits for 2 of its 2 parent(s): {parents[0]} (pending), {parents[1]} (pending)." in told
    assert "counts as done" in told


@pytest.mark.parametrize("moment", ["4102444800", "2100-01-01T00:00:00+00:00", "2100-01-01T01:00:00+01:00"])
def test_a_deadline_may_be_a_moment(gateway: Gateway, client: Client, moment: str) -> None:
    """Seconds since the epoch, or a date with its offset."""
    assert gateway("submit", "simulation", "--job-id", "a", "--expires-at", moment)[0] == 0
    assert client.get("a").expires_ms == 4_102_444_800_000


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--expires-at", "tomorrow"], "option --expires-at 'tomorrow': write a moment with its offset"),
        (["--expires-at", "2100-01-01T00:00:00"], "write a moment with its offset"),
        (["--expires-at", "1000"], "the deadline has passed already"),
        (["--expires-in", "0"], "expires_in_s must be more than 0"),
        (["--after", "nobody"], "no job 'nobody' in this queue"),
        (["--on-parent-failure", "ignore"], "on_parent_failure must be cancel or release"),
        (["--unique", "k", "--count", "2"], "--count: equal jobs cannot share"),
    ],
)
def test_impossible_conditions_are_one_line(
    gateway: Gateway, client: Client, arguments: list[str], fragment: str
) -> None:
    """Code 2, what is wrong, and nothing stored."""
    code, out, err = gateway("submit", "simulation", *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert fragment in err
    assert client.stats().jobs == 0


def test_schedules_from_end_to_end(gateway: Gateway, client: Client) -> None:
    """Added, listed, paused, resumed, run now and removed; the text and JSON of each."""
    assert gateway("schedules", "list")[1] == "no schedules\n"
    code, out, _ = gateway(
        "schedules", "add", "nightly", "0 3 * * *", "simulation", '{"steps": 2}', "--unique"
    )
    assert code == 0
    assert out.startswith("schedule nightly is due at ")
    code, _, err = gateway("schedules", "add", "nightly", "0 4 * * *", "simulation", "--json")
    assert (code, json.loads(err)["error"]["kind"]) == (2, "InvalidSchedule")
    code, out, _ = gateway("schedules", "add", "nightly", "0 4 * * *", "simulation", "--replace", "--json")
    assert json.loads(out)["schedule"]["cron"] == "0 4 * * *"
    listed: list[dict[str, Any]] = json.loads(gateway("schedules", "list", "--json")[1])
    assert [row["schedule"]["name"] for row in listed] == ["nightly"]
    assert gateway("schedules", "pause", "nightly")[1] == "nightly paused\n"
    assert "paused" in gateway("schedules", "list")[1]
    code, out, _ = gateway("schedules", "resume", "nightly", "nobody", "--json")
    assert (code, json.loads(out)[0]) == (3, {"name": "nightly", "status": "resumed"})
    code, out, _ = gateway("schedules", "run-now", "nightly")
    assert client.get(out.strip()).spec.service == "simulation"
    assert gateway("schedules", "run-now", "nobody")[0] == 3
    assert gateway("schedules", "remove", "nightly")[1] == "nightly removed\n"
    assert gateway("schedules", "remove", "nightly")[0] == 3


def test_a_bad_expression_is_one_line(gateway: Gateway, client: Client) -> None:
    """Code 2 and what is wrong with it; nothing is stored."""
    code, out, err = gateway("schedules", "add", "a", "0 25 * * *", "simulation")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "cron expression '0 25 * * *': bad hour; use five fields" in err
    assert client.schedules() == []


def test_an_expired_job_is_a_dead_letter(gateway: Gateway, client: Client, worker: HandWorker) -> None:
    """It is listed with its reason and can be given a new life, which has no deadline."""
    client.submit("simulation", job_id="late", expires_in_s=0.001)
    client.submit("simulation", job_id="other")
    assert worker.claim().job_id == "other"
    worker.sweep()
    assert "expired: its deadline passed" in gateway("dead", "list")[1]
    assert gateway("dead", "requeue", "late")[1] == "late requeued\n"
    assert worker.claim().expires_ms == 0
