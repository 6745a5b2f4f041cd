"""What a claim must grant, in plain Python: the part of the store's model between the waiting jobs and their leases."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from gateway.models import ClaimRequest, Epoch, JobState, LeaseRef
from tests.store.model_job import ModelJob
from tests.store.shares import names_of

if TYPE_CHECKING:
    from tests.store.model import StoreModel

#: Jobs that one claim may find meant for others before it gives up.
ASIDE_MAX = 64


def grant(model: StoreModel, request: ClaimRequest) -> tuple[list[ModelJob], int]:
    """The jobs granted, and how long a rate limit holds back the next one."""
    jobs: list[ModelJob] = []
    aside: list[ModelJob] = []
    model.shares.compete(_heads(model, request, []))
    while len(jobs) < request.count and len(aside) < ASIDE_MAX:
        taken: list[ModelJob] = []
        while len(jobs) + len(taken) < request.count and (job := _next(model, request, taken, aside)):
            taken.append(job)
            model.shares.taken(job)
        if not taken:
            break
        for job in taken:
            if 0 < job.expires_ms <= model.now_ms:
                job.set_aside = True
            elif job.avoid_worker == request.worker_id and job.avoid_until_ms > model.now_ms:
                aside.append(job)
            else:
                jobs.append(job)
                _start(model, job, request.worker_id)
    if jobs:
        leases = [LeaseRef(job.job_id, Epoch(job.epoch)) for job in jobs]
        model.memories[request.worker_id] = (request.request_id, leases)
    if len(jobs) == request.count:
        return jobs, 0
    return jobs, model.shares.wait_ms(_heads(model, request, aside), model.now_us, model.running())


def _start(model: StoreModel, job: ModelJob, worker_id: str) -> None:
    model.shares.started(job, model.now_us)
    job.state = JobState.RUNNING
    job.epoch = max(job.epoch + 1, model.now_us)
    job.worker_id = worker_id
    job.number = 0
    job.lease_until_ms = model.now_ms + model.lease_ms


def _heads(model: StoreModel, request: ClaimRequest, without: Sequence[ModelJob]) -> list[ModelJob]:
    """The first job of each class, those set aside left out."""
    waiting = ([job for job in model.of_class(name) if job not in without] for name in request.class_ids)
    return [jobs[0] for jobs in waiting if jobs]


def _next(
    model: StoreModel, request: ClaimRequest, taken: Sequence[ModelJob], aside: Sequence[ModelJob]
) -> ModelJob | None:
    """The best job of the tenant whose turn it is, of those that no limit holds back."""
    running = model.running()
    reserved = Counter(name for job in taken for name in names_of(job))
    best: dict[str, ModelJob] = {}
    for job in sorted(_heads(model, request, [*taken, *aside]), key=lambda job: job.order):
        lets = {name: model.shares.lets(name, model.now_us, running) for name in names_of(job)}
        if all(let is None or let > reserved[name] for name, let in lets.items()):
            best.setdefault(job.spec.tenant, job)
    return min(best.values(), key=lambda job: (model.shares.turn(job, model.now_us), job.order), default=None)
