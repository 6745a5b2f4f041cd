"""Seeds that once found a bug, and a few fresh ones: every promise holds."""

from __future__ import annotations

import pytest

from simulator.explore import Size, run_seed
from simulator.plan import FleetPlan
from simulator.run import simulate
from tests.fleet.corpus import PLANS, SEEDS

#: Fresh ground on every change of the code, far from the seeds that were looked at by hand.
FRESH_SEEDS = range(50_000, 50_004)


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


def test_fresh_seeds_hold() -> None:
    """A handful of other random fleets, of another size, keep every promise."""
    results = [run_seed(seed, Size(gateways=2, services=1, jobs=8)) for seed in FRESH_SEEDS]
    assert [(result.seed, result.findings) for result in results if result.kind != "ok"] == []
