"""A small HTTP/1.1 server on h11 and trio, for the gateway's own pages and for services that must misbehave.

It serves any trio stream, notices while a handler runs that its peer left (and cancels the handler), and lets
a handler break the protocol on purpose, down to single bytes. A handler may upgrade its connection, for
WebSocket with ``protocols.websocket_server``. Not supported: pipelining, TLS.
"""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import h11
import trio

from protocols.base import require_positive
from protocols.http_responder import Responder, ServerRequest
from protocols.http_upgrade import UpgradedStream

logger = logging.getLogger(__name__)

Handler = Callable[[ServerRequest, Responder], Awaitable[None]]

_READ_BYTES = 64 * 1024
#: How long a refused peer may take to read why, seconds.
_LINGER_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLimits:
    """Bounds of a server.

    Attributes:
        connections_max: connections at once; one more is answered 503 and closed.
        header_bytes_max: request line and headers together, bytes.
        body_bytes_max: largest accepted request body, bytes; beyond it the answer is 413.
        idle_timeout_s: seconds a connection may wait for (the rest of) a request.
        write_timeout_s: seconds the peer may take to accept what we send; then it counts as gone.
        backlog: connections the kernel may hold before they are accepted.
    """

    connections_max: int = 1024
    header_bytes_max: int = 64 * 1024
    body_bytes_max: int = 64 * 1024 * 1024
    idle_timeout_s: float = 75.0
    write_timeout_s: float = 30.0
    backlog: int = 1024

    def __post_init__(self) -> None:
        """Refuse limits that cannot work."""
        require_positive(
            connections_max=self.connections_max,
            header_bytes_max=self.header_bytes_max,
            body_bytes_max=self.body_bytes_max,
            idle_timeout_s=self.idle_timeout_s,
            write_timeout_s=self.write_timeout_s,
            backlog=self.backlog,
        )


@dataclass(slots=True)
class ServerStatistics:
    """Counters of one server, written by its connections.

    Attributes:
        connections: open now.
        refused: connections turned away because there were too many.
        requests: requests handed to the handler.
        handler_failures: handlers that raised or did not answer.
        abandoned: handlers cancelled because the peer left.
    """

    connections: int = 0
    refused: int = 0
    requests: int = 0
    handler_failures: int = 0
    abandoned: int = 0


@dataclass(frozen=True, slots=True)
class ServerHandle:
    """A running server, as ``nursery.start(serve_http, ...)`` returns it; cancel its task to stop it."""

    host: str
    port: int
    statistics: ServerStatistics = field(default_factory=ServerStatistics)

    @property
    def url(self) -> str:
        """The address, without a slash at its end."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"


async def serve_http(
    handler: Handler,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    limits: ServerLimits | None = None,
    task_status: trio.TaskStatus[ServerHandle] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Listen and serve until cancelled; then all connections close.

    Args:
        handler: called for each request, in the connection's own task.
        host: address to bind (one address: with a name of several, port 0 would give each another port).
        port: 0 lets the system choose; the handle says which.
        limits: bounds.
        task_status: receives the ``ServerHandle`` once connections are accepted.

    Raises:
        OSError: the address cannot be bound.
    """
    limits = limits or ServerLimits()
    statistics = ServerStatistics()

    async def serve_connection(stream: trio.SocketStream) -> None:
        if statistics.connections >= limits.connections_max:
            statistics.refused += 1
            await _turn_away(stream, limits)
            return
        statistics.connections += 1
        try:
            await serve_stream(handler, stream, limits=limits, statistics=statistics)
        finally:
            statistics.connections -= 1

    listeners = await trio.open_tcp_listeners(port, host=host, backlog=limits.backlog)
    bound_host, bound_port = listeners[0].socket.getsockname()[:2]
    async with trio.open_nursery() as nursery:
        serve = functools.partial(trio.serve_listeners, serve_connection, listeners, handler_nursery=nursery)
        await nursery.start(serve)
        task_status.started(ServerHandle(bound_host, bound_port, statistics))


async def serve_stream(
    handler: Handler,
    stream: trio.abc.Stream,
    *,
    limits: ServerLimits | None = None,
    statistics: ServerStatistics | None = None,
) -> None:
    """Serve the requests of one connection on any trio stream; returns when the connection ended, closed.

    Args:
        handler: called for each request.
        stream: owned from here on.
        limits: bounds.
        statistics: counters to write to.
    """
    connection = _Connection(handler, stream, limits or ServerLimits(), statistics or ServerStatistics())
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.receive)
            await connection.serve()
            nursery.cancel_scope.cancel()
    finally:
        await trio.aclose_forcefully(stream)


async def _turn_away(stream: trio.abc.Stream, limits: ServerLimits) -> None:
    try:
        with trio.move_on_after(limits.write_timeout_s):
            await stream.send_all(
                b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        # It left by itself, which is what was wanted.
        return


class _PeerGoneError(Exception):
    """The peer left before its request was complete: a signal within this module."""


class _Connection:
    """One connection: a task that reads for as long as it lives, and one that runs the handlers.

    Only the permanent reader can notice that the peer left while a handler runs. It feeds h11 directly and
    wakes the serving task, so a request costs one task switch more than reading in turns would, and no
    nursery of its own.
    """

    def __init__(
        self, handler: Handler, stream: trio.abc.Stream, limits: ServerLimits, statistics: ServerStatistics
    ) -> None:
        self._handler = handler
        self._stream = stream
        self._limits = limits
        self._statistics = statistics
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.header_bytes_max)
        self._unread_bytes = 0
        self._gone = False
        self._discarding = False
        self._arrival: trio.Event | None = None
        self._room: trio.Event | None = None
        self._running: trio.CancelScope | None = None
        self._responder: Responder | None = None
        self._upgraded: UpgradedStream | None = None

    async def receive(self) -> None:
        """Read until the peer leaves; then cancel the handler that may be running for it."""
        receive_some = self._stream.receive_some
        while True:
            try:
                data = await receive_some(_READ_BYTES)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                data = b""
            if not data:
                self._gone = True
                self._wake()
                if self._upgraded is not None:
                    self._upgraded.end()
                # When the handler closed the connection itself, it may still have something to finish.
                elif self._running is not None and not (
                    self._responder is not None and self._responder.closed
                ):
                    self._running.cancel()
                return
            if self._discarding:
                continue
            if self._upgraded is None:
                self._h11.receive_data(bytes(data))
            else:
                self._upgraded.feed(bytes(data))
            self._unread_bytes += len(data)
            self._wake()
            # A peer that sends on and on while nobody consumes must not fill our memory; its leaving is then
            # noticed only after the handler ended.
            while self._unread_bytes > _READ_BYTES + self._limits.header_bytes_max:
                self._room = trio.Event()
                await self._room.wait()

    async def serve(self) -> None:
        """Handle request after request until either side ends the connection."""
        try:
            while True:
                with trio.move_on_after(self._limits.idle_timeout_s) as patience:
                    request = await self._next_request()
                if patience.cancelled_caught or request is None:
                    return
                if not await self._handle(request):
                    return
                self._h11.start_next_cycle()
        except h11.RemoteProtocolError as exc:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self._refuse(exc.error_status_hint)
        except (_PeerGoneError, trio.BrokenResourceError, trio.ClosedResourceError):
            return

    async def _next_request(self) -> ServerRequest | None:
        event = await self._next_event()
        if not isinstance(event, h11.Request):
            return None
        body = b""
        if self._h11.their_state is not h11.DONE:
            body = await self._read_body()
        return ServerRequest.from_event(event, body)

    async def _read_body(self) -> bytes:
        if self._h11.they_are_waiting_for_100_continue:
            go_on = self._h11.send(h11.InformationalResponse(status_code=100, headers=[]))
            await self._stream.send_all(go_on or b"")
        chunks: list[bytes] = []
        size_bytes = 0
        while True:
            event = await self._next_event()
            if isinstance(event, h11.EndOfMessage):
                return b"".join(chunks)
            if not isinstance(event, h11.Data):
                raise _PeerGoneError
            size_bytes += len(event.data)
            if size_bytes > self._limits.body_bytes_max:
                raise h11.RemoteProtocolError("body too large", error_status_hint=413)
            chunks.append(bytes(event.data))

    async def _next_event(self) -> object:
        while True:
            event = self._h11.next_event()
            if event is not h11.NEED_DATA:
                return event
            self._make_room()
            if self._gone:
                raise _PeerGoneError
            self._arrival = trio.Event()
            await self._arrival.wait()

    def _wake(self) -> None:
        if self._arrival is not None:
            self._arrival.set()
            self._arrival = None

    def _take_over(self, stream: UpgradedStream) -> None:
        self._upgraded = stream
        if self._gone:
            stream.end()

    def _make_room(self) -> None:
        self._unread_bytes = 0
        if self._room is not None:
            self._room.set()
            self._room = None

    async def _handle(self, request: ServerRequest) -> bool:
        """Run the handler; whether the connection can take another request."""
        self._statistics.requests += 1
        responder = Responder(
            self._stream,
            self._h11,
            request,
            write_timeout_s=self._limits.write_timeout_s,
            take_over=self._take_over,
            make_room=self._make_room,
        )
        self._responder = responder
        with trio.CancelScope() as self._running:
            # A peer that left already still gets its request begun, up to the handler's first checkpoint:
            # bytes that arrived are acted on.
            if self._gone:
                self._running.cancel()
            try:
                await self._handler(request, responder)
                if not responder.begun:
                    self._statistics.handler_failures += 1
                    logger.error("handler of %s %s gave no answer", request.method, request.path)
                    await responder.send_bytes(500, b"no answer\n")
            except Exception as exc:
                await self._handler_failed(request, responder, exc)
        if self._running.cancelled_caught:
            self._statistics.abandoned += 1
        self._upgraded = None
        self._running = None
        self._responder = None
        states = self._h11.states
        return not responder.closed and set(states.values()) == {h11.DONE}

    async def _handler_failed(self, request: ServerRequest, responder: Responder, exc: Exception) -> None:
        if isinstance(exc, (trio.BrokenResourceError, trio.ClosedResourceError)) and (
            self._gone or responder.closed or responder.lost
        ):
            # Not the handler's fault: it wrote to a peer that is no longer there.
            self._statistics.abandoned += 1
            return
        self._statistics.handler_failures += 1
        logger.error("handler of %s %s failed", request.method, request.path, exc_info=exc)
        # Half a head given to h11 leaves nothing to build on, even if no byte was sent.
        if responder.begun or self._h11.our_state is not h11.SEND_RESPONSE:
            await responder.abort()
        else:
            await responder.send_bytes(500, b"internal error\n")

    async def _refuse(self, status: int) -> None:
        """Answer a request that is not valid HTTP, as far as the connection still allows, and give up."""
        if self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        head = self._h11.send(
            h11.Response(status_code=status, headers=[("content-length", "0"), ("connection", "close")])
        )
        self._discarding = True
        self._make_room()
        with trio.move_on_after(self._limits.write_timeout_s):
            await self._stream.send_all(head or b"")
        # Closing with unread bytes would reset the connection, and the reset could overtake the answer. So
        # read on for a moment, until the peer has understood and left.
        with trio.move_on_after(_LINGER_S):
            while not self._gone:
                self._arrival = trio.Event()
                await self._arrival.wait()
