"""The server side of a WebSocket, on the small HTTP server: one port serves both, as ComfyUI does.

A handler of ``protocols.http_server`` answers a handshake like any other request, and may refuse it with a
status or hang instead::

    async def handle(request: ServerRequest, responder: Responder) -> None:
        if request.path != "/ws":
            await responder.send_bytes(404, b"")
            return
        socket = await accept_websocket(request, responder)
        if socket is None:
            return  # no handshake: answered already
        with contextlib.suppress(WebSocketEnded):
            while True:
                await socket.send(await socket.receive())

It works on whatever stream ``serve_http`` or ``serve_stream`` serve: real TCP or a simulated network. Who must
misbehave finds ``abort`` (reset), ``send_raw`` (any bytes) and ``silence`` (a half-open connection).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable, Mapping

import trio
from wsproto.connection import Connection, ConnectionState, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Event, Ping, TextMessage
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import LocalProtocolError, RemoteProtocolError, generate_accept_token

from protocols.http_responder import Responder, ServerRequest
from protocols.http_upgrade import UpgradedStream

_READ_BYTES = 64 * 1024
#: How long a peer may take to answer our close frame, seconds.
_CLOSE_S = 1.0
#: RFC 6455 §4.1: the only version there is, and the length of the decoded key.
_VERSION = "13"
_KEY_BYTES = 16


class WebSocketEnded(trio.BrokenResourceError):
    """The WebSocket has ended, in whatever way.

    Attributes:
        code: the close code; 1006 when the peer left without one (RFC 6455 §7.1.5).
    """

    def __init__(self, code: int) -> None:
        super().__init__(f"the WebSocket has ended with code {code}")
        self.code = code


def is_websocket(request: ServerRequest) -> bool:
    """Whether a request asks for a WebSocket, well or badly."""
    return "websocket" in _tokens(request, "upgrade")


async def accept_websocket(
    request: ServerRequest,
    responder: Responder,
    *,
    headers: Mapping[str, str] | None = None,
    message_bytes_max: int = 64 * 1024 * 1024,
    gate: Callable[[], Awaitable[None]] | None = None,
) -> ServerWebSocket | None:
    """Answer a handshake with 101; None when it was none, which is answered with 400 or 426.

    Args:
        request: the handshake.
        responder: its responder, not used so far.
        headers: in addition, in the answer.
        message_bytes_max: longest message taken in, bytes; a longer one ends the WebSocket with 1009.
        gate: awaited before anything that arrived is looked at, pings included: a service that hangs closes it.

    Raises:
        trio.BrokenResourceError: the peer left or accepts nothing any more.
    """
    key = request.headers.get("sec-websocket-key", "")
    if (
        request.method != "GET"
        or not is_websocket(request)
        or "upgrade" not in _tokens(request, "connection")
    ):
        await responder.send_bytes(
            426, b"a WebSocket handshake is due here\n", headers={"upgrade": "websocket"}
        )
        return None
    if request.headers.get("sec-websocket-version") != _VERSION:
        await responder.send_bytes(426, b"", headers={"sec-websocket-version": _VERSION})
        return None
    if not _is_key(key):
        await responder.send_bytes(400, b"sec-websocket-key is not 16 bytes in base64\n")
        return None
    accept = generate_accept_token(key.encode("ascii")).decode("ascii")
    stream = await responder.upgrade("websocket", {"sec-websocket-accept": accept, **(headers or {})})
    return ServerWebSocket(stream, responder, message_bytes_max=message_bytes_max, gate=gate)


class ServerWebSocket:
    """An accepted WebSocket. One task receives; any number may send.

    It lives as long as its handler; the server closes what the handler leaves open.
    """

    def __init__(
        self,
        stream: UpgradedStream,
        responder: Responder,
        *,
        message_bytes_max: int,
        gate: Callable[[], Awaitable[None]] | None,
    ) -> None:
        self._gate = gate
        self._stream = stream
        self._responder = responder
        self._message_bytes_max = message_bytes_max
        self._protocol = Connection(ConnectionType.SERVER)
        self._sending = trio.Lock()
        # Of the message that is arriving; kept here, so that a cancelled receive loses nothing.
        self._text: list[str] = []
        self._binary: list[bytes] = []
        self._size_bytes = 0
        self._code: int | None = None

    async def receive(self) -> str | bytes:
        """Return the next message; pings are answered meanwhile.

        Raises:
            WebSocketEnded: the peer closed, left, or broke the protocol, or this side closed.
        """
        while True:
            # An event that is not reached now comes with the next call: wsproto keeps what it has not parsed.
            for event in self._protocol.events():
                if isinstance(event, TextMessage | BytesMessage):
                    if (message := await self._collect(event)) is not None:
                        return message
                elif isinstance(event, Ping):
                    await self._transmit(event.response())
                elif isinstance(event, CloseConnection):
                    await self._closed_by_peer(event)
            await self._read()

    async def _collect(self, event: TextMessage | BytesMessage) -> str | bytes | None:
        """The whole message, once its last part is there."""
        self._size_bytes += len(event.data)
        if self._size_bytes > self._message_bytes_max:
            await self.close(CloseReason.MESSAGE_TOO_BIG)
            raise WebSocketEnded(CloseReason.MESSAGE_TOO_BIG)
        if isinstance(event, TextMessage):
            self._text.append(event.data)
        else:
            self._binary.append(bytes(event.data))
        if not event.message_finished:
            return None
        text, binary, self._text, self._binary, self._size_bytes = self._text, self._binary, [], [], 0
        return "".join(text) if isinstance(event, TextMessage) else b"".join(binary)

    async def _read(self) -> None:
        try:
            data = await self._stream.receive_some(_READ_BYTES)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if not data or self._protocol.state is ConnectionState.CLOSED:
            raise WebSocketEnded(self._end(CloseReason.ABNORMAL_CLOSURE))
        if self._gate is not None:
            await self._gate()
        broken = False
        try:
            self._protocol.receive_data(data)
        except RemoteProtocolError:
            broken = True
        if broken:
            await self.close(CloseReason.PROTOCOL_ERROR)
            raise WebSocketEnded(CloseReason.PROTOCOL_ERROR)

    async def _closed_by_peer(self, event: CloseConnection) -> None:
        code = self._end(int(event.code))
        if self._protocol.state is ConnectionState.REMOTE_CLOSING:
            await self._transmit(event.response())
        elif self._protocol.state is ConnectionState.OPEN:
            # Not a close frame, but wsproto's word for garbage: we say so to the peer.
            await self._transmit(CloseConnection(code=event.code))
        await self._responder.close()
        raise WebSocketEnded(code)

    async def send(self, message: str | bytes) -> None:
        """Send one message; text as text, bytes as binary.

        Raises:
            WebSocketEnded: the WebSocket has ended, or the peer accepts nothing any more.
        """
        if isinstance(message, str):
            await self._transmit(TextMessage(data=message))
        else:
            await self._transmit(BytesMessage(data=message))

    async def send_raw(self, data: bytes) -> None:
        """Send bytes as they are: a broken frame, half a frame, anything.

        Raises:
            WebSocketEnded: the peer is gone.
        """
        await self._write(data)

    async def close(self, code: int = CloseReason.NORMAL_CLOSURE, reason: str = "") -> None:
        """Close in order: our close frame, at most a second for the peer's, then the connection. Idempotent.

        Another task that receives meanwhile takes the peer's answer; then the connection ends right away.
        """
        if self._protocol.state is ConnectionState.OPEN and self._code is None:
            self._end(int(code))
            try:
                await self._transmit(CloseConnection(code=code, reason=reason))
                with trio.move_on_after(_CLOSE_S):
                    while not self._stream.ended and self._state() is not ConnectionState.CLOSED:
                        self._protocol.receive_data(await self._stream.receive_some(_READ_BYTES) or None)
                        for _ in self._protocol.events():
                            pass
            except (
                trio.BrokenResourceError,
                trio.BusyResourceError,
                RemoteProtocolError,
                LocalProtocolError,
            ):
                # It left by itself, or speaks garbage: nothing more to agree on.
                self._end(CloseReason.ABNORMAL_CLOSURE)
        await self._responder.close()

    async def abort(self) -> None:
        """Reset the connection: the peer sees 1006."""
        self._end(CloseReason.ABNORMAL_CLOSURE)
        await self._responder.abort()

    async def silence(self) -> None:
        """Say nothing any more, not even a pong, and return when the peer has left: a half-open connection.

        What the peer sends is accepted and dropped.
        """
        while not self._stream.ended and await self._stream.receive_some(_READ_BYTES):
            pass
        self._end(CloseReason.ABNORMAL_CLOSURE)

    def _state(self) -> ConnectionState:
        return self._protocol.state

    def _end(self, code: int) -> int:
        """The code of this end; the first one counts."""
        if self._code is None:
            self._code = code
        return self._code

    async def _transmit(self, event: Event) -> None:
        try:
            data = self._protocol.send(event)
        except LocalProtocolError:
            raise WebSocketEnded(self._end(CloseReason.ABNORMAL_CLOSURE)) from None
        await self._write(data)

    async def _write(self, data: bytes) -> None:
        try:
            async with self._sending:
                await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise WebSocketEnded(self._end(CloseReason.ABNORMAL_CLOSURE)) from None


def _tokens(request: ServerRequest, name: str) -> set[str]:
    return {part.strip().lower() for part in request.headers.get(name, "").split(",")}


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == _KEY_BYTES
    except (binascii.Error, ValueError):
        return False
