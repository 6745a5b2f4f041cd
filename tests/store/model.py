"""The job store in plain Python: what each operation must answer; written from the design, not from the Lua."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gateway.matching import class_of
from gateway.models import (
    PRIORITY_MAX,
    SEQUENCE_LIMIT,
    CancelStatus,
    ClaimReply,
    ClaimRequest,
    ClassId,
    Epoch,
    Grant,
    JobId,
    JobSpec,
    JobState,
    LeaseRef,
    LeaseStatus,
    ProgressKind,
    ProgressNote,
    RequeueStatus,
    Settlement,
    SettlementKind,
    Submission,
    SubmitStatus,
    SubmitVerdict,
    SweepReport,
    Verdict,
)
from gateway.store.calls import StoreLimits

#: Progress that counts against the poison-pill limit.
BEST_STEP = 0.01
WAITING = (JobState.PENDING, JobState.SCHEDULED)


@dataclass(slots=True, kw_only=True)
class ModelJob:
    """One job, as the store must remember it."""

    job_id: JobId
    spec: JobSpec
    class_id: ClassId
    order: int
    submitted_ms: int
    enqueued_ms: int
    idempotency_key: str
    state: JobState
    due_ms: int | None = None
    lease_until_ms: int | None = None
    forget_ms: int | None = None
    died_ms: int | None = None
    epoch: int = 0
    attempts: int = 0
    recoveries: int = 0
    yields: int = 0
    worker_id: str = ""
    reference: str = ""
    cancel: bool = False
    progress: str = "0"
    best: str = "0"
    number: int = 0
    ended_ms: int = 0
    avoid_worker: str = ""
    avoid_until_ms: int = 0
    settled_epoch: int | None = None
    settled_kind: str = ""
    body: str | None = None

    def under(self, lease: LeaseRef) -> bool:
        """Whether this lease is the live one."""
        return self.state is JobState.RUNNING and self.epoch == lease.epoch


class StoreModel:
    """One queue. Times are virtual; ``now_us`` is what the scripts would read from Redis."""

    def __init__(self, limits: StoreLimits, lease_s: float, now_us: int) -> None:
        self.limits = limits
        self.lease_ms = round(lease_s * 1000)
        self.now_us = now_us
        self.jobs: dict[JobId, ModelJob] = {}
        self.keys: dict[str, JobId] = {}
        self.classes: dict[ClassId, None] = {}
        self.sequence = 0
        self.paused = False
        #: Last answered claim of each worker: request id and the leases granted.
        self.memories: dict[str, tuple[str, list[LeaseRef]]] = {}
        #: Streams outlive their jobs' records.
        self.streams: dict[JobId, list[tuple[str, int, int, str, str]]] = {}

    @property
    def now_ms(self) -> int:
        return self.now_us // 1000

    def _of_class(self, class_id: str) -> list[ModelJob]:
        """Claimable jobs of one class, best first."""
        waiting = (j for j in self.jobs.values() if j.state is JobState.PENDING and j.class_id == class_id)
        return sorted(waiting, key=lambda job: (job.order, job.job_id))

    # Submitting

    def submit(self, submissions: Sequence[Submission]) -> list[SubmitVerdict]:
        first = self.sequence + 1
        self.sequence += len(submissions)
        return [self._submit(item, first + i) for i, item in enumerate(submissions)]

    def _submit(self, item: Submission, sequence: int) -> SubmitVerdict:
        if item.job_id in self.jobs:
            return SubmitVerdict(SubmitStatus.DUPLICATE, item.job_id)
        if item.idempotency_key in self.keys:
            return SubmitVerdict(SubmitStatus.DUPLICATE, self.keys[item.idempotency_key])
        unfinished = sum(job.forget_ms is None for job in self.jobs.values())
        if unfinished >= self.limits.unfinished_max:
            return SubmitVerdict(SubmitStatus.FULL, item.job_id)
        class_id = class_of(item.spec.service, item.spec.requires, item.spec.tenant)[0].class_id
        if class_id not in self.classes and len(self.classes) >= self.limits.classes_max:
            return SubmitVerdict(SubmitStatus.TOO_MANY_CLASSES, item.job_id)
        self.classes[class_id] = None
        if item.idempotency_key:
            self.keys[item.idempotency_key] = item.job_id
        delay_ms = round(item.delay_s * 1000)
        self.jobs[item.job_id] = ModelJob(
            job_id=item.job_id,
            spec=item.spec,
            class_id=class_id,
            order=(PRIORITY_MAX - item.spec.priority) * SEQUENCE_LIMIT + sequence,
            submitted_ms=self.now_ms,
            enqueued_ms=self.now_ms,
            idempotency_key=item.idempotency_key,
            state=JobState.SCHEDULED if delay_ms else JobState.PENDING,
            due_ms=self.now_ms + delay_ms if delay_ms else None,
        )
        return SubmitVerdict(SubmitStatus.ACCEPTED, item.job_id)

    # Leases

    def claim(self, requests: Sequence[ClaimRequest]) -> list[ClaimReply]:
        return [self._claim(request) for request in requests]

    def _claim(self, request: ClaimRequest) -> ClaimReply:
        answered = self.memories.get(request.worker_id)
        jobs: list[ModelJob] = []
        if answered and answered[0] == request.request_id:
            for lease in answered[1]:
                job = self.jobs.get(lease.job_id)
                if job and job.under(lease):
                    job.lease_until_ms = self.now_ms + self.lease_ms
                    jobs.append(job)
        elif not self.paused:
            jobs = self._grant(request)
        return ClaimReply(tuple(map(self._granted, jobs)), len(self.classes), self.paused)

    def _grant(self, request: ClaimRequest) -> list[ModelJob]:
        candidates = [job for class_id in request.class_ids for job in self._of_class(class_id)]
        allowed = [
            job
            for job in sorted(candidates, key=lambda job: job.order)
            if job.avoid_worker != request.worker_id or job.avoid_until_ms <= self.now_ms
        ]
        jobs = allowed[: request.count]
        for job in jobs:
            job.state = JobState.RUNNING
            job.epoch = max(job.epoch + 1, self.now_us)
            job.worker_id = request.worker_id
            job.number = 0
            job.lease_until_ms = self.now_ms + self.lease_ms
        if jobs:
            leases = [LeaseRef(job.job_id, Epoch(job.epoch)) for job in jobs]
            self.memories[request.worker_id] = (request.request_id, leases)
        return jobs

    def _granted(self, job: ModelJob) -> Grant:
        return Grant(
            job_id=job.job_id,
            epoch=Epoch(job.epoch),
            class_id=job.class_id,
            spec=job.spec,
            attempts=job.attempts,
            recoveries=job.recoveries,
            reference=job.reference,
            cancel_requested=job.cancel,
            submitted_ms=job.submitted_ms,
            enqueued_ms=job.enqueued_ms,
            claimed_ms=self.now_ms,
        )

    def renew(self, leases: Sequence[LeaseRef]) -> list[LeaseStatus]:
        statuses = []
        for lease in leases:
            job = self.jobs.get(lease.job_id)
            if job is None or not job.under(lease):
                statuses.append(LeaseStatus.LOST)
                continue
            job.lease_until_ms = self.now_ms + self.lease_ms
            statuses.append(LeaseStatus.CANCEL if job.cancel else LeaseStatus.HELD)
        return statuses

    def attach(self, references: Sequence[tuple[LeaseRef, str]]) -> list[Verdict]:
        return [self._attach(lease, reference) for lease, reference in references]

    def _attach(self, lease: LeaseRef, reference: str) -> Verdict:
        job = self.jobs.get(lease.job_id)
        if job is None or not job.under(lease):
            return Verdict.STALE
        if job.reference == reference:
            return Verdict.DUPLICATE
        job.reference = reference
        return Verdict.ACCEPTED

    def progress(self, notes: Sequence[ProgressNote]) -> list[Verdict]:
        return [self._progress(note) for note in notes]

    def _progress(self, note: ProgressNote) -> Verdict:
        job = self.jobs.get(note.job_id)
        if job is None or not job.under(LeaseRef(note.job_id, note.epoch)):
            return Verdict.STALE
        if note.number <= job.number:
            return Verdict.DUPLICATE
        job.number = note.number
        value = f"{note.value:.6g}"
        if note.kind is ProgressKind.PROGRESS:
            job.progress = value
            if float(value) >= float(job.best) + BEST_STEP:
                job.best, job.recoveries = value, 0
        entry = (note.kind.value, note.epoch, note.number, value, note.body)
        self.streams.setdefault(note.job_id, []).append(entry)
        return Verdict.ACCEPTED

    # Ending leases

    def settle(self, settlements: Sequence[Settlement]) -> list[tuple[Verdict, JobState | None]]:
        return [self._settle(item) for item in settlements]

    def _settle(self, item: Settlement) -> tuple[Verdict, JobState | None]:
        job = self.jobs.get(item.job_id)
        if job is None:
            return Verdict.STALE, None
        first = job.settled_epoch != item.epoch
        late = job.state is JobState.PENDING and item.kind is SettlementKind.COMPLETED
        if job.epoch == item.epoch and first and (late or job.state is JobState.RUNNING):
            self._apply(job, item)
            job.lease_until_ms = None
            job.settled_epoch, job.settled_kind = item.epoch, item.kind.value
            if item.body:
                job.body = item.body
            return Verdict.ACCEPTED, job.state
        if not first and job.settled_kind == item.kind.value:
            return Verdict.DUPLICATE, job.state
        return Verdict.STALE, job.state

    def _apply(self, job: ModelJob, item: Settlement) -> None:
        if item.kind is SettlementKind.COMPLETED:
            self._end(job, JobState.COMPLETED, self.limits.retention_s)
        elif item.kind is SettlementKind.CANCELLED or job.cancel:
            self._end(job, JobState.CANCELLED, self.limits.retention_s)
        elif item.kind is SettlementKind.FAILED:
            job.attempts += 1
            if item.final or job.attempts >= job.spec.max_attempts:
                self._bury(job)
            else:
                job.reference = ""
                self._give_back(job, item)
        else:
            job.yields += 1
            if job.yields > self.limits.yields_max:
                self._bury(job)
            else:
                self._give_back(job, item)

    def _give_back(self, job: ModelJob, item: Settlement) -> None:
        delay_ms, avoid_ms = round(item.delay_s * 1000), round(item.avoid_s * 1000)
        if avoid_ms:
            job.avoid_worker = job.worker_id
            job.avoid_until_ms = self.now_ms + delay_ms + avoid_ms
        if delay_ms:
            job.state, job.due_ms = JobState.SCHEDULED, self.now_ms + delay_ms
        else:
            job.state, job.enqueued_ms = JobState.PENDING, self.now_ms

    def _end(self, job: ModelJob, state: JobState, keep_s: float) -> None:
        job.state, job.ended_ms = state, self.now_ms
        job.due_ms = job.lease_until_ms = None
        job.forget_ms = self.now_ms + round(keep_s * 1000)

    def _bury(self, job: ModelJob) -> None:
        self._end(job, JobState.DEAD, self.limits.dead_retention_s)
        job.died_ms = self.now_ms

    # Housekeeping and operators

    def sweep(self, class_ids: Sequence[str]) -> SweepReport:
        limit = self.limits.sweep_max
        counts = dict.fromkeys(("recovered", "poisoned", "cancelled", "promoted", "removed", "skipped"), 0)
        expired = self._first("lease_until_ms", self.now_ms - 1)
        for job in expired:
            counts[self._recover(job) if job.class_id in class_ids else "skipped"] += 1
        due = self._first("due_ms", self.now_ms)
        for job in due:
            if job.class_id in class_ids:
                job.state, job.enqueued_ms, job.due_ms = JobState.PENDING, self.now_ms, None
            counts["promoted" if job.class_id in class_ids else "skipped"] += 1
        old = self._first("forget_ms", self.now_ms)
        for job in old:
            del self.jobs[job.job_id]
            if job.idempotency_key:
                del self.keys[job.idempotency_key]
        counts["removed"] = len(old)
        return SweepReport(**counts, more=limit in (len(expired), len(due), len(old)))

    def _first(self, name: str, until_ms: int) -> list[ModelJob]:
        """The oldest jobs of one index up to a time, bounded."""
        timed = [
            (getattr(job, name), job.job_id) for job in self.jobs.values() if getattr(job, name) is not None
        ]
        return [self.jobs[job_id] for at, job_id in sorted(timed) if at <= until_ms][: self.limits.sweep_max]

    def _recover(self, job: ModelJob) -> str:
        job.recoveries += 1
        job.lease_until_ms = None
        if job.cancel and not job.reference:
            self._end(job, JobState.CANCELLED, self.limits.retention_s)
            return "cancelled"
        if job.recoveries > self.limits.recoveries_max:
            self._bury(job)
            job.body = "poison_pill"
            return "poisoned"
        job.state, job.enqueued_ms = JobState.PENDING, self.now_ms
        return "recovered"

    def cancel(self, jobs: Sequence[tuple[JobId, ClassId]]) -> list[CancelStatus]:
        return [self._cancel(job_id, class_id) for job_id, class_id in jobs]

    def _cancel(self, job_id: JobId, class_id: ClassId) -> CancelStatus:
        job = self.jobs.get(job_id)
        if job is None or job.class_id != class_id:
            return CancelStatus.UNKNOWN
        if job.state is JobState.RUNNING:
            job.cancel = True
            return CancelStatus.REQUESTED
        if job.state in WAITING:
            self._end(job, JobState.CANCELLED, self.limits.retention_s)
            return CancelStatus.CANCELLED
        return CancelStatus.ALREADY_ENDED

    def requeue(self, jobs: Sequence[tuple[JobId, ClassId]]) -> list[RequeueStatus]:
        return [self._requeue(job_id, class_id) for job_id, class_id in jobs]

    def _requeue(self, job_id: JobId, class_id: ClassId) -> RequeueStatus:
        job = self.jobs.get(job_id)
        if job is None or job.class_id != class_id:
            return RequeueStatus.UNKNOWN
        if job.state is not JobState.DEAD:
            return RequeueStatus.NOT_DEAD
        job.state, job.enqueued_ms, job.ended_ms = JobState.PENDING, self.now_ms, 0
        job.attempts = job.recoveries = job.yields = 0
        job.reference, job.cancel, job.progress, job.best = "", False, "0", "0"
        job.forget_ms = job.died_ms = job.body = None
        return RequeueStatus.REQUEUED

    def pause(self) -> bool:
        changed, self.paused = not self.paused, True
        return changed

    def resume(self) -> bool:
        changed, self.paused = self.paused, False
        return changed

    # Comparing

    def snapshot(self) -> dict[str, Any]:
        """Everything the store should hold, in the form of ``tests.store.bench.contents``."""
        jobs = self.jobs.values()
        return {
            "jobs": {job.job_id: self._row(job) for job in jobs},
            "specs": set(self.jobs),
            "pending": {
                class_id: [job.job_id for job in self._of_class(class_id)]
                for class_id in self.classes
                if self._of_class(class_id)
            },
            "leases": {j.job_id: j.lease_until_ms for j in jobs if j.lease_until_ms is not None},
            "scheduled": {j.job_id: j.due_ms for j in jobs if j.due_ms is not None},
            "finished": {j.job_id: j.forget_ms for j in jobs if j.forget_ms is not None},
            "dead": {j.job_id: j.died_ms for j in jobs if j.died_ms is not None},
            "results": {j.job_id: j.body for j in jobs if j.body is not None},
            "idempotency": dict(self.keys),
            "classes": set(self.classes),
            "streams": dict(self.streams),
        }

    @staticmethod
    def _row(job: ModelJob) -> list[str]:
        """A record in the stored order."""
        values = [
            job.state.value, job.epoch, job.order, job.class_id, job.spec.max_attempts, job.attempts,
            job.recoveries, job.yields, job.worker_id, job.reference, int(job.cancel), job.progress,
            job.number, job.submitted_ms, job.enqueued_ms, job.ended_ms, job.avoid_worker,
            job.avoid_until_ms, "" if job.settled_epoch is None else job.settled_epoch, job.settled_kind,
            job.idempotency_key, job.best, 0, "", 0, 0, job.spec.tenant, job.spec.service,
        ]  # fmt: skip
        return [str(value) for value in values]
