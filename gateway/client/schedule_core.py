"""What both clients do about schedules; see ``gateway.schedules`` for what a schedule is."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.client.core import ClientCore
from gateway.client.requests import JobHandle, JobRequest, build_submission, handle_of, new_job_id, outcome_of
from gateway.errors import InvalidSchedule, ScheduleNotFound
from gateway.models import JobId, Submission
from gateway.schedules import (
    MissedPolicy,
    PausedStatus,
    PutStatus,
    RemovedStatus,
    ResumedStatus,
    Schedule,
    ScheduleView,
    check_schedule,
    next_instant_ms,
    unique_key_of,
)

#: How often a resume starts over because the definition changed under it.
RESUME_TRIES_MAX = 3
#: What only a job of its own has.
_FOREIGN = {
    "delay_s": 0.0,
    "idempotency_key": None,
    "job_id": None,
    "expires_at_s": None,
    "unique_key": None,
    "unique_for_s": 0.0,
    "after": (),
}


async def add_schedule(
    core: ClientCore,
    name: str,
    cron: str,
    job: JobRequest,
    *,
    timezone: str,
    missed: str,
    unique: bool,
    replace: bool,
    allow_unknown_service: bool,
) -> ScheduleView:
    """See ``Client.add_schedule``."""
    for field, empty in _FOREIGN.items():
        if getattr(job, field) != empty:
            raise InvalidSchedule(f"schedule {name!r}: its jobs cannot have {field}")
    submission = build_submission(job, core.limits, random=core.random, now_ms=core.wall_ms())
    if not allow_unknown_service:
        await core.check_services({submission.spec.service})
    schedule = Schedule(
        name=name,
        cron=" ".join(cron.split()),
        timezone=timezone,
        spec=submission.spec,
        missed=_policy(missed),
        unique=unique,
        expires_in_s=submission.expires_in_s,
    )
    next_ms = check_schedule(schedule, await core.now_ms())
    revision = new_job_id(core.random, core.wall_ms())
    status = await core.ops.put_schedule(schedule, revision=revision, next_ms=next_ms, replace=replace)
    if status is PutStatus.EXISTS:
        raise InvalidSchedule(f"schedule {name!r} exists: remove it first, or ask for its replacement")
    if status is PutStatus.FULL:
        raise InvalidSchedule(
            f"queue {core.keys.queue!r} has {core.limits.schedules_max} schedules already: remove one"
        )
    return await _one(core, name)


def _policy(missed: str) -> MissedPolicy:
    try:
        return MissedPolicy(missed)
    except ValueError:
        raise InvalidSchedule(f"missed must be once or skip, not {missed!r}") from None


async def list_schedules(core: ClientCore) -> list[ScheduleView]:
    """All schedules, by name."""
    return list((await core.ops.schedules()).schedules)


async def _one(core: ClientCore, name: str) -> ScheduleView:
    for view in await list_schedules(core):
        if view.schedule.name == name:
            return view
    raise ScheduleNotFound(name, core.keys.queue)


async def remove_schedules(core: ClientCore, names: Sequence[str]) -> list[RemovedStatus]:
    """Forget schedules; their jobs stay."""
    return await core.ops.remove_schedules(names)


async def pause_schedules(core: ClientCore, names: Sequence[str]) -> list[PausedStatus]:
    """Let schedules submit nothing until they are resumed."""
    return await core.ops.pause_schedules(names)


async def resume_schedules(core: ClientCore, names: Sequence[str]) -> list[ResumedStatus]:
    """Let paused schedules go on with their next instant from now; what passed meanwhile is not caught up."""
    answers: dict[str, ResumedStatus] = dict.fromkeys(names, ResumedStatus.CHANGED)
    for _ in range(RESUME_TRIES_MAX):
        left = [name for name, answer in answers.items() if answer is ResumedStatus.CHANGED]
        if not left:
            break
        listing = await core.ops.schedules()
        known = {view.schedule.name: view for view in listing.schedules}
        answers |= {name: ResumedStatus.UNKNOWN for name in left if name not in known}
        wishes = [
            (name, view.revision, next_instant_ms(view.schedule.cron, view.schedule.timezone, listing.now_ms))
            for name in left
            if (view := known.get(name)) is not None
        ]
        statuses = await core.ops.resume_schedules(wishes) if wishes else []
        answers |= {name: status for (name, _, _), status in zip(wishes, statuses, strict=True)}
    return [answers[name] for name in names]


async def run_schedule_now(core: ClientCore, name: str) -> JobHandle:
    """Submit one job of a schedule at once, besides its instants."""
    view = await _one(core, name)
    schedule = view.schedule
    job_id = new_job_id(core.random, core.wall_ms())
    submission = Submission(
        job_id=JobId(job_id),
        spec=schedule.spec,
        expires_in_s=schedule.expires_in_s,
        unique_key=unique_key_of(schedule),
    )
    verdicts = await core.ops.submit_many([submission])
    request = JobRequest(schedule.spec.service)
    return handle_of(outcome_of(request, submission, verdicts[0]), core.keys.queue, core.limits)


__all__ = [
    "add_schedule",
    "list_schedules",
    "pause_schedules",
    "remove_schedules",
    "resume_schedules",
    "run_schedule_now",
]
