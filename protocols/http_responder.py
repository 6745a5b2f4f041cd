"""What a handler of the small HTTP server gets: the request, and the ways to answer it or to fail at it."""

from __future__ import annotations

import contextlib
import socket
import struct
import urllib.parse
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import NoReturn

import h11
import msgspec
import trio

from protocols.http_upgrade import UpgradedStream

#: SO_LINGER on with zero seconds: close sends RST instead of FIN.
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

HeaderList = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class ServerRequest:
    """One request.

    Attributes:
        method: as sent, ``GET``.
        path: without the query, still quoted.
        query: what follows the question mark, still quoted; see ``query_values``.
        headers: names in lower case; of repeated ones the values joined by a comma.
        body: complete.
    """

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    body: bytes

    @classmethod
    def from_event(cls, event: h11.Request, body: bytes) -> ServerRequest:
        """Make the request from h11's event."""
        path, _, query = event.target.decode("latin-1").partition("?")
        headers: dict[str, str] = {}
        for name, value in event.headers:
            key, text = name.decode("latin-1"), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        return cls(event.method.decode("latin-1"), path, query, headers, body)

    def query_values(self) -> dict[str, str]:
        """The query, unquoted; of a repeated name the last value."""
        return dict(urllib.parse.parse_qsl(self.query, keep_blank_values=True))

    def json(self) -> object:
        """The body decoded.

        Raises:
            msgspec.DecodeError: it is not JSON.
        """
        return msgspec.json.decode(self.body)


class BodyStream:
    """A chunked body being sent."""

    def __init__(self, responder: Responder) -> None:
        self._responder = responder

    async def send(self, data: bytes) -> None:
        """Send one chunk; an empty one is no chunk.

        Raises:
            trio.BrokenResourceError: the peer left or accepts nothing any more.
        """
        if data and not self._responder.head_only:
            await self._responder.transmit(h11.Data(data=data))

    async def abort(self) -> None:
        """Cut the connection in the middle of the body."""
        await self._responder.abort()


class Responder:
    """Answers one request, well or badly. A handler uses one of its ways, once.

    Attributes:
        head_only: a HEAD request: bodies are not sent.
        begun: something was answered.
        closed: the handler ended the connection.
        lost: a write failed, the peer is gone.
    """

    def __init__(
        self,
        stream: trio.abc.Stream,
        connection: h11.Connection,
        request: ServerRequest,
        *,
        write_timeout_s: float,
        take_over: Callable[[UpgradedStream], None],
        make_room: Callable[[], None],
    ) -> None:
        self._stream = stream
        self._take_over = take_over
        self._make_room = make_room
        self._h11 = connection
        self.head_only = request.method == "HEAD"
        self._write_timeout_s = write_timeout_s
        self.begun = False
        self.closed = False
        self.lost = False

    async def send_json(self, status: int, obj: object, headers: Mapping[str, str] | None = None) -> None:
        """Answer with JSON (anything msgspec encodes).

        Raises:
            trio.BrokenResourceError: the peer left or accepts nothing any more.
        """
        await self.send_bytes(status, msgspec.json.encode(obj), "application/json", headers)

    async def send_bytes(
        self,
        status: int,
        body: bytes,
        content_type: str = "text/plain; charset=utf-8",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Answer with a complete body, in one write.

        Raises:
            trio.BrokenResourceError: the peer left or accepts nothing any more.
        """
        fields: HeaderList = []
        # These two statuses have no body, so nothing may describe one (RFC 9110 §8.6).
        if status not in (204, 304):
            fields = [("content-type", content_type), ("content-length", str(len(body)))]
        if headers:
            fields.extend(headers.items())
        events: list[h11.Event] = [h11.Response(status_code=status, headers=fields)]
        if body and not self.head_only:
            events.append(h11.Data(data=body))
        await self.transmit(*events, h11.EndOfMessage())

    @contextlib.asynccontextmanager
    async def stream(
        self, status: int, content_type: str, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[BodyStream]:
        """Answer with a chunked body, ended properly when the block ends without an exception.

        Raises:
            trio.BrokenResourceError: the peer left or accepts nothing any more.
        """
        fields: HeaderList = [("content-type", content_type), ("transfer-encoding", "chunked")]
        if headers:
            fields.extend(headers.items())
        await self.transmit(h11.Response(status_code=status, headers=fields))
        yield BodyStream(self)
        if not self.closed:
            await self.transmit(h11.EndOfMessage())

    async def abort(self) -> None:
        """Cut the connection at once: reset on TCP, plain close on other streams. What was sent may be
        lost.
        """
        self.begun = self.closed = True
        if isinstance(self._stream, trio.SocketStream):
            with contextlib.suppress(OSError):
                self._stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        await trio.aclose_forcefully(self._stream)

    async def close(self) -> None:
        """Close the connection in an orderly way; what was sent arrives, the peer sees an early end."""
        self.begun = self.closed = True
        await trio.aclose_forcefully(self._stream)

    async def send_raw(self, data: bytes) -> None:
        """Send bytes as they are, valid or not; the connection takes no further request.

        Raises:
            trio.BrokenResourceError: the peer left or accepts nothing any more.
        """
        self.begun = True
        self._h11.send_failed()
        await self._write(data)

    async def upgrade(self, protocol: str, headers: Mapping[str, str] | None = None) -> UpgradedStream:
        """Answer 101 and leave HTTP behind; the connection ends when the handler does.

        From here on a peer that leaves does not cancel the handler: it shows as the end of the stream.

        Args:
            protocol: what is spoken now, as the request's ``Upgrade`` header asked.
            headers: in addition.

        Raises:
            h11.LocalProtocolError: the request did not ask for an upgrade.
            trio.BrokenResourceError: the peer left or accepts nothing any more.
        """
        fields: HeaderList = [("upgrade", protocol), ("connection", "Upgrade"), *(headers or {}).items()]
        head = self._h11.send(
            h11.InformationalResponse(status_code=101, headers=fields, reason="Switching Protocols")
        )
        self.begun = True
        stream = UpgradedStream(write=self._write, close=self.close, make_room=self._make_room)
        # No scheduling point in between, so that no byte after the request's own goes astray.
        stream.feed(self._h11.trailing_data[0])
        self._take_over(stream)
        await self._write(head or b"")
        return stream

    async def hang(self) -> NoReturn:
        """Never answer; ends when the peer leaves or the server stops."""
        self.begun = True
        await trio.sleep_forever()

    async def transmit(self, *events: h11.Event) -> None:
        """Send h11 events in one write.

        Raises:
            trio.BrokenResourceError: the peer left or accepts nothing any more.
        """
        send = self._h11.send
        data = b"".join([send(event) or b"" for event in events])
        self.begun = True
        await self._write(data)

    async def _write(self, data: bytes) -> None:
        if self.closed:
            raise trio.ClosedResourceError("the handler closed this connection")
        if not data:
            return
        try:
            with trio.move_on_after(self._write_timeout_s) as patience:
                await self._stream.send_all(data)
        except trio.BrokenResourceError:
            self.lost = True
            raise
        if patience.cancelled_caught:
            await self.abort()
            raise trio.BrokenResourceError(f"the peer accepted nothing for {self._write_timeout_s:g} s")
