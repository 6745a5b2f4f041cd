"""The journal of a simulated service: what was executed how often (pure; survives its restarts).

It is the second witness of a test: the queue says what was recorded, the journal what was really done.
"""

from __future__ import annotations

import itertools
from collections import Counter, deque
from collections.abc import Callable

from gateway.connectors.simulation.wire import JournalEntry, JournalEvent, JournalPage, JournalSummary
from simulator.model import JOURNAL_ENTRIES_MAX_DEFAULT, Caller

#: Entries of one page when the caller does not say, and at most.
PAGE_ENTRIES_DEFAULT = 1_000
PAGE_ENTRIES_MAX = 10_000


class Journal:
    """Numbered entries, the newest ``entries_max`` of them readable, and counts over all.

    Args:
        instance: whose journal.
        entries_max: entries kept in memory.
        sink: called with every new entry, for example to append it to a file.
    """

    def __init__(
        self,
        instance: str,
        *,
        entries_max: int = JOURNAL_ENTRIES_MAX_DEFAULT,
        sink: Callable[[JournalEntry], None] | None = None,
    ) -> None:
        self._instance = instance
        self._entries: deque[JournalEntry] = deque(maxlen=entries_max)
        self._sink = sink
        self._seq = 0
        self._started: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()
        self._misrouted = 0

    def add(
        self,
        at_s: float,
        event: JournalEvent,
        job_id: str,
        caller: Caller,
        *,
        execution: int = 0,
        detail: str = "",
    ) -> None:
        """Record one event, ``at_s`` seconds after the service's start."""
        self._seq += 1
        if event is JournalEvent.STARTED:
            self._started[job_id] += 1
        elif event is JournalEvent.FINISHED:
            self._finished[job_id] += 1
        elif event is JournalEvent.MISROUTED:
            self._misrouted += 1
        entry = JournalEntry(
            seq=self._seq,
            at_s=round(at_s, 6),
            event=event,
            id=job_id,
            execution=execution,
            worker=caller.worker,
            epoch=caller.epoch,
            traceparent=caller.traceparent,
            detail=detail,
        )
        self._entries.append(entry)
        if self._sink is not None:
            self._sink(entry)

    def executions(self, job_id: str) -> int:
        """How often a job was started, over all restarts."""
        return self._started[job_id]

    def page(self, after: int = 0, limit: int = PAGE_ENTRIES_DEFAULT) -> JournalPage:
        """Up to ``limit`` entries with ``seq`` above ``after``, and the summary of everything."""
        first_seq = self._seq - len(self._entries) + 1
        begin = max(0, after - first_seq + 1)
        chosen = itertools.islice(self._entries, begin, begin + min(limit, PAGE_ENTRIES_MAX))
        return JournalPage(entries=tuple(chosen), summary=self.summary())

    def summary(self) -> JournalSummary:
        """The journal in numbers."""
        return JournalSummary(
            instance=self._instance,
            executions_by_job=dict(self._started),
            completed=len(self._finished),
            duplicates=self._finished.total() - len(self._finished),
            misrouted=self._misrouted,
            last_seq=self._seq,
            dropped=self._seq - len(self._entries),
        )
