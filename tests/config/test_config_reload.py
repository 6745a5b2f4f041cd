"""Live reload: what is taken up, what waits for a restart, what is refused; under load nothing is lost."""

from __future__ import annotations

import copy
import json
import logging
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from gateway.client import Client
from gateway.config import GatewayConfig
from gateway.config_fleet import encode_overrides
from gateway.errors import ConfigError
from gateway.reload import ABSENT, Change, Reloader, diff, mixed
from tests.chaos.fleet import until
from tests.cli.test_cli_process import GATEWAY, SIMULATOR, call, first_line, started
from tests.runtime.live import Stage, open_stage
from tests.support.hand_worker import fresh_queue

WORKER: dict[str, Any] = {"connector": "simulation-http", "endpoint": "http://127.0.0.1:1"}


def config(**values: Any) -> GatewayConfig:
    return GatewayConfig.model_validate({"workers": {"a": WORKER, "b": WORKER}, **values})


def reloader(start: GatewayConfig) -> tuple[Reloader, list[tuple[str, ...]]]:
    """One that notes what is taken up."""
    taken: list[tuple[str, ...]] = []
    made = Reloader(start)
    for pattern in (("workers", "*", "slots"), ("limits",), ("telemetry", "log_level")):
        made.on(pattern, lambda _new, changes: taken.extend(change.path for change in changes))
    return made, taken


@pytest.mark.parametrize(
    ("values", "live", "restart"),
    [
        ({}, [], []),
        ({"limits": {"unfinished_max": 5}}, ["limits.unfinished_max"], []),
        (
            {"telemetry": {"log_level": "debug", "log_json": True}},
            ["telemetry.log_level"],
            ["telemetry.log_json"],
        ),
        ({"workers": {"a": {**WORKER, "slots": 3}, "b": WORKER}}, ["workers.a.slots"], []),
        ({"workers": {"a": {**WORKER, "endpoint": "http://h:1"}, "b": WORKER}}, [], ["workers.a.endpoint"]),
        ({"lease": {"sweep_s": 2.0}, "queue": "other"}, [], ["queue", "lease.sweep_s"]),
        ({"workers": {"a": WORKER}}, [], ["workers.b.connector", "workers.b.slots"]),
        (
            {"workers": {"a": WORKER, "b": WORKER, "c": WORKER}},
            [],
            ["workers.c.connector", "workers.c.slots"],
        ),
    ],
)
def test_what_is_live_and_what_needs_a_restart(
    values: dict[str, Any], live: list[str], restart: list[str]
) -> None:
    """Slots, limits and the log level are taken up; every other change is named as waiting for a restart."""
    made, taken = reloader(config())
    report = made.apply(config(**values))
    assert [str(change).partition(":")[0] for change in report.applied] == live
    waiting = [str(change).partition(":")[0] for change in report.restart]
    assert [key for key in restart if key not in waiting] == []
    assert len(waiting) >= len(restart)
    assert taken == [change.path for change in report.applied]
    assert made.waiting == report.restart
    again = made.apply(config(**values))
    assert (again.applied, again.restart) == ((), report.restart)


def test_a_refused_reload_changes_nothing() -> None:
    """Neither a check that says no, nor a live value that does not go with one that needs a restart, leaves a trace."""
    start = config()
    made, taken = reloader(start)

    def refuse(_new: GatewayConfig, _changes: Any) -> None:
        raise ConfigError("not with me")

    made.on(("limits", "sweep_max"), lambda _new, _changes: None, check=refuse)
    with pytest.raises(ConfigError, match="not with me"):
        made.apply(config(limits={"sweep_max": 7}, telemetry={"log_level": "debug"}))
    slow_lease = {"renew_s": 2.0, "length_s": 15.0}
    with pytest.raises(ConfigError, match=r"worker_ttl_s = 6.*need a restart"):
        made.apply(config(limits={"worker_ttl_s": 6.0}, lease=slow_lease))
    assert (made.running, made.waiting, taken) == (start, (), [])


def test_only_documented_keys_can_be_live() -> None:
    """Whoever offers to take up another key is told at once."""
    with pytest.raises(AssertionError, match=r"lease\.length_s is no live key"):
        Reloader(config()).on(("lease", "length_s"), lambda _new, _changes: None)


SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "queue": st.sampled_from(["default", "x"]),
        "limits": st.fixed_dictionaries({}, optional={"sweep_max": st.integers(1, 3)}),
        "workers": st.dictionaries(
            st.sampled_from(["a", "b"]),
            st.builds(
                lambda slots, more: {**WORKER, "slots": slots, "capabilities": more},
                st.integers(1, 3),
                st.dictionaries(st.sampled_from("xy"), st.integers(0, 1), max_size=2),
            ),
        ),
    },
)


@given(SETTINGS, SETTINGS)
def test_all_changes_lead_from_one_configuration_to_the_other(
    one: dict[str, Any], other: dict[str, Any]
) -> None:
    """The difference is complete: made on the first configuration it gives the second; of equal ones it is empty."""
    old, new = (GatewayConfig.model_validate(copy.deepcopy(values)) for values in (one, other))
    changes = diff(old, new)
    assert mixed(old, changes) == new
    assert (not changes) == (old == new)
    assert all(change.old is not ABSENT or change.new is not ABSENT for change in changes)


def test_changes_never_show_secrets() -> None:
    """A changed secret is told by its key."""
    change = Change(("workers", "a", "options", "api_key"), "hunter2", "hunter3")
    assert "hunter" not in str(change)
    assert "hunter" not in str(diff(config(), config(redis_url="redis://:hunter2@h/0")))


async def override(stage: Stage, **changes: Any) -> None:
    present = await stage.watch.store.overrides()
    encoded = encode_overrides({key.replace("__", "."): value for key, value in changes.items()})
    await stage.watch.store.configure(present.revision, encoded)


async def test_a_reload_under_load_loses_nothing(redis_url: str) -> None:
    """Slots grow and shrink while jobs run: none is lost or runs twice, slots are never exceeded."""
    async with open_stage(redis_url, "reload") as stage:
        service = await stage.service("a")
        live = await stage.gateway({"w": service}, slots=2)
        jobs = [await stage.watch.submit(f"job-{number}", {"duration_s": 0.05}) for number in range(150)]
        most = {2: 0, 8: 0, 1: 0}
        for slots in most:
            await override(stage, workers__w__slots=slots, limits__sweep_max=slots)
            await until(lambda slots=slots: live.worker().slots == slots, 5, f"{slots} slots")  # type: ignore[misc]
            await until(lambda slots=slots: live.gateway.store.limits.sweep_max == slots, 5, "limits")  # type: ignore[misc]
            await until(lambda slots=slots: live.worker().running <= slots, 5, "the surplus ended")  # type: ignore[misc]
            for _ in range(20):
                most[slots] = max(most[slots], live.worker().running)
                await trio.sleep(0.02)
        assert most[2] == 2
        assert most[8] > 4
        assert most[1] == 1
        await override(stage, workers__w__slots=8)
        await stage.watch.wait_terminal(jobs, 30)
        assert service.shell.service.journal.summary().duplicates == 0
        await stage.watch.audited()


async def test_wrong_overrides_are_one_line_and_change_nothing(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Something impossible written by hand is refused by the running gateway; what needs a restart is named."""
    caplog.set_level(logging.INFO, "gateway.reloading")
    async with open_stage(redis_url, "wrong-override") as stage:
        live = await stage.gateway({"w": await stage.service("a")}, slots=2)
        store = stage.watch.store
        await store.configure(0, {"workers.w.slots": "0"})
        await until(lambda: "reload refused" in caplog.text, 5, "refused")
        (line,) = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        assert f"Redis tg:{{{stage.queue}}}:config workers.w.slots" in line
        assert "'0'" in line
        assert live.worker().slots == 2
        await store.configure(1, {"workers.w.slots": "3", "retry.base_s": "2"})
        await until(lambda: live.worker().slots == 3, 5, "taken up")
        await until(lambda: "a restart is needed for: retry.base_s: 0.1 → 2.0" in caplog.text, 5, "told")
        assert live.gateway.status()["restart_needed"] == "retry.base_s"


def read_until(process: subprocess.Popen[str], sign: str) -> str:
    """Its log up to the line with that sign; the test's own limit bounds the wait."""
    assert process.stderr is not None
    told = ""
    while sign not in told:
        line = process.stderr.readline()
        assert line, told
        told += line
    return told


@pytest.mark.limit_s(120)
def test_sighup_reads_the_file_again(redis_url: str, tmp_path: Path) -> None:
    """A real process under load: a good file is taken up, a bad one is one line, no job is lost."""
    place = {"GATEWAY_REDIS_URL": redis_url, "GATEWAY_QUEUE": fresh_queue()}
    with started(
        SIMULATOR, "serve", "--http", "--no-faults", "--json", "--base-port", "0", "--slots", "32"
    ) as simulator:
        endpoint = first_line(simulator)["instances"][0]["url"]
        path = tmp_path / "gateway.toml"

        def write(slots: int, level: str = "info") -> None:
            path.write_text(
                f'[telemetry]\nlog_level = "{level}"\n[workers.a]\nconnector = "simulation-http"\n'
                f'endpoint = "{endpoint}"\nslots = {slots}\n'
            )

        write(1)
        with started(
            GATEWAY, "run", "--config", str(path), "--json", "--data-dir", str(tmp_path), **place
        ) as gateway:
            first_line(gateway)
            with Client(redis_url, queue=place["GATEWAY_QUEUE"]) as client:
                for number in range(60):
                    client.submit("simulation", {"duration_s": 0.05}, job_id=f"job-{number}")
                told = ""
                for slots, sign in (
                    (8, "workers.a.slots: 1 → 8"), (0, "reload refused"), (4, "workers.a.slots: 8 → 4")
                ):  # fmt: skip
                    write(slots)
                    gateway.send_signal(signal.SIGHUP)
                    told += read_until(gateway, sign)
                for number in range(60):
                    assert client.wait(f"job-{number}", 30).state == "completed"
            shown = json.loads(call("workers", "--json", **place).stdout)
            assert [worker["slots"] for worker in shown] == [4]
            gateway.send_signal(signal.SIGTERM)
            told += gateway.communicate(timeout=30)[1]
            assert gateway.returncode == 0
    refused = [line for line in told.splitlines() if "reload refused" in line]
    assert len(refused) == 1
    assert f"{path}:6: workers.a.slots" in refused[0]
    assert call("audit", "--finished", **place).returncode == 0
