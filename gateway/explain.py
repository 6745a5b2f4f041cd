"""Why a job is where it is: its class, who could run it, what stands in the way, and its story (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gateway.events import Event
from gateway.lifecycle import BIRTHS, EventType
from gateway.matching import unmet
from gateway.models import TERMINAL_STATES, JobId, JobState, JobView, ParentPolicy

_decode = msgspec.json.Decoder().decode


class WorkerView(msgspec.Struct, frozen=True, kw_only=True):
    """A worker as it registered itself.

    Attributes:
        seen_ms: Redis time of its last sign of life, milliseconds.
        healthy: its own verdict on its service; None when it did not say.
        refusal: why it claims nothing right now, in its own words; empty when it claims.
        description: everything it registered.
    """

    worker_id: str
    seen_ms: int
    service: str
    connector: str
    endpoint: str
    slots: int
    running: int | None
    healthy: bool | None
    refusal: str
    capabilities: dict[str, Any]
    description: dict[str, Any]


def decode_worker(worker_id: str, entry: bytes) -> WorkerView:
    """Read one registry entry, ``<seen_ms> <description JSON>``; a damaged one becomes a worker that serves nothing."""
    seen, _, text = entry.partition(b" ")
    try:
        description = _decode(text)
    except msgspec.DecodeError:
        description = {}
    if not isinstance(description, dict):
        description = {}
    given = description.get("capabilities")
    capabilities = given if isinstance(given, dict) else {}
    slots, running, healthy = (description.get(name) for name in ("slots", "running", "healthy"))
    return WorkerView(
        worker_id=worker_id,
        seen_ms=int(seen) if seen.isdigit() else 0,
        service=str(description.get("service", capabilities.get("service", ""))),
        connector=str(description.get("connector", capabilities.get("connector", ""))),
        endpoint=str(description.get("endpoint", "")),
        slots=slots if isinstance(slots, int) else 0,
        running=running if isinstance(running, int) else None,
        healthy=healthy if isinstance(healthy, bool) else None,
        refusal=str(description.get("refusal", "")),
        capabilities=capabilities,
        description=description,
    )


class WorkerFit(msgspec.Struct, frozen=True):
    """Whether one registered worker could run the job; ``reasons`` says why not, or why not right now."""

    worker_id: str
    fits: bool
    ready: bool
    reasons: tuple[str, ...]


class StoryLine(msgspec.Struct, frozen=True):
    """One event of the job's life. ``after_s`` counts from the first event told; ``attempt`` from 1, 0 before."""

    at_ms: int
    after_s: float
    event: str
    worker_id: str
    epoch: int
    attempt: int
    text: str


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Everything ``gateway explain`` shows.

    Attributes:
        ahead: jobs of the same class that will be claimed before this one; None when it is not pending.
        summary: the answer in plain sentences, most important first.
        story_complete: the event stream still reaches back to the submission.
    """

    job_id: JobId
    state: JobState
    class_id: str
    service: str
    requires: dict[str, Any]
    attempts: int
    max_attempts: int
    ahead: int | None
    summary: tuple[str, ...]
    workers: tuple[WorkerFit, ...]
    story: tuple[StoryLine, ...]
    story_complete: bool
    tenant: str = ""


def _pool(worker: WorkerView) -> list[dict[str, Any]]:
    """What each endpoint of the worker can do."""
    endpoints = worker.description.get("endpoints")
    listed = endpoints if isinstance(endpoints, list) else []
    told = [one.get("capabilities") for one in listed if isinstance(one, dict)]
    return [can for can in told if isinstance(can, dict)]


def fit(view: JobView, worker: WorkerView, *, now_ms: int, worker_ttl_s: float) -> WorkerFit:
    """Compare one job with one registered worker.

    Args:
        now_ms: Redis time, milliseconds.
        worker_ttl_s: silence after which a worker is taken for gone, seconds.
    """
    if worker.service != view.spec.service:
        reason = f"serves {worker.service or 'nothing'!r}, not {view.spec.service!r}"
        return WorkerFit(worker.worker_id, False, False, (reason,))
    known = {"service": worker.service, "connector": worker.connector, "worker": worker.worker_id}
    # One endpoint of a pool that can run it is enough.
    missing = min(
        (unmet(view.spec.requires, {**known, **can}) for can in (worker.capabilities, *_pool(worker))),
        key=len,
    )
    if missing:
        return WorkerFit(worker.worker_id, False, False, tuple(missing))
    reasons = []
    silent_s = (now_ms - worker.seen_ms) / 1000
    if silent_s > worker_ttl_s:
        reasons.append(f"silent for {silent_s:.0f} s")
    if worker.refusal:
        reasons.append(worker.refusal)
    elif worker.healthy is False:
        reasons.append("its service is unhealthy")
    elif worker.running is not None and worker.slots and worker.running >= worker.slots:
        reasons.append("all slots busy")
    return WorkerFit(worker.worker_id, True, not reasons, tuple(reasons))


_PHRASES = {
    EventType.SUBMITTED: "submitted",
    EventType.DEFERRED: "submitted with a delay",
    EventType.BLOCKED: "submitted, waits for its parents",
    EventType.UNBLOCKED: "its parents are done, due now",
    EventType.EXPIRED: "its deadline passed, went to the dead letters",
    EventType.COMPLETED: "completed",
    EventType.DEAD: "went to the dead letters",
    EventType.CANCELLED: "cancelled",
    EventType.RETRIED: "failed, pending again",
    EventType.RETRIED_LATER: "failed, waits for its back-off",
    EventType.SNOOZED: "put off by the service, pending again",
    EventType.SNOOZED_LATER: "put off by the service",
    EventType.RELEASED: "given back unfinished, no attempt charged",
    EventType.RELEASED_LATER: "given back for later, no attempt charged",
    EventType.RECOVERED: "its lease expired, pending again",
    EventType.PROMOTED: "due, pending now",
    EventType.REQUEUED: "requeued by an operator",
    EventType.CANCEL_REQUESTED: "cancel requested, told through its lease",
    EventType.REFUSED: "a late write under an old lease was refused",
    EventType.CONFIGURED: "an operator, or a rollout's judge, changed the fleet's settings",
}
_CHARGED = frozenset({EventType.RETRIED, EventType.RETRIED_LATER})


def detail_text(detail: str) -> str:
    """An event's detail for people: kind and message of a JSON object, other text as it is."""
    try:
        decoded = _decode(detail)
    except msgspec.DecodeError:
        return detail
    if not isinstance(decoded, dict):
        return detail
    kind = decoded.get("kind") or decoded.get("fault_class") or decoded.get("class")
    said = [str(part) for part in (kind, decoded.get("message")) if part]
    return ": ".join(said) if said else ", ".join(f"{key} {value}" for key, value in decoded.items())


def tell(events: Sequence[Event]) -> tuple[StoryLine, ...]:
    """The story of one job from its own events, in order."""
    lines = []
    attempt = failed = 0
    for event in events:
        if event.type is EventType.CLAIMED:
            attempt = failed + 1
            text = f"claimed by {event.worker_id}, attempt {attempt}"
        else:
            detail = detail_text(event.detail) if event.detail else ""
            text = _PHRASES[event.type] + (f" ({detail})" if detail else "")
        if event.type in _CHARGED:
            failed += 1
        elif event.type is EventType.REQUEUED:
            failed = attempt = 0
        after_s = (event.at_ms - events[0].at_ms) / 1000
        lines.append(
            StoryLine(
                event.at_ms, after_s, event.type.value, event.worker_id, int(event.epoch), attempt, text
            )
        )
    return tuple(lines)


def explain(
    view: JobView,
    workers: Sequence[WorkerView],
    events: Sequence[Event],
    *,
    now_ms: int,
    paused: bool,
    ahead: int | None,
    worker_ttl_s: float,
    parents: Mapping[str, JobState | None] | None = None,
    held_back: Sequence[str] = (),
) -> Explanation:
    """Put together why a job is where it is.

    Args:
        view: the job.
        workers: all registered workers.
        events: the job's own events, oldest first.
        now_ms: Redis time, milliseconds.
        paused: whether the queue grants no claims.
        ahead: jobs of its class in front of it, None when it is not pending.
        worker_ttl_s: silence after which a worker is taken for gone, seconds.
        parents: jobs that it was to wait for, each with its state; None for one that the store knows no more.
        held_back: what limits hold back jobs like it now.
    """
    fits = tuple(fit(view, worker, now_ms=now_ms, worker_ttl_s=worker_ttl_s) for worker in workers)
    return Explanation(
        job_id=view.job_id,
        state=view.state,
        class_id=view.class_id,
        service=view.spec.service,
        requires=view.spec.requires,
        attempts=view.attempts,
        max_attempts=view.spec.max_attempts,
        ahead=ahead,
        summary=(
            *_summary(
                view, fits, held_back, now_ms=now_ms, paused=paused, ahead=ahead, parents=parents or {}
            ),
            *_deadline(view, now_ms),
        ),
        workers=fits,
        story=tell(events),
        story_complete=bool(events) and events[0].type in BIRTHS,
        tenant=view.spec.tenant,
    )


def _summary(
    view: JobView,
    fits: Sequence[WorkerFit],
    held_back: Sequence[str],
    *,
    now_ms: int,
    paused: bool,
    ahead: int | None,
    parents: Mapping[str, JobState | None],
) -> list[str]:
    match view.state:
        case JobState.WAITING:
            return _why_waiting(view, parents) + _nobody(view, fits)
        case JobState.PENDING:
            return _why_pending(view, fits, held_back, paused=paused, ahead=ahead)
        case JobState.SCHEDULED:
            due_s = ((view.due_ms or now_ms) - now_ms) / 1000
            lines = [f"It waits for its time: due in {due_s:.1f} s." if due_s > 0 else "It is due: the next sweep"
                     " makes it pending (a gateway must run for that)."]  # fmt: skip
            if view.error:
                lines.append(f"Its last attempt failed: {error_text(view)}.")
            return lines + _nobody(view, fits)
        case JobState.RUNNING:
            left_s = ((view.lease_until_ms or now_ms) - now_ms) / 1000
            lines = [f"{view.worker_id} runs it; its lease ends in {left_s:.1f} s unless renewed."]
            if left_s <= 0:
                lines = [
                    f"The lease of {view.worker_id} ran out; the next sweep makes the job pending again."
                ]
            if view.cancel_requested:
                lines.append("Its cancellation was requested and not yet confirmed.")
            return lines
        case JobState.DEAD:
            return [
                f"It failed for good: {error_text(view)}.",
                f"`gateway dead requeue {view.job_id}` gives it a new life.",
            ]
        case JobState.CANCELLED if view.error:
            return [f"It was cancelled: {error_text(view)}."]
        case _:
            return [f"It ended: {view.state.value}."]


def _why_waiting(view: JobView, parents: Mapping[str, JobState | None]) -> list[str]:
    """Which parents have not ended, and what their failure would mean."""
    open_ones = [
        f"{job_id} ({state.value})"
        for job_id, state in parents.items()
        if state is not None and state not in TERMINAL_STATES
    ]
    shown = ", ".join(open_ones[:5]) + (f" and {len(open_ones) - 5} more" if len(open_ones) > 5 else "")
    lines = [f"It waits for {view.parents_left} of its {len(view.spec.after)} parent(s): {shown}."]
    if not open_ones:
        lines = ["Its parents have ended: the next sweep tells it (a gateway must run for that)."]
    if view.spec.on_parent_failure is ParentPolicy.RELEASE:
        return [*lines, "A parent that ends dead or cancelled counts as done."]
    return [*lines, "A parent that ends dead or cancelled cancels it."]


def _deadline(view: JobView, now_ms: int) -> list[str]:
    """How much time its deadline leaves, for a job that has not ended."""
    if not view.expires_ms or view.terminal:
        return []
    left_s = (view.expires_ms - now_ms) / 1000
    if left_s <= 0:
        return ["Its deadline has passed: it is not claimed any more, and the next sweep ends it."]
    return [f"Its deadline is in {left_s:.1f} s: not done by then, it ends dead as expired."]


def error_text(view: JobView) -> str:
    """A job's last error for people."""
    if not view.error:
        return "no reason was recorded"
    return detail_text(msgspec.json.encode(view.error).decode())


def _nobody(view: JobView, fits: Sequence[WorkerFit]) -> list[str]:
    if any(worker.fits for worker in fits):
        return []
    if not fits:
        return ["No worker is registered: start one with `gateway run`."]
    return [f"None of {len(fits)} registered workers can run it: its requirements match nobody."]


def _why_pending(
    view: JobView, fits: Sequence[WorkerFit], held_back: Sequence[str], *, paused: bool, ahead: int | None
) -> list[str]:
    lines = ["The queue is paused: nothing is claimed until `gateway resume`."] if paused else []
    lines += [f"A limit holds it back: {reason}." for reason in held_back]
    lines += _nobody(view, fits)
    able = [worker for worker in fits if worker.fits]
    ready = [worker for worker in able if worker.ready]
    if able and not ready:
        lines.append(f"{len(able)} worker(s) could run it, but none right now.")
    elif ready:
        names = ", ".join(worker.worker_id for worker in ready[:5])
        lines.append(f"{len(ready)} worker(s) can run it now: {names}.")
    if ahead:
        lines.append(f"{ahead} job(s) of its class are ahead of it.")
    if view.recoveries:
        lines.append(f"Its lease expired {view.recoveries} time(s) without progress.")
    if view.attempts:
        lines.append(
            f"{view.attempts} of {view.spec.max_attempts} attempts failed; the last: {error_text(view)}."
        )
    return lines
