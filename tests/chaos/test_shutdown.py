"""SIGTERM to a real gateway process: finish within the grace, release the rest uncharged, leave nothing behind."""

from __future__ import annotations

import signal

import pytest
import trio

from gateway.connectors.simulation.wire import JournalEvent
from tests.chaos.fleet import open_fleet


@pytest.mark.chaos
async def test_jobs_finish_within_the_grace() -> None:
    """After SIGTERM nothing is claimed any more, and what runs is completed by the same process."""
    async with open_fleet() as fleet:
        watch, service = fleet.watch, fleet.services[0]
        first = await fleet.gateway("first", {"shutdown": {"grace_s": 10.0}})
        running = await watch.submit("running", {"duration_s": 1.5})
        await service.seen(JournalEvent.STARTED, running)
        first.send(signal.SIGTERM)
        await trio.sleep(0.2)
        waiting = await watch.submit("waiting", {"duration_s": 0.1})
        assert await first.exited(10) == 0
        await watch.refresh()
        assert watch.of(running) == ["submitted", "claimed", "completed"]
        assert watch.of(waiting) == ["submitted"]
        assert await watch.store.workers() == {}
        await watch.audited(all_terminal=False)


@pytest.mark.chaos
async def test_what_outlasts_the_grace_is_released_and_finished_elsewhere() -> None:
    """A job cut by the end of the grace costs no attempt; the next gateway follows the same run to its end."""
    async with open_fleet() as fleet:
        watch, service = fleet.watch, fleet.services[0]
        first = await fleet.gateway("first", {"shutdown": {"grace_s": 0.5}})
        job = await watch.submit("job", {"duration_s": 8.0})
        await service.seen(JournalEvent.STARTED, job)
        # Started beforehand: on a busy machine its start could outlast the job, and there would be nothing to follow.
        second = await fleet.gateway("second")
        first.send(signal.SIGTERM)
        assert await first.exited(8) == 0
        await watch.wait_event("completed", job, 20)
        assert watch.of(job) == ["submitted", "claimed", "released", "claimed", "completed"]
        view = await watch.view(job)
        assert (view.attempts, view.recoveries) == (0, 0)
        assert [fact["operation"] for fact in second.told("call", job=job)] == ["query", "resume"]
        assert await fleet.executions() == {"job.1": 1}
        await watch.audited()


@pytest.mark.chaos
async def test_a_second_sigterm_does_not_wait() -> None:
    """With a grace of a minute, the second SIGTERM ends the process at once, its job released uncharged."""
    async with open_fleet() as fleet:
        watch, service = fleet.watch, fleet.services[0]
        first = await fleet.gateway("first", {"shutdown": {"grace_s": 60.0}})
        job = await watch.submit("job", {"duration_s": 60.0})
        await service.seen(JournalEvent.STARTED, job)
        first.send(signal.SIGTERM)
        await trio.sleep(0.5)
        assert not first.ended
        first.send(signal.SIGTERM)
        assert await first.exited(4) == 0
        await watch.refresh()
        assert watch.of(job) == ["submitted", "claimed", "released"]
        assert (await watch.view(job)).attempts == 0
        await watch.audited(all_terminal=False)


@pytest.mark.chaos
async def test_a_stream_of_claims_survives_restarts() -> None:
    """Gateways stopped in the middle of claiming give back what they did not start: no lease has to expire."""
    async with open_fleet() as fleet:
        watch = fleet.watch
        gateways = [await fleet.gateway("m0", slots=2)]
        jobs = [await watch.submit(f"job-{i}", {"duration_s": 0.02}) for i in range(150)]
        for number in (1, 2):
            gateways.append(await fleet.gateway(f"m{number}", slots=2))
            gateways[number - 1].send(signal.SIGTERM)
        assert [await gateway.exited(10) for gateway in gateways[:-1]] == [0, 0]
        await watch.wait_terminal(jobs, 20)
        report = await watch.audited()
        assert (report.completed, len(report.recoveries)) == (150, 0)
