"""httpx over the ``OpenStream`` seam: network backend, stream, and a transport whose pool survives
cancellation.
"""

from __future__ import annotations

import contextvars
import enum
import ssl
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from typing import Any, Self

import httpcore
import httpx
import trio

from protocols.base import OpenStream

#: Key of the ``Exchange`` in ``httpx.Request.extensions``.
EXCHANGE = "trio_gateway.exchange"


class Stage(enum.IntEnum):
    """How far a request came; decides whether its outcome can be unknown."""

    QUEUED = 0
    CONNECTING = 1
    SENT = 2


class Exchange:
    """Where one request stands, as seen at the byte stream: the ground for classifying its failure."""

    __slots__ = ("body", "stage", "stream")

    def __init__(self) -> None:
        self.stage = Stage.QUEUED
        self.stream: BackendStream | None = None
        self.body: ResponseBody | None = None

    @property
    def sent(self) -> bool:
        """Whether a byte may have reached the peer."""
        return self.stage is Stage.SENT

    @property
    def peer_closed(self) -> bool:
        """Whether the peer ended the connection (httpcore reports that as a protocol error, told apart only
        by text).
        """
        return self.stream is not None and self.stream.eof


# httpcore gives a backend no way to learn which request a write belongs to; the task that runs the request
# does.
_current: contextvars.ContextVar[Exchange | None] = contextvars.ContextVar("exchange", default=None)


class Refused(httpcore.ConnectError):
    """Nobody listens: told apart from other connect errors by type."""


class BackendStream(httpcore.AsyncNetworkStream):
    """A trio stream as httpcore wants it.

    httpcore measures keep-alive with ``time.monotonic``, which stands still in virtual time; its expiry is
    therefore left unset, and ``is_readable``, which httpcore asks before every reuse, also answers True when
    the stream has been idle for longer than ``keepalive_s`` on trio's clock.
    """

    def __init__(self, stream: trio.abc.Stream, *, keepalive_s: float) -> None:
        self._stream = stream
        self._keepalive_s = keepalive_s
        self._active_at = trio.current_time()
        self._aborted = False
        self.eof = False

    def abort(self) -> None:
        """Let every later read fail at once; httpcore then closes the connection."""
        self._aborted = True

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Receive up to ``max_bytes``, waiting at most ``timeout`` seconds."""
        if self._aborted:
            raise httpcore.ReadError("aborted on this side")
        try:
            with trio.fail_after(float("inf") if timeout is None else timeout):
                data = bytes(await self._stream.receive_some(max_bytes))
        except trio.TooSlowError as exc:
            raise httpcore.ReadTimeout(f"no byte within {timeout:g} s") from exc
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as exc:
            self.eof = True
            raise httpcore.ReadError(str(exc)) from exc
        self._active_at = trio.current_time()
        if not data:
            self.eof = True
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of ``buffer``, waiting at most ``timeout`` seconds."""
        # Simulated streams may take an empty write for end-of-file.
        if not buffer:
            return
        if (exchange := _current.get()) is not None:
            exchange.stage = Stage.SENT
            exchange.stream = self
        try:
            with trio.fail_after(float("inf") if timeout is None else timeout):
                await self._stream.send_all(buffer)
        except trio.TooSlowError as exc:
            raise httpcore.WriteTimeout(f"nothing accepted within {timeout:g} s") from exc
        except (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as exc:
            raise httpcore.WriteError(str(exc)) from exc
        self._active_at = trio.current_time()

    async def aclose(self) -> None:
        """Close at once; complete even when the caller is cancelled."""
        self._aborted = True
        await trio.aclose_forcefully(self._stream)

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        """Speak TLS from here on; the handshake may take ``timeout`` seconds."""
        tls = trio.SSLStream(
            self._stream, ssl_context, server_hostname=server_hostname, https_compatible=True
        )
        try:
            with trio.fail_after(float("inf") if timeout is None else timeout):
                await tls.do_handshake()
            await trio.lowlevel.checkpoint_if_cancelled()
        except trio.TooSlowError as exc:
            await trio.aclose_forcefully(tls)
            raise httpcore.ConnectTimeout(f"no TLS handshake within {timeout:g} s") from exc
        except (trio.BrokenResourceError, OSError, ssl.CertificateError) as exc:
            await trio.aclose_forcefully(tls)
            reason = exc.__cause__ or exc
            raise httpcore.ConnectError(f"TLS handshake failed: {reason}") from exc
        except BaseException:
            await trio.aclose_forcefully(tls)
            raise
        return BackendStream(tls, keepalive_s=self._keepalive_s)

    def get_extra_info(self, info: str) -> Any:
        """Answer what httpcore asks: ``is_readable`` (not reusable any more) and ``ssl_object``."""
        if info == "is_readable":
            return self._unusable()
        # httpcore reads the negotiated protocol from here; only HTTP/1.1 is offered, so there is nothing to
        # read.
        return None

    def _unusable(self) -> bool:
        if self._aborted or self.eof or trio.current_time() - self._active_at > self._keepalive_s:
            return True
        stream: object = self._stream
        while isinstance(stream, trio.SSLStream):
            stream = stream.transport_stream
        if isinstance(stream, trio.SocketStream):
            return stream.socket.is_readable()
        probe = getattr(stream, "is_readable", None)
        # A stream that cannot tell whether its peer has left is not reused.
        return True if probe is None else bool(probe())


class StreamBackend(httpcore.AsyncNetworkBackend):
    """Opens httpcore's connections through the ``OpenStream`` seam."""

    def __init__(self, open_stream: OpenStream, *, keepalive_s: float) -> None:
        self._open_stream = open_stream
        self._keepalive_s = keepalive_s
        self.connects = 0

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Open a stream within ``timeout`` seconds; socket options are the seam's own business."""
        try:
            with trio.fail_after(float("inf") if timeout is None else timeout):
                stream = await self._open_stream(host, port)
        except trio.TooSlowError as exc:
            raise httpcore.ConnectTimeout(f"no connection to {host}:{port} in time") from exc
        except ConnectionRefusedError as exc:
            raise Refused(f"{host}:{port} refused the connection") from exc
        except (OSError, trio.BrokenResourceError) as exc:
            raise httpcore.ConnectError(f"cannot reach {host}:{port}: {exc}") from exc
        # httpcore counts a failed connect as closed, but a cancellation at its very next checkpoint would
        # leave an open connection that is never idle, never closed and never given back (cf.
        # encode/httpcore#1093). Looking here, with no scheduling point in between, leaves no such moment.
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
        self.connects += 1
        return BackendStream(stream, keepalive_s=self._keepalive_s)

    async def sleep(self, seconds: float) -> None:
        """Sleep on trio's clock (only httpcore's retries would, which are off)."""
        await trio.sleep(seconds)


class ResponseBody(httpx.AsyncByteStream):
    """The raw body of one response, ended properly on every path.

    httpcore's bodies are nested async generators. One left half-way is finalized by the garbage collector, at
    a random moment and with a warning; so a body that is given up gets its stream aborted and is then run to
    its own end.
    """

    def __init__(
        self, response: httpcore.Response, exchange: Exchange, limiter: trio.CapacityLimiter
    ) -> None:
        assert isinstance(response.stream, AsyncIterable), "an async pool gives async bodies"
        self._stream = response.stream
        self._chunks: AsyncIterator[bytes] | None = None
        self._exchange = exchange
        self._limiter = limiter
        self._ended = False
        self._closed = False

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if self._chunks is None:
            self._chunks = aiter(self._stream)
        ended = True
        try:
            chunk = await anext(self._chunks)
            ended = False
        finally:
            self._ended = ended
        return chunk

    async def aclose(self) -> None:
        """Give the connection back, or close it when the body was not read to its end. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._chunks is not None and not self._ended:
                await self._abandon(self._chunks)
        finally:
            try:
                await self._stream.aclose()  # type: ignore[attr-defined]
            finally:
                self._limiter.release_on_behalf_of(self._exchange)
                # Or the two would wait for the cyclic collector.
                self._exchange.body = None

    async def _abandon(self, chunks: AsyncIterator[bytes]) -> None:
        if self._exchange.stream is not None:
            self._exchange.stream.abort()
        try:
            # Bounded: what one read had brought is handed out, the next read fails.
            async for _ in chunks:
                pass
        except (httpcore.NetworkError, httpcore.ProtocolError):
            # This is the end that was asked for.
            return


class PooledTransport(httpx.AsyncBaseTransport):
    """An httpx transport over httpcore's pool, with a limiter of the pool's size in front.

    A request cancelled while it waits *inside* httpcore's pool leaves a phantom connection; enough of them
    and the pool serves nobody for ever (encode/httpcore#1093; measured: 40 tasks on 10 slots with deadlines
    below 10 ms). With the limiter nobody ever waits inside.
    """

    def __init__(
        self,
        open_stream: OpenStream,
        *,
        connections_max: int,
        keepalive_s: float,
        ssl_context: ssl.SSLContext | None,
    ) -> None:
        self._backend = StreamBackend(open_stream, keepalive_s=keepalive_s)
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context,
            max_connections=connections_max,
            # Equal on purpose: httpcore compares this number with all connections, not with the idle ones.
            max_keepalive_connections=connections_max,
            keepalive_expiry=None,
            retries=0,
            network_backend=self._backend,
        )
        self._limiter = trio.CapacityLimiter(connections_max)

    @property
    def in_flight(self) -> int:
        """Requests that hold a slot."""
        return int(self._limiter.borrowed_tokens)

    @property
    def waiting(self) -> int:
        """Requests that wait for a slot."""
        return self._limiter.statistics().tasks_waiting

    @property
    def connections(self) -> int:
        """Open connections, idle ones included."""
        return len(self._pool.connections)

    @property
    def connects(self) -> int:
        """Connections opened so far."""
        return self._backend.connects

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request and return its response with an unread body, which must be closed.

        Raises:
            httpcore.PoolTimeout: no free slot within the request's ``pool`` timeout.
            httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError: mapped by the adapter.
        """
        exchange: Exchange = request.extensions[EXCHANGE]
        timeouts: dict[str, float | None] = request.extensions["timeout"]
        await self._acquire(exchange, timeouts["pool"])
        exchange.stage = Stage.CONNECTING
        token = _current.set(exchange)
        try:
            response = await self._pool.handle_async_request(_core_request(request, timeouts))
        except BaseException:
            self._limiter.release_on_behalf_of(exchange)
            raise
        finally:
            _current.reset(token)
        exchange.body = ResponseBody(response, exchange, self._limiter)
        return httpx.Response(status_code=response.status, headers=response.headers, stream=exchange.body)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._pool.aclose()

    async def _acquire(self, exchange: Exchange, timeout_s: float | None) -> None:
        try:
            self._limiter.acquire_on_behalf_of_nowait(exchange)
            return
        except trio.WouldBlock:
            pass
        try:
            with trio.fail_after(float("inf") if timeout_s is None else timeout_s):
                await self._limiter.acquire_on_behalf_of(exchange)
        except trio.TooSlowError as exc:
            raise httpcore.PoolTimeout(f"no free connection within {timeout_s:g} s") from exc


class _RequestBody:
    """A whole body as one chunk.

    The libraries' own are asynchronous generators; one that a cancellation leaves unfinished is reported as a leak
    when it is collected.
    """

    def __init__(self, content: bytes) -> None:
        self._chunks = [content] if content else []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if not self._chunks:
            raise StopAsyncIteration
        return self._chunks.pop()

    async def aclose(self) -> None:
        """Nothing is held."""


def _core_request(request: httpx.Request, timeouts: dict[str, float | None]) -> httpcore.Request:
    url = request.url
    return httpcore.Request(
        method=request.method,
        url=httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path),
        headers=request.headers.raw,
        content=_RequestBody(request.content),
        extensions={"timeout": {**timeouts, "pool": None}},
    )
