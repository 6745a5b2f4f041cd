"""``openinference-grpc`` against MLServer, the protocol's own reference server, with a small model of ours."""

from __future__ import annotations

import base64
import json
import random
import shutil
import struct
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trio

from gateway.connector import Connector, ConnectorSetup
from gateway.connectors.registry import default_registry
from gateway.errors import FaultClass, JobFault
from gateway.models import JobSpec
from protocols.base import Endpoint, open_tcp
from simulator.contract.recorder import RecordingJob
from tests.interop.real_servers import answers, free_port, server_environment, server_process

#: Recorded with this version; a newer one may say other things, which is to be looked at, not stumbled over.
REQUIREMENTS = ("mlserver==1.7.1",)
#: Installing and starting it for the first test takes minutes on a slow line.
pytestmark = pytest.mark.limit_s(1_100)


@dataclass(frozen=True, slots=True)
class Server:
    """A running MLServer."""

    url: str
    http: str
    journal: Path

    def happened(self, what: str, request_id: str) -> bool:
        """Whether the model noted this about a request."""
        return self.journal.exists() and f"{what} {request_id}\n" in self.journal.read_text()

    def repository(self, verb: str) -> None:
        """Load or unload the model."""
        asked = urllib.request.Request(f"{self.http}/v2/repository/models/echo/{verb}", method="POST")
        with urllib.request.urlopen(asked, timeout=30) as reply:
            assert reply.status == 200


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    programs = server_environment("mlserver", REQUIREMENTS)
    home = tmp_path_factory.mktemp("mlserver")
    grpc_port, http_port, metrics_port = free_port(), free_port(), free_port()
    settings = {
        "host": "127.0.0.1",
        "grpc_port": grpc_port,
        "http_port": http_port,
        "metrics_port": metrics_port,
        # In the server's own process, so that a cancelled call cancels the model.
        "parallel_workers": 0,
        "gzip_enabled": False,
    }
    (home / "settings.json").write_text(json.dumps(settings))
    model = {"name": "echo", "implementation": "mlserver_runtime.Runtime"}
    (home / "model-settings.json").write_text(json.dumps(model))
    shutil.copy(Path(__file__).with_name("mlserver_runtime.py"), home)
    http = f"http://127.0.0.1:{http_port}"
    command = (programs / "mlserver", "start", home)
    ready = f"{http}/v2/models/echo/ready"
    with server_process(command, home / "mlserver.log", lambda: answers(ready), {}):
        yield Server(f"grpc://127.0.0.1:{grpc_port}", http, home / "journal.txt")


@asynccontextmanager
async def connected(server: Server, **options: Any) -> AsyncIterator[Connector]:
    setup = ConnectorSetup(
        endpoint=Endpoint.parse(server.url),
        open_stream=open_tcp,
        random=random.Random(0),
        now_s=trio.current_time,
        options={"model": "echo", **options},
    )
    connector = default_registry().load("openinference-grpc")(setup)
    try:
        yield connector
    finally:
        await connector.aclose()


TEXTS = {"name": "texts", "datatype": "BYTES", "shape": [2], "data": ["one", "zwölf"]}
NUMBERS = {"name": "numbers", "datatype": "FP32", "shape": [2, 2], "data": [[0.5, 1.0], [2.0, -4.0]]}


def job_of(reference: str, *inputs: dict[str, Any], **payload: Any) -> RecordingJob:
    """A job under a reference of its own, for the model's journal."""
    timeout_s = payload.pop("timeout_s", 60.0)
    spec = JobSpec(
        service="openinference",
        payload={"inputs": list(inputs or (TEXTS,)), **payload},
        timeout_s=timeout_s,
    )
    return RecordingJob(spec, reference=reference)


async def fault_of(connector: Connector, job: RecordingJob) -> JobFault:
    with trio.fail_after(60), pytest.raises(JobFault) as caught:
        await connector.run(job)
    return caught.value


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110 another process does it
            await trio.sleep(0.05)


async def test_an_inference_brings_its_outputs(server: Server) -> None:
    """Typed tensors go there and come back, under the job's own reference."""
    async with connected(server) as connector:
        assert (await connector.health()).healthy
        result = (await connector.run(job_of("plain.1", TEXTS, NUMBERS))).value
    texts, numbers = result["outputs"]
    assert texts["data"] == TEXTS["data"]
    assert (numbers["datatype"], numbers["shape"]) == ("FP32", [2, 2])
    assert numbers["data"] == [0.5, 1.0, 2.0, -4.0]
    assert server.happened("ended", "plain.1")


async def test_raw_contents_both_ways(server: Server) -> None:
    """A request with raw bytes is answered with raw bytes."""
    raw = base64.b64encode(struct.pack("<4f", 0.5, 1.0, 2.0, -4.0)).decode()
    numbers = {"name": "numbers", "datatype": "FP32", "shape": [4], "raw": raw}
    async with connected(server) as connector:
        result = (await connector.run(job_of("raw.1", numbers))).value
    assert result["outputs"][0]["raw"] == raw


async def test_a_stream_brings_its_pieces(server: Server) -> None:
    """Every answer of a stream is a chunk, and the last one the result."""
    async with connected(server) as connector:
        job = job_of("stream.1", stream=True, parameters={"pieces": 5})
        result = (await connector.run(job)).value
    assert len(job.chunks) == 5
    assert result == job.chunks[-1]
    assert result["outputs"][0]["data"] == TEXTS["data"]


@pytest.mark.parametrize(
    ("fail", "wanted"), [("input", FaultClass.VALIDATION), ("crash", FaultClass.SERVICE_ERROR)]
)
@pytest.mark.parametrize("stream", [False, True])
async def test_failures_of_the_model(server: Server, fail: str, wanted: FaultClass, stream: bool) -> None:
    """What the model blames on the input is final; what it breaks on is tried again."""
    async with connected(server) as connector:
        job = job_of(f"fail.{fail}.{stream}", stream=stream, parameters={"fail": fail})
        fault = await fault_of(connector, job)
    assert fault.fault_class is wanted, fault
    assert len(job.chunks) == (3 if stream else 0)


async def test_an_unknown_model(server: Server) -> None:
    """A model that the server never had is the job's mistake, and no worker's health."""
    async with connected(server) as connector:
        fault = await fault_of(connector, job_of("unknown.1", model="nobody"))
        assert fault.fault_class is FaultClass.VALIDATION
    async with connected(server, model="nobody") as stranger:
        assert not (await stranger.health()).healthy


async def test_the_repository_tells_what_is_ready(server: Server) -> None:
    """Probed, it tells its loaded models, whatever model the worker is for; an unloaded one no longer."""
    for model in ("echo", ""):
        async with connected(server, model=model) as connector:
            assert await connector.probe_capabilities() == {"models": ["echo"]}
            server.repository("unload")
            try:
                assert await connector.probe_capabilities() == {"models": []}
            finally:
                server.repository("load")
            assert await connector.probe_capabilities() == {"models": ["echo"]}


async def test_an_unloaded_model(server: Server) -> None:
    """A server that lost its model stays ready itself; its worker is unhealthy and gives its jobs to others."""
    async with connected(server) as connector:
        server.repository("unload")
        try:
            assert not (await connector.health()).healthy
            fault = await fault_of(connector, job_of("unloaded.1"))
            assert fault.fault_class is FaultClass.UNAVAILABLE
            async with connected(server, model="") as server_alone:
                assert (await server_alone.health()).healthy
        finally:
            server.repository("load")
        await until(lambda: answers(f"{server.http}/v2/models/echo/ready"))
        assert (await connector.health()).healthy


@pytest.mark.parametrize("stream", [False, True])
async def test_a_deadline_ends_the_work(server: Server, stream: bool) -> None:
    """The job's time-out is the call's deadline: the model is stopped, and the outcome unknown."""
    reference = f"deadline.{stream}"
    async with connected(server) as connector:
        job = job_of(reference, stream=stream, timeout_s=1.0, parameters={"sleep_s": "30"})
        fault = await fault_of(connector, job)
    assert fault.fault_class is FaultClass.TIMEOUT
    assert fault.outcome_unknown
    await until(lambda: server.happened("cancelled", reference))
    assert not server.happened("ended", reference)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_cancel_ends_the_work(server: Server, stream: bool) -> None:
    """A cancelled job is stopped within the server."""
    reference = f"cancel.{stream}"
    async with connected(server) as connector, trio.open_nursery() as nursery:
        job = job_of(reference, stream=stream, parameters={"sleep_s": "30"})
        nursery.start_soon(connector.run, job)
        await until(lambda: server.happened("began", reference))
        nursery.cancel_scope.cancel()
    await until(lambda: server.happened("cancelled", reference))
    assert not server.happened("ended", reference)


async def test_too_large_a_request_is_final(server: Server) -> None:
    """The server's own bound on messages is no rate limit: the job is not tried again for ever."""
    large = {"name": "x", "datatype": "BYTES", "shape": [1], "data": ["x" * (5 * 1024 * 1024)]}
    async with connected(server) as connector:
        fault = await fault_of(connector, job_of("large.1", large))
    assert fault.fault_class is FaultClass.VALIDATION


async def test_many_at_once(server: Server) -> None:
    """Many inferences at once over one connector, each with its own answer."""
    async with connected(server) as connector:
        found: dict[int, Any] = {}

        async def one(number: int) -> None:
            tensor = {"name": "x", "datatype": "INT64", "shape": [1], "data": [number]}
            found[number] = (await connector.run(job_of(f"many.{number}", tensor))).value

        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(one, number)
    assert all(value["outputs"][0]["data"] == [number] for number, value in found.items())
    assert len(found) == 30
