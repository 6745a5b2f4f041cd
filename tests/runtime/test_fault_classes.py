"""Each fault class from the service's own words to what the queue records, end to end."""

from __future__ import annotations

import itertools

import pytest

from gateway.breaker import BreakerState
from gateway.connectors.simulation.wire import ErrorKind, JournalEvent
from gateway.models import JobState
from tests.chaos.fleet import until
from tests.runtime.live import open_stage


def failing(kind: ErrorKind, **wish: object) -> dict[str, object]:
    """A payload whose work fails with this kind."""
    return {"duration_s": 0.05, "fail": {"kind": kind.value, **wish}}


@pytest.mark.parametrize("kind", [ErrorKind.VALIDATION, ErrorKind.REFUSED])
async def test_a_job_that_cannot_work_is_dead_at_once(redis_url: str, kind: ErrorKind) -> None:
    """What no retry can mend goes to the dead letter with its reason after one execution."""
    async with open_stage(redis_url, f"dead-{kind.value}") as stage:
        watch, service = stage.watch, await stage.service()
        live = await stage.gateway({"w": service})
        job = await watch.submit("job", failing(kind, message="no such model"))
        await watch.wait_event("dead", job, 5)
        assert watch.of(job) == ["submitted", "claimed", "dead"]
        view = await watch.view(job)
        assert view.error is not None
        assert (view.attempts, view.error["kind"]) == (1, kind.value)
        assert view.error["message"] == "no such model"
        assert (await service.summary()).executions_by_job == {"job.1": 1}
        assert live.worker().endpoints[0].breaker.state(0.0) is BreakerState.CLOSED
        await watch.audited()


async def test_bad_credentials_bury_the_job_and_open_the_breaker(redis_url: str) -> None:
    """A refused key concerns the endpoint: the job is dead, and no further job is burned on it."""
    async with open_stage(redis_url, "auth") as stage:
        watch, service = stage.watch, await stage.service()
        breaker = {"health": {"breaker_open_s": 30.0, "breaker_open_max_s": 30.0}}
        live = await stage.gateway({"w": service}, breaker, slots=1)
        job = await watch.submit("job", failing(ErrorKind.AUTH))
        await watch.wait_event("dead", job, 5)
        await until(lambda: ("m/w", BreakerState.OPEN) in live.notes.breakers, 5, "breaker open")
        other = await watch.submit("other", {"duration_s": 0.05})
        assert live.worker().refusal() == "breaker open"
        other_service = await stage.service("other")
        await stage.gateway({"w": other_service}, machine="n")
        await watch.wait_event("completed", other, 5)
        claims = [event.worker_id for event in watch.events if event.job_id == other and event.worker_id]
        assert set(claims) == {"n/w"}
        await watch.audited()


async def test_a_rate_limited_job_waits_uncharged(redis_url: str) -> None:
    """A rate limit means later, as late as Retry-After says, a real new try each time, and costs nothing."""
    async with open_stage(redis_url, "rate-limited") as stage:
        watch, service = stage.watch, await stage.service()
        await stage.gateway({"w": service})
        job = await watch.submit("job", failing(ErrorKind.RATE_LIMITED, retry_after_s=0.7), max_attempts=1)
        snoozed = await watch.wait_event("snoozed_later", job, 5)
        again = await watch.wait_event("claimed", job, 5, times=2)
        assert again.at_ms - snoozed.at_ms >= 700
        await watch.wait_event("snoozed_later", job, 5, times=2)
        assert (await watch.view(job)).attempts == 0
        # The old refusal is not simply read again: the work was tried under a name of its own.
        assert list((await service.summary()).executions_by_job.values()) == [1, 1]
        await watch.store.cancel([job])
        await watch.audited()


async def test_a_refused_submission_is_snoozed_as_the_header_says(redis_url: str) -> None:
    """429 at the submission itself is no different: Retry-After is kept and no attempt is charged."""
    async with open_stage(redis_url, "rate-limited-submit") as stage:
        watch, service = stage.watch, await stage.service(rate_limit_rate=1.0, retry_after_s=1.0)
        await stage.gateway({"w": service})
        job = await watch.submit("job", {"duration_s": 0.05}, max_attempts=1)
        snoozed = await watch.wait_event("snoozed_later", job, 5)
        await service.set_faults(rate_limit_rate=0.0)
        again = await watch.wait_event("claimed", job, 5, times=2)
        assert again.at_ms - snoozed.at_ms >= 1000
        await watch.wait_event("completed", job, 5)
        assert (await watch.view(job)).attempts == 0
        await watch.audited()


async def test_a_job_refused_for_being_busy_goes_to_others_uncharged(redis_url: str) -> None:
    """An unavailable service gives its jobs back; another worker completes them at their first attempt."""
    async with open_stage(redis_url, "unavailable") as stage:
        watch = stage.watch
        busy, idle = await stage.service("busy", unavailable_rate=1.0), await stage.service("idle")
        await stage.gateway({"w": busy}, {"health": {"fail_after": 1000}}, machine="busy")
        job = await watch.submit("job", {"duration_s": 0.05}, max_attempts=1)
        await watch.wait_event("released_later", job, 10)
        await stage.gateway({"w": idle}, machine="idle")
        done = await watch.wait_event("completed", job, 10)
        assert done.worker_id == "idle/w"
        assert (await watch.view(job)).attempts == 0
        await watch.audited()


@pytest.mark.parametrize("kind", [ErrorKind.SERVICE_ERROR, ErrorKind.OUT_OF_MEMORY])
async def test_a_failed_attempt_is_retried_on_another_worker_first(redis_url: str, kind: ErrorKind) -> None:
    """The attempt is charged, and the worker that failed leaves the job to others for a moment."""
    async with open_stage(redis_url, f"retry-{kind.value}") as stage:
        watch, service = stage.watch, await stage.service()
        await stage.gateway({"w": service}, machine="a")
        await stage.gateway({"w": service}, machine="b")
        job = await watch.submit("job", failing(kind, times=1))
        # The second attempt has a name of its own at the service, so it fails there once as well.
        await watch.wait_event("retried_later", job, 5)
        again = await watch.wait_event("claimed", job, 5, times=2)
        first = next(event for event in watch.events if event.job_id == job and event.type.value == "claimed")
        assert again.worker_id != first.worker_id
        await watch.wait_terminal([job], 10)
        await watch.audited()


@pytest.mark.parametrize("kind", [ErrorKind.SERVICE_ERROR, ErrorKind.OUT_OF_MEMORY])
async def test_used_up_attempts_bury_the_job(redis_url: str, kind: ErrorKind) -> None:
    """After ``max_attempts`` charged failures the job is dead, with the last reason, and was executed as often."""
    async with open_stage(redis_url, f"used-up-{kind.value}") as stage:
        watch, service = stage.watch, await stage.service()
        await stage.gateway({"w": service}, {"retry": {"avoid_s": 0.0}, "health": {"breaker_faults_max": 50}})
        job = await watch.submit("job", failing(kind), max_attempts=3)
        await watch.wait_event("dead", job, 10)
        view = await watch.view(job)
        assert (view.state, view.attempts) == (JobState.DEAD, 3)
        assert view.error is not None
        assert view.error["kind"] == kind.value
        assert (await service.summary()).executions_by_job == {"job.1": 1, "job.2": 1, "job.3": 1}
        claims = [event.at_ms for event in watch.events if event.type.value == "claimed"]
        assert len(claims) == 3
        assert all(later - earlier >= 10 for earlier, later in itertools.pairwise(claims))
        await watch.audited()


async def test_a_forgotten_job_is_run_again(redis_url: str) -> None:
    """A service that restarts without its jobs costs an attempt, not the job."""
    async with open_stage(redis_url, "forgotten") as stage:
        watch, service = stage.watch, await stage.service()
        live = await stage.gateway({"w": service}, {"runner": {"stall_s": 0.3}, "retry": {"avoid_s": 0.0}})
        job = await watch.submit("job", {"duration_s": 0.8})
        await watch.wait_for(lambda: (job, "run") in live.notes.calls, 5, "run")
        await watch.wait_for(lambda: live.worker().running == 1, 5, "running")
        await service.seen(JournalEvent.STARTED, job)
        await service.control("/control/restart")
        await watch.wait_event("completed", job, 10)
        assert (await watch.view(job)).attempts == 1
        await watch.audited()
