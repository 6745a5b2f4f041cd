"""Each named recovery: its cause is injected, its action is seen, and its metric counts it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import redis
import trio
import trio.testing
from opentelemetry.sdk.resources import Resource

from gateway.connectors.simulation.wire import JournalEvent
from gateway.health import LagMonitor
from gateway.models import ClaimRequest, ClassId, JobId, JobSpec, JobState, Submission, WorkerId
from gateway.store.keys import QueueKeys
from gateway.strategies import RECOVERIES, Strategy
from gateway.telemetry.instruments import InstrumentSet
from gateway.telemetry.metrics import GatewayMetrics
from tests.chaos.fleet import until
from tests.runtime.live import Notes, Stage, open_stage
from tests.support.redis_server import RedisServer

ROOT = Path(__file__).parents[2]


async def lapse(stage: Stage, job: str) -> None:
    """Let the lease of a job be over, as if its owner had been silent for its length."""
    with redis.Redis.from_url(stage.redis_url) as server:
        server.zadd(QueueKeys(stage.queue).leases, {job: 1}, xx=True)
    recovered = stage.watch.count("recovered", job) + stage.watch.count("dead", job)

    def swept() -> bool:
        return stage.watch.count("recovered", job) + stage.watch.count("dead", job) > recovered

    await stage.watch.wait_for(swept, 5, "the sweep of a lapsed lease")


async def claim_by_hand(stage: Stage, service: str, request: str) -> None:
    """Another owner takes the waiting job of a service."""
    ask = ClaimRequest(request, WorkerId("hand"), 1, 9, (ClassId(service),))
    reply = await stage.watch.store.claim(ask)
    assert len(reply.grants) == 1


async def test_job_timeout(redis_url: str) -> None:
    """An attempt beyond its time is stopped at the service, and tried again."""
    async with open_stage(redis_url, "recovery-timeout") as stage:
        service = await stage.service()
        live = await stage.gateway({"w": service})
        job = await stage.watch.submit("job", {"duration_s": 30.0}, timeout_s=0.4, max_attempts=1)
        await stage.watch.wait_event("dead", job, 5)
        assert live.notes.recoveries == {Strategy.JOB_TIMEOUT: 1}
        view = await stage.watch.view(job)
        assert view.error is not None
        assert view.error["kind"] == "timeout"


async def test_service_unavailable(redis_url: str) -> None:
    """A service that cannot serve now costs the job no attempt."""
    async with open_stage(redis_url, "recovery-unavailable") as stage:
        service = await stage.service()
        live = await stage.gateway({"w": service})
        wish = {"kind": "unavailable", "times": 1, "key": "once"}
        job = await stage.watch.submit("job", {"duration_s": 0.05, "fail": wish})
        await stage.watch.wait_event("completed", job, 10)
        assert live.notes.recoveries == {Strategy.SERVICE_UNAVAILABLE: 1}
        assert (await stage.watch.view(job)).attempts == 0


async def test_worker_stuck_by_a_silent_job(redis_url: str) -> None:
    """An attempt without any sign of life ends long before the job's own time-out."""
    async with open_stage(redis_url, "recovery-silent") as stage:
        service = await stage.service()
        live = await stage.gateway({"w": service}, {"runner": {"silence_max_s": 0.5, "stall_s": 0.2}})
        job = await stage.watch.submit("job", {"duration_s": 60.0, "steps": 1}, max_attempts=1)
        await stage.watch.wait_event("dead", job, 10)
        assert live.notes.recoveries == {Strategy.WORKER_STUCK: 1}
        await service.seen(JournalEvent.CANCELLED, job)


async def test_worker_stuck_by_a_lagging_loop(autojump_clock: trio.testing.MockClock) -> None:
    """A loop whose timers fire too late is told once per lapse, not once per look."""
    notes = Notes()
    speed = 2.0
    monitor = LagMonitor(every_s=1.0, limit_s=0.5, now_s=lambda: trio.current_time() * speed, observer=notes)
    async with trio.open_nursery() as nursery:
        await nursery.start(monitor.run)
        await trio.sleep(5.5)
        assert monitor.lagging
        assert notes.recoveries == {Strategy.WORKER_STUCK: 1}
        nursery.cancel_scope.cancel()


async def test_lease_lost(redis_url: str) -> None:
    """Another owner has the job: the attempt stops at once and writes nothing."""
    async with open_stage(redis_url, "recovery-lost") as stage:
        service = await stage.service()
        live = await stage.gateway({"w": service}, slots=1)
        job = await stage.watch.submit("job", {"duration_s": 30.0})
        await service.seen(JournalEvent.STARTED, job)
        await lapse(stage, job)
        await claim_by_hand(stage, "simulation", "hand-1")
        await until(lambda: live.notes.recoveries[Strategy.LEASE_LOST] == 1, 5, "the loss is noticed")
        assert [fact for fact in live.notes.disownings if fact[0] == job] == [(job, "lost")]
        await stage.watch.wait_event("claimed", job, 5, times=2)
        assert stage.watch.of(job) == ["submitted", "claimed", "recovered", "claimed"]


async def test_redis_lost(redis_server: RedisServer) -> None:
    """A result that Redis cannot take waits in the spool and is recorded once when Redis is back."""
    async with open_stage(redis_server.url, "recovery-redis") as stage:
        service = await stage.service()
        live = await stage.gateway({"w": service})
        job = await stage.watch.submit("job", {"duration_s": 1.0})
        await service.seen(JournalEvent.STARTED, job)
        redis_server.kill9()
        await until(lambda: live.notes.recoveries[Strategy.REDIS_LOST] == 1, 10, "the result waits")
        redis_server.start()
        await stage.watch.wait_event("completed", job, 15)
        assert live.notes.spooled_most == 1
        await stage.watch.audited()


async def test_poison_pill(redis_url: str) -> None:
    """A job whose owners vanish again and again ends in the dead letter after the set number of recoveries."""
    async with open_stage(redis_url, "recovery-poison") as stage:
        service = await stage.service()
        live = await stage.gateway({"w": service}, {"limits": {"recoveries_max": 2}})
        spec = JobSpec(service="elsewhere")
        await stage.watch.store.submit(Submission(job_id=JobId("job"), spec=spec))
        job = "job"
        for number in range(3):
            await claim_by_hand(stage, "elsewhere", f"hand-{number}")
            await lapse(stage, job)
        assert live.notes.recoveries == {Strategy.POISON_PILL: 1}
        view = await stage.watch.view(job)
        assert view.error is not None
        assert (view.state, view.error["kind"]) == (JobState.DEAD, "poison_pill")


async def test_service_restarted(redis_url: str) -> None:
    """A service that forgot the work while it was followed gets it again, and it completes once."""
    async with open_stage(redis_url, "recovery-restarted") as stage:
        service = await stage.service()
        live = await stage.gateway({"w": service}, {"runner": {"stall_s": 0.2}})
        job = await stage.watch.submit("job", {"duration_s": 1.0})
        await service.seen(JournalEvent.STARTED, job)
        await service.control("/control/restart")
        await stage.watch.wait_event("completed", job, 10)
        assert live.notes.recoveries == {Strategy.SERVICE_RESTARTED: 1}
        await stage.watch.audited()


async def test_duplicate_execution_detected(redis_url: str) -> None:
    """Work finished for a job that has another owner by now is refused, and told."""
    async with open_stage(redis_url, "recovery-duplicate") as stage:
        service = await stage.service()
        # Renewed late and without progress to report: the owner does not notice its loss before it is done.
        live = await stage.gateway({"w": service}, {"lease": {"renew_s": 5.0}}, slots=1)
        job = await stage.watch.submit("job", {"duration_s": 1.5, "steps": 1})
        await service.seen(JournalEvent.STARTED, job)
        await lapse(stage, job)
        await claim_by_hand(stage, "simulation", "hand-1")
        await until(
            lambda: live.notes.recoveries == {Strategy.DUPLICATE_EXECUTION_DETECTED: 1}, 8, "the refusal"
        )
        assert stage.watch.count("completed", job) == 0


@pytest.mark.parametrize("strategy", list(Strategy))
def test_every_strategy_is_a_metric_and_documented(strategy: Strategy) -> None:
    """Each has a row in the table, a series from the start, a test here and an entry in the runbook."""
    assert RECOVERIES[strategy].cause
    assert RECOVERIES[strategy].action
    instruments = InstrumentSet(Resource({}), "test", lambda: 0)
    metrics = GatewayMetrics(instruments)
    series = f'recoveries_total{{strategy="{strategy.value}"}}'
    assert instruments.snapshot()[series] == 0
    metrics.recovering(strategy, 2)
    assert instruments.snapshot()[series] == 2
    assert re.search(rf"def test_{strategy.value}", Path(__file__).read_text("utf-8"))
    assert f"`{strategy.value}`" in (ROOT / "docs/operations.md").read_text("utf-8")
