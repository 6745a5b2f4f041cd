"""What remains of an HTTP connection once it was upgraded: a plain byte stream (RFC 9110 §7.8)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio


class UpgradedStream(trio.abc.Stream):
    """The connection below an upgraded request, without HTTP.

    The connection's only reader goes on reading; it puts what arrives in here, and waits for room while that
    is too much. So nobody else reads the socket, and the peer's leaving shows as the end of the data.

    Args:
        write: sends bytes, bounded in time.
        close: ends the connection.
        make_room: called when everything that had arrived was taken.
    """

    def __init__(
        self,
        *,
        write: Callable[[bytes], Awaitable[None]],
        close: Callable[[], Awaitable[None]],
        make_room: Callable[[], None],
    ) -> None:
        self._write = write
        self._close = close
        self._make_room = make_room
        self._arrived = bytearray()
        self._news = trio.Event()
        self.ended = False
        self._closed = False
        self._receiving = False

    def feed(self, data: bytes) -> None:
        """Take in what the connection's reader brought."""
        self._arrived += data
        self._news.set()

    def end(self) -> None:
        """Note that the peer left: no more data will come."""
        self.ended = True
        self._news.set()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what has arrived, or ``b""`` once the peer left.

        Raises:
            trio.BusyResourceError: another task receives already.
            trio.ClosedResourceError: this side closed the stream.
        """
        if self._receiving:
            raise trio.BusyResourceError("another task receives already")
        self._receiving = True
        try:
            # Before the data is taken, so that a cancellation loses none.
            await trio.lowlevel.checkpoint()
            while not self._arrived:
                if self._closed:
                    raise trio.ClosedResourceError
                if self.ended:
                    return b""
                self._make_room()
                self._news = trio.Event()
                await self._news.wait()
        finally:
            self._receiving = False
        count = len(self._arrived) if max_bytes is None else max_bytes
        data = bytes(self._arrived[:count])
        del self._arrived[:count]
        if not self._arrived:
            self._make_room()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes.

        Raises:
            trio.BrokenResourceError: the peer left or accepts nothing any more.
            trio.ClosedResourceError: this side closed the stream.
        """
        await self._write(bytes(data))

    async def wait_send_all_might_not_block(self) -> None:
        """Return at once: writes are bounded in time by themselves."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """End the connection; what was sent arrives."""
        self._closed = True
        self._news.set()
        await self._close()
