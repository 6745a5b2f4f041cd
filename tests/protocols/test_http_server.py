"""The small HTTP server: its bounds, what it does with failing handlers, and how it notices that a peer
left.
"""

from __future__ import annotations

import logging

import pytest
import trio
import trio.testing

from protocols.http_responder import Responder, ServerRequest
from protocols.http_server import ServerHandle, ServerLimits, serve_http, serve_stream
from tests.protocols.conftest import Serve

GET = b"GET /x?a=1 HTTP/1.1\r\nhost: h\r\n\r\n"


async def ok(request: ServerRequest, responder: Responder) -> None:
    await responder.send_bytes(200, request.body or request.path.encode())


class Scripted(trio.abc.Stream):
    """A peer that sends these pieces one after the other, each at once when asked, and takes whatever it gets."""

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = pieces
        self.taken = 0

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()

    async def wait_send_all_might_not_block(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        if self.taken == len(self._pieces):
            await trio.sleep_forever()
        self.taken += 1
        return self._pieces[self.taken - 1]

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


async def talk(handle: ServerHandle, data: bytes) -> bytes:
    """Send bytes, read until the server closes."""
    received = bytearray()
    with trio.fail_after(10):
        async with await trio.open_tcp_stream(handle.host, handle.port) as stream:
            await stream.send_all(data)
            async for chunk in stream:
                received += chunk
    return bytes(received)


async def read_answer(stream: trio.abc.ReceiveStream, end: bytes) -> bytes:
    received = bytearray()
    while not received.endswith(end):
        chunk = await stream.receive_some()
        assert chunk, f"ended after {bytes(received)!r}"
        received += chunk
    return bytes(received)


async def test_keep_alive_and_close(serve: Serve) -> None:
    """One connection serves request after request until the peer says close; HTTP/1.0 closes by itself."""
    handle = await serve(ok)
    with trio.fail_after(5):
        async with await trio.open_tcp_stream(handle.host, handle.port) as stream:
            for _ in range(3):
                await stream.send_all(GET)
                assert (await read_answer(stream, b"/x")).startswith(b"HTTP/1.1 200")
    assert b"connection: close" in (await talk(handle, GET[:-2] + b"connection: close\r\n\r\n")).lower()
    assert (await talk(handle, b"GET /old HTTP/1.0\r\n\r\n")).endswith(b"/old")


async def test_bodies(serve: Serve) -> None:
    """Counted and chunked request bodies arrive whole, and a client that asks first is told to go on."""
    handle = await serve(ok)
    head = b"POST / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n"
    assert (await talk(handle, head + b"content-length: 5\r\n\r\nhello")).endswith(b"hello")
    chunked = head + b"transfer-encoding: chunked\r\n\r\n2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"
    assert (await talk(handle, chunked)).endswith(b"hello")
    with trio.fail_after(5):
        async with await trio.open_tcp_stream(handle.host, handle.port) as stream:
            await stream.send_all(head + b"content-length: 5\r\nexpect: 100-continue\r\n\r\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 100")
            await stream.send_all(b"hello")
            await read_answer(stream, b"hello")


async def test_head_has_no_body(serve: Serve) -> None:
    """HEAD is answered with the headers of the body only, counted or chunked."""

    async def handler(request: ServerRequest, responder: Responder) -> None:
        if request.path == "/counted":
            await responder.send_bytes(200, b"body")
            return
        async with responder.stream(200, "text/plain") as body:
            await body.send(b"body")

    handle = await serve(handler)
    for path in (b"/counted", b"/chunked"):
        got = await talk(handle, b"HEAD " + path + b" HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
        assert got.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"NONSENSE\r\n\r\n", b"400"),
        (b"\x16\x03\x01\x00\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: h\r\nx: " + b"a" * 5000, b"431"),
        (b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 5000\r\n\r\n" + b"x" * 5000, b"413"),
        (b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", b"400"),
    ],
)
async def test_bad_requests(serve: Serve, request_bytes: bytes, status: bytes) -> None:
    """What is not HTTP or too large is answered as such and closed; the server lives on."""
    limits = ServerLimits(header_bytes_max=2000, body_bytes_max=1000)
    handle = await serve(ok, limits=limits)
    with trio.fail_after(5):
        async with await trio.open_tcp_stream(handle.host, handle.port) as stream:
            await stream.send_all(request_bytes)
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 " + status)
    assert handle.statistics.requests == 0
    assert (await talk(handle, GET[:-2] + b"connection: close\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_failing_handlers(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """A handler that raises or gives no answer is logged, counted and answered 500; mid-body it is a cut."""

    async def handler(request: ServerRequest, responder: Responder) -> None:
        if request.path == "/silent":
            return
        if request.path == "/mid":
            async with responder.stream(200, "text/plain") as body:
                await body.send(b"half")
                raise LookupError("on purpose")
        raise LookupError("on purpose")

    handle = await serve(handler)
    with caplog.at_level(logging.ERROR):
        for path in (b"/raise", b"/silent"):
            got = await talk(handle, b"GET " + path + b" HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n")
            assert got.startswith(b"HTTP/1.1 500")
        with pytest.raises(trio.BrokenResourceError):
            await talk(handle, b"GET /mid HTTP/1.1\r\nhost: h\r\n\r\n")
    assert handle.statistics.handler_failures == 3
    assert [record.levelname for record in caplog.records] == ["ERROR"] * 3
    assert sum(record.exc_info is not None for record in caplog.records) == 2


async def test_peer_that_leaves_cancels_the_handler(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """A handler is cancelled as soon as its peer is gone, and one that writes to it is no failure."""
    left = trio.Event()

    async def handler(request: ServerRequest, responder: Responder) -> None:
        try:
            if request.path == "/hang":
                await responder.hang()
            async with responder.stream(200, "text/plain") as body:
                while True:
                    await body.send(b"x" * 10_000)
        finally:
            left.set()

    handle = await serve(handler)
    for path in (b"/hang", b"/flood"):
        left = trio.Event()
        with trio.fail_after(5):
            stream = await trio.open_tcp_stream(handle.host, handle.port)
            await stream.send_all(b"GET " + path + b" HTTP/1.1\r\nhost: h\r\n\r\n")
            await trio.testing.wait_all_tasks_blocked(0.01)
            await stream.aclose()
            await left.wait()
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert handle.statistics.abandoned == 2
    assert handle.statistics.handler_failures == 0
    assert handle.statistics.connections == 0
    assert not caplog.records


async def test_request_of_a_peer_already_gone_is_begun(autojump_clock: trio.testing.MockClock) -> None:
    """Bytes that arrived are acted on, although whoever sent them did not stay for the answer."""
    begun: list[str] = []

    async def handler(request: ServerRequest, _responder: Responder) -> None:
        begun.append(request.path)
        await trio.sleep(1)
        begun.append("too far")

    await serve_stream(handler, Scripted(GET, b""))
    assert begun == ["/x"]


async def test_handler_outlives_its_own_close(autojump_clock: trio.testing.MockClock) -> None:
    """A handler that cuts the connection itself goes on with what it still has to do."""
    done = trio.Event()

    async def handler(_request: ServerRequest, responder: Responder) -> None:
        await responder.abort()
        await trio.sleep(5)
        done.set()

    near, far = trio.testing.memory_stream_pair()
    await near.send_all(GET)
    await serve_stream(handler, far)
    assert done.is_set()
    assert await near.receive_some() == b""


async def test_idle_and_unread_connections_end(autojump_clock: trio.testing.MockClock) -> None:
    """A peer that sends nothing, half a request, or reads nothing holds its connection for a bounded time
    only.
    """

    async def handler(_request: ServerRequest, responder: Responder) -> None:
        await responder.send_bytes(200, b"x" * 1000)

    limits = ServerLimits(idle_timeout_s=7, write_timeout_s=3)
    for sent in (b"", GET[:10], b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 9\r\n\r\nhalf"):
        near, far = trio.testing.memory_stream_pair()
        await near.send_all(sent)
        began = trio.current_time()
        await serve_stream(handler, far, limits=limits)
        assert trio.current_time() - began == pytest.approx(7)

    slow, served = trio.testing.lockstep_stream_pair()
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow.send_all, GET)
        await serve_stream(handler, served, limits=limits)
    assert trio.current_time() - began == pytest.approx(3)


async def test_too_many_connections_are_turned_away(serve: Serve) -> None:
    """One connection beyond the bound gets 503 at once; when one leaves, the next is served."""
    handle = await serve(ok, limits=ServerLimits(connections_max=1))
    with trio.fail_after(5):
        async with await trio.open_tcp_stream(handle.host, handle.port) as first:
            await first.send_all(GET)
            await read_answer(first, b"/x")
            assert (await talk(handle, b"")).startswith(b"HTTP/1.1 503")
        await trio.testing.wait_all_tasks_blocked(0.01)
    assert handle.statistics.refused == 1
    assert (await talk(handle, GET[:-2] + b"connection: close\r\n\r\n")).startswith(b"HTTP/1.1 200")


async def test_stopping_closes_connections() -> None:
    """When the server's task is cancelled, idle and busy connections close and their handlers end."""
    ended = trio.Event()

    async def handler(_request: ServerRequest, responder: Responder) -> None:
        try:
            await responder.hang()
        finally:
            ended.set()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            handle: ServerHandle = await nursery.start(serve_http, handler)
            idle = await trio.open_tcp_stream(handle.host, handle.port)
            busy = await trio.open_tcp_stream(handle.host, handle.port)
            await busy.send_all(GET)
            await trio.testing.wait_all_tasks_blocked(0.01)
            nursery.cancel_scope.cancel()
        assert ended.is_set()
        for stream in (idle, busy):
            async with stream:
                assert await stream.receive_some() == b""


async def test_flooding_peer_is_not_buffered(autojump_clock: trio.testing.MockClock) -> None:
    """While a handler runs, a peer that sends on and on is read only up to a bound."""
    flood = Scripted(GET, *[b"x" * 10_000] * 100)

    async def handler(_request: ServerRequest, responder: Responder) -> None:
        await trio.sleep(60)
        await responder.close()

    with trio.fail_after(100):
        await serve_stream(handler, flood)
    assert 10 < flood.taken < 50
