"""Recording how a lease ended: at once when Redis answers, through the spool when it does not."""

from __future__ import annotations

import logging
from contextlib import suppress

import msgspec
import trio

from gateway.errors import StoreError, StoreRejected, StoreUnavailable
from gateway.leases import LeaseKeeper, Ownership
from gateway.models import JobState, LeaseRef, Settlement, SettlementKind, Verdict
from gateway.observer import Observer
from gateway.spool import Spool, SpoolFull
from gateway.store.base import JobStore
from gateway.strategies import Strategy

log = logging.getLogger(__name__)

#: Settlements after which the job may run again elsewhere.
_GIVES_BACK = frozenset({SettlementKind.FAILED, SettlementKind.SNOOZED, SettlementKind.RELEASED})
_SETTLED = {verdict: f"settled {verdict.value}" for verdict in Verdict}

RETRY_FIRST_S = 0.1
RETRY_MAX_S = 1.0
#: Pause before a settlement that Redis rejected (permissions, say) is tried again.
REJECTED_PAUSE_S = 5.0
#: Tries at a release, each as long as a command may take; then the lease is left to lapse.
RELEASE_TRIES = 3


class _Waiter:
    """A job's task waiting for its spooled settlement to be recorded; its slot stays taken meanwhile."""

    def __init__(self, ownership: Ownership) -> None:
        self.ownership = ownership
        self.recorded = trio.Event()
        self.verdict: Verdict | None = None


class Settler:
    """Sends settlements; whatever Redis cannot take now goes to the spool and is replayed.

    Args:
        store: the job store.
        spool: where settlements wait.
        keeper: renews the leases of jobs whose settlement waits, so that nobody runs them again meanwhile.
        observer: told the size of the spool.
    """

    def __init__(self, store: JobStore, spool: Spool, keeper: LeaseKeeper, observer: Observer) -> None:
        self._store = store
        self._spool = spool
        self._keeper = keeper
        self._observer = observer
        self._waiting: dict[LeaseRef, _Waiter] = {}
        self._filled = trio.Event()

    @property
    def spooled(self) -> int:
        """Settlements that wait."""
        return len(self._spool)

    async def settle(self, settlement: Settlement, ownership: Ownership) -> Verdict | None:
        """Record the end of a lease; while Redis is away, wait for it with the settlement safe on disk.

        Returns:
            The fence's verdict, or None for a release that Redis did not take: that lease is left to lapse.
        """
        if settlement.kind is SettlementKind.RELEASED:
            # Stop believing before the release leaves: the next owner may start the moment it arrives.
            self._keeper.disown(ownership, "released")
            return await self._release(settlement)
        try:
            if self._store.available:
                ownership.settling = True
                self._before_sending(settlement, ownership)
                verdict, _ = await self._store.settle(settlement)
                self._keeper.disown(ownership, _SETTLED[verdict])
                return verdict
        except StoreRejected as error:
            log.error("settlement of job %s was rejected, will be repeated: %s", settlement.job_id, error)
        except StoreError as error:
            log.warning("settlement of job %s must wait: %s", settlement.job_id, error)
        except trio.Cancelled:
            # The shutdown ran out of time with the outcome unknown: the next start repeats it from the disk.
            with suppress(SpoolFull):
                self._spool.put(settlement)
            raise
        ownership.settling = False
        return await self._keep(settlement, ownership)

    def _before_sending(self, settlement: Settlement, ownership: Ownership) -> None:
        """Stop believing before anything leaves that lets others have the job: they may start before we hear of it."""
        if settlement.kind in _GIVES_BACK:
            self._keeper.disown(ownership, f"{settlement.kind.value} sent")

    async def _release(self, settlement: Settlement) -> Verdict | None:
        """Give a job back; a connection that just broke gets the time to heal, or the lease would have to lapse."""
        for _ in range(RELEASE_TRIES):
            try:
                verdict, _ = await self._store.settle(settlement)
                return verdict
            except StoreError as error:
                log.warning("job %s could not be released: %s", settlement.job_id, error)
                await trio.sleep(RETRY_FIRST_S)
        return None

    async def _keep(self, settlement: Settlement, ownership: Ownership) -> Verdict | None:
        """Into the spool; when even that is impossible, insist here until the store answers."""
        try:
            self._spool.put(settlement)
        except SpoolFull as error:
            log.error("spool refused job %s (%s); waiting for the store", settlement.job_id, error)
            return await self._insist(settlement, ownership)
        waiter = self._waiting[settlement.lease] = _Waiter(ownership)
        self._observer.spool(len(self._spool))
        self._observer.recovering(Strategy.REDIS_LOST)
        self._filled.set()
        await waiter.recorded.wait()
        return waiter.verdict

    async def _insist(self, settlement: Settlement, ownership: Ownership) -> Verdict:
        """Without a place on disk: hold the slot, and the result in memory, until Redis takes it."""
        while True:
            try:
                self._before_sending(settlement, ownership)
                verdict, _ = await self._settle_patiently(settlement)
            except StoreRejected:
                await trio.sleep(REJECTED_PAUSE_S)
            else:
                self._keeper.disown(ownership, _SETTLED[verdict])
                return verdict

    async def _settle_patiently(self, settlement: Settlement) -> tuple[Verdict, JobState | None]:
        """Repeat until Redis is there.

        Raises:
            StoreRejected: Redis is there and refuses.
        """
        delay_s = RETRY_FIRST_S
        while True:
            try:
                return await self._store.settle(settlement)
            except StoreUnavailable:
                await trio.sleep(delay_s)
                delay_s = min(delay_s * 2, RETRY_MAX_S)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Replay the spool whenever it holds something, until cancelled."""
        if len(self._spool):
            log.info("%d settlements of earlier processes wait in the spool", len(self._spool))
            self._filled.set()
        task_status.started()
        while True:
            await self._filled.wait()
            self._filled = trio.Event()
            await self._replay()

    async def drain(self, timeout_s: float) -> int:
        """At shutdown: give the spool one bounded chance; returns how many settlements stay on disk."""
        with trio.move_on_after(timeout_s):
            await self._replay()
        return len(self._spool)

    async def _replay(self) -> None:
        """Record what waits, oldest first; an entry that Redis rejects is tried again later and holds up no other."""
        while True:
            rejected = 0
            for settlement in self._spool.pending():
                try:
                    await self._replay_one(settlement)
                except StoreRejected as error:
                    log.error("spooled settlement of job %s was rejected: %s", settlement.job_id, error)
                    rejected += 1
            if not rejected:
                return
            await trio.sleep(REJECTED_PAUSE_S)

    async def _replay_one(self, settlement: Settlement) -> None:
        waiting = self._waiting.get(settlement.lease)
        if waiting is not None:
            self._before_sending(settlement, waiting.ownership)
        # A dead predecessor's slot is free again and perhaps taken: the auditor must not count both.
        sent = settlement if waiting is not None else _inherited(settlement)
        verdict, state = await self._settle_patiently(sent)
        self._spool.remove(settlement)
        waiter = self._waiting.pop(settlement.lease, None)
        if waiter is not None:
            self._keeper.disown(waiter.ownership, _SETTLED[verdict])
            waiter.verdict = verdict
            waiter.recorded.set()
        log.log(
            logging.WARNING if verdict is Verdict.STALE else logging.INFO,
            "spooled %s of job %s: %s (it is %s now)",
            settlement.kind.value, settlement.job_id, verdict.value, state.value if state else "gone",
        )  # fmt: skip
        self._observer.spool(len(self._spool))


def _inherited(settlement: Settlement) -> Settlement:
    """The settlement with the remark that it left its slot before it was recorded."""
    fields = msgspec.json.decode(settlement.detail) if settlement.detail else {}
    detail = msgspec.json.encode({**fields, "spooled": True}).decode()
    return msgspec.structs.replace(settlement, detail=detail)
