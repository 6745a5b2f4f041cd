"""What the auditor follows of the conditions that jobs are born with: deadline, unique key, parents, instant (pure).

The first event of a job names them in its detail; a job without any costs nothing here.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import Any

from gateway.events import Event
from gateway.models import JobId, JobState, ParentPolicy


class Condition(enum.StrEnum):
    """The promises about conditions; the auditor's invariants of the same names."""

    DEADLINE_KEPT = "deadline_kept"
    UNIQUE_HELD = "unique_held"
    PARENTS_FIRST = "parents_first"
    ONE_PER_INSTANT = "one_per_instant"


Finding = tuple[Condition, str]


class Conditions:
    """Follows the conditions of all jobs that have not ended."""

    def __init__(self) -> None:
        self._expires_ms: dict[JobId, int] = {}
        #: Who has a unique key, and the keys of everybody that may want one again.
        self._holders: dict[str, JobId] = {}
        self._keys: dict[JobId, str] = {}
        #: Parents that a job still waits for, each with what its failure means; and the other way round.
        self._parents: dict[JobId, dict[JobId, str]] = {}
        self._children: dict[JobId, list[JobId]] = {}
        self._instants_ms: dict[str, int] = {}

    def born(self, event: Event, fields: Mapping[str, Any]) -> Iterator[Finding]:
        """A job was accepted; ``fields`` is its first event's detail."""
        job_id = event.job_id
        self._keys.pop(job_id, None)  # of a dead letter of the same id, whose retention is over
        if "expires_ms" in fields:
            self._expires_ms[job_id] = int(fields["expires_ms"])
        if "unique" in fields:
            self._keys[job_id] = str(fields["unique"])
            yield from self._take(job_id)
        if "after" in fields:
            policy = str(fields.get("on_failure", ParentPolicy.CANCEL.value))
            self._parents[job_id] = dict.fromkeys(map(JobId, fields["after"]), policy)
            for parent in self._parents[job_id]:
                self._children.setdefault(parent, []).append(job_id)
        if "schedule" in fields:
            schedule, instant_ms = str(fields["schedule"]), int(fields["instant_ms"])
            last_ms = self._instants_ms.get(schedule)
            if last_ms is not None and instant_ms <= last_ms:
                yield (
                    Condition.ONE_PER_INSTANT,
                    f"schedule {schedule!r} fired for {instant_ms} ms after {last_ms}",
                )
            self._instants_ms[schedule] = max(instant_ms, last_ms or 0)

    def _take(self, job_id: JobId) -> Iterator[Finding]:
        key = self._keys[job_id]
        holder = self._holders.setdefault(key, job_id)
        if holder != job_id:
            yield Condition.UNIQUE_HELD, f"has unique key {key!r} while {holder} has not ended"

    def claimed(self, event: Event) -> Iterator[Finding]:
        """A lease was granted."""
        expires_ms = self._expires_ms.get(event.job_id)
        if expires_ms is not None and event.at_ms >= expires_ms:
            late_ms = event.at_ms - expires_ms
            yield Condition.DEADLINE_KEPT, f"claimed {late_ms} ms after its deadline"

    def unblocked(self, event: Event) -> Iterator[Finding]:
        """A job need not wait for parents any more."""
        left = self._parents.pop(event.job_id, {})
        if left:
            yield Condition.PARENTS_FIRST, f"released before its parents {', '.join(left)} were done"

    def ended(self, job_id: JobId, state: JobState) -> None:
        """A job reached a terminal state."""
        for child in self._children.pop(job_id, ()):
            waits = self._parents.get(child, {})
            if state is JobState.COMPLETED or waits.get(job_id) == ParentPolicy.RELEASE:
                waits.pop(job_id, None)
        self._expires_ms.pop(job_id, None)
        self._parents.pop(job_id, None)
        key = self._keys.get(job_id)
        if key is not None:
            if self._holders.get(key) == job_id:
                del self._holders[key]
            if state is not JobState.DEAD:
                del self._keys[job_id]

    def requeued(self, job_id: JobId) -> Iterator[Finding]:
        """A dead letter has a new life: it takes its unique key again."""
        if job_id in self._keys:
            yield from self._take(job_id)
