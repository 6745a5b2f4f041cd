"""gRPC calls of one test to a handler in the same run, without a network."""

from __future__ import annotations

import functools

import trio
import trio.testing

from protocols.base import OpenStream
from protocols.grpc_service import CallHandler
from simulator.services.grpc_wire import serve_calls

REQUEST_BYTES_MAX = 64 * 1024 * 1024


def connections_to(handler: CallHandler) -> OpenStream:
    """Opens a pair of streams in memory for each connection; the far one is served until the test ends."""

    async def open_stream(_host: str, _port: int) -> trio.abc.Stream:
        near, far = trio.testing.memory_stream_pair()
        serve = functools.partial(serve_calls, handler, far, request_bytes_max=REQUEST_BYTES_MAX)
        trio.lowlevel.spawn_system_task(serve)
        await trio.lowlevel.checkpoint()
        return near

    return open_stream
