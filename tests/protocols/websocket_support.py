"""What the tests of the WebSocket adapter share: an adapter with a limit, scripted peers, faults as values."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import trio
import trio.testing

from protocols.base import Endpoint
from protocols.errors import (
    ProtocolError,
)
from protocols.http_responder import Responder, ServerRequest
from protocols.websocket import WebSocketAdapter
from protocols.websocket_link import WebSocket, WebSocketLimits
from protocols.websocket_server import ServerWebSocket, WebSocketEnded, accept_websocket

Script = Callable[[ServerWebSocket], Awaitable[None]]
PATIENCE_S = 20


@contextlib.asynccontextmanager
async def adapter_to(url: str, limits: WebSocketLimits | None = None) -> AsyncIterator[WebSocketAdapter]:
    adapter = WebSocketAdapter(Endpoint.parse(url), limits=limits)
    with trio.fail_after(PATIENCE_S):
        async with adapter:
            yield adapter
    assert adapter.statistics().connections == 0


async def fault_of(
    adapter: WebSocketAdapter,
    use: Callable[[WebSocket], Awaitable[object]] = WebSocket.receive,
    *,
    path: str = "/",
    headers: dict[str, str] | None = None,
    inactivity_s: float | None = None,
) -> ProtocolError:
    """The fault of one connection, which must fail."""
    try:
        async with adapter.connect(path, headers=headers, inactivity_s=inactivity_s) as link:
            await use(link)
    except ProtocolError as fault:
        return fault
    raise AssertionError("no fault")


def playing(script: Script) -> Callable[[ServerRequest, Responder], Awaitable[None]]:
    """A handler that accepts every handshake and plays a script."""

    async def handle(request: ServerRequest, responder: Responder) -> None:
        socket = await accept_websocket(request, responder)
        if socket is not None:
            with contextlib.suppress(WebSocketEnded):
                await script(socket)

    return handle


async def echo(socket: ServerWebSocket) -> None:
    while True:
        await socket.send(await socket.receive())
