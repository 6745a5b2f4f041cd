"""A gRPC channel without gRPC: calls go straight to a twin's handler, in one trio run and so under virtual time.

It keeps what connectors build on (deadlines, statuses, cancellation that reaches the handler, messages as bytes) and
has no threads and no sockets. What grpcio itself does is tested against real servers.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

import trio

from protocols.base import Endpoint
from protocols.grpc_channel import CallEnded, ChannelSettings, Code, MessageStream, Metadata, OpenChannel
from protocols.grpc_service import CallHandler, IncomingCall

#: Messages that a handler may be ahead of its caller, as over a connection with flow control.
AHEAD_MAX = 16


def direct_channels(find: Callable[[Endpoint], CallHandler | None]) -> OpenChannel:
    """The seam of ``ConnectorSetup`` and ``Seams`` for calls within one run.

    Args:
        find: who listens at an address now; None refuses the connection.
    """

    def open_channel(endpoint: Endpoint, settings: ChannelSettings) -> DirectChannel:
        return DirectChannel(endpoint, settings, find)

    return open_channel


class DirectChannel:
    """See ``protocols.grpc_channel.Channel``."""

    def __init__(
        self, endpoint: Endpoint, settings: ChannelSettings, find: Callable[[Endpoint], CallHandler | None]
    ) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._find = find
        self._closed = False
        self._calls: set[trio.CancelScope] = set()

    async def connect(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._closed or self._find(self._endpoint) is None:
            raise ConnectionRefusedError(f"{self._endpoint} refused the connection")

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
        handler = None if self._closed else self._find(self._endpoint)
        if handler is None:
            raise CallEnded(Code.UNAVAILABLE, "the connection broke")
        send, receive = trio.open_memory_channel[bytes](AHEAD_MAX)
        call = IncomingCall(
            path=path,
            request=request,
            metadata={name: value for name, value in metadata if isinstance(value, str)},
            time_left_s=timeout_s,
            send=send.send,
        )
        replies = _Replies(receive, self._settings.response_bytes_max)
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._serve, handler, call, send, replies, timeout_s)
            try:
                yield replies
            except Exception as error:
                failure = error  # raised outside, or the nursery would wrap it
            finally:
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def aclose(self) -> None:
        self._closed = True
        for scope in self._calls:
            scope.cancel()
        await trio.lowlevel.checkpoint()

    async def _serve(
        self,
        handler: CallHandler,
        call: IncomingCall,
        send: trio.MemorySendChannel[bytes],
        replies: _Replies,
        timeout_s: float,
    ) -> None:
        """Run the handler until it ends, the deadline passes or the channel is closed."""
        with send, trio.CancelScope() as closing:
            self._calls.add(closing)
            replies.ended = CallEnded(Code.CANCELLED, "the channel was closed")
            try:
                with trio.fail_after(timeout_s):
                    await handler(call)
                replies.ended = None
            except CallEnded as ended:
                replies.ended = ended
            except trio.TooSlowError:
                replies.ended = CallEnded(Code.DEADLINE_EXCEEDED, "Deadline Exceeded")
            finally:
                self._calls.discard(closing)


class _Replies:
    """What a handler sent, and how it ended."""

    def __init__(self, messages: trio.MemoryReceiveChannel[bytes], bytes_max: int) -> None:
        self._messages = messages
        self._bytes_max = bytes_max
        self.ended: CallEnded | None = None

    async def receive(self) -> bytes | None:
        try:
            message = await self._messages.receive()
        except trio.EndOfChannel:
            if self.ended is not None:
                raise self.ended from None
            return None
        if len(message) > self._bytes_max:
            raise CallEnded(
                Code.RESOURCE_EXHAUSTED,
                f"Received message larger than max ({len(message)} vs. {self._bytes_max})",
            )
        return message
