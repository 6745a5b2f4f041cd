"""A thousand jobs cancelled at once over each protocol: all end at the peer, and nothing of ours is left behind."""

from __future__ import annotations

import functools
import gc
import os
import random
import threading
from typing import Any

import pytest
import trio

from gateway.connector import Connector, ConnectorSetup
from gateway.connectors.registry import default_registry
from gateway.connectors.simulation.wire import JournalEvent, WorkPayload
from gateway.models import JobSpec
from protocols.base import Endpoint, open_tcp
from simulator.contract import RecordingJob
from simulator.dialects.catalogue import DIALECTS, Dialect, Twin
from simulator.faults import FaultPlan
from simulator.model import ServiceConfig
from simulator.seeding import streams

JOBS = 1_000
#: As a gateway has them: many workers with some slots each, every worker with a connector of its own.
WORKERS = 20
#: They begin, and the service is told of their end, in waves: a thousand handshakes at once on a busy machine show only
#: that it is busy. The runs themselves are cancelled all at once.
WAVE = 40
#: Both ends of every connection are in this process, and each has its descriptors.
DESCRIPTORS = 4 * JOBS
LIMIT_S = 150.0
#: Worker threads that have nothing to do any more end after 10 s (trio's own bound).
IDLE_THREADS_S = 20.0
PROTOCOLS = [one for one in DIALECTS if one.name.startswith("simulation-")]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def room() -> Any:
    """Descriptors for all connections, as a server's limits would give them."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < DESCRIPTORS:
        pytest.skip(f"this machine allows {hard} descriptors, {DESCRIPTORS} are needed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, DESCRIPTORS), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.limit_s(170)
@pytest.mark.parametrize("one", PROTOCOLS, ids=lambda one: one.name)
async def test_a_thousand_cancels_leave_nothing_behind(one: Dialect) -> None:
    """Every job that was begun is cancelled at the peer, none completes, no thread and no socket stays."""
    with trio.fail_after(LIMIT_S):
        # Once on a small scale: what is made on first use and then kept for good is no leak.
        await crowd(one, WORKERS)
        gc.collect()
        threads, files = threading.active_count(), descriptors()
        await crowd(one, JOBS)
        gc.collect()
        assert descriptors() <= files
        with trio.move_on_after(IDLE_THREADS_S):
            # trio keeps idle worker threads for 10 s, and a gRPC stream is read by one; none of them waits for a call.
            while threading.active_count() > threads + 2:  # noqa: ASYNC110 - threads tell nobody when they end
                await trio.sleep(0.1)
        assert threading.active_count() <= threads + 2


async def crowd(one: Dialect, count: int) -> None:
    async with trio.open_nursery() as nursery:
        config = ServiceConfig(instance="twin-0", slots=count, queue_max=count)
        twin: Twin = one.load_twin()(config, FaultPlan.none(), random_for=streams(0, "twin-0"))
        handle = await nursery.start(functools.partial(twin.run, host="127.0.0.1", port=0))
        make = default_registry().load(one.connectors[0])
        setup = ConnectorSetup(
            endpoint=Endpoint(scheme=one.scheme, host="127.0.0.1", port=handle.port),
            open_stream=open_tcp,
            random=random.Random(0),
            now_s=trio.current_time,
            options={"stall_s": 60.0, "request_timeout_s": 60.0},
        )
        connectors = [make(setup) for _ in range(WORKERS)]
        journal = twin.shell.service.journal
        async with trio.open_nursery() as running:
            for begun in range(0, count, WAVE):
                numbers = range(begun, min(begun + WAVE, count))
                for number in numbers:
                    running.start_soon(run_one, one, connectors[number % WORKERS], number)
                while len(journal.summary().executions_by_job) <= numbers[-1]:  # noqa: ASYNC110 - the peer's counter
                    await trio.sleep(0.02)
            running.cancel_scope.cancel()
        for begun in range(0, count, WAVE):
            async with trio.open_nursery() as stopping:
                for number in range(begun, min(begun + WAVE, count)):
                    stopping.start_soon(connectors[number % WORKERS].cancel, f"job-{number}.1")
        events = [entry.event for entry in journal.page(0, 10_000).entries]
        assert events.count(JournalEvent.CANCELLED) == count
        assert JournalEvent.FINISHED not in events
        for connector in connectors:
            await connector.aclose()
        nursery.cancel_scope.cancel()


async def run_one(one: Dialect, connector: Connector, number: int) -> None:
    """A job that does not end by itself."""
    payload = one.payload_for(WorkPayload(duration_s=3_600.0))
    spec = JobSpec(service=connector.service, payload=payload)
    await connector.run(RecordingJob(spec, job_id=f"job-{number}"))
