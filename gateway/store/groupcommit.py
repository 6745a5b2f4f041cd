"""Group commit: concurrent calls of one operation inside a scheduler tick become one script call.

This, not a faster client, is where throughput comes from: a script call costs the client about the same for one item
as for a hundred.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

import outcome
import trio

from gateway.errors import StoreRejected, StoreUnavailable

ItemT = TypeVar("ItemT")
ReplyT = TypeVar("ReplyT")


class _Call(Generic[ItemT]):
    __slots__ = ("abandoned", "item", "task")

    def __init__(self, item: ItemT, task: trio.lowlevel.Task) -> None:
        self.item = item
        self.task = task
        self.abandoned = False


class GroupCommit(Generic[ItemT, ReplyT]):
    """Folds single calls into batches, one batch in flight at a time, in order of arrival.

    Args:
        execute: runs one batch; its replies are in the order of the items.
        batch_max: most items per batch.
        queue_max: most calls waiting; more are refused as unavailable (every queue has a bound).
    """

    def __init__(
        self,
        execute: Callable[[Sequence[ItemT]], Awaitable[Sequence[ReplyT]]],
        *,
        batch_max: int,
        queue_max: int = 100_000,
    ) -> None:
        self._execute = execute
        self._batch_max = batch_max
        self._queue_max = queue_max
        self._waiting: list[_Call[ItemT]] = []
        self._work = trio.Event()
        self.batches = 0
        self.items = 0

    async def call(self, item: ItemT) -> ReplyT:
        """Run one item with whoever else calls now.

        A caller cancelled while its batch is in flight leaves at once; the outcome of its item is then unknown.

        Raises:
            StoreError: what the batch's execution raised, for every item of it.
        """
        if len(self._waiting) >= self._queue_max:
            raise StoreUnavailable("too many calls wait for Redis", outcome_unknown=False)
        call = _Call(item, trio.lowlevel.current_task())
        self._waiting.append(call)
        self._work.set()

        def abort(_: object) -> trio.lowlevel.Abort:
            call.abandoned = True
            return trio.lowlevel.Abort.SUCCEEDED

        reply: ReplyT = await trio.lowlevel.wait_task_rescheduled(abort)
        return reply

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Execute batches until cancelled; callers still waiting then learn that the store closed."""
        task_status.started()
        try:
            while True:
                await self._work.wait()
                await trio.lowlevel.checkpoint()  # one tick for the others to join
                self._work = trio.Event()
                while self._waiting:
                    await self._run_batch()
        finally:
            self._resolve(self._waiting, _closed())

    async def _run_batch(self) -> None:
        batch = [call for call in self._waiting[: self._batch_max] if not call.abandoned]
        del self._waiting[: self._batch_max]
        if not batch:
            return
        result: outcome.Outcome[Sequence[ReplyT]] = _closed()
        try:
            try:
                result = outcome.Value(await self._execute([call.item for call in batch]))
            except Exception as error:
                result = outcome.Error(error)
        finally:
            self._resolve(batch, result)
        self.batches += 1
        self.items += len(batch)

    @staticmethod
    def _resolve(batch: Sequence[_Call[ItemT]], result: outcome.Outcome[Sequence[ReplyT]]) -> None:
        if isinstance(result, outcome.Error):
            for call in batch:
                if not call.abandoned:
                    call.abandoned = True
                    trio.lowlevel.reschedule(call.task, outcome.Error(_again(result.error)))
            return
        replies = result.unwrap()
        assert len(replies) == len(batch), f"{len(replies)} replies for {len(batch)} items"
        for call, reply in zip(batch, replies, strict=True):
            if not call.abandoned:
                trio.lowlevel.reschedule(call.task, outcome.Value(reply))


def _closed() -> outcome.Error:
    return outcome.Error(StoreUnavailable("the store is closing", outcome_unknown=True))


def _again(error: BaseException) -> BaseException:
    """A fresh exception for each waiter: one object raised in many tasks would tangle their tracebacks."""
    if isinstance(error, StoreUnavailable):
        return StoreUnavailable(str(error), outcome_unknown=error.outcome_unknown)
    if isinstance(error, StoreRejected):
        return StoreRejected(str(error))
    return error
