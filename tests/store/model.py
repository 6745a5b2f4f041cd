"""The job store in plain Python: what each operation must answer; written from the design, not from the Lua."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gateway.matching import class_of
from gateway.models import (
    PRIORITY_MAX,
    TERMINAL_STATES,
    CancelStatus,
    ClaimReply,
    ClaimRequest,
    ClassId,
    Epoch,
    Grant,
    JobId,
    JobState,
    LeaseRef,
    LeaseStatus,
    ParentPolicy,
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
from tests.store.model_claims import grant
from tests.store.model_job import Child, Ended, ModelJob
from tests.store.model_schedules import ScheduleModel
from tests.store.shares import Shares, names_of

#: Progress that counts against the poison-pill limit.
BEST_STEP = 0.01
UNCLAIMED = (JobState.PENDING, JobState.SCHEDULED, JobState.WAITING)
FAILED = (JobState.DEAD, JobState.CANCELLED)


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
        self.shares = Shares()
        self.paused = False
        #: Last answered claim of each worker: request id and the leases granted.
        self.memories: dict[str, tuple[str, list[LeaseRef]]] = {}
        #: Streams outlive their jobs' records.
        self.streams: dict[JobId, list[tuple[str, int, int, str, str]]] = {}
        self.unique: dict[str, JobId] = {}
        #: Until when the unique keys of ended jobs stay taken.
        self.holds: dict[str, int] = {}
        #: Ends of this call, and those that were put off.
        self.ended: list[Ended] = []
        self.untold: list[Ended] = []
        self.told = 0
        self.schedules = ScheduleModel(limits)

    @property
    def now_ms(self) -> int:
        return self.now_us // 1000

    def of_class(self, class_id: str) -> list[ModelJob]:
        """Claimable jobs of one class, best first."""
        waiting = (
            job
            for job in self.jobs.values()
            if job.state is JobState.PENDING and job.class_id == class_id and not job.set_aside
        )
        return sorted(waiting, key=lambda job: (job.order, job.job_id))

    # Submitting

    def submit(self, submissions: Sequence[Submission]) -> list[SubmitVerdict]:
        first = max(self.sequence, self.shares.tick(self.now_us)) + 1
        self.sequence = first - 1 + len(submissions)
        return [self._submit(item, first + i) for i, item in enumerate(submissions)]

    def _submit(self, item: Submission, tick: int) -> SubmitVerdict:
        if item.firing and not self.schedules.fires(item.firing, self.now_ms):
            return SubmitVerdict(SubmitStatus.FENCED, item.job_id)
        refused, parents = self._refusal(item)
        verdict = refused or SubmitVerdict(SubmitStatus.ACCEPTED, item.job_id)
        if refused is None:
            self._accept(item, tick, parents)
        if item.firing and verdict.status in (SubmitStatus.ACCEPTED, SubmitStatus.DUPLICATE):
            self.schedules.move_on(item.firing, verdict.job_id)
        return verdict

    def _refusal(self, item: Submission) -> tuple[SubmitVerdict | None, list[ModelJob]]:
        """Why it is not accepted, if so; else the parents that it has to wait for."""
        if item.job_id in self.jobs:
            return SubmitVerdict(SubmitStatus.DUPLICATE, item.job_id), []
        if item.idempotency_key in self.keys:
            return SubmitVerdict(SubmitStatus.DUPLICATE, self.keys[item.idempotency_key]), []
        if self._taken(item.unique_key):
            return SubmitVerdict(SubmitStatus.DUPLICATE, self.unique[item.unique_key]), []
        if self._deadline(item) and self._deadline(item) <= self.now_ms:
            return SubmitVerdict(SubmitStatus.EXPIRED, item.job_id), []
        parents = []
        for name in map(JobId, item.spec.after):
            parent = self.jobs.get(name)
            if parent is None:
                return SubmitVerdict(SubmitStatus.UNKNOWN_PARENT, name), []
            if parent.state in FAILED and item.spec.on_parent_failure is ParentPolicy.CANCEL:
                return SubmitVerdict(SubmitStatus.PARENT_FAILED, name), []
            if parent.state not in TERMINAL_STATES:
                if len(parent.family) >= self.limits.children_max:
                    return SubmitVerdict(SubmitStatus.TOO_MANY_CHILDREN, name), []
                parents.append(parent)
        unfinished = sum(job.forget_ms is None for job in self.jobs.values())
        if unfinished >= self.limits.unfinished_max:
            return SubmitVerdict(SubmitStatus.FULL, item.job_id), []
        class_id = class_of(item.spec.service, item.spec.requires, item.spec.tenant)[0].class_id
        if class_id not in self.classes and len(self.classes) >= self.limits.classes_max:
            return SubmitVerdict(SubmitStatus.TOO_MANY_CLASSES, item.job_id), []
        return None, parents

    def _taken(self, key: str) -> bool:
        return key in self.unique and self.holds.get(key, self.now_ms + 1) > self.now_ms

    def _deadline(self, item: Submission) -> int:
        in_ms = round(item.expires_in_s * 1000)
        return item.expires_at_ms or (self.now_ms + in_ms if in_ms else 0)

    def _accept(self, item: Submission, tick: int, parents: Sequence[ModelJob]) -> None:
        class_id = class_of(item.spec.service, item.spec.requires, item.spec.tenant)[0].class_id
        self.classes[class_id] = None
        if item.idempotency_key:
            self.keys[item.idempotency_key] = item.job_id
        if item.unique_key:
            self.unique[item.unique_key] = item.job_id
            self.holds.pop(item.unique_key, None)
        due_ms = self.now_ms + round(item.delay_s * 1000)
        later = JobState.SCHEDULED if due_ms > self.now_ms else JobState.PENDING
        job = ModelJob(
            job_id=item.job_id,
            spec=item.spec,
            class_id=class_id,
            order=self.shares.order(tick, PRIORITY_MAX - item.spec.priority),
            submitted_ms=self.now_ms,
            enqueued_ms=self.now_ms,
            idempotency_key=item.idempotency_key,
            state=JobState.WAITING if parents else later,
            due_ms=due_ms if later is JobState.SCHEDULED and not parents else None,
            not_before_ms=due_ms if parents else None,
            expires_ms=self._deadline(item),
            watched_ms=self._deadline(item) or None,
            unique_key=item.unique_key,
            unique_for_ms=round(item.unique_for_s * 1000),
            parents=len(parents),
        )
        self.jobs[item.job_id] = job
        for parent in parents:
            parent.family.append(Child(job.job_id, job.order, item.spec.on_parent_failure))

    # Leases

    def claim(self, requests: Sequence[ClaimRequest]) -> list[ClaimReply]:
        self.shares.begin(self.now_us)
        return [self._claim(request) for request in requests]

    def _claim(self, request: ClaimRequest) -> ClaimReply:
        answered = self.memories.get(request.worker_id)
        jobs: list[ModelJob] = []
        wait_ms = 0
        if answered and answered[0] == request.request_id:
            for lease in answered[1]:
                job = self.jobs.get(lease.job_id)
                if job and job.under(lease):
                    job.lease_until_ms = self.now_ms + self.lease_ms
                    jobs.append(job)
        elif not self.paused:
            jobs, wait_ms = grant(self, request)
        return ClaimReply(tuple(map(self._granted, jobs)), len(self.classes), self.paused, wait_ms)

    def running(self) -> Counter[str]:
        """Running jobs of each service and tenant."""
        running = (job for job in self.jobs.values() if job.state is JobState.RUNNING)
        return Counter(name for job in running for name in names_of(job))

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
            expires_ms=job.expires_ms,
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
        replies = [self._settle(item) for item in settlements]
        self._tell_families()
        self.told = 0
        return replies

    def _settle(self, item: Settlement) -> tuple[Verdict, JobState | None]:
        job = self.jobs.get(item.job_id)
        if job is None:
            return Verdict.STALE, None
        first = job.settled_epoch != item.epoch
        late = job.state is JobState.PENDING and item.kind is SettlementKind.COMPLETED
        if job.epoch == item.epoch and first and (late or job.state is JobState.RUNNING):
            if item.body:
                job.body = item.body
            self._apply(job, item)
            job.lease_until_ms = None
            job.settled_epoch, job.settled_kind = item.epoch, item.kind.value
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
        if 0 < job.expires_ms <= self.now_ms + delay_ms:
            self._expire(job)
            return
        job.watched_ms = job.expires_ms or None
        if avoid_ms:
            job.avoid_worker = job.worker_id
            job.avoid_until_ms = self.now_ms + delay_ms + avoid_ms
        if delay_ms:
            job.state, job.due_ms = JobState.SCHEDULED, self.now_ms + delay_ms
        else:
            job.state, job.enqueued_ms = JobState.PENDING, self.now_ms

    def _end(self, job: ModelJob, state: JobState, keep_s: float) -> None:
        job.state, job.ended_ms = state, self.now_ms
        job.due_ms = job.lease_until_ms = job.watched_ms = job.not_before_ms = None
        job.set_aside = False
        job.forget_ms = self.now_ms + round(keep_s * 1000)
        if job.unique_key and self.unique.get(job.unique_key) == job.job_id:
            if job.unique_for_ms:
                self.holds[job.unique_key] = self.now_ms + job.unique_for_ms
            else:
                del self.unique[job.unique_key]
        if job.family:
            self.ended.append(Ended(state, job.job_id, tuple(job.family)))
            job.family.clear()

    def _bury(self, job: ModelJob) -> None:
        self._end(job, JobState.DEAD, self.limits.dead_retention_s)
        job.died_ms = self.now_ms

    def _expire(self, job: ModelJob) -> None:
        self._bury(job)
        job.body = "expired"

    # Families

    def _tell_families(self) -> None:
        """Tell the children of everything that ended in this call, as far as the bound allows."""
        while self.ended:
            end = self.ended.pop(0)
            if self.told < self.limits.told_max:
                self._tell(end)
            else:
                self.untold.append(end)

    def _tell(self, end: Ended) -> None:
        for child in end.family:
            self.told += 1
            job = self.jobs.get(child.job_id)
            if job is None or job.state is not JobState.WAITING or job.order != child.order:
                continue
            if end.state is JobState.COMPLETED or child.policy is ParentPolicy.RELEASE:
                job.parents -= 1
                if not job.parents:
                    job.state, job.due_ms = JobState.SCHEDULED, max(self.now_ms, job.not_before_ms or 0)
                    job.not_before_ms = None
            else:
                self._end(job, JobState.CANCELLED, self.limits.retention_s)
                job.body = "parent_failed"

    # Housekeeping and operators

    def sweep(self, class_ids: Sequence[str]) -> SweepReport:
        limit = self.limits.sweep_max
        counts = dict.fromkeys(("recovered", "poisoned", "cancelled", "promoted", "skipped", "expired"), 0)
        lapsed = self._first("lease_until_ms", self.now_ms - 1)
        for job in lapsed:
            counts[self._recover(job) if job.class_id in class_ids else "skipped"] += 1
        late = self._first("watched_ms", self.now_ms)
        for job in late:
            if job.state is JobState.RUNNING:
                job.watched_ms = None
            elif job.state is JobState.PENDING and job.class_id not in class_ids:
                counts["skipped"] += 1
            else:
                self._expire(job)
                counts["expired"] += 1
        families = 0
        while families < limit and self.told < self.limits.told_max and self.untold:
            families += 1
            self._tell(self.untold.pop(0))
        self._tell_families()
        told, self.told = self.told, 0
        due = self._first("due_ms", self.now_ms)
        for job in due:
            if job.class_id in class_ids:
                job.state, job.enqueued_ms, job.due_ms = JobState.PENDING, self.now_ms, None
                job.watched_ms = job.expires_ms or None
            counts["promoted" if job.class_id in class_ids else "skipped"] += 1
        free = self._free_keys()
        removed = self._forget()
        bounded = limit in (len(lapsed), len(late), families, len(due), free, removed)
        return SweepReport(
            **counts,
            removed=removed,
            told=told,
            schedules_due=self.schedules.due(self.now_ms),
            more=bounded or told >= self.limits.told_max,
        )

    def _free_keys(self) -> int:
        """Unique keys whose time after their job's end is over are free."""
        over = sorted((until, key) for key, until in self.holds.items() if until <= self.now_ms)
        for _, key in over[: self.limits.sweep_max]:
            del self.unique[key], self.holds[key]
        return len(over[: self.limits.sweep_max])

    def _forget(self) -> int:
        """Old ended jobs are removed."""
        old = self._first("forget_ms", self.now_ms)
        for job in old:
            del self.jobs[job.job_id]
            if job.idempotency_key:
                del self.keys[job.idempotency_key]
        return len(old)

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
        job.watched_ms = job.expires_ms or None
        return "recovered"

    def cancel(self, jobs: Sequence[tuple[JobId, ClassId]]) -> list[CancelStatus]:
        replies = [self._cancel(job_id, class_id) for job_id, class_id in jobs]
        self._tell_families()
        self.told = 0
        return replies

    def _cancel(self, job_id: JobId, class_id: ClassId) -> CancelStatus:
        job = self.jobs.get(job_id)
        if job is None or job.class_id != class_id:
            return CancelStatus.UNKNOWN
        if job.state is JobState.RUNNING:
            job.cancel = True
            return CancelStatus.REQUESTED
        if job.state in UNCLAIMED:
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
        if job.unique_key:
            if self._taken(job.unique_key) and self.unique[job.unique_key] != job_id:
                return RequeueStatus.UNIQUE_TAKEN
            self.unique[job.unique_key] = job_id
            self.holds.pop(job.unique_key, None)
        job.expires_ms = job.parents = 0
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
