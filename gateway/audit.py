"""The one auditor: folds a queue's events over the lifecycle table and reports every broken promise (pure).

Property tests, the simulated fleet, the chaos tests, ``simulator certify`` and ``gateway audit`` on a
production queue all use this one. It knows nothing of Redis: give it ``gateway.events`` in stream order.

Cost: constant work per event (a claim beyond a worker's slots also visits that worker's open leases); an
ended job keeps its state, epoch and end, nothing of its history.
"""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from gateway.audit_conditions import Condition, Conditions
from gateway.events import Event
from gateway.lifecycle import BIRTHS, REMARKS, TRANSITIONS, EventType, IllegalTransition, is_terminal, step
from gateway.models import Epoch, JobId, JobState

#: Violations kept with their text; further ones are counted only (a broken store would fill the memory).
VIOLATIONS_MAX_DEFAULT = 1000


class Invariant(enum.StrEnum):
    """What must hold; the name of the first promise that an event breaks."""

    LEGAL_TRANSITION = "legal_transition"
    ONE_OWNER = "one_owner"
    EPOCHS_INCREASE = "epochs_increase"
    ONE_COMPLETION = "one_completion"
    NEWEST_EPOCH_SETTLES = "newest_epoch_settles"
    TERMINAL_ABSORBS = "terminal_absorbs"
    SLOTS_RESPECTED = "slots_respected"
    ROUTED_CORRECTLY = "routed_correctly"
    ALL_FINISHED = "all_finished"
    NOTHING_LOST = "nothing_lost"
    DEADLINE_KEPT = Condition.DEADLINE_KEPT.value
    UNIQUE_HELD = Condition.UNIQUE_HELD.value
    PARENTS_FIRST = Condition.PARENTS_FIRST.value
    ONE_PER_INSTANT = Condition.ONE_PER_INSTANT.value


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise.

    Attributes:
        cursor: the event that broke it; empty for those found at the end.
    """

    invariant: Invariant
    job_id: JobId
    cursor: str
    message: str


@dataclass(frozen=True, slots=True)
class Recovery:
    """One lease that expired and the claim that followed, in Redis time, milliseconds.

    Attributes:
        worker_id: who lost the lease.
        claimed_at_ms: when the lost lease was granted; None when that event was trimmed.
        reclaimed_at_ms: when the next lease was granted; None while nobody claimed the job again.
    """

    job_id: JobId
    worker_id: str
    claimed_at_ms: int | None
    recovered_at_ms: int
    reclaimed_at_ms: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What the auditor saw.

    Attributes:
        events: events folded, remarks included.
        submitted: jobs accepted (seen at all, for a truncated stream).
        completed, dead, cancelled, unfinished: jobs by the state they are in now; their sum is ``submitted``.
        refused: settlements that the fence turned away.
        requeued: new lives that operators gave to dead jobs.
        recoveries: expired leases, in order.
        violations: the first ones, bounded.
        violations_total: how many there were in all.
    """

    events: int
    submitted: int
    completed: int
    dead: int
    cancelled: int
    unfinished: int
    refused: int
    requeued: int
    recoveries: tuple[Recovery, ...]
    violations: tuple[Violation, ...]
    violations_total: int

    @property
    def ok(self) -> bool:
        """Whether every promise held."""
        return self.violations_total == 0

    @property
    def success_rate(self) -> float:
        """Completed part of the jobs that ended by themselves (a cancelled job says nothing); 1 for none."""
        ended = self.completed + self.dead
        return self.completed / ended if ended else 1.0

    def recoveries_after(self, kill_at_ms: int, worker_ids: Collection[str] | None = None) -> list[float]:
        """Seconds from a kill to the next owner's claim, one per job that was running at that moment.

        Args:
            kill_at_ms: when the owner was killed, Redis time in milliseconds.
            worker_ids: only leases of these workers; None for all.
        """
        first: dict[JobId, Recovery] = {}
        for recovery in self.recoveries:
            ours = worker_ids is None or recovery.worker_id in worker_ids
            held = recovery.claimed_at_ms is None or recovery.claimed_at_ms <= kill_at_ms
            if ours and held and recovery.recovered_at_ms >= kill_at_ms:
                first.setdefault(recovery.job_id, recovery)
        return [
            (recovery.reclaimed_at_ms - kill_at_ms) / 1000
            for recovery in first.values()
            if recovery.reclaimed_at_ms is not None
        ]


@dataclass(slots=True)
class _Overlap:
    """More leases of one worker at one moment than it has slots. Suspicious, not yet wrong: a killed worker
    that came back has old leases which nobody serves any more. It is wrong once more of these leases than
    there are slots turn out to have been served.
    """

    slots: int
    cursor: str
    served: int = 0


@dataclass(slots=True)
class _Lease:
    worker_id: str
    claimed_at_ms: int
    overlaps: list[_Overlap] = field(default_factory=list)


@dataclass(slots=True)
class _Open:
    """A job that has not ended."""

    state: JobState
    epoch: Epoch
    lease: _Lease | None = None
    recovery: int | None = None


@dataclass(frozen=True, slots=True)
class _Ended:
    """All that is kept of a job that has ended."""

    state: JobState
    epoch: Epoch
    at_ms: int


#: The state an event leads to does not depend on the state before it; a truncated start relies on that.
_TARGETS = {event: target for events in TRANSITIONS.values() for event, target in events.items()}
#: Ends of a lease that only somebody who ran the job can cause. Released is not among them: a grant that
#: arrived too late is given back without having run.
_SERVED = frozenset(
    {
        EventType.COMPLETED,
        EventType.DEAD,
        EventType.RETRIED,
        EventType.RETRIED_LATER,
        EventType.SNOOZED,
        EventType.SNOOZED_LATER,
    }
)
_decode = msgspec.json.Decoder().decode


def _fields(detail: str) -> dict[str, Any]:
    """The JSON object in an event's detail; empty for a plain word or other text."""
    if not detail.startswith("{"):
        return {}
    try:
        decoded = _decode(detail)
    except msgspec.DecodeError:
        return {}
    return decoded if isinstance(decoded, dict) else {}


class Auditor:
    """Folds events, in stream order, into a report.

    Args:
        truncated: the stream's start may be missing (it is capped): a job first seen in the middle of its
            life is taken as found, and an acknowledged job that was never seen is not called lost.
        retention_s: seconds after which the store forgets an ended job; a submission of the same id is a new
            job from then on. None: ids are never used twice.
        violations_max: violations kept with their text.
    """

    def __init__(
        self,
        *,
        truncated: bool = False,
        retention_s: float | None = None,
        violations_max: int = VIOLATIONS_MAX_DEFAULT,
    ) -> None:
        self._truncated = truncated
        self._retention_ms = None if retention_s is None else retention_s * 1000
        self._violations_max = violations_max
        self._open: dict[JobId, _Open] = {}
        self._ended: dict[JobId, _Ended] = {}
        self._leases: dict[str, dict[JobId, _Lease]] = {}
        self._conditions = Conditions()
        self._recoveries: list[Recovery] = []
        self._violations: list[Violation] = []
        self._violations_total = 0
        self._events = 0
        self._refused = 0
        self._requeued = 0
        self._reused = dict.fromkeys(JobState, 0)

    def feed(self, events: Iterable[Event]) -> None:
        """Fold further events."""
        for event in events:
            self._events += 1
            if event.type is EventType.REFUSED:
                self._refused += 1
            if event.type not in REMARKS:
                self._fold(event)

    def state_of(self, job_id: JobId) -> JobState | None:
        """Where a job is according to its events; None for one never seen."""
        job = self._open.get(job_id) or self._ended.get(job_id)
        return job.state if job else None

    def _fold(self, event: Event) -> None:
        if event.type in BIRTHS:
            self._forget_reused(event)
        earlier = self._open.get(event.job_id) or self._ended.get(event.job_id)
        if earlier is not None or not self._truncated:
            self._check_transition(earlier.state if earlier else None, event)
            self._check_epoch(earlier.epoch if earlier else None, event)
        target = _TARGETS[event.type]
        epoch = event.epoch if earlier is None else max(earlier.epoch, event.epoch)
        job = earlier if isinstance(earlier, _Open) else _Open(target, epoch)
        self._follow_lease(job, event, target)
        if event.type is EventType.REQUEUED:
            self._requeued += 1
        if event.type is EventType.COMPLETED:
            self._check_routing(event)
        self._follow_conditions(event, target)
        if is_terminal(target):
            self._open.pop(event.job_id, None)
            self._ended[event.job_id] = _Ended(target, epoch, event.at_ms)
        else:
            job.state, job.epoch = target, epoch
            self._ended.pop(event.job_id, None)
            self._open[event.job_id] = job

    def _follow_conditions(self, event: Event, target: JobState) -> None:
        conditions = self._conditions
        found: Iterable[tuple[Condition, str]] = ()
        if event.type in BIRTHS:
            found = conditions.born(event, _fields(event.detail))
        elif event.type is EventType.CLAIMED:
            found = conditions.claimed(event)
        elif event.type is EventType.UNBLOCKED:
            found = conditions.unblocked(event)
        elif event.type is EventType.REQUEUED:
            found = conditions.requeued(event.job_id)
        elif is_terminal(target):
            conditions.ended(event.job_id, target)
        for condition, message in found:
            self._violate(Invariant(condition.value), event, message)

    def _forget_reused(self, event: Event) -> None:
        """The id of a job whose retention is over names a new job; the old one stays in the counts."""
        old = self._ended.get(event.job_id)
        if old and self._retention_ms is not None and event.at_ms - old.at_ms >= self._retention_ms:
            del self._ended[event.job_id]
            self._reused[old.state] += 1

    def _check_transition(self, state: JobState | None, event: Event) -> None:
        try:
            step(state, event.type)
        except IllegalTransition as illegal:
            if event.type is EventType.COMPLETED and state is JobState.COMPLETED:
                self._violate(Invariant.ONE_COMPLETION, event, "a second completion was accepted")
            elif event.type is EventType.CLAIMED and state is JobState.RUNNING:
                self._violate(Invariant.ONE_OWNER, event, "claimed while another lease is alive")
            elif is_terminal(state):
                self._violate(Invariant.TERMINAL_ABSORBS, event, str(illegal))
            else:
                self._violate(Invariant.LEGAL_TRANSITION, event, str(illegal))

    def _check_epoch(self, newest: Epoch | None, event: Event) -> None:
        if event.type is EventType.CLAIMED:
            if newest is not None and event.epoch <= newest:
                message = f"epoch {event.epoch} was granted after {newest}"
                self._violate(Invariant.EPOCHS_INCREASE, event, message)
        elif newest is not None and event.epoch != newest:
            message = f"{event.type.value} under epoch {event.epoch}, the newest is {newest}"
            self._violate(Invariant.NEWEST_EPOCH_SETTLES, event, message)

    def _check_routing(self, event: Event) -> None:
        fields = _fields(event.detail)
        expected, served_by = fields.get("expected"), fields.get("served_by")
        if expected and served_by and expected != served_by:
            self._violate(
                Invariant.ROUTED_CORRECTLY, event, f"served by {served_by!r} instead of {expected!r}"
            )

    def _follow_lease(self, job: _Open, event: Event, target: JobState) -> None:
        if job.lease is not None and (target is not JobState.RUNNING or event.type is EventType.CLAIMED):
            self._end_lease(job.lease, event)
        if event.type is EventType.RECOVERED:
            self._recover(job, event)
        if target is not JobState.RUNNING:
            job.lease = None
        elif event.type is EventType.CLAIMED:
            if job.recovery is not None:
                lost = self._recoveries[job.recovery]
                self._recoveries[job.recovery] = Recovery(
                    lost.job_id, lost.worker_id, lost.claimed_at_ms, lost.recovered_at_ms, event.at_ms
                )
                job.recovery = None
            job.lease = self._start_lease(event)

    def _recover(self, job: _Open, event: Event) -> None:
        claimed_at_ms = job.lease.claimed_at_ms if job.lease else None
        job.recovery = len(self._recoveries)
        self._recoveries.append(Recovery(event.job_id, event.worker_id, claimed_at_ms, event.at_ms, None))

    def _start_lease(self, event: Event) -> _Lease:
        lease = _Lease(event.worker_id, event.at_ms)
        leases = self._leases.setdefault(event.worker_id, {})
        leases[event.job_id] = lease
        slots = int(event.detail) if event.detail.isdigit() else None
        if slots is not None and len(leases) > slots:
            overlap = _Overlap(slots, event.cursor)
            for other in leases.values():
                other.overlaps.append(overlap)
        return lease

    def _end_lease(self, lease: _Lease, event: Event) -> None:
        leases = self._leases[lease.worker_id]
        del leases[event.job_id]
        if not leases:
            del self._leases[lease.worker_id]
        fields = _fields(event.detail) if lease.overlaps else {}
        # A poison pill ended by expiry. A spooled result had left its slot before it could be recorded.
        unserved = fields.get("kind") == "poison_pill" or fields.get("spooled") is True
        if event.type not in _SERVED or unserved:
            return
        for overlap in lease.overlaps:
            overlap.served += 1
            if overlap.served == overlap.slots + 1:
                message = f"worker {lease.worker_id} ran more jobs at once than its {overlap.slots} slots"
                self._add(Violation(Invariant.SLOTS_RESPECTED, event.job_id, overlap.cursor, message))

    def _violate(self, invariant: Invariant, event: Event, message: str) -> None:
        self._add(Violation(invariant, event.job_id, event.cursor, message))

    def _add(self, violation: Violation) -> None:
        self._violations_total += 1
        if len(self._violations) < self._violations_max:
            self._violations.append(violation)

    def _missing(self, expect_all_terminal: bool, acknowledged: Collection[str]) -> list[Violation]:
        found = []
        promised = {JobId(job_id): None for job_id in acknowledged}
        if not self._truncated:
            found += [
                Violation(Invariant.NOTHING_LOST, job_id, "", "acknowledged, but no event names it")
                for job_id in promised
                if job_id not in self._open and job_id not in self._ended
            ]
        if expect_all_terminal:
            for job_id, job in self._open.items():
                lost = job_id in promised
                invariant = Invariant.NOTHING_LOST if lost else Invariant.ALL_FINISHED
                found.append(Violation(invariant, job_id, "", f"still {job.state.value} at the end"))
        return found

    def finish(self, *, expect_all_terminal: bool = True, acknowledged: Collection[str] = ()) -> AuditReport:
        """Judge the end of a run as well; the auditor itself is left as it is.

        Args:
            expect_all_terminal: every accepted job must have ended.
            acknowledged: ids that the store told a submitter it had accepted.
        """
        missing = self._missing(expect_all_terminal, acknowledged)
        return self._report(missing)

    def report(self) -> AuditReport:
        """What was seen so far."""
        return self._report([])

    def _report(self, missing: list[Violation]) -> AuditReport:
        counts = dict(self._reused)
        for ended in self._ended.values():
            counts[ended.state] += 1
        kept = (self._violations + missing)[: self._violations_max]
        return AuditReport(
            events=self._events,
            submitted=len(self._open) + sum(counts.values()),
            completed=counts[JobState.COMPLETED],
            dead=counts[JobState.DEAD],
            cancelled=counts[JobState.CANCELLED],
            unfinished=len(self._open),
            refused=self._refused,
            requeued=self._requeued,
            recoveries=tuple(self._recoveries),
            violations=tuple(kept),
            violations_total=self._violations_total + len(missing),
        )
