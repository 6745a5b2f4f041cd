"""The gRPC connectors above another channel: the same logic under virtual time, from one seed, without a thread."""

from __future__ import annotations

import random
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.connector import Connector, ConnectorSetup, ServicePhase
from gateway.connectors.registry import default_registry
from gateway.connectors.simulation.wire import JournalEvent, WorkPayload
from gateway.errors import FaultClass, JobFault
from gateway.models import JobSpec
from protocols.base import Endpoint
from simulator.contract.bench import marked
from simulator.contract.recorder import RecordingJob
from simulator.dialects.catalogue import dialect_of
from simulator.dialects.openinference import OpenInferenceService
from simulator.faults import FaultPlan
from simulator.model import ServiceConfig
from simulator.run import deterministic_scheduler
from simulator.seeding import streams
from simulator.services.grpc import SimulationGRPCService
from simulator.services.grpc_wire import wired_channels
from tests.support.wired import connections_to

HERE = Endpoint(scheme="grpc", host="service", port=1)


async def nobody(_host: str, _port: int) -> trio.abc.Stream:
    raise ConnectionRefusedError("nobody listens")


@asynccontextmanager
async def bench(
    key: str, *, seed: int = 0, **knobs: Any
) -> AsyncIterator[tuple[Connector, SimulationGRPCService | OpenInferenceService]]:
    """A connector and its twin in one run."""
    make: Any = SimulationGRPCService if key == "simulation-grpc" else OpenInferenceService
    twin = make(
        ServiceConfig(instance="twin-0"),
        FaultPlan.none().updated(knobs),
        random_for=streams(seed, "twin-0"),
    )
    dialect = dialect_of(key)
    assert dialect is not None
    setup = ConnectorSetup(
        endpoint=HERE,
        open_stream=nobody,
        open_channel=wired_channels(connections_to(twin.handle)),
        random=random.Random(seed),
        now_s=trio.current_time,
        options=dict(dialect.options),
    )
    connector = default_registry().load(key)(setup)
    try:
        yield connector, twin
    finally:
        await connector.aclose()


def job_of(key: str, *, duration_s: float = 1.0, chunks: int = 0) -> RecordingJob:
    dialect = dialect_of(key)
    assert dialect is not None
    work = WorkPayload(duration_s=duration_s, result="mark-1", chunks=chunks)
    spec = JobSpec(service=key.partition("-")[0], payload=dialect.payload_for(work), timeout_s=3_600.0)
    return RecordingJob(spec, reference="job-1.1")


def in_virtual_time(check: Callable[[], Any], seed: int = 0) -> Any:
    with deterministic_scheduler(seed):
        return trio.run(check, clock=trio.testing.MockClock(autojump_threshold=0))


@given(
    seed=st.integers(0, 2**32),
    rates=st.fixed_dictionaries(
        {
            name: st.sampled_from([0.0, 0.2, 0.5])
            for name in (
                *("disconnect_rate", "half_open_rate", "lost_completion_rate", "submit_reply_lost_rate"),
                *("duplicate_event_rate", "out_of_order_rate", "event_after_terminal_rate", "slow_rate"),
            )
        }
    ),
)
@settings(max_examples=40)
def test_whatever_the_streams_do_the_work_is_done_once(seed: int, rates: dict[str, float]) -> None:
    """simulation-grpc brings a job's own result, done once, its chunks each once, whatever happens to its streams."""

    async def check() -> None:
        async with bench("simulation-grpc", seed=seed, **rates) as (connector, twin):
            job = job_of("simulation-grpc", chunks=3)
            with trio.fail_after(600):
                result = await connector.run(job)
            assert marked(result.value, "mark-1")
            assert sum(twin.service.journal.summary().executions_by_job.values()) == 1
            chunks = [str(chunk) for chunk in job.chunks]
            assert len(set(chunks)) == len(chunks)

    in_virtual_time(check, seed)


@pytest.mark.parametrize("key", ["simulation-grpc", "openinference-grpc"])
def test_a_cancel_reaches_the_handler(key: str) -> None:
    """The scope of a job ends its call, and where the service knows jobs by name, cancelling ends the work."""

    async def check() -> None:
        async with bench(key) as (connector, twin):
            job = job_of(key, duration_s=1_000.0)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(connector.run, job)
                await trio.sleep(2)
                nursery.cancel_scope.cancel()
            if connector.capabilities.cancel:
                await connector.cancel(job.reference)
            assert twin.service.journal.page(0, 100).entries[-1].event is JournalEvent.CANCELLED

    in_virtual_time(check)


def test_a_deadline_passes_in_virtual_time() -> None:
    """A model that is ready and hangs costs its whole deadline, and no real time."""

    async def check() -> None:
        async with bench("openinference-grpc", lost_completion_rate=1.0) as (connector, _twin):
            assert (await connector.health()).healthy
            began_s = trio.current_time()
            with pytest.raises(JobFault) as caught:
                await connector.run(job_of("openinference-grpc"))
            assert caught.value.fault_class is FaultClass.TIMEOUT
            assert caught.value.outcome_unknown
            assert trio.current_time() - began_s == pytest.approx(5.0)

    in_virtual_time(check)


def test_no_thread_and_the_same_story_from_the_same_seed() -> None:
    """Nothing of it needs a thread, and a seed tells the same story twice."""

    async def story() -> list[Any]:
        before = threading.active_count()
        async with bench("simulation-grpc", seed=3, disconnect_rate=0.5, out_of_order_rate=0.5) as (
            connector,
            twin,
        ):
            job = job_of("simulation-grpc", chunks=5)
            await connector.run(job)
            assert (await connector.query(job.reference)).phase is ServicePhase.COMPLETED
            await connector.cancel("nobody.1")
            assert threading.active_count() == before
            journal = [(entry.at_s, entry.event) for entry in twin.service.journal.page(0, 100).entries]
            return [*journal, trio.current_time(), *job.values]

    assert in_virtual_time(story, 3) == in_virtual_time(story, 3)


def test_nobody_listens_here_either() -> None:
    """A refused channel is a refusal whose reason is found by a plain connection: nothing was sent."""

    async def check() -> None:
        async with bench("simulation-grpc") as (connector, _twin):
            setup = connector.setup
            stray = type(connector)(
                ConnectorSetup(
                    endpoint=Endpoint(scheme="grpc", host="elsewhere", port=2),
                    open_stream=nobody,
                    open_channel=wired_channels(nobody),
                    random=setup.random,
                    now_s=setup.now_s,
                )
            )
            with pytest.raises(JobFault) as caught:
                await stray.run(job_of("simulation-grpc"))
            assert caught.value.fault_class is FaultClass.UNAVAILABLE
            assert not caught.value.outcome_unknown
            await stray.aclose()

    in_virtual_time(check)
