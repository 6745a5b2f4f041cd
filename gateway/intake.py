"""Claim loops: one per worker, woken by the store's messages, gated by health, breaker, slots and loop lag."""

from __future__ import annotations

import logging
import random as random_module
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import trio

from gateway.endpoints import BoundEndpoint
from gateway.errors import StoreError, StoreUnavailable
from gateway.health import LagMonitor
from gateway.leases import LeaseKeeper, Ownership
from gateway.models import ClaimRequest, ClassId, Grant, JobClass, JobId, Settlement
from gateway.observer import Observer
from gateway.store.base import JobStore
from gateway.worker import Worker

log = logging.getLogger(__name__)

#: Most jobs in one claim: bounded by what one script call may carry.
CLAIM_MAX = 128
RETRY_FIRST_S = 0.1
RETRY_MAX_S = 1.0


class ClassBook:
    """This process's copy of the queue's classes, refreshed when the store mentions one it does not know."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._classes: dict[ClassId, JobClass] = {}
        self._served: dict[BoundEndpoint, tuple[ClassId, ...]] = {}
        self.stale = True
        self._reading = trio.Lock()

    def __contains__(self, class_id: str) -> bool:
        return class_id in self._classes

    def __len__(self) -> int:
        return len(self._classes)

    @property
    def outdated(self) -> bool:
        """Whether a class may be missing: one was mentioned, and the read that finds it has not ended."""
        return self.stale or self._reading.locked()

    async def refresh(self) -> None:
        """Read the classes again; who comes during a read waits for it, and for another one only if it began too soon.

        Raises:
            StoreError: they could not be read, and still are out of date.
        """
        async with self._reading:
            if not self.stale:
                return
            self.stale = False
            try:
                self._classes = await self._store.classes()
            except BaseException:
                self.stale = True
                raise
            self._served.clear()

    def served_by(self, endpoint: BoundEndpoint) -> tuple[ClassId, ...]:
        """Classes that can run there; each (endpoint, class) pair is evaluated once per refresh."""
        served = self._served.get(endpoint)
        if served is None:
            served = self._served[endpoint] = endpoint.served(self._classes)
        return served

    def forget_served(self) -> None:
        """Endpoints came, left or can do something else: what each one serves is evaluated anew."""
        self._served.clear()


class Intake:
    """All claim loops of one process.

    A wake-up message rouses one idle loop, and a loop that got all it asked for rouses the next: waking every loop
    for every job would only make them race for it.

    Args:
        store: the job store.
        workers: whose loops these are.
        keeper: ownership begins here, before anything is awaited after a claim.
        spawn: starts one job's task: ``spawn(grant, ownership, endpoint)``.
        poll_s: net under the wake-ups, seconds.
        instance: prefix of the request ids, unique per process.
        seat: ``(worker, job, endpoint)``: where a job that fits there really runs (a rollout's share elsewhere).
    """

    def __init__(
        self,
        store: JobStore,
        workers: Sequence[Worker],
        keeper: LeaseKeeper,
        observer: Observer,
        lag: LagMonitor,
        *,
        spawn: Callable[[Grant, Ownership, BoundEndpoint], None],
        poll_s: float,
        instance: str,
        now_s: Callable[[], float],
        random: random_module.Random,
        seat: Callable[[Worker, JobId, BoundEndpoint], BoundEndpoint],
    ) -> None:
        self._store = store
        self._keeper = keeper
        self._observer = observer
        self._lag = lag
        self._spawn = spawn
        self._poll_s = poll_s
        self._instance = instance
        self._now_s = now_s
        self._random = random
        self._seat = seat
        self._book = ClassBook(store)
        self._loops = [_ClaimLoop(self, worker) for worker in workers]
        self._loop_of = {loop.worker: loop for loop in self._loops}
        self._idle: deque[_ClaimLoop] = deque()
        self._stopping = False
        store.on_wake(self._on_wake)

    def loops(self) -> list[Callable[[], Awaitable[None]]]:
        """The tasks to run, one per worker."""
        return [loop.run for loop in self._loops]

    def stop(self) -> None:
        """Claim nothing any more; a claim in flight is answered and its grants are given back."""
        self._stopping = True
        self.look()

    def stopped(self) -> bool:
        """Whether nothing may be claimed any more (a call, because the answer may change across an await)."""
        return self._stopping

    def look(self) -> None:
        """Rouse every loop: health changed, the store came back, or we stop."""
        for loop in self._loops:
            loop.rouse()

    def endpoints_changed(self) -> None:
        """Endpoints came, left, or can do something else."""
        self._book.forget_served()
        self.look()

    def slot_freed(self, worker: Worker) -> None:
        """A job of this worker ended."""
        self._loop_of[worker].rouse()

    def _on_wake(self, message: str) -> None:
        if message.startswith(("cancel ", "changed ")):
            return
        if message == "":
            # Messages were lost before this subscription, perhaps the one that named a new class.
            self._book.stale = True
        if message in ("", "resume"):
            self.look()
            return
        if message not in self._book:
            self._book.stale = True
            self.look()
            return
        self.rouse_one(ClassId(message))

    def rouse_one(self, class_id: ClassId | None = None) -> None:
        """Wake the longest idle loop that could take work (of this class)."""
        for _ in range(len(self._idle)):
            loop = self._idle.popleft()
            if any(
                (class_id is None or class_id in self._book.served_by(endpoint)) and endpoint.admissible() > 0
                for endpoint in loop.worker.endpoints
            ):
                loop.rouse()
                return
            self._idle.append(loop)


class _ClaimLoop:
    """One worker's loop. A request id is kept until its answer is known, so a lost reply is simply asked again."""

    def __init__(self, intake: Intake, worker: Worker) -> None:
        self._intake = intake
        self.worker = worker
        self._roused = trio.Event()
        self._requests = 0
        self._request_id = self._next_request_id()
        #: The last claim may have been granted without our knowing: it is asked again before anything else.
        self._unanswered = False
        self._retry_s = RETRY_FIRST_S
        #: When a rate limit lets the next job through, seconds from the last claim; 0 when none holds one back.
        self._due_s = 0.0

    def rouse(self) -> None:
        self._roused.set()

    def _next_request_id(self) -> str:
        self._requests += 1
        return f"{self._intake._instance}:{self.worker.worker_id}:{self._requests}"

    async def run(self) -> None:
        """Claim until the intake stops."""
        intake = self._intake
        while self._unanswered or not intake.stopped():
            try:
                got, wanted = await self._claim_once()
                self._retry_s = RETRY_FIRST_S
            except StoreError as error:
                log.warning("%s cannot claim: %s", self.worker.worker_id, error)
                await trio.sleep(self._retry_s * intake._random.uniform(0.5, 1.0))
                self._retry_s = min(self._retry_s * 2, RETRY_MAX_S)
                continue
            if wanted and got == wanted:
                intake.rouse_one()
                if self.worker.admissible() > 0:
                    continue
            await self._wait()

    async def _wait(self) -> None:
        intake = self._intake
        # A worker without a free slot is roused by the next one freed; in the row of idle loops it would only be
        # passed over, by every other loop and for every claim.
        if self.worker.running < self.worker.slots:
            intake._idle.append(self)
        poll_s = intake._poll_s * intake._random.uniform(0.8, 1.2)
        with trio.move_on_after(min(poll_s, self._due_s) if self._due_s else poll_s):
            await self._roused.wait()
        if self in intake._idle:
            intake._idle.remove(self)
        self._roused = trio.Event()

    async def _claim_once(self) -> tuple[int, int]:
        """Ask for as many jobs as fit, endpoint by endpoint; returns (granted, wanted)."""
        intake = self._intake
        if intake._book.outdated:
            await intake._book.refresh()
        granted = wanted = 0
        exhausted: set[ClassId] = set()
        for endpoint in self.worker.by_load():
            served = intake._book.served_by(endpoint)
            if not served:
                # No claim will tell that there are new classes, and a wake-up may have been lost.
                intake._book.stale = True
            class_ids = tuple(class_id for class_id in served if class_id not in exhausted)
            got, asked = await self._claim_for(endpoint, class_ids)
            granted, wanted = granted + got, wanted + asked
            if got < asked:
                exhausted.update(class_ids)
        if self._unanswered:
            # Nothing can be claimed any more; what was granted without our knowing must still be found out.
            await self._ask(None, 0, ())
        return granted, wanted

    async def _claim_for(self, endpoint: BoundEndpoint, class_ids: tuple[ClassId, ...]) -> tuple[int, int]:
        """Claim for one endpoint; returns (granted, wanted)."""
        intake = self._intake
        wanted = min(endpoint.admissible(), CLAIM_MAX)
        if not class_ids or intake._lag.lagging or intake.stopped():
            wanted = 0
        if wanted <= 0 and not self._unanswered:
            return 0, 0
        return await self._ask(endpoint, max(wanted, 0), class_ids), max(wanted, 0)

    async def _ask(self, endpoint: BoundEndpoint | None, wanted: int, class_ids: tuple[ClassId, ...]) -> int:
        """One claim; returns how many jobs were granted.

        Asked again for nothing, the store still repeats what it granted to the same request before.
        """
        intake, worker = self._intake, self.worker
        request = ClaimRequest(self._request_id, worker.worker_id, wanted, worker.slots, class_ids)
        left_s = intake._now_s()
        try:
            reply = await intake._store.claim(request)
        except StoreUnavailable as error:
            self._unanswered = self._unanswered or error.outcome_unknown
            raise
        # Nothing is awaited between the reply and ownership: no cancellation can drop a grant in between.
        self._unanswered = False
        self._request_id = self._next_request_id()
        self._due_s = reply.wait_ms / 1000
        if reply.class_count != len(intake._book):
            intake._book.stale = True
        late: list[Grant] = []
        for grant in reply.grants:
            seat = None if intake.stopped() else self._seat(grant, endpoint)
            ownership = None if seat is None else intake._keeper.own(grant, worker.worker_id, left_s=left_s)
            if seat is None or ownership is None:
                late.append(grant)
                continue
            seat.job_started()
            worker.used(seat)
            intake._spawn(grant, ownership, seat)
        if reply.grants:
            intake._observer.claimed(worker.worker_id, reply.grants, intake._now_s() - left_s)
        for grant in late:
            await self._give_back(grant)
        return len(reply.grants)

    def _seat(self, grant: Grant, asked_for: BoundEndpoint | None) -> BoundEndpoint | None:
        """Where a granted job runs: where it was claimed for, else (that one left meanwhile) where it fits."""
        worker = self.worker
        if worker.running >= worker.slots:
            return None
        others = [endpoint for endpoint in worker.by_load() if endpoint is not asked_for]
        for endpoint in (asked_for, *others):
            if endpoint is None or endpoint.left or endpoint.running >= worker.slots_each:
                continue
            if endpoint is asked_for or grant.class_id in self._intake._book.served_by(endpoint):
                return self._intake._seat(worker, grant.job_id, endpoint)
        return None

    async def _give_back(self, grant: Grant) -> None:
        """A grant that came too late to be trusted (or while stopping) goes back without being run."""
        log.info("job %s was granted too late and goes back", grant.job_id)
        try:
            await self._intake._store.settle(Settlement.released(grant, detail='{"reason":"not started"}'))
        except StoreError as error:
            log.warning("job %s could not be given back, its lease will lapse: %s", grant.job_id, error)
