"""Time-out and cancellation reach the service: its journal shows that the work really stopped."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from gateway.connectors.simulation.wire import JournalEvent
from gateway.models import CancelStatus, JobState
from tests.chaos.fleet import QueueWatch, Service
from tests.runtime.live import Stage, open_stage


async def _cancelled_there(service: Service, job_id: str) -> None:
    """Wait until the service has stopped the job's work, and see that nothing of it was finished."""
    await service.seen(JournalEvent.CANCELLED, job_id)
    assert await service.happened(JournalEvent.FINISHED, job_id) == 0


async def _begin_elsewhere(stage: Stage, service: Service, job_id: str) -> None:
    """Leave a job running at ``service`` under a lease that was released: the next owner has to re-attach."""
    first = await stage.gateway({"w": service}, {"shutdown": {"grace_s": 0.0}}, machine="first")
    await stage.watch.wait_event("claimed", job_id, 5)
    await service.seen(JournalEvent.STARTED, job_id)
    first.stop.drain()
    await first.stopped.wait()
    await stage.watch.wait_event("released", job_id, 5)


async def test_cancelling_a_running_job_stops_the_service(redis_url: str) -> None:
    """An operator's cancel ends the job as cancelled and its work at the service with it."""
    async with open_stage(redis_url, "cancel-running") as stage:
        watch, service = stage.watch, await stage.service()
        live = await stage.gateway({"w": service})
        job = await watch.submit("job", {"duration_s": 30.0})
        await watch.wait_for(lambda: (job, "run") in live.notes.calls, 5, "run at the service")
        assert await watch.store.cancel([job]) == [CancelStatus.REQUESTED]
        await watch.wait_event("cancelled", job, 5)
        await _cancelled_there(service, job)
        await watch.audited()


async def test_a_timed_out_job_stops_the_service(redis_url: str) -> None:
    """A job beyond its own time limit is charged an attempt, and its work at the service is stopped."""
    async with open_stage(redis_url, "timeout-running") as stage:
        watch, service = stage.watch, await stage.service()
        await stage.gateway({"w": service})
        job = await watch.submit("job", {"duration_s": 30.0}, timeout_s=0.5, max_attempts=1)
        await watch.wait_event("dead", job, 5)
        await _cancelled_there(service, job)
        view = await watch.view(job)
        assert (view.attempts, view.error and view.error["kind"]) == (1, "timeout")


async def _operator_cancels(watch: QueueWatch, job_id: str) -> None:
    assert await watch.store.cancel([job_id]) == [CancelStatus.REQUESTED]


async def _time_passes(watch: QueueWatch, job_id: str) -> None:
    """The job's own time limit ends it."""


@pytest.mark.parametrize("elsewhere", [False, True], ids=["same-instance", "other-instance"])
@pytest.mark.parametrize(
    ("end", "timeout_s", "state"),
    [(_operator_cancels, 60.0, JobState.CANCELLED), (_time_passes, 1.0, JobState.DEAD)],
    ids=["cancel", "timeout"],
)
async def test_a_reattached_job_is_stopped_where_it_runs(
    redis_url: str,
    elsewhere: bool,
    end: Callable[[QueueWatch, str], Awaitable[None]],
    timeout_s: float,
    state: JobState,
) -> None:
    """A job followed by its next owner is stopped at the instance that runs it, not at the owner's own one."""
    async with open_stage(redis_url, f"stop-{elsewhere}-{state.value}") as stage:
        watch, service = stage.watch, await stage.service("left")
        job = await watch.submit("job", {"duration_s": 30.0}, timeout_s=timeout_s, max_attempts=1)
        await _begin_elsewhere(stage, service, job)
        own = await stage.service("own") if elsewhere else service
        second = await stage.gateway({"w": own}, machine="second")
        await watch.wait_for(lambda: (job, "resume") in second.notes.calls, 5, "re-attach")
        await end(watch, job)
        await watch.wait_terminal([job], 5)
        assert (await watch.view(job)).state is state
        await _cancelled_there(service, job)
        assert await service.happened(JournalEvent.STARTED, job) == 1
        await watch.audited()
