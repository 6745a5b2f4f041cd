"""The clients' verbs about schedules, mixed into ``Client`` and ``AsyncClient``."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.client import schedule_core as verbs
from gateway.client.blocking import finish
from gateway.client.core import ClientCore
from gateway.client.requests import JobHandle, JobRequest
from gateway.schedules import PausedStatus, RemovedStatus, ResumedStatus, ScheduleView


class ScheduleVerbs:
    """Mixed into ``Client``."""

    core: ClientCore

    def add_schedule(
        self,
        name: str,
        cron: str,
        job: JobRequest,
        *,
        timezone: str = "UTC",
        missed: str = "once",
        unique: bool = False,
        replace: bool = False,
        allow_unknown_service: bool = False,
    ) -> ScheduleView:
        """Submit a job at every instant of a cron expression, exactly one per instant, whichever gateways run.

        Args:
            name: of the schedule; its jobs' ids are ``schedule:<name>:<instant>``.
            cron: five fields (minute, hour, day of month, month, day of week), or six with the second first.
            job: what each job does; it has no id, keys, delay, parents or absolute deadline.
            timezone: IANA name; the fields are read on that zone's clock.
            missed: after a time without gateways, ``once`` fires one job for all missed instants, ``skip`` none.
            unique: no new job while an earlier one of this schedule has not ended.
            replace: take the place of a schedule of the same name.
            allow_unknown_service: also accept a service that nobody serves yet.

        Raises:
            InvalidSchedule: malformed, or there is one of that name; nothing was stored.
            InvalidSubmission: the job is malformed; nothing was stored.
            UnknownService: no installed connector and no live worker serves it; nothing was stored.
        """
        return finish(
            verbs.add_schedule(
                self.core,
                name,
                cron,
                job,
                timezone=timezone,
                missed=missed,
                unique=unique,
                replace=replace,
                allow_unknown_service=allow_unknown_service,
            )
        )

    def schedules(self) -> list[ScheduleView]:
        """All schedules, by name."""
        return finish(verbs.list_schedules(self.core))

    def remove_schedules(self, names: Sequence[str]) -> list[RemovedStatus]:
        """Forget schedules; jobs that they submitted stay."""
        return finish(verbs.remove_schedules(self.core, names))

    def pause_schedules(self, names: Sequence[str]) -> list[PausedStatus]:
        """Let schedules submit nothing until they are resumed."""
        return finish(verbs.pause_schedules(self.core, names))

    def resume_schedules(self, names: Sequence[str]) -> list[ResumedStatus]:
        """Let paused schedules go on with their next instant from now; what passed meanwhile is not caught up."""
        return finish(verbs.resume_schedules(self.core, names))

    def run_schedule_now(self, name: str) -> JobHandle:
        """Submit one job of a schedule at once, besides its instants.

        Raises:
            ScheduleNotFound: there is none of that name.
            QueueFull: too many unfinished jobs; nothing was stored.
        """
        return finish(verbs.run_schedule_now(self.core, name))


class AsyncScheduleVerbs:
    """Mixed into ``AsyncClient``; arguments and errors as of ``Client``."""

    @property
    def core(self) -> ClientCore:
        """The verbs; ``AsyncClient`` has them while it is open."""
        raise NotImplementedError

    async def add_schedule(
        self,
        name: str,
        cron: str,
        job: JobRequest,
        *,
        timezone: str = "UTC",
        missed: str = "once",
        unique: bool = False,
        replace: bool = False,
        allow_unknown_service: bool = False,
    ) -> ScheduleView:
        """Submit a job at every instant of a cron expression."""
        return await verbs.add_schedule(
            self.core,
            name,
            cron,
            job,
            timezone=timezone,
            missed=missed,
            unique=unique,
            replace=replace,
            allow_unknown_service=allow_unknown_service,
        )

    async def schedules(self) -> list[ScheduleView]:
        """All schedules, by name."""
        return await verbs.list_schedules(self.core)

    async def remove_schedules(self, names: Sequence[str]) -> list[RemovedStatus]:
        """Forget schedules; jobs that they submitted stay."""
        return await verbs.remove_schedules(self.core, names)

    async def pause_schedules(self, names: Sequence[str]) -> list[PausedStatus]:
        """Let schedules submit nothing until they are resumed."""
        return await verbs.pause_schedules(self.core, names)

    async def resume_schedules(self, names: Sequence[str]) -> list[ResumedStatus]:
        """Let paused schedules go on with their next instant from now."""
        return await verbs.resume_schedules(self.core, names)

    async def run_schedule_now(self, name: str) -> JobHandle:
        """Submit one job of a schedule at once, besides its instants."""
        return await verbs.run_schedule_now(self.core, name)
