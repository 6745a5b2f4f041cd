"""Shrinking: smaller and still failing, whatever "failing" means, within its budget."""

from __future__ import annotations

import msgspec
import pytest

from gateway.lifecycle import EventType
from simulator.plan import FaultKind, FleetPlan, Incident, PlannedJob, generate_plan
from simulator.run import simulate
from simulator.scenarios import SCENARIOS, count
from simulator.shrink import regression_test, shrink


def has_kill_and_long_job(plan: FleetPlan) -> bool:
    """A failure that needs one kill and one job, and nothing else."""
    return any(incident.kind is FaultKind.KILL for incident in plan.incidents) and any(
        job.job_id == "job-007" for job in plan.jobs
    )


def failing_seed() -> int:
    return next(seed for seed in range(100) if has_kill_and_long_job(generate_plan(seed)))


def test_everything_that_does_not_matter_is_dropped() -> None:
    """Of a whole swarm only the one incident and the one job remain that the failure needs."""
    plan = generate_plan(failing_seed())
    shrunk = shrink(plan, has_kill_and_long_job, runs_max=2_000)
    assert not shrunk.exhausted
    assert [incident.kind for incident in shrunk.plan.incidents] == [FaultKind.KILL]
    assert [job.job_id for job in shrunk.plan.jobs] == ["job-007"]
    assert shrunk.plan.gateways == 1 or shrunk.plan.incidents[0].target != "gateway-0"
    assert shrunk.plan.services == 1
    assert shrunk.plan.links == type(shrunk.plan.links)()
    assert shrunk.plan.redis_rate == 1.0
    assert shrunk.plan.safety_s <= plan.safety_s
    assert has_kill_and_long_job(shrunk.plan)
    assert shrink(shrunk.plan, has_kill_and_long_job).plan == shrunk.plan


@pytest.mark.parametrize("runs_max", [1, 5, 20])
def test_the_budget_of_runs_is_kept(runs_max: int) -> None:
    """However large the plan, the predicate is asked at most so often, and the answer still fails."""
    asked: list[FleetPlan] = []

    def fails(plan: FleetPlan) -> bool:
        asked.append(plan)
        return has_kill_and_long_job(plan)

    shrunk = shrink(generate_plan(failing_seed()), fails, runs_max=runs_max)
    assert len(asked) == shrunk.runs == runs_max
    assert shrunk.exhausted
    assert has_kill_and_long_job(shrunk.plan)


def test_a_real_run_is_shrunk_and_printed_as_a_test() -> None:
    """With real runs as the predicate, the printed test holds the small plan and is valid Python."""

    def buries(plan: FleetPlan) -> bool:
        return count(simulate(plan), EventType.DEAD) > 0

    story = SCENARIOS["cancel-and-requeue"].plan
    noise = tuple(
        PlannedJob(job_id=f"noise-{number}", at_s=2.0 + number, duration_s=0.1) for number in range(3)
    )
    extra = Incident(at_s=3.0, kind=FaultKind.CANCEL, target="noise-1")
    plan = msgspec.structs.replace(
        story, jobs=(*story.jobs, *noise), incidents=(*story.incidents, extra), redis_offset_s=100.0
    )
    assert buries(plan)
    shrunk = shrink(plan, buries, runs_max=9)
    assert len(shrunk.plan.incidents) < len(plan.incidents)
    assert shrunk.plan.redis_offset_s == 0.0
    assert buries(shrunk.plan)
    text = regression_test(shrunk.plan, 'says """this""" and\n\\ that')
    space: dict[str, object] = {}
    exec(compile(text, "printed", "exec"), space)
    kept = msgspec.json.decode(str(space[f"PLAN_OF_SEED_{plan.seed}"]), type=FleetPlan)
    assert kept == shrunk.plan
    assert f"def test_plan_of_seed_{plan.seed}_stays_fixed() -> None:" in text
