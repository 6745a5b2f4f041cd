"""A service that finishes without saying so: the query, not the job's time limit, finds out."""

from __future__ import annotations

import trio

from tests.runtime.live import open_stage

STALL_S = 0.4


async def test_a_lost_completion_is_found_by_the_query(redis_url: str) -> None:
    """With every completion signal lost, jobs complete about one stall after their end, each executed once."""
    async with open_stage(redis_url, "second-witness") as stage:
        watch, service = stage.watch, await stage.service(lost_completion_rate=1.0)
        await stage.gateway({"w": service}, {"runner": {"stall_s": STALL_S}})
        begun_s = trio.current_time()
        jobs = [await watch.submit(f"job-{i}", {"duration_s": 0.2}, timeout_s=60.0) for i in range(4)]
        await watch.wait_terminal(jobs, 10)
        assert trio.current_time() - begun_s < 0.2 + 6 * STALL_S
        report = await watch.audited()
        assert report.completed == len(jobs)
        summary = await service.summary()
        assert set(summary.executions_by_job.values()) == {1}
        assert (await watch.view(jobs[0])).attempts == 0


async def test_a_silent_stream_does_not_end_a_long_job(redis_url: str) -> None:
    """A stream that falls silent in the middle is asked about and reopened; the job goes on to its end."""
    async with open_stage(redis_url, "half-open") as stage:
        watch, service = stage.watch, await stage.service(half_open_rate=1.0)
        await stage.gateway({"w": service}, {"runner": {"stall_s": STALL_S}})
        job = await watch.submit("job", {"duration_s": 1.5, "steps": 3})
        await watch.wait_terminal([job], 10)
        assert (await watch.audited()).completed == 1
        assert (await service.summary()).executions_by_job == {"job.1": 1}
