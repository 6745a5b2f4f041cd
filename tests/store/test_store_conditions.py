"""Deadlines and unique keys: the cases that a random walk meets too seldom to lean on it."""

from __future__ import annotations

import pytest
import redis

from gateway.models import JobId, JobState, RequeueStatus, SettlementKind
from gateway.store import scripts
from tests.store.bench import LIMITS, Backend, Bench, Mutation
from tests.store.contents import Mismatch
from tests.store.walk import CLASS_IDS, UNIQUE_KEY, Wants, claim_request, settlement, submission


@pytest.fixture
def bench(fake_client: redis.Redis) -> Bench:
    return Bench(Backend(fake_client))


def _submit(bench: Bench, job: int, wants: Wants, *, max_attempts: int = 1) -> None:
    bench.submit([submission(job, 0, 50, "", 0.0, max_attempts, wants)])


def _claim(bench: Bench, number: int) -> None:
    bench.claim([claim_request(number, 0, 1, [0])])


def _state(bench: Bench, job: int) -> JobState | None:
    return bench.auditor.state_of(JobId(f"j{job}"))


def _outlived(bench: Bench) -> None:
    """A job's deadline passes while it runs, a sweep looks, and then its owner vanishes."""
    _submit(bench, 0, Wants(expires_in_s=5.0))
    _claim(bench, 1)
    bench.advance(6_000_000)
    bench.sweep(CLASS_IDS)
    assert _state(bench, 0) is JobState.RUNNING
    bench.advance(5_000_000)
    bench.sweep(CLASS_IDS)
    assert _state(bench, 0) is JobState.DEAD


def test_a_job_that_comes_back_after_its_deadline_expires(bench: Bench) -> None:
    """A deadline that passes under a lease is not forgotten: with the lease over, the job ends."""
    _outlived(bench)


def test_a_recovered_job_must_be_watched_again(fake_client: redis.Redis) -> None:
    """Without that it would neither be claimed nor end; the judges say so."""
    bench = Bench(Backend(fake_client, [Mutation("sweep", "  watch_deadline(id, record)\n", "")]))
    with pytest.raises(Mismatch):
        _outlived(bench)


def test_a_claim_passes_over_an_expired_job(bench: Bench) -> None:
    """A worker that is early gets the next job; the sweep names the reason of the other one's end."""
    _submit(bench, 0, Wants(expires_in_s=1.0))
    _submit(bench, 1, Wants())
    bench.advance(1_000_000)
    _claim(bench, 1)
    assert [lease.job_id for lease, _, _ in bench.leases] == ["j1"]
    bench.sweep(CLASS_IDS)
    view = scripts.inspect_reply(bench.backends[0].run(scripts.inspect_call(bench.keys, ["j0"])), ["j0"])[0]
    assert view is not None
    assert (view.state, view.error) == (
        JobState.DEAD,
        {"kind": "expired", "message": "its deadline passed before it was done"},
    )


def test_a_requeued_job_has_no_deadline(bench: Bench) -> None:
    """An operator's new life is not cut short by the old one's deadline."""
    _submit(bench, 0, Wants(expires_in_s=1.0))
    bench.advance(1_000_000)
    bench.sweep(CLASS_IDS)
    bench.requeue([JobId("j0")])
    bench.advance(60_000_000)
    _claim(bench, 1)
    assert _state(bench, 0) is JobState.RUNNING


def test_a_unique_key_is_free_when_its_job_has_ended(bench: Bench) -> None:
    """Unlike an idempotency key, which lasts as long as the job's record."""
    wants = Wants(unique_key=UNIQUE_KEY)
    _submit(bench, 0, wants)
    _submit(bench, 1, wants)
    assert _state(bench, 1) is None
    _claim(bench, 1)
    bench.settle([settlement(bench, 0, SettlementKind.COMPLETED, 0.0, 0.0, final=False)])
    _submit(bench, 1, wants)
    assert _state(bench, 1) is JobState.PENDING


def test_a_unique_key_may_be_held_after_the_end(bench: Bench) -> None:
    """For the period asked for, however short the retention of the job itself."""
    wants = Wants(unique_key=UNIQUE_KEY, unique_for_s=20.0)
    _submit(bench, 0, wants)
    bench.cancel([JobId("j0")])
    bench.advance(19_999_000)
    _submit(bench, 1, wants)
    assert _state(bench, 1) is None
    bench.advance(1_000)
    _submit(bench, 1, wants)
    assert _state(bench, 1) is JobState.PENDING


def test_a_dead_letter_whose_unique_key_is_taken_stays_dead(bench: Bench) -> None:
    """Two jobs with one key must not live at once, not even by an operator's word."""
    wants = Wants(unique_key=UNIQUE_KEY)
    _submit(bench, 0, wants)
    _claim(bench, 1)
    bench.settle([settlement(bench, 0, SettlementKind.FAILED, 0.0, 0.0, final=True)])
    _submit(bench, 1, wants)
    call = scripts.requeue_call(bench.keys, LIMITS, [(JobId("j0"), bench.job_ids[JobId("j0")])])
    assert scripts.requeue_reply(bench.backends[0].run(call)) == [RequeueStatus.UNIQUE_TAKEN]
    bench.cancel([JobId("j1")])
    bench.requeue([JobId("j0")])
    assert _state(bench, 0) is JobState.PENDING
