"""Ownership of jobs in this process: a cancel scope per lease, and the keeper that renews them.

Owning a job *is* a cancel scope whose deadline is (moment before the claim or renewal left) + lease - margin. Only a
confirmed renewal moves it; an unknown outcome never does. So a paused or cut-off process stops by its own clock
before Redis gives its jobs to somebody else, however late the news arrives.
"""

from __future__ import annotations

import enum
import logging
import math
from collections.abc import Callable

import trio

from gateway.errors import StoreError
from gateway.models import Grant, LeaseRef, LeaseStatus
from gateway.observer import Observer
from gateway.store.base import JobStore

log = logging.getLogger(__name__)

#: Pause between renewal attempts while Redis does not answer: several fit into any sound margin.
RETRY_S = 0.25


class EndReason(enum.StrEnum):
    """Why an ownership's scope was cancelled."""

    EXPIRED = "expired"
    LOST = "lost"
    CANCEL_REQUESTED = "cancel_requested"
    INTERRUPTED = "interrupted"
    STALLED = "stalled"
    TIMED_OUT = "timed_out"


class Ownership:
    """One job that this process believes to own.

    Attributes:
        until_s: monotonic end of the belief; only a confirmed renewal moves it.
        reason: why the scope was cancelled on purpose; None while it was not.
        renew_until_s: monotonic time after which the keeper stops renewing, so that a stuck runner can't hold a
            job for ever.
        settling: its settlement is on its way, so a renewal that finds the lease gone is no surprise.
    """

    __slots__ = (
        "_limit_s", "_now_s", "_scope", "grant", "lease", "reason", "renew_until_s", "settling", "until_s",
        "worker_id",
    )  # fmt: skip

    def __init__(self, grant: Grant, worker_id: str, *, until_s: float, now_s: Callable[[], float]) -> None:
        self.grant = grant
        self.lease = LeaseRef(grant.job_id, grant.epoch)
        self.worker_id = worker_id
        self._scope: trio.CancelScope | None = None
        self.until_s = until_s
        self.reason: EndReason | None = None
        self.renew_until_s = math.inf
        self.settling = False
        self._limit_s = math.inf
        self._now_s = now_s

    @property
    def scope(self) -> trio.CancelScope:
        """Everything done for the job runs inside; its deadline is the end of the belief or of the job's own time.

        One scope for both, made when it is first wanted: every job pays for each scope, and as much again for
        moving a deadline.
        """
        if self._scope is None:
            self._scope = trio.CancelScope(deadline=min(self.until_s, self._limit_s))
        return self._scope

    def _move_deadline(self) -> None:
        if self._scope is not None:
            self._scope.deadline = min(self.until_s, self._limit_s)

    @property
    def believed(self) -> bool:
        """Whether we may still act for this job."""
        return self.reason is not EndReason.LOST and self._now_s() < self.until_s

    def limit(self, limit_s: float, *, aftercare_s: float) -> None:
        """Give the job's work a time of its own.

        Args:
            limit_s: longest work from now, seconds.
            aftercare_s: how much longer the lease is renewed, seconds.
        """
        self._limit_s = self._now_s() + limit_s
        self.renew_until_s = self._limit_s + aftercare_s
        self._move_deadline()

    def believe_until(self, until_s: float) -> None:
        """A renewal was confirmed; belief never shrinks by one."""
        self.until_s = max(self.until_s, until_s)
        self._move_deadline()

    def end(self, reason: EndReason) -> None:
        """Stop the job's work; the first reason stays, except that losing the lease outweighs the others."""
        if self.reason is None or reason is EndReason.LOST:
            self.reason = reason
        self.scope.cancel()

    def end_reason(self) -> EndReason:
        """Why the scope ended: what was set, else which deadline is over.

        The end of the belief outweighs the job's own: a paused owner whose job both ran out of time and went to
        somebody else must not stop what the successor follows.
        """
        if self.reason is None and self._limit_s <= self._now_s() < self.until_s:
            return EndReason.TIMED_OUT
        return self.reason or EndReason.EXPIRED


class LeaseKeeper:
    """Renews all leases of this process over a connection of their own, in one call per beat.

    Args:
        store: where leases live.
        lease_s: length of a lease, seconds.
        margin_s: how long before its end we stop believing, seconds.
        renew_s: beat, seconds.
        now_s: monotonic clock.
        observer: told of every ownership.
    """

    def __init__(
        self,
        store: JobStore,
        *,
        lease_s: float,
        margin_s: float,
        renew_s: float,
        now_s: Callable[[], float],
        observer: Observer,
    ) -> None:
        self._store = store
        self._belief_s = lease_s - margin_s
        self._renew_s = renew_s
        self._now_s = now_s
        self._observer = observer
        self._owned: dict[LeaseRef, Ownership] = {}
        self._poked = trio.Event()
        store.on_wake(self._on_wake)

    def __len__(self) -> int:
        return len(self._owned)

    def own(self, grant: Grant, worker_id: str, *, left_s: float) -> Ownership | None:
        """Begin to own a granted job.

        Args:
            left_s: monotonic time just before the claim was sent.

        Returns:
            None when the grant arrived too late to be trusted: it must be given back without being run.
        """
        until_s = left_s + self._belief_s
        if self._now_s() >= until_s:
            return None
        ownership = Ownership(grant, worker_id, until_s=until_s, now_s=self._now_s)
        self._owned[ownership.lease] = ownership
        self._observer.owned(ownership.lease, worker_id, until_s)
        return ownership

    def disown(self, ownership: Ownership, reason: str) -> None:
        """Stop believing; the lease is not renewed any more. Doing so twice is harmless."""
        if self._owned.pop(ownership.lease, None) is not None:
            self._observer.disowned(ownership.lease, ownership.worker_id, reason)

    def interrupt_all(self) -> None:
        """Shutdown: stop every job's work so that it can be released."""
        for ownership in list(self._owned.values()):
            ownership.end(EndReason.INTERRUPTED)

    def _on_wake(self, message: str) -> None:
        # A cancel request is told through the lease: look now instead of at the next beat.
        if message.startswith("cancel "):
            worker_id = message.removeprefix("cancel ")
            if any(ownership.worker_id == worker_id for ownership in self._owned.values()):
                self._poked.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Renew until cancelled."""
        task_status.started()
        delay_s = self._renew_s
        while True:
            with trio.move_on_after(delay_s):
                await self._poked.wait()
            self._poked = trio.Event()
            try:
                await self._renew()
                delay_s = self._renew_s
            except StoreError as error:
                log.warning("leases could not be renewed: %s", error)
                delay_s = RETRY_S

    async def _renew(self) -> None:
        left_s = self._now_s()
        due = [ownership for ownership in self._owned.values() if left_s < ownership.renew_until_s]
        if not due:
            return
        statuses = await self._store.renew([ownership.lease for ownership in due])
        for ownership, status in zip(due, statuses, strict=True):
            if ownership.lease not in self._owned:
                continue  # settled while the renewal was under way
            if status is LeaseStatus.LOST:
                if not ownership.settling:
                    log.warning("lease of job %s (epoch %d) is lost", *_ids(ownership))
                ownership.end(EndReason.LOST)
                continue
            ownership.believe_until(left_s + self._belief_s)
            self._observer.owned(ownership.lease, ownership.worker_id, ownership.until_s)
            if status is LeaseStatus.CANCEL and ownership.reason is None:
                log.info("job %s (epoch %d) is to be cancelled", *_ids(ownership))
                ownership.end(EndReason.CANCEL_REQUESTED)


def _ids(ownership: Ownership) -> tuple[str, int]:
    return ownership.lease.job_id, ownership.lease.epoch
