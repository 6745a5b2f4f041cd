"""The shipped gateway under measurement: the real class with its intake, runner, lease keeper and settler."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio

from benchmarks.noop import KEY, SERVICE, NoopHTTPConnector, noop_registry
from gateway.config import GatewayConfig, LimitsConfig, ShutdownConfig, WorkerConfig
from gateway.models import JobId, JobSpec, LeaseRef, Submission, SubmitStatus
from gateway.observer import SilentObserver
from gateway.store.calls import BATCH_MAX
from gateway.store.connection import redis_connect
from gateway.store.keys import QueueKeys
from gateway.store.redis import RedisStore
from gateway.supervisor import Gateway, Seams, StopSwitch

QUEUE = "benchmark"
#: Longest wait for any number of jobs, seconds: a benchmark that hangs must end.
WAIT_S = 600.0


class SettledCounter(SilentObserver):
    """Counts the leases that ended accepted."""

    def __init__(self) -> None:
        self.settled = 0
        self._target = 0
        self._reached = trio.Event()

    def disowned(self, lease: LeaseRef, worker_id: str, reason: str) -> None:
        if reason == "settled accepted":
            self.settled += 1
            if self.settled == self._target:
                self._reached.set()

    async def reach(self, target: int) -> None:
        """Wait until ``target`` jobs are settled since the start."""
        if self.settled >= target:
            return
        self._target, self._reached = target, trio.Event()
        with trio.fail_after(WAIT_S):
            await self._reached.wait()


class Fleet:
    """A running gateway process and its counters."""

    def __init__(self, gateway: Gateway, counter: SettledCounter) -> None:
        self.gateway = gateway
        self.counter = counter

    @property
    def store(self) -> RedisStore:
        return self.gateway.store

    @property
    def connectors(self) -> list[NoopHTTPConnector]:
        """One per worker."""
        return [
            endpoint.connector
            for worker in self.gateway.workers
            for endpoint in worker.endpoints
            if isinstance(endpoint.connector, NoopHTTPConnector)
        ]


def configuration(workers: int, slots: int, capabilities: Mapping[str, Any] | None = None) -> GatewayConfig:
    """The product's defaults, with idle endpoints and enough room for every job.

    Args:
        workers: claim loops.
        slots: jobs at once per worker.
        capabilities: of every worker.
    """
    return GatewayConfig(
        queue=QUEUE,
        machine="benchmark",
        seed=1,
        limits=LimitsConfig(unfinished_max=10_000_000),
        shutdown=ShutdownConfig(grace_s=1.0, release_s=1.0),
        workers={
            f"noop{number}": WorkerConfig(
                connector=KEY,
                endpoint=f"http://127.0.0.1:{number + 1}",
                slots=slots,
                capabilities=dict(capabilities or {}),
            )
            for number in range(workers)
        },
    )


def seeded(label: str) -> random.Random:
    """The random source of one component."""
    return random.Random(f"benchmark/{label}")


@asynccontextmanager
async def running(url: str, config: GatewayConfig) -> AsyncIterator[Fleet]:
    """Run a gateway until the block ends, then drain it.

    Args:
        url: of the Redis.
        config: see ``configuration``.
    """
    counter = SettledCounter()
    seams = Seams(
        connect_redis=redis_connect(
            url,
            connect_timeout_s=config.redis.connect_timeout_s,
            command_timeout_s=config.redis.command_timeout_s,
        ),
        instance="benchmark",
        machine=config.machine,
        random=seeded,
        observer=counter,
        registry=noop_registry(),
    )
    gateway = Gateway(config, seams)
    stop = StopSwitch()
    async with trio.open_nursery() as nursery:
        await nursery.start(lambda task_status: gateway.run(stop, task_status=task_status))
        yield Fleet(gateway, counter)
        stop.drain()
        stop.drain()


@asynccontextmanager
async def connected_store(url: str) -> AsyncIterator[RedisStore]:
    """A store over connections of its own, without a gateway: for submitters."""
    config = configuration(1, 1)
    store = RedisStore(
        redis_connect(url, connect_timeout_s=3.0, command_timeout_s=3.0),
        QueueKeys(QUEUE),
        config.limits.store_limits(),
        lease_s=config.lease.length_s,
        instance="submitter",
        random=seeded("submitter"),
    )
    async with trio.open_nursery() as nursery:
        await store.start(nursery)
        yield store
        nursery.cancel_scope.cancel()


async def submit(store: RedisStore, numbers: Iterable[int], specs: Sequence[JobSpec] = ()) -> int:
    """Submit no-op jobs, as many per call as the store takes; returns how many were accepted.

    Args:
        store: where to.
        numbers: one per job; the ids are made of them.
        specs: used in turn; one plain specification by default.
    """
    chosen = specs or (JobSpec(service=SERVICE, payload={"size": 1}),)
    accepted = 0
    batch: list[Submission] = []

    async def send() -> int:
        verdicts = await store.submit_many(batch)
        return sum(verdict.status is SubmitStatus.ACCEPTED for verdict in verdicts)

    for number in numbers:
        batch.append(Submission(job_id=job_id(number), spec=chosen[number % len(chosen)]))
        if len(batch) == BATCH_MAX:
            accepted += await send()
            batch = []
    if batch:
        accepted += await send()
    return accepted


def job_id(number: int) -> JobId:
    """Id of a job, with the twelve digits that ``redis-benchmark`` also writes."""
    return JobId(f"job-{number:012d}")
