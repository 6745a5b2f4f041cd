"""The shipped Redis client on the simulated network: coredis' connection over one of our streams."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
import trio
from anyio.abc import ByteStream
from coredis.connection import BaseConnection
from coredis.connection._tcp import TCPLocation

from gateway.store.connection import RedisConnect
from simulator.network import SimStream

HOST = "redis"
PORT = 6379
READ_BYTES = 64 * 1024

OpenSimStream = Callable[[str, int], Awaitable[SimStream]]


class SimByteStream(ByteStream):
    """anyio's stream interface over a trio stream."""

    def __init__(self, stream: SimStream) -> None:
        self._stream = stream

    async def receive(self, max_bytes: int = READ_BYTES) -> bytes:
        try:
            data = await self._stream.receive_some(max_bytes)
        except trio.ClosedResourceError as error:
            raise anyio.ClosedResourceError from error
        except trio.BrokenResourceError as error:
            raise anyio.BrokenResourceError from error
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        try:
            await self._stream.send_all(item)
        except trio.ClosedResourceError as error:
            raise anyio.ClosedResourceError from error
        except trio.BrokenResourceError as error:
            raise anyio.BrokenResourceError from error

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {}


class SimConnection(BaseConnection):
    """coredis' connection whose bytes travel through the simulation."""

    def __init__(
        self, open_stream: OpenSimStream, *, connect_timeout_s: float, command_timeout_s: float
    ) -> None:
        super().__init__(
            TCPLocation(HOST, PORT),
            stream_timeout=command_timeout_s,
            connect_timeout=connect_timeout_s,
            decode_responses=False,
        )
        self._open_stream = open_stream

    async def _connect(self) -> ByteStream:
        with anyio.fail_after(self._connect_timeout):
            return SimByteStream(await self._open_stream(HOST, PORT))

    def describe(self) -> str:
        return f"SimConnection<{HOST}:{PORT}>"


def sim_redis_connect(
    open_stream: OpenSimStream, *, connect_timeout_s: float, command_timeout_s: float
) -> RedisConnect:
    """Factory of connections from one node to the simulated Redis; the seam ``Seams.connect_redis``."""
    return lambda: SimConnection(
        open_stream, connect_timeout_s=connect_timeout_s, command_timeout_s=command_timeout_s
    )
