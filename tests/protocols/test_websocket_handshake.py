"""How a WebSocket begins, or does not: handshakes over real sockets, refusals, TLS."""

from __future__ import annotations

import contextlib
import socket as socket_module
import ssl
from pathlib import Path

import pytest
import trio
import trio.testing

from protocols.base import Endpoint
from protocols.errors import (
    AuthRejected,
    ConnectFailed,
    ConnectRefused,
    ConnectTimeout,
    FaultKind,
    InvalidRequest,
    NotFound,
    PeerClosed,
    ProtocolError,
    ProtocolViolation,
    RateLimited,
    ServerFailure,
    Unavailable,
)
from protocols.http_responder import Responder, ServerRequest
from protocols.http_server import serve_stream
from protocols.websocket import WebSocketAdapter
from protocols.websocket_link import WebSocketLimits
from protocols.websocket_server import WebSocketEnded, accept_websocket
from tests.protocols.conftest import Serve
from tests.protocols.websocket_support import PATIENCE_S, adapter_to, echo, fault_of, playing


async def test_one_port_serves_http_and_websocket(serve: Serve) -> None:
    """A handler answers a handshake with headers of its own, sees those of the client, and serves HTTP beside it."""
    seen: list[ServerRequest] = []

    async def handle(request: ServerRequest, responder: Responder) -> None:
        seen.append(request)
        if request.path == "/plain":
            await responder.send_bytes(200, b"plain")
            return
        socket = await accept_websocket(request, responder, headers={"x-who": "me"})
        assert socket is not None
        with contextlib.suppress(WebSocketEnded):
            await echo(socket)

    handle_ = await serve(handle)
    async with adapter_to(handle_.url) as adapter:
        async with adapter.connect("/ws?a=1", headers={"traceparent": "00-ab"}) as link:
            assert link.headers["x-who"] == "me"
            await link.send("x")
            assert await link.receive() == "x"
        stream = await trio.open_tcp_stream(handle_.host, handle_.port)
        async with stream:
            await stream.send_all(b"GET /plain HTTP/1.1\r\nhost: x\r\n\r\n")
            assert b"plain" in await stream.receive_some()
            # The same connection then asks for a WebSocket, badly.
            await stream.send_all(b"GET /ws HTTP/1.1\r\nhost: x\r\n\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 426 ")
    assert seen[0].query == "a=1"
    assert seen[0].headers["traceparent"] == "00-ab"


async def test_a_peer_that_is_silent_at_the_handshake_is_left(serve: Serve) -> None:
    """A peer that takes the connection and never answers costs no more than connect_timeout_s."""

    async def hang(_request: ServerRequest, responder: Responder) -> None:
        await responder.hang()

    handle = await serve(hang)
    began = trio.current_time()
    async with adapter_to(handle.url, WebSocketLimits(connect_timeout_s=0.3)) as adapter:
        fault = await fault_of(adapter)
    assert type(fault) is ConnectTimeout
    assert not fault.outcome_unknown
    assert trio.current_time() - began < 5


@pytest.mark.parametrize("scheme", ["ws", "wss"])
async def test_a_peer_that_leaves_or_babbles_at_the_handshake_is_a_fault(
    nursery: trio.Nursery, scheme: str
) -> None:
    """However a handshake goes wrong, it ends at once with a typed fault that leaves no outcome unknown."""
    answers = {
        b"": PeerClosed,
        b"SSH-2.0-OpenSSH\r\n": ProtocolViolation,
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n": ProtocolViolation,
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok": ProtocolError,
        b"HTTP/1.1 503 Busy\r\ncontent-length: 900\r\n\r\ncut": Unavailable,
        b"HTTP/1.0 404 Gone\r\n\r\nuntil the end": NotFound,
        b"HTTP/1.1 403 No\r\ntransfer-encoding: chunked\r\n\r\n"
        + b"ffff\r\n"
        + b"x" * 0xFFFF
        + b"\r\n" * 1: AuthRejected,
    }
    for answer, kind in answers.items():

        async def play(stream: trio.SocketStream, answer: bytes = answer) -> None:
            async with stream:
                if scheme == "ws":
                    await stream.receive_some()
                await stream.send_all(answer)

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, play, listeners)
        async with adapter_to(f"{scheme}://127.0.0.1:{port}") as adapter:
            fault = await fault_of(adapter)
        assert isinstance(fault, kind if scheme == "ws" else ConnectFailed), answer
        assert not fault.outcome_unknown
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("status", "kind", "fault"),
    [
        (401, AuthRejected, FaultKind.AUTH),
        (403, AuthRejected, FaultKind.AUTH),
        (404, NotFound, FaultKind.NOT_FOUND),
        (429, RateLimited, FaultKind.RATE_LIMITED),
        (500, ServerFailure, FaultKind.SERVICE_ERROR),
        (503, Unavailable, FaultKind.UNAVAILABLE),
    ],
)
async def test_a_refused_handshake_is_classified_by_its_status(
    serve: Serve, status: int, kind: type[ProtocolError], fault: FaultKind
) -> None:
    """A refusal is the leaf of its status, with the peer's wish, and nothing was asked of it yet."""

    async def refuse(_request: ServerRequest, responder: Responder) -> None:
        await responder.send_bytes(status, b"no", headers={"retry-after": "7"})

    handle = await serve(refuse)
    async with adapter_to(handle.url) as adapter:
        caught = await fault_of(adapter)
        assert adapter.statistics().faults == {fault: 1}
    assert type(caught) is kind
    assert caught.retry_after_s == 7.0
    assert not caught.outcome_unknown


async def test_nobody_listens() -> None:
    """A port nobody listens on is refused, and nothing was sent."""
    with socket_module.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        async with adapter_to(f"ws://127.0.0.1:{reserved.getsockname()[1]}") as adapter:
            assert type(await fault_of(adapter)) is ConnectRefused
            report = await adapter.health("/")
    assert not report.healthy
    assert report.fault is FaultKind.UNREACHABLE


async def test_an_illegal_path_or_header_is_our_own_fault(serve: Serve) -> None:
    """What HTTP cannot carry is refused before anything is sent."""
    handle = await serve(playing(echo))
    async with adapter_to(handle.url) as adapter:
        for path, headers in (("no-slash", {}), ("/a b", {}), ("/", {"x": "a\r\nb"})):
            assert type(await fault_of(adapter, path=path, headers=headers)) is InvalidRequest


async def test_tls(nursery: trio.Nursery, localhost_tls: tuple[ssl.SSLContext, Path]) -> None:
    """wss is spoken over the seam, and a certificate nobody vouches for is a failed connection."""
    server_context, certificate = localhost_tls

    async def serve_tls(stream: trio.abc.Stream) -> None:
        tls = trio.SSLStream(stream, server_context, server_side=True, https_compatible=True)
        with contextlib.suppress(trio.BrokenResourceError):
            await tls.do_handshake()
            await serve_stream(playing(echo), tls)

    async def open_memory(_host: str, _port: int) -> trio.abc.Stream:
        near, far = trio.testing.memory_stream_pair()
        nursery.start_soon(serve_tls, far)
        return near

    endpoint = Endpoint.parse("wss://localhost")
    trusting = ssl.create_default_context(cafile=str(certificate))
    with trio.fail_after(PATIENCE_S):
        async with (
            WebSocketAdapter(endpoint, open_stream=open_memory, ssl_context=trusting) as adapter,
            adapter.connect("/ws") as link,
        ):
            await link.send("x" * 100_000)
            assert await link.receive() == "x" * 100_000
        async with WebSocketAdapter(endpoint, open_stream=open_memory) as adapter:
            fault = await fault_of(adapter)
            assert type(fault) is ConnectFailed
            assert not fault.outcome_unknown
