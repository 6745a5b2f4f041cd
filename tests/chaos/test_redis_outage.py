"""Redis dies or goes away while jobs finish: every result is recorded once, and no gateway process exits."""

from __future__ import annotations

import pytest
import trio

from tests.chaos.fleet import Fleet, GatewayProcess, open_fleet, until

JOBS = 12


async def _started(fleet: Fleet, count: int) -> None:
    """Wait until the service has started so many jobs; none of them may end before the test goes on."""
    with trio.fail_after(15):
        while len(await fleet.executions()) < count:  # noqa: ASYNC110 - another process
            await trio.sleep(0.02)
    assert (await fleet.services[0].summary()).completed == 0


async def _finished(fleet: Fleet, count: int) -> None:
    """Wait until the service has finished so many jobs."""
    with trio.fail_after(15):
        while (await fleet.services[0].summary()).completed < count:  # noqa: ASYNC110 - another process
            await trio.sleep(0.05)


def _spooled_most(gateway: GatewayProcess) -> int:
    return max((fact["size"] for fact in gateway.told("spool")), default=0)


@pytest.mark.chaos
async def test_results_finished_while_redis_is_dead_are_recorded_once() -> None:
    """Redis is killed while jobs run and restarted from its append-only file: results wait on disk, then count."""
    async with open_fleet() as fleet:
        watch = fleet.watch
        gateway = await fleet.gateway("m", slots=JOBS)
        jobs = [await watch.submit(f"job-{i}", {"duration_s": 1.5 + 0.1 * i}) for i in range(JOBS)]
        await _started(fleet, len(jobs))
        await watch.refresh()
        fleet.redis.kill9()
        await _finished(fleet, JOBS)
        await until(lambda: _spooled_most(gateway) >= JOBS - 3, 10, "results in the spool")
        entries = list((fleet.folder / "data").glob("spool/**/*.json"))
        assert len(entries) >= JOBS - 3
        assert not gateway.ended
        fleet.redis.start()
        await watch.wait_terminal(jobs, 15)
        await until(lambda: gateway.told("spool")[-1]["size"] == 0, 5, "spool emptied")
        assert list((fleet.folder / "data").glob("spool/**/*.json")) == []
        report = await watch.audited()
        assert (report.completed, report.refused, len(report.recoveries)) == (JOBS, 0, 0)
        assert set((await fleet.executions()).values()) == {1}
        later = await watch.submit("later", {"duration_s": 0.05})
        await watch.wait_event("completed", later, 5)


@pytest.mark.chaos
async def test_a_spool_is_replayed_by_the_next_process() -> None:
    """A gateway killed while its results wait on disk: the next one on this machine records them."""
    async with open_fleet() as fleet:
        watch = fleet.watch
        first = await fleet.gateway("m", slots=4)
        jobs = [await watch.submit(f"job-{i}", {"duration_s": 1.5}) for i in range(4)]
        await _started(fleet, len(jobs))
        await watch.refresh()
        fleet.redis.kill9()
        await until(lambda: _spooled_most(first) == 4, 10, "results in the spool")
        first.kill9()
        fleet.redis.start()
        await fleet.gateway("next", slots=4)
        await watch.wait_terminal(jobs, 10)
        report = await watch.audited()
        # Recorded from the disk, under the dead owner's own leases: nobody had to wait for these to expire.
        assert (report.completed, len(report.recoveries)) == (4, 0)
        assert watch.count("claimed") == 4


@pytest.mark.chaos
async def test_five_seconds_without_redis_stop_claims_and_nothing_else() -> None:
    """A silent Redis (connections open, no answers): no claim, running jobs go on, all complete once."""
    async with open_fleet() as fleet:
        watch = fleet.watch
        gateway = await fleet.gateway("m", slots=4)
        long = [await watch.submit(f"long-{i}", {"duration_s": 7.0, "steps": 10}) for i in range(2)]
        short = [await watch.submit(f"short-{i}", {"duration_s": 2.0}) for i in range(2)]
        waiting = [await watch.submit(f"waiting-{i}", {"duration_s": 0.1}) for i in range(4)]
        await _started(fleet, len(long) + len(short))
        await watch.refresh()
        fleet.redis.pause()
        claims = len(gateway.told("claimed"))
        await trio.sleep(5.0)
        assert len(gateway.told("claimed")) == claims
        assert (await fleet.services[0].summary()).completed == 2
        assert not gateway.ended
        fleet.redis.resume()
        await watch.wait_terminal([*long, *short, *waiting], 15)
        report = await watch.audited()
        assert (report.completed, report.refused, len(report.recoveries)) == (8, 0, 0)
        assert set((await fleet.executions()).values()) == {1}
