"""Jobs of a kind that nobody has met before."""

from __future__ import annotations

import pytest

from gateway.lifecycle import EventType
from gateway.models import JobId
from simulator.plan import FleetPlan, PlannedJob
from simulator.run import simulate

#: Far less than a poll, which is what a worker falls back on when it misses the news.
AT_ONCE_MS = 500


@pytest.mark.parametrize("seed", range(12))
def test_the_first_job_of_a_class_is_claimed_at_once(seed: int) -> None:
    """Whichever worker reads what the new class is, the one that can serve it waits for the same read."""
    plan = FleetPlan(
        seed=seed,
        gateways=1,
        slots=1,
        safety_s=30.0,
        jobs=(
            PlannedJob(job_id="plain", at_s=2.0, duration_s=0.1),
            # Only the first worker's card has so much memory; the second one hears of the class all the same.
            PlannedJob(job_id="large", at_s=12.0, duration_s=0.1, vram_gb=24),
        ),
        service_faults={"health_failure_rate": 0.0, "lost_completion_rate": 0.0},
    )
    run = simulate(plan)
    assert run.outcome.findings == ()
    moments = {(event.job_id, event.type): event.at_ms for event in run.events}
    for job_id in ("plain", "large"):
        name = JobId(job_id)
        waited_ms = moments[name, EventType.CLAIMED] - moments[name, EventType.SUBMITTED]
        assert waited_ms < AT_ONCE_MS, job_id
