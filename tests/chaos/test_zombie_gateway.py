"""An owner that was paused beyond its lease: the fence accepts one completion, the zombie stops working."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gateway.connectors.simulation.wire import JournalEvent
from tests.chaos.fleet import ROOT, SHORT_LEASE, Fleet, open_fleet, until


@pytest.mark.chaos
async def test_a_paused_gateway_loses_its_job_and_stops_following_it() -> None:
    """A gateway stopped beyond its lease neither completes its job again nor keeps the call to the service."""
    async with open_fleet() as fleet:
        watch, service = fleet.watch, fleet.services[0]
        first = await fleet.gateway("first", SHORT_LEASE, {"health": {"probe_s": 60.0}})
        job = await watch.submit("job", {"duration_s": 5.0, "steps": 5})
        await watch.wait_event("claimed", job, 10)
        await until(lambda: bool(first.told("call", operation="run")), 5, "call to the service")
        await until(lambda: first.connections_to(service.port) >= 1, 5, "connection to the service")
        first.send(signal.SIGSTOP)
        await fleet.gateway("second", SHORT_LEASE)
        second_claim = await watch.wait_event("claimed", job, 15, times=2)
        assert second_claim.worker_id == "second/w"
        first.send(signal.SIGCONT)
        await until(lambda: bool(first.told("call_ended", operation="run")), 3, "end of the zombie's call")
        reasons = {fact["reason"] for fact in first.told("disowned", job=job)}
        assert reasons <= {"expired", "lost", "settled stale"}
        await until(lambda: first.connections_to(service.port) == 0, 6, "zombie's connections closed")
        await watch.wait_event("completed", job, 15)
        report = await watch.audited()
        assert (report.completed, report.submitted) == (1, 1)
        assert await service.happened(JournalEvent.CANCELLED, job) == 0  # the successor follows the same run
        assert await fleet.executions() == {"job.1": 1}


@contextmanager
def _claimer(fleet: Fleet) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """An owner as a process, and the file of what it says."""
    told = fleet.folder / "claimer.told"
    with told.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.claimer_process", fleet.redis.url, fleet.queue],
            stdin=subprocess.PIPE,
            stdout=out,
            cwd=ROOT,
        )
    try:
        yield process, told
    finally:
        process.kill()
        process.communicate(timeout=10)


@pytest.mark.chaos
@pytest.mark.parametrize("successor_done", [True, False], ids=["after-completion", "while-running"])
async def test_the_completion_of_a_paused_owner_is_stale(successor_done: bool) -> None:
    """Two owners complete one job: only the newest epoch's completion is accepted, whoever comes first."""
    async with open_fleet() as fleet:
        watch = fleet.watch
        job = await watch.submit("job", {"duration_s": 0.2 if successor_done else 3.5, "result": "successor"})
        with _claimer(fleet) as (claimer, told):
            await until(lambda: told.read_bytes().endswith(b"\n"), 15, "the first claim")
            claimer.send_signal(signal.SIGSTOP)
            await fleet.gateway("second", SHORT_LEASE)
            await watch.wait_event("claimed", job, 15, times=2)
            if successor_done:
                await watch.wait_event("completed", job, 10)
            assert claimer.stdin is not None
            claimer.stdin.write(b"go\n")
            claimer.stdin.flush()
            claimer.send_signal(signal.SIGCONT)
            await until(lambda: told.read_bytes().count(b"\n") == 2, 10, "the zombie's verdict")
            answer = json.loads(told.read_bytes().splitlines()[1])
        assert answer == {"verdict": "stale", "state": "completed" if successor_done else "running"}
        await watch.wait_event("completed", job, 10)
        report = await watch.audited()
        assert (report.completed, report.refused) == (1, 1)
        epochs = [event.epoch for event in watch.events if event.type.value == "claimed"]
        refused = next(event for event in watch.events if event.type.value == "refused")
        accepted = next(event for event in watch.events if event.type.value == "completed")
        assert (refused.epoch, accepted.epoch) == (epochs[0], epochs[1])
        assert (await watch.view(job)).result["echo"] == "successor"
