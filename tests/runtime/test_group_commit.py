"""Group commit: calls of one tick share a batch, errors reach every caller, a leaving caller harms nobody."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
import trio.testing

from gateway.errors import StoreRejected, StoreUnavailable
from gateway.store.groupcommit import GroupCommit


class Executor:
    """Takes its time over each batch and answers with ten times each item."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.running = 0
        self.error: Exception | None = None

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.running += 1
        assert self.running == 1, "one batch in flight at a time"
        self.batches.append(list(items))
        try:
            await trio.sleep(1.0)
        finally:
            self.running -= 1
        if self.error is not None:
            raise self.error
        return [item * 10 for item in items]


async def test_calls_of_one_tick_share_a_batch(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Concurrent calls are folded in order of arrival up to the bound; each caller gets its own reply."""
    executor = Executor()
    group = GroupCommit[int, int](executor, batch_max=4)
    await nursery.start(group.run)
    replies: dict[int, int] = {}

    async def call(item: int) -> None:
        replies[item] = await group.call(item)

    async with trio.open_nursery() as callers:
        for item in range(10):
            callers.start_soon(call, item)
    assert replies == {item: item * 10 for item in range(10)}
    assert [len(batch) for batch in executor.batches] == [4, 4, 2]
    assert (group.batches, group.items) == (3, 10)


async def test_a_caller_that_leaves_harms_nobody(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock
) -> None:
    """Cancelled in flight it leaves at once and its reply is dropped; cancelled before, it is not sent at all."""
    executor = Executor()
    group = GroupCommit[int, int](executor, batch_max=4)
    await nursery.start(group.run)
    replies: dict[int, int] = {}

    async def call(item: int, patience_s: float) -> None:
        called_s = trio.current_time()
        with trio.move_on_after(patience_s) as scope:
            replies[item] = await group.call(item)
        if scope.cancelled_caught:
            assert trio.current_time() == called_s + patience_s

    async with trio.open_nursery() as callers:
        callers.start_soon(call, 1, 0.5)
        callers.start_soon(call, 2, 100)
        await trio.sleep(0.1)
        callers.start_soon(call, 3, 0.5)
        callers.start_soon(call, 4, 100)
    assert replies == {2: 20, 4: 40}
    assert [sorted(batch) for batch in executor.batches] == [[1, 2], [4]]


@pytest.mark.parametrize(
    "error",
    [StoreUnavailable("away", outcome_unknown=True), StoreRejected("refused")],
    ids=["unavailable", "rejected"],
)
async def test_an_error_reaches_every_caller(
    nursery: trio.Nursery, autojump_clock: trio.testing.MockClock, error: Exception
) -> None:
    """Each caller of the batch gets an exception object of its own, of the same kind; later batches go on."""
    executor = Executor()
    executor.error = error
    group = GroupCommit[int, int](executor, batch_max=4)
    await nursery.start(group.run)
    caught: list[Exception] = []

    async def call(item: int) -> None:
        with pytest.raises(type(error)) as one:
            await group.call(item)
        caught.append(one.value)

    async with trio.open_nursery() as callers:
        for item in range(3):
            callers.start_soon(call, item)
    assert [str(one) for one in caught] == [str(error)] * 3
    assert len({id(one) for one in caught}) == 3
    executor.error = None
    assert await group.call(5) == 50


async def test_waiting_callers_learn_that_the_store_closed(autojump_clock: trio.testing.MockClock) -> None:
    """When the group ends, callers in flight and in line get a typed error instead of waiting for ever."""
    group = GroupCommit[int, int](Executor(), batch_max=1)
    told: list[bool] = []

    async def call(item: int) -> None:
        with pytest.raises(StoreUnavailable) as one:
            await group.call(item)
        told.append(one.value.outcome_unknown)

    async with trio.open_nursery() as callers, trio.open_nursery() as nursery:
        await nursery.start(group.run)
        for item in range(3):
            callers.start_soon(call, item)
        await trio.sleep(0.5)
        nursery.cancel_scope.cancel()
    assert told == [True] * 3


async def test_a_full_line_is_refused(nursery: trio.Nursery, autojump_clock: trio.testing.MockClock) -> None:
    """More callers than the bound are turned away at once, knowing that nothing was sent."""
    group = GroupCommit[int, int](Executor(), batch_max=1, queue_max=2)
    await nursery.start(group.run)
    async with trio.open_nursery() as callers:
        callers.start_soon(group.call, 0)
        await trio.sleep(0.5)
        callers.start_soon(group.call, 1)
        callers.start_soon(group.call, 2)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(StoreUnavailable) as caught:
            await group.call(3)
        assert not caught.value.outcome_unknown
