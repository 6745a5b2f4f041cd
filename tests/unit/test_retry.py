"""What a fault leads to: the table is complete, the back-off bounded, nothing charged that should not be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import FaultClass
from gateway.retry import ACTIONS, ENDPOINT_FAULTS, Action, RetryPolicy, decide

POLICY = RetryPolicy()
JITTERS = st.floats(0.0, 1.0, exclude_max=True)


def test_every_fault_class_has_an_action() -> None:
    """A fault without an entry would be an error in the middle of a job."""
    assert set(ACTIONS) == set(FaultClass)


@pytest.mark.parametrize(
    "fault_class", [FaultClass.VALIDATION, FaultClass.REFUSED, FaultClass.UNSUPPORTED, FaultClass.AUTH]
)
def test_what_a_repetition_cannot_mend_is_buried_at_once(fault_class: FaultClass) -> None:
    """No delay, no retry, whatever the number of attempts."""
    for attempts in (0, 1, 10):
        decision = decide(fault_class, attempts=attempts, retry_after_s=None, jitter=0.5, policy=POLICY)
        assert decision.action is Action.BURY
        assert decision.delay_s == 0


def test_only_faults_of_the_endpoint_feed_its_breaker() -> None:
    """A job that the service rightly refuses must not close the endpoint to others."""
    about_the_job = {FaultClass.VALIDATION, FaultClass.REFUSED, FaultClass.UNSUPPORTED}
    about_us = {FaultClass.INTERRUPTED, FaultClass.LEASE_LOST, FaultClass.INTERNAL, FaultClass.RATE_LIMITED}
    assert not ENDPOINT_FAULTS & (about_the_job | about_us)


@given(
    st.sampled_from([found for found in FaultClass if ACTIONS[found] is Action.RETRY]),
    st.integers(0, 10_000),
    JITTERS,
)
def test_a_retry_waits_a_bounded_time(fault_class: FaultClass, attempts: int, jitter: float) -> None:
    """Never longer than the ceiling of this attempt, never nearly at once."""
    decision = decide(fault_class, attempts=attempts, retry_after_s=None, jitter=jitter, policy=POLICY)
    ceiling_s = min(POLICY.delay_max_s, POLICY.base_s * 2 ** min(attempts, 30))
    assert decision.action is Action.RETRY
    assert 0.1 * ceiling_s <= decision.delay_s <= ceiling_s
    assert decision.avoid_s == POLICY.avoid_s


@given(st.none() | st.floats(-1e9, 1e9), JITTERS)
def test_a_rate_limit_is_honoured_within_reason(retry_after_s: float | None, jitter: float) -> None:
    """The service's own wish counts, a negative or absurd one is cut; no attempt is charged for it."""
    decision = decide(
        FaultClass.RATE_LIMITED, attempts=2, retry_after_s=retry_after_s, jitter=jitter, policy=POLICY
    )
    wish_s = POLICY.snooze_default_s if retry_after_s is None else retry_after_s
    floor_s = min(max(wish_s, 0.0), POLICY.snooze_max_s)
    assert decision.action is Action.SNOOZE
    assert floor_s <= decision.delay_s <= floor_s + POLICY.base_s


@given(JITTERS)
def test_an_unavailable_service_gives_the_job_to_others(jitter: float) -> None:
    """Released with a short delay, and left alone by this worker for a while."""
    decision = decide(FaultClass.UNAVAILABLE, attempts=0, retry_after_s=None, jitter=jitter, policy=POLICY)
    assert decision.action is Action.RELEASE
    assert POLICY.release_s <= decision.delay_s <= 2 * POLICY.release_s
    assert decision.avoid_s > 0


def test_an_interruption_is_nobodys_fault() -> None:
    """Released at once, open to everybody; a lost lease is not settled at all."""
    interrupted = decide(FaultClass.INTERRUPTED, attempts=0, retry_after_s=None, jitter=0.9, policy=POLICY)
    assert (interrupted.action, interrupted.delay_s, interrupted.avoid_s) == (Action.RELEASE, 0.0, 0.0)
    lost = decide(FaultClass.LEASE_LOST, attempts=0, retry_after_s=None, jitter=0.9, policy=POLICY)
    assert lost.action is Action.STOP


@pytest.mark.parametrize("jitter", [-0.1, 1.0, float("nan")])
def test_a_jitter_outside_its_range_is_our_bug(jitter: float) -> None:
    """It would break the bounds silently."""
    with pytest.raises(AssertionError):
        decide(FaultClass.TIMEOUT, attempts=0, retry_after_s=None, jitter=jitter, policy=POLICY)
