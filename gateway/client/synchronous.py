"""``Client``: submit, follow and operate jobs from a synchronous program; safe to share between threads."""

from __future__ import annotations

import random as random_module
import secrets
import threading
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gateway.client.blocking import finish
from gateway.client.core import DURABLE_TIMEOUT_S, OLDEST, ClientCore, StreamItem
from gateway.client.durability import ServerFacts
from gateway.client.permissions import Denied
from gateway.client.repeating import Repeater
from gateway.client.requests import BatchResult, JobHandle, JobRequest
from gateway.client.schedules import ScheduleVerbs
from gateway.client.sync_link import SyncLink
from gateway.errors import StoreUnavailable, WaitTimeout
from gateway.events import Event
from gateway.explain import Explanation, WorkerView
from gateway.limits import Limit, QueueLimits
from gateway.models import (
    MAX_ATTEMPTS_DEFAULT,
    PRIORITY_DEFAULT,
    TIMEOUT_S_DEFAULT,
    CancelStatus,
    ClassId,
    JobClass,
    JobView,
    ParentPolicy,
    QueueStats,
    RequeueStatus,
)
from gateway.registration import TTL_S_DEFAULT, RegisteredService, ServiceEntry
from gateway.store.calls import ScriptCall, StoreLimits
from gateway.store.embedded import EmbeddedRedisError, EmbeddedRedisLease, acquire_embedded_redis
from gateway.store.fleet_scripts import Overrides, RegisterStatus, Registration
from gateway.store.keys import QueueKeys

#: Connections of one client at once, that is, calls from different threads at the same moment.
LINKS_MAX = 64
#: The event stream tells of every end; the slow look is a net under it.
NET_S = 5.0
STREAM_BLOCK_S = 0.5


class _BlockingPace:
    def now_s(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        time.sleep(seconds)  # noqa: ASYNC251 - under this client coroutines block


class _Links:
    """Lends connections; used by many threads."""

    def __init__(self, url: str, *, command_timeout_s: float, connect_timeout_s: float) -> None:
        self._url = url
        self._times = {"command_timeout_s": command_timeout_s, "connect_timeout_s": connect_timeout_s}
        self._idle: list[SyncLink] = [self._make()]
        self._slots = threading.Semaphore(LINKS_MAX)

    def _make(self) -> SyncLink:
        return SyncLink(self._url, **self._times)

    @property
    def connections_made(self) -> int:
        """Of no meaning over several connections."""
        return 0

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[SyncLink]:
        with self._slots:
            try:
                link = self._idle.pop()
            except IndexError:
                link = self._make()
            try:
                yield link
            finally:
                self._idle.append(link)

    async def command(self, *parts: str | bytes | int, timeout_s: float | None = None) -> Any:
        async with self.lend() as link:
            return await link.command(*parts, timeout_s=timeout_s)

    async def script(self, call: ScriptCall, *, timeout_s: float | None = None) -> Any:
        async with self.lend() as link:
            return await link.script(call, timeout_s=timeout_s)

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


class Client(ScheduleVerbs):
    """A producer's and operator's view of one queue.

    Args:
        redis_url: ``redis://…``, ``rediss://…``, ``unix:///path``; None starts or joins the embedded Redis.
        queue: name of the queue.
        data_dir: where the embedded Redis lives; the platform's data directory if None.
        limits: bounds of the queue; use the gateways' own where they differ from the defaults.
        timeout_s: longest time for one call, with all repetitions after connection errors, seconds.
        command_timeout_s: longest wait for one reply, seconds.
        connect_timeout_s: longest wait for one connection attempt, seconds.
        random: source of ids and jitter; the system's own if None.

    Raises:
        ConfigError: the URL or the queue's name is malformed.
        StoreUnavailable: Redis cannot be reached, or the embedded one cannot be had.
    """

    def __init__(
        self,
        redis_url: str | None = None,
        *,
        queue: str = "default",
        data_dir: Path | None = None,
        limits: StoreLimits | None = None,
        timeout_s: float = 10.0,
        command_timeout_s: float = 3.0,
        connect_timeout_s: float = 3.0,
        random: random_module.Random | None = None,
    ) -> None:
        keys = QueueKeys(queue)
        self._lease = None if redis_url else embedded(data_dir)
        url = redis_url or (self._lease.url if self._lease else "")
        try:
            self._links = _Links(
                url, command_timeout_s=command_timeout_s, connect_timeout_s=connect_timeout_s
            )
            # A wrong address is told at once; only later losses are worth repeating.
            finish(self._links.command(b"PING"))
        except BaseException:
            if self._lease is not None:
                self._lease.close()
            raise
        source = random or secrets.SystemRandom()
        pace = _BlockingPace()
        repeater = Repeater(self._links, pace, source, timeout_s)
        self.core = ClientCore(
            keys,
            limits or StoreLimits(),
            work=repeater,
            reader=repeater,
            exclusive=self._links.lend,
            pace=pace,
            wall_ms=lambda: time.time_ns() // 1_000_000,
            random=source,
            timeout_s=timeout_s,
        )

    @property
    def queue(self) -> str:
        """Name of the queue."""
        return self.core.keys.queue

    def close(self) -> None:
        """Close all connections and give the embedded Redis back; harmless twice."""
        self._links.close()
        if self._lease is not None:
            self._lease.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def submit(
        self,
        service: str,
        payload: Any = None,
        *,
        requires: Mapping[str, Any] | None = None,
        priority: int = PRIORITY_DEFAULT,
        max_attempts: int = MAX_ATTEMPTS_DEFAULT,
        timeout_s: float = TIMEOUT_S_DEFAULT,
        delay_s: float = 0.0,
        idempotency_key: str | None = None,
        job_id: str | None = None,
        tenant: str = "",
        expires_in_s: float | None = None,
        expires_at_s: float | None = None,
        unique_key: str | None = None,
        unique_for_s: float = 0.0,
        after: Sequence[str] = (),
        on_parent_failure: str = ParentPolicy.CANCEL.value,
        durable: bool = False,
        durable_timeout_s: float = DURABLE_TIMEOUT_S,
        allow_unknown_service: bool = False,
    ) -> JobHandle:
        """Submit one job. Everything is validated before anything is stored.

        Args:
            service, payload, requires, priority, max_attempts, timeout_s, delay_s, tenant: see ``JobRequest``.
            idempotency_key: same key, same job, as long as that job is kept.
            job_id: chosen id. With an id or a key of one's own, submitting again is safe at any time; an id made up
                here protects only the repetitions inside this call.
            expires_in_s, expires_at_s: deadline, seconds from now by the clock of Redis, or since the epoch; a job not
                claimed by then ends dead as ``expired``, a running one is bounded by it.
            unique_key: while a job with it has not ended (``unique_for_s`` longer), a second submit gets its id.
            after: ids of jobs that must have completed first.
            on_parent_failure: ``cancel`` or ``release`` this job when one of them ends dead or cancelled.
            durable: wait until the server confirms that the job survives its own crash.
            durable_timeout_s: longest wait for that, seconds.
            allow_unknown_service: also accept a service that nobody serves yet.

        Raises:
            InvalidSubmission: malformed; nothing was stored.
            UnknownService: no installed connector and no live worker serves it; nothing was stored.
            QueueFull: too many unfinished jobs; nothing was stored.
            TooManyClasses: too many different requirements; nothing was stored.
            TooManyChildren: too many jobs wait for one of its parents; nothing was stored.
            DurabilityUnconfirmed: stored, but not confirmed as durable.
            StoreUnavailable: Redis did not answer; ``outcome_unknown`` says whether the job may be stored.
        """
        request = JobRequest(
            *(
                service,
                payload,
                requires,
                priority,
                max_attempts,
                timeout_s,
                delay_s,
                idempotency_key,
                job_id,
            ),
            *(tenant, expires_in_s, expires_at_s, unique_key, unique_for_s, after, on_parent_failure),
        )
        return finish(
            self.core.submit(
                request,
                durable=durable,
                durable_timeout_s=durable_timeout_s,
                allow_unknown_service=allow_unknown_service,
            )
        )

    def submit_many(
        self,
        requests: Iterable[JobRequest],
        *,
        durable: bool = False,
        durable_timeout_s: float = DURABLE_TIMEOUT_S,
        allow_unknown_service: bool = False,
    ) -> BatchResult:
        """Submit many jobs in few round trips.

        All requests are validated first: one invalid request refuses the whole batch. Refusals of the store (queue
        full, too many classes) concern single jobs and are reported per request: look at ``refused`` of the result, or
        call ``raise_for_refused``.

        Raises:
            InvalidSubmission: names the request; nothing was stored.
            BatchInterrupted: Redis was lost midway; has the answered and the unconfirmed requests.
            UnknownService, DurabilityUnconfirmed: as ``submit``.
        """
        return finish(
            self.core.submit_many(
                requests,
                durable=durable,
                durable_timeout_s=durable_timeout_s,
                allow_unknown_service=allow_unknown_service,
            )
        )

    def get(self, job_id: str) -> JobView:
        """Everything known of one job.

        Raises:
            JobNotFound: unknown, or its retention ended.
        """
        return finish(self.core.get(job_id))

    def get_many(self, job_ids: Sequence[str]) -> list[JobView | None]:
        """Several jobs at once; None for an unknown one."""
        return finish(self.core.ops.inspect(job_ids))

    def wait(self, job_id: str, timeout_s: float) -> JobView:
        """Block until a job has ended (completed, dead or cancelled); at once when it has already.

        Args:
            job_id: the job.
            timeout_s: longest wait, seconds.

        Raises:
            JobNotFound: unknown, or its retention ended.
            WaitTimeout: not ended in time; the job goes on.
        """
        deadline_s = time.monotonic() + timeout_s
        # The position is taken before the first look, so that no end can fall between the two.
        cursor = finish(self.core.last_cursor())
        look = True
        next_look_s = 0.0
        while True:
            if look or time.monotonic() >= next_look_s:
                view = self.get(job_id)
                if view.terminal:
                    return view
                next_look_s = time.monotonic() + NET_S
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise WaitTimeout(job_id, timeout_s)
            events, cursor = finish(self.core.events_page(cursor, block_s=max(min(left_s, NET_S), 0.001)))
            look = any(event.job_id == job_id for event in events)

    def cancel(self, job_ids: Sequence[str]) -> list[CancelStatus]:
        """Stop jobs: waiting ones end at once, running ones are told through their lease."""
        return finish(self.core.ops.cancel(job_ids))

    def events(self, after: str = OLDEST, *, follow: bool = True) -> Iterator[Event]:
        """The queue's events.

        Args:
            after: an event's cursor; ``0-0`` for all that are kept, ``$`` for new ones only.
            follow: go on waiting for new events; otherwise end with the last one there is.
        """
        cursor = finish(self.core.last_cursor()) if after == "$" else after
        while True:
            events, cursor = finish(self.core.events_page(cursor, block_s=1.0 if follow else 0.0))
            yield from events
            if not events and not follow:
                return

    def job_stream(self, job_id: str, after: str = OLDEST, *, follow: bool = True) -> Iterator[StreamItem]:
        """Progress and result chunks of one job until it has ended.

        Args:
            job_id: the job.
            after: an item's id to resume after; ``0-0`` for all that are kept.
            follow: wait for new entries; otherwise end with the last one there is.

        Raises:
            JobNotFound: unknown, or its retention ended.
        """
        while True:
            block_s = STREAM_BLOCK_S if follow else 0.0
            items, ended = finish(self.core.stream_page(job_id, after, block_s=block_s))
            yield from items
            if ended or not (items or follow):
                return
            after = items[-1].id if items else after

    def stats(self) -> QueueStats:
        """Counts of the queue."""
        return finish(self.core.stats())

    def classes(self) -> dict[ClassId, JobClass]:
        """The queue's classes by id."""
        return finish(self.core.ops.classes())

    def workers(self) -> list[WorkerView]:
        """Registered workers, by id."""
        return finish(self.core.workers())

    def services(self) -> list[RegisteredService]:
        """Services that are registered and whose time is not over, by id."""
        return (finish(self.core.ops.services()))[1]

    def register(self, service_id: str, entry: ServiceEntry, ttl_s: float = TTL_S_DEFAULT) -> RegisterStatus:
        """Tell the gateways of this queue where an instance of a service is; repeat it within ``ttl_s``.

        Raises:
            InvalidRegistration: no worker could use the entry, or the registry is full.
        """
        return finish(self.core.register(service_id, entry, ttl_s))

    def deregister(self, service_id: str) -> bool:
        """Sign a service off; gateways leave it at once. True whether or not it was registered."""
        statuses = finish(self.core.ops.register([Registration(service_id, None)]))
        return statuses == [RegisterStatus.GONE]

    def overrides(self) -> Overrides:
        """The fleet's overrides of settings, JSON text by key."""
        return finish(self.core.ops.overrides())

    def configure(self, changes: Mapping[str, Any]) -> Overrides:
        """Set or remove (None) overrides of settings for every gateway of this queue.

        Args:
            changes: JSON values by key, such as ``{"limits.unfinished_max": 1000}``.

        Returns:
            All overrides afterwards.

        Raises:
            ConfigError: a key or a value is impossible; nothing was stored.
        """
        return finish(self.core.configure(changes))

    def limits(self) -> QueueLimits:
        """All limits of the queue with what they let through now."""
        return finish(self.core.ops.limits_now())

    def set_limits(self, limits: Mapping[str, Limit | None]) -> QueueLimits:
        """Set or remove (None) limits; every later claim of every gateway obeys them.

        Args:
            limits: by name: ``service NAME``, ``tenant NAME``, or ``tenant *`` for all other tenants.

        Raises:
            ConfigError: a name or a number is impossible; nothing was stored.
        """
        return finish(self.core.set_limits(limits))

    def set_aging(self, aging_s: float | None) -> QueueLimits:
        """Set how many seconds of waiting weigh as much as one level of priority, for jobs submitted from now on.

        Raises:
            ConfigError: out of range; nothing was stored.
        """
        return finish(self.core.set_aging(aging_s))

    def dead_letters(self, count: int = 100) -> list[JobView]:
        """The most recent dead letters, newest first."""
        return finish(self.core.ops.dead_jobs(count))

    def requeue(self, job_ids: Sequence[str]) -> list[RequeueStatus]:
        """Give dead letters a new life. After a lost reply the repetition answers ``not_dead``: they live already."""
        return finish(self.core.ops.requeue(job_ids))

    def requeue_all(self) -> list[tuple[str, RequeueStatus]]:
        """Give every present dead letter a new life."""
        return finish(self.core.requeue_all())

    def pause(self) -> bool:
        """Grant no claims until ``resume``; False if it was paused already."""
        return finish(self.core.ops.pause())

    def resume(self) -> bool:
        """Grant claims again; False if it was not paused."""
        return finish(self.core.ops.resume())

    def explain(self, job_id: str) -> Explanation:
        """Why a job is where it is, and who could run it.

        Raises:
            JobNotFound: unknown, or its retention ended.
        """
        return finish(self.core.explain(job_id))

    def events_complete(self) -> bool:
        """Whether the event stream still has its first entry; False where the server cannot tell."""
        return finish(self.core.events_complete())

    def denied(self) -> list[Denied]:
        """The commands that Redis refuses to our user, asked without any effect; empty when it may do all it needs.

        Raises:
            StoreRejected: the server does not let it be asked.
        """
        return finish(self.core.denied())

    def server_facts(self) -> ServerFacts:
        """What the Redis says about itself."""
        return finish(self.core.server_facts())

    def now_ms(self) -> int:
        """Redis time, milliseconds since the epoch."""
        return finish(self.core.now_ms())


def embedded(data_dir: Path | None) -> EmbeddedRedisLease:
    """Start or join the embedded Redis (blocking, bounded).

    Raises:
        StoreUnavailable: it cannot be had; says why and what to do.
    """
    try:
        return acquire_embedded_redis(data_dir)
    except EmbeddedRedisError as error:
        raise StoreUnavailable(str(error), outcome_unknown=False) from error
