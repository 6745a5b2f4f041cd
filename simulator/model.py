"""Nouns of the simulated service: configuration, callers, replies, jobs and their executions (pure)."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway.connectors.simulation.wire import (
    STATUS_BY_KIND,
    TERMINAL_RUN_STATES,
    ErrorKind,
    ErrorReply,
    EventType,
    JobStatus,
    RunState,
    ServiceFailure,
    StreamEvent,
    WorkPayload,
)

#: The duration the CLI and the tests start from: long enough to be seen, short enough for CI.
DURATION_S_DEFAULT = 0.2
SLOTS_DEFAULT = 4
#: Jobs waiting for a slot before a submit is refused with 503.
QUEUE_MAX_DEFAULT = 10_000
#: Ended jobs that can still be queried; the oldest is forgotten beyond that, to bound a soak run.
JOBS_KEPT_MAX_DEFAULT = 20_000
#: Entries of the journal held in memory (about 300 bytes each); the counts include dropped ones.
JOURNAL_ENTRIES_MAX_DEFAULT = 200_000
#: Bounds of what a payload may ask for: they bound the events kept per job.
STEPS_MAX = 10_000
CHUNKS_MAX = 10_000
DURATION_S_MAX = 7 * 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceConfig:
    """One simulated instance.

    Attributes:
        instance: its name, in every answer.
        slots: executions at once; more wait in line, first in, first out.
        duration_s: how long the work takes when the payload does not say, in seconds.
        queue_max: jobs waiting at most.
        jobs_kept_max: ended jobs that stay known.
        journal_entries_max: journal entries that stay readable.
        models: what it says it has, when asked for its capabilities.

    Raises:
        ValueError: a number out of range.
    """

    instance: str = "simulation-0"
    slots: int = SLOTS_DEFAULT
    duration_s: float = DURATION_S_DEFAULT
    queue_max: int = QUEUE_MAX_DEFAULT
    jobs_kept_max: int = JOBS_KEPT_MAX_DEFAULT
    journal_entries_max: int = JOURNAL_ENTRIES_MAX_DEFAULT
    models: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if min(self.slots, self.queue_max, self.jobs_kept_max, self.journal_entries_max) < 1:
            raise ValueError("slots, queue_max, jobs_kept_max and journal_entries_max are at least 1")
        if not 0 <= self.duration_s <= DURATION_S_MAX:
            raise ValueError(f"duration_s = {self.duration_s}: allowed is 0 to {DURATION_S_MAX:g} seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, and whom it believes it is asking (headers of the request, empty when absent)."""

    worker: str = ""
    epoch: str = ""
    traceparent: str = ""
    instance: str = ""
    endpoint: str = ""


class Delivery(enum.Enum):
    """How a reply goes out."""

    NORMAL = enum.auto()
    #: The answer's body is not JSON.
    GARBAGE = enum.auto()
    #: The connection is reset instead of answered.
    CUT = enum.auto()
    #: Nothing is ever sent.
    HANG = enum.auto()


@dataclass(frozen=True, slots=True)
class Reply:
    """What to answer to one request; ``retry_after_s`` becomes the header."""

    status: int
    body: msgspec.Struct
    delivery: Delivery = Delivery.NORMAL
    retry_after_s: float | None = None


def refusal(
    kind: ErrorKind, message: str, *, retry_after_s: float | None = None, delivery: Delivery = Delivery.NORMAL
) -> Reply:
    """An answer other than 2xx, its status by kind."""
    failure = ServiceFailure(kind=kind, message=message, retry_after_s=retry_after_s)
    return Reply(STATUS_BY_KIND[kind], ErrorReply(error=failure), delivery, retry_after_s)


@dataclass(slots=True, eq=False)
class Job:
    """A job the service knows, as its newest execution shows it."""

    id: str
    instance: str
    state: RunState = RunState.QUEUED
    progress: float = 0.0
    message: str = "queued"
    result: Any = None
    error: ServiceFailure | None = None
    seq: int = 0
    events: list[StreamEvent] = field(default_factory=list)
    #: The terminal event with this number is never shown to a listener (lost completion).
    muted_seq: int = 0
    #: A query shows the end of the job from this moment on, which may be later than its events do.
    readable_s: float = 0.0
    forgotten: bool = False
    newest: Execution | None = None
    #: Executions queued or running: more than one only when a repeat runs again (dedupe off).
    live: list[Execution] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether the job is in a terminal state."""
        return self.state in TERMINAL_RUN_STATES

    def ended_for(self, now_s: float) -> bool:
        """Whether a query at this moment shows that the job has ended."""
        return self.ended and now_s >= self.readable_s

    def status(self, executions: int, now_s: float) -> JobStatus:
        """What a query answers at this moment."""
        if self.ended and not self.ended_for(now_s):
            return JobStatus(
                id=self.id,
                state=RunState.RUNNING,
                instance=self.instance,
                progress=self.progress,
                message="finishing",
                executions=executions,
            )
        return JobStatus(
            id=self.id,
            state=self.state,
            instance=self.instance,
            progress=self.progress,
            message=self.message,
            result=self.result,
            error=self.error,
            executions=executions,
        )

    def reset(self) -> None:
        """Begin a new run of the same id: earlier events are dropped, ``seq`` goes on."""
        self.state, self.progress, self.message = RunState.QUEUED, 0.0, "queued"
        self.result, self.error, self.muted_seq, self.readable_s = None, None, 0, 0.0
        self.events.clear()

    def add(self, kind: EventType, *, data: Any = None) -> StreamEvent:
        """Append an event that shows the job as it is now."""
        self.seq += 1
        event = StreamEvent(
            seq=self.seq,
            type=kind,
            instance=self.instance,
            progress=self.progress,
            message=self.message,
            data=data,
            result=self.result if kind is EventType.COMPLETED else None,
            error=self.error,
        )
        self.events.append(event)
        return event


class StepKind(enum.IntEnum):
    """Steps of an execution; the order is the order of steps due at the same moment."""

    PROGRESS = 0
    CHUNK = 1
    FAIL = 2
    FINISH = 3


@dataclass(frozen=True, slots=True, order=True)
class Step:
    """What an execution does ``at_s`` seconds after its start; ``index`` counts within the kind, from 1."""

    at_s: float
    kind: StepKind
    index: int


@dataclass(slots=True, eq=False)
class Execution:
    """One run of a job; everything about it is decided when it starts."""

    job: Job
    work: WorkPayload
    caller: Caller
    number: int = 0
    started_s: float = 0.0
    due_s: float = 0.0
    steps: list[Step] = field(default_factory=list)
    position: int = 0
    failure: ServiceFailure | None = None
    empty_output: bool = False
    oversize: bool = False
    lost: bool = False
    late_record: bool = False
    #: Counts the starts of one instance; 0 before this one's.
    order: int = 0
    alive: bool = True


def plan_steps(work: WorkPayload, duration_s: float, *, fails: bool) -> list[Step]:
    """All steps of an execution in order; a failing one stops half-way."""
    total_s = duration_s / 2 if fails else duration_s
    steps = [Step(duration_s * i / work.steps, StepKind.PROGRESS, i) for i in range(1, work.steps)]
    steps += [Step(duration_s * i / (work.chunks + 1), StepKind.CHUNK, i) for i in range(1, work.chunks + 1)]
    if fails:
        half = [
            i
            for i in steps
            if i.index * 2 <= (work.steps if i.kind is StepKind.PROGRESS else work.chunks + 1)
        ]
        steps = half
    steps.append(Step(total_s, StepKind.FAIL if fails else StepKind.FINISH, 1))
    return sorted(steps)
