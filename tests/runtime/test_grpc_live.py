"""gRPC jobs through the whole gateway: real Redis, real sockets, twins behind grpcio's own server."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from gateway.client import AsyncClient
from gateway.connectors.simulation.wire import JournalEvent, WorkPayload
from gateway.models import CancelStatus, JobId, JobSpec, JobState, Submission, SubmitStatus
from protocols.grpc_server import GRPCServerHandle
from simulator.dialects.catalogue import dialect
from simulator.faults import FaultPlan
from simulator.model import ServiceConfig
from simulator.seeding import streams
from tests.chaos.fleet import until
from tests.runtime.live import LiveGateway, Stage, open_stage

NAMES = ["simulation-grpc", "openinference"]


class Served:
    """A twin on a free port, and gateways that work for it."""

    def __init__(self, stage: Stage, name: str, **faults: Any) -> None:
        self.stage = stage
        self.dialect = dialect(name)
        make = self.dialect.load_twin()
        plan = FaultPlan.none().updated(faults)
        self.twin = make(ServiceConfig(instance="twin"), plan, random_for=streams(0, "twin"))
        self.url = ""

    async def up(self) -> None:
        run = functools.partial(self.twin.run, host="127.0.0.1", port=0)
        handle: GRPCServerHandle = await self.stage.nursery.start(run)
        self.url = handle.url

    async def gateway(self, machine: str, **settings: Any) -> LiveGateway:
        worker = {
            "connector": self.dialect.connectors[0],
            "endpoint": self.url,
            "slots": 2,
            "options": dict(self.dialect.options),
        }
        return await self.stage.gateway({}, {"workers": {"w": worker}, **settings}, machine=machine)

    async def submit(self, job_id: str, **work: Any) -> str:
        service = self.dialect.connectors[0].partition("-")[0]
        spec = JobSpec(service=service, payload=self.dialect.payload_for(WorkPayload(**work)))
        verdict = await self.stage.watch.store.submit(Submission(job_id=JobId(job_id), spec=spec))
        assert verdict.status is SubmitStatus.ACCEPTED
        self.stage.watch.accepted.append(job_id)
        return job_id

    @property
    def executions(self) -> dict[str, int]:
        return self.twin.shell.service.journal.summary().executions_by_job

    def happened(self, event: JournalEvent) -> bool:
        entries = self.twin.shell.service.journal.page(0, 10_000).entries
        return any(entry.event is event for entry in entries)


@pytest.mark.parametrize("name", NAMES)
async def test_a_job_brings_its_chunks_and_its_result(redis_url: str, name: str) -> None:
    """From the queue to the result, with the streamed output in the job's own stream, and the lease in the journal."""
    queue = f"grpc-whole-{name}"
    async with open_stage(redis_url, queue) as stage:
        served = Served(stage, name)
        await served.up()
        await served.gateway("m")
        job = await served.submit("job", duration_s=1.0, chunks=2, result="mark-1")
        await stage.watch.wait_terminal([job], 30)
        view = await stage.watch.view(job)
        assert view.state is JobState.COMPLETED
        assert "mark-1" in str(view.result)
        async with AsyncClient(redis_url, queue=queue) as client:
            told = [item async for item in client.job_stream(job)]
        chunks = [str(item.data) for item in told if item.kind == "chunk"]
        assert ["chunk 1" in chunks[0], "chunk 2" in chunks[1]] == [True, True]
        entries = served.twin.shell.service.journal.page(0, 100).entries
        assert {entry.worker for entry in entries} == {"m/w"}
        assert served.twin.shell.service.journal.summary().misrouted == 0
        await stage.watch.audited()


@pytest.mark.parametrize("name", NAMES)
async def test_a_cancelled_job_ends_at_the_service(redis_url: str, name: str) -> None:
    """An operator's cancel stops the work behind the call, with or without a verb of the service for it."""
    async with open_stage(redis_url, f"grpc-cancel-{name}") as stage:
        served = Served(stage, name)
        await served.up()
        await served.gateway("m", runner={"cancel_timeout_s": 5.0})
        job = await served.submit("job", duration_s=4.0)
        await until(lambda: bool(served.executions), 20, "the work began")
        (status,) = await stage.watch.store.cancel([job])
        assert status is CancelStatus.REQUESTED
        await stage.watch.wait_terminal([job], 20)
        assert (await stage.watch.view(job)).state is JobState.CANCELLED
        await until(lambda: served.happened(JournalEvent.CANCELLED), 20, "the work ended")
        assert not served.happened(JournalEvent.FINISHED)
        await stage.watch.audited()


async def test_a_job_left_at_the_service_is_followed_by_its_next_owner(redis_url: str) -> None:
    """The second gateway re-attaches by reference; the work runs once."""
    async with open_stage(redis_url, "grpc-reattach") as stage:
        served = Served(stage, "simulation-grpc", lost_completion_rate=1.0)
        await served.up()
        first = await served.gateway("first", shutdown={"grace_s": 0.0})
        job = await served.submit("job", duration_s=3.0, result="mark-1")
        await until(lambda: bool(served.executions), 20, "the work began")
        first.stop.drain()
        await first.stopped.wait()
        await stage.watch.wait_event("released", job, 20)
        second = await served.gateway("second")
        await stage.watch.wait_terminal([job], 30)
        assert (job, "resume") in second.notes.calls
        assert (await stage.watch.view(job)).state is JobState.COMPLETED
        assert list(served.executions.values()) == [1]
        await stage.watch.audited()


async def test_an_unready_model_gates_the_claims(redis_url: str) -> None:
    """While the model is not ready nothing is claimed; once it is, the waiting job runs, uncharged and once."""
    async with open_stage(redis_url, "grpc-unready") as stage:
        served = Served(stage, "openinference")
        served.twin.set_oddities({"model_ready": False})  # type: ignore[attr-defined]
        await served.up()
        live = await served.gateway("m")
        await until(lambda: ("m/w", False) in live.notes.probes, 20, "a probe failed")
        job = await served.submit("job", duration_s=0.05, result="mark-1")
        assert not served.executions
        served.twin.set_oddities({"model_ready": True})  # type: ignore[attr-defined]
        await stage.watch.wait_terminal([job], 30)
        assert (await stage.watch.view(job)).state is JobState.COMPLETED
        assert list(served.executions.values()) == [1]
        await stage.watch.audited()
