"""One WebSocket connection: a reader that never waits for its consumer, a heartbeat, and one fault at its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import h11
import trio
import trio_websocket
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from protocols.base import require_positive
from protocols.conflate import BufferFullError, ConflatingBuffer, Frame
from protocols.errors import ConsumerTooSlow, InvalidRequest, PeerClosed, ProtocolError, RequestTimeout
from protocols.websocket_edge import WatchedStream, end_fault, handshake_fault

#: Says which frames replace each other: the key of one, or None for a frame that must be delivered.
KeyOf = Callable[[Frame], Hashable | None]

#: Everything by which the library says that a connection is over.
_ENDINGS = (
    ProtocolError,
    trio_websocket.ConnectionClosed,
    trio_websocket.HandshakeError,
    LocalProtocolError,
    RemoteProtocolError,
    h11.ProtocolError,
    # From header values that are not ASCII, which wsproto decodes unguarded.
    UnicodeDecodeError,
    trio.BrokenResourceError,
    trio.ClosedResourceError,
)
#: A virtual clock may stop a rounding error short of a moment; seconds.
_ROUNDING_S = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSocketLimits:
    """Bounds of everything an adapter does. No wait and no buffer is without one.

    Attributes:
        connections_max: connections at once.
        queue_timeout_s: seconds a caller may wait for a free one.
        connect_timeout_s: seconds for connecting, TLS and handshake together.
        send_timeout_s: seconds the peer may take to accept one message.
        disconnect_timeout_s: seconds for the closing handshake; the library's 60 s would hold a finished job.
        ping_every_s: seconds of silence after which the peer is asked for a sign of life.
        ping_timeout_s: seconds it may take to give one (any byte counts).
        inactivity_s: seconds without a message after which the connection counts as dead although the peer
            answers pings; infinite by default, because many services say nothing while there is no job.
        health_timeout_s: seconds for a health probe.
        message_bytes_max: largest accepted message, bytes (64 MiB: the library's 1 MiB refuses one image).
        receive_bytes: bytes read at once (with the library's 4 KiB the same throughput costs five times the CPU).
        frames_max: messages that may wait for the consumer.
        buffer_bytes_max: their bytes together.
        error_bytes_max: how much of a refusal's answer is read, bytes.
    """

    connections_max: int = 64
    queue_timeout_s: float = 10.0
    connect_timeout_s: float = 5.0
    send_timeout_s: float = 10.0
    disconnect_timeout_s: float = 1.0
    ping_every_s: float = 10.0
    ping_timeout_s: float = 5.0
    inactivity_s: float = math.inf
    health_timeout_s: float = 2.0
    message_bytes_max: int = 64 * 1024 * 1024
    receive_bytes: int = 64 * 1024
    frames_max: int = 1024
    buffer_bytes_max: int = 128 * 1024 * 1024
    error_bytes_max: int = 64 * 1024

    def __post_init__(self) -> None:
        """Refuse limits that cannot work."""
        bounds = {name: getattr(self, name) for name in self.__slots__ if name != "inactivity_s"}
        require_positive(**bounds)
        if not self.inactivity_s > 0:
            raise ValueError(f"inactivity_s must be positive, not {self.inactivity_s!r}")


class Inbox:
    """Frames on their way from a reader to one consumer, and the fault that ends them."""

    def __init__(self, limits: WebSocketLimits, key_of: KeyOf | None) -> None:
        self._buffer = ConflatingBuffer(limits.frames_max, limits.buffer_bytes_max)
        self._key_of = key_of
        self._news = trio.Event()
        self._drained = trio.Event()
        self.fault: ProtocolError | None = None

    @property
    def conflated(self) -> int:
        """Frames dropped because a newer one replaced them."""
        return self._buffer.conflated

    def put(self, frame: Frame) -> None:
        """Add a frame; never waits.

        Raises:
            BufferFullError: no room.
        """
        self._buffer.put(frame, None if self._key_of is None else self._key_of(frame))
        self._news.set()

    def fail(self, fault: ProtocolError) -> None:
        """End the frames, after those that have arrived. The first fault counts."""
        self.fault = self.fault or fault
        self._news.set()

    async def get(self) -> Frame:
        """Take the oldest frame, waiting for it if need be.

        Raises:
            ProtocolError: there will be none any more.
        """
        # Before a frame is taken, so that a cancellation loses none.
        await trio.lowlevel.checkpoint()
        while not self._buffer:
            if self.fault is not None:
                raise self.fault.with_traceback(None)
            self._news = trio.Event()
            self._drained.set()
            await self._news.wait()
        return self._buffer.get()

    async def drained(self) -> None:
        """Wait until the consumer has taken everything and asks for more."""
        self._drained = trio.Event()
        await self._drained.wait()


class WebSocket:
    """One connection, from its handshake to its end. Made by ``WebSocketAdapter``."""

    def __init__(
        self,
        stream: WatchedStream,
        what: str,
        limits: WebSocketLimits,
        inbox: Inbox,
        *,
        inactivity_s: float,
        on_end: Callable[[ProtocolError], None],
    ) -> None:
        self._stream = stream
        self._on_end = on_end
        self._what = what
        self._limits = limits
        self._inbox = inbox
        self._inactivity_s = inactivity_s
        self._scope = trio.CancelScope()
        self._connection: trio_websocket.WebSocketConnection | None = None
        self._closing = False
        self._sent = False
        self._pings = 0
        self._frame_at = trio.current_time()
        #: Set once the handshake succeeded, and when the connection is over.
        self.settled = trio.Event()
        #: Set when the connection is over; ``fault`` says why.
        self.ended = trio.Event()
        self.fault: ProtocolError | None = None
        #: Messages received so far.
        self.frames = 0

    @property
    def established(self) -> bool:
        """Whether the handshake succeeded, whatever came after it."""
        return self._connection is not None

    @property
    def headers(self) -> dict[str, str]:
        """Headers of the peer's answer to the handshake, names in lower case."""
        assert self._connection is not None, "only after the handshake"
        return {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in self._connection.handshake_headers
        }

    async def receive(self) -> Frame:
        """Return the next message: text as ``str``, binary as ``bytes``. One consumer only.

        Raises:
            ProtocolError: the connection is over, and everything that had arrived was returned.
        """
        return await self._inbox.get()

    async def send(self, message: Frame) -> None:
        """Send one message. A cancellation in its middle ends the connection.

        Raises:
            ProtocolError: the connection is over, or the peer accepts nothing.
        """
        connection = self._usable()
        self._sent = True
        try:
            with trio.fail_after(self._limits.send_timeout_s):
                await connection.send_message(message)
        except trio.TooSlowError as exc:
            fault = RequestTimeout(f"{self._what}: a message was not accepted in time", outcome_unknown=True)
            self.abort(fault)
            raise fault from exc
        except _ENDINGS as exc:
            raise self._broken() from exc

    async def ping(self) -> float:
        """Ask for a sign of life; returns the seconds it took.

        Raises:
            RequestTimeout: none came within ``ping_timeout_s``; the connection is given up.
            ProtocolError: the connection is over.
        """
        connection = self._usable()
        began = trio.current_time()
        self._pings += 1
        try:
            with trio.fail_after(self._limits.ping_timeout_s):
                await connection.ping(self._pings.to_bytes(4, "big"))
        except trio.TooSlowError as exc:
            # A pong waits behind a large message; while that arrives the peer is alive.
            if self._stream.heard_at <= began:
                fault = RequestTimeout(f"{self._what}: no sign of life", outcome_unknown=self._sent)
                self.abort(fault)
                raise fault from exc
        except _ENDINGS as exc:
            raise self._broken() from exc
        return trio.current_time() - began

    def abort(self, fault: ProtocolError | None = None) -> None:
        """Give the connection up at once.

        Args:
            fault: why; by default that this side wanted it.
        """
        self.fault = self.fault or fault or PeerClosed(f"{self._what}: given up", outcome_unknown=self._sent)
        self._scope.cancel()

    async def close(self) -> None:
        """Close in order, within ``disconnect_timeout_s``; then at once."""
        if self._connection is None or self.ended.is_set():
            return
        self._closing = True
        with trio.move_on_after(self._limits.disconnect_timeout_s):
            try:
                await self._connection.aclose()
            except _ENDINGS:
                # The peer was faster.
                return

    async def run(
        self, host: str, resource: str, headers: list[tuple[bytes, bytes]], deadline_s: float
    ) -> None:
        """Shake hands, then read until the end; returns when the connection is over, with ``fault`` set.

        Args:
            host: for the Host header.
            resource: path and query.
            headers: of the handshake.
            deadline_s: when the handshake must be done, trio's clock.
        """
        try:
            with self._scope:
                try:
                    async with trio.open_nursery() as nursery:
                        await self._live(nursery, host, resource, headers, deadline_s)
                except BaseExceptionGroup as group:
                    endings, rest = group.split(_ENDINGS)
                    if rest is not None:
                        raise rest from None
                    self.fault = self.fault or self._meaning(endings)
        finally:
            self.fault = self.fault or self._broken()
            self._on_end(self.fault)
            self.settled.set()
            self.ended.set()

    async def _live(
        self,
        nursery: trio.Nursery,
        host: str,
        resource: str,
        headers: list[tuple[bytes, bytes]],
        deadline_s: float,
    ) -> None:
        limits = self._limits
        # The library's own timeout does not fire while its reader waits, and it never returns when the peer
        # leaves during the handshake: so the way in has a scope of its own.
        with trio.CancelScope(deadline=deadline_s) as entry:
            self._stream.on_over = entry.cancel
            connection = await trio_websocket.wrap_client_stream(
                nursery,
                self._stream,  # type: ignore[arg-type]  # it says SocketStream, and takes any stream
                host,
                resource,
                extra_headers=headers,
                max_message_size=limits.message_bytes_max,
                receive_buffer_size=limits.receive_bytes,
            )
        if entry.cancelled_caught:
            timed_out = trio.current_time() >= deadline_s - _ROUNDING_S
            raise handshake_fault(bytes(self._stream.head), self._what, timed_out=timed_out)
        self._stream.on_over = lambda: None
        self._stream.on_torn = self.abort
        self._stream.stop_recording()
        self._connection = connection
        self._frame_at = trio.current_time()
        self.settled.set()
        nursery.start_soon(self._beat)
        await self._drain(connection)

    async def _drain(self, connection: trio_websocket.WebSocketConnection) -> None:
        """Move messages into the inbox for as long as there are any; waits for nothing but the peer."""
        while True:
            try:
                frame = await connection.get_message()
            except trio_websocket.ConnectionClosed:
                if not self._closing:
                    raise
                # Our own close: the library's reader waits for the peer's answer.
                await trio.sleep_forever()
            self.frames += 1
            self._frame_at = trio.current_time()
            try:
                self._inbox.put(frame)
            except BufferFullError:
                raise ConsumerTooSlow(
                    f"{self._what}: {self._limits.frames_max} messages wait, and none may be dropped",
                    outcome_unknown=True,
                ) from None

    async def _beat(self) -> None:
        """Notice a peer that is silent, or that has nothing to say, while nobody waits for it."""
        while not self._closing:
            quiet_at = self._stream.heard_at + self._limits.ping_every_s
            idle_at = self._frame_at + self._inactivity_s
            await trio.sleep_until(min(quiet_at, idle_at) + _ROUNDING_S)
            now = trio.current_time()
            if now >= self._frame_at + self._inactivity_s:
                raise RequestTimeout(
                    f"{self._what}: no message for {self._inactivity_s:g} s", outcome_unknown=self._sent
                )
            if now >= self._stream.heard_at + self._limits.ping_every_s and not self._closing:
                await self.ping()

    def _usable(self) -> trio_websocket.WebSocketConnection:
        if self.ended.is_set() or self._connection is None or self._closing:
            raise self._broken()
        return self._connection

    def _broken(self) -> ProtocolError:
        """Why nothing can be done any more."""
        if self.fault is not None:
            return self.fault.with_traceback(None)
        closed = None if self._connection is None else self._connection.closed
        if closed is None:
            return PeerClosed(f"{self._what}: connection lost", outcome_unknown=self._sent)
        return end_fault(
            closed.code,
            closed.reason or "",
            self._what,
            sent=self._sent,
            limit_bytes=self._limits.message_bytes_max,
        )

    def _meaning(self, endings: BaseExceptionGroup[BaseException] | None) -> ProtocolError:
        """One fault out of all that the library raised, ours first."""
        ours = None if endings is None else endings.subgroup(ProtocolError)
        if ours is not None:
            first: BaseException = ours
            while isinstance(first, BaseExceptionGroup):
                first = first.exceptions[0]
            assert isinstance(first, ProtocolError)
            return first
        if self._connection is not None:
            return self._broken()
        if (
            not self._stream.head
            and endings is not None
            and endings.subgroup((LocalProtocolError, h11.LocalProtocolError))
        ):
            return InvalidRequest(f"{self._what}: the handshake cannot be written: {endings.exceptions[0]}")
        return handshake_fault(bytes(self._stream.head), self._what, timed_out=False)
