"""The recording job keeps the promises of the gateway's own: one script, both, told apart by nothing."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
import trio

from gateway.connector import JobContext
from gateway.context import CHUNK_BYTES_MAX, ProgressPump, RunningJob
from gateway.errors import FaultClass, JobFault
from gateway.leases import Ownership
from gateway.models import ClaimRequest, JobId, JobSpec, Settlement, Submission, WorkerId
from gateway.recovery import Reference
from simulator.contract import RecordingJob
from tests.chaos.fleet import make_store
from tests.support.hand_worker import fresh_queue

SPEC = JobSpec(service="simulation", payload={"steps": 4})
HEADERS = {"x-gateway-worker": "w"}
PUMP_S = 0.02

Told = tuple[list[float], list[Any]]


@asynccontextmanager
async def recording() -> AsyncIterator[
    tuple[JobContext, Callable[[], Awaitable[Told]], Callable[[], Awaitable[None]]]
]:
    """The fake, what it was told, and how its lease is lost."""
    job = RecordingJob(SPEC, job_id="job", epoch=7, reference="job.1", headers=HEADERS)

    async def told() -> Told:
        return job.values, job.chunks

    async def lose() -> None:
        job.lost = True

    yield job, told, lose


@asynccontextmanager
async def running(
    redis_url: str,
) -> AsyncIterator[tuple[JobContext, Callable[[], Awaitable[Told]], Callable[[], Awaitable[None]]]]:
    """The gateway's own over a real Redis, and the same two handles."""
    queue = fresh_queue()
    async with trio.open_nursery() as nursery:
        store = make_store(redis_url, queue, f"{queue}-tester")
        await store.start(nursery)
        await store.submit(Submission(job_id=JobId("job"), spec=SPEC))
        classes = tuple(await store.classes())
        (grant,) = (await store.claim(ClaimRequest("r", WorkerId("w"), 1, 1, classes))).grants
        ownership = Ownership(grant, "w", until_s=math.inf, now_s=trio.current_time)
        pump = ProgressPump(store, every_s=PUMP_S)
        nursery.start_soon(pump.run)
        reference = Reference("simulation-http", "http://127.0.0.1:1", "job.1")
        job = RunningJob(store, ownership, reference, lambda: HEADERS, pump, now_s=trio.current_time())

        async def told() -> Told:
            await trio.sleep(PUMP_S * 10)
            entries = [fields for _, fields in await store.job_stream("job", "0-0", count=100)]
            values = [float(entry["value"]) for entry in entries if entry["kind"] == "progress"]
            chunks = [msgspec.json.decode(entry["body"]) for entry in entries if entry["kind"] == "chunk"]
            return values, chunks

        async def lose() -> None:
            await store.settle(Settlement.released(grant))

        yield job, told, lose
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def either(
    which: str, redis_url: str
) -> AsyncIterator[tuple[JobContext, Callable[[], Awaitable[Told]], Callable[[], Awaitable[None]]]]:
    opened = recording() if which == "recording" else running(redis_url)
    with trio.fail_after(20):
        async with opened as handles:
            yield handles


both = pytest.mark.parametrize("which", ["recording", "running"])


@both
async def test_what_a_connector_sees(which: str, redis_url: str) -> None:
    """Id, job, epoch, reference and headers are those of the lease; an attached name replaces the reference."""
    async with either(which, redis_url) as (job, _told, _lose):
        assert (job.job_id, job.spec, job.reference) == ("job", SPEC, "job.1")
        assert job.epoch > 0
        assert dict(job.headers) == HEADERS
        await job.attach("chosen-by-the-service")
        assert job.reference == "chosen-by-the-service"


@both
async def test_progress_never_goes_back_and_never_blocks(which: str, redis_url: str) -> None:
    """Values are clamped to 0..1, never fall, and what is no number changes nothing."""
    async with either(which, redis_url) as (job, told, _lose):
        for value in (0.5, 0.25, math.nan, -1.0, 7.0):
            job.progress(value, "step")
            values, _chunks = await told()
            assert values[-1] == (1.0 if value == 7.0 else 0.5)
        assert values == sorted(values)


@both
async def test_chunks_arrive_in_order_as_json(which: str, redis_url: str) -> None:
    """What comes out is what JSON makes of what went in."""
    async with either(which, redis_url) as (job, told, _lose):
        for data in ("a", {"token": 1}, (1, 2), None):
            await job.chunk(data)
        _values, chunks = await told()
        assert chunks == ["a", {"token": 1}, [1, 2], None]


@both
async def test_a_chunk_beyond_the_bound_is_refused(which: str, redis_url: str) -> None:
    """Too large is a validation fault, and nothing of it is stored; what is no JSON is a bug of the connector."""
    async with either(which, redis_url) as (job, told, _lose):
        with pytest.raises(JobFault) as caught:
            await job.chunk("x" * CHUNK_BYTES_MAX)
        assert caught.value.fault_class is FaultClass.VALIDATION
        with pytest.raises(TypeError):
            await job.chunk(object())
        assert (await told())[1] == []


@both
async def test_a_lost_lease_ends_it(which: str, redis_url: str) -> None:
    """Once the job is somebody else's, names and chunks are refused as a lost lease."""
    async with either(which, redis_url) as (job, told, lose):
        await lose()
        for call in (job.attach, job.chunk):
            with pytest.raises(JobFault) as caught:
                await call("late")
            assert caught.value.fault_class is FaultClass.LEASE_LOST
        assert (await told())[1] == []
