"""Gateways killed with SIGKILL: nothing is lost, nothing is completed twice, and the next owner comes soon."""

from __future__ import annotations

import logging
import random
import time

import pytest
import trio

from gateway.connectors.simulation.wire import JournalEvent
from tests.chaos.fleet import SHORT_LEASE, TINY_LEASE, Fleet, GatewayProcess, open_fleet

log = logging.getLogger(__name__)

ROUNDS = 20
JOBS = 150
#: The promise: lease 15 s, a sweep every second, a wake-up.
RECOVERY_MAX_S = 20.0


async def _kill_rounds(fleet: Fleet, source: random.Random) -> dict[str, int]:
    """Kill a random gateway at random moments, each time starting a successor; returns when each one died."""
    killed_ms: dict[str, int] = {}
    alive = [await fleet.gateway(f"m{i}", service=i, slots=6) for i in range(3)]
    spare = fleet.launch("m3", service=0, slots=6)
    for number in range(ROUNDS):
        await spare.ready()
        await trio.sleep(source.uniform(0.1, 0.8))
        victim = alive.pop(source.randrange(len(alive)))
        victim.kill9()
        killed_ms[victim.machine] = time.time_ns() // 1_000_000
        alive.append(spare)
        if number < ROUNDS - 1:
            spare = fleet.launch(f"m{number + 4}", service=number % 3, slots=6)
    return killed_ms


@pytest.mark.chaos
@pytest.mark.limit_s(150)
async def test_twenty_killed_gateways_lose_nothing() -> None:
    """With default settings, 20 kills at random moments: every job completes once, each orphan within 20 s."""
    source = random.Random(7)
    async with open_fleet(instances=3) as fleet:
        watch = fleet.watch
        jobs = [
            await watch.submit(f"job-{i}", {"duration_s": source.uniform(0.5, 4.0), "steps": 20})
            for i in range(JOBS)
        ]
        killed_ms = await _kill_rounds(fleet, source)
        await watch.wait_terminal(jobs, 60)
        report = await watch.audited()
        assert report.completed == JOBS
        recoveries = {
            machine: report.recoveries_after(at_ms, {f"{machine}/w"}) for machine, at_ms in killed_ms.items()
        }
        orphans = [recovery_s for each in recoveries.values() for recovery_s in each]
        assert len(orphans) >= ROUNDS  # the kills did hit running jobs
        log.info("%d orphans, worst recovery %.2f s", len(orphans), max(orphans))
        assert max(orphans) < RECOVERY_MAX_S
        assert len(report.recoveries) == len(orphans)
        # What ran at the service when its gateway died was followed or collected there, not run again.
        assert set((await fleet.executions()).values()) == {1}
        assert len(await fleet.executions()) == JOBS


@pytest.mark.chaos
async def test_work_finished_after_its_gateway_died_is_collected() -> None:
    """A job that the service finishes while nobody owns it is completed from there by the next owner."""
    async with open_fleet() as fleet:
        watch, service = fleet.watch, fleet.services[0]
        first = await fleet.gateway("first", SHORT_LEASE)
        job = await watch.submit("job", {"duration_s": 1.0, "result": "made once"})
        await service.seen(JournalEvent.STARTED, job)
        first.kill9()
        second = await fleet.gateway("second", SHORT_LEASE)
        done = await watch.wait_event("completed", job, 15)
        assert done.worker_id == "second/w"
        assert (await watch.view(job)).result["echo"] == "made once"
        assert [fact["operation"] for fact in second.told("call", job=job)] == ["query"]
        assert await fleet.executions() == {"job.1": 1}
        await watch.audited()


@pytest.mark.chaos
async def test_a_lost_machine_does_not_keep_its_jobs() -> None:
    """When gateway and service die together, the job is run again on another machine."""
    async with open_fleet(instances=1) as lost, open_fleet(instances=1) as fleet:
        watch = fleet.watch
        first = await fleet.gateway("first", SHORT_LEASE, service=lost.services[0].url)
        job = await watch.submit("job", {"duration_s": 2.0})
        await lost.services[0].seen(JournalEvent.STARTED, job)
        first.kill9()
        lost.simulator.kill9()
        await fleet.gateway("second", SHORT_LEASE)
        done = await watch.wait_event("completed", job, 20)
        assert done.worker_id == "second/w"
        assert (await watch.view(job)).attempts == 0
        await watch.audited()


async def _owner(fleet: Fleet, job: str, times: int) -> GatewayProcess:
    claim = await fleet.watch.wait_event("claimed", job, 15, times=times)
    return fleet.gateways[claim.worker_id.removesuffix("/w")]


@pytest.mark.chaos
async def test_a_job_that_kills_its_owners_is_buried() -> None:
    """More than three owners lost without progress: the job is dead as a poison pill, the others go on."""
    async with open_fleet() as fleet:
        watch = fleet.watch
        for number in range(5):
            fleet.launch(f"m{number}", TINY_LEASE)
        for gateway in fleet.gateways.values():
            await gateway.ready()
        job = await watch.submit("pill", {"duration_s": 60.0, "steps": 1})
        for times in range(1, 5):
            (await _owner(fleet, job, times)).kill9()
        await watch.wait_event("dead", job, 15)
        view = await watch.view(job)
        assert view.error is not None
        assert (view.error["kind"], view.attempts, view.recoveries) == ("poison_pill", 0, 4)
        other = await watch.submit("other", {"duration_s": 0.1})
        await watch.wait_event("completed", other, 10)
        await watch.audited()
