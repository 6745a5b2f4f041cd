"""The pure core of a rollout: stable shares, and verdicts over a window."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import FaultClass
from gateway.models import JobId
from gateway.rollout import RolloutJudge, RolloutPolicy, Side, side_of

_ids = st.lists(st.uuids().map(lambda value: JobId(str(value))), min_size=1, max_size=50)
POLICY = RolloutPolicy(percent=50, attempts_min=20, window_attempts=40, window_s=100.0)


@given(ids=_ids, low=st.floats(0, 100), high=st.floats(0, 100), salt=st.text(max_size=4))
def test_a_larger_share_only_adds_jobs(ids: list[JobId], low: float, high: float, salt: str) -> None:
    """A job that goes to the candidate at some percentage goes there at every higher one, and 0 and 100 are exact."""
    low, high = min(low, high), max(low, high)
    for job_id in ids:
        if side_of(job_id, RolloutPolicy(percent=low, salt=salt)) is Side.CANDIDATE:
            assert side_of(job_id, RolloutPolicy(percent=high, salt=salt)) is Side.CANDIDATE
        assert side_of(job_id, RolloutPolicy(percent=0, salt=salt)) is Side.STABLE
        assert side_of(job_id, RolloutPolicy(percent=100, salt=salt)) is Side.CANDIDATE


def test_the_share_is_what_was_asked_for() -> None:
    """Of ten thousand ids, ten per cent go to the candidate, give or take four standard deviations."""
    policy = RolloutPolicy(percent=10)
    touched = sum(side_of(JobId(f"job-{n}"), policy) is Side.CANDIDATE for n in range(10_000))
    assert 880 <= touched <= 1120


def outcomes(judge: RolloutJudge, side: Side, count: int, every: int, took_s: float = 1.0) -> list[str]:
    """``count`` attempts, one a second, each ``every``-th of them failed."""
    return [
        judge.ended(
            side,
            FaultClass.SERVICE_ERROR if every and number % every == 0 else None,
            took_s,
            now_s=float(number),
            policy=POLICY,
        )
        for number in range(1, count + 1)
    ]


def test_a_failing_candidate_is_given_up_once_enough_was_seen() -> None:
    """A third of the attempts fail: no verdict before the twentieth, then one that names the figures."""
    told = outcomes(RolloutJudge(), Side.CANDIDATE, 20, every=3)
    assert told[:19] == [""] * 19
    assert told[19] == "6 of its 20 newest attempts failed, allowed are 10%"


def test_a_slow_candidate_is_given_up_against_the_stable_side() -> None:
    """Four times the stable side's time is too slow; without a stable side to compare with it is not."""
    judge = RolloutJudge()
    assert set(outcomes(judge, Side.CANDIDATE, 20, every=0, took_s=4.0)) == {""}
    assert set(outcomes(judge, Side.STABLE, 19, every=0)) == {""}
    assert "more than 3 times" in outcomes(judge, Side.STABLE, 20, every=0)[-1]


@given(
    ends=st.lists(st.tuples(st.sampled_from(list(Side)), st.sampled_from([None, *FaultClass]))),
    seed=st.random_module(),
)
def test_the_stable_side_and_blameless_faults_never_end_a_rollout(
    ends: list[tuple[Side, FaultClass | None]], seed: object
) -> None:
    """Without a blamable fault of the candidate, and equal times, nothing is given up, in any order."""
    blameless = {
        FaultClass.VALIDATION,
        FaultClass.REFUSED,
        FaultClass.INTERRUPTED,
        FaultClass.LEASE_LOST,
        None,
    }
    judge = RolloutJudge()
    for number, (side, fault_class) in enumerate(ends * 5):
        if side is Side.STABLE or fault_class in blameless:
            assert judge.ended(side, fault_class, 1.0, now_s=number * 0.1, policy=POLICY) == ""


def test_old_attempts_are_forgotten() -> None:
    """Failures outside the window, by age or by number, no longer count."""
    judge = RolloutJudge()
    for number in range(19):
        judge.ended(Side.CANDIDATE, FaultClass.TIMEOUT, 1.0, now_s=float(number), policy=POLICY)
    assert judge.ended(Side.CANDIDATE, None, 1.0, now_s=200.0, policy=POLICY) == ""
    assert judge.figures(Side.CANDIDATE, 200.0, POLICY).attempts == 1
    shuffled = random.Random(1)
    for number in range(400):
        judge.ended(Side.CANDIDATE, None, shuffled.random(), now_s=201.0 + number * 0.01, policy=POLICY)
    assert judge.figures(Side.CANDIDATE, 205.0, POLICY).attempts == POLICY.window_attempts
