"""Typed façade over the schedules' operations, as ``gateway.store.scripts`` is for the jobs'."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.models import Firing
from gateway.schedules import (
    DueSchedule,
    PausedStatus,
    PutStatus,
    RemovedStatus,
    ResumedStatus,
    Schedule,
    ScheduleListing,
    ScheduleView,
    decode_schedule,
    encode_schedule,
)
from gateway.store.calls import ScriptCall, StoreLimits, script
from gateway.store.keys import QueueKeys
from gateway.store.scripts import Raw

#: Due schedules read at once; the others come with the next look.
DUE_MAX = 50


def put_call(
    keys: QueueKeys, limits: StoreLimits, schedule: Schedule, *, revision: str, next_ms: int, replace: bool
) -> ScriptCall:
    """See ``schedule_put.lua``. The definition must be validated before; ``revision`` is new for each one."""
    return ScriptCall(
        script("schedule_put"),
        [keys.schedules, keys.schedule_due, keys.schedule_runs],
        [
            limits.schedules_max,
            "1" if replace else "0",
            schedule.name,
            revision,
            encode_schedule(schedule),
            str(next_ms),
        ],
    )


def put_reply(raw: bytes) -> PutStatus:
    """What became of the definition."""
    return PutStatus(raw.decode())


def remove_call(keys: QueueKeys, names: Sequence[str]) -> ScriptCall:
    """See ``schedule_remove.lua``."""
    return ScriptCall(
        script("schedule_remove"), [keys.schedules, keys.schedule_due, keys.schedule_runs], list(names)
    )


def remove_reply(raw: Raw) -> list[RemovedStatus]:
    """Statuses in the order of the names."""
    return [RemovedStatus(status.decode()) for status in raw]


def pause_call(keys: QueueKeys, names: Sequence[str]) -> ScriptCall:
    """See ``schedule_pause.lua``."""
    return ScriptCall(script("schedule_pause"), [keys.schedules, keys.schedule_due], list(names))


def pause_reply(raw: Raw) -> list[PausedStatus]:
    """Statuses in the order of the names."""
    return [PausedStatus(status.decode()) for status in raw]


def resume_call(keys: QueueKeys, wishes: Sequence[tuple[str, str, int]]) -> ScriptCall:
    """See ``schedule_resume.lua``: name, revision and next instant (Redis time, milliseconds) of each schedule."""
    args: list[str | bytes | int] = [len(wishes)]
    for name, revision, next_ms in wishes:
        args += (name, revision, str(next_ms))
    return ScriptCall(script("schedule_resume"), [keys.schedule_due, keys.schedule_runs], args)


def resume_reply(raw: Raw) -> list[ResumedStatus]:
    """Statuses in the order of the wishes."""
    return [ResumedStatus(status.decode()) for status in raw]


def skip_call(keys: QueueKeys, firing: Firing) -> ScriptCall:
    """See ``schedule_skip.lua``."""
    args = [firing.schedule, firing.revision, str(firing.instant_ms), str(firing.next_ms)]
    return ScriptCall(script("schedule_skip"), [keys.schedule_due, keys.schedule_runs], args)


def skip_reply(raw: bytes) -> bool:
    """Whether it was this call that passed over the instant."""
    return raw == b"skipped"


def list_call(keys: QueueKeys) -> ScriptCall:
    """See ``schedule_list.lua``."""
    return ScriptCall(script("schedule_list"), [keys.schedules, keys.schedule_due, keys.schedule_runs], [])


def list_reply(raw: Raw) -> ScheduleListing:
    """All schedules, by name."""
    return ScheduleListing(int(raw[0]), tuple(sorted(_views(raw), key=lambda view: view.schedule.name)))


def due_call(keys: QueueKeys) -> ScriptCall:
    """See ``schedule_due.lua``."""
    return ScriptCall(
        script("schedule_due"), [keys.schedules, keys.schedule_due, keys.schedule_runs], [DUE_MAX]
    )


def due_reply(raw: Raw) -> list[DueSchedule]:
    """Schedules whose instant has come, the oldest first."""
    return [DueSchedule(view, int(raw[0])) for view in _views(raw)]


def _views(raw: Raw) -> list[ScheduleView]:
    return [
        ScheduleView(
            schedule=decode_schedule(raw[at + 1]),
            revision=raw[at + 3].decode(),
            due_ms=int(float(raw[at + 2])) if raw[at + 2] else None,
            last_ms=int(raw[at + 4]) or None,
            last_job_id=raw[at + 5].decode(),
        )
        for at in range(1, len(raw), 6)
    ]
