"""The HTTP adapter against well-behaved peers, its bounds, its pool and its cancellation."""

from __future__ import annotations

import contextlib
import gc
import ssl
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from protocols.base import Endpoint
from protocols.errors import BodyTooLarge, ConnectFailed, FaultKind, LocalOverload, RequestTimeout
from protocols.http import HTTPAdapter, HTTPLimits
from protocols.http_responder import Responder, ServerRequest
from protocols.http_server import ServerHandle, serve_stream
from tests.protocols.conftest import Serve


@contextlib.asynccontextmanager
async def connected(handle: ServerHandle, **limits: float) -> AsyncIterator[HTTPAdapter]:
    adapter = HTTPAdapter(Endpoint.parse(handle.url), limits=HTTPLimits(**limits))  # type: ignore[arg-type]
    async with adapter:
        with trio.fail_after(10):
            yield adapter


async def echo(request: ServerRequest, responder: Responder) -> None:
    answer = {
        "method": request.method,
        "path": request.path,
        "query": request.query_values(),
        "headers": dict(request.headers),
        "json": request.json() if request.body else None,
    }
    await responder.send_json(200, answer, {"X-Seen": "yes", "Set-Cookie": "session=1"})


class Gate:
    """A handler that waits, and records that its peer left."""

    def __init__(self) -> None:
        self.entered = trio.Event()
        self.left = trio.Event()

    async def __call__(self, request: ServerRequest, responder: Responder) -> None:
        try:
            if request.path == "/lines":
                async with responder.stream(200, "application/x-ndjson") as body:
                    await body.send(b"first\n")
                    self.entered.set()
                    await trio.sleep_forever()
            self.entered.set()
            await responder.hang()
        finally:
            self.left.set()


async def test_json_round_trip(serve: Serve) -> None:
    """Method, path, query, headers and JSON arrive as sent, and the answer comes back with its headers."""
    async with connected(await serve(echo)) as adapter:
        reply = await adapter.request_json(
            "POST", "/a%20b?x=1&y=%C3%A4", json={"n": 1}, headers={"traceparent": "00-aa-bb-01"}
        )
    assert (reply.status, reply.headers["x-SEEN"]) == (200, "yes")
    assert reply.json["method"] == "POST"
    assert reply.json["path"] == "/a%20b"
    assert reply.json["query"] == {"x": "1", "y": "ä"}
    assert reply.json["json"] == {"n": 1}
    assert reply.json["headers"]["traceparent"] == "00-aa-bb-01"
    assert reply.json["headers"]["accept-encoding"] == "identity"


async def test_keep_alive_without_cookies(serve: Serve) -> None:
    """Requests one after the other share one connection, and nothing a peer sets travels with the next
    one.
    """
    async with connected(await serve(echo)) as adapter:
        for _ in range(5):
            reply = await adapter.request_json("GET", "/")
            assert "cookie" not in reply.json["headers"]
        statistics = adapter.statistics()
    assert (statistics.requests, statistics.connects, statistics.in_flight) == (5, 1, 0)


async def test_keep_alive_ends_on_trios_clock(autojump_clock: trio.testing.MockClock) -> None:
    """An idle connection is not used again after keepalive_s, also in virtual time."""
    async with trio.open_nursery() as nursery, memory_adapter(nursery, HTTPLimits(keepalive_s=3)) as adapter:
        await adapter.request("GET", "/")
        await trio.sleep(2.9)
        await adapter.request("GET", "/")
        assert adapter.statistics().connects == 1
        await trio.sleep(3.1)
        await adapter.request("GET", "/")
        assert adapter.statistics().connects == 2
        nursery.cancel_scope.cancel()


async def test_peer_that_closed_while_idle_is_not_reused(serve: Serve) -> None:
    """A connection that its peer closed between two requests is replaced, without a failure."""

    async def once(_request: ServerRequest, responder: Responder) -> None:
        await responder.send_bytes(200, b"ok")
        await responder.close()

    async with connected(await serve(once)) as adapter:
        for _ in range(3):
            assert (await adapter.request("GET", "/")).body == b"ok"
            await trio.testing.wait_all_tasks_blocked(0.01)
        assert adapter.statistics().connects == 3


async def test_auth_headers_are_sent_and_never_shown(serve: Serve) -> None:
    """Credentials reach the peer, and neither a repr nor an error message."""

    async def guarded(request: ServerRequest, responder: Responder) -> None:
        known = request.headers.get("authorization") == "Bearer s3cret"
        await responder.send_bytes(204 if known and request.path == "/in" else 500, b"")

    endpoint = Endpoint.parse((await serve(guarded)).url)
    with trio.fail_after(5):
        async with HTTPAdapter(endpoint, auth_headers={"Authorization": "Bearer s3cret"}) as adapter:
            assert (await adapter.request_json("GET", "/in")).json is None
            report = await adapter.health("/out?token=s3cret")
    assert "s3cret" not in repr(adapter)
    assert "s3cret" not in report.detail


async def test_health(serve: Serve) -> None:
    """A probe reports health, latency and the kind of fault; it never raises."""

    async def half_well(request: ServerRequest, responder: Responder) -> None:
        if request.path == "/hang":
            await responder.hang()
        await responder.send_bytes(200 if request.path == "/health" else 503, b"")

    async with connected(await serve(half_well), health_timeout_s=0.1) as adapter:
        good, bad, slow = [await adapter.health(path) for path in ("/health", "/other", "/hang")]
    assert good.healthy
    assert good.fault is None
    assert 0 <= good.latency_s < 1
    assert (bad.healthy, bad.fault) == (False, FaultKind.UNAVAILABLE)
    assert (slow.healthy, slow.fault) == (False, FaultKind.TIMEOUT)


async def test_body_bounds(serve: Serve) -> None:
    """A body beyond its bound is refused, announced or not, and the adapter goes on working."""

    async def large(request: ServerRequest, responder: Responder) -> None:
        if request.path == "/announced":
            await responder.send_bytes(200, b"x" * 3000)
            return
        async with responder.stream(200, "text/plain") as body:
            for _ in range(30 if request.path == "/chunked" else 5):
                await body.send(b"x" * 100)

    async with connected(await serve(large), body_bytes_max=1000, connections_max=1) as adapter:
        for path in ("/announced", "/chunked"):
            with pytest.raises(BodyTooLarge) as caught:
                await adapter.request("GET", path)
            assert (caught.value.limit_bytes, caught.value.outcome_unknown) == (1000, True)
        assert len((await adapter.request("GET", "/small")).body) == 500
        assert adapter.statistics().faults == {"too_large": 2}
        assert adapter.statistics().in_flight == 0


async def test_lines(serve: Serve) -> None:
    """Lines are cut at their endings whatever the chunks are, and the last one needs no ending."""

    async def dribble(_request: ServerRequest, responder: Responder) -> None:
        async with responder.stream(200, "application/x-ndjson") as body:
            for piece in (b'{"a":', b"1}\n{", b'"b":2}\r\n\n', b"last"):
                await body.send(piece)
                await trio.testing.wait_all_tasks_blocked()

    async with connected(await serve(dribble)) as adapter:
        async with adapter.stream_lines("GET", "/lines") as lines:
            assert [line async for line in lines] == [b'{"a":1}', b'{"b":2}', b"", b"last"]
        assert (await adapter.request("GET", "/")).status == 200
        assert adapter.statistics().connects == 1


async def test_lines_idle_time_out_and_bound(serve: Serve) -> None:
    """A silent stream and an endless line end with their own faults, and give the connection's slot back."""

    async def bad(request: ServerRequest, responder: Responder) -> None:
        async with responder.stream(200, "application/x-ndjson") as body:
            await body.send(b"x" * (5000 if request.path == "/long" else 5))
            await trio.sleep_forever()

    async with connected(await serve(bad), connections_max=1) as adapter:
        with pytest.raises(RequestTimeout) as silent:
            async with adapter.stream_lines("GET", "/silent", idle_timeout_s=0.05) as lines:
                await anext(lines)
        assert silent.value.outcome_unknown
        with pytest.raises(BodyTooLarge):
            async with adapter.stream_lines("GET", "/long", line_bytes_max=1000) as lines:
                await anext(lines)
        assert adapter.statistics().in_flight == 0
        assert adapter.statistics().faults == {"timeout": 1, "too_large": 1}


async def test_giving_up_leaves_nothing_to_the_collector(serve: Serve) -> None:
    """An answer left half-way is ended then and there: the garbage collector finds no open generator."""
    async with connected(await serve(Gate())) as adapter:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            async with adapter.stream_lines("GET", "/lines") as lines:
                assert await anext(lines) == b"first"
            del lines
            gc.collect()
            await trio.testing.wait_all_tasks_blocked()
    assert [warning for warning in seen if warning.category is ResourceWarning] == []


@pytest.mark.parametrize("how", ["cancel", "deadline", "leave", "cancel-stream"])
async def test_giving_up_reaches_the_peer(serve: Serve, how: str) -> None:
    """However a request is given up, the peer's handler is cancelled, and the slot is free again."""
    gate = Gate()
    async with connected(await serve(gate), connections_max=1) as adapter:
        if how == "deadline":
            with pytest.raises(RequestTimeout):
                await adapter.request("GET", "/", timeout_s=0.05)
        elif how == "leave":
            async with adapter.stream_lines("GET", "/lines") as lines:
                assert await anext(lines) == b"first"
        else:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run_for_ever, adapter, "/lines" if how == "cancel-stream" else "/")
                await gate.entered.wait()
                nursery.cancel_scope.cancel()
        await gate.left.wait()
        assert adapter.statistics().in_flight == 0


async def run_for_ever(adapter: HTTPAdapter, path: str) -> None:
    async with adapter.stream_lines("GET", path) as lines:
        async for _ in lines:
            pass


async def test_pool_survives_cancellation(serve: Serve) -> None:
    """Many requests cancelled at every stage leave no phantom connection: afterwards all slots serve."""

    async def slow(_request: ServerRequest, responder: Responder) -> None:
        await trio.sleep(0.002)
        await responder.send_bytes(200, b"ok")

    async with connected(await serve(slow), connections_max=10) as adapter:

        async def hammer(number: int) -> None:
            for round_ in range(25):
                with trio.move_on_after(0.0002 * (1 + (number * 7 + round_ * 13) % 50)):
                    await adapter.request("GET", "/")

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(hammer, number)
        assert (adapter.statistics().in_flight, adapter.statistics().waiting) == (0, 0)
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(adapter.request, "GET", "/")
        assert adapter.statistics().connections <= 10
        assert adapter.statistics().faults == {}


async def test_cancellation_right_after_connecting_leaves_no_phantom() -> None:
    """A request cancelled at the very moment its connection stands closes it and frees the slot."""
    opened: list[trio.abc.Stream] = []
    scope = trio.CancelScope()

    async def open_and_cancel(_host: str, _port: int) -> trio.abc.Stream:
        near, far = trio.testing.memory_stream_pair()
        opened.append(far)
        scope.cancel()
        return near

    endpoint = Endpoint.parse("http://nowhere:1")
    async with HTTPAdapter(
        endpoint, open_stream=open_and_cancel, limits=HTTPLimits(connections_max=1)
    ) as adapter:
        with scope:
            await adapter.request("GET", "/")
        assert scope.cancelled_caught
        with trio.fail_after(1):
            assert await opened[0].receive_some() == b""
        assert (adapter.statistics().connections, adapter.statistics().in_flight) == (0, 0)


async def test_full_pool_is_our_own_fault(serve: Serve) -> None:
    """A request that finds no free connection fails as local overload, with nothing sent."""
    gate = Gate()
    async with (
        connected(await serve(gate), connections_max=1, queue_timeout_s=0.05) as adapter,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(adapter.request, "GET", "/")
        await gate.entered.wait()
        for timeout_s in (None, 0.01):
            with pytest.raises(LocalOverload) as caught:
                await adapter.request("GET", "/", timeout_s=timeout_s)
            assert not caught.value.outcome_unknown
        nursery.cancel_scope.cancel()


class ReadableStream(trio.abc.Stream):
    """A stream that can tell whether a read would return at once, as the seam asks of one kept alive."""

    def __init__(self, inner: trio.abc.Stream) -> None:
        self._inner = inner

    def is_readable(self) -> bool:
        return False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._inner.receive_some(max_bytes)

    async def aclose(self) -> None:
        await self._inner.aclose()


@contextlib.asynccontextmanager
async def memory_adapter(
    nursery: trio.Nursery, limits: HTTPLimits | None = None, *, readable: bool = True
) -> AsyncIterator[HTTPAdapter]:
    async def open_memory(_host: str, _port: int) -> trio.abc.Stream:
        near, far = trio.testing.memory_stream_pair()
        nursery.start_soon(serve_stream, echo, far)
        return ReadableStream(near) if readable else near

    endpoint = Endpoint.parse("http://service-3:8188/base", name="gpu0")
    async with HTTPAdapter(endpoint, open_stream=open_memory, limits=limits) as adapter:
        yield adapter


@pytest.mark.parametrize(("readable", "connects"), [(True, 1), (False, 3)])
async def test_over_memory_streams(
    autojump_clock: trio.testing.MockClock, *, readable: bool, connects: int
) -> None:
    """The adapter runs on in-memory streams; only those that can tell whether the peer left are kept
    alive.
    """
    async with trio.open_nursery() as nursery:
        async with memory_adapter(nursery, readable=readable) as adapter:
            for _ in range(3):
                reply = await adapter.request_json("POST", "/x", json=[1])
                assert (reply.json["path"], reply.json["json"]) == ("/base/x", [1])
                assert reply.json["headers"]["host"] == "service-3:8188"
            assert adapter.statistics().connects == connects
        nursery.cancel_scope.cancel()


async def test_tls(nursery: trio.Nursery, localhost_tls: tuple[ssl.SSLContext, Path]) -> None:
    """HTTPS is spoken over the seam, and a certificate nobody vouches for is a failed connection."""
    server_context, certificate = localhost_tls

    async def serve_tls(stream: trio.abc.Stream) -> None:
        tls = trio.SSLStream(stream, server_context, server_side=True, https_compatible=True)
        with contextlib.suppress(trio.BrokenResourceError):
            await tls.do_handshake()
            await serve_stream(echo, tls)

    async def open_memory(_host: str, _port: int) -> trio.abc.Stream:
        near, far = trio.testing.memory_stream_pair()
        nursery.start_soon(serve_tls, far)
        return near

    endpoint = Endpoint.parse("https://localhost")
    trusting = ssl.create_default_context(cafile=str(certificate))
    with trio.fail_after(10):
        async with HTTPAdapter(endpoint, open_stream=open_memory, ssl_context=trusting) as adapter:
            assert (await adapter.request_json("GET", "/tls")).json["path"] == "/tls"
        async with HTTPAdapter(endpoint, open_stream=open_memory) as adapter:
            with pytest.raises(ConnectFailed) as caught:
                await adapter.request("GET", "/")
            assert not caught.value.outcome_unknown
