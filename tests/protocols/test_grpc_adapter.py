"""The gRPC adapter against a real server: what it sends and takes, and that every cancellation reaches the peer."""

from __future__ import annotations

import errno
import gc
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from protocols.base import Endpoint
from protocols.errors import ConnectFailed, FaultKind, ProtocolError
from protocols.grpc import GRPCAdapter, GRPCLimits
from protocols.grpc_channel import CallEnded, Code, TLSSettings
from protocols.grpc_health import CHECK, MODEL_READY, SERVER_LIVE, SERVER_READY
from protocols.grpc_method import Method
from protocols.grpc_server import GRPCServerLimits, ServerTLS, serve_grpc
from protocols.grpc_service import CallHandler, IncomingCall
from protocols.proto import health_pb2, inference_pb2
from protocols.proto import simulation_pb2 as messages
from protocols.proto.generate import ROOT, generate
from tests.protocols.conftest import ServeCalls

ECHO = Method("/test.Service/Echo", messages.SubmitRequest, messages.SubmitRequest)
HANG = Method("/test.Service/Hang", messages.SubmitRequest, messages.SubmitRequest)
PEM = Path(__file__).parent / "tls"


async def service(call: IncomingCall) -> None:
    """Echo hangs on request, streams on request."""
    if call.path == HANG.path:
        await trio.sleep_forever()
    asked = messages.SubmitRequest.FromString(call.request)
    for _number in range(int(asked.id or 1)):
        await call.send(call.request)


async def quiet(condition: Callable[[], bool]) -> None:
    """Wait for something that the other side does in its own time."""
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 it happens in another thread
            await trio.sleep(0.01)


async def test_calls_and_streams(serve_calls: ServeCalls) -> None:
    """Messages arrive whole, in order, and large ones within the bound too."""
    handle = await serve_calls(service, limits=GRPCServerLimits(request_bytes_max=32 * 1024 * 1024))
    async with GRPCAdapter(Endpoint.parse(handle.url)) as adapter:
        large = messages.SubmitRequest(payload=random.Random(1).randbytes(16 * 1024 * 1024))
        assert await adapter.call(ECHO, large) == large
        async with adapter.stream(ECHO, messages.SubmitRequest(id="1000")) as replies:
            assert [reply.id async for reply in replies] == ["1000"] * 1000
        statistics = adapter.statistics()
        assert (statistics.calls, statistics.in_flight, dict(statistics.faults)) == (2, 0, {})
    await quiet(lambda: handle.statistics.active == 0)
    assert handle.statistics.abandoned == 0


async def test_the_peer_is_told_metadata_and_deadline(serve_calls: ServeCalls) -> None:
    """Trace context and job id travel as metadata, and every call has a deadline, streams included."""
    seen: list[IncomingCall] = []

    async def note(call: IncomingCall) -> None:
        seen.append(call)
        await call.send(call.request)

    handle = await serve_calls(note)
    told = {"traceparent": "00-ab-cd-01", "x-gateway-job": "job-1"}
    async with GRPCAdapter(Endpoint.parse(handle.url)) as adapter:
        await adapter.call(ECHO, messages.SubmitRequest(), metadata=told, timeout_s=7.0)
        async with adapter.stream(ECHO, messages.SubmitRequest(), metadata=told) as replies:
            assert len([reply async for reply in replies]) == 1
    unary, stream = seen
    assert all(told.items() <= call.metadata.items() for call in seen)
    assert unary.time_left_s is not None
    assert 0 < unary.time_left_s <= 7.0
    assert stream.time_left_s is not None
    # Long deadlines are rounded on the wire.
    assert 0 < stream.time_left_s <= GRPCLimits().stream_timeout_s * 1.01


def open_sockets() -> int:
    """Sockets of this process."""
    kinds = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if os.path.lexists(entry)]
    return sum(kind.startswith("socket:") for kind in kinds)


@pytest.mark.limit_s(180)
async def test_a_thousand_cancels(serve_calls: ServeCalls) -> None:
    """A thousand calls cancelled at once end at the peer too, and leave no thread, no socket, no call."""
    handle = await serve_calls(service, limits=GRPCServerLimits(calls_max=1100))
    gc.collect()
    sockets_before = open_sockets()
    limits = GRPCLimits(calls_max=1100, call_timeout_s=120.0)
    async with GRPCAdapter(Endpoint.parse(handle.url), limits=limits) as adapter:
        await adapter.call(ECHO, messages.SubmitRequest())

        def threads() -> int:
            """All but the server's own pool."""
            return sum(not thread.name.startswith("grpc-call") for thread in threading.enumerate())

        idle = threads()
        async with trio.open_nursery() as nursery:
            for _number in range(1000):
                nursery.start_soon(adapter.call, HANG, messages.SubmitRequest())
            await quiet(lambda: handle.statistics.active == 1000)
            assert threads() <= idle + 1, "a unary call costs no thread"
            nursery.cancel_scope.cancel()
        await quiet(lambda: handle.statistics.active == 0)
        assert handle.statistics.abandoned == 1000
        assert adapter.statistics().in_flight == 0
        await adapter.call(ECHO, messages.SubmitRequest())
    await quiet(lambda: threads() < idle)
    await quiet(lambda: open_sockets() <= sockets_before)


async def test_cancelled_streams(serve_calls: ServeCalls) -> None:
    """Streams cancelled while they are silent, or left early, end at the peer, and so do the threads that read them."""
    handle = await serve_calls(service)
    async with GRPCAdapter(Endpoint.parse(handle.url), limits=GRPCLimits(streams_max=40)) as adapter:

        async def silent() -> None:
            async with adapter.stream(HANG, messages.SubmitRequest()) as replies:
                async for _reply in replies:
                    raise AssertionError("it is silent")

        async with trio.open_nursery() as nursery:
            for _number in range(100):
                nursery.start_soon(silent)
            await quiet(lambda: handle.statistics.active == 40)
            assert adapter.statistics().waiting == 60
            nursery.cancel_scope.cancel()
        await quiet(lambda: handle.statistics.active == 0)
        async with adapter.stream(ECHO, messages.SubmitRequest(id="1000000")) as replies:
            async for _reply in replies:
                break
        await quiet(lambda: handle.statistics.active == 0)
        assert handle.statistics.abandoned == 41
        assert adapter.statistics().in_flight == 0


async def test_races_of_answer_and_cancel(serve_calls: ServeCalls) -> None:
    """A call that is cancelled about when its answer comes ends once: answered or cancelled, never lost."""
    handle = await serve_calls(service)
    source = random.Random(7)
    ends = {"answered": 0, "cancelled": 0}
    async with GRPCAdapter(Endpoint.parse(handle.url)) as adapter:

        async def one(delay_s: float) -> None:
            with trio.move_on_after(delay_s) as scope:
                await adapter.call(ECHO, messages.SubmitRequest())
                ends["answered"] += 1
                return
            assert scope.cancelled_caught
            ends["cancelled"] += 1

        for _round in range(20):
            async with trio.open_nursery() as nursery:
                for _number in range(20):
                    nursery.start_soon(one, source.uniform(0.0, 0.02))
        assert sum(ends.values()) == 400
        assert adapter.statistics().in_flight == 0
    await quiet(lambda: handle.statistics.active == 0)


async def test_tls_and_credentials(serve_calls: ServeCalls) -> None:
    """With TLS both sides prove themselves, and credentials travel in metadata; a stranger gets no connection."""
    seen: list[IncomingCall] = []

    async def note(call: IncomingCall) -> None:
        seen.append(call)
        await call.send(call.request)

    pem = {path.name: path.read_bytes() for path in PEM.iterdir()}
    server = ServerTLS(certificate=pem["server.pem"], key=pem["server.key"], client_ca=pem["ca.pem"])
    handle = await serve_calls(note, tls=server)
    known = TLSSettings(ca=pem["ca.pem"], certificate=pem["client.pem"], key=pem["client.key"])
    endpoint = Endpoint.parse(handle.url)
    secret = {"authorization": "Bearer secret"}
    async with GRPCAdapter(endpoint, tls=known, auth_metadata=secret) as adapter:
        await adapter.call(ECHO, messages.SubmitRequest())
        assert "secret" not in repr(adapter)
    assert seen[0].metadata["authorization"] == "Bearer secret"
    limits = GRPCLimits(connect_timeout_s=2.0)
    async with GRPCAdapter(endpoint, tls=TLSSettings(), limits=limits) as stranger:
        with pytest.raises(ConnectFailed):
            await stranger.call(ECHO, messages.SubmitRequest())
    assert len(seen) == 1


def health_service(
    check: str | None = None, live: bool = True, ready: bool = True, models: dict[str, bool] | None = None
) -> CallHandler:
    """A peer with the given rungs; ``check`` is None where it has no standard health service."""

    async def handler(call: IncomingCall) -> None:
        if call.path == CHECK.path and check is not None:
            await call.send(health_pb2.HealthCheckResponse(status=check).SerializeToString())
        elif call.path == SERVER_LIVE.path:
            await call.send(inference_pb2.ServerLiveResponse(live=live).SerializeToString())
        elif call.path == SERVER_READY.path:
            await call.send(inference_pb2.ServerReadyResponse(ready=ready).SerializeToString())
        elif call.path == MODEL_READY.path:
            name = inference_pb2.ModelReadyRequest.FromString(call.request).name
            if models is None or name not in models:
                raise CallEnded(Code.UNKNOWN, "Model not found")  # what MLServer says
            await call.send(inference_pb2.ModelReadyResponse(ready=models[name]).SerializeToString())
        else:
            raise CallEnded(Code.UNIMPLEMENTED, "Method not found!")

    return handler


SERVING, NOT_SERVING = "SERVING", "NOT_SERVING"


@pytest.mark.parametrize(
    ("handler", "model", "healthy", "fault"),
    [
        (health_service(SERVING), "", True, None),
        (health_service(NOT_SERVING), "", False, FaultKind.UNAVAILABLE),
        (health_service(), "", True, None),
        (health_service(live=False), "", False, FaultKind.UNAVAILABLE),
        (health_service(ready=False), "", False, FaultKind.UNAVAILABLE),
        (health_service(models={"m": True}), "m", True, None),
        (health_service(SERVING, models={"m": True}), "m", True, None),
        (health_service(models={"m": False}), "m", False, FaultKind.UNAVAILABLE),
        (health_service(SERVING, models={"m": False}), "m", False, FaultKind.UNAVAILABLE),
        (health_service(), "gone", False, FaultKind.SERVICE_ERROR),
    ],
)
async def test_the_ladder_of_health(
    serve_calls: ServeCalls, handler: CallHandler, model: str, healthy: bool, fault: FaultKind | None
) -> None:
    """The standard check, else live and ready, and a named model's readiness on top of either."""
    handle = await serve_calls(handler)
    async with GRPCAdapter(Endpoint.parse(handle.url)) as adapter:
        report = await adapter.health(model)
    assert (report.healthy, report.fault) == (healthy, fault), report.detail
    assert report.latency_s >= 0


async def test_health_of_a_peer_that_hangs_or_is_away(serve_calls: ServeCalls) -> None:
    """A probe is bounded, and reports instead of raising."""

    async def hang(_call: IncomingCall) -> None:
        await trio.sleep_forever()

    handle = await serve_calls(hang)
    limits = GRPCLimits(health_timeout_s=0.2)
    async with GRPCAdapter(Endpoint.parse(handle.url), limits=limits) as adapter:
        report = await adapter.health("m")
        assert (report.healthy, report.fault) == (False, FaultKind.TIMEOUT)
    async with GRPCAdapter(Endpoint.parse("grpc://127.0.0.1:1"), limits=limits) as adapter:
        report = await adapter.health("")
        assert (report.healthy, report.fault) == (False, FaultKind.UNREACHABLE)


async def test_a_full_server_turns_calls_away(serve_calls: ServeCalls, nursery: trio.Nursery) -> None:
    """A server that admits no more calls says so at once instead of letting them wait for a thread."""
    handle = await serve_calls(service, limits=GRPCServerLimits(calls_max=2))
    async with GRPCAdapter(Endpoint.parse(handle.url)) as adapter, trio.open_nursery() as held:
        held.start_soon(adapter.call, HANG, messages.SubmitRequest())
        held.start_soon(adapter.call, HANG, messages.SubmitRequest())
        await quiet(lambda: handle.statistics.active == 2)
        with pytest.raises(ProtocolError) as caught:
            await adapter.call(ECHO, messages.SubmitRequest())
        assert caught.value.fault is FaultKind.RATE_LIMITED
        held.cancel_scope.cancel()


async def test_a_taken_port_is_an_error(serve_calls: ServeCalls) -> None:
    """Two servers never share a port."""
    handle = await serve_calls(service)
    with pytest.raises(OSError) as caught:
        await serve_grpc(service, port=handle.port)
    assert caught.value.errno == errno.EADDRINUSE


def test_a_peer_that_stops_is_no_line_of_the_library() -> None:
    """A fault tells the caller; the library's core writes nothing past the process's own log."""
    program = """
import trio
from protocols.base import Endpoint
from protocols.errors import ProtocolError
from protocols.grpc import GRPCAdapter
from protocols.grpc_server import serve_grpc
from tests.protocols.test_grpc_adapter import HANG, messages, service

async def serve(scope, task_status):
    with scope:
        await serve_grpc(service, task_status=task_status)

async def call(adapter, ended):
    try:
        await adapter.call(HANG, messages.SubmitRequest())
    except ProtocolError:
        ended.set()

async def main():
    scope, ended = trio.CancelScope(), trio.Event()
    async with trio.open_nursery() as nursery:
        handle = await nursery.start(lambda task_status: serve(scope, task_status))
        async with GRPCAdapter(Endpoint.parse(handle.url)) as adapter:
            nursery.start_soon(call, adapter, ended)
            while not handle.statistics.active:
                await trio.sleep(0.01)
            scope.cancel()
            await ended.wait()

trio.run(main)
"""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_a_process_that_used_grpc_ends_cleanly() -> None:
    """Nothing is left that delays the end of a process or writes to its standard error."""
    program = """
import trio
from protocols.base import Endpoint
from protocols.grpc import GRPCAdapter
from protocols.grpc_server import serve_grpc
from tests.protocols.test_grpc_adapter import ECHO, messages, service

async def main():
    async with trio.open_nursery() as nursery:
        handle = await nursery.start(serve_grpc, service)
        async with GRPCAdapter(Endpoint.parse(handle.url)) as adapter:
            await adapter.call(ECHO, messages.SubmitRequest())
        nursery.cancel_scope.cancel()

trio.run(main)
"""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_committed_code_is_what_the_protos_say(tmp_path: Path) -> None:
    """The generated modules are exactly what the pinned compiler makes of the ``.proto`` files."""
    for path in generate(tmp_path):
        assert (tmp_path / path).read_bytes() == (ROOT / path).read_bytes(), f"{path}: generate it anew"
