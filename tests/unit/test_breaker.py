"""Health of an endpoint: a flaky probe changes nothing, a broken endpoint gets no jobs, a mended one gets one first."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.breaker import Breaker, BreakerPolicy, BreakerState, HealthGate, HealthPolicy

POLICY = BreakerPolicy(faults_max=3, open_s=2.0, open_max_s=10.0)


def healthy_gate(policy: HealthPolicy) -> HealthGate:
    gate = HealthGate(policy)
    assert gate.record(ok=True)
    return gate


def test_an_endpoint_is_unhealthy_until_its_first_good_probe() -> None:
    """Nothing is claimed for a machine nobody has seen alive; one good probe is enough then."""
    gate = HealthGate(HealthPolicy())
    assert not gate.healthy
    assert not gate.record(ok=False)
    assert gate.record(ok=True)
    assert gate.healthy


def test_only_failures_in_a_row_close_the_gate_and_only_successes_in_a_row_open_it() -> None:
    """Hysteresis: a single probe never decides."""
    gate = healthy_gate(HealthPolicy(fail_after=3, pass_after=2))
    assert [gate.record(ok) for ok in (False, False, True, False, False)] == [False] * 5
    assert gate.healthy
    assert gate.record(ok=False)
    assert not gate.healthy
    assert [gate.record(ok) for ok in (True, False, True)] == [False] * 3
    assert gate.record(ok=True)
    assert gate.healthy


def test_four_percent_flaky_probes_hardly_ever_close_the_gate() -> None:
    """By chance once in about 15,600 probes; 100,000 probes close it less than 20 times."""
    gate = healthy_gate(HealthPolicy(fail_after=3, pass_after=2))
    source = random.Random(4)
    closed = sum(gate.record(source.random() >= 0.04) and not gate.healthy for _ in range(100_000))
    assert 0 < closed < 20


def test_the_breaker_opens_after_faults_in_a_row() -> None:
    """An answer about the job in between, good or bad, starts the count afresh."""
    breaker = Breaker(POLICY)
    for _ in range(2):
        breaker.faulted(0.0)
    breaker.succeeded(0.0)
    for _ in range(2):
        breaker.faulted(0.0)
    assert breaker.admits(0.0, 5) == 5
    breaker.faulted(0.0)
    assert breaker.state(0.0) is BreakerState.OPEN
    assert breaker.admits(1.9, 5) == 0


def test_a_half_open_breaker_admits_one_job() -> None:
    """One trial decides: good closes, bad opens for longer, undecided allows another trial."""
    breaker = Breaker(POLICY)
    breaker.trip(0.0)
    assert breaker.admits(2.0, 5) == 1
    breaker.started(2.0)
    assert breaker.admits(2.0, 5) == 0
    breaker.undecided()
    assert breaker.admits(2.0, 5) == 1
    breaker.started(2.0)
    breaker.faulted(3.0)
    assert breaker.admits(3.0 + 3.9, 5) == 0
    assert breaker.admits(3.0 + 4.0, 5) == 1
    breaker.started(7.0)
    breaker.succeeded(7.5)
    assert breaker.state(7.5) is BreakerState.CLOSED
    assert breaker.admits(7.5, 5) == 5


def test_a_late_success_of_an_older_job_does_not_close_an_open_breaker() -> None:
    """It says nothing about the endpoint as it is now."""
    breaker = Breaker(POLICY)
    breaker.trip(0.0)
    breaker.succeeded(1.0)
    assert breaker.state(1.0) is BreakerState.OPEN


def test_openings_grow_to_their_maximum_and_start_small_again_after_recovery() -> None:
    """2, 4, 8, 10, 10 seconds, however often it fails."""
    breaker, now_s, lengths = Breaker(POLICY), 0.0, []
    for _ in range(40):
        breaker.trip(now_s)
        length = next(s for s in (2.0, 4.0, 8.0, 10.0) if breaker.admits(now_s + s, 1))
        lengths.append(length)
        now_s += length
    assert lengths[:5] == [2.0, 4.0, 8.0, 10.0, 10.0]
    assert set(lengths[5:]) == {10.0}
    breaker.succeeded(now_s)
    breaker.trip(now_s)
    assert breaker.admits(now_s + 2.0, 1) == 1


@given(
    st.lists(st.sampled_from(["started", "succeeded", "faulted", "undecided", "trip", "wait"]), max_size=60)
)
def test_the_breaker_never_shuts_for_good(steps: list[str]) -> None:
    """Whatever happened, after the longest opening at least a trial is admitted once the last one is over."""
    breaker, now_s = Breaker(POLICY), 0.0
    for step in steps:
        if step == "wait":
            now_s += 1.5
        elif step == "undecided":
            breaker.undecided()
        elif step == "trip":
            breaker.trip(now_s)
        else:
            {"started": breaker.started, "succeeded": breaker.succeeded, "faulted": breaker.faulted}[step](
                now_s
            )
        assert 0 <= breaker.admits(now_s, 4) <= 4
    breaker.undecided()
    assert breaker.admits(now_s + POLICY.open_max_s, 4) >= 1


@pytest.mark.parametrize("faults_max", [1, 2, 7])
def test_the_policy_decides_how_many_faults(faults_max: int) -> None:
    """Exactly that many faults in a row open it."""
    breaker = Breaker(BreakerPolicy(faults_max=faults_max))
    for number in range(1, faults_max + 1):
        assert breaker.state(0.0) is BreakerState.CLOSED
        breaker.faulted(0.0)
        assert (breaker.state(0.0) is BreakerState.OPEN) == (number == faults_max)
