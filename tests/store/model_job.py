"""One job of the store's model, and the form in which the store keeps it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from gateway.models import ClassId, JobId, JobSpec, JobState, LeaseRef, ParentPolicy


@dataclass(frozen=True, slots=True)
class Child:
    """Somebody who waits for a job; the order tells it from a later job with its id."""

    job_id: JobId
    order: int
    policy: ParentPolicy


@dataclass(frozen=True, slots=True)
class Ended:
    """An end that children must be told of."""

    state: JobState
    job_id: JobId
    family: tuple[Child, ...]


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
    expires_ms: int = 0
    #: When the sweep looks at its deadline; None where it does not.
    watched_ms: int | None = None
    #: Left the queue because its deadline had passed; the sweep ends it.
    set_aside: bool = False
    unique_key: str = ""
    unique_for_ms: int = 0
    parents: int = 0
    not_before_ms: int | None = None
    family: list[Child] = field(default_factory=list)

    def under(self, lease: LeaseRef) -> bool:
        """Whether this lease is the live one."""
        return self.state is JobState.RUNNING and self.epoch == lease.epoch


def record_row(job: ModelJob) -> list[str]:
    """A record in the stored order."""
    values = [
        job.state.value, job.epoch, job.order, job.class_id, job.spec.max_attempts, job.attempts,
        job.recoveries, job.yields, job.worker_id, job.reference, int(job.cancel), job.progress,
        job.number, job.submitted_ms, job.enqueued_ms, job.ended_ms, job.avoid_worker,
        job.avoid_until_ms, "" if job.settled_epoch is None else job.settled_epoch, job.settled_kind,
        job.idempotency_key, job.best, job.expires_ms,
        f"{job.unique_for_ms}:{job.unique_key}" if job.unique_key else "", job.parents, int(bool(job.family)),
        job.spec.tenant, job.spec.service,
    ]  # fmt: skip
    return [str(value) for value in values]


def family_row(family: Sequence[Child]) -> list[list[str]]:
    """Children in the stored form."""
    return [[child.job_id, str(child.order), child.policy.value] for child in family]
