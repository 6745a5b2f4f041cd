"""Ownership is a cancel scope: late grants are dropped, only confirmed renewals move it, under a virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import pytest
import trio
import trio.testing

from gateway.errors import StoreUnavailable
from gateway.leases import EndReason, LeaseKeeper
from gateway.models import ClassId, Epoch, Grant, JobId, JobSpec, LeaseRef, LeaseStatus
from gateway.observer import SilentObserver
from gateway.store.base import JobStore

LEASE_S, MARGIN_S, RENEW_S = 15.0, 1.5, 5.0
BELIEF_S = LEASE_S - MARGIN_S


class Renewals:
    """The part of the store that the keeper uses: answers as the test wants, after as long as it wants."""

    def __init__(self) -> None:
        self.answer = LeaseStatus.HELD
        self.delay_s = 0.0
        self.away = False
        self.asked_s: list[float] = []
        self.wake: Callable[[str], None] = lambda message: None

    def on_wake(self, callback: Callable[[str], None]) -> None:
        self.wake = callback

    async def renew(self, leases: Sequence[LeaseRef]) -> list[LeaseStatus]:
        self.asked_s.append(trio.current_time())
        await trio.sleep(self.delay_s)
        if self.away:
            raise StoreUnavailable("away", outcome_unknown=True)
        return [self.answer] * len(leases)


@pytest.fixture
def renewals() -> Renewals:
    return Renewals()


@pytest.fixture
def keeper(renewals: Renewals) -> LeaseKeeper:
    return LeaseKeeper(
        cast("JobStore", renewals),
        lease_s=LEASE_S,
        margin_s=MARGIN_S,
        renew_s=RENEW_S,
        now_s=trio.current_time,
        observer=SilentObserver(),
    )


def grant() -> Grant:
    return Grant(
        job_id=JobId("job"),
        epoch=Epoch(1),
        class_id=ClassId("c"),
        spec=JobSpec(service="simulation"),
        attempts=0,
        recoveries=0,
        reference="",
        cancel_requested=False,
        submitted_ms=0,
        enqueued_ms=0,
        claimed_ms=0,
    )


async def test_a_late_grant_is_dropped(keeper: LeaseKeeper, autojump_clock: trio.testing.MockClock) -> None:
    """A grant whose claim left longer ago than the belief lasts is never owned."""
    left_s = trio.current_time()
    await trio.sleep(BELIEF_S)
    assert keeper.own(grant(), "w", left_s=left_s) is None
    assert len(keeper) == 0


async def test_belief_counts_from_the_moment_the_claim_left(
    keeper: LeaseKeeper, autojump_clock: trio.testing.MockClock
) -> None:
    """However long the answer took, the scope ends a margin before the lease does."""
    left_s = trio.current_time()
    await trio.sleep(4.0)
    ownership = keeper.own(grant(), "w", left_s=left_s)
    assert ownership is not None
    with ownership.scope:
        await trio.sleep_forever()
    assert trio.current_time() == left_s + BELIEF_S
    assert not ownership.believed
    assert ownership.end_reason() is EndReason.EXPIRED


async def test_only_confirmed_renewals_extend_the_belief(
    keeper: LeaseKeeper,
    renewals: Renewals,
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A renewal counts from when it left; while Redis is away nothing is extended and the scope ends in time."""
    await nursery.start(keeper.run)
    ownership = keeper.own(grant(), "w", left_s=trio.current_time())
    assert ownership is not None
    renewals.delay_s = 0.7
    await trio.sleep(RENEW_S + 0.8)
    confirmed_s = renewals.asked_s[-1]
    assert ownership.until_s == confirmed_s + BELIEF_S
    renewals.away = True
    with ownership.scope:
        await trio.sleep_forever()
    assert trio.current_time() == confirmed_s + BELIEF_S
    assert len(renewals.asked_s) > 8  # it went on trying, faster than the beat
    assert ownership.end_reason() is EndReason.EXPIRED


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(LeaseStatus.LOST, EndReason.LOST), (LeaseStatus.CANCEL, EndReason.CANCEL_REQUESTED)],
)
async def test_the_answer_ends_the_work(
    keeper: LeaseKeeper,
    renewals: Renewals,
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
    answer: LeaseStatus,
    reason: EndReason,
) -> None:
    """A lost lease and a cancel request stop the job's work at the next beat, each with its reason."""
    await nursery.start(keeper.run)
    ownership = keeper.own(grant(), "w", left_s=trio.current_time())
    assert ownership is not None
    renewals.answer = answer
    with ownership.scope:
        await trio.sleep_forever()
    assert trio.current_time() == renewals.asked_s[0]
    assert ownership.end_reason() is reason


async def test_a_cancel_message_brings_the_beat_forward(
    keeper: LeaseKeeper,
    renewals: Renewals,
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A wake-up about one of our workers renews at once; one about others does not."""
    await nursery.start(keeper.run)
    begun_s = trio.current_time()
    assert keeper.own(grant(), "w", left_s=begun_s) is not None
    await trio.sleep(1.0)
    renewals.wake("cancel somebody-else")
    await trio.sleep(1.0)
    assert renewals.asked_s == []
    renewals.wake("cancel w")
    await trio.testing.wait_all_tasks_blocked()
    assert renewals.asked_s == [begun_s + 2.0]


async def test_the_end_of_the_belief_outweighs_the_end_of_the_jobs_time(
    keeper: LeaseKeeper, mock_clock: trio.testing.MockClock
) -> None:
    """An owner paused beyond both must not treat the job as its own time-out: somebody else may follow it."""
    ownership = keeper.own(grant(), "w", left_s=trio.current_time())
    assert ownership is not None
    ownership.limit(2.0, aftercare_s=60.0)
    mock_clock.jump(3.0)
    assert ownership.end_reason() is EndReason.TIMED_OUT
    mock_clock.jump(BELIEF_S)
    assert ownership.end_reason() is EndReason.EXPIRED


async def test_nothing_is_renewed_for_a_stuck_runner(
    keeper: LeaseKeeper,
    renewals: Renewals,
    nursery: trio.Nursery,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Beyond the job's time and its aftercare the lease is left to others."""
    await nursery.start(keeper.run)
    ownership = keeper.own(grant(), "w", left_s=trio.current_time())
    assert ownership is not None
    ownership.limit(10.0, aftercare_s=20.0)
    await trio.sleep(100.0)
    assert max(renewals.asked_s) <= 30.0
    assert not ownership.believed
