"""Parents and deadlines with a whole gateway: real Redis, a simulated service on a real socket."""

from __future__ import annotations

from gateway.models import JobId, JobSpec, Submission
from tests.runtime.live import open_stage


async def test_a_child_runs_as_soon_as_its_parent_has_completed(redis_url: str) -> None:
    """The settlement releases it and the same gateway sweeps at once, although its regular sweep is far away."""
    async with open_stage(redis_url, "family") as stage:
        service = await stage.service()
        # Longer than the test's limit: no regular sweep takes part.
        await stage.gateway({"w": service}, {"lease": {"sweep_s": 4.9}})
        watch = stage.watch
        parent = await watch.submit("parent", {"duration_s": 0.3})
        child = await watch.submit("child", {"duration_s": 0.01}, after=(parent,))
        await watch.wait_event("completed", child, 4)
        assert watch.of(child) == ["blocked", "unblocked", "promoted", "claimed", "completed"]
        ends = {event.type.value: event.at_ms for event in watch.events if event.job_id == child}
        (done,) = [
            event.at_ms for event in watch.events if (event.job_id, event.type) == (parent, "completed")
        ]
        assert ends["unblocked"] == done
        assert ends["claimed"] - done < 1500


async def test_a_deadline_ends_a_running_attempt(redis_url: str) -> None:
    """A job that runs into its deadline is stopped there, although its own time-out is far away, and ends dead."""
    async with open_stage(redis_url, "deadline") as stage:
        service = await stage.service()
        await stage.gateway({"w": service}, {})
        watch = stage.watch
        spec = JobSpec(service="simulation", payload={"duration_s": 60.0}, timeout_s=600.0)
        await watch.store.submit(Submission(job_id=JobId("late"), spec=spec, expires_in_s=1.0))
        watch.accepted.append("late")
        await watch.wait_event("expired", "late", 20)
        assert watch.of("late") == ["submitted", "claimed", "expired"]
        (view,) = await watch.store.inspect(["late"])
        assert view is not None
        assert view.error is not None
        assert (view.error["kind"], view.attempts) == ("expired", 1)
