"""ComfyUI jobs through the whole gateway: real Redis, real sockets, the twin on a port of its own."""

from __future__ import annotations

import functools
from typing import Any

from gateway.client import AsyncClient
from gateway.connectors.simulation.wire import WorkPayload
from gateway.models import JobId, JobSpec, JobState, Submission, SubmitStatus
from protocols.http_server import ServerHandle
from simulator.dialects.comfyui import ComfyUIService, payload
from simulator.faults import FaultPlan
from simulator.model import ServiceConfig
from simulator.seeding import streams
from tests.chaos.fleet import until
from tests.runtime.live import LiveGateway, Stage, open_stage


class Comfy:
    """A twin on a free port, and gateways that work for it."""

    def __init__(self, stage: Stage, **faults: Any) -> None:
        self.stage = stage
        self.twin = ComfyUIService(
            ServiceConfig(instance="comfy"), FaultPlan.none().updated(faults), random_for=streams(0, "comfy")
        )
        self.url = ""

    async def up(self) -> None:
        run = functools.partial(self.twin.run, host="127.0.0.1", port=0)
        handle: ServerHandle = await self.stage.nursery.start(run)
        self.url = handle.url

    async def gateway(self, machine: str, **settings: Any) -> LiveGateway:
        worker = {"connector": "comfyui-websocket", "endpoint": self.url, "slots": 2}
        return await self.stage.gateway({}, {"workers": {"w": worker}, **settings}, machine=machine)

    async def submit(self, job_id: str, **work: Any) -> str:
        spec = JobSpec(service="comfyui", payload=payload(WorkPayload(**work)))
        verdict = await self.stage.watch.store.submit(Submission(job_id=JobId(job_id), spec=spec))
        assert verdict.status is SubmitStatus.ACCEPTED
        self.stage.watch.accepted.append(job_id)
        return job_id

    @property
    def executions(self) -> dict[str, int]:
        return self.twin.service.journal.summary().executions_by_job


async def test_a_job_brings_progress_previews_and_its_files(redis_url: str) -> None:
    """From the queue to the result, with the pictures of its way in the job's own stream."""
    async with open_stage(redis_url, "comfy-whole") as stage:
        comfy = Comfy(stage)
        await comfy.up()
        await comfy.gateway("m")
        job = await comfy.submit("job", duration_s=3.0, chunks=2, result="mark")
        await stage.watch.wait_terminal([job], 20)
        view = await stage.watch.view(job)
        assert view.state is JobState.COMPLETED
        assert view.result["outputs"]["1"]["simulation"][0]["echo"] == "mark"
        (file,) = view.result["files"]
        assert file["url"].startswith(f"{comfy.url}/view?filename=")
        async with AsyncClient(redis_url, queue="comfy-whole") as client:
            told = [item async for item in client.job_stream(job)]
        pictures = [item.data["media_type"] for item in told if item.kind == "chunk"]
        assert pictures == ["image/png"] * 2
        await stage.watch.audited()


async def test_a_job_left_at_the_server_is_followed_by_its_next_owner(redis_url: str) -> None:
    """The second gateway re-attaches by the prompt id; the work runs once."""
    async with open_stage(redis_url, "comfy-reattach") as stage:
        comfy = Comfy(stage, lost_completion_rate=1.0)
        await comfy.up()
        first = await comfy.gateway("first", shutdown={"grace_s": 0.0})
        job = await comfy.submit("job", duration_s=3.0, result="mark")
        await until(lambda: bool(comfy.executions), 10, "the work began")
        first.stop.drain()
        await first.stopped.wait()
        await stage.watch.wait_event("released", job, 10)
        second = await comfy.gateway("second")
        await stage.watch.wait_terminal([job], 20)
        assert (job, "resume") in second.notes.calls
        assert (await stage.watch.view(job)).state is JobState.COMPLETED
        assert list(comfy.executions.values()) == [1]
        await stage.watch.audited()
