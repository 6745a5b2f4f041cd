"""Recurring jobs: a schedule's definition, and when it is due next (pure: the time comes in as an argument)."""

from __future__ import annotations

import enum
import functools
import re
from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from cronsim import CronSim, CronSimError

from gateway.errors import InvalidSchedule
from gateway.models import Firing, JobId, JobSpec, Submission

#: An instant that nobody fired for so long was missed, seconds: several sweeps, far below a usual period.
MISSED_AFTER_S = 60.0
#: A definition is read whenever its schedule fires or is listed.
DEFINITION_BYTES_MAX = 64 * 1024

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class MissedPolicy(enum.StrEnum):
    """What to do about instants at which no gateway was there to fire."""

    ONCE = "once"
    SKIP = "skip"


class Schedule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A recurring job.

    Attributes:
        cron: five fields (minute, hour, day of month, month, day of week), or six with the second first.
        timezone: IANA name; the fields are read on that zone's clock.
        spec: what each job does.
        missed: after a time without gateways, fire one job for all missed instants, or none.
        unique: no new job while an earlier one of this schedule has not ended.
        expires_in_s: deadline of each job, seconds after its submission; 0 for none.
    """

    name: str
    cron: str
    timezone: str = "UTC"
    spec: JobSpec
    missed: MissedPolicy = MissedPolicy.ONCE
    unique: bool = False
    expires_in_s: float = 0.0


class ScheduleView(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule as the store keeps it; ``due_ms`` is None while it is paused, ``last_ms`` before its first job."""

    schedule: Schedule
    revision: str
    due_ms: int | None
    last_ms: int | None
    last_job_id: str

    @property
    def paused(self) -> bool:
        return self.due_ms is None


class ScheduleListing(msgspec.Struct, frozen=True):
    """All schedules of a queue, by name, as they were at ``now_ms`` (Redis time)."""

    now_ms: int
    schedules: tuple[ScheduleView, ...]


class PutStatus(enum.StrEnum):
    """Answer to a schedule's definition."""

    CREATED = "created"
    REPLACED = "replaced"
    DUPLICATE = "duplicate"
    EXISTS = "exists"
    FULL = "full"


class RemovedStatus(enum.StrEnum):
    """Answer to the removal of one schedule."""

    REMOVED = "removed"
    UNKNOWN = "unknown"


class PausedStatus(enum.StrEnum):
    """Answer to pausing one schedule."""

    PAUSED = "paused"
    ALREADY_PAUSED = "already_paused"
    UNKNOWN = "unknown"


class ResumedStatus(enum.StrEnum):
    """Answer to resuming one schedule; ``changed``: its definition is another one by now."""

    RESUMED = "resumed"
    NOT_PAUSED = "not_paused"
    CHANGED = "changed"
    UNKNOWN = "unknown"


@functools.lru_cache(maxsize=512)
def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise InvalidSchedule(
            f"timezone {name!r} is unknown: use an IANA name such as UTC or Europe/Berlin"
        ) from None


def next_instant_ms(cron: str, timezone: str, after_ms: int) -> int:
    """First instant of a cron expression after a moment; around changes of the clock as Debian's cron does.

    Args:
        cron: the expression.
        timezone: IANA name.
        after_ms: Redis time, milliseconds since the epoch.

    Raises:
        InvalidSchedule: malformed expression, unknown zone, or no such instant within 50 years.
    """
    zone = UTC if timezone == "UTC" else _zone(timezone)
    after = datetime.fromtimestamp(after_ms // 1000, zone)
    try:
        found = next(CronSim(cron, after))
    except CronSimError as error:
        raise InvalidSchedule(
            f"cron expression {cron!r}: {str(error).lower()}; use five fields: minute hour day-of-month month "
            "day-of-week"
        ) from None
    except StopIteration:
        raise InvalidSchedule(f"cron expression {cron!r} has no instant within 50 years") from None
    return round(found.timestamp()) * 1000


def check_schedule(schedule: Schedule, now_ms: int) -> int:
    """Check a definition (its job's specification is checked as every submission is).

    Args:
        schedule: what the operator wrote.
        now_ms: Redis time, milliseconds.

    Returns:
        When it is due first, Redis time in milliseconds.

    Raises:
        InvalidSchedule: says what is wrong and what would be right.
    """
    if not _NAME.fullmatch(schedule.name):
        raise InvalidSchedule(
            f"schedule name {schedule.name!r}: use 1 to 64 letters, digits, '.', '-' or '_', beginning with a letter "
            "or digit"
        )
    size_bytes = len(encode_schedule(schedule))
    if size_bytes > DEFINITION_BYTES_MAX:
        raise InvalidSchedule(
            f"schedule {schedule.name!r} is {size_bytes} bytes of JSON; at most {DEFINITION_BYTES_MAX} are allowed: "
            "store large inputs elsewhere and pass a reference"
        )
    return next_instant_ms(schedule.cron, schedule.timezone, now_ms)


def encode_schedule(schedule: Schedule) -> bytes:
    """JSON of a definition as the store keeps it."""
    return msgspec.json.encode(schedule)


decode_schedule = msgspec.json.Decoder(Schedule).decode


def job_id_at(name: str, instant_ms: int) -> JobId:
    """The id of a schedule's job of one instant: the same on every gateway."""
    at = datetime.fromtimestamp(instant_ms // 1000, UTC)
    return JobId(f"schedule:{name}:{at:%Y%m%dT%H%M%SZ}")


def unique_key_of(schedule: Schedule) -> str:
    """The unique key of a schedule's jobs; empty where they may overlap."""
    return f"schedule:{schedule.name}" if schedule.unique else ""


class DueSchedule(msgspec.Struct, frozen=True):
    """A schedule whose instant has come.

    Attributes:
        now_ms: Redis time at which it was found due, milliseconds.
    """

    view: ScheduleView
    now_ms: int


def fire(due: DueSchedule) -> tuple[Submission | None, Firing]:
    """What to submit for a due schedule, and the instants that this settles.

    However many instants were missed, the next one is in the future: a catch-up is one job at most.

    Returns:
        The submission, None where a missed instant is skipped; and the firing to fence it with.

    Raises:
        InvalidSchedule: it has no further instant (a time zone that this machine does not know, say).
    """
    schedule, instant_ms = due.view.schedule, due.view.due_ms or 0
    next_ms = next_instant_ms(schedule.cron, schedule.timezone, due.now_ms)
    firing = Firing(schedule.name, due.view.revision, instant_ms, next_ms)
    late_s = (due.now_ms - instant_ms) / 1000
    if schedule.missed is MissedPolicy.SKIP and late_s > MISSED_AFTER_S:
        return None, firing
    return Submission(
        job_id=job_id_at(schedule.name, instant_ms),
        spec=schedule.spec,
        expires_in_s=schedule.expires_in_s,
        unique_key=unique_key_of(schedule),
        firing=firing,
    ), firing
