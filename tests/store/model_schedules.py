"""The schedules of one queue in plain Python: what each operation must answer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.models import Firing, JobId
from gateway.schedules import PausedStatus, PutStatus, RemovedStatus, ResumedStatus
from gateway.store.calls import StoreLimits


@dataclass(slots=True)
class ModelSchedule:
    """One schedule; due at no time while it is paused."""

    definition: str
    revision: str
    due_ms: int | None
    last_ms: int = 0
    last_job: str = ""


class ScheduleModel:
    """All schedules by name."""

    def __init__(self, limits: StoreLimits) -> None:
        self._limits = limits
        self.by_name: dict[str, ModelSchedule] = {}

    def fires(self, firing: Firing, now_ms: int) -> bool:
        """Whether this instant has come and nobody took it."""
        found = self.by_name.get(firing.schedule)
        wanted = (firing.revision, firing.instant_ms)
        return found is not None and (found.revision, found.due_ms) == wanted and firing.instant_ms <= now_ms

    def move_on(self, firing: Firing, job_id: JobId) -> None:
        found = self.by_name[firing.schedule]
        found.due_ms, found.last_ms, found.last_job = firing.next_ms, firing.instant_ms, job_id

    def due(self, now_ms: int) -> bool:
        return any(one.due_ms is not None and one.due_ms <= now_ms for one in self.by_name.values())

    def skip(self, firing: Firing, now_ms: int) -> bool:
        if not self.fires(firing, now_ms):
            return False
        self.by_name[firing.schedule].due_ms = firing.next_ms
        return True

    def put(self, name: str, revision: str, definition: str, next_ms: int, *, replace: bool) -> PutStatus:
        found = self.by_name.get(name)
        if found is None:
            if len(self.by_name) >= self._limits.schedules_max:
                return PutStatus.FULL
            self.by_name[name] = ModelSchedule(definition, revision, next_ms)
            return PutStatus.CREATED
        if found.revision == revision:
            return PutStatus.DUPLICATE
        if not replace:
            return PutStatus.EXISTS
        found.definition, found.revision, found.due_ms = definition, revision, next_ms
        return PutStatus.REPLACED

    def remove(self, names: Sequence[str]) -> list[RemovedStatus]:
        known = [self.by_name.pop(name, None) for name in names]
        return [RemovedStatus.REMOVED if one else RemovedStatus.UNKNOWN for one in known]

    def pause(self, names: Sequence[str]) -> list[PausedStatus]:
        return [self._pause(name) for name in names]

    def _pause(self, name: str) -> PausedStatus:
        found = self.by_name.get(name)
        if found is None:
            return PausedStatus.UNKNOWN
        if found.due_ms is None:
            return PausedStatus.ALREADY_PAUSED
        found.due_ms = None
        return PausedStatus.PAUSED

    def resume(self, wishes: Sequence[tuple[str, str, int]]) -> list[ResumedStatus]:
        return [self._resume(*wish) for wish in wishes]

    def _resume(self, name: str, revision: str, next_ms: int) -> ResumedStatus:
        found = self.by_name.get(name)
        if found is None:
            return ResumedStatus.UNKNOWN
        if found.revision != revision:
            return ResumedStatus.CHANGED
        if found.due_ms is not None:
            return ResumedStatus.NOT_PAUSED
        found.due_ms = next_ms
        return ResumedStatus.RESUMED

    def snapshot(self) -> dict[str, Any]:
        """What the store should hold of them."""
        return {
            "schedules": {name: one.definition for name, one in self.by_name.items()},
            "schedule_due": {n: one.due_ms for n, one in self.by_name.items() if one.due_ms is not None},
            "schedule_runs": {
                name: [one.revision, str(one.last_ms), one.last_job] for name, one in self.by_name.items()
            },
        }
