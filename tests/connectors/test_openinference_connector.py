"""``openinference-grpc`` against what servers of the protocol were recorded to do."""

from __future__ import annotations

import base64
import functools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from gateway.connector import Connector, ConnectorSetup
from gateway.connectors.openinference.grpc import MODEL_INFER
from gateway.connectors.registry import default_registry
from gateway.connectors.simulation.wire import ErrorKind, FailureWish, WorkPayload
from gateway.errors import ConfigError, FaultClass, JobFault
from gateway.models import JobSpec
from protocols.base import Endpoint, open_tcp
from protocols.errors import FaultKind
from protocols.grpc_channel import CallEnded, Code
from protocols.grpc_server import GRPCServerHandle, ServerTLS, serve_grpc
from protocols.grpc_service import CallHandler, IncomingCall
from protocols.proto import inference_pb2 as pb
from simulator.contract.recorder import RecordingJob
from simulator.dialects.openinference import OpenInferenceService, payload
from simulator.faults import FaultPlan
from simulator.model import ServiceConfig
from simulator.seeding import streams
from simulator.services.grpc_wire import wired_channels
from tests.support.wired import connections_to

HERE = Endpoint(scheme="grpc", host="service", port=1)
PEM = Path(__file__).parents[1] / "protocols" / "tls"


def make(endpoint: Endpoint = HERE, handler: CallHandler | None = None, **options: Any) -> Connector:
    seams: dict[str, Any] = {}
    if handler is not None:
        seams["open_channel"] = wired_channels(connections_to(handler))
    setup = ConnectorSetup(
        endpoint=endpoint,
        open_stream=open_tcp,
        random=random.Random(0),
        now_s=trio.current_time,
        options={"stall_s": 1.0, "model": "simulation", **options},
        **seams,
    )
    return default_registry().load("openinference-grpc")(setup)


def twin(oddities: dict[str, Any] | None = None, **knobs: Any) -> OpenInferenceService:
    made = OpenInferenceService(
        ServiceConfig(instance="twin-0"),
        FaultPlan.none().updated(knobs),
        random_for=streams(0, "twin-0"),
    )
    made.set_oddities(oddities or {})
    return made


@asynccontextmanager
async def against(handler: CallHandler, **options: Any) -> AsyncIterator[Connector]:
    connector = make(HERE, handler, **options)
    try:
        yield connector
    finally:
        await connector.aclose()


def job_of(wanted: Any = None, **work: Any) -> RecordingJob:
    asked = payload(WorkPayload(result="mark-1", **work)) if wanted is None else wanted
    return RecordingJob(JobSpec(service="openinference", payload=asked, timeout_s=60.0), reference="job-1.1")


async def fault_of(connector: Connector, job: RecordingJob) -> JobFault:
    with pytest.raises(JobFault) as caught:
        await connector.run(job)
    return caught.value


def virtual(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run a test under virtual time."""

    @functools.wraps(test)
    def run() -> None:
        trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))

    return run


@virtual
async def test_a_server_stays_ready_when_its_model_is_gone() -> None:
    """A ready server says nothing of its model: without it the worker is unhealthy, and its jobs go elsewhere."""
    server = twin({"model_loaded": False})
    async with against(server.handle) as connector, against(server.handle, model="") as server_alone:
        assert (await server_alone.health()).healthy
        report = await connector.health()
        assert (report.healthy, report.fault) == (False, FaultKind.SERVICE_ERROR)
        assert (await fault_of(connector, job_of())).fault_class is FaultClass.UNAVAILABLE
        # A model that no option named is the job's own mistake.
        assert (await fault_of(server_alone, job_of())).fault_class is FaultClass.VALIDATION


@virtual
async def test_the_ways_of_kserve() -> None:
    """With the standard health service, NOT_FOUND for an unknown model, and no streams."""
    server = twin({"health_service": True, "unknown_model": "NOT_FOUND", "streams": False})
    async with against(server.handle) as connector, against(server.handle, model="nobody") as stranger:
        assert (await connector.health()).healthy
        report = await stranger.health()
        assert (report.healthy, report.fault) == (False, FaultKind.NOT_FOUND)
        assert "mark-1" in str((await connector.run(job_of())).value)
        assert (await fault_of(connector, job_of(chunks=3))).fault_class is FaultClass.UNSUPPORTED


@virtual
async def test_a_model_that_is_not_ready_serves_all_the_same() -> None:
    """KServe infers with a model that says it is not ready: claims are gated, running jobs are not touched."""
    async with against(twin({"model_ready": False}).handle) as connector:
        report = await connector.health()
        assert (report.healthy, report.fault) == (False, FaultKind.UNAVAILABLE)
        assert "mark-1" in str((await connector.run(job_of())).value)


@virtual
async def test_a_ready_model_that_hangs() -> None:
    """A model that is ready and never answers costs its deadline, and the work is stopped there."""
    server = twin(lost_completion_rate=1.0)
    async with against(server.handle, infer_timeout_s=7.0) as connector:
        assert (await connector.health()).healthy
        began_s = trio.current_time()
        fault = await fault_of(connector, job_of())
        assert (fault.fault_class, fault.outcome_unknown) == (FaultClass.TIMEOUT, True)
        assert trio.current_time() - began_s == pytest.approx(7.0)


@virtual
async def test_a_failure_after_partial_data() -> None:
    """A stream that fails on the way has told its chunks, and fails as the server says."""
    async with against(twin().handle) as connector:
        job = job_of(chunks=4, fail=FailureWish(kind=ErrorKind.VALIDATION))
        fault = await fault_of(connector, job)
    assert fault.fault_class is FaultClass.VALIDATION
    assert len(job.chunks) == 2


@virtual
async def test_raw_is_answered_with_raw() -> None:
    """A request with raw contents gets raw contents, with a length before each text."""
    wanted = payload(WorkPayload(result="mark-1"))
    wanted["inputs"] = [{"name": "x", "datatype": "INT8", "shape": [1], "raw": "AA=="}]
    async with against(twin().handle) as connector:
        result = (await connector.run(job_of(wanted))).value
    content = base64.b64decode(result["outputs"][0]["raw"])
    assert int.from_bytes(content[:4], "little") == len(content) - 4
    assert msgspec.json.decode(content[4:])["echo"] == "mark-1"


@virtual
async def test_the_same_id_runs_again() -> None:
    """Such a server knows no repeat: what the connector declares is what the twin does."""
    server = twin()
    async with against(server.handle) as connector:
        await connector.run(job_of())
        await connector.run(job_of())
    assert server.service.journal.summary().executions_by_job == {"job-1.1": 2}
    assert connector.capabilities.dedupe is False


def answering(*responses: pb.ModelInferResponse) -> CallHandler:
    async def handler(call: IncomingCall) -> None:
        for response in responses:
            await call.send(response.SerializeToString())

    return handler


@virtual
async def test_answers_that_make_no_sense() -> None:
    """Another request's answer, raw contents for some outputs only, a stream without any answer: never a result."""
    strange = pb.ModelInferResponse(id="other.1")
    strange.outputs.add(name="x", datatype="INT8", shape=[0])
    partly = pb.ModelInferResponse(raw_output_contents=[b""])
    for response in (strange, partly):
        async with against(answering(response)) as connector:
            fault = await fault_of(connector, job_of())
            assert (fault.fault_class, fault.outcome_unknown) == (FaultClass.PROTOCOL, True)
    async with against(answering()) as connector:
        assert (await fault_of(connector, job_of(chunks=1))).fault_class is FaultClass.SERVICE_ERROR


@virtual
async def test_nothing_is_sent_for_a_payload_that_is_no_request() -> None:
    """A malformed payload is one clear line, and the server never hears of it."""

    async def nobody(_call: IncomingCall) -> None:
        raise AssertionError("nothing may be sent")

    async with against(nobody) as connector:
        fault = await fault_of(connector, job_of({"inputs": [{"name": "x"}]}))
    assert fault.fault_class is FaultClass.VALIDATION
    assert "\n" not in str(fault)


def ending(end: CallEnded) -> CallHandler:
    async def handler(_call: IncomingCall) -> None:
        raise end

    return handler


@virtual
async def test_each_status_has_its_class() -> None:
    """Bad input is final, a crash is tried again, an unavailable server's own word gives the job back."""
    table = [
        (Code.INVALID_ARGUMENT, {}, FaultClass.VALIDATION, False),
        (Code.INTERNAL, {}, FaultClass.SERVICE_ERROR, True),
        (Code.UNKNOWN, {}, FaultClass.SERVICE_ERROR, True),
        (Code.UNAVAILABLE, {}, FaultClass.NETWORK, True),
        (Code.UNAVAILABLE, {"retry-after": "1"}, FaultClass.UNAVAILABLE, False),
        (Code.RESOURCE_EXHAUSTED, {"retry-after": "1"}, FaultClass.RATE_LIMITED, False),
        (Code.UNAUTHENTICATED, {}, FaultClass.AUTH, False),
        (Code.UNIMPLEMENTED, {}, FaultClass.UNSUPPORTED, False),
        (Code.DEADLINE_EXCEEDED, {}, FaultClass.TIMEOUT, True),
    ]
    for code, metadata, wanted, unknown in table:
        async with against(ending(CallEnded(code, "", {**metadata}))) as connector:
            fault = await fault_of(connector, job_of())
        assert (fault.fault_class, fault.outcome_unknown) == (wanted, unknown), code


@pytest.mark.parametrize(
    ("endpoint", "options", "says"),
    [
        ("http://127.0.0.1:1", {}, "grpc[s]://host:port"),
        ("grpc://127.0.0.1:1/v2", {}, "grpc[s]://host:port"),
        ("grpc://127.0.0.1:1", {"token": "secret-1"}, "need grpcs://"),
        ("grpc://127.0.0.1:1", {"tls_ca_file": str(PEM / "ca.pem")}, "need grpcs://"),
        ("grpcs://127.0.0.1:1", {"tls_ca_file": "/nowhere.pem"}, "tls_ca_file '/nowhere.pem' cannot be read"),
        ("grpcs://127.0.0.1:1", {"tls_ca_file": __file__}, "is not a PEM file"),
        ("grpcs://127.0.0.1:1", {"tls_key_file": str(PEM / "client.key")}, "a key its certificate"),
        ("grpc://127.0.0.1:1", {"infer_timeout_s": 0}, "infer_timeout_s must be positive"),
        ("grpc://127.0.0.1:1", {"calls_max": -1}, "calls_max must be positive"),
        ("grpc://127.0.0.1:1", {"modle": "x"}, "modle"),
    ],
)
def test_options_that_cannot_work(endpoint: str, options: dict[str, Any], says: str) -> None:
    """A wrong option is one clear line before any job is claimed, without the secret."""
    with pytest.raises(ConfigError) as caught:
        make(Endpoint.parse(endpoint), **options)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "secret-1" not in str(caught.value)


async def test_tls_and_token_from_the_options(nursery: trio.Nursery) -> None:
    """Certificates and a token named in the options reach a server that asks for them."""
    server, seen = twin(), []

    async def note(call: IncomingCall) -> None:
        seen.append(call.metadata.get("authorization"))
        await server.handle(call)

    pem = {path.name: path.read_bytes() for path in PEM.iterdir()}
    tls = ServerTLS(certificate=pem["server.pem"], key=pem["server.key"], client_ca=pem["ca.pem"])
    handle: GRPCServerHandle = await nursery.start(functools.partial(serve_grpc, note, tls=tls))
    connector = make(
        Endpoint.parse(handle.url),
        tls_ca_file=str(PEM / "ca.pem"),
        tls_certificate_file=str(PEM / "client.pem"),
        tls_key_file=str(PEM / "client.key"),
        tls_server_name="localhost",
        token="secret-1",
    )
    assert (await connector.health()).healthy
    assert "mark-1" in str((await connector.run(job_of(duration_s=0.01))).value)
    await connector.aclose()
    assert set(seen) == {"Bearer secret-1"}


async def test_the_job_travels_as_metadata(nursery: trio.Nursery) -> None:
    """The server gets our id of the job as the request's id and its id and headers as metadata, with a deadline."""
    calls: list[IncomingCall] = []
    server = twin()

    async def note(call: IncomingCall) -> None:
        calls.append(call)
        await server.handle(call)

    handle: GRPCServerHandle = await nursery.start(functools.partial(serve_grpc, note))
    connector = make(Endpoint.parse(handle.url))
    job = job_of(duration_s=0.01)
    await connector.run(job)
    await connector.aclose()
    (call,) = [call for call in calls if call.path == MODEL_INFER.path]
    assert pb.ModelInferRequest.FromString(call.request).id == job.reference
    assert call.metadata["x-gateway-job"] == job.job_id
    assert dict(job.headers).items() <= call.metadata.items()
    assert call.time_left_s is not None
    assert call.time_left_s <= 60.0
