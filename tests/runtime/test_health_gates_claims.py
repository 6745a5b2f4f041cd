"""Health and breaker gate claims and nothing else: no running job notices, no job is burned."""

from __future__ import annotations

from gateway.breaker import BreakerState
from gateway.connectors.simulation.wire import JournalEvent
from tests.chaos.fleet import until
from tests.runtime.live import open_stage


async def test_flaky_probes_neither_stop_claims_nor_touch_completions(redis_url: str) -> None:
    """With 4 % of the probes failing, the gate never closes and every job completes at its first attempt."""
    async with open_stage(redis_url, "flaky-health") as stage:
        watch, service = stage.watch, await stage.service(health_failure_rate=0.04)
        live = await stage.gateway({"w": service}, {"health": {"probe_s": 0.01}}, slots=8)
        jobs = [await watch.submit(f"job-{i}", {"duration_s": 0.05}) for i in range(80)]
        await watch.wait_terminal(jobs, 20)
        await until(lambda: len(live.notes.probes) >= 100, 10, "a hundred probes")
        after_start = [healthy for _, healthy in live.notes.probes[1:]]
        assert all(after_start)
        report = await watch.audited()
        assert (report.completed, len(report.recoveries), report.refused) == (80, 0, 0)
        assert watch.count("released_later") + watch.count("retried_later") == 0


async def test_failing_probes_do_not_touch_running_jobs(redis_url: str) -> None:
    """A gate that closes while a job runs stops new claims; the running job completes all the same."""
    async with open_stage(redis_url, "gate-closes") as stage:
        watch, service = stage.watch, await stage.service()
        live = await stage.gateway({"w": service}, {"health": {"probe_s": 0.05}})
        running = await watch.submit("running", {"duration_s": 1.0})
        await watch.wait_for(lambda: (running, "run") in live.notes.calls, 5, "run")
        await service.set_faults(health_failure_rate=1.0)
        await until(lambda: not live.worker().healthy, 5, "gate closed")
        waiting = await watch.submit("waiting", {"duration_s": 0.05})
        await watch.wait_event("completed", running, 5)
        assert watch.of(waiting) == ["submitted"]
        assert live.worker().refusal().startswith("unhealthy")
        await service.set_faults(health_failure_rate=0.0)
        await watch.wait_event("completed", waiting, 5)
        await watch.audited()


async def test_a_dead_service_stops_its_own_worker_only(redis_url: str) -> None:
    """Jobs go to the living instance, none is charged an attempt, and the dead one's worker returns with it."""
    async with open_stage(redis_url, "one-down") as stage:
        watch = stage.watch
        good, bad = await stage.service("good"), await stage.service("bad")
        live = await stage.gateway({"good": good, "bad": bad}, slots=2)
        await until(lambda: all(worker.healthy for worker in live.gateway.workers), 5, "both healthy")
        await bad.down()
        jobs = [await watch.submit(f"job-{i}", {"duration_s": 0.05}) for i in range(40)]
        await watch.wait_terminal(jobs, 15)
        await until(lambda: not live.worker("bad").healthy, 5, "gate of the dead service closed")
        assert live.worker("good").healthy
        assert live.worker("good").endpoints[0].breaker.state(0.0) is BreakerState.CLOSED
        views = [await watch.view(job) for job in jobs]
        assert {view.attempts for view in views} == {0}
        report = await watch.audited()
        assert report.completed == 40
        await bad.up()
        await until(lambda: live.worker("bad").admissible() > 0, 5, "the worker is back")
        more = [await watch.submit(f"more-{i}", {"duration_s": 0.3}) for i in range(4)]
        await watch.wait_terminal(more, 10)
        assert len(await bad.journal()) > 0
        await watch.audited()


async def test_the_breaker_opens_on_503_and_half_open_admits_one(redis_url: str) -> None:
    """After faults in a row nothing is claimed; then one job tries at a time until the service works again."""
    async with open_stage(redis_url, "breaker") as stage:
        watch, service = stage.watch, await stage.service()
        live = await stage.gateway(
            {"w": service},
            {"health": {"breaker_faults_max": 3, "breaker_open_s": 0.6, "breaker_open_max_s": 0.6}},
            {"health": {"fail_after": 1000}},
            slots=4,
        )
        await service.set_faults(unavailable_rate=1.0)
        jobs = [await watch.submit(f"job-{i}", {"duration_s": 0.2}) for i in range(8)]
        opened = ("m/w", BreakerState.OPEN)
        await until(lambda: opened in live.notes.breakers, 10, "breaker open")
        await until(lambda: live.worker().running == 0, 5, "jobs under way given back")
        await watch.refresh()
        before = len(watch.events)
        await watch.wait_for(
            lambda: [event.type.value for event in watch.events[before:]].count("claimed") >= 3,
            10,
            "three trials",
        )
        moves = [event.type.value for event in watch.events[before:]]
        trials = [move for move in moves if move in ("claimed", "released_later")]
        assert trials[:5] == ["claimed", "released_later"] * 2 + ["claimed"]
        await service.set_faults(unavailable_rate=0.0)
        await watch.wait_terminal(jobs, 15)
        views = [await watch.view(job) for job in jobs]
        assert {view.attempts for view in views} == {0}
        assert await service.happened(JournalEvent.MISROUTED, jobs[0]) == 0
        assert (await watch.audited()).completed == len(jobs)
