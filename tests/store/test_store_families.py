"""Jobs that wait for others: the cases that a random walk meets too seldom to lean on it."""

from __future__ import annotations

import pytest
import redis

from gateway.models import JobId, JobState, ParentPolicy, SettlementKind
from tests.store.bench import LIMITS, Backend, Bench, Mutation
from tests.store.walk import CLASS_IDS, Wants, claim_request, settlement, submission


@pytest.fixture
def bench(fake_client: redis.Redis) -> Bench:
    return Bench(Backend(fake_client))


def _submit(bench: Bench, job: int, *parents: int, policy: ParentPolicy = ParentPolicy.CANCEL) -> None:
    bench.submit([submission(job, 0, 50, "", 0.0, 1, Wants(after=parents, policy=policy))])


def _run(bench: Bench, number: int, kind: SettlementKind = SettlementKind.COMPLETED) -> None:
    """Claim the best job and settle it."""
    bench.claim([claim_request(number, 0, 1, [0])])
    bench.settle([settlement(bench, 0, kind, 0.0, 0.0, final=True)])


def _state(bench: Bench, job: int) -> JobState | None:
    return bench.auditor.state_of(JobId(f"j{job}"))


def test_a_child_starts_after_its_last_parent(bench: Bench) -> None:
    """Two parents, two completions; the sweep after the second one makes the child claimable."""
    _submit(bench, 0)
    _submit(bench, 1)
    _submit(bench, 2, 0, 1)
    _run(bench, 1)
    bench.sweep(CLASS_IDS)
    assert _state(bench, 2) is JobState.WAITING
    _run(bench, 2)
    assert _state(bench, 2) is JobState.SCHEDULED
    bench.sweep(CLASS_IDS)
    assert _state(bench, 2) is JobState.PENDING


def test_ends_run_through_the_generations(bench: Bench) -> None:
    """A failed parent cancels its child and grandchild; beyond the bound a sweep carries it on."""
    _submit(bench, 0)
    _submit(bench, 1, 0)
    _submit(bench, 2, 1)
    _submit(bench, 3, 2)
    _submit(bench, 4, 3)
    _run(bench, 1, SettlementKind.FAILED)
    assert LIMITS.told_max == 2
    assert [_state(bench, job) for job in (1, 2, 3)] == [
        JobState.CANCELLED, JobState.CANCELLED, JobState.WAITING
    ]  # fmt: skip
    bench.sweep(CLASS_IDS)
    assert [_state(bench, job) for job in (3, 4)] == [JobState.CANCELLED] * 2


def test_a_family_that_was_put_off_outlives_its_parent(bench: Bench) -> None:
    """Children are told of an end even when the parent's own retention is over by then."""
    _submit(bench, 0)
    for job in (1, 2):
        _submit(bench, job, 0)
    _submit(bench, 3, 1, policy=ParentPolicy.RELEASE)
    _run(bench, 1, SettlementKind.FAILED)
    assert _state(bench, 3) is JobState.WAITING
    bench.advance(round((LIMITS.dead_retention_s + 1) * 1e6))
    bench.sweep(CLASS_IDS)
    bench.sweep(CLASS_IDS)
    assert _state(bench, 3) is JobState.PENDING
    assert JobId("j0") not in bench.model.jobs


def _second_life(bench: Bench) -> JobState | None:
    """A child is cancelled and forgotten; another job takes its id, for another parent. Then the first parent ends."""
    _submit(bench, 0)
    _submit(bench, 2, 0)
    bench.cancel([JobId("j2")])
    bench.advance(round((LIMITS.retention_s + 1) * 1e6))
    bench.sweep(CLASS_IDS)
    _submit(bench, 1)
    _submit(bench, 2, 1)
    _run(bench, 1)
    bench.sweep(CLASS_IDS)
    return _state(bench, 2)


def test_a_parent_tells_only_the_children_it_was_given(bench: Bench) -> None:
    """An id that was used again is another job: the end of its earlier life's parent is none of its business."""
    assert _second_life(bench) is JobState.WAITING


def test_the_order_tells_two_lives_apart(fake_client: redis.Redis) -> None:
    """Without it, the second life would start before its parent; the auditor says so."""
    mutation = Mutation("settle", " and record[ORDER] == child[2] then", " then")
    bench = Bench(Backend(fake_client, [mutation]), model_judges=False)
    with pytest.raises(AssertionError, match="parents_first"):
        _second_life(bench)


def test_a_child_of_an_ended_parent_need_not_wait(bench: Bench) -> None:
    """Parents that have completed count at once; one that failed refuses the child, unless that is no matter."""
    _submit(bench, 0)
    _run(bench, 1)
    _submit(bench, 1, 0)
    assert _state(bench, 1) is JobState.PENDING
    _run(bench, 2, SettlementKind.FAILED)
    _submit(bench, 2, 1)
    assert _state(bench, 2) is None
    _submit(bench, 2, 1, policy=ParentPolicy.RELEASE)
    assert _state(bench, 2) is JobState.PENDING


def test_a_job_cannot_wait_for_itself_or_for_what_comes_later(bench: Bench) -> None:
    """Parents must be there before their children, so no circle can be made."""
    _submit(bench, 0, 0)
    _submit(bench, 1, 2)
    assert _state(bench, 0) is None
    assert _state(bench, 1) is None
    items = [submission(job, 0, 50, "", 0.0, 1, Wants(after=after)) for job, after in ((3, ()), (4, (3,)))]
    bench.submit(items)
    assert _state(bench, 4) is JobState.WAITING
