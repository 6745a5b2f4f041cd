"""Turns a queue's event stream into wake-ups for those who wait for single jobs."""

from __future__ import annotations

from typing import Protocol

import anyio
from anyio.abc import TaskGroup, TaskStatus

from gateway.errors import StoreRejected, StoreUnavailable
from gateway.events import Event

#: One read waits this long at the server; it also bounds how long the tail outlives its last waiter.
BLOCK_S = 2.0


class EventSource(Protocol):
    """The part of the client that the tail reads from."""

    async def last_cursor(self) -> str: ...

    async def events_page(self, cursor: str, *, block_s: float) -> tuple[list[Event], str]: ...


class Tail:
    """Reads the event stream while somebody waits: one connection, however many wait.

    Args:
        source: where events come from.
        group: the client's task group; the tail runs in it.
    """

    def __init__(self, source: EventSource, group: TaskGroup) -> None:
        self._source = source
        self._group = group
        self._waiters: dict[str, set[anyio.Event]] = {}
        self._running = False
        self._starting = anyio.Lock()

    async def watch(self, job_id: str) -> anyio.Event:
        """An event that is set when something happens to the job from now on; end it with ``unwatch``."""
        bell = anyio.Event()
        self._waiters.setdefault(job_id, set()).add(bell)
        try:
            async with self._starting:
                if not self._running:
                    await self._group.start(self._run)
        except BaseException:
            self.unwatch(job_id, bell)
            raise
        return bell

    def renew(self, job_id: str, bell: anyio.Event) -> anyio.Event:
        """A fresh event in the place of one that was set."""
        fresh = anyio.Event()
        waiters = self._waiters[job_id]
        waiters.discard(bell)
        waiters.add(fresh)
        return fresh

    def unwatch(self, job_id: str, bell: anyio.Event) -> None:
        """Stop waiting."""
        waiters = self._waiters.get(job_id, set())
        waiters.discard(bell)
        if not waiters:
            self._waiters.pop(job_id, None)

    def _ring(self, job_id: str) -> None:
        for bell in self._waiters.get(job_id, ()):
            bell.set()

    async def _run(self, *, task_status: TaskStatus[None]) -> None:
        """Ready once the position is taken: every later event is seen."""
        cursor = await self._source.last_cursor()
        self._running = True
        task_status.started()
        try:
            while self._waiters:
                try:
                    events, cursor = await self._source.events_page(cursor, block_s=BLOCK_S)
                except StoreUnavailable:
                    continue  # repeated with pauses until the client's time-out; waiters look by themselves
                except StoreRejected:
                    return
                for event in events:
                    self._ring(event.job_id)
        finally:
            self._running = False
