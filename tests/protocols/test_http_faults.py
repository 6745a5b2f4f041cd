"""Every way an HTTP peer can fail becomes one typed fault that says whether the outcome is known."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from protocols.base import Endpoint, OpenStream, TCPOpener, open_tcp
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
    Rejected,
    RequestTimeout,
    ServerFailure,
    StatusFailure,
    Unavailable,
    UnexpectedStatus,
    Unsupported,
)
from protocols.http import HTTPAdapter, HTTPLimits
from protocols.http_responder import Responder, ServerRequest
from protocols.http_server import ServerLimits
from tests.protocols.conftest import Serve

Call = Callable[[HTTPAdapter], Awaitable[object]]


async def fault_of(
    url: str,
    call: Call | None = None,
    *,
    open_stream: OpenStream = open_tcp,
    limits: HTTPLimits | None = None,
) -> ProtocolError:
    """The fault of one request, which must fail, and leave no slot taken."""
    adapter = HTTPAdapter(Endpoint.parse(url), open_stream=open_stream, limits=limits)
    async with adapter:
        with trio.fail_after(10), pytest.raises(ProtocolError) as caught:
            await (call(adapter) if call else adapter.request_json("POST", "/x", json={}))
        assert adapter.statistics().in_flight == 0
        assert adapter.statistics().faults == {caught.value.fault: 1}
    return caught.value


async def test_refused() -> None:
    """A port nobody listens on: refused, nothing sent."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        fault = await fault_of(f"http://127.0.0.1:{reserved.getsockname()[1]}")
    assert type(fault) is ConnectRefused
    assert (fault.fault, fault.outcome_unknown) == (FaultKind.UNREACHABLE, False)


async def test_connect_timeout_on_a_full_backlog() -> None:
    """A peer whose kernel answers no more connection attempts: connect time-out, nothing sent."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        with socket.create_connection(address), socket.socket() as second:
            second.setblocking(False)
            second.connect_ex(address)
            url = f"http://127.0.0.1:{address[1]}"
            fault = await fault_of(url, limits=HTTPLimits(connect_timeout_s=0.1))
            assert type(fault) is ConnectTimeout
            assert not fault.outcome_unknown
            with pytest.raises(trio.TooSlowError):
                await TCPOpener(connect_timeout_s=0.05)("127.0.0.1", address[1])


async def never(_host: str, _port: int) -> trio.abc.Stream:
    await trio.sleep_forever()
    raise AssertionError("unreachable")


async def unreachable(_host: str, _port: int) -> trio.abc.Stream:
    raise OSError(113, "No route to host")


async def test_connecting_uses_up_the_whole_time() -> None:
    """The request's own deadline while still connecting is a connect time-out too: nothing was sent."""
    fault = await fault_of(
        "http://x:1", lambda adapter: adapter.request("GET", "/", timeout_s=0.05), open_stream=never
    )
    assert type(fault) is ConnectTimeout


async def test_unreachable() -> None:
    """Any other reason not to get a connection is its own fault of the same kind."""
    fault = await fault_of("http://x:1", open_stream=unreachable)
    assert type(fault) is ConnectFailed
    assert fault.fault is FaultKind.UNREACHABLE


async def test_tls_to_a_peer_without_tls(serve: Serve) -> None:
    """A peer that does not speak TLS gives no connection: nothing of the request was sent."""
    handle = await serve(answer(200))
    assert type(await fault_of(f"https://127.0.0.1:{handle.port}")) is ConnectFailed


@pytest.mark.parametrize("limits", [HTTPLimits(request_timeout_s=0.05), HTTPLimits(idle_timeout_s=0.05)])
async def test_request_timeout(serve: Serve, limits: HTTPLimits) -> None:
    """A peer that accepts and never answers: time-out with an unknown outcome, by either bound."""

    async def hang(_request: ServerRequest, responder: Responder) -> None:
        await responder.hang()

    fault = await fault_of((await serve(hang)).url, limits=limits)
    assert type(fault) is RequestTimeout
    assert (fault.fault, fault.outcome_unknown) == (FaultKind.TIMEOUT, True)


Break = Callable[[Responder], Awaitable[None]]


async def reset(responder: Responder) -> None:
    await responder.abort()


async def close(responder: Responder) -> None:
    await responder.close()


async def cut_head(responder: Responder) -> None:
    await responder.send_raw(b"HTTP/1.1 200 OK\r\ncontent-le")


async def cut_chunked(responder: Responder) -> None:
    async with responder.stream(200, "application/json") as body:
        await body.send(b'{"half":')
        await responder.close()


async def reset_chunked(responder: Responder) -> None:
    async with responder.stream(200, "application/json") as body:
        await body.send(b'{"half":')
        await body.abort()


async def cut_counted(responder: Responder) -> None:
    await responder.send_raw(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345")


@pytest.mark.parametrize("how", [reset, close, cut_head, cut_chunked, reset_chunked, cut_counted])
async def test_peer_closes(serve: Serve, how: Break) -> None:
    """A connection that ends before the answer is complete: peer closed, outcome unknown."""

    async def handler(_request: ServerRequest, responder: Responder) -> None:
        await how(responder)

    fault = await fault_of((await serve(handler)).url)
    assert type(fault) is PeerClosed
    assert (fault.fault, fault.outcome_unknown) == (FaultKind.NETWORK, True)


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x00\x01\x02 what is this\r\n\r\n",
        b"HTTP/1.1 two-hundred OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: minus\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n{bad}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n\xff\xff",
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nx: " + b"a" * 200_000,
    ],
)
async def test_garbage(serve: Serve, garbage: bytes) -> None:
    """A peer that does not speak HTTP, or no JSON where JSON is due: protocol violation, outcome unknown."""

    async def handler(_request: ServerRequest, responder: Responder) -> None:
        await responder.send_raw(garbage)
        await responder.hang()

    fault = await fault_of((await serve(handler)).url)
    assert type(fault) is ProtocolViolation
    assert (fault.fault, fault.outcome_unknown) == (FaultKind.PROTOCOL, True)


async def test_deeply_nested_json(serve: Serve) -> None:
    """JSON nested to exhaust the stack is a protocol violation, not a crash."""

    async def handler(_request: ServerRequest, responder: Responder) -> None:
        await responder.send_bytes(200, b"[" * 1_000_000, "application/json")

    assert type(await fault_of((await serve(handler)).url)) is ProtocolViolation


def answer(
    status: int, headers: dict[str, str] | None = None
) -> Callable[[ServerRequest, Responder], Awaitable[None]]:
    async def handler(_request: ServerRequest, responder: Responder) -> None:
        await responder.send_bytes(status, b'{"kind":"x"}', "application/json", headers)

    return handler


@pytest.mark.parametrize(
    ("status", "leaf", "kind", "outcome_unknown"),
    [
        (301, UnexpectedStatus, FaultKind.PROTOCOL, False),
        (400, Rejected, FaultKind.VALIDATION, False),
        (401, AuthRejected, FaultKind.AUTH, False),
        (403, AuthRejected, FaultKind.AUTH, False),
        (404, NotFound, FaultKind.NOT_FOUND, False),
        (405, Rejected, FaultKind.VALIDATION, False),
        (408, Unavailable, FaultKind.UNAVAILABLE, False),
        (409, Rejected, FaultKind.VALIDATION, False),
        (413, Rejected, FaultKind.VALIDATION, False),
        (422, Rejected, FaultKind.VALIDATION, False),
        (429, RateLimited, FaultKind.RATE_LIMITED, False),
        (500, ServerFailure, FaultKind.SERVICE_ERROR, True),
        (501, Unsupported, FaultKind.UNSUPPORTED, False),
        (502, ServerFailure, FaultKind.SERVICE_ERROR, True),
        (503, Unavailable, FaultKind.UNAVAILABLE, False),
        (599, ServerFailure, FaultKind.SERVICE_ERROR, True),
    ],
)
async def test_statuses(
    serve: Serve, status: int, leaf: type[StatusFailure], kind: FaultKind, *, outcome_unknown: bool
) -> None:
    """Each status is one leaf with its kind, its body for the connector, and whether the peer acted."""
    fault = await fault_of((await serve(answer(status, {"location": "/elsewhere"}))).url)
    assert type(fault) is leaf
    assert (fault.fault, fault.outcome_unknown, fault.status) == (kind, outcome_unknown, status)
    assert fault.body == b'{"kind":"x"}'
    assert fault.retry_after_s is None


@pytest.mark.parametrize(
    ("headers", "retry_after_s"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0"}, 0.0),
        (
            {
                "retry-after": "Wed, 21 Oct 2015 07:28:30 GMT",
                "date": "Wed, 21 Oct 2015 07:28:00 GMT",
            },
            30.0,
        ),
        (
            {
                "retry-after": "Wed, 21 Oct 2015 07:27:00 GMT",
                "date": "Wed, 21 Oct 2015 07:28:00 GMT",
            },
            0.0,
        ),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:30 GMT"}, None),
        ({"retry-after": "9999999999"}, 86_400.0),
        ({"retry-after": "9" * 5000}, None),
        ({"retry-after": "-3"}, None),
        ({"retry-after": "soon", "date": "now"}, None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
async def test_retry_after(
    serve: Serve, status: int, headers: dict[str, str], retry_after_s: float | None
) -> None:
    """The peer's wish is read in seconds and as a date against its own clock; nonsense is no wish."""
    fault = await fault_of((await serve(answer(status, headers))).url)
    assert fault.retry_after_s == retry_after_s


async def test_error_body_is_bounded_and_may_be_cut(serve: Serve) -> None:
    """A huge or cut-off error body does not hide the status."""

    async def handler(request: ServerRequest, responder: Responder) -> None:
        async with responder.stream(500, "text/html") as body:
            await body.send(b"<html>" + b"x" * 5000)
            if request.path == "/cut":
                await responder.close()
            await trio.sleep_forever()

    url = (await serve(handler)).url
    huge = await fault_of(url, limits=HTTPLimits(error_bytes_max=1000))
    assert isinstance(huge, ServerFailure)
    assert len(huge.body) == 1000
    assert len(str(huge)) < 500
    cut = await fault_of(url, lambda adapter: adapter.request("GET", "/cut"))
    assert isinstance(cut, ServerFailure)
    assert cut.body.startswith(b"<html>")


async def test_early_answer_to_a_large_request(serve: Serve) -> None:
    """A peer that refuses before it read the whole request is understood, instead of reported as a broken
    pipe.
    """
    handle = await serve(answer(200), limits=ServerLimits(body_bytes_max=1000))
    fault = await fault_of(handle.url, lambda adapter: adapter.request("POST", "/", content=b"x" * 4_000_000))
    assert isinstance(fault, Rejected)
    assert fault.status == 413


@pytest.mark.parametrize("call", ["path", "header"])
async def test_bad_request_of_our_own(call: str) -> None:
    """What HTTP cannot carry is our own fault, found before anything is sent."""

    def send(adapter: HTTPAdapter) -> Awaitable[object]:
        if call == "path":
            return adapter.request("GET", "no-slash")
        return adapter.request("GET", "/", headers={"x": "a\r\nb: c"})

    async def silent(_host: str, _port: int) -> trio.abc.Stream:
        return trio.testing.memory_stream_pair()[0]

    fault = await fault_of("http://x:1", send, open_stream=silent)
    assert type(fault) is InvalidRequest
    assert not fault.outcome_unknown
