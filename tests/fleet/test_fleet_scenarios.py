"""Each hand-written story shows what it was written for."""

from __future__ import annotations

import pytest

from simulator.run import simulate
from simulator.scenarios import SCENARIOS


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_shows_what_it_must(name: str) -> None:
    """No invariant breaks, and the events, marks and executions prove that the intended thing happened."""
    scenario = SCENARIOS[name]
    assert scenario.unmet(simulate(scenario.plan)) == []


def test_an_expectation_can_fail() -> None:
    """A story judged by another story's run names what is missing: expectations are not vacuous."""
    other = simulate(SCENARIOS["cancel-and-requeue"].plan)
    for name in ("paused-owner", "poison-pill", "redis-restarts", "service-down", "graceful-stop"):
        assert len(SCENARIOS[name].unmet(other)) >= 2
