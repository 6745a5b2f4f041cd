"""What the store should hold, in the form in which it is read back."""

from __future__ import annotations

from typing import Any

from tests.store.model import StoreModel
from tests.store.model_job import family_row, record_row


def snapshot(model: StoreModel) -> dict[str, Any]:
    """Everything the store should hold, in the form of ``tests.store.bench.contents``."""
    jobs = model.jobs.values()
    return {
        "jobs": {job.job_id: record_row(job) for job in jobs},
        "specs": set(model.jobs),
        "pending": {
            class_id: [job.job_id for job in model.of_class(class_id)]
            for class_id in model.classes
            if model.of_class(class_id)
        },
        "leases": {j.job_id: j.lease_until_ms for j in jobs if j.lease_until_ms is not None},
        "scheduled": {j.job_id: j.due_ms for j in jobs if j.due_ms is not None},
        "finished": {j.job_id: j.forget_ms for j in jobs if j.forget_ms is not None},
        "dead": {j.job_id: j.died_ms for j in jobs if j.died_ms is not None},
        "results": {j.job_id: j.body for j in jobs if j.body is not None},
        "idempotency": dict(model.keys),
        "classes": set(model.classes),
        "streams": dict(model.streams),
        "deadlines": {j.job_id: j.watched_ms for j in jobs if j.watched_ms is not None},
        "waiting": {j.job_id: j.not_before_ms for j in jobs if j.not_before_ms is not None},
        "children": {j.job_id: family_row(j.family) for j in jobs if j.family},
        "untold": [[end.state.value, end.job_id, family_row(end.family)] for end in model.untold],
        "unique": dict(model.unique),
        "holds": dict(model.holds),
        "usage": dict(model.running()),
        "served": model.shares.served,
        "rates": model.shares.meters_us,
        "limits": {name: text for name, text in model.shares.texts.items() if name != "aging_ms"},
        **model.schedules.snapshot(),
    }
