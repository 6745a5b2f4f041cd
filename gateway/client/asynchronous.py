"""``AsyncClient``: submit, follow and operate jobs from trio or asyncio."""

from __future__ import annotations

import random as random_module
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.to_thread
from anyio.abc import TaskGroup, TaskStatus

from gateway.client.core import DURABLE_TIMEOUT_S, OLDEST, ClientCore, StreamItem
from gateway.client.durability import ServerFacts
from gateway.client.fleet import AsyncFleetVerbs
from gateway.client.repeating import Repeater
from gateway.client.requests import BatchResult, JobHandle, JobRequest
from gateway.client.schedules import AsyncScheduleVerbs
from gateway.client.waiting import Tail
from gateway.errors import StoreRejected, StoreUnavailable, WaitTimeout
from gateway.events import Event
from gateway.explain import Explanation, WorkerView
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
from gateway.store.calls import ScriptCall, StoreLimits
from gateway.store.connection import RedisLink, redis_connect
from gateway.store.embedded import EmbeddedRedisError, EmbeddedRedisLease, acquire_embedded_redis
from gateway.store.keys import QueueKeys

#: Connections for reads that wait at the server and for durable submits; more callers take turns.
READERS_MAX = 16
#: The event stream tells of every end; the slow look is a net under it.
NET_S = 5.0
STREAM_BLOCK_S = 0.5


class _Pace:
    def now_s(self) -> float:
        return anyio.current_time()

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class _Links:
    """One shared connection for what answers at once, and a few that are lent out one by one."""

    def __init__(
        self,
        url: str,
        *,
        command_timeout_s: float,
        connect_timeout_s: float,
        random: random_module.Random,
        group: TaskGroup,
    ) -> None:
        self._connect = redis_connect(
            url, connect_timeout_s=connect_timeout_s, command_timeout_s=command_timeout_s
        )
        self._command_timeout_s = command_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._random = random
        self._group = group
        self._idle: list[RedisLink] = []
        self._slots = anyio.Semaphore(READERS_MAX)
        self._refused: str | None = None
        self.reader = _Reader(self)
        self.work: RedisLink | None = None

    async def open(self, name: str) -> RedisLink:
        link = RedisLink(
            self._connect,
            name=name,
            command_timeout_s=self._command_timeout_s,
            connect_timeout_s=self._connect_timeout_s,
            random=self._random,
        )
        await self._group.start(self._keep, link)
        return link

    async def _keep(self, link: RedisLink, *, task_status: TaskStatus[None]) -> None:
        try:
            await link.run(task_status=task_status)
        except StoreRejected as refused:
            if link.connections_made == 0:
                raise
            # The credentials changed under us: the next call says so, instead of ending the caller's tasks.
            self._refused = str(refused)

    @property
    def connections_made(self) -> int:
        """Connections of the shared link."""
        return self._shared().connections_made

    def _shared(self) -> RedisLink:
        if self._refused is not None:
            raise StoreRejected(self._refused)
        if self.work is None:
            raise StoreUnavailable("the client is not open: use it in `async with`", outcome_unknown=False)
        return self.work

    async def command(self, *parts: str | bytes | int, timeout_s: float | None = None) -> Any:
        return await self._shared().command(*parts, timeout_s=timeout_s)

    async def script(self, call: ScriptCall, *, timeout_s: float | None = None) -> Any:
        return await self._shared().script(call, timeout_s=timeout_s)

    @asynccontextmanager
    async def lend(self) -> AsyncIterator[RedisLink]:
        async with self._slots:
            self._shared()
            link = self._idle.pop() if self._idle else await self.open("reader")
            try:
                yield link
            finally:
                self._idle.append(link)


class _Reader:
    """Runs each command on a connection of its own."""

    def __init__(self, links: _Links) -> None:
        self._links = links

    @property
    def connections_made(self) -> int:
        return self._links.connections_made

    async def command(self, *parts: str | bytes | int, timeout_s: float | None = None) -> Any:
        async with self._links.lend() as link:
            return await link.command(*parts, timeout_s=timeout_s)

    async def script(self, call: ScriptCall, *, timeout_s: float | None = None) -> Any:
        async with self._links.lend() as link:
            return await link.script(call, timeout_s=timeout_s)


class AsyncClient(AsyncFleetVerbs, AsyncScheduleVerbs):
    """A producer's and operator's view of one queue, under trio and asyncio alike. Use it in ``async with``; its
    methods may be called from many tasks at once, and every one may be cancelled.

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
        ConfigError: the queue's name is malformed; entering: the URL is.
        StoreUnavailable: entering: Redis cannot be reached, or the embedded one cannot be had.
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
        self._redis_url = redis_url
        self._keys = QueueKeys(queue)
        self._data_dir = data_dir
        self._limits = limits or StoreLimits()
        self._timeout_s = timeout_s
        self._times = {"command_timeout_s": command_timeout_s, "connect_timeout_s": connect_timeout_s}
        self._random = random or secrets.SystemRandom()
        self._lease: EmbeddedRedisLease | None = None
        self._group: TaskGroup | None = None
        self._opened: tuple[ClientCore, Tail] | None = None

    @property
    def queue(self) -> str:
        """Name of the queue."""
        return self._keys.queue

    @property
    def core(self) -> ClientCore:
        """The verbs themselves.

        Raises:
            StoreUnavailable: outside ``async with``.
        """
        return self._open()[0]

    def _open(self) -> tuple[ClientCore, Tail]:
        if self._opened is None:
            raise StoreUnavailable("the client is not open: use it in `async with`", outcome_unknown=False)
        return self._opened

    async def __aenter__(self) -> Self:
        url = self._redis_url
        if not url:
            self._lease = await anyio.to_thread.run_sync(_embedded, self._data_dir)
            url = self._lease.url
        group = self._group = anyio.create_task_group()
        await group.__aenter__()
        try:
            links = _Links(url, random=self._random, group=group, **self._times)
            links.work = await links.open("client")
        except BaseException:
            await self._close()  # noqa: ASYNC102 - bounded, see there
            raise
        pace = _Pace()

        def repeater(link: _Links | _Reader) -> Repeater:
            return Repeater(link, pace, self._random, self._timeout_s)

        core = ClientCore(
            self._keys,
            self._limits,
            work=repeater(links),
            reader=repeater(links.reader),
            exclusive=links.lend,
            pace=pace,
            wall_ms=lambda: time.time_ns() // 1_000_000,
            random=self._random,
            timeout_s=self._timeout_s,
        )
        self._opened = (core, Tail(core, group))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()  # noqa: ASYNC102 - bounded, see there

    async def _close(self) -> None:
        """End all connections. The body's exception is kept away from the task group, which would wrap it.

        The group shields itself and is cancelled at the same moment, so all that is waited for is its children's end;
        another scope around it could not be left in order.
        """
        self._opened = None
        group, self._group = self._group, None
        try:
            if group is not None:
                group.cancel_scope.shield = True
                group.cancel_scope.cancel()
                await group.__aexit__(None, None, None)
        finally:
            if self._lease is not None:
                self._lease.close()

    async def submit(
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
        """Submit one job; arguments and errors as of ``Client.submit``."""
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
        return await self.core.submit(
            request,
            durable=durable,
            durable_timeout_s=durable_timeout_s,
            allow_unknown_service=allow_unknown_service,
        )

    async def submit_many(
        self,
        requests: Iterable[JobRequest],
        *,
        durable: bool = False,
        durable_timeout_s: float = DURABLE_TIMEOUT_S,
        allow_unknown_service: bool = False,
    ) -> BatchResult:
        """Submit many jobs in few round trips; as ``Client.submit_many``: refusals of single jobs are in the result."""
        return await self.core.submit_many(
            requests,
            durable=durable,
            durable_timeout_s=durable_timeout_s,
            allow_unknown_service=allow_unknown_service,
        )

    async def get(self, job_id: str) -> JobView:
        """Everything known of one job.

        Raises:
            JobNotFound: unknown, or its retention ended.
        """
        return await self.core.get(job_id)

    async def get_many(self, job_ids: Sequence[str]) -> list[JobView | None]:
        """Several jobs at once; None for an unknown one."""
        return await self.core.ops.inspect(job_ids)

    async def wait(self, job_id: str, timeout_s: float) -> JobView:
        """Wait until a job has ended (completed, dead or cancelled); at once when it has already.

        Args:
            job_id: the job.
            timeout_s: longest wait, seconds.

        Raises:
            JobNotFound: unknown, or its retention ended.
            WaitTimeout: not ended in time; the job goes on.
        """
        core, tail = self._open()
        with anyio.move_on_after(timeout_s):
            view = await core.get(job_id)
            if view.terminal:
                return view
            # The bell is hung up before the second look, so that no end can fall between the two.
            bell = await tail.watch(job_id)
            try:
                while True:
                    view = await core.get(job_id)
                    if view.terminal:
                        return view
                    with anyio.move_on_after(NET_S):
                        await bell.wait()
                        bell = tail.renew(job_id, bell)
            finally:
                tail.unwatch(job_id, bell)
        raise WaitTimeout(job_id, timeout_s)

    async def cancel(self, job_ids: Sequence[str]) -> list[CancelStatus]:
        """Stop jobs: waiting ones end at once, running ones are told through their lease."""
        return await self.core.ops.cancel(job_ids)

    async def events(self, after: str = OLDEST, *, follow: bool = True) -> AsyncGenerator[Event, None]:
        """The queue's events; arguments as of ``Client.events``. A reader that leaves early uses ``aclosing``."""
        cursor = await self.core.last_cursor() if after == "$" else after
        while True:
            events, cursor = await self.core.events_page(cursor, block_s=1.0 if follow else 0.0)
            for event in events:
                yield event
            if not events and not follow:
                return

    async def job_stream(
        self, job_id: str, after: str = OLDEST, *, follow: bool = True
    ) -> AsyncGenerator[StreamItem, None]:
        """Progress and result chunks of one job until it has ended; arguments as of ``Client.job_stream``.

        A reader that leaves before the end does so from within ``contextlib.aclosing``.

        Raises:
            JobNotFound: unknown, or its retention ended.
        """
        while True:
            block_s = STREAM_BLOCK_S if follow else 0.0
            items, ended = await self.core.stream_page(job_id, after, block_s=block_s)
            for item in items:
                yield item
            if ended or not (items or follow):
                return
            after = items[-1].id if items else after

    async def stats(self) -> QueueStats:
        """Counts of the queue."""
        return await self.core.stats()

    async def classes(self) -> dict[ClassId, JobClass]:
        """The queue's classes by id."""
        return await self.core.ops.classes()

    async def workers(self) -> list[WorkerView]:
        """Registered workers, by id."""
        return await self.core.workers()

    async def dead_letters(self, count: int = 100) -> list[JobView]:
        """The most recent dead letters, newest first."""
        return await self.core.ops.dead_jobs(count)

    async def requeue(self, job_ids: Sequence[str]) -> list[RequeueStatus]:
        """Give dead letters a new life. After a lost reply the repetition answers ``not_dead``: they live already."""
        return await self.core.ops.requeue(job_ids)

    async def requeue_all(self) -> list[tuple[str, RequeueStatus]]:
        """Give every present dead letter a new life."""
        return await self.core.requeue_all()

    async def pause(self) -> bool:
        """Grant no claims until ``resume``; False if it was paused already."""
        return await self.core.ops.pause()

    async def resume(self) -> bool:
        """Grant claims again; False if it was not paused."""
        return await self.core.ops.resume()

    async def explain(self, job_id: str) -> Explanation:
        """Why a job is where it is, and who could run it.

        Raises:
            JobNotFound: unknown, or its retention ended.
        """
        return await self.core.explain(job_id)

    async def events_complete(self) -> bool:
        """Whether the event stream still has its first entry; False where the server cannot tell."""
        return await self.core.events_complete()

    async def server_facts(self) -> ServerFacts:
        """What the Redis says about itself."""
        return await self.core.server_facts()

    async def now_ms(self) -> int:
        """Redis time, milliseconds since the epoch."""
        return await self.core.now_ms()


def _embedded(data_dir: Path | None) -> EmbeddedRedisLease:
    try:
        return acquire_embedded_redis(data_dir)
    except EmbeddedRedisError as error:
        raise StoreUnavailable(str(error), outcome_unknown=False) from error
