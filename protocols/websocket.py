"""The WebSocket adapter: bounded, its reader never waits, every failure one of ``protocols.errors``.

``connect`` gives one connection; ``protocols.websocket_session`` keeps one alive over breaks.
"""

from __future__ import annotations

import contextlib
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass

import trio

from protocols.base import DEFAULT_PORTS, Endpoint, HealthReport, OpenStream, ProtocolAdapter, open_tcp
from protocols.errors import ConnectTimeout, FaultKind, InvalidRequest, LocalOverload, ProtocolError
from protocols.websocket_edge import WatchedStream, open_link
from protocols.websocket_link import Inbox, KeyOf, WebSocket, WebSocketLimits

#: How the schemes of a port that serves both are read here.
_SCHEMES = ("ws", "wss", "http", "https")


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSocketStatistics:
    """A snapshot of one adapter.

    Attributes:
        connects: connections whose handshake succeeded so far.
        connections: open now, handshakes included.
        waiting: callers that wait for a free connection now.
        faults: failed connections by ``FaultKind``.
    """

    connects: int
    connections: int
    waiting: int
    faults: Mapping[str, int]


class WebSocketAdapter(ProtocolAdapter):
    """WebSocket (RFC 6455) to one endpoint, on trio-websocket over a seam for byte streams.

    It reads no proxy settings and offers no compression (a small compressed message can expand past any bound).
    Leaving a connection's block after a cancellation or an exception cuts the connection, so the peer notices.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        open_stream: OpenStream = open_tcp,
        limits: WebSocketLimits | None = None,
        auth_headers: Mapping[str, str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Prepare; nothing is opened before the first connection.

        Args:
            endpoint: the peer; ``ws`` or ``wss``, or ``http`` or ``https`` of a port that serves both.
            open_stream: how byte streams open.
            limits: bounds.
            auth_headers: sent with each handshake; they appear in no message, log or repr.
            ssl_context: for ``wss``; by default the system's trust store.

        Raises:
            ValueError: the endpoint's scheme is another one.
        """
        if endpoint.scheme not in _SCHEMES:
            raise ValueError(f"the WebSocket adapter cannot speak {endpoint.scheme!r} to {endpoint}")
        self._endpoint = endpoint
        self._open_stream = open_stream
        self._limits = limits or WebSocketLimits()
        self._auth_headers = dict(auth_headers or {})
        if endpoint.secure and ssl_context is None:
            ssl_context = ssl.create_default_context()
        self._ssl_context = ssl_context if endpoint.secure else None
        self._limiter = trio.CapacityLimiter(self._limits.connections_max)
        self._live: set[WebSocket] = set()
        self._connects = 0
        self._faults: Counter[str] = Counter()
        self._closed = False

    def __repr__(self) -> str:
        return f"<WebSocketAdapter {self._endpoint}: {len(self._live)} open>"

    @property
    def endpoint(self) -> Endpoint:
        """The peer."""
        return self._endpoint

    @property
    def limits(self) -> WebSocketLimits:
        """The bounds."""
        return self._limits

    def statistics(self) -> WebSocketStatistics:
        """Return a snapshot of the counters."""
        return WebSocketStatistics(
            connects=self._connects,
            connections=int(self._limiter.borrowed_tokens),
            waiting=self._limiter.statistics().tasks_waiting,
            faults=dict(self._faults),
        )

    @contextlib.asynccontextmanager
    async def connect(
        self,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        key_of: KeyOf | None = None,
        inactivity_s: float | None = None,
        inbox: Inbox | None = None,
    ) -> AsyncIterator[WebSocket]:
        """Open one connection, for as long as the block lasts.

        Args:
            path: below the endpoint's own; quoted by the caller, with query.
            headers: of the handshake, for example trace context.
            key_of: which messages replace each other while the consumer is busy (progress, previews); by
                default none does.
            inactivity_s: longest time without a message, seconds; that of the limits by default.
            inbox: where messages go, to outlive the connection; by default one of its own, read by ``receive``.

        Raises:
            ProtocolError: one of its leafs, here or while using the connection. A failed handshake never leaves
                an outcome unknown.
        """
        if not path.startswith("/"):
            raise InvalidRequest(f"path {path!r} must begin with a slash")
        what = f"WebSocket {self._endpoint.url}{path.partition('?')[0]}"
        merged = {**self._auth_headers, **(headers or {})}
        raw_headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in merged.items()]
        failure: Exception | None = None
        with self._counted():
            async with self._slot(what), self._link(what, key_of, inactivity_s, inbox) as (link, deadline_s):
                resource = f"{self._endpoint.path}{path}"
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(link.run, self._host(), resource, raw_headers, deadline_s)
                    # An exception that left the nursery's block would arrive wrapped in a group.
                    try:
                        await link.settled.wait()
                        # A connection that is over already may still have messages to give.
                        if link.fault is not None and not link.established:
                            raise link.fault.with_traceback(None)
                        self._connects += 1
                        yield link
                        await link.close()
                    except Exception as exc:
                        failure = exc
                    nursery.cancel_scope.cancel()
            if failure is not None:
                raise failure

    async def health(self, target: str) -> HealthReport:
        """Probe within ``health_timeout_s``: healthy is a peer that accepts ``target`` and answers a ping."""
        began = trio.current_time()
        latency_s: float | None = None
        try:
            with trio.fail_after(self._limits.health_timeout_s):
                async with self.connect(target) as link:
                    await link.ping()
                    latency_s = trio.current_time() - began
        except ProtocolError as exc:
            return HealthReport(
                healthy=False, detail=str(exc), latency_s=trio.current_time() - began, fault=exc.fault
            )
        except trio.TooSlowError:
            if latency_s is None:
                detail = f"no answer within {self._limits.health_timeout_s:g} s"
                return HealthReport(
                    healthy=False,
                    detail=detail,
                    latency_s=trio.current_time() - began,
                    fault=FaultKind.TIMEOUT,
                )
        return HealthReport(healthy=True, detail="101, pong", latency_s=latency_s or 0.0)

    async def aclose(self) -> None:
        """Cut all connections; their users get a fault. Idempotent."""
        self._closed = True
        for link in tuple(self._live):
            link.abort()
        await trio.lowlevel.checkpoint()

    def _host(self) -> str:
        endpoint = self._endpoint
        if endpoint.port == DEFAULT_PORTS[endpoint.scheme]:
            return endpoint.authority.rpartition(":")[0]
        return endpoint.authority

    @contextlib.asynccontextmanager
    async def _slot(self, what: str) -> AsyncIterator[None]:
        """Hold one of the connections that may be open at once."""
        if self._closed:
            raise InvalidRequest(f"{what}: the adapter is closed")
        holder = object()
        try:
            with trio.fail_after(self._limits.queue_timeout_s):
                await self._limiter.acquire_on_behalf_of(holder)
        except trio.TooSlowError as exc:
            raise LocalOverload(f"{what}: no free connection in time") from exc
        try:
            yield
        finally:
            self._limiter.release_on_behalf_of(holder)

    @contextlib.asynccontextmanager
    async def _link(
        self, what: str, key_of: KeyOf | None, inactivity_s: float | None, inbox: Inbox | None
    ) -> AsyncIterator[tuple[WebSocket, float]]:
        """Open the byte stream and make the connection that will run on it; closed on every path."""
        limits = self._limits
        deadline_s = trio.current_time() + limits.connect_timeout_s
        try:
            with trio.fail_at(deadline_s):
                opened = await open_link(self._endpoint, self._open_stream, self._ssl_context, what)
        except trio.TooSlowError as exc:
            raise ConnectTimeout(f"{what}: no connection in time") from exc
        stream = WatchedStream(opened, head_bytes_max=limits.error_bytes_max)
        own = inbox or Inbox(limits, key_of)
        link = WebSocket(
            stream,
            what,
            limits,
            own,
            inactivity_s=limits.inactivity_s if inactivity_s is None else inactivity_s,
            on_end=own.fail if inbox is None else _outlived,
        )
        self._live.add(link)
        try:
            yield link, deadline_s
        finally:
            self._live.discard(link)
            await trio.aclose_forcefully(stream)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except ProtocolError as exc:
            self._faults[exc.fault] += 1
            raise


def _outlived(_fault: ProtocolError) -> None:
    """The inbox belongs to somebody who may connect again."""
