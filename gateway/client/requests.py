"""What a submitter asks for and what it gets back; validation before anything is stored (pure)."""

from __future__ import annotations

import math
import random as random_module
import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gateway.errors import GatewayError, InvalidSubmission, QueueFull, StoreUnavailable, TooManyClasses
from gateway.matching import validate_requires
from gateway.models import (
    MAX_ATTEMPTS_DEFAULT,
    PRIORITY_DEFAULT,
    PRIORITY_MAX,
    PRIORITY_MIN,
    TIMEOUT_S_DEFAULT,
    JobId,
    JobSpec,
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
IDEMPOTENCY_KEY_CHARS_MAX = 512

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


class JobHandle(msgspec.Struct, frozen=True):
    """An accepted job; ``deduplicated`` when an earlier job (same id or idempotency key) took its place."""

    job_id: JobId
    deduplicated: bool


class SubmitOutcome(msgspec.Struct, frozen=True):
    """What became of one request of a batch, in the order of the requests."""

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
    key: Any = request.idempotency_key
    if key is not None and not (isinstance(key, str) and 0 < len(key) <= IDEMPOTENCY_KEY_CHARS_MAX):
        raise InvalidSubmission(
            f"idempotency_key must be 1 to {IDEMPOTENCY_KEY_CHARS_MAX} characters of text"
        )
    spec = JobSpec(
        service=service,
        payload=request.payload,
        requires=requires,
        priority=request.priority,
        max_attempts=request.max_attempts,
        timeout_s=float(request.timeout_s),
        traceparent=traceparent,
        tenant=check_tenant(request.tenant),
    )
    _check_size(spec, key or "", limits)
    job_id = new_job_id(random, now_ms) if request.job_id is None else check_job_id(request.job_id)
    return Submission(job_id=job_id, spec=spec, idempotency_key=key or "", delay_s=float(request.delay_s))


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
    """
    if outcome.status is SubmitStatus.FULL:
        raise QueueFull(queue, limits.unfinished_max)
    if outcome.status is SubmitStatus.TOO_MANY_CLASSES:
        raise TooManyClasses(queue, limits.classes_max)
    return outcome.handle
