"""Operations on one queue over any script runner: shared by the gateway's store and the asynchronous client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import msgspec

from gateway.events import Event, decode_entries
from gateway.limits import QueueLimits
from gateway.models import (
    CancelStatus,
    ClassId,
    Firing,
    JobClass,
    JobId,
    JobView,
    QueueStats,
    RequeueStatus,
    Submission,
    SubmitVerdict,
    SweepReport,
)
from gateway.schedules import (
    DueSchedule,
    PausedStatus,
    PutStatus,
    RemovedStatus,
    ResumedStatus,
    Schedule,
    ScheduleListing,
)
from gateway.store import schedule_scripts, scripts
from gateway.store.calls import BATCH_MAX, ScriptCall, StoreLimits
from gateway.store.fleet_operations import FleetOperations
from gateway.store.keys import QueueKeys

#: Parents looked up in one script call.
LOOKUPS_MAX = 4 * BATCH_MAX


class Runner(Protocol):
    """What ``RedisLink`` offers."""

    async def command(self, *parts: str | bytes | int, timeout_s: float | None = None) -> Any: ...

    async def script(self, call: ScriptCall, *, timeout_s: float | None = None) -> Any: ...


class QueueOperations(FleetOperations):
    """The verbs that need no lease. Lists of any length are cut into bounded script calls."""

    def __init__(self, runner: Runner, keys: QueueKeys, limits: StoreLimits) -> None:
        self._runner = runner
        self.keys = keys
        self.limits = limits
        self._swept: list[ClassId] | None = None

    async def submit_many(self, submissions: Sequence[Submission]) -> list[SubmitVerdict]:
        verdicts: list[SubmitVerdict] = []
        for batch in _batches(submissions):
            call = scripts.submit_call(self.keys, self.limits, batch)
            verdicts += scripts.submit_reply(await self._runner.script(call))
        return verdicts

    async def sweep(self) -> SweepReport:
        """One bounded sweep, over the classes known from earlier ones: a skipped job says that there are new ones."""
        if self._swept is None:
            self._swept = list(await self.classes())
        call = scripts.sweep_call(self.keys, self.limits, self._swept)
        report = scripts.sweep_reply(await self._runner.script(call))
        if report.skipped:
            self._swept = None
            return msgspec.structs.replace(report, more=True)
        return report

    async def _known(self, job_ids: Sequence[str]) -> dict[str, ClassId]:
        views = await self.inspect(job_ids)
        return {view.job_id: view.class_id for view in views if view is not None}

    async def cancel(self, job_ids: Sequence[str]) -> list[CancelStatus]:
        known = await self._known(job_ids)
        jobs = [(JobId(job_id), known[job_id]) for job_id in dict.fromkeys(job_ids) if job_id in known]
        answers: dict[str, CancelStatus] = {}
        for start in range(0, len(jobs), BATCH_MAX):
            batch = jobs[start : start + BATCH_MAX]
            reply = await self._runner.script(scripts.cancel_call(self.keys, self.limits, batch))
            statuses = scripts.cancel_reply(reply)
            answers |= {job_id: status for (job_id, _), status in zip(batch, statuses, strict=True)}
        return [answers.get(job_id, CancelStatus.UNKNOWN) for job_id in job_ids]

    async def requeue(self, job_ids: Sequence[str]) -> list[RequeueStatus]:
        known = await self._known(job_ids)
        jobs = [(JobId(job_id), known[job_id]) for job_id in dict.fromkeys(job_ids) if job_id in known]
        answers: dict[str, RequeueStatus] = {}
        for start in range(0, len(jobs), BATCH_MAX):
            batch = jobs[start : start + BATCH_MAX]
            reply = await self._runner.script(scripts.requeue_call(self.keys, self.limits, batch))
            statuses = scripts.requeue_reply(reply)
            answers |= {job_id: status for (job_id, _), status in zip(batch, statuses, strict=True)}
        return [answers.get(job_id, RequeueStatus.UNKNOWN) for job_id in job_ids]

    async def put_schedule(
        self, schedule: Schedule, *, revision: str, next_ms: int, replace: bool
    ) -> PutStatus:
        """Store a definition that was checked before; the same revision again changes nothing."""
        call = schedule_scripts.put_call(
            self.keys, self.limits, schedule, revision=revision, next_ms=next_ms, replace=replace
        )
        return schedule_scripts.put_reply(await self._runner.script(call))

    async def remove_schedules(self, names: Sequence[str]) -> list[RemovedStatus]:
        raw = await self._runner.script(schedule_scripts.remove_call(self.keys, names))
        return schedule_scripts.remove_reply(raw)

    async def pause_schedules(self, names: Sequence[str]) -> list[PausedStatus]:
        raw = await self._runner.script(schedule_scripts.pause_call(self.keys, names))
        return schedule_scripts.pause_reply(raw)

    async def resume_schedules(self, wishes: Sequence[tuple[str, str, int]]) -> list[ResumedStatus]:
        """Name, revision and next instant (Redis time, milliseconds) of each paused schedule."""
        raw = await self._runner.script(schedule_scripts.resume_call(self.keys, wishes))
        return schedule_scripts.resume_reply(raw)

    async def schedules(self) -> ScheduleListing:
        """All schedules by name, at one moment."""
        return schedule_scripts.list_reply(await self._runner.script(schedule_scripts.list_call(self.keys)))

    async def due_schedules(self) -> list[DueSchedule]:
        """Schedules whose instant has come, the oldest first, a bounded number."""
        return schedule_scripts.due_reply(await self._runner.script(schedule_scripts.due_call(self.keys)))

    async def skip_instant(self, firing: Firing) -> bool:
        """Pass over a missed instant; False when somebody else settled it."""
        raw = await self._runner.script(schedule_scripts.skip_call(self.keys, firing))
        return schedule_scripts.skip_reply(raw)

    async def limits_now(self) -> QueueLimits:
        """All limits with what they let through now."""
        return scripts.limits_reply(await self._runner.script(scripts.limits_call(self.keys)))

    async def define_limits(
        self, limits: Sequence[tuple[str, str]], *, only_new: bool
    ) -> list[tuple[bool, str]]:
        """Set limits (an empty text removes one); with ``only_new`` those defined already stay as they are.

        Returns whether each changed, and its text now.
        """
        raw = await self._runner.script(scripts.limit_call(self.keys, limits, only_new=only_new))
        return scripts.limit_reply(raw)

    async def pause(self) -> bool:
        return bool(await self._runner.script(scripts.pause_call(self.keys)))

    async def resume(self) -> bool:
        return bool(await self._runner.script(scripts.resume_call(self.keys)))

    async def inspect(self, job_ids: Sequence[str]) -> list[JobView | None]:
        views: list[JobView | None] = []
        for start in range(0, len(job_ids), BATCH_MAX):
            batch = list(job_ids[start : start + BATCH_MAX])
            raw = await self._runner.script(scripts.inspect_call(self.keys, batch))
            views += scripts.inspect_reply(raw, batch)
        return views

    async def stats(self) -> QueueStats:
        class_ids = list(await self.classes())
        raw = await self._runner.script(scripts.stats_call(self.keys, class_ids))
        return scripts.stats_reply(raw, class_ids)

    async def classes(self) -> dict[ClassId, JobClass]:
        return scripts.classes_reply(await self._runner.command(b"HGETALL", self.keys.classes))

    async def workers(self) -> dict[str, bytes]:
        """Registered workers: id to ``<seen_ms> <description JSON>``."""
        raw = await self._runner.command(b"HGETALL", self.keys.workers)
        return {worker_id.decode(): entry for worker_id, entry in raw.items()}

    async def dead_jobs(self, count: int) -> list[JobView]:
        """The ``count`` most recent dead letters, newest first."""
        raw = await self._runner.command(b"ZREVRANGE", self.keys.dead, 0, count - 1)
        return [view for view in await self.inspect([job_id.decode() for job_id in raw]) if view is not None]

    async def heartbeat(self, workers: Sequence[tuple[str, bytes]]) -> None:
        await self._runner.script(scripts.heartbeat_call(self.keys, self.limits, workers))

    async def events(self, after: str, *, count: int, block_s: float = 0.0) -> tuple[list[Event], str]:
        """Events after a stream entry id (``0-0`` for the oldest kept), and the id to go on from.

        ``block_s`` waits for new ones; use a connection of one's own then, it is busy meanwhile.
        """
        parts: list[str | bytes | int] = [b"XREAD", b"COUNT", count]
        if block_s > 0:
            parts += [b"BLOCK", round(block_s * 1000)]
        timeout_s = block_s + 5.0 if block_s > 0 else None
        raw = await self._runner.command(*parts, b"STREAMS", self.keys.events, after, timeout_s=timeout_s)
        entries = _stream_entries(raw)
        return decode_entries(entries), entries[-1][0] if entries else after

    async def job_stream(
        self, job_id: str, after: str, *, count: int, block_s: float = 0.0
    ) -> list[tuple[str, dict[str, str]]]:
        """Entries of one job's own stream (progress and chunks) after an id, each with its id to resume from."""
        parts: list[str | bytes | int] = [b"XREAD", b"COUNT", count]
        if block_s > 0:
            parts += [b"BLOCK", round(block_s * 1000)]
        timeout_s = block_s + 5.0 if block_s > 0 else None
        raw = await self._runner.command(
            *parts, b"STREAMS", self.keys.stream(job_id), after, timeout_s=timeout_s
        )
        return _stream_entries(raw)

    async def last_event_id(self) -> str:
        """Where the event stream ends now; ``0-0`` when it is empty."""
        raw = await self._runner.command(b"XREVRANGE", self.keys.events, b"+", b"-", b"COUNT", 1)
        return raw[0][0].decode() if raw else "0-0"


def _batches(submissions: Sequence[Submission]) -> Iterator[Sequence[Submission]]:
    """Bounded script calls: parents are work too."""
    first = lookups = 0
    for index, item in enumerate(submissions):
        lookups += len(item.spec.after)
        if index - first == BATCH_MAX or (lookups > LOOKUPS_MAX and index > first):
            yield submissions[first:index]
            first, lookups = index, len(item.spec.after)
    if submissions:
        yield submissions[first:]


def _stream_entries(raw: Any) -> list[tuple[str, dict[str, str]]]:
    """Entries of a one-stream XREAD reply, RESP2 or RESP3, decoded to text."""
    if not raw:
        return []
    entries = next(iter(raw.values())) if isinstance(raw, dict) else raw[0][1]
    return [(entry_id.decode(), _fields(fields)) for entry_id, fields in entries]


def _fields(fields: Any) -> dict[str, str]:
    flat = [value.decode() for value in fields]
    return dict(zip(flat[::2], flat[1::2], strict=True))
