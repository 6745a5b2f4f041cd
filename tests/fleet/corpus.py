"""Regression seeds: each once broke a promise, a bound or the simulation itself; the plan generator keeps them alive.

A seed means what the generator draws from it. When the generator changes, a seed that mattered is kept as a plan
instead (``simulator shrink`` prints one).
"""

from __future__ import annotations

from simulator.plan import FleetPlan, PlannedJob

#: Failed when the fleet was first explored; beliefs kept while a job was given back were among the reasons.
FOUND_BUGS = (7, 8, 12, 14, 15, 26)
#: Many kinds of trouble at once, among them settlements that come too late.
BUSY = (21,)
SEEDS = (*FOUND_BUGS, *BUSY)

#: Two jobs that always failed as "unavailable", because their wish to fail was counted per name at the service and
#: a job that is run again gets a new one: the one worker's breaker stayed open beyond the budget of liveness.
ENDLESS_WISH = FleetPlan(
    seed=586,
    gateways=1,
    slots=1,
    lease_s=6.0,
    safety_s=27.69,
    jobs=tuple(
        PlannedJob(
            job_id=f"job-{number:03d}",
            at_s=at_s,
            duration_s=duration_s,
            timeout_s=timeout_s,
            fail={"kind": "unavailable", "times": 1, "retry_after_s": 1.0},
            vram_gb=24,
        )
        for number, at_s, duration_s, timeout_s in ((0, 3.753, 3.973, 5.0), (2, 0.002, 0.01, 60.0))
    ),
)
PLANS = (ENDLESS_WISH,)
