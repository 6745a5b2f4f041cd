"""The wire contract of the simulated service over HTTP (pure: data, paths, encode and decode; no I/O).

It lives on the gateway's side, because the gateway never imports the simulator; the simulator imports this
module and so cannot drift from what the connector speaks. All bodies are JSON, all times seconds.

``POST /v1/jobs`` with :class:`SubmitRequest`
    202 :class:`SubmitReply`; the id is the caller's own. A repeat while the job is alive or completed is
    *deduplicated*: same job, nothing runs again. A repeat after ``failed`` or ``cancelled`` runs it again (a
    retry). With the knob ``dedupe`` off every repeat runs again.
``GET /v1/jobs/{id}``
    200 :class:`JobStatus`; 404 when unknown (never seen, or forgotten by a restart).
``GET /v1/jobs/{id}/events?after=N``
    200, chunked ``application/x-ndjson``, one :class:`StreamEvent` per line: first those with ``seq`` above
    N, then live ones; the stream ends after a terminal event. A new run of the same id drops the events of
    the run before and goes on counting ``seq``; after a restart ``seq`` begins at 1 again, so pass
    ``after=0`` when you had to submit again. 404 when unknown.
``DELETE /v1/jobs/{id}``
    200 :class:`CancelReply`; 404 when unknown.
``GET /health``
    :class:`HealthReply`, with 200 or 503.
``GET /journal?after=N&limit=M``
    200 :class:`JournalPage`; page on with ``after`` = the last ``seq`` received, until ``summary.last_seq``.
``GET /journal/summary``
    200 :class:`JournalSummary`.
``GET /control/faults``, ``PUT /control/faults``
    200, object of all knobs; ``PUT`` changes the given ones, or answers 400 and changes nothing.
``POST /control/restart``, ``POST /control/pause``, ``POST /control/resume``
    200 :class:`ControlReply`; a restart forgets every job and resets streams, the journal survives.

Every other answer carries :class:`ErrorReply`; 429 and 503 may add ``Retry-After`` (whole seconds, the exact
wish is in the body). Every answer names the instance in the header ``x-simulation-instance``. The caller says
who it is with the ``x-gateway-*`` headers below; they are written to the journal, and a request that names
another instance or endpoint is journalled as misrouted (and served all the same).
"""

from __future__ import annotations

import enum
import urllib.parse
from typing import Any, TypeVar

import msgspec

from gateway.headers import HEADER_EPOCH, HEADER_EXPECTED_ENDPOINT, HEADER_EXPECTED_INSTANCE, HEADER_WORKER

JOBS_PATH = "/v1/jobs"
HEALTH_PATH = "/health"
JOURNAL_PATH = "/journal"
JOURNAL_SUMMARY_PATH = "/journal/summary"
CONTROL_FAULTS_PATH = "/control/faults"
CONTROL_RESTART_PATH = "/control/restart"
CONTROL_PAUSE_PATH = "/control/pause"
CONTROL_RESUME_PATH = "/control/resume"

JSON_TYPE = "application/json"
EVENTS_TYPE = "application/x-ndjson"

#: On every answer: the name of the instance that gave it.
HEADER_INSTANCE = "x-simulation-instance"
#: W3C trace context, journalled as sent.
HEADER_TRACEPARENT = "traceparent"

#: Longest accepted job id, in characters: it travels in the URL.
JOB_ID_CHARS_MAX = 200


class RunState(enum.StrEnum):
    """Where a job stands at the service."""

    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL_RUN_STATES = frozenset({RunState.COMPLETED, RunState.FAILED, RunState.CANCELLED})


class EventType(enum.StrEnum):
    """Kinds of lines in the events stream."""

    PROGRESS = "progress"
    CHUNK = "chunk"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


TERMINAL_EVENT_TYPES = frozenset({EventType.COMPLETED, EventType.FAILED, EventType.CANCELLED})


class ErrorKind(enum.StrEnum):
    """Why the service failed a job or a request; the connector classifies by this, never by the message."""

    VALIDATION = "validation"
    REFUSED = "refused"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    SERVICE_ERROR = "service_error"
    OUT_OF_MEMORY = "out_of_memory"
    AUTH = "auth"
    NOT_FOUND = "not_found"


class JournalEvent(enum.StrEnum):
    """What an entry of the journal records."""

    SUBMITTED = "submitted"
    DEDUPLICATED = "deduplicated"
    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    FORGOTTEN = "forgotten"
    MISROUTED = "misrouted"


class WireFormatError(ValueError):
    """A body or a line is not what the contract says (garbage, wrong type, truncated).

    Attributes:
        expected: name of the structure that was expected.
        detail: what the decoder found instead.
    """

    def __init__(self, expected: str, detail: str) -> None:
        super().__init__(f"not a valid {expected}: {detail}")
        self.expected = expected
        self.detail = detail


class ServiceFailure(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why something failed; ``retry_after_s`` is the service's own wish, in seconds."""

    kind: ErrorKind
    message: str
    retry_after_s: float | None = None


class FailureWish(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Payload part: fail with this error.

    Attributes:
        kind, message, retry_after_s: the error.
        times: only the first so many executions at that instance fail.
        key: whose executions ``times`` counts; empty for those of the job's own id. A gateway that runs a job
            again does so under a new id, so a wish without a key can come true for ever.
    """

    kind: ErrorKind
    message: str = "failed as the payload asked"
    retry_after_s: float | None = None
    times: int | None = None
    key: str = ""


class WorkPayload(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a payload may ask for; unknown members are ignored.

    Attributes:
        duration_s: how long the work takes, in seconds; absent means the service's own default.
        steps: progress is reported after each of so many equal steps.
        result: echoed in the result.
        fail: fail half-way instead of completing.
        chunks: so many ``chunk`` events spread evenly over the work.
    """

    duration_s: float | None = None
    steps: int = 4
    result: Any = None
    fail: FailureWish | None = None
    chunks: int = 0


class SubmitRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Body of ``POST /v1/jobs``: our id and the payload (:class:`WorkPayload` as JSON object, or null)."""

    id: str
    payload: Any = None


class SubmitReply(msgspec.Struct, frozen=True, kw_only=True):
    """The service accepted the job, or knew it already."""

    id: str
    state: RunState
    instance: str
    deduplicated: bool = False


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the service knows of a job; ``progress`` is 0..1, ``executions`` counts its starts here."""

    id: str
    state: RunState
    instance: str
    progress: float = 0.0
    message: str = ""
    result: Any = None
    error: ServiceFailure | None = None
    executions: int = 0


class StreamEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the events stream; ``seq`` grows by one per event of a job, from 1."""

    seq: int
    type: EventType
    instance: str
    progress: float = 0.0
    message: str = ""
    data: Any = None
    result: Any = None
    error: ServiceFailure | None = None

    @property
    def terminal(self) -> bool:
        """Whether the stream ends with this event."""
        return self.type in TERMINAL_EVENT_TYPES


class CancelReply(msgspec.Struct, frozen=True, kw_only=True):
    """State after a cancel; a job that had already ended keeps its state."""

    id: str
    state: RunState


class HealthReply(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """``status`` is ``ok`` (200) or ``failing`` (503); ``models`` are those that the instance has."""

    status: str
    instance: str
    models: tuple[str, ...] = ()


class ErrorReply(msgspec.Struct, frozen=True, kw_only=True):
    """Body of every answer other than 2xx."""

    error: ServiceFailure


class ControlReply(msgspec.Struct, frozen=True, kw_only=True):
    """Answer of the control verbs: what was done, and how many jobs it concerned."""

    done: str
    instance: str
    jobs: int = 0


class JournalEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing the service did.

    Attributes:
        seq: from 1, without gaps.
        at_s: seconds since the service started.
        event: what happened.
        id: the job.
        execution: number of the execution at this instance, from 1; 0 before the first start.
        worker, epoch, traceparent: the caller's headers, as sent; empty when absent.
        detail: for misrouted requests, whom the caller meant; for failures, the error kind.
    """

    seq: int
    at_s: float
    event: JournalEvent
    id: str = ""
    execution: int = 0
    worker: str = ""
    epoch: str = ""
    traceparent: str = ""
    detail: str = ""


class JournalSummary(msgspec.Struct, frozen=True, kw_only=True):
    """The journal in numbers.

    Attributes:
        instance: whose journal.
        executions_by_job: starts per job id, over all restarts.
        completed: distinct jobs that finished at least once.
        duplicates: completions beyond the first of their job, that is, work done twice.
        misrouted: requests meant for another instance.
        last_seq: number of the newest entry.
        dropped: oldest entries no longer kept (the counts above still include them).
    """

    instance: str
    executions_by_job: dict[str, int]
    completed: int
    duplicates: int
    misrouted: int
    last_seq: int = 0
    dropped: int = 0


class JournalPage(msgspec.Struct, frozen=True, kw_only=True):
    """Entries in order of ``seq``, with the summary of the whole journal."""

    entries: tuple[JournalEntry, ...]
    summary: JournalSummary


#: HTTP status of an :class:`ErrorReply`, by kind.
STATUS_BY_KIND: dict[ErrorKind, int] = {
    ErrorKind.VALIDATION: 400,
    ErrorKind.AUTH: 401,
    ErrorKind.REFUSED: 403,
    ErrorKind.NOT_FOUND: 404,
    ErrorKind.RATE_LIMITED: 429,
    ErrorKind.SERVICE_ERROR: 500,
    ErrorKind.OUT_OF_MEMORY: 507,
    ErrorKind.UNAVAILABLE: 503,
}


def job_path(job_id: str) -> str:
    """Path of one job; the id is percent-encoded, slashes included."""
    return f"{JOBS_PATH}/{urllib.parse.quote(job_id, safe='')}"


def events_path(job_id: str, after: int = 0) -> str:
    """Path and query of a job's events stream, from the first event with ``seq`` above ``after``."""
    return f"{job_path(job_id)}/events?after={after}"


def journal_path(after: int = 0, limit: int | None = None) -> str:
    """Path and query of the journal, from the first entry with ``seq`` above ``after``."""
    tail = "" if limit is None else f"&limit={limit}"
    return f"{JOURNAL_PATH}?after={after}{tail}"


def caller_headers(
    *,
    worker: str = "",
    epoch: int | None = None,
    instance: str = "",
    endpoint: str = "",
    traceparent: str = "",
) -> dict[str, str]:
    """Headers by which a gateway says who it is and whom it believes to call; absent values are left out."""
    named = {
        HEADER_WORKER: worker,
        HEADER_EPOCH: "" if epoch is None else str(epoch),
        HEADER_EXPECTED_INSTANCE: instance,
        HEADER_EXPECTED_ENDPOINT: endpoint,
        HEADER_TRACEPARENT: traceparent,
    }
    return {name: value for name, value in named.items() if value}


T = TypeVar("T")


def encode(value: msgspec.Struct) -> bytes:
    """One structure as JSON, without a line end (append one for the events stream)."""
    return msgspec.json.encode(value)


def decode(data: bytes | bytearray | memoryview, kind: type[T]) -> T:
    """Decode one JSON body or line as ``kind``; unknown members are ignored.

    Raises:
        WireFormatError: the bytes are not JSON, or not of that structure.
    """
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireFormatError(kind.__name__, str(error)) from error


def decode_submit(data: bytes) -> SubmitReply:
    """Decode the answer to a submit; see :func:`decode` for errors."""
    return decode(data, SubmitReply)


def decode_status(data: bytes) -> JobStatus:
    """Decode the answer to a query; see :func:`decode` for errors."""
    return decode(data, JobStatus)


def decode_event(line: bytes) -> StreamEvent:
    """Decode one line of the events stream; see :func:`decode` for errors."""
    return decode(line, StreamEvent)


def decode_failure(data: bytes) -> ServiceFailure | None:
    """The failure in the body of an answer other than 2xx, or None when the body is not the service's own."""
    try:
        return decode(data, ErrorReply).error
    except WireFormatError:
        return None


def decode_payload(payload: Any) -> WorkPayload:
    """Read a payload (already parsed JSON) as the work it asks for; None means all defaults.

    Raises:
        WireFormatError: not an object, or a member of the wrong type.
    """
    try:
        return msgspec.convert({} if payload is None else payload, type=WorkPayload)
    except msgspec.ValidationError as error:
        raise WireFormatError(WorkPayload.__name__, str(error)) from error
