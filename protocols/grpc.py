"""The gRPC adapter: bounded, never retrying, every failure one of ``protocols.errors``."""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, Self

import trio
from google.protobuf.message import DecodeError, Message

from protocols import grpc_health
from protocols.base import Endpoint, HealthReport, OpenStream, ProtocolAdapter, open_tcp, require_positive
from protocols.errors import (
    ConnectFailed,
    ConnectRefused,
    ConnectTimeout,
    InvalidRequest,
    LocalOverload,
    ProtocolError,
    ProtocolViolation,
    RequestTimeout,
    RequestTooLarge,
)
from protocols.grpc_channel import (
    CallEnded,
    ChannelSettings,
    MessageStream,
    Metadata,
    OpenChannel,
    TLSSettings,
    open_grpcio,
)
from protocols.grpc_method import Method, ReplyT, RequestT
from protocols.grpc_status import STATUS_DETAILS, call_failure

_NAME = re.compile(r"[0-9a-z_.-]+")
_TEXT = re.compile(r"[\x20-\x7e]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class GRPCLimits:
    """Bounds of everything an adapter does. No wait and no buffer is without one.

    Attributes:
        calls_max: calls at once, streams included.
        streams_max: streams at once; each costs a thread while it is read.
        queue_timeout_s: seconds a call may wait for a free place.
        connect_timeout_s: seconds for connecting, TLS included. Nothing is sent before, so that what fails until then
            is safe to repeat.
        call_timeout_s: seconds for a whole unary call; default of ``timeout_s``.
        stream_timeout_s: seconds for a whole stream; default of ``timeout_s``. A day: longer than a job.
        idle_timeout_s: longest silence of a stream, seconds.
        health_timeout_s: seconds for a health probe.
        reconnect_s: longest pause between attempts to connect, seconds: how stale "cannot be reached" may be.
        request_bytes_max, response_bytes_max: largest message, bytes (64 MiB: several raw images).
    """

    calls_max: int = 256
    streams_max: int = 64
    queue_timeout_s: float = 10.0
    connect_timeout_s: float = 5.0
    call_timeout_s: float = 30.0
    stream_timeout_s: float = 86_400.0
    idle_timeout_s: float = 30.0
    health_timeout_s: float = 2.0
    reconnect_s: float = 1.0
    request_bytes_max: int = 64 * 1024 * 1024
    response_bytes_max: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        """Refuse limits that cannot work."""
        require_positive(**{name: getattr(self, name) for name in self.__slots__})


@dataclass(frozen=True, slots=True, kw_only=True)
class GRPCStatistics:
    """A snapshot of one adapter: calls begun so far, those that hold a place now, failed ones by ``FaultKind``."""

    calls: int
    in_flight: int
    waiting: int
    faults: Mapping[str, int]


@dataclass(slots=True, eq=False)
class _Call:
    """One call on its way: whether anything may have been sent decides how its time-out is told."""

    what: str
    request: bytes
    metadata: Metadata
    placed: bool = False
    sent: bool = False
    answered: bool = False


class ReplyStream(Generic[ReplyT]):
    """The messages of one streaming call, each within ``idle_timeout_s``; iterate it."""

    def __init__(
        self, adapter: GRPCAdapter, call: _Call, messages: MessageStream, reply: type[ReplyT], idle_s: float
    ) -> None:
        self._adapter = adapter
        self._call = call
        self._messages = messages
        self._reply = reply
        self._idle_s = idle_s

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ReplyT:
        """The next message.

        Raises:
            ProtocolError: one of its leafs; the outcome is unknown.
        """
        with self._adapter.mapped(self._call):
            with trio.fail_after(self._idle_s):
                message = await self._messages.receive()
            self._call.answered = True
            if message is not None:
                return _parsed(self._reply, message, self._call.what)
        raise StopAsyncIteration


class GRPCAdapter(ProtocolAdapter):
    """gRPC to one endpoint, above a channel that a simulation may exchange.

    Before a call is sent the channel must be connected, within a time of its own; so a peer that cannot be reached is
    known to have got nothing, and one that fails later may have acted. A call is never repeated. Cancelling it cancels
    it at the peer. Trace context and the like are passed by the caller with each call.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        open_channel: OpenChannel = open_grpcio,
        open_stream: OpenStream = open_tcp,
        limits: GRPCLimits | None = None,
        auth_metadata: Mapping[str, str] | None = None,
        tls: TLSSettings | None = None,
        detail_name: str = STATUS_DETAILS,
    ) -> None:
        """Prepare; nothing is opened before the first call.

        Args:
            endpoint: the peer; its scheme is ``grpc`` or ``grpcs``, its path empty.
            open_channel: how channels open.
            open_stream: how a byte stream opens: when no channel comes about, one is tried, to tell why.
            limits: bounds.
            auth_metadata: sent with each call; it appears in no message, log or repr.
            tls: for ``grpcs``; by default the library's trust store.
            detail_name: name of the trailing metadata in which the peer tells about errors.

        Raises:
            ValueError: the endpoint is not one for gRPC, or credentials would travel in clear text.
        """
        if endpoint.scheme not in ("grpc", "grpcs") or endpoint.path:
            raise ValueError(f"the gRPC adapter cannot speak to {endpoint}: it takes grpc[s]://host:port")
        if not endpoint.secure and (auth_metadata or tls is not None):
            raise ValueError(f"credentials and TLS settings need grpcs://, not {endpoint}")
        self._endpoint = endpoint
        self._limits = limits or GRPCLimits()
        self._open_stream = open_stream
        self._auth = dict(auth_metadata or {})
        self._detail_name = detail_name
        self._channel = open_channel(
            endpoint,
            ChannelSettings(
                response_bytes_max=self._limits.response_bytes_max,
                streams_max=self._limits.streams_max,
                reconnect_s=self._limits.reconnect_s,
                tls=tls or TLSSettings(),
            ),
        )
        self._places = trio.CapacityLimiter(self._limits.calls_max)
        self._stream_places = trio.CapacityLimiter(self._limits.streams_max)
        self._calls = 0
        self._closed = False
        self._faults: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"<GRPCAdapter {self._endpoint}: {self._places.borrowed_tokens} in flight>"

    @property
    def endpoint(self) -> Endpoint:
        """The peer."""
        return self._endpoint

    def statistics(self) -> GRPCStatistics:
        """Return a snapshot of the counters."""
        return GRPCStatistics(
            calls=self._calls,
            in_flight=self._places.borrowed_tokens,
            waiting=self._places.statistics().tasks_waiting + self._stream_places.statistics().tasks_waiting,
            faults=dict(self._faults),
        )

    async def call(
        self,
        method: Method[RequestT, ReplyT],
        request: RequestT,
        *,
        metadata: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> ReplyT:
        """Send one message, receive one.

        Args:
            method: what to call.
            request: what to send.
            metadata: in addition, for example trace context.
            timeout_s: seconds for everything; ``call_timeout_s`` by default. What is left of it after connecting is the
                deadline the peer is told.

        Raises:
            ProtocolError: one of its leafs.
        """
        limit_s = self._limits.call_timeout_s if timeout_s is None else timeout_s
        call = _Call(self._what(method.path), b"", ())
        with self.mapped(call):
            until_s = trio.current_time() + limit_s
            with trio.fail_at(until_s):
                self._fill(call, request, metadata)
                async with self._place(call):
                    await self._connected(call)
                    call.sent = True
                    body = await self._channel.unary(
                        method.path,
                        call.request,
                        metadata=call.metadata,
                        timeout_s=_left_s(until_s),
                    )
                    return _parsed(method.reply, body, call.what)

    @contextlib.asynccontextmanager
    async def stream(
        self,
        method: Method[RequestT, ReplyT],
        request: RequestT,
        *,
        metadata: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
        idle_timeout_s: float | None = None,
    ) -> AsyncIterator[ReplyStream[ReplyT]]:
        """Send one message, receive many.

        Leaving the block before the end, or a cancellation, cancels the call at the peer.

        Args:
            method: what to call.
            request: what to send.
            metadata: in addition.
            timeout_s: seconds for everything; ``stream_timeout_s`` by default.
            idle_timeout_s: longest silence in seconds; that of the limits by default.

        Raises:
            ProtocolError: one of its leafs, here or while iterating.
        """
        limits = self._limits
        until_s = trio.current_time() + (limits.stream_timeout_s if timeout_s is None else timeout_s)
        idle_s = limits.idle_timeout_s if idle_timeout_s is None else idle_timeout_s
        call = _Call(self._what(method.path), b"", ())
        async with contextlib.AsyncExitStack() as stack:
            with self.mapped(call):
                with trio.fail_at(until_s):
                    self._fill(call, request, metadata)
                    await stack.enter_async_context(self._place(call, self._stream_places))
                    await stack.enter_async_context(self._place(call))
                    await self._connected(call)
                call.sent = True
                # Outside of that scope, which must not end within one that a channel may open here.
                messages = await stack.enter_async_context(
                    self._channel.stream(
                        method.path, call.request, metadata=call.metadata, timeout_s=_left_s(until_s)
                    )
                )
            yield ReplyStream(self, call, messages, method.reply, idle_s)

    async def health(self, target: str) -> HealthReport:
        """Climb the ladder of ``protocols.grpc_health`` within ``health_timeout_s``.

        Args:
            target: name of a model that must be ready; empty for the server alone.
        """
        began = trio.current_time()
        timeout_s = self._limits.health_timeout_s
        fault, healthy = None, True
        try:
            with trio.fail_after(timeout_s):
                detail = await grpc_health.probe(self, target, timeout_s=timeout_s)
        except (ProtocolError, grpc_health.NotServing) as error:
            healthy, detail, fault = False, str(error), error.fault
        except trio.TooSlowError:
            healthy, detail, fault = False, f"no answer within {timeout_s:g} s", RequestTimeout.fault
        return HealthReport(
            healthy=healthy, detail=detail, latency_s=trio.current_time() - began, fault=fault
        )

    async def aclose(self) -> None:
        """Close the connection; calls still running fail. Idempotent."""
        self._closed = True
        await self._channel.aclose()

    @contextlib.contextmanager
    def mapped(self, call: _Call) -> Iterator[None]:
        """Turn what the channel raises into the taxonomy, and count it."""
        try:
            yield
        except ProtocolError as error:
            self._faults[error.fault] += 1
            raise
        except (CallEnded, trio.TooSlowError) as cause:
            fault = self._fault(call, cause)
            fault.outcome_unknown |= call.answered
            self._faults[fault.fault] += 1
            raise fault from cause

    def _fault(self, call: _Call, cause: CallEnded | trio.TooSlowError) -> ProtocolError:
        if isinstance(cause, CallEnded):
            return call_failure(
                cause,
                call.what,
                request_bytes=len(call.request),
                response_bytes_max=self._limits.response_bytes_max,
                detail_name=self._detail_name,
            )
        if call.sent:
            return RequestTimeout(f"{call.what}: no answer in time", outcome_unknown=True)
        if call.placed:
            return ConnectTimeout(f"{call.what}: no connection in time")
        return LocalOverload(f"{call.what}: {self._limits.calls_max} calls under way already")

    def _what(self, path: str) -> str:
        return f"{self._endpoint.url}{path}"

    def _fill(self, call: _Call, request: Message, metadata: Mapping[str, str] | None) -> None:
        """Encode, and refuse here what could not be sent."""
        pairs = {**(metadata or {}), **self._auth}
        for name, value in pairs.items():
            if _NAME.fullmatch(name) is None or name.startswith("grpc-") or name.endswith("-bin"):
                raise InvalidRequest(f"{call.what}: not a name for metadata: {name!r}")
            if _TEXT.fullmatch(value) is None:
                raise InvalidRequest(f"{call.what}: metadata {name!r} is not printable ASCII")
        call.metadata = tuple(pairs.items())
        call.request = request.SerializeToString()
        if len(call.request) > self._limits.request_bytes_max:
            raise RequestTooLarge(
                f"{call.what}: {len(call.request)} bytes to send, {self._limits.request_bytes_max} allowed",
                limit_bytes=self._limits.request_bytes_max,
            )

    @contextlib.asynccontextmanager
    async def _place(self, call: _Call, places: trio.CapacityLimiter | None = None) -> AsyncIterator[None]:
        """One of the places for calls, or one of those for streams."""
        places = self._places if places is None else places
        with trio.fail_after(self._limits.queue_timeout_s):
            await places.acquire_on_behalf_of(call)
        try:
            yield
        finally:
            places.release_on_behalf_of(call)

    async def _connected(self, call: _Call) -> None:
        call.placed = True
        self._calls += 1
        if self._closed:
            raise ConnectFailed(f"{call.what}: this adapter is closed")
        try:
            with trio.fail_after(self._limits.connect_timeout_s):
                await self._channel.connect()
        except ConnectionError as error:
            raise await self._unreachable(call, error) from error

    async def _unreachable(self, call: _Call, error: ConnectionError) -> ConnectFailed:
        """Why there is no channel, by trying a plain connection: the library tells it in text alone."""
        with trio.move_on_after(self._limits.connect_timeout_s):
            try:
                stream = await self._open_stream(self._endpoint.host, self._endpoint.port)
            except ConnectionRefusedError:
                return ConnectRefused(f"{call.what}: {self._endpoint.authority} refused the connection")
            except (OSError, trio.BrokenResourceError, trio.TooSlowError) as why:
                return ConnectFailed(f"{call.what}: {why}")
            await trio.aclose_forcefully(stream)
            tls = " over TLS" if self._endpoint.secure else ""
            return ConnectFailed(f"{call.what}: something listens there, but it does not speak gRPC{tls}")
        return ConnectFailed(f"{call.what}: {error}")


def _left_s(until_s: float) -> float:
    """Seconds until a moment, above zero."""
    return max(until_s - trio.current_time(), 0.001)


def _parsed(kind: type[ReplyT], body: bytes, what: str) -> ReplyT:
    message = kind()
    try:
        message.ParseFromString(body)
    except DecodeError as error:
        raise ProtocolViolation(
            f"{what}: not a {kind.DESCRIPTOR.name}: {error}", outcome_unknown=True
        ) from error
    return message
