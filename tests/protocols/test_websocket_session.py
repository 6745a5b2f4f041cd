"""A session over real sockets: it comes back after breaks, re-syncs each time, and gives up within bounds."""

from __future__ import annotations

import contextlib
import random
from collections.abc import AsyncIterator

import trio
import trio.testing

from protocols.base import Endpoint
from protocols.errors import (
    AuthRejected,
    ConsumerTooSlow,
    PeerClosed,
    ProtocolError,
)
from protocols.http_responder import Responder, ServerRequest
from protocols.http_server import ServerHandle
from protocols.websocket import WebSocketAdapter
from protocols.websocket_link import WebSocket, WebSocketLimits
from protocols.websocket_server import ServerWebSocket, WebSocketEnded, accept_websocket
from protocols.websocket_session import ReconnectPolicy, WebSocketSession, open_session
from tests.protocols.conftest import Serve

POLICY = ReconnectPolicy(tries_max=3, pause_s=0.01, pause_max_s=0.05)
LIMITS = WebSocketLimits(ping_every_s=0.2, ping_timeout_s=0.3, send_timeout_s=2)


class Peer:
    """Accepts, answers each message with the number of its connection, and breaks when told to."""

    def __init__(self) -> None:
        self.connections = 0
        self.hellos: list[str | bytes] = []
        self.refuse_status = 0

    async def __call__(self, request: ServerRequest, responder: Responder) -> None:
        self.connections += 1
        number = self.connections
        if self.refuse_status:
            await responder.send_bytes(self.refuse_status, b"", headers={"retry-after": "60"})
            return
        socket = await accept_websocket(request, responder)
        assert socket is not None
        with contextlib.suppress(WebSocketEnded):
            self.hellos.append(await socket.receive())
            while True:
                await self._obey(socket, await socket.receive(), number)

    async def _obey(self, socket: ServerWebSocket, message: str | bytes, number: int) -> None:
        if message == "reset":
            await socket.abort()
        elif message == "close":
            await socket.close(1012)
        elif message == "garbage":
            await socket.send_raw(b"\xff\xff")
        elif message == "freeze":
            await socket.silence()
        else:
            await socket.send(f"{number}:{message!r}")


@contextlib.asynccontextmanager
async def session_with(handle: ServerHandle) -> AsyncIterator[WebSocketSession]:
    async def hello(link: WebSocket) -> None:
        await link.send("hello")

    async with WebSocketAdapter(Endpoint.parse(handle.url), limits=LIMITS) as adapter:
        with trio.fail_after(30):
            async with open_session(
                adapter, "/ws", resync=hello, random=random.Random(1), policy=POLICY
            ) as session:
                yield session


async def fault_of(handle: ServerHandle, *messages: str, refuse: Peer | None = None) -> ProtocolError:
    """Send, and receive until the session ends."""
    try:
        async with session_with(handle) as session:
            if refuse is not None:
                refuse.refuse_status = 503
            for message in messages:
                await session.send(message)
            while True:
                await session.receive()
    except ProtocolError as fault:
        return fault


async def test_every_kind_of_break_is_followed_by_a_new_connection_and_a_resync(serve: Serve) -> None:
    """After a reset, a close, garbage or silence the same session goes on, each time with a hello."""
    peer = Peer()
    handle = await serve(peer)
    async with session_with(handle) as session:
        for number, trouble in enumerate(("reset", "close", "garbage", "freeze"), 1):
            await session.send("a")
            assert await session.receive() == f"{number}:'a'"
            await session.send(trouble)
            await session.reconnected(number)
        await session.send("b")
        assert await session.receive() == "5:'b'"
        assert session.connects == 5
    assert peer.hellos == ["hello"] * 5


async def test_dropping_a_connection_that_seems_dead_makes_another(serve: Serve) -> None:
    """drop() gives up what stands; the next message travels over a new connection."""
    peer = Peer()
    async with session_with(await serve(peer)) as session:
        session.drop()
        assert not session.connected
        await session.send("a")
        assert await session.receive() == "2:'a'"
        assert isinstance(session.last_fault, PeerClosed)


async def test_the_first_connection_is_not_tried_again(serve: Serve) -> None:
    """A session that cannot begin says why at once."""
    peer = Peer()
    peer.refuse_status = 401
    handle = await serve(peer)
    assert type(await fault_of(handle)) is AuthRejected
    assert peer.connections == 1


async def test_a_session_gives_up_after_its_tries(serve: Serve) -> None:
    """A peer that breaks again and again, without one message, ends the session in bounded time."""

    async def slam(request: ServerRequest, responder: Responder) -> None:
        socket = await accept_websocket(request, responder)
        assert socket is not None
        await socket.receive()
        await socket.abort()

    handle = await serve(slam)
    fault = await fault_of(handle)
    assert isinstance(fault, PeerClosed)
    assert handle.statistics.requests == 1 + POLICY.tries_max


async def test_a_wish_for_a_long_wait_ends_the_session(serve: Serve) -> None:
    """A Retry-After beyond the longest pause is the job's business, not the session's."""
    peer = Peer()
    fault = await fault_of(await serve(peer), "reset", refuse=peer)
    assert fault.retry_after_s == 60.0
    assert peer.connections == 2


async def test_a_lasting_refusal_ends_the_session(serve: Serve) -> None:
    """What another connection would meet again is not tried again."""
    peer = Peer()
    handle = await serve(peer)
    caught: list[type[ProtocolError]] = []
    try:
        async with session_with(handle) as session:
            peer.refuse_status = 403
            await session.send("reset")
            await session.receive()
    except ProtocolError as fault:
        caught.append(type(fault))
    assert caught == [AuthRejected]
    assert peer.connections == 2


async def test_a_consumer_that_is_too_slow_catches_up_over_new_connections(serve: Serve) -> None:
    """Messages that found no room are asked for again after those that did: none is lost, and the session lives."""
    last = 3_000
    seen = 0

    async def flood(request: ServerRequest, responder: Responder) -> None:
        socket = await accept_websocket(request, responder)
        assert socket is not None
        with contextlib.suppress(WebSocketEnded):
            for number in range(int(await socket.receive()), last):
                await socket.send(str(number + 1))
            await socket.receive()

    async def ask_for_the_rest(link: WebSocket) -> None:
        await link.send(str(seen))

    handle = await serve(flood)
    limits = WebSocketLimits(frames_max=400)
    async with WebSocketAdapter(Endpoint.parse(handle.url), limits=limits) as adapter:
        with trio.fail_after(30):
            async with open_session(
                adapter, "/ws", resync=ask_for_the_rest, random=random.Random(1), policy=POLICY
            ) as session:
                while session.last_fault is None:
                    await trio.testing.wait_all_tasks_blocked(0.01)
                while seen < last:
                    assert int(await session.receive()) == seen + 1
                    seen += 1
                assert type(session.last_fault) is ConsumerTooSlow
                assert session.connects > 1
