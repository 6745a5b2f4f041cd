"""The store's port: what the gateway needs of a job store, whatever stands behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from gateway.events import Event
from gateway.limits import QueueLimits
from gateway.models import (
    CancelStatus,
    ClaimReply,
    ClaimRequest,
    ClassId,
    Firing,
    JobClass,
    JobState,
    JobView,
    LeaseRef,
    LeaseStatus,
    ProgressNote,
    QueueStats,
    RequeueStatus,
    Settlement,
    Submission,
    SubmitVerdict,
    SweepReport,
    Verdict,
)
from gateway.registration import RegisteredService
from gateway.schedules import DueSchedule
from gateway.store.fleet_scripts import ConfigureStatus, Overrides, RegisterStatus, Registration


class JobStore(Protocol):
    """Operations on one queue. Every one is safe to repeat, and every one may raise ``StoreUnavailable``."""

    @property
    def available(self) -> bool:
        """Whether the store seems reachable right now."""
        ...

    def on_wake(self, callback: Callable[[str], None]) -> None:
        """Call ``callback`` with each wake-up: a class id, ``cancel <worker>``, ``resume``, or empty for "look".

        ``changed config`` and ``changed services`` tell of the fleet's overrides and of the registry.
        """
        ...

    def on_unblocked(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` when a settlement made children of its job due: a sweep makes them pending."""
        ...

    async def submit(self, submission: Submission) -> SubmitVerdict: ...

    async def claim(self, request: ClaimRequest) -> ClaimReply: ...

    async def renew(self, leases: Sequence[LeaseRef]) -> list[LeaseStatus]: ...

    async def attach(self, lease: LeaseRef, reference: str) -> Verdict: ...

    async def progress(self, note: ProgressNote) -> Verdict: ...

    async def settle(self, settlement: Settlement) -> tuple[Verdict, JobState | None]: ...

    async def sweep(self) -> SweepReport: ...

    async def due_schedules(self) -> list[DueSchedule]: ...

    async def skip_instant(self, firing: Firing) -> bool: ...

    async def cancel(self, job_ids: Sequence[str]) -> list[CancelStatus]: ...

    async def requeue(self, job_ids: Sequence[str]) -> list[RequeueStatus]: ...

    async def limits_now(self) -> QueueLimits: ...

    async def define_limits(
        self, limits: Sequence[tuple[str, str]], *, only_new: bool
    ) -> list[tuple[bool, str]]: ...

    async def pause(self) -> bool: ...

    async def resume(self) -> bool: ...

    async def inspect(self, job_ids: Sequence[str]) -> list[JobView | None]: ...

    async def stats(self) -> QueueStats: ...

    async def classes(self) -> dict[ClassId, JobClass]: ...

    async def heartbeat(self, workers: Sequence[tuple[str, bytes]]) -> None: ...

    async def workers(self) -> dict[str, bytes]: ...

    async def overrides(self) -> Overrides: ...

    async def configure(self, revision: int, changes: Mapping[str, str]) -> tuple[ConfigureStatus, int]: ...

    async def register(self, registrations: Sequence[Registration]) -> list[RegisterStatus]: ...

    async def services(self) -> tuple[int, list[RegisteredService]]: ...

    async def events(self, after: str, *, count: int, block_s: float = 0.0) -> tuple[list[Event], str]: ...
