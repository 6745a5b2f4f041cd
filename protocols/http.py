"""The HTTP adapter: bounded, never retrying, every failure one of ``protocols.errors``."""

from __future__ import annotations

import contextlib
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpcore
import httpx
import msgspec
import trio

from protocols.base import Endpoint, HealthReport, OpenStream, ProtocolAdapter, open_tcp, require_positive
from protocols.errors import (
    BodyTooLarge,
    InvalidRequest,
    ProtocolError,
    ProtocolViolation,
    StatusFailure,
    status_failure,
)
from protocols.http_backend import EXCHANGE, Exchange, PooledTransport, ResponseBody
from protocols.http_edge import LineStream, map_exceptions
from protocols.retry_after import parse_retry_after

JSON_TYPE = "application/json"


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPLimits:
    """Bounds of everything an adapter does. No wait and no buffer is without one.

    Attributes:
        connections_max: requests at once, and connections kept.
        queue_timeout_s: seconds a request may wait for a free connection.
        connect_timeout_s: seconds for connecting, TLS included.
        request_timeout_s: seconds for a whole request, waiting and reading included; default of
            ``timeout_s``.
        idle_timeout_s: seconds without a byte in either direction. Services that compute while they answer
            send nothing meanwhile, so this equals the request's bound by default.
        health_timeout_s: seconds for a health probe.
        keepalive_s: seconds an idle connection may be used again: below the 5 s after which common servers
            (uvicorn, hypercorn) close, so that the race between their close and our request stays rare.
        body_bytes_max: largest accepted body, bytes (64 MiB: several images in base64).
        error_bytes_max: how much of an error's body is read, bytes.
    """

    connections_max: int = 16
    queue_timeout_s: float = 10.0
    connect_timeout_s: float = 5.0
    request_timeout_s: float = 30.0
    idle_timeout_s: float = 30.0
    health_timeout_s: float = 2.0
    keepalive_s: float = 4.0
    body_bytes_max: int = 64 * 1024 * 1024
    error_bytes_max: int = 64 * 1024

    def __post_init__(self) -> None:
        """Refuse limits that cannot work."""
        require_positive(
            connections_max=self.connections_max,
            queue_timeout_s=self.queue_timeout_s,
            connect_timeout_s=self.connect_timeout_s,
            request_timeout_s=self.request_timeout_s,
            idle_timeout_s=self.idle_timeout_s,
            health_timeout_s=self.health_timeout_s,
            keepalive_s=self.keepalive_s,
            body_bytes_max=self.body_bytes_max,
            error_bytes_max=self.error_bytes_max,
        )


@dataclass(frozen=True, slots=True)
class HTTPReply:
    """A successful JSON answer; ``headers`` ignores case, ``json`` is None for an empty body."""

    status: int
    json: Any
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class RawReply:
    """A successful answer as bytes; ``headers`` ignores case."""

    status: int
    body: bytes
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class HTTPStatistics:
    """A snapshot of one adapter.

    Attributes:
        requests: requests begun so far.
        connects: connections opened so far.
        connections: open now.
        in_flight: requests that hold a connection now.
        waiting: requests that wait for one now.
        faults: failed requests by ``FaultKind``.
    """

    requests: int
    connects: int
    connections: int
    in_flight: int
    waiting: int
    faults: Mapping[str, int]


class HTTPAdapter(ProtocolAdapter):
    """HTTP/1.1 to one endpoint, on httpx over a seam for byte streams.

    It never repeats a request, follows no redirect, keeps no cookie, reads no proxy settings from the
    environment, and asks for no compression (a small compressed body can expand past any bound). W3C trace
    headers and the like are passed by the caller with each request. Cancelling a request closes its
    connection, so the peer notices.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        open_stream: OpenStream = open_tcp,
        limits: HTTPLimits | None = None,
        auth_headers: Mapping[str, str] | None = None,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """Prepare; nothing is opened before the first request.

        Args:
            endpoint: the peer; its scheme is ``http`` or ``https``.
            open_stream: how byte streams open.
            limits: bounds.
            auth_headers: sent with each request; they appear in no message, log or repr.
            ssl_context: for ``https``; by default the system's trust store.

        Raises:
            ValueError: the endpoint's scheme is another one.
        """
        if endpoint.scheme not in ("http", "https"):
            raise ValueError(f"the HTTP adapter cannot speak {endpoint.scheme!r} to {endpoint}")
        self._endpoint = endpoint
        self._limits = limits or HTTPLimits()
        if endpoint.secure and ssl_context is None:
            ssl_context = ssl.create_default_context()
        self._transport = PooledTransport(
            open_stream,
            connections_max=self._limits.connections_max,
            keepalive_s=self._limits.keepalive_s,
            ssl_context=ssl_context,
        )
        self._client = httpx.AsyncClient(
            transport=self._transport,
            trust_env=False,
            follow_redirects=False,
            # A cookie from one job must not travel with the next one.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
            headers={"accept": "*/*", "accept-encoding": "identity", **(auth_headers or {})},
        )
        self._requests = 0
        self._faults: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<HTTPAdapter {self._endpoint}: {self._transport.in_flight} in flight>"

    @property
    def endpoint(self) -> Endpoint:
        """The peer."""
        return self._endpoint

    def statistics(self) -> HTTPStatistics:
        """Return a snapshot of the counters."""
        return HTTPStatistics(
            requests=self._requests,
            connects=self._transport.connects,
            connections=self._transport.connections,
            in_flight=self._transport.in_flight,
            waiting=self._transport.waiting,
            faults=dict(self._faults),
        )

    async def request_json(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> HTTPReply:
        """Send JSON, receive JSON.

        Args:
            method: HTTP method.
            path: below the endpoint's own; quoted by the caller, with query.
            json: what to send, None for no body.
            headers: in addition, for example trace context.
            timeout_s: seconds for everything; ``request_timeout_s`` by default.

        Raises:
            ProtocolError: one of its leafs; a body that is not JSON is a ``ProtocolViolation``.
        """
        content = None
        merged = {"accept": JSON_TYPE, **(headers or {})}
        if json is not None:
            content = msgspec.json.encode(json)
            merged["content-type"] = JSON_TYPE
        raw = await self.request(method, path, content=content, headers=merged, timeout_s=timeout_s)
        if not raw.body:
            return HTTPReply(raw.status, None, raw.headers)
        try:
            return HTTPReply(raw.status, msgspec.json.decode(raw.body), raw.headers)
        except (msgspec.DecodeError, RecursionError) as exc:
            with self._counted():
                raise ProtocolViolation(
                    f"{self._what(method, path)}: not JSON: {exc}", outcome_unknown=True
                ) from exc

    async def request(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        idle_timeout_s: float | None = None,
        body_bytes_max: int | None = None,
    ) -> RawReply:
        """Send bytes, receive bytes.

        Args:
            method: HTTP method.
            path: below the endpoint's own; quoted by the caller, with query.
            content: body to send.
            headers: in addition.
            timeout_s: seconds for everything; ``request_timeout_s`` by default.
            idle_timeout_s: longest silence in seconds; that of the limits by default. A service that computes its
                whole answer first is silent until then.
            body_bytes_max: bound of this answer, bytes; that of the limits by default.

        Raises:
            ProtocolError: one of its leafs.
        """
        limits = self._limits
        idle_s = limits.idle_timeout_s if idle_timeout_s is None else idle_timeout_s
        exchange, what = Exchange(), self._what(method, path)
        with self._counted(), map_exceptions(exchange, what):
            with trio.fail_after(limits.request_timeout_s if timeout_s is None else timeout_s):
                request = self._build(exchange, method, path, content, headers, idle_s)
                async with self._exchange(exchange, request, what) as (status, body, reply_headers):
                    limit = limits.body_bytes_max if body_bytes_max is None else body_bytes_max
                    return RawReply(status, await _read(body, reply_headers, what, limit), reply_headers)

    @contextlib.asynccontextmanager
    async def stream_lines(
        self,
        method: str,
        path: str,
        *,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        head_timeout_s: float | None = None,
        idle_timeout_s: float | None = None,
        line_bytes_max: int = 1024 * 1024,
    ) -> AsyncIterator[LineStream]:
        """Open an answer that arrives line by line (NDJSON, server-sent events).

        The answer's head must come within ``head_timeout_s``; the body may last for ever, the caller's own
        deadline bounds it. Leaving the block before the end, or a cancellation, closes the connection, so the
        peer notices.

        Args:
            method: HTTP method.
            path: below the endpoint's own; quoted by the caller, with query.
            content: body to send.
            headers: in addition.
            head_timeout_s: seconds until the answer begins; ``request_timeout_s`` by default.
            idle_timeout_s: longest silence in seconds; that of the limits by default.
            line_bytes_max: longest accepted line, bytes.

        Raises:
            ProtocolError: one of its leafs, here or while iterating.
        """
        limits = self._limits
        idle_s = limits.idle_timeout_s if idle_timeout_s is None else idle_timeout_s
        exchange, what = Exchange(), self._what(method, path)
        async with contextlib.AsyncExitStack() as stack:
            with self._counted(), map_exceptions(exchange, what):
                with trio.fail_after(limits.request_timeout_s if head_timeout_s is None else head_timeout_s):
                    request = self._build(exchange, method, path, content, headers, idle_s)
                    status, body, reply_headers = await stack.enter_async_context(
                        self._exchange(exchange, request, what)
                    )
                    _require_identity(reply_headers, what)
            yield LineStream(
                body,
                exchange,
                what,
                status=status,
                headers=reply_headers,
                line_bytes_max=line_bytes_max,
                counted=self._counted,
            )

    async def health(self, target: str) -> HealthReport:
        """Probe ``GET target`` within ``health_timeout_s``: healthy is any 2xx."""
        began = trio.current_time()
        try:
            reply = await self.request("GET", target, timeout_s=self._limits.health_timeout_s)
        except ProtocolError as exc:
            return HealthReport(
                healthy=False, detail=str(exc), latency_s=trio.current_time() - began, fault=exc.fault
            )
        return HealthReport(
            healthy=True,
            detail=f"{reply.status}",
            latency_s=trio.current_time() - began,
            body=reply.body,
        )

    async def aclose(self) -> None:
        """Close all connections; requests still running fail. Idempotent."""
        await self._client.aclose()

    def _what(self, method: str, path: str) -> str:
        # Without the query, which may carry what does not belong into a log.
        return f"{method} {self._endpoint.url}{path.partition('?')[0]}"

    def _build(
        self,
        exchange: Exchange,
        method: str,
        path: str,
        content: bytes | None,
        headers: Mapping[str, str] | None,
        idle_s: float,
    ) -> httpx.Request:
        if not path.startswith("/"):
            raise InvalidRequest(f"path {path!r} must begin with a slash")
        limits = self._limits
        return self._client.build_request(
            method,
            f"{self._endpoint.url}{path}",
            content=content,
            headers=headers,
            timeout=httpx.Timeout(
                connect=limits.connect_timeout_s, read=idle_s, write=idle_s, pool=limits.queue_timeout_s
            ),
            extensions={EXCHANGE: exchange},
        )

    @contextlib.asynccontextmanager
    async def _exchange(
        self, exchange: Exchange, request: httpx.Request, what: str
    ) -> AsyncIterator[tuple[int, ResponseBody, httpx.Headers]]:
        """Send, and yield status, body and headers of a success; the body is closed on every path."""
        self._requests += 1
        response = await self._client.send(request, stream=True)
        try:
            body = exchange.body
            assert body is not None, "the transport records the body it returns"
            if not 200 <= response.status_code < 300:
                raise await self._failure(response, body, what)
            yield response.status_code, body, response.headers
        finally:
            await response.aclose()

    async def _failure(self, response: httpx.Response, body: ResponseBody, what: str) -> StatusFailure:
        excerpt = bytearray()
        # The status is known; a body that is cut off does not make it less so.
        with contextlib.suppress(httpcore.NetworkError, httpcore.RemoteProtocolError):
            async for chunk in body:
                excerpt += chunk
                if len(excerpt) >= self._limits.error_bytes_max:
                    break
        return status_failure(
            response.status_code,
            what,
            body=bytes(excerpt[: self._limits.error_bytes_max]),
            retry_after_s=parse_retry_after(
                response.headers.get("retry-after"), date=response.headers.get("date")
            ),
        )

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        try:
            yield
        except ProtocolError as exc:
            self._faults[exc.fault] += 1
            raise


async def _read(body: ResponseBody, headers: httpx.Headers, what: str, limit_bytes: int) -> bytes:
    """Read a body up to its bound; a declared length beyond it is refused before the first byte."""
    _require_identity(headers, what)
    declared = headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise BodyTooLarge(
            f"{what}: {declared} bytes announced, {limit_bytes} allowed", limit_bytes=limit_bytes
        )
    chunks: list[bytes] = []
    size_bytes = 0
    async for chunk in body:
        size_bytes += len(chunk)
        if size_bytes > limit_bytes:
            raise BodyTooLarge(f"{what}: more than {limit_bytes} bytes", limit_bytes=limit_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


def _require_identity(headers: httpx.Headers, what: str) -> None:
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ProtocolViolation(f"{what}: compressed although identity was asked for", outcome_unknown=True)
