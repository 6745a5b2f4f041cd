"""Seeds that once found a bug, and a few fresh ones: every promise holds."""

from __future__ import annotations

import hashlib

import msgspec
import pytest

from simulator.explore import Size, run_seed
from simulator.plan import FleetPlan, ServiceProtocol, generate_plan
from simulator.run import simulate
from simulator.shares import PlannedShares
from tests.fleet.corpus import PLANS, SEEDS

#: Fresh ground on every change of the code, far from the seeds that were looked at by hand.
FRESH_SEEDS = range(50_000, 50_004)
#: With tenants.
SHARED_SEEDS = (8, 18, 28)


@pytest.mark.parametrize("seed", SEEDS)
def test_regression_seed_holds(seed: int) -> None:
    """A seed that once broke something keeps every promise."""
    result = run_seed(seed, Size())
    assert (result.kind, result.findings) == ("ok", ())
    assert result.simulated_s > 0
    assert result.transitions["submitted"] > 0


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: f"plan-{plan.seed}")
def test_regression_plan_holds(plan: FleetPlan) -> None:
    """A plan that once broke something keeps every promise."""
    outcome = simulate(plan).outcome
    assert (outcome.kind, outcome.findings) == ("ok", ())


@pytest.mark.parametrize("protocol", list(ServiceProtocol))
@pytest.mark.parametrize("seed", SEEDS[:3])
def test_regression_seed_holds_over_each_protocol(seed: int, protocol: ServiceProtocol) -> None:
    """Whatever its services speak, a seed that once broke something keeps every promise."""
    plan = generate_plan(seed, conditions=frozenset())
    outcome = simulate(msgspec.structs.replace(plan, protocols=(protocol,) * plan.services)).outcome
    assert (outcome.kind, outcome.findings) == ("ok", ())


def test_protocols_leave_all_else_that_a_seed_means_as_it_was() -> None:
    """Plans of before there were protocols and conditions are drawn unchanged, and read as fleets that speak HTTP."""
    drawn_plans = [generate_plan(seed, conditions=frozenset()) for seed in (7, 14, 21)]
    plans = [msgspec.structs.replace(plan, protocols=()) for plan in drawn_plans]
    digests = [hashlib.sha256(plan.encoded()).hexdigest()[:16] for plan in plans]
    assert digests == ["5d3aeb9547c7eda9", "db17904740aa6a71", "01b380900d479565"]
    read = msgspec.json.decode(plans[0].encoded(), type=FleetPlan)
    assert {read.protocol(number) for number in range(read.services)} == {ServiceProtocol.HTTP}
    drawn = {generate_plan(seed).protocol(0) for seed in range(10)}
    assert drawn == set(ServiceProtocol)


def test_every_tenth_seed_has_tenants_and_the_others_none() -> None:
    """Who has tenants has limits for some seeds and none for others; what other seeds mean is as it was."""
    plans = [generate_plan(seed) for seed in range(100)]
    assert {bool(plan.shares.tenants) for plan in plans if plan.seed % 10 == 8} == {True}
    assert {bool(plan.shares.limits) for plan in plans if plan.seed % 10 == 8} == {True, False}
    assert all(plan.shares == PlannedShares() for plan in plans if plan.seed % 10 != 8)


@pytest.mark.parametrize("seed", SHARED_SEEDS)
def test_tenants_and_limits_hold_under_faults(seed: int) -> None:
    """A fleet with tenants, limits and aging keeps every promise, the limits' own included."""
    outcome = simulate(generate_plan(seed, jobs=12)).outcome
    assert (outcome.kind, outcome.findings) == ("ok", ())


def test_fresh_seeds_hold() -> None:
    """A handful of other random fleets, of another size, keep every promise."""
    results = [run_seed(seed, Size(gateways=2, services=1, jobs=8)) for seed in FRESH_SEEDS]
    assert [(result.seed, result.findings) for result in results if result.kind != "ok"] == []
