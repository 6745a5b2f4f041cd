"""Calls of gRPC over any byte stream, in one trio run and so under virtual time: what a simulated network carries.

grpcio's core owns threads and sockets. Everything above the channel (``protocols.grpc``, the connectors) runs
unchanged on this one, and the twins behind it; what a network does to bytes (delay, loss, resets, partitions, late
duplicates) happens to its calls. It keeps what connectors build on: deadlines, statuses with metadata, cancellation
that reaches the handler, messages as bytes. What grpcio itself does is tested against real servers.

A connection carries one call at a time and is used again when that ended well, so that a reset ends one call only.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import AsyncIterator, Iterator
from typing import Any

import msgspec
import trio

from protocols.base import Endpoint, OpenStream
from protocols.grpc_channel import CallEnded, ChannelSettings, Code, MessageStream, Metadata, OpenChannel
from protocols.grpc_service import CallHandler, IncomingCall

READ_BYTES = 64 * 1024
#: Connections that wait for the next call.
IDLE_MAX = 8
_LENGTH = struct.Struct(">I")
_BROKEN = (trio.BrokenResourceError, OSError)
#: What a server sees when its caller, or its own machine, is gone.
_GONE = (*_BROKEN, trio.ClosedResourceError)


class _Begin(msgspec.Struct, frozen=True, kw_only=True):
    """The first frame of a call, from its caller."""

    path: str
    request: bytes
    metadata: dict[str, str]
    timeout_s: float


class _Message(msgspec.Struct, frozen=True, kw_only=True, tag="message"):
    """One message of the answer."""

    body: bytes


class _End(msgspec.Struct, frozen=True, kw_only=True, tag="end"):
    """The last frame of a call; values of its metadata are text or bytes."""

    code: int = 0
    details: str = ""
    metadata: dict[str, Any] = {}


_encode = msgspec.msgpack.Encoder().encode
_decode_begin = msgspec.msgpack.Decoder(_Begin).decode
_decode_answer = msgspec.msgpack.Decoder(_Message | _End).decode


class _Frames:
    """One end of a connection, in frames: a length and that many bytes."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._unread = b""

    async def send(self, frame: msgspec.Struct) -> None:
        body = _encode(frame)
        await self.stream.send_all(_LENGTH.pack(len(body)) + body)

    async def fill(self) -> bool:
        """Take in more bytes; whether there were any."""
        data = await self.stream.receive_some(READ_BYTES)
        self._unread += data
        return bool(data)

    async def receive(self) -> bytes | None:
        """The next frame; None when the other end left, in the middle of one or not."""
        while True:
            if len(self._unread) >= _LENGTH.size:
                end = _LENGTH.size + _LENGTH.unpack_from(self._unread)[0]
                if len(self._unread) >= end:
                    frame, self._unread = self._unread[_LENGTH.size : end], self._unread[end:]
                    return frame
            if not await self.fill():
                return None


async def serve_calls(handler: CallHandler, stream: trio.abc.Stream, *, request_bytes_max: int) -> None:
    """Answer the calls of one connection until its caller leaves; closes the stream.

    Args:
        handler: answers one call.
        stream: the connection.
        request_bytes_max: largest message taken in.
    """
    frames = _Frames(stream)
    async with stream:
        while (frame := await frames.receive()) is not None:
            begin = _decode_begin(frame)
            if len(begin.request) > request_bytes_max:
                said = f"Received message larger than max ({len(begin.request)} vs. {request_bytes_max})"
                await frames.send(_End(code=Code.RESOURCE_EXHAUSTED, details=said))
            else:
                await _serve(handler, begin, frames)


async def _serve(handler: CallHandler, begin: _Begin, frames: _Frames) -> None:
    """Run a handler until it ends, its deadline passes or its caller leaves."""
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            with contextlib.suppress(*_GONE):
                if await frames.fill():
                    return  # the next call, already
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        with contextlib.suppress(*_GONE):
            await frames.send(await _handled(handler, begin, frames))
        nursery.cancel_scope.cancel()


async def _handled(handler: CallHandler, begin: _Begin, frames: _Frames) -> _End:
    """What a call ends with."""

    async def send(message: bytes) -> None:
        await frames.send(_Message(body=message))

    call = IncomingCall(
        path=begin.path,
        request=begin.request,
        metadata=begin.metadata,
        time_left_s=begin.timeout_s,
        send=send,
    )
    try:
        with trio.fail_after(begin.timeout_s):
            await handler(call)
    except CallEnded as ended:
        return _End(code=ended.code, details=ended.details, metadata=dict(ended.metadata))
    except trio.TooSlowError:
        return _End(code=Code.DEADLINE_EXCEEDED, details="Deadline Exceeded")
    return _End()


def wired_channels(open_stream: OpenStream) -> OpenChannel:
    """The seam of ``ConnectorSetup`` and ``Seams`` for calls over simulated connections.

    Args:
        open_stream: how a connection opens.
    """

    def open_channel(endpoint: Endpoint, settings: ChannelSettings) -> WiredChannel:
        return WiredChannel(endpoint, settings, open_stream)

    return open_channel


class WiredChannel:
    """See ``protocols.grpc_channel.Channel``."""

    def __init__(self, endpoint: Endpoint, settings: ChannelSettings, open_stream: OpenStream) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._open_stream = open_stream
        self._idle: list[trio.abc.Stream] = []
        self._busy: dict[trio.abc.Stream, None] = {}
        self._closed = False

    async def connect(self) -> None:
        await trio.lowlevel.checkpoint()
        stream = await self._connection()
        if self._closed:
            await trio.aclose_forcefully(stream)
            raise ConnectionRefusedError("this channel is closed")
        self._idle.append(stream)

    async def unary(self, path: str, request: bytes, *, metadata: Metadata, timeout_s: float) -> bytes:
        async with self.stream(path, request, metadata=metadata, timeout_s=timeout_s) as replies:
            message = await replies.receive()
            if message is None or await replies.receive() is not None:
                raise CallEnded(Code.INTERNAL, "not exactly one answer to a unary call")
            return message

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, request: bytes, *, metadata: Metadata, timeout_s: float
    ) -> AsyncIterator[MessageStream]:
        until_s = trio.current_time() + timeout_s
        texts = {name: value for name, value in metadata if isinstance(value, str)}
        begin = _Begin(path=path, request=request, metadata=texts, timeout_s=timeout_s)
        try:
            stream = await self._connection()
        except ConnectionError as error:
            raise CallEnded(Code.UNAVAILABLE, str(error)) from error
        self._busy[stream] = None
        replies = _Replies(_Frames(stream), until_s, self._settings.response_bytes_max)
        try:
            await replies.begin(begin)
            yield replies
        finally:
            self._busy.pop(stream, None)
            if replies.done and not self._closed and len(self._idle) < IDLE_MAX:
                self._idle.append(stream)
            else:
                await trio.aclose_forcefully(stream)

    async def aclose(self) -> None:
        self._closed = True
        for stream in [*self._idle, *self._busy]:
            await trio.aclose_forcefully(stream)
        self._idle.clear()

    async def _connection(self) -> trio.abc.Stream:
        """A connection without a call: one that waits and still stands, or a new one.

        Raises:
            ConnectionError: there is none.
        """
        if self._closed:
            raise ConnectionRefusedError("this channel is closed")
        while self._idle:
            stream = self._idle.pop()
            if not _ended(stream):
                return stream
            await trio.aclose_forcefully(stream)
        try:
            return await self._open_stream(self._endpoint.host, self._endpoint.port)
        except ConnectionError:
            raise
        except (OSError, trio.BrokenResourceError) as error:
            raise ConnectionRefusedError(f"{self._endpoint}: {error}") from error


def _ended(stream: trio.abc.Stream) -> bool:
    """Whether an idle connection has news, which can only be its end; those that cannot tell stand."""
    readable = getattr(stream, "is_readable", None)
    return readable is not None and bool(readable())


class _Replies:
    """The answers of one call."""

    def __init__(self, frames: _Frames, until_s: float, bytes_max: int) -> None:
        self._frames = frames
        self._until_s = until_s
        self._bytes_max = bytes_max
        #: Whether the call has ended, so that its connection may carry another one.
        self.done = False

    async def begin(self, frame: _Begin) -> None:
        with self._mapped():
            await self._frames.send(frame)

    async def receive(self) -> bytes | None:
        if self.done:
            return None
        with self._mapped():
            frame = await self._frames.receive()
            if frame is None:
                raise trio.BrokenResourceError("the peer left")
        answer: _Message | _End = _decode_answer(frame)
        if isinstance(answer, _End):
            self.done = True
            if answer.code != Code.OK:
                raise CallEnded(Code(answer.code), answer.details, answer.metadata)
            return None
        if len(answer.body) > self._bytes_max:
            said = f"Received message larger than max ({len(answer.body)} vs. {self._bytes_max})"
            raise CallEnded(Code.RESOURCE_EXHAUSTED, said)
        return answer.body

    @contextlib.contextmanager
    def _mapped(self) -> Iterator[None]:
        """Turn what happens to the connection into how a call ends."""
        try:
            with trio.fail_at(self._until_s):
                yield
        except trio.TooSlowError:
            raise CallEnded(Code.DEADLINE_EXCEEDED, "Deadline Exceeded") from None
        except trio.ClosedResourceError:
            raise CallEnded(Code.CANCELLED, "the channel was closed") from None
        except _BROKEN as error:
            raise CallEnded(Code.UNAVAILABLE, f"the connection broke: {error}") from None
