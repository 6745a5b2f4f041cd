"""The asynchronous client on a real Redis, under trio and asyncio alike."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from gateway.client import AsyncClient, BatchResult, Client, JobRequest
from gateway.errors import (
    ConfigError,
    DurabilityUnconfirmed,
    InvalidSubmission,
    JobNotFound,
    StoreUnavailable,
    UnknownService,
    WaitTimeout,
)
from gateway.models import JobState, Settlement, SubmitStatus
from gateway.store.calls import StoreLimits
from tests.support.hand_worker import fresh_queue, hand_worker
from tests.support.redis_server import RedisServer

Body = Callable[[], Awaitable[None]]


@pytest.fixture(params=["trio", "asyncio"])
def run(request: pytest.FixtureRequest) -> Callable[[Body], None]:
    """Runs a coroutine function under one of the event loops, bounded."""

    def run(body: Body) -> None:
        async def bounded() -> None:
            with anyio.fail_after(20):
                await body()

        anyio.run(bounded, backend=request.param)

    return run


def test_job_from_submit_to_result(run: Callable[[Body], None], redis_url: str) -> None:
    """Submit, follow the chunks, wait, and read the result."""

    async def body() -> None:
        queue = fresh_queue()
        with hand_worker(redis_url, queue) as worker:
            async with AsyncClient(redis_url, queue=queue) as client:
                handle = await client.submit("simulation", {"steps": 4}, idempotency_key="k")
                assert (await client.submit("simulation", idempotency_key="k")).deduplicated
                grant = worker.claim()
                worker.note(grant, 1, value=0.5)
                worker.note(grant, 2, chunk="a")
                async with anyio.create_task_group() as group:
                    seen: list[Any] = []

                    async def follow() -> None:
                        seen.extend([item.data async for item in client.job_stream(handle.job_id)])

                    group.start_soon(follow)
                    await anyio.sleep(0.1)
                    worker.settle(Settlement.completed(grant, body='{"image": "cat"}'))
                    view = await client.wait(handle.job_id, 5)
                assert (view.state, view.result, seen) == (
                    JobState.COMPLETED,
                    {"image": "cat"},
                    ["working", "a"],
                )
                kinds = [event.type.value async for event in client.events(follow=False)]
                assert kinds == ["submitted", "claimed", "completed"]
                story = await client.explain(handle.job_id)
                assert story.summary == ("It ended: completed.",)

    run(body)


def test_many_wait_on_one_reader(run: Callable[[Body], None], redis_url: str) -> None:
    """However many tasks wait, each sees its own job's end at once; a cancelled one leaves quietly."""

    async def body() -> None:
        queue = fresh_queue()
        async with AsyncClient(redis_url, queue=queue) as client:
            result = await client.submit_many([JobRequest("simulation", number) for number in range(40)])
            job_ids = [outcome.job_id for outcome in result.accepted]
            ended: list[str] = []

            async def wait(job_id: str) -> None:
                ended.append((await client.wait(job_id, 10)).job_id)

            async with anyio.create_task_group() as group:
                for job_id in job_ids[1:]:
                    group.start_soon(wait, job_id)
                with anyio.move_on_after(0.2) as scope:
                    await wait(job_ids[0])
                assert scope.cancelled_caught
                assert ended == []
                started_s = time.monotonic()
                await client.cancel(job_ids)
            assert sorted(ended) == sorted(job_ids[1:])
            assert time.monotonic() - started_s < 3
            assert (await client.wait(job_ids[0], 0.5)).state is JobState.CANCELLED
            assert await client.submit_many([]) == BatchResult(queue, ())

    run(body)


def test_errors_arrive_unwrapped(run: Callable[[Body], None], redis_url: str) -> None:
    """An error inside the client's block is the caller's own error, not a group of it."""

    async def body() -> None:
        with pytest.raises(JobNotFound):
            async with AsyncClient(redis_url, queue=fresh_queue()) as client:
                await client.get("nobody")
        with pytest.raises(StoreUnavailable):
            async with AsyncClient("redis://127.0.0.1:1/0"):
                pass
        with pytest.raises(ConfigError):
            async with AsyncClient("http://127.0.0.1:1"):
                pass
        client = AsyncClient(redis_url)
        with pytest.raises(StoreUnavailable, match="async with"):
            await client.get("x")
        async with AsyncClient(
            redis_url, queue=fresh_queue(), limits=StoreLimits(unfinished_max=1)
        ) as client:
            with pytest.raises(InvalidSubmission):
                await client.submit("simulation", priority=101)
            with pytest.raises(UnknownService):
                await client.submit("typo")
            result = await client.submit_many([JobRequest("simulation", job_id=job_id) for job_id in "ab"])
            assert [outcome.status for outcome in result.refused] == [SubmitStatus.FULL]
            with pytest.raises(WaitTimeout):
                await client.wait("a", 0.1)
            with pytest.raises(DurabilityUnconfirmed, match=r"stored: a\b"):
                await client.submit("simulation", job_id="a", durable=True)

    run(body)


def test_cancelled_calls_leave_the_client_usable(run: Callable[[Body], None], redis_url: str) -> None:
    """Whatever is cancelled in flight, the next call gets its own answer."""

    async def body() -> None:
        async with AsyncClient(redis_url, queue=fresh_queue()) as client:
            await client.submit("simulation", job_id="a")
            for delay_s in (0.0, 0.0001, 0.0005, 0.002):
                with anyio.move_on_after(delay_s):
                    await client.get("a")
                assert (await client.stats()).jobs == 1
            with anyio.move_on_after(0.1):
                async for _ in client.events("$"):
                    pass
            assert [event.job_id async for event in client.events(follow=False)] == ["a"]
            assert (await client.pause(), (await client.stats()).paused, await client.resume()) == (
                True,
                True,
                True,
            )
            assert await client.dead_letters() == []
            assert await client.requeue_all() == []
            assert await client.workers() == []

    run(body)


def test_embedded_redis_is_shared_by_both_clients(run: Callable[[Body], None]) -> None:
    """Without an address both clients use this user's own Redis, started on demand."""

    async def body(home: Path) -> None:
        async with AsyncClient(data_dir=home) as client:
            await client.submit("simulation", job_id="a")
            with Client(data_dir=home) as other:
                assert other.get("a").job_id == "a"

    with tempfile.TemporaryDirectory(prefix="tg-client-") as directory:
        run(partial(body, Path(directory).resolve()))


def test_lost_connection_is_healed(run: Callable[[Body], None], redis_server: RedisServer) -> None:
    """A wait goes on over a restart of Redis."""

    async def body() -> None:
        async with AsyncClient(redis_server.url) as client:
            await client.submit("simulation", job_id="a")
            await anyio.sleep(1.1)  # everysec: the job is on disk
            async with anyio.create_task_group() as group:

                async def wait() -> None:
                    assert (await client.wait("a", 15)).state is JobState.CANCELLED

                group.start_soon(wait)
                await anyio.sleep(0.1)
                await anyio.to_thread.run_sync(partial(redis_server.restart, kill=True))
                await client.cancel(["a"])

    run(body)
