"""Periodic duties that any gateway may do at any time: sweeping, statistics, and the workers' sign of life."""

from __future__ import annotations

import logging
import random as random_module
from collections.abc import Callable, Sequence

import msgspec
import trio

from gateway.errors import InvalidSchedule, StoreError
from gateway.models import SubmitStatus
from gateway.observer import Observer
from gateway.rolling import Rollouts
from gateway.schedules import fire
from gateway.store.base import JobStore
from gateway.strategies import Strategy
from gateway.worker import Worker

log = logging.getLogger(__name__)

#: Sweeps in a row while a bound was reached; then the others get their turn.
ROUNDS_MAX = 50
#: Least pause between two registrations, seconds.
CHANGE_PAUSE_S = 0.5
_encode = msgspec.json.Encoder().encode


async def sweep_regularly(
    store: JobStore,
    observer: Observer,
    *,
    every_s: float,
    random: random_module.Random,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Sweep for ever: expired leases are recovered, due jobs promoted, due schedules fired, old jobs removed.

    Args:
        every_s: pause between sweeps, seconds (jittered, so that a fleet does not sweep in step); a settlement that
            made children of its job due ends it.
    """
    unblocked = trio.Event()
    store.on_unblocked(lambda: unblocked.set())
    task_status.started()
    while True:
        with trio.move_on_after(every_s * random.uniform(0.8, 1.2)):
            await unblocked.wait()
        unblocked = trio.Event()
        try:
            for _ in range(ROUNDS_MAX):
                report = await store.sweep()
                observer.swept(report)
                if report.poisoned:
                    observer.recovering(Strategy.POISON_PILL, report.poisoned)
                if report.recovered or report.poisoned:
                    log.warning(
                        "%d expired leases recovered, %d poison pills buried",
                        report.recovered,
                        report.poisoned,
                    )
                if report.schedules_due:
                    await fire_due(store, observer)
                if not report.more:
                    break
        except StoreError as error:
            log.warning("cannot sweep: %s", error)


async def fire_due(store: JobStore, observer: Observer) -> None:
    """Submit the jobs of schedules whose instant has come. Every gateway does; the store lets one of them succeed.

    Raises:
        StoreError: Redis did not answer; what was not settled stays due.
    """
    for due in await store.due_schedules():
        name = due.view.schedule.name
        try:
            submission, firing = fire(due)
        except InvalidSchedule as error:
            log.error("schedule %s cannot go on: %s", name, error)
            continue
        if submission is None:
            outcome = "skipped" if await store.skip_instant(firing) else SubmitStatus.FENCED.value
        else:
            outcome = (await store.submit(submission)).status.value
        if outcome != SubmitStatus.FENCED.value:
            observer.fired(name, outcome)
            log.info("schedule %s, instant %d ms: %s", name, firing.instant_ms, outcome)


async def observe_regularly(
    store: JobStore,
    observer: Observer,
    *,
    every_s: float,
    on_return: Callable[[], None],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Tell the observer about the queue and the store for ever.

    Args:
        on_return: called when the store is back after having been away.
    """
    task_status.started()
    available = True
    while True:
        await trio.sleep(every_s)
        try:
            observer.queue(await store.stats())
            now_available = True
        except StoreError as error:
            log.warning("the store is away: %s", error)
            now_available = False
        if now_available and not available:
            log.info("the store is back")
            on_return()
        available = now_available
        observer.store(available=available)


def describe_worker(worker: Worker, instance: str, rollout: dict[str, object] | None = None) -> bytes:
    """What the registry keeps of a worker, as JSON."""
    return _encode(
        {
            "service": worker.service,
            "connector": worker.connector_key,
            "endpoint": worker.url,
            "instance": instance,
            "slots": worker.slots,
            "running": worker.running,
            "healthy": worker.healthy,
            "refusal": worker.refusal(),
            "capabilities": dict(worker.capabilities),
            "endpoints": [endpoint.status() for endpoint in (*worker.endpoints, *worker.leaving)],
            **({} if rollout is None else {"rollout": rollout}),
        }
    )


class Registrar:
    """Keeps this process's workers in the registry, and says so at once when their health changes.

    Args:
        instance: this process's own name, by which a second process with the same worker ids is noticed.
        every_s: pause between signs of life, seconds.
    """

    def __init__(
        self,
        store: JobStore,
        workers: Sequence[Worker],
        rollouts: Rollouts,
        *,
        instance: str,
        every_s: float,
    ) -> None:
        self._store = store
        self._workers = workers
        self._rollouts = rollouts
        self._instance = instance
        self.every_s = every_s
        self._changed = trio.Event()

    def look(self) -> None:
        """Something worth registering has changed."""
        self._changed.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Register until cancelled; ready after the first entry."""
        await self._warn_of_twins()
        started = False
        while True:
            try:
                entries = [
                    (worker.worker_id, describe_worker(worker, self._instance, self._rollouts.status(worker)))
                    for worker in self._workers
                ]
                await self._store.heartbeat(entries)
            except StoreError as error:
                log.warning("workers could not be registered: %s", error)
            if not started:
                started = True
                task_status.started()
            await trio.sleep(CHANGE_PAUSE_S)  # a flapping service must not become a storm of entries
            with trio.move_on_after(self.every_s):
                await self._changed.wait()
            self._changed = trio.Event()

    async def _warn_of_twins(self) -> None:
        """Two processes with one worker id would share a GPU that each believes to have alone."""
        try:
            registered = await self._store.workers()
        except StoreError:
            return
        for worker in self._workers:
            _, _, text = registered.get(worker.worker_id, b"").partition(b" ")
            if text and f'"instance":"{self._instance}"'.encode() not in text:
                log.warning(
                    "worker id %s is registered by another process: if that one still lives, give one of them "
                    "another name or machine",
                    worker.worker_id,
                )


async def sign_off(store: JobStore, workers: Sequence[Worker], *, timeout_s: float) -> None:
    """Take the workers out of the registry, bounded; else their entries lapse."""
    with trio.move_on_after(timeout_s):
        try:
            await store.heartbeat([(worker.worker_id, b"") for worker in workers])
        except StoreError as error:
            log.info("workers could not be signed off: %s", error)
