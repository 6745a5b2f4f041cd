"""The gateway's nouns: job, lease, settlement and their verdicts (pure: no I/O, no clock, no randomness).

The words are those of the design: a *job* waits in a *queue*, a *claim* grants a *lease* whose *epoch* fences
every later write, an *attempt* is one charged try, a *settlement* ends a lease.
"""

from __future__ import annotations

import enum
from typing import Any, NewType

import msgspec

# Structs that exist once per job are hidden from the cyclic collector (gc=False): they hold only text, numbers and
# decoded JSON, so they cannot be part of a cycle, and walking them is a measurable part of a job's cost.

JobId = NewType("JobId", str)
WorkerId = NewType("WorkerId", str)
ClassId = NewType("ClassId", str)
#: Fencing number of a lease: grows with every claim of a job, in microseconds of Redis time at least.
Epoch = NewType("Epoch", int)

PRIORITY_MIN = 0
PRIORITY_MAX = 100
PRIORITY_DEFAULT = 50
#: Seconds of waiting that weigh as much as one level of priority, unless the queue says otherwise.
AGING_S_DEFAULT = 60.0
MAX_ATTEMPTS_DEFAULT = 3
TIMEOUT_S_DEFAULT = 1800.0


class JobState(enum.StrEnum):
    """Where a job is in its life; the legal moves are in ``gateway.lifecycle``."""

    PENDING = "pending"
    SCHEDULED = "scheduled"
    WAITING = "waiting"
    RUNNING = "running"
    COMPLETED = "completed"
    DEAD = "dead"
    CANCELLED = "cancelled"


TERMINAL_STATES = frozenset({JobState.COMPLETED, JobState.DEAD, JobState.CANCELLED})


class ParentPolicy(enum.StrEnum):
    """What becomes of a job when one that it waits for ends dead or cancelled."""

    CANCEL = "cancel"
    RELEASE = "release"


class JobSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """What a submitter asks for; immutable once accepted.

    Attributes:
        service: kind of backend, for example ``comfyui``; connectors register under it.
        payload: the service's own request, any JSON value.
        requires: predicates over a worker's capabilities, see ``gateway.matching``.
        priority: 0 (last) to 100 (first); first in, first out within one priority.
        max_attempts: charged tries before the job goes to the dead letter.
        timeout_s: longest run of one attempt, in seconds.
        traceparent: W3C trace context of the submitter, or empty.
        tenant: whose job it is, for fair shares and limits; empty for nobody's in particular.
        after: ids of jobs that must have ended before this one may be claimed.
        on_parent_failure: whether a parent that ends dead or cancelled cancels this job or counts as done.
    """

    service: str
    payload: Any = None
    requires: dict[str, Any] = msgspec.field(default_factory=dict)
    priority: int = PRIORITY_DEFAULT
    max_attempts: int = MAX_ATTEMPTS_DEFAULT
    timeout_s: float = TIMEOUT_S_DEFAULT
    traceparent: str = ""
    tenant: str = ""
    after: tuple[str, ...] = ()
    on_parent_failure: ParentPolicy = ParentPolicy.CANCEL


class Firing(msgspec.Struct, frozen=True):
    """The instant of a schedule that a submission fires: taken once, by whoever comes first.

    Attributes:
        schedule: its name.
        revision: of the definition that the submission was made from; another one fences it off.
        instant_ms: the instant, Redis time in milliseconds.
        next_ms: when the schedule is due after it.
    """

    schedule: str
    revision: str
    instant_ms: int
    next_ms: int


class Submission(msgspec.Struct, frozen=True, kw_only=True):
    """One job on its way into the queue.

    Attributes:
        job_id: chosen by the submitter (so that a repeated submit is recognised).
        spec: what to do.
        idempotency_key: same key, same job; empty for none.
        delay_s: seconds to wait before the job may be claimed.
        expires_at_ms: Redis time, milliseconds: not done by then, the job ends dead; 0 for no deadline.
        expires_in_s: the same as seconds from the moment of the submission.
        unique_key: only one unfinished job at a time has it; empty for none.
        unique_for_s: how long the key stays taken after the job has ended, seconds.
        firing: the schedule's instant that this job stands for; None for a job of its own.
    """

    job_id: JobId
    spec: JobSpec
    idempotency_key: str = ""
    delay_s: float = 0.0
    expires_at_ms: int = 0
    expires_in_s: float = 0.0
    unique_key: str = ""
    unique_for_s: float = 0.0
    firing: Firing | None = None


class SubmitStatus(enum.StrEnum):
    """Answer of the store to one submission."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    FULL = "full"
    TOO_MANY_CLASSES = "too_many_classes"
    EXPIRED = "expired"
    UNKNOWN_PARENT = "unknown_parent"
    PARENT_FAILED = "parent_failed"
    TOO_MANY_CHILDREN = "too_many_children"
    FENCED = "fenced"


class SubmitVerdict(msgspec.Struct, frozen=True, gc=False):
    """``job_id`` is the stored job's id: the earlier job's for a duplicate, the parent's where it is to blame."""

    status: SubmitStatus
    job_id: JobId


class JobClass(msgspec.Struct, frozen=True):
    """All jobs with the same service, canonical requirements and tenant; each class has its own ordered set."""

    class_id: ClassId
    service: str
    requires: dict[str, Any]
    tenant: str = ""


class ClaimRequest(msgspec.Struct, frozen=True):
    """One worker's wish for up to ``count`` jobs of ``class_ids``.

    Attributes:
        request_id: same id, same answer: a lost reply is asked for again with the same id.
        worker_id: who will run the jobs.
        count: most jobs wanted now.
        slots: how many jobs the worker may run at once (recorded for the auditor).
        class_ids: classes the worker can serve now.
    """

    request_id: str
    worker_id: WorkerId
    count: int
    slots: int
    class_ids: tuple[ClassId, ...]


class Grant(msgspec.Struct, frozen=True, gc=False):
    """A claimed job with its lease.

    Attributes:
        attempts: charged attempts before this one.
        recoveries: leases of this job that expired without progress.
        reference: the service's own job reference stored by an earlier lease, or empty.
        cancel_requested: an operator asked to stop this job; the runner must not start it.
        expires_ms: the job's deadline, Redis time in milliseconds; 0 for none.
    """

    job_id: JobId
    epoch: Epoch
    class_id: ClassId
    spec: JobSpec
    attempts: int
    recoveries: int
    reference: str
    cancel_requested: bool
    submitted_ms: int
    enqueued_ms: int
    claimed_ms: int
    expires_ms: int = 0

    @property
    def timeout_s(self) -> float:
        """Longest run of this attempt, seconds: the job's own limit, or what its deadline leaves."""
        if not self.expires_ms:
            return self.spec.timeout_s
        return min(self.spec.timeout_s, max(self.expires_ms - self.claimed_ms, 0) / 1000)


class ClaimReply(msgspec.Struct, frozen=True):
    """Grants for one request; ``class_count`` tells whether the worker's view of the classes is stale.

    ``wait_ms`` is when a rate limit lets the next job through, 0 when none holds one back.
    """

    grants: tuple[Grant, ...]
    class_count: int
    paused: bool
    wait_ms: int = 0


class LeaseStatus(enum.StrEnum):
    """What a renewal found."""

    HELD = "held"
    CANCEL = "cancel"
    LOST = "lost"


class LeaseRef(msgspec.Struct, frozen=True, gc=False):
    """The pair that identifies a lease."""

    job_id: JobId
    epoch: Epoch


class Verdict(enum.StrEnum):
    """Answer of the fence to a write under a lease."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    STALE = "stale"


class SettlementKind(enum.StrEnum):
    """How a lease ended. ``failed`` charges an attempt; snoozed and released never do."""

    COMPLETED = "completed"
    FAILED = "failed"
    SNOOZED = "snoozed"
    RELEASED = "released"
    CANCELLED = "cancelled"


class Settlement(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The fenced write that ends a lease; build it with one of the named constructors.

    Attributes:
        body: JSON text kept as the job's result (completed) or last error (the others).
        detail: JSON text that goes into the event, small.
        delay_s: seconds until the job may be claimed again (failed, snoozed, released).
        final: a failure that no retry can mend: straight to the dead letter.
        avoid_s: seconds during which the same worker leaves the job to others.
    """

    job_id: JobId
    epoch: Epoch
    class_id: ClassId
    kind: SettlementKind
    body: str = ""
    detail: str = ""
    delay_s: float = 0.0
    final: bool = False
    avoid_s: float = 0.0

    @property
    def lease(self) -> LeaseRef:
        return LeaseRef(self.job_id, self.epoch)

    @classmethod
    def completed(cls, grant: Grant, *, body: str, detail: str = "") -> Settlement:
        """The service finished; ``body`` is the result as JSON."""
        return cls._of(grant, SettlementKind.COMPLETED, body=body, detail=detail)

    @classmethod
    def failed_for_retry(
        cls, grant: Grant, *, body: str, detail: str, delay_s: float, avoid_s: float
    ) -> Settlement:
        """A charged failure; the store turns it into a dead letter once the attempts are used up."""
        return cls._of(
            grant, SettlementKind.FAILED, body=body, detail=detail, delay_s=delay_s, avoid_s=avoid_s
        )

    @classmethod
    def failed_for_good(cls, grant: Grant, *, body: str, detail: str) -> Settlement:
        """A failure that a retry would only repeat."""
        return cls._of(grant, SettlementKind.FAILED, body=body, detail=detail, final=True)

    @classmethod
    def snoozed(cls, grant: Grant, *, body: str, detail: str, delay_s: float) -> Settlement:
        """The service asked to come back later; no attempt is charged."""
        return cls._of(grant, SettlementKind.SNOOZED, body=body, detail=detail, delay_s=delay_s)

    @classmethod
    def released(
        cls, grant: Grant, *, body: str = "", detail: str = "", delay_s: float = 0.0, avoid_s: float = 0.0
    ) -> Settlement:
        """Given back unfinished (shutdown, unavailable service); no attempt is charged."""
        return cls._of(
            grant, SettlementKind.RELEASED, body=body, detail=detail, delay_s=delay_s, avoid_s=avoid_s
        )

    @classmethod
    def cancelled(cls, grant: Grant, *, detail: str = "") -> Settlement:
        """Stopped on request."""
        return cls._of(grant, SettlementKind.CANCELLED, detail=detail)

    @classmethod
    def _of(cls, grant: Grant, kind: SettlementKind, **fields: Any) -> Settlement:
        return cls(job_id=grant.job_id, epoch=grant.epoch, class_id=grant.class_id, kind=kind, **fields)


class ProgressKind(enum.StrEnum):
    """Entries of a job's own stream."""

    PROGRESS = "progress"
    CHUNK = "chunk"


class ProgressNote(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One entry for a job's own stream, fenced by the lease.

    Attributes:
        number: 1, 2, 3… within the lease; a repeated number is recognised as a replay.
        value: fraction done, 0 to 1.
        body: JSON text: message of a progress entry, data of a chunk.
    """

    job_id: JobId
    epoch: Epoch
    number: int
    kind: ProgressKind = ProgressKind.PROGRESS
    value: float = 0.0
    body: str = ""


class SweepReport(msgspec.Struct, frozen=True):
    """What one sweep did; ``more`` when a bound was reached and another sweep should follow at once.

    Attributes:
        expired: jobs whose deadline passed before they were claimed.
        told: children that were told of the end of a parent.
        schedules_due: whether a schedule's instant has come.
    """

    recovered: int
    poisoned: int
    cancelled: int
    promoted: int
    removed: int
    skipped: int
    expired: int
    told: int
    schedules_due: bool
    more: bool


class CancelStatus(enum.StrEnum):
    """Answer to a cancel request for one job."""

    CANCELLED = "cancelled"
    REQUESTED = "requested"
    ALREADY_ENDED = "already_ended"
    UNKNOWN = "unknown"


class RequeueStatus(enum.StrEnum):
    """Answer to a requeue of one dead letter."""

    REQUEUED = "requeued"
    NOT_DEAD = "not_dead"
    UNIQUE_TAKEN = "unique_taken"
    UNKNOWN = "unknown"


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the store knows of one job at one moment.

    Attributes:
        expires_ms: its deadline, Redis time in milliseconds; 0 for none.
        parents_left: parents that have not ended yet.
    """

    job_id: JobId
    state: JobState
    spec: JobSpec
    class_id: ClassId
    epoch: Epoch
    attempts: int
    recoveries: int
    yields: int
    worker_id: str
    reference: str
    progress: float
    cancel_requested: bool
    submitted_ms: int
    enqueued_ms: int
    ended_ms: int
    lease_until_ms: int | None
    due_ms: int | None
    result: Any = None
    error: dict[str, Any] | None = None
    idempotency_key: str = ""
    expires_ms: int = 0
    unique_key: str = ""
    parents_left: int = 0

    @property
    def terminal(self) -> bool:
        return self.state in TERMINAL_STATES


class QueueStats(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one queue at one moment; ``oldest_pending_ms`` is the age of the longest waiting claimable job.

    ``waiting`` counts the jobs that wait for parents.
    """

    now_ms: int
    pending: dict[str, int]
    scheduled: int
    running: int
    finished: int
    dead: int
    jobs: int
    oldest_pending_ms: int
    paused: bool
    waiting: int = 0

    @property
    def pending_total(self) -> int:
        return sum(self.pending.values())
