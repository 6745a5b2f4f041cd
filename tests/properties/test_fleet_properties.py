"""Properties of whole fleets: whatever fleet, workload, faults and schedule are drawn, every promise holds."""

from __future__ import annotations

import gc
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, event, given, note, settings
from hypothesis import strategies as st

from simulator.plan import UNDURABLE, FleetPlan, PlannedJob
from simulator.run import simulate
from simulator.strategies import fault_plans, fleet_plans, workloads

EXAMPLES = 25


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Injected faults are logged by the thousand; capturing them would cost more than the runs."""
    caplog.set_level(logging.CRITICAL + 1)
    yield
    gc.collect()


def check(plan: FleetPlan) -> None:
    """Run a plan; one that breaks a promise is kept, with the commands that show and shrink it."""
    outcome = simulate(plan).outcome
    for kind in sorted(outcome.faults):
        event(f"fault {kind}")
    if outcome.ok:
        return
    file = Path(tempfile.gettempdir()) / f"failing-plan-{plan.seed}.json"
    file.write_bytes(plan.encoded())
    pytest.fail(
        f"{outcome.kind}: {outcome.findings[:3]}\n"
        f"simulator replay --plan {file}\nsimulator shrink --plan {file}"
    )


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    # A failing plan is made smaller by ``simulator shrink``, which knows what a plan means.
    phases=(Phase.explicit, Phase.reuse, Phase.generate),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(plan=fleet_plans(jobs_max=8), schedule=st.random_module())
def test_every_promise_holds_in_any_fleet(plan: FleetPlan, schedule: object) -> None:
    """One owner, growing epochs, one completion, ends that stay, slots, routing, nothing lost, and an end for all."""
    note(f"{schedule} on top of the plan's own seed {plan.seed}")
    check(plan)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(plan=fault_plans())
def test_a_drawn_plan_is_complete_and_survives_its_file(plan: FleetPlan) -> None:
    """A plan drawn part by part names only what its fleet has, keeps Redis durable, and reads back as written."""
    assert msgspec.json.decode(plan.encoded(), type=FleetPlan) == plan
    assert plan.durable
    assert not [one for one in plan.incidents if one.kind in UNDURABLE]
    known = {"redis", *(job.job_id for job in plan.jobs)}
    known |= {f"gateway-{number}" for number in range(plan.gateways)}
    known |= {f"service-{number}" for number in range(plan.services)}
    assert {name for one in plan.incidents for name in one.target.split(">")} <= known
    assert all(one.at_s < plan.safety_s for one in plan.incidents)


@settings(max_examples=50, deadline=None)
@given(jobs=workloads(jobs_max=5, within_s=3.0, longest_s=2.0))
def test_a_drawn_workload_keeps_its_bounds(jobs: tuple[PlannedJob, ...]) -> None:
    """At least one job, no more than asked for, each with an id of its own and within the given times."""
    assert 1 <= len(jobs) <= 5
    assert len({job.job_id for job in jobs}) == len(jobs)
    assert all(0.0 <= job.at_s <= 3.0 and 0.01 <= job.duration_s <= 2.0 for job in jobs)
