"""The WebSocket adapter over real sockets: bounded waits, a reader that never waits, typed ends."""

from __future__ import annotations

import math
import random
import struct

import pytest
import trio
import trio.testing

from protocols.base import Endpoint
from protocols.conflate import Frame
from protocols.errors import (
    BodyTooLarge,
    ClosedWithCode,
    ConsumerTooSlow,
    FaultKind,
    InvalidRequest,
    PeerClosed,
    ProtocolError,
    ProtocolViolation,
    RequestTimeout,
)
from protocols.websocket import WebSocketAdapter
from protocols.websocket_link import WebSocket, WebSocketLimits
from protocols.websocket_server import ServerWebSocket, WebSocketEnded
from tests.protocols.conftest import Serve
from tests.protocols.websocket_support import PATIENCE_S, adapter_to, echo, fault_of, playing


async def test_messages_come_back_as_they_were(serve: Serve) -> None:
    """Text stays text, binary stays binary, of any size within the bounds."""
    handle = await serve(playing(echo))
    messages: list[Frame] = ["", "ä€", b"", b"\x00\xff", "x" * 70_000, bytes(3_200_000)]
    async with adapter_to(handle.url) as adapter, adapter.connect("/ws?clientId=1") as link:
        for message in messages:
            await link.send(message)
            assert await link.receive() == message
        assert link.frames == len(messages)


async def test_a_message_beyond_the_bound_ends_the_connection(serve: Serve) -> None:
    """An oversize message is a fault of its own kind, and is never held."""

    async def boast(socket: ServerWebSocket) -> None:
        await socket.send(bytes(2_000_000))
        await socket.receive()

    handle = await serve(playing(boast))
    async with adapter_to(handle.url, WebSocketLimits(message_bytes_max=1_000_000)) as adapter:
        assert type(await fault_of(adapter)) is BodyTooLarge


@pytest.mark.parametrize(
    ("code", "kind", "fault"),
    [
        (1000, PeerClosed, FaultKind.NETWORK),
        (1001, PeerClosed, FaultKind.NETWORK),
        (1002, ProtocolViolation, FaultKind.PROTOCOL),
        (1008, ClosedWithCode, FaultKind.VALIDATION),
        (1011, ClosedWithCode, FaultKind.SERVICE_ERROR),
        (1012, ClosedWithCode, FaultKind.UNAVAILABLE),
        (3000, ClosedWithCode, FaultKind.AUTH),
        (4999, PeerClosed, FaultKind.NETWORK),
    ],
)
async def test_a_close_code_says_what_kind_of_trouble_it_is(
    serve: Serve, code: int, kind: type[ProtocolError], fault: FaultKind
) -> None:
    """Messages before a close are delivered; then the code decides, and the outcome is unknown once we sent."""

    async def part(socket: ServerWebSocket) -> None:
        await socket.receive()
        await socket.send("last words")
        await socket.close(code, "bye")

    async def listen(link: WebSocket) -> None:
        await link.send("go")
        assert await link.receive() == "last words"
        await link.receive()

    handle = await serve(playing(part))
    async with adapter_to(handle.url) as adapter:
        caught = await fault_of(adapter, listen)
    assert type(caught) is kind
    assert caught.fault is fault
    assert caught.outcome_unknown


async def test_a_reset_is_a_closed_connection(serve: Serve) -> None:
    """A reset ends every wait with PeerClosed, whose outcome is unknown once anything was sent."""

    async def reset(socket: ServerWebSocket) -> None:
        await socket.receive()
        await socket.abort()

    async def receive(link: WebSocket) -> None:
        await link.send("go")
        await link.receive()

    async def send(link: WebSocket) -> None:
        await link.send("go")
        await link.ended.wait()
        await link.send("into the void")

    handle = await serve(playing(reset))
    async with adapter_to(handle.url) as adapter:
        for use in (receive, send):
            fault = await fault_of(adapter, use)
            assert type(fault) is PeerClosed
            assert fault.outcome_unknown


async def test_bytes_that_are_no_frame_are_a_violation(serve: Serve) -> None:
    """Garbage on the wire, or text that is not UTF-8, is the peer's violation."""
    for garbage in (b"\xff\xff\xff\xff", b"\x81\x02\xff\xfe", b"\x83\x00"):

        async def babble(socket: ServerWebSocket, garbage: bytes = garbage) -> None:
            await socket.send_raw(garbage)
            await socket.receive()

        handle = await serve(playing(babble))
        async with adapter_to(handle.url) as adapter:
            assert type(await fault_of(adapter)) is ProtocolViolation


async def test_a_frozen_peer_is_noticed_by_its_missing_pong(serve: Serve) -> None:
    """A half-open connection ends within ping_every_s and ping_timeout_s, whoever waits on it."""
    handle = await serve(playing(ServerWebSocket.silence))
    limits = WebSocketLimits(ping_every_s=0.1, ping_timeout_s=0.3)
    async with adapter_to(handle.url, limits) as adapter:
        assert type(await fault_of(adapter, WebSocket.receive)) is RequestTimeout
        assert type(await fault_of(adapter, WebSocket.ping)) is RequestTimeout
        report = await adapter.health("/")
    assert report.fault is FaultKind.TIMEOUT


async def test_a_pong_may_wait_behind_a_large_message(serve: Serve) -> None:
    """While bytes arrive the peer is alive, however long its pong takes."""

    async def dribble(socket: ServerWebSocket) -> None:
        await socket.send_raw(b"\x81\x0a")
        for _ in range(10):
            await trio.sleep(0.1)
            await socket.send_raw(b"x")
        await echo(socket)

    handle = await serve(playing(dribble))
    limits = WebSocketLimits(ping_timeout_s=0.4)
    async with adapter_to(handle.url, limits) as adapter, adapter.connect("/") as link:
        await link.ping()
        assert await link.receive() == "x" * 10
        await link.send("still")
        assert await link.receive() == "still"


async def test_a_send_cut_off_in_its_middle_ends_the_connection(serve: Serve) -> None:
    """Half a frame leaves nothing that could be understood, so nothing more is sent after it."""

    async def deaf(_socket: ServerWebSocket) -> None:
        await trio.sleep_forever()

    async def cut_off(link: WebSocket) -> None:
        with trio.move_on_after(0.3):
            await link.send(bytes(30_000_000))
        await link.ended.wait()
        await link.send("more")

    handle = await serve(playing(deaf))
    async with adapter_to(handle.url) as adapter:
        fault = await fault_of(adapter, cut_off)
    assert type(fault) is PeerClosed
    assert fault.outcome_unknown


async def test_a_ping_ends_when_the_connection_does(serve: Serve) -> None:
    """A ping on a connection that breaks meanwhile does not wait for ever."""

    async def vanish(socket: ServerWebSocket) -> None:
        await trio.sleep(0.05)
        await socket.abort()

    async def ping(link: WebSocket) -> None:
        while True:
            await link.ping()

    handle = await serve(playing(vanish))
    async with adapter_to(handle.url, WebSocketLimits(ping_timeout_s=0.3)) as adapter:
        assert isinstance(await fault_of(adapter, ping), PeerClosed | RequestTimeout)


async def test_a_peer_that_only_answers_pings_runs_into_the_inactivity_limit(serve: Serve) -> None:
    """Without messages a live peer counts as dead after inactivity_s, and not before."""

    async def receive(socket: ServerWebSocket) -> None:
        await socket.receive()

    handle = await serve(playing(receive))
    async with adapter_to(handle.url, WebSocketLimits(ping_every_s=0.05)) as adapter:
        began = trio.current_time()
        assert type(await fault_of(adapter, inactivity_s=0.4)) is RequestTimeout
        assert trio.current_time() - began >= 0.4


async def test_a_slow_consumer_gets_the_newest_of_what_may_be_replaced(serve: Serve) -> None:
    """Replaceable messages are conflated by key, all others arrive, in order, and pings are answered meanwhile."""
    flood = 5_000

    async def hurry(socket: ServerWebSocket) -> None:
        await socket.receive()
        for number in range(flood):
            await socket.send(struct.pack(">I", number))
        await socket.send("done")
        await socket.receive()

    handle = await serve(playing(hurry))
    limits = WebSocketLimits(frames_max=16)

    def numbers_are_replaced(frame: Frame) -> str | None:
        return "number" if isinstance(frame, bytes) else None

    async with (
        adapter_to(handle.url, limits) as adapter,
        adapter.connect("/", key_of=numbers_are_replaced) as link,
    ):
        await link.send("go")
        while link.frames < flood + 1:
            await link.ping()
        assert await link.receive() == struct.pack(">I", flood - 1)
        assert await link.receive() == "done"


async def test_messages_that_must_not_be_dropped_and_find_no_room_are_a_fault(serve: Serve) -> None:
    """An overflow of unreplaceable messages is ConsumerTooSlow, after those that were held."""

    async def hurry(socket: ServerWebSocket) -> None:
        for number in range(40):
            await socket.send(str(number))
        await socket.receive()

    received: list[Frame] = []

    async def dawdle(link: WebSocket) -> None:
        await link.ended.wait()
        while True:
            received.append(await link.receive())

    handle = await serve(playing(hurry))
    async with adapter_to(handle.url, WebSocketLimits(frames_max=16)) as adapter:
        assert type(await fault_of(adapter, dawdle)) is ConsumerTooSlow
    assert received == [str(number) for number in range(16)]


async def test_a_frozen_peer_does_not_hold_the_end_of_a_finished_job(serve: Serve) -> None:
    """Closing takes disconnect_timeout_s at most when the peer does not answer."""
    handle = await serve(playing(ServerWebSocket.silence))
    async with adapter_to(handle.url, WebSocketLimits(disconnect_timeout_s=0.2)) as adapter:
        async with adapter.connect("/"):
            began = trio.current_time()
        assert trio.current_time() - began < 5


async def test_a_healthy_peer_accepts_and_answers_a_ping(serve: Serve) -> None:
    """Health is the handshake and a pong."""

    async def receive(socket: ServerWebSocket) -> None:
        await socket.receive()

    handle = await serve(playing(receive))
    async with adapter_to(handle.url) as adapter:
        report = await adapter.health("/ws")
    assert report.healthy
    assert report.latency_s < math.inf


async def test_leaving_by_cancellation_is_noticed_by_the_peer(serve: Serve) -> None:
    """A cancelled user cuts the connection; the peer's receive ends, whatever it was doing."""
    ends_in, ends = trio.open_memory_channel[int](2)

    async def note(socket: ServerWebSocket) -> None:
        try:
            await socket.receive()
        except WebSocketEnded as ended:
            ends_in.send_nowait(ended.code)

    handle = await serve(playing(note))
    async with adapter_to(handle.url) as adapter:
        with trio.move_on_after(0.2):
            async with adapter.connect("/") as link:
                await link.receive()
        assert await ends.receive() == 1006
        async with adapter.connect("/"):
            pass
        assert await ends.receive() == 1000


@pytest.mark.limit_s(120)
async def test_a_thousand_cancels_leak_nothing(serve: Serve) -> None:
    """However users are cancelled, at any moment, no slot, socket or task stays behind, and the next one is served."""
    handle = await serve(playing(echo))
    dice = random.Random(7)
    before = trio.lowlevel.current_statistics().tasks_living

    async def use(adapter: WebSocketAdapter, after_s: float) -> None:
        with trio.move_on_after(after_s):
            async with adapter.connect("/") as link:
                await link.send("x" * 2000)
                await link.receive()
                await link.receive()

    limits = WebSocketLimits(queue_timeout_s=60, connect_timeout_s=60, ping_timeout_s=60)
    adapter = WebSocketAdapter(Endpoint.parse(handle.url), limits=limits)
    async with adapter, trio.open_nursery() as users:
        for _ in range(1000):
            users.start_soon(use, adapter, dice.uniform(0, 1.0))
    assert adapter.statistics().connections == 0
    assert 0 < adapter.statistics().connects < 1000
    with trio.fail_after(PATIENCE_S):
        while handle.statistics.connections or trio.lowlevel.current_statistics().tasks_living > before:
            await trio.testing.wait_all_tasks_blocked()
    async with adapter_to(handle.url) as again, again.connect("/") as link:
        await link.send("still")
        assert await link.receive() == "still"


async def test_closing_the_adapter_ends_its_connections(serve: Serve) -> None:
    """aclose cuts what is open; its user gets a fault, and nothing new opens."""
    handle = await serve(playing(echo))
    adapter = WebSocketAdapter(Endpoint.parse(handle.url))
    with trio.fail_after(PATIENCE_S):

        async def cut(link: WebSocket) -> None:
            await adapter.aclose()
            await link.receive()

        assert type(await fault_of(adapter, cut)) is PeerClosed
        assert type(await fault_of(adapter)) is InvalidRequest


async def test_an_exception_of_the_user_comes_out_as_it_is(serve: Serve) -> None:
    """What the block raises is not wrapped in a group, and the connection is cut."""
    handle = await serve(playing(echo))
    async with adapter_to(handle.url) as adapter:
        with pytest.raises(ZeroDivisionError):
            async with adapter.connect("/"):
                raise ZeroDivisionError
