"""The job store on Redis: two connections, one for work and one for renewals, and group commit over the scripts."""

from __future__ import annotations

import random as random_module
from collections.abc import Callable, Sequence
from typing import Any

import trio

from gateway.models import (
    ClaimReply,
    ClaimRequest,
    JobState,
    LeaseRef,
    LeaseStatus,
    ProgressNote,
    Settlement,
    Submission,
    SubmitVerdict,
    Verdict,
)
from gateway.store import scripts
from gateway.store.calls import BATCH_MAX, StoreLimits
from gateway.store.connection import RedisConnect, RedisLink
from gateway.store.groupcommit import GroupCommit
from gateway.store.keys import QueueKeys
from gateway.store.operations import QueueOperations


class RedisStore(QueueOperations):
    """``JobStore`` on Redis.

    Args:
        connect: makes a fresh connection (the simulation passes its own).
        keys: names of the queue's keys.
        limits: bounds that the scripts enforce.
        lease_s: length of a lease, seconds.
        instance: unique per process; tells two processes with the same worker ids apart.
        random: source of jitter.
        command_timeout_s: longest wait for one reply, seconds.
        connect_timeout_s: longest wait for one connection attempt, seconds.
    """

    def __init__(
        self,
        connect: RedisConnect,
        keys: QueueKeys,
        limits: StoreLimits,
        *,
        lease_s: float,
        instance: str,
        random: random_module.Random,
        command_timeout_s: float = 3.0,
        connect_timeout_s: float = 3.0,
    ) -> None:
        def link(name: str, **options: Any) -> RedisLink:
            return RedisLink(
                connect,
                name=name,
                command_timeout_s=command_timeout_s,
                connect_timeout_s=connect_timeout_s,
                random=random,
                **options,
            )

        self._work = link("work")
        # Renewals have a connection of their own: a slow settle must not eat into the leases.
        self._renewals = link("renewals")
        self._listener = link("wake-ups", subscribe=keys.wake, on_message=self._wake)
        super().__init__(self._work, keys, limits)
        self._lease_s = lease_s
        self._instance = instance
        self._listeners: list[Callable[[str], None]] = []
        self._on_unblocked: list[Callable[[], None]] = []
        self._submits = GroupCommit[Submission, SubmitVerdict](self.submit_many, batch_max=BATCH_MAX)
        self._claims = GroupCommit[ClaimRequest, ClaimReply](self._claim_batch, batch_max=64)
        self._attaches = GroupCommit[tuple[LeaseRef, str], Verdict](self._attach_batch, batch_max=BATCH_MAX)
        self._notes = GroupCommit[ProgressNote, Verdict](self._progress_batch, batch_max=BATCH_MAX)
        self._settles = GroupCommit[Settlement, tuple[Verdict, JobState | None]](
            self._settle_batch, batch_max=BATCH_MAX
        )

    async def start(self, nursery: trio.Nursery) -> None:
        """Connect and run in the caller's nursery until it is cancelled.

        Raises:
            StoreUnavailable: Redis cannot be reached now; later losses are healed instead.
        """
        for link in (self._work, self._renewals, self._listener):
            await nursery.start(link.run)
        for group in (self._submits, self._claims, self._attaches, self._notes, self._settles):
            await nursery.start(group.run)

    @property
    def available(self) -> bool:
        return self._work.connected

    @property
    def round_trips(self) -> int:
        """Commands sent so far, for benchmarks and diagnosis."""
        return self._work.round_trips + self._renewals.round_trips

    @property
    def batches(self) -> dict[str, int]:
        """Script calls so far of each folded operation, for benchmarks and diagnosis."""
        return {"claim": self._claims.batches, "settle": self._settles.batches}

    def on_wake(self, callback: Callable[[str], None]) -> None:
        self._listeners.append(callback)

    def on_unblocked(self, callback: Callable[[], None]) -> None:
        self._on_unblocked.append(callback)

    def _wake(self, message: str) -> None:
        for listener in self._listeners:
            listener(message)

    async def submit(self, submission: Submission) -> SubmitVerdict:
        return await self._submits.call(submission)

    async def claim(self, request: ClaimRequest) -> ClaimReply:
        return await self._claims.call(request)

    async def _claim_batch(self, requests: Sequence[ClaimRequest]) -> list[ClaimReply]:
        call = scripts.claim_call(self.keys, self.limits, self._lease_s, self._instance, requests)
        return scripts.claim_reply(await self._work.script(call), len(requests))

    async def renew(self, leases: Sequence[LeaseRef]) -> list[LeaseStatus]:
        statuses: list[LeaseStatus] = []
        for start in range(0, len(leases), BATCH_MAX):
            call = scripts.renew_call(self.keys, self._lease_s, leases[start : start + BATCH_MAX])
            statuses += scripts.renew_reply(await self._renewals.script(call))
        return statuses

    async def attach(self, lease: LeaseRef, reference: str) -> Verdict:
        return await self._attaches.call((lease, reference))

    async def _attach_batch(self, references: Sequence[tuple[LeaseRef, str]]) -> list[Verdict]:
        return scripts.verdicts_reply(await self._work.script(scripts.attach_call(self.keys, references)))

    async def progress(self, note: ProgressNote) -> Verdict:
        return await self._notes.call(note)

    async def _progress_batch(self, notes: Sequence[ProgressNote]) -> list[Verdict]:
        raw = await self._work.script(scripts.progress_call(self.keys, self.limits, notes))
        return scripts.verdicts_reply(raw)

    async def settle(self, settlement: Settlement) -> tuple[Verdict, JobState | None]:
        return await self._settles.call(settlement)

    async def _settle_batch(self, settlements: Sequence[Settlement]) -> list[tuple[Verdict, JobState | None]]:
        raw = await self._work.script(scripts.settle_call(self.keys, self.limits, settlements))
        if scripts.settle_unblocked(raw):
            for callback in self._on_unblocked:
                callback()
        return scripts.settle_reply(raw)
