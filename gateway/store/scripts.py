"""Typed façade over the Lua operations: builds each call and reads its reply; the only place that knows their layout.

Every function pair is pure: ``<operation>_call`` gives the keys and arguments, ``<operation>_reply`` turns the raw
reply (bytes) into models. Both clients, coredis under trio and redis-py for synchronous programs, use this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from gateway.limits import QueueLimits
from gateway.matching import class_of, decode_class
from gateway.models import (
    AGING_S_DEFAULT,
    PRIORITY_MAX,
    CancelStatus,
    ClaimReply,
    ClaimRequest,
    ClassId,
    Epoch,
    Grant,
    JobClass,
    JobId,
    JobSpec,
    JobState,
    JobView,
    LeaseRef,
    LeaseStatus,
    ParentPolicy,
    ProgressNote,
    QueueStats,
    RequeueStatus,
    Settlement,
    Submission,
    SubmitStatus,
    SubmitVerdict,
    SweepReport,
    Verdict,
)
from gateway.store.calls import ScriptCall, StoreLimits, milliseconds, script
from gateway.store.keys import QueueKeys

Raw = Sequence[bytes]
_encode = msgspec.json.Encoder().encode
_decode_spec = msgspec.json.Decoder(JobSpec).decode
_decode_record = msgspec.json.Decoder(list[str]).decode
_decode_any = msgspec.json.Decoder().decode
# Replies hold one of a few words per item; looking it up costs a third of decoding and parsing it.
_VERDICTS = {verdict.value.encode(): verdict for verdict in Verdict}
_STATES: dict[bytes, JobState | None] = {b"": None} | {state.value.encode(): state for state in JobState}
_SUBMIT_STATUSES = {status.value.encode(): status for status in SubmitStatus}
_LEASE_STATUSES = {status.value.encode(): status for status in LeaseStatus}


def encode_spec(spec: JobSpec) -> bytes:
    """JSON of a specification as the store keeps it."""
    return _encode(spec)


def _positions(class_ids: Sequence[str]) -> dict[str, int]:
    """Lua position (from 1) of each distinct class, in order of first use."""
    return {class_id: position for position, class_id in enumerate(dict.fromkeys(class_ids), start=1)}


class _Options(msgspec.Struct, omit_defaults=True):
    """What a plain job has none of; see the head of ``submit.lua``."""

    expires_ms: int = 0
    expires_in_ms: int = 0
    unique: str = ""
    unique_for_ms: int = 0
    after: tuple[str, ...] = ()
    on_failure: str = ParentPolicy.CANCEL.value
    schedule: tuple[str, str, int, int] | None = None


def _options(item: Submission) -> bytes:
    """JSON of a submission's options; empty for a plain job, so that it costs neither side anything."""
    spec, firing = item.spec, item.firing
    if not (item.expires_at_ms or item.expires_in_s or item.unique_key or spec.after or firing):
        return b""
    return _encode(
        _Options(
            expires_ms=item.expires_at_ms,
            expires_in_ms=round(item.expires_in_s * 1000),
            unique=item.unique_key,
            unique_for_ms=round(item.unique_for_s * 1000),
            after=spec.after,
            on_failure=spec.on_parent_failure.value,
            schedule=None if firing is None else msgspec.structs.astuple(firing),
        )
    )


def submit_call(keys: QueueKeys, limits: StoreLimits, submissions: Sequence[Submission]) -> ScriptCall:
    """See ``submit.lua``. Specifications must be validated before."""
    classes = [class_of(item.spec.service, item.spec.requires, item.spec.tenant) for item in submissions]
    positions = _positions([job_class.class_id for job_class, _ in classes])
    args: list[str | bytes | int] = [
        limits.unfinished_max, limits.classes_max, limits.events_max, limits.children_max, len(submissions)
    ]  # fmt: skip
    for item, (job_class, encoded_class) in zip(submissions, classes, strict=True):
        args += (
            item.job_id,
            _encode(item.spec),
            positions[job_class.class_id],
            job_class.class_id,
            encoded_class,
            PRIORITY_MAX - item.spec.priority,
            item.idempotency_key,
            milliseconds(item.delay_s),
            item.spec.max_attempts,
            item.spec.tenant,
            item.spec.service,
            _options(item),
        )
    fixed = [
        keys.jobs, keys.specs, keys.idempotency, keys.classes, keys.scheduled, keys.finished, keys.meta,
        keys.events, keys.wake, keys.unique, keys.holds, keys.deadlines, keys.waiting, keys.children,
        keys.schedule_due, keys.schedule_runs, keys.owners,
    ]  # fmt: skip
    return ScriptCall(script("submit"), [*fixed, *map(keys.pending, positions)], args)


def submit_reply(raw: Raw) -> list[SubmitVerdict]:
    """Verdicts in the order of the submissions."""
    return [
        SubmitVerdict(_SUBMIT_STATUSES[raw[i]], JobId(raw[i + 1].decode())) for i in range(0, len(raw), 2)
    ]


def claim_call(
    keys: QueueKeys,
    limits: StoreLimits,
    lease_s: float,
    instance: str,
    requests: Sequence[ClaimRequest],
) -> ScriptCall:
    """See ``claim.lua``. ``instance`` tells claim loops with the same worker id in different processes apart."""
    positions = _positions([class_id for request in requests for class_id in request.class_ids])
    args: list[str | bytes | int] = [
        milliseconds(lease_s), limits.events_max, len(requests), len(positions), *positions
    ]  # fmt: skip
    for request in requests:
        args += (request.request_id, request.worker_id, request.count, request.slots, len(request.class_ids))
        args += [positions[class_id] for class_id in request.class_ids]
    fixed = [
        keys.jobs, keys.specs, keys.leases, keys.meta, keys.events, keys.classes, keys.owners, keys.served,
        keys.limits, keys.usage, keys.rates,
    ]  # fmt: skip
    memories = [keys.claim_memory(f"{request.worker_id}:{instance}") for request in requests]
    return ScriptCall(script("claim"), [*fixed, *memories, *map(keys.pending, positions)], args)


def claim_reply(raw: Raw, requests: int) -> list[ClaimReply]:
    """Grants per request, in the order of the requests."""
    class_count, paused, claimed_ms = int(raw[0]), raw[1] == b"1", int(raw[2])
    replies = []
    at = 3
    for _ in range(requests):
        granted, wait_ms = int(raw[at]), int(raw[at + 1])
        at += 2
        grants = tuple(_grant(raw, at + 11 * i, claimed_ms) for i in range(granted))
        at += 11 * granted
        replies.append(ClaimReply(grants, class_count, paused, wait_ms))
    return replies


def _grant(raw: Raw, at: int, claimed_ms: int) -> Grant:
    return Grant(
        job_id=JobId(raw[at].decode()),
        epoch=Epoch(int(raw[at + 2])),
        class_id=ClassId(raw[at + 3].decode()),
        spec=_decode_spec(raw[at + 1]),
        attempts=int(raw[at + 4]),
        recoveries=int(raw[at + 5]),
        reference=raw[at + 6].decode(),
        cancel_requested=raw[at + 7] == b"1",
        submitted_ms=int(raw[at + 8]),
        enqueued_ms=int(raw[at + 9]),
        claimed_ms=claimed_ms,
        expires_ms=int(raw[at + 10]),
    )


def renew_call(keys: QueueKeys, lease_s: float, leases: Sequence[LeaseRef]) -> ScriptCall:
    """See ``renew.lua``."""
    args: list[str | bytes | int] = [milliseconds(lease_s), len(leases)]
    for lease in leases:
        args += (lease.job_id, str(lease.epoch))
    return ScriptCall(script("renew"), [keys.jobs, keys.leases], args)


def renew_reply(raw: Raw) -> list[LeaseStatus]:
    """Statuses in the order of the leases."""
    return [_LEASE_STATUSES[status] for status in raw]


def attach_call(keys: QueueKeys, references: Sequence[tuple[LeaseRef, str]]) -> ScriptCall:
    """See ``attach.lua``."""
    args: list[str | bytes | int] = [len(references)]
    for lease, reference in references:
        args += (lease.job_id, str(lease.epoch), reference)
    return ScriptCall(script("attach"), [keys.jobs], args)


def verdicts_reply(raw: Raw) -> list[Verdict]:
    """Fence verdicts in the order of the items."""
    return [_VERDICTS[verdict] for verdict in raw]


def progress_call(keys: QueueKeys, limits: StoreLimits, notes: Sequence[ProgressNote]) -> ScriptCall:
    """See ``progress.lua``."""
    args: list[str | bytes | int] = [limits.stream_max, milliseconds(limits.stream_ttl_s), len(notes)]
    for note in notes:
        args += (note.job_id, str(note.epoch), note.number, note.kind.value, f"{note.value:.6g}", note.body)
    return ScriptCall(script("progress"), [keys.jobs, *(keys.stream(note.job_id) for note in notes)], args)


def settle_call(keys: QueueKeys, limits: StoreLimits, settlements: Sequence[Settlement]) -> ScriptCall:
    """See ``settle.lua``."""
    positions = _positions([item.class_id for item in settlements])
    args: list[str | bytes | int] = [
        limits.events_max,
        milliseconds(limits.retention_s),
        milliseconds(limits.dead_retention_s),
        limits.yields_max,
        limits.told_max,
        len(settlements),
    ]
    for item in settlements:
        args += (
            item.job_id,
            str(item.epoch),
            item.kind.value,
            item.body,
            item.detail,
            milliseconds(item.delay_s),
            milliseconds(item.avoid_s),
            "1" if item.final else "0",
            positions[item.class_id],
        )
    fixed = [*keys.ending, keys.leases, keys.usage, keys.limits]
    return ScriptCall(script("settle"), [*fixed, *map(keys.pending, positions)], args)


def settle_reply(raw: Raw) -> list[tuple[Verdict, JobState | None]]:
    """Verdict and state afterwards (None for an unknown job), in the order of the settlements."""
    return [(_VERDICTS[raw[i]], _STATES[raw[i + 1]]) for i in range(0, len(raw) - 1, 2)]


def settle_unblocked(raw: Raw) -> int:
    """How many children became due by these settlements; a sweep makes them pending."""
    return int(raw[-1])


def sweep_call(keys: QueueKeys, limits: StoreLimits, class_ids: Sequence[str]) -> ScriptCall:
    """See ``sweep.lua``. Jobs of classes not named are left for a later sweep and counted as skipped."""
    args: list[str | bytes | int] = [
        limits.sweep_max,
        limits.recoveries_max,
        limits.events_max,
        milliseconds(limits.retention_s),
        milliseconds(limits.dead_retention_s),
        limits.told_max,
        len(class_ids),
        *class_ids,
    ]
    fixed = [*keys.ending, keys.specs, keys.leases, keys.idempotency, keys.schedule_due, keys.usage]
    return ScriptCall(script("sweep"), [*fixed, *map(keys.pending, class_ids)], args)


def sweep_reply(raw: Raw) -> SweepReport:
    """Counts of one sweep."""
    recovered, poisoned, cancelled, promoted, removed, skipped, expired, told, schedules_due, more = map(
        int, raw
    )
    return SweepReport(
        recovered,
        poisoned,
        cancelled,
        promoted,
        removed,
        skipped,
        expired,
        told,
        bool(schedules_due),
        bool(more),
    )


def cancel_call(keys: QueueKeys, limits: StoreLimits, jobs: Sequence[tuple[JobId, ClassId]]) -> ScriptCall:
    """See ``cancel.lua``. The caller has read each job's class before; it never changes in the job's life."""
    return ScriptCall(
        script("cancel"),
        [*keys.ending, *(keys.pending(class_id) for _, class_id in jobs)],
        [
            limits.events_max,
            milliseconds(limits.retention_s),
            limits.told_max,
            len(jobs),
            *(text for job in jobs for text in job),
        ],
    )


def cancel_reply(raw: Raw) -> list[CancelStatus]:
    """Statuses in the order of the jobs."""
    return [CancelStatus(status.decode()) for status in raw]


def requeue_call(keys: QueueKeys, limits: StoreLimits, jobs: Sequence[tuple[JobId, ClassId]]) -> ScriptCall:
    """See ``requeue.lua``."""
    fixed = [
        keys.jobs, keys.results, keys.finished, keys.dead, keys.events, keys.wake, keys.unique, keys.holds
    ]  # fmt: skip
    return ScriptCall(
        script("requeue"),
        [*fixed, *(keys.pending(class_id) for _, class_id in jobs)],
        [limits.events_max, len(jobs), *(text for job in jobs for text in job)],
    )


def requeue_reply(raw: Raw) -> list[RequeueStatus]:
    """Statuses in the order of the jobs."""
    return [RequeueStatus(status.decode()) for status in raw]


def pause_call(keys: QueueKeys) -> ScriptCall:
    """See ``pause.lua``."""
    return ScriptCall(script("pause"), [keys.meta], [])


def resume_call(keys: QueueKeys) -> ScriptCall:
    """See ``resume.lua``."""
    return ScriptCall(script("resume"), [keys.meta, keys.wake], [])


def limit_call(keys: QueueKeys, limits: Sequence[tuple[str, str]], *, only_new: bool) -> ScriptCall:
    """See ``limit.lua``. Each limit is its name and its text, empty to remove it."""
    args: list[str | bytes | int] = [int(only_new), len(limits)]
    args += [text for limit in limits for text in limit]
    return ScriptCall(script("limit"), [keys.limits, keys.meta, keys.wake], args)


def limit_reply(raw: Raw) -> list[tuple[bool, str]]:
    """Whether each limit changed, and its text now, in their order."""
    return [(raw[i] == b"1", raw[i + 1].decode()) for i in range(0, len(raw), 2)]


def limits_call(keys: QueueKeys) -> ScriptCall:
    """See ``limits.lua``."""
    return ScriptCall(script("limits"), [keys.limits, keys.usage, keys.rates, keys.meta], [])


def limits_reply(raw: Sequence[Any]) -> QueueLimits:
    """All limits with what they let through now."""
    limits, running, meters = (dict(zip(flat[::2], flat[1::2], strict=True)) for flat in raw[2:5])
    return QueueLimits(
        now_us=int(raw[0]),
        aging_s=int(raw[1]) / 1000 if raw[1] else AGING_S_DEFAULT,
        limits={name.decode(): text.decode() for name, text in limits.items()},
        running={name.decode(): int(count) for name, count in running.items() if int(count)},
        meters_us={name.decode(): int(meter_us) for name, meter_us in meters.items()},
    )


def heartbeat_call(keys: QueueKeys, limits: StoreLimits, workers: Sequence[tuple[str, bytes]]) -> ScriptCall:
    """See ``heartbeat.lua``. An empty description signs the worker off."""
    args: list[str | bytes | int] = [milliseconds(limits.worker_ttl_s), len(workers)]
    for worker_id, description in workers:
        args += (worker_id, description)
    return ScriptCall(script("heartbeat"), [keys.workers], args)


def inspect_call(keys: QueueKeys, job_ids: Sequence[str]) -> ScriptCall:
    """See ``inspect.lua``."""
    return ScriptCall(
        script("inspect"), [keys.jobs, keys.specs, keys.results, keys.leases, keys.scheduled], list(job_ids)
    )


def inspect_reply(raw: Raw, job_ids: Sequence[str]) -> list[JobView | None]:
    """Views in the order of the ids, None for an unknown one."""
    return [_job_view(job_id, raw[5 * i : 5 * i + 5]) for i, job_id in enumerate(job_ids)]


def _job_view(job_id: str, raw: Raw) -> JobView | None:
    if not raw[0] or not raw[1]:
        return None
    record = _decode_record(raw[0])
    state = JobState(record[0])
    body: Any = _decode_any(raw[2]) if raw[2] else None
    completed = state is JobState.COMPLETED
    return JobView(
        job_id=JobId(job_id),
        state=state,
        spec=_decode_spec(raw[1]),
        class_id=ClassId(record[3]),
        epoch=Epoch(int(record[1])),
        attempts=int(record[5]),
        recoveries=int(record[6]),
        yields=int(record[7]),
        worker_id=record[8],
        reference=record[9],
        progress=float(record[11]),
        cancel_requested=record[10] == "1",
        submitted_ms=int(record[13]),
        enqueued_ms=int(record[14]),
        ended_ms=int(record[15]),
        lease_until_ms=int(float(raw[3])) if raw[3] else None,
        due_ms=int(float(raw[4])) if raw[4] else None,
        result=body if completed else None,
        error=body if not completed and isinstance(body, dict) else None,
        idempotency_key=record[20],
        expires_ms=int(record[22]),
        unique_key=record[23].partition(":")[2],
        parents_left=int(record[24]),
    )


def stats_call(keys: QueueKeys, class_ids: Sequence[str]) -> ScriptCall:
    """See ``stats.lua``."""
    fixed = [keys.jobs, keys.leases, keys.scheduled, keys.finished, keys.dead, keys.meta, keys.waiting]
    return ScriptCall(script("stats"), [*fixed, *map(keys.pending, class_ids)], [])


def stats_reply(raw: Raw, class_ids: Sequence[str]) -> QueueStats:
    """Counts, with the pending ones by class."""
    now_ms, jobs, running, scheduled, finished, dead, paused, oldest_ms, waiting = map(int, raw[:9])
    return QueueStats(
        now_ms=now_ms,
        pending={class_id: int(raw[9 + i]) for i, class_id in enumerate(class_ids)},
        scheduled=scheduled,
        running=running,
        finished=finished,
        dead=dead,
        jobs=jobs,
        oldest_pending_ms=oldest_ms,
        paused=bool(paused),
        waiting=waiting,
    )


def classes_reply(raw: dict[bytes, bytes]) -> dict[ClassId, JobClass]:
    """Read the queue's hash of classes."""
    classes = (decode_class(class_id.decode(), encoded) for class_id, encoded in raw.items())
    return {job_class.class_id: job_class for job_class in classes}
