"""What a submitter asks for and what it gets back; validation before anything is stored (pure)."""

from __future__ import annotations

import math
import random as random_module
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gateway.errors import (
    GatewayError,
    InvalidSubmission,
    QueueFull,
    StoreUnavailable,
    TooManyChildren,
    TooManyClasses,
)
from gateway.matching import validate_requires
from gateway.models import (
    MAX_ATTEMPTS_DEFAULT,
    PRIORITY_DEFAULT,
    PRIORITY_MAX,
    PRIORITY_MIN,
    TIMEOUT_S_DEFAULT,
    JobId,
    JobSpec,
    ParentPolicy,
    Submission,
    SubmitStatus,
    SubmitVerdict,
)
from gateway.store.calls import StoreLimits
from gateway.store.scripts import encode_spec

#: Deepest nesting of a payload: far below the recursion limits of the JSON readers it will pass through.
PAYLOAD_DEPTH_MAX = 100
ATTEMPTS_MAX = 1000
#: A year: longer delays and time-outs are taken for a mistake in the unit.
SECONDS_MAX = 365 * 24 * 3600.0
KEY_CHARS_MAX = 512
#: The year 9999: later deadlines are taken for milliseconds.
EPOCH_S_MAX = 253_402_300_799.0
_REFUSALS = {
    SubmitStatus.EXPIRED: "the deadline has passed already: nothing was stored",
    SubmitStatus.UNKNOWN_PARENT: "after: no job {id!r} in this queue (unknown, or its retention ended)",
    SubmitStatus.PARENT_FAILED: "after: job {id!r} has ended dead or cancelled; on_parent_failure release would run "
    "this one all the same",
    SubmitStatus.FENCED: "another gateway fired this instant",
}

_SERVICE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}")
_TENANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:@-]{0,63}")


class JobRequest(msgspec.Struct, frozen=True):
    """One job to submit.

    Attributes:
        service: kind of backend.
        payload: the service's own request, any JSON value.
        requires: predicates over a worker's capabilities, see ``gateway.matching``; None for none.
        priority: 0 (last) to 100 (first).
        max_attempts: charged tries before the dead letter.
        timeout_s: longest run of one attempt, seconds.
        delay_s: seconds before the job may be claimed.
        idempotency_key: same key, same job, as long as that job is kept; None for none.
        job_id: chosen id; None for a fresh one. 1 to 128 letters, digits, ``_ . : -``.
        tenant: whose job it is, 1 to 64 letters, digits, ``_ . : @ -``; empty for nobody's in particular.
        expires_in_s: deadline, seconds after the submission by the clock of Redis; None for none.
        expires_at_s: deadline, seconds since the epoch; None for none.
        unique_key: one unfinished job at a time has it; a second submit gets that job's id. None for none.
        unique_for_s: how long the key stays taken after the job has ended, seconds.
        after: ids of jobs that must have completed before; they are submitted already, or earlier in the same batch.
        on_parent_failure: ``cancel`` this job, or ``release`` it, when one of them ends dead or cancelled.
    """

    service: str
    payload: Any = None
    requires: Mapping[str, Any] | None = None
    priority: int = PRIORITY_DEFAULT
    max_attempts: int = MAX_ATTEMPTS_DEFAULT
    timeout_s: float = TIMEOUT_S_DEFAULT
    delay_s: float = 0.0
    idempotency_key: str | None = None
    job_id: str | None = None
    tenant: str = ""
    expires_in_s: float | None = None
    expires_at_s: float | None = None
    unique_key: str | None = None
    unique_for_s: float = 0.0
    after: Sequence[str] = ()
    on_parent_failure: str = ParentPolicy.CANCEL.value


class JobHandle(msgspec.Struct, frozen=True):
    """An accepted job; ``deduplicated`` when an earlier job (same id or key) took its place."""

    job_id: JobId
    deduplicated: bool


class SubmitOutcome(msgspec.Struct, frozen=True):
    """What became of one request of a batch, in the order of the requests; ``job_id`` is the parent's where a parent
    is the reason of a refusal.
    """

    request: JobRequest
    status: SubmitStatus
    job_id: JobId
    deduplicated: bool

    @property
    def stored(self) -> bool:
        return self.status in (SubmitStatus.ACCEPTED, SubmitStatus.DUPLICATE)

    @property
    def handle(self) -> JobHandle:
        return JobHandle(self.job_id, self.deduplicated)


class BatchRefused(GatewayError):
    """The store refused a part of a batch; ``refused`` has those requests, everything else is stored."""

    exit_code = 4

    def __init__(self, queue: str, result: BatchResult) -> None:
        refused = result.refused
        reasons = ", ".join(sorted({outcome.status.value for outcome in refused}))
        super().__init__(
            f"queue {queue!r} refused {len(refused)} of {len(result.outcomes)} jobs ({reasons}); "
            "the others are stored: submit the refused ones again later"
        )
        self.result = result
        self.refused = refused


class BatchInterrupted(StoreUnavailable):
    """Redis was lost in the middle of a batch.

    Attributes:
        result: outcomes of the requests that were answered.
        unconfirmed: the other requests, each with its ``job_id`` filled in: submitting exactly these again is safe,
            whether or not some of them were stored.
    """

    def __init__(
        self, cause: StoreUnavailable, result: BatchResult, unconfirmed: Sequence[JobRequest]
    ) -> None:
        super().__init__(
            f"{cause}; {len(result.outcomes)} jobs were answered, {len(unconfirmed)} are unconfirmed and safe to "
            "submit again with their ids",
            outcome_unknown=cause.outcome_unknown,
        )
        self.result = result
        self.unconfirmed = tuple(unconfirmed)


class BatchResult(msgspec.Struct, frozen=True):
    """Outcome of every request of a batch, in order. A refusal is never an exception by itself: look at ``refused``
    or call ``raise_for_refused``.
    """

    queue: str
    outcomes: tuple[SubmitOutcome, ...]

    @property
    def accepted(self) -> tuple[SubmitOutcome, ...]:
        """Requests that are stored now, deduplicated ones included."""
        return tuple(outcome for outcome in self.outcomes if outcome.stored)

    @property
    def refused(self) -> tuple[SubmitOutcome, ...]:
        """Requests of which nothing was stored."""
        return tuple(outcome for outcome in self.outcomes if not outcome.stored)

    def raise_for_refused(self) -> None:
        """Turn refusals into an exception.

        Raises:
            BatchRefused: at least one request was refused.
        """
        if self.refused:
            raise BatchRefused(self.queue, self)


def new_job_id(random: random_module.Random, now_ms: int) -> JobId:
    """A fresh id that sorts by time, in the layout of UUID version 7 (RFC 9562 §5.7).

    Args:
        random: source of the 74 random bits.
        now_ms: wall clock, milliseconds since the epoch.
    """
    head = (now_ms & (2**48 - 1)) << 80 | 0x7 << 76 | random.getrandbits(12) << 64
    text = f"{head | 0b10 << 62 | random.getrandbits(62):032x}"
    return JobId("-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:])))


def check_service(service: Any) -> str:
    """Check a service's name.

    Raises:
        InvalidSubmission: other characters or length.
    """
    if not isinstance(service, str) or not _SERVICE.fullmatch(service):
        raise InvalidSubmission(
            f"service {service!r}: use 1 to 64 letters, digits, '.', '-' or '_', beginning with a letter or digit"
        )
    return service


def check_job_id(job_id: Any) -> JobId:
    """Check an id chosen by the submitter.

    Raises:
        InvalidSubmission: other characters or length.
    """
    if not isinstance(job_id, str) or not _JOB_ID.fullmatch(job_id):
        raise InvalidSubmission(
            f"job_id {job_id!r}: use 1 to 128 letters, digits, '.', '_', ':' or '-', beginning with a letter or digit"
        )
    return JobId(job_id)


def check_tenant(tenant: Any) -> str:
    """Check a tenant's name; empty is nobody's.

    Raises:
        InvalidSubmission: other characters or length.
    """
    if not isinstance(tenant, str) or (tenant and not _TENANT.fullmatch(tenant)):
        raise InvalidSubmission(
            f"tenant {tenant!r}: use 1 to 64 letters, digits, '.', '_', ':', '@' or '-', beginning with a letter or "
            "digit"
        )
    return tenant


def check_payload(payload: Any) -> None:
    """Accept exactly what JSON can hold and give back unchanged.

    Raises:
        InvalidSubmission: names the place of the first value that JSON has no form for.
    """
    waiting: list[tuple[str, Any, int]] = [("payload", payload, 1)]
    while waiting:
        where, value, depth = waiting.pop()
        if depth > PAYLOAD_DEPTH_MAX:
            raise InvalidSubmission(f"payload is nested deeper than {PAYLOAD_DEPTH_MAX} levels")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise InvalidSubmission(f"{where}: JSON keys are text, not {key!r}")
            waiting += [(f"{where}.{key}", item, depth + 1) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(f"{where}[{index}]", item, depth + 1) for index, item in enumerate(value)]
        elif isinstance(value, float) and not math.isfinite(value):
            raise InvalidSubmission(f"{where}: JSON has no {value!r}")
        elif value is not None and not isinstance(value, str | int | float):
            raise InvalidSubmission(f"{where}: JSON has no {type(value).__name__}")


def _check_whole(name: str, value: Any, low: int, high: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidSubmission(f"{name} must be a whole number from {low} to {high}, not {value!r}")


def _check_seconds(name: str, value: Any, *, zero_allowed: bool) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (0 <= value <= SECONDS_MAX) or (value == 0 and not zero_allowed):
        low = "0" if zero_allowed else "more than 0"
        raise InvalidSubmission(f"{name} must be {low} to {SECONDS_MAX:.0f} seconds, not {value!r}")


def build_submission(
    request: JobRequest,
    limits: StoreLimits,
    *,
    random: random_module.Random,
    now_ms: int,
    traceparent: str = "",
) -> Submission:
    """Validate one request and give it its id.

    Args:
        request: what the submitter wrote.
        limits: bounds of the queue.
        random: source of a fresh id.
        now_ms: wall clock, milliseconds since the epoch.
        traceparent: W3C trace context to carry, or empty.

    Raises:
        InvalidSubmission: says which part is wrong and what would be right.
    """
    service = check_service(request.service)
    check_payload(request.payload)
    given: Any = request.requires  # callers need not be typed
    requires = validate_requires(dict(given) if isinstance(given, Mapping) else given)
    _check_whole("priority", request.priority, PRIORITY_MIN, PRIORITY_MAX)
    _check_whole("max_attempts", request.max_attempts, 1, ATTEMPTS_MAX)
    _check_seconds("timeout_s", request.timeout_s, zero_allowed=False)
    _check_seconds("delay_s", request.delay_s, zero_allowed=True)
    _check_key("idempotency_key", request.idempotency_key)
    _check_key("unique_key", request.unique_key)
    job_id = new_job_id(random, now_ms) if request.job_id is None else check_job_id(request.job_id)
    expires_at_ms = _check_conditions(request)
    spec = JobSpec(
        service=service,
        payload=request.payload,
        requires=requires,
        priority=request.priority,
        max_attempts=request.max_attempts,
        timeout_s=float(request.timeout_s),
        traceparent=traceparent,
        tenant=check_tenant(request.tenant),
        after=_check_parents(request, job_id, limits),
        on_parent_failure=_check_policy(request.on_parent_failure),
    )
    _check_size(spec, (request.idempotency_key or "") + (request.unique_key or ""), limits)
    return Submission(
        job_id=job_id,
        spec=spec,
        idempotency_key=request.idempotency_key or "",
        delay_s=float(request.delay_s),
        expires_at_ms=expires_at_ms,
        expires_in_s=float(request.expires_in_s or 0.0),
        unique_key=request.unique_key or "",
        unique_for_s=float(request.unique_for_s),
    )


def _check_key(name: str, key: Any) -> None:
    if key is not None and not (isinstance(key, str) and 0 < len(key) <= KEY_CHARS_MAX):
        raise InvalidSubmission(f"{name} must be 1 to {KEY_CHARS_MAX} characters of text")


def _check_conditions(request: JobRequest) -> int:
    """Check deadline and unique key; returns an absolute deadline in milliseconds, 0 for none."""
    in_s, at_s = request.expires_in_s, request.expires_at_s
    if in_s is not None and at_s is not None:
        raise InvalidSubmission("expires_in_s and expires_at_s: give one of them")
    if in_s is not None:
        _check_seconds("expires_in_s", in_s, zero_allowed=False)
        if request.delay_s >= in_s:
            raise InvalidSubmission(
                f"delay_s {request.delay_s:g} leaves no time before expires_in_s {in_s:g}"
            )
    _check_seconds("unique_for_s", request.unique_for_s, zero_allowed=True)
    if request.unique_for_s and request.unique_key is None:
        raise InvalidSubmission("unique_for_s says how long a unique_key is held: give unique_key too")
    if at_s is None:
        return 0
    moment: Any = at_s  # callers need not be typed
    number = isinstance(moment, int | float) and not isinstance(moment, bool)
    if not number or not 0 < moment <= EPOCH_S_MAX:
        raise InvalidSubmission(f"expires_at_s must be seconds since the epoch, not {moment!r}")
    return max(round(float(moment) * 1000), 1)


def _check_parents(request: JobRequest, job_id: JobId, limits: StoreLimits) -> tuple[str, ...]:
    given: Any = request.after  # callers need not be typed
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InvalidSubmission(f"after must be a list of job ids, not {given!r}")
    parents = tuple(dict.fromkeys(check_job_id(parent) for parent in given))
    if len(parents) > limits.parents_max:
        raise InvalidSubmission(
            f"after names {len(parents)} jobs; at most {limits.parents_max} are allowed: put jobs between them that "
            "gather some each"
        )
    if job_id in parents:
        raise InvalidSubmission(f"after: job {job_id!r} cannot wait for itself")
    return parents


def _check_policy(policy: Any) -> ParentPolicy:
    try:
        return ParentPolicy(policy)
    except ValueError:
        raise InvalidSubmission(f"on_parent_failure must be cancel or release, not {policy!r}") from None


def _check_size(spec: JobSpec, key: str, limits: StoreLimits) -> None:
    try:
        size_bytes = len(encode_spec(spec))
        key.encode()
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidSubmission(f"the job cannot be written as JSON: {error}") from None
    if size_bytes > limits.payload_bytes_max:
        raise InvalidSubmission(
            f"the job is {size_bytes} bytes of JSON; at most {limits.payload_bytes_max} are allowed: store large "
            "inputs elsewhere and pass a reference"
        )


def outcome_of(request: JobRequest, submission: Submission, verdict: SubmitVerdict) -> SubmitOutcome:
    """Join a request with the store's answer.

    A duplicate of an id that we made up ourselves a moment ago is our own earlier try, whose reply was lost.
    """
    ours = request.job_id is None and verdict.job_id == submission.job_id
    duplicate = verdict.status is SubmitStatus.DUPLICATE and not ours
    status = SubmitStatus.ACCEPTED if verdict.status is SubmitStatus.DUPLICATE and ours else verdict.status
    return SubmitOutcome(request, status, verdict.job_id, duplicate)


def handle_of(outcome: SubmitOutcome, queue: str, limits: StoreLimits) -> JobHandle:
    """The handle of a stored job.

    Raises:
        QueueFull: the queue holds as many unfinished jobs as it may.
        TooManyClasses: the queue knows as many different requirements as it may.
        TooManyChildren: as many jobs as may wait for one of its parents.
        InvalidSubmission: its deadline has passed, or a parent is unknown or has failed.
    """
    if outcome.status is SubmitStatus.FULL:
        raise QueueFull(queue, limits.unfinished_max)
    if outcome.status is SubmitStatus.TOO_MANY_CLASSES:
        raise TooManyClasses(queue, limits.classes_max)
    if outcome.status is SubmitStatus.TOO_MANY_CHILDREN:
        raise TooManyChildren(outcome.job_id, limits.children_max)
    if not outcome.stored:
        raise InvalidSubmission(_REFUSALS[outcome.status].format(id=outcome.job_id))
    return outcome.handle
