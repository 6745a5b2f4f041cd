"""Jobs of a kind that nobody has met before."""

from __future__ import annotations

import pytest

from gateway.lifecycle import EventType
from gateway.models import JobId
from simulator.plan import FleetPlan, PlannedJob
from simulator.run import simulate

#: Far less than a poll, which is what a worker falls back on when it misses the news.
AT_ONCE_MS = 500
PLAIN = PlannedJob(job_id="plain", at_s=2.0, duration_s=0.1)
#: Only the first worker's card has so much memory; the second one hears of the class all the same.
LARGE = PlannedJob(job_id="x-large", at_s=12.0, duration_s=0.1, vram_gb=24)


def waits_ms(seed: int, *jobs: PlannedJob, slots: int) -> list[int]:
    """How long each job of a quiet gateway with two workers waited for its claim, milliseconds."""
    plan = FleetPlan(
        seed=seed,
        gateways=1,
        slots=slots,
        safety_s=30.0,
        jobs=jobs,
        service_faults={"health_failure_rate": 0.0, "lost_completion_rate": 0.0},
    )
    run = simulate(plan)
    assert run.outcome.findings == ()
    moments = {(event.job_id, event.type): event.at_ms for event in run.events}
    names = [JobId(job.job_id) for job in jobs]
    return [moments[name, EventType.CLAIMED] - moments[name, EventType.SUBMITTED] for name in names]


@pytest.mark.parametrize("seed", range(12))
def test_the_first_job_of_a_class_is_claimed_at_once(seed: int) -> None:
    """Whichever worker reads what the new class is, the one that can serve it waits for the same read."""
    assert max(waits_ms(seed, PLAIN, LARGE, slots=1)) < AT_ONCE_MS


def test_a_worker_that_comes_during_the_read_waits_for_it() -> None:
    """A worker that was busy with a claim when the new class was mentioned does not go on with the classes it knew."""
    meanwhile = PlannedJob(job_id="plain-too", at_s=LARGE.at_s, duration_s=5.0)
    waits = {seed: max(waits_ms(seed, PLAIN, meanwhile, LARGE, slots=2)) for seed in range(60)}
    assert {seed: wait_ms for seed, wait_ms in waits.items() if wait_ms >= AT_ONCE_MS} == {}
