"""Servers for the tests of the protocol adapters: real sockets on loopback, any port."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Protocol

import pytest
import trio

from protocols.http_responder import Responder, ServerRequest
from protocols.http_server import ServerHandle, ServerLimits, serve_http

Handler = Callable[[ServerRequest, Responder], Awaitable[None]]


class Serve(Protocol):
    """Starts a server for the rest of the test."""

    async def __call__(self, handler: Handler, *, limits: ServerLimits | None = None) -> ServerHandle: ...


@pytest.fixture
def serve(nursery: trio.Nursery) -> Serve:
    async def start(handler: Handler, *, limits: ServerLimits | None = None) -> ServerHandle:
        handle = await nursery.start(functools.partial(serve_http, handler, limits=limits))
        assert isinstance(handle, ServerHandle)
        return handle

    return start
