"""Every way a gRPC peer can fail becomes one typed fault that says whether the outcome is known."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
import trio
from google.protobuf import any_pb2, duration_pb2

from protocols.base import Endpoint, OpenStream, open_tcp
from protocols.errors import (
    AuthRejected,
    BodyTooLarge,
    ConnectFailed,
    ConnectRefused,
    ConnectTimeout,
    FaultKind,
    InvalidRequest,
    LocalOverload,
    NotFound,
    PeerClosed,
    ProtocolError,
    ProtocolViolation,
    RateLimited,
    Rejected,
    RequestTimeout,
    RequestTooLarge,
    ServerFailure,
    StatusFailure,
    Unavailable,
    Unsupported,
)
from protocols.grpc import GRPCAdapter, GRPCLimits
from protocols.grpc_channel import CallEnded, Code
from protocols.grpc_method import Method
from protocols.grpc_server import serve_grpc
from protocols.grpc_service import CallHandler, IncomingCall
from protocols.proto import simulation_pb2 as messages
from protocols.proto import status_pb2
from tests.protocols.conftest import Serve, ServeCalls
from tests.support.tcp_proxy import TcpProxy, serve_tcp_proxy

ECHO = Method("/test.Service/Echo", messages.SubmitRequest, messages.SubmitRequest)
Call = Callable[[GRPCAdapter], Awaitable[object]]


async def echo(call: IncomingCall) -> None:
    await call.send(call.request)


async def hang(_call: IncomingCall) -> None:
    await trio.sleep_forever()


def ends(code: Code, details: str = "as told", metadata: dict[str, str | bytes] | None = None) -> CallHandler:
    async def handler(_call: IncomingCall) -> None:
        raise CallEnded(code, details, metadata)

    return handler


async def ask(adapter: GRPCAdapter, *, size: int = 1) -> messages.SubmitRequest:
    return await adapter.call(ECHO, messages.SubmitRequest(id="x", payload=b"x" * size))


async def read_all(adapter: GRPCAdapter, *, idle_s: float = 5.0) -> list[messages.SubmitRequest]:
    async with adapter.stream(ECHO, messages.SubmitRequest(id="x"), idle_timeout_s=idle_s) as replies:
        return [reply async for reply in replies]


async def fault_of(
    url: str,
    call: Call = ask,
    *,
    open_stream: OpenStream = open_tcp,
    limits: GRPCLimits | None = None,
) -> ProtocolError:
    """The fault of one call, which must fail, be counted once, and leave no place taken."""
    async with GRPCAdapter(Endpoint.parse(url), open_stream=open_stream, limits=limits) as adapter:
        with trio.fail_after(20), pytest.raises(ProtocolError) as caught:
            await call(adapter)
        assert adapter.statistics().in_flight == 0
        assert adapter.statistics().faults == {caught.value.fault: 1}
    return caught.value


async def quiet(condition: Callable[[], bool]) -> None:
    """Wait for something that the other side does in its own time."""
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 it happens in another thread or process
            await trio.sleep(0.01)


def free_port() -> int:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port: int = reserved.getsockname()[1]
        return port


async def test_refused() -> None:
    """A port nobody listens on: refused, nothing sent."""
    fault = await fault_of(f"grpc://127.0.0.1:{free_port()}")
    assert type(fault) is ConnectRefused
    assert (fault.fault, fault.outcome_unknown) == (FaultKind.UNREACHABLE, False)


async def test_unreachable() -> None:
    """Any other reason not to get a connection is its own fault of the same kind."""

    async def unreachable(_host: str, _port: int) -> trio.abc.Stream:
        raise OSError(113, "No route to host")

    fault = await fault_of(f"grpc://127.0.0.1:{free_port()}", open_stream=unreachable)
    assert type(fault) is ConnectFailed
    assert not fault.outcome_unknown


async def test_a_peer_that_accepts_and_says_nothing() -> None:
    """No greeting, no connection: a connect time-out, nothing sent."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        url = f"grpc://127.0.0.1:{listener.getsockname()[1]}"
        fault = await fault_of(url, limits=GRPCLimits(connect_timeout_s=0.2))
        assert type(fault) is ConnectTimeout
        assert not fault.outcome_unknown


async def test_a_port_of_http_1(serve: Serve) -> None:
    """A web server is no gRPC server: no connection, nothing sent, and the message says that something listens."""
    handle = await serve(lambda _request, responder: responder.send_json(200, {}))
    fault = await fault_of(f"grpc://127.0.0.1:{handle.port}")
    assert type(fault) is ConnectFailed
    assert not fault.outcome_unknown
    assert "something listens there" in str(fault)


async def test_a_port_that_speaks_garbage(nursery: trio.Nursery) -> None:
    """Bytes that are no HTTP/2: no connection, nothing sent."""

    async def babble(stream: trio.SocketStream) -> None:
        await stream.send_all(b"\x00\xff garbage \x13" * 10)
        await stream.aclose()

    listeners = await nursery.start(partial(trio.serve_tcp, babble, 0, host="127.0.0.1"))
    fault = await fault_of(f"grpc://127.0.0.1:{listeners[0].socket.getsockname()[1]}")
    assert type(fault) is ConnectFailed
    assert not fault.outcome_unknown


async def test_tls_to_a_peer_without_tls(serve_calls: ServeCalls) -> None:
    """A peer that does not speak TLS gives no connection: nothing of the call was sent."""
    handle = await serve_calls(echo)
    fault = await fault_of(f"grpcs://127.0.0.1:{handle.port}")
    assert type(fault) is ConnectFailed
    assert handle.statistics.calls == 0


async def test_deadline(serve_calls: ServeCalls) -> None:
    """A peer that never answers: time-out with an unknown outcome, and the peer's call has ended."""
    handle = await serve_calls(hang)
    fault = await fault_of(handle.url, limits=GRPCLimits(call_timeout_s=0.3))
    assert type(fault) is RequestTimeout
    assert (fault.fault, fault.outcome_unknown) == (FaultKind.TIMEOUT, True)
    await quiet(lambda: handle.statistics.abandoned == 1)
    assert handle.statistics.active == 0


async def test_the_peers_own_deadline(serve_calls: ServeCalls) -> None:
    """A peer that reports a deadline of its own is a time-out like ours."""
    handle = await serve_calls(ends(Code.DEADLINE_EXCEEDED))
    fault = await fault_of(handle.url)
    assert type(fault) is RequestTimeout
    assert fault.outcome_unknown


async def test_a_silent_stream(serve_calls: ServeCalls) -> None:
    """A stream silent for longer than allowed: time-out, and the peer's call has ended."""

    async def one_then_nothing(call: IncomingCall) -> None:
        await call.send(call.request)
        await trio.sleep_forever()

    handle = await serve_calls(one_then_nothing)
    fault = await fault_of(handle.url, partial(read_all, idle_s=0.2))
    assert type(fault) is RequestTimeout
    assert fault.outcome_unknown
    await quiet(lambda: handle.statistics.abandoned == 1)


CODES = [
    (Code.INVALID_ARGUMENT, Rejected, False),
    (Code.FAILED_PRECONDITION, Rejected, False),
    (Code.OUT_OF_RANGE, Rejected, False),
    (Code.ALREADY_EXISTS, Rejected, False),
    (Code.NOT_FOUND, NotFound, False),
    (Code.UNIMPLEMENTED, Unsupported, False),
    (Code.UNAUTHENTICATED, AuthRejected, False),
    (Code.PERMISSION_DENIED, AuthRejected, False),
    (Code.RESOURCE_EXHAUSTED, RateLimited, False),
    (Code.INTERNAL, ServerFailure, True),
    (Code.UNKNOWN, ServerFailure, True),
    (Code.DATA_LOSS, ServerFailure, True),
    (Code.ABORTED, ServerFailure, True),
    (Code.UNAVAILABLE, PeerClosed, True),
    (Code.CANCELLED, PeerClosed, True),
]


@pytest.mark.parametrize(("code", "leaf", "unknown"), CODES, ids=lambda value: str(value))
@pytest.mark.parametrize("call", [ask, read_all])
async def test_codes(
    serve_calls: ServeCalls, code: Code, leaf: type[ProtocolError], unknown: bool, call: Call
) -> None:
    """Each status becomes its leaf, for calls and streams alike."""
    fault = await fault_of((await serve_calls(ends(code))).url, call)
    assert type(fault) is leaf
    assert fault.outcome_unknown is unknown
    if isinstance(fault, StatusFailure):
        assert fault.status == code


@pytest.mark.parametrize(
    ("metadata", "wish_s"),
    [({"retry-after": "3"}, 3.0), ({"grpc-status-details-bin": b""}, None)],
)
async def test_unavailable_as_the_services_own_word(
    serve_calls: ServeCalls, metadata: dict[str, str | bytes], wish_s: float | None
) -> None:
    """UNAVAILABLE with a wish to wait or an error detail comes from the service itself: nothing was done."""
    handle = await serve_calls(ends(Code.UNAVAILABLE, metadata=metadata))
    fault = await fault_of(handle.url)
    assert type(fault) is Unavailable
    assert (fault.outcome_unknown, fault.retry_after_s) == (False, wish_s)


async def test_unavailable_from_a_proxy(serve_calls: ServeCalls) -> None:
    """A proxy says UNAVAILABLE, with metadata of its own, of a connection that broke behind it: outcome unknown."""
    handle = await serve_calls(ends(Code.UNAVAILABLE, metadata={"server": "envoy", "date": "today"}))
    fault = await fault_of(handle.url)
    assert type(fault) is PeerClosed
    assert fault.outcome_unknown


async def test_unavailable_after_partial_data(serve_calls: ServeCalls) -> None:
    """Whoever has answered in part has acted, whatever it says then."""

    async def partly(call: IncomingCall) -> None:
        await call.send(call.request)
        raise CallEnded(Code.UNAVAILABLE, "no more", {"retry-after": "3"})

    fault = await fault_of((await serve_calls(partly)).url, read_all)
    assert type(fault) is Unavailable
    assert fault.outcome_unknown


def retry_info(seconds: int, nanos: int) -> bytes:
    info = status_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=seconds, nanos=nanos))
    packed = any_pb2.Any(type_url="type.googleapis.com/google.rpc.RetryInfo", value=info.SerializeToString())
    return status_pb2.Status(code=8, details=[packed]).SerializeToString()


@pytest.mark.parametrize(
    ("metadata", "wish_s"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"grpc-retry-pushback-ms": "1500"}, 1.5),
        ({"grpc-retry-pushback-ms": "-1"}, None),
        ({"grpc-status-details-bin": retry_info(2, 500_000_000)}, 2.5),
        ({"grpc-status-details-bin": b"\x00garbage"}, None),
        ({}, None),
    ],
)
async def test_wishes_to_wait(
    serve_calls: ServeCalls, metadata: dict[str, str | bytes], wish_s: float | None
) -> None:
    """A rate limit says how long to wait in any of three ways, or does not say."""
    fault = await fault_of((await serve_calls(ends(Code.RESOURCE_EXHAUSTED, metadata=metadata))).url)
    assert type(fault) is RateLimited
    assert fault.retry_after_s == wish_s


async def test_an_answer_above_our_bound(serve_calls: ServeCalls) -> None:
    """Too large an answer is permanent, and the peer has done the work; it is no rate limit."""
    handle = await serve_calls(echo)
    for call in (partial(ask, size=200_000), partial(read_all)):
        limits = GRPCLimits(response_bytes_max=100_000 if call.func is ask else 1)
        fault = await fault_of(handle.url, call, limits=limits)
        assert type(fault) is BodyTooLarge
        assert (fault.fault, fault.outcome_unknown) == (FaultKind.TOO_LARGE, True)


async def test_a_request_above_our_bound(serve_calls: ServeCalls) -> None:
    """Too large a request is refused here: nothing was sent."""
    handle = await serve_calls(echo)
    fault = await fault_of(handle.url, partial(ask, size=2_000), limits=GRPCLimits(request_bytes_max=1_000))
    assert type(fault) is RequestTooLarge
    assert (fault.fault, fault.outcome_unknown) == (FaultKind.TOO_LARGE, False)
    assert handle.statistics.calls == 0


async def test_a_request_above_the_peers_bound(serve_calls: ServeCalls) -> None:
    """A peer that refuses a request for its size does so for ever: permanent, not a rate limit."""
    handle = await serve_calls(echo)
    fault = await fault_of(handle.url, partial(ask, size=4 * 1024 * 1024 + 1))
    assert type(fault) is RequestTooLarge
    assert not fault.outcome_unknown


async def test_garbage(serve_calls: ServeCalls) -> None:
    """An answer that is no message of the agreed type is a protocol violation; the peer has acted."""

    async def garbage(call: IncomingCall) -> None:
        await call.send(b"\x00\xfe garbage")

    handle = await serve_calls(garbage)
    for call in (ask, read_all):
        fault = await fault_of(handle.url, call)
        assert type(fault) is ProtocolViolation
        assert fault.outcome_unknown


async def proxied(nursery: trio.Nursery, port: int) -> TcpProxy:
    proxy = await nursery.start(serve_tcp_proxy, ("127.0.0.1", port))
    assert isinstance(proxy, TcpProxy)
    return proxy


@pytest.mark.parametrize("call", [ask, read_all])
async def test_cut_in_the_middle_of_a_call(
    serve_calls: ServeCalls, nursery: trio.Nursery, call: Call
) -> None:
    """A connection lost during a call: the outcome is unknown, and the peer's call has ended."""
    handle = await serve_calls(hang)
    proxy = await proxied(nursery, handle.port)

    async def cut() -> None:
        await quiet(lambda: handle.statistics.active == 1)
        proxy.cut_all()

    nursery.start_soon(cut)
    fault = await fault_of(f"grpc://127.0.0.1:{proxy.port}", call)
    assert type(fault) is PeerClosed
    assert (fault.fault, fault.outcome_unknown) == (FaultKind.NETWORK, True)
    await quiet(lambda: handle.statistics.active == 0)


async def test_silent_in_the_middle_of_a_call(serve_calls: ServeCalls, nursery: trio.Nursery) -> None:
    """A half-open connection: the deadline ends the call at our side, its outcome unknown."""
    handle = await serve_calls(echo)
    proxy = await proxied(nursery, handle.port)

    async def later(adapter: GRPCAdapter) -> None:
        await ask(adapter)
        proxy.blackhole()
        await ask(adapter)

    fault = await fault_of(f"grpc://127.0.0.1:{proxy.port}", later, limits=GRPCLimits(call_timeout_s=0.5))
    assert type(fault) is RequestTimeout
    assert fault.outcome_unknown
    proxy.heal()


async def test_refused_after_it_was_there(serve_calls: ServeCalls, nursery: trio.Nursery) -> None:
    """A peer that went away is refused like one that never was, and is found again once it is back."""
    handle = await serve_calls(echo)
    proxy = await proxied(nursery, handle.port)
    async with GRPCAdapter(Endpoint.parse(f"grpc://127.0.0.1:{proxy.port}")) as adapter:
        await ask(adapter)
        proxy.refuse()
        proxy.cut_all()
        await quiet(lambda: proxy.connections_open == 0)
        faults: list[ProtocolError] = []

        async def refused() -> bool:
            try:
                await ask(adapter)
            except ProtocolError as fault:
                faults.append(fault)
            return type(faults[-1]) is ConnectRefused

        # The very first call may still meet the connection just lost, and then does not know.
        assert await refused() or await refused()
        assert all(fault.outcome_unknown for fault in faults[:-1])
        assert not faults[-1].outcome_unknown
        proxy.accept()
        with trio.fail_after(10):
            assert (await ask(adapter)).id == "x"


async def test_a_server_that_stops(nursery: trio.Nursery) -> None:
    """A server that ends while it serves: the outcome is unknown."""
    scope = trio.CancelScope()
    calls = 0

    async def stop(_call: IncomingCall) -> None:
        nonlocal calls
        calls += 1
        scope.cancel()
        await trio.sleep_forever()

    async def serve_until_called(*, task_status: trio.TaskStatus[object]) -> None:
        with scope:
            await serve_grpc(stop, task_status=task_status)

    handle = await nursery.start(serve_until_called)
    fault = await fault_of(handle.url)
    assert type(fault) is PeerClosed
    assert fault.outcome_unknown
    assert calls == 1


async def test_closing_ends_what_runs(serve_calls: ServeCalls, nursery: trio.Nursery) -> None:
    """Calls under way fail when the adapter is closed; later ones send nothing."""
    handle = await serve_calls(hang)
    adapter = GRPCAdapter(Endpoint.parse(handle.url))
    faults: list[ProtocolError] = []

    async def one(call: Call) -> None:
        with pytest.raises(ProtocolError) as caught:
            await call(adapter)
        faults.append(caught.value)

    nursery.start_soon(one, ask)
    nursery.start_soon(one, read_all)
    await quiet(lambda: handle.statistics.active == 2)
    await adapter.aclose()
    await quiet(lambda: len(faults) == 2)
    assert all(type(fault) is PeerClosed and fault.outcome_unknown for fault in faults)
    await quiet(lambda: handle.statistics.abandoned == 2)
    await one(ask)
    assert not faults[-1].outcome_unknown
    assert handle.statistics.calls == 2
    await adapter.aclose()


async def test_our_own_limit(serve_calls: ServeCalls, nursery: trio.Nursery) -> None:
    """More calls, or streams, than we allow ourselves: nothing is known about the peer, nothing was sent."""
    handle = await serve_calls(hang)
    for limits, call in (
        (GRPCLimits(calls_max=1, queue_timeout_s=0.05), ask),
        (GRPCLimits(streams_max=1, queue_timeout_s=0.05), read_all),
    ):
        async with (
            GRPCAdapter(Endpoint.parse(handle.url), limits=limits) as adapter,
            trio.open_nursery() as held,
        ):
            before = handle.statistics.calls
            held.start_soon(call, adapter)
            await quiet(lambda: handle.statistics.calls == before + 1)  # noqa: B023 called at once
            with pytest.raises(LocalOverload) as caught:
                await call(adapter)
            assert (caught.value.fault, caught.value.outcome_unknown) == (FaultKind.LOCAL_OVERLOAD, False)
            held.cancel_scope.cancel()


@pytest.mark.parametrize(
    "metadata", [{"Upper": "x"}, {"grpc-x": "x"}, {"x": "line\nend"}, {"x": "ü"}, {"x-bin": "x"}]
)
async def test_metadata_that_cannot_be_sent(serve_calls: ServeCalls, metadata: dict[str, str]) -> None:
    """Names and values that gRPC cannot carry are refused here, before anything is sent."""
    handle = await serve_calls(echo)
    fault = await fault_of(
        handle.url, lambda adapter: adapter.call(ECHO, messages.SubmitRequest(), metadata=metadata)
    )
    assert type(fault) is InvalidRequest
    assert handle.statistics.calls == 0


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "grpc://127.0.0.1:1/path"])
def test_not_an_address_for_grpc(url: str) -> None:
    """Another scheme, or a path, is refused at once."""
    with pytest.raises(ValueError):
        GRPCAdapter(Endpoint.parse(url))


def test_no_credentials_in_clear_text() -> None:
    """Credentials need TLS."""
    with pytest.raises(ValueError):
        GRPCAdapter(Endpoint.parse("grpc://127.0.0.1:1"), auth_metadata={"authorization": "Bearer x"})
