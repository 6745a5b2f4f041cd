"""Jobs that require a model go where a probe has found it, at every service: real Redis, real sockets, the twins."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from gateway.connectors.registry import default_registry
from gateway.connectors.simulation.wire import WorkPayload
from simulator.dialects.catalogue import Twin, dialect_of
from simulator.faults import FaultPlan
from simulator.model import ServiceConfig
from simulator.seeding import streams
from tests.runtime.live import Stage, open_stage

KEYS = (
    "a1111-http",
    "comfyui-http",
    "comfyui-websocket",
    "openai-http",
    "openinference-grpc",
    "simulation-http",
)


async def serve(stage: Stage, key: str, name: str, models: tuple[str, ...]) -> tuple[Twin, str]:
    """A twin of the connector's service on a free port, and its address."""
    spoken = dialect_of(key)
    assert spoken is not None
    config = ServiceConfig(instance=name, models=models)
    twin = spoken.load_twin()(config, FaultPlan.none(), random_for=streams(0, name))
    handle = await stage.nursery.start(functools.partial(twin.run, host="127.0.0.1", port=0))
    return twin, handle.url


def executed(twin: Twin) -> set[str]:
    return {job.partition(".")[0] for job in twin.shell.service.journal.summary().executions_by_job}


@pytest.mark.parametrize("key", KEYS)
async def test_a_job_runs_only_where_its_model_was_found(redis_url: str, key: str) -> None:
    """Of a pool the instance that told the model gets every job that requires it; one that nobody has waits."""
    spoken, service = dialect_of(key), default_registry().load(key).service
    assert spoken is not None
    payload: Any = spoken.payload_for(WorkPayload(duration_s=0.02))
    async with open_stage(redis_url, f"models-{key}") as stage:
        plain, plain_url = await serve(stage, key, "plain", ("flux",))
        able, able_url = await serve(stage, key, "able", ("flux", "sdxl"))
        worker = {
            "connector": key,
            "slots": 1,
            "probe_capabilities": True,
            "endpoints": [plain_url, able_url],
        }
        live = await stage.gateway({}, {"workers": {"w": worker}})
        wanted = [
            await stage.watch.submit(
                f"job-{number}", payload, service=service, requires={"models": {"has": "sdxl"}}
            )
            for number in range(4)
        ]
        elsewhere = await stage.watch.submit(
            "elsewhere", payload, service=service, requires={"models": {"has": "sd3"}}
        )
        await stage.watch.wait_terminal(wanted, 20)
        assert executed(able) == set(wanted)
        assert executed(plain) == set()
        found = {one.url: one.capabilities["models"] for one in live.worker().endpoints}
        assert [name for name in found[able_url] if name not in found[plain_url]] == ["sdxl"]
        view = (await stage.watch.store.inspect([elsewhere]))[0]
        assert view is not None
        assert view.state == "pending"
