"""Whatever a peer puts on the wire, a WebSocket ends in one typed fault, in bounded time, and leaves nothing open."""

from __future__ import annotations

import base64
import re
from collections.abc import Awaitable, Callable

import h11
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st
from wsproto.connection import Connection, ConnectionType
from wsproto.events import BytesMessage, CloseConnection, Ping, TextMessage
from wsproto.utilities import generate_accept_token

from protocols.base import Endpoint
from protocols.conflate import Frame
from protocols.errors import ProtocolError
from protocols.http_responder import Responder, ServerRequest
from protocols.http_server import serve_stream
from protocols.websocket import WebSocketAdapter
from protocols.websocket_link import WebSocketLimits
from protocols.websocket_server import WebSocketEnded, accept_websocket

LIMITS = WebSocketLimits(
    connect_timeout_s=2, ping_every_s=2, ping_timeout_s=1, inactivity_s=30, message_bytes_max=5_000
)
#: Longer than all bounds above together, in virtual time.
BOUND_S = 60.0


def frames() -> bytes:
    """A valid conversation of a server."""
    server = Connection(ConnectionType.SERVER)
    return b"".join(
        server.send(event)
        for event in (
            TextMessage(data="hello"),
            TextMessage(data="part", message_finished=False),
            Ping(payload=b"beat"),
            TextMessage(data="ed"),
            BytesMessage(data=b"x" * 300),
            CloseConnection(code=1000, reason="bye"),
        )
    )


VALID = frames()


@st.composite
def damaged(draw: st.DrawFn, whole: bytes) -> list[bytes]:
    """The bytes cut, overwritten, or with more between, in pieces of any size."""
    data = bytearray(whole)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        new = draw(st.binary(max_size=8))
        data[at : at + draw(st.sampled_from([0, len(new), 3]))] = new
    del data[draw(st.integers(0, len(data))) if draw(st.booleans()) else len(data) :]
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=4)))
    return [bytes(data[a:b]) for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True) if b > a]


async def converse(peer: Callable[[trio.abc.Stream], Awaitable[None]]) -> tuple[list[Frame], ProtocolError]:
    """Connect to a peer and receive until the fault."""
    received: list[Frame] = []
    streams: list[trio.testing.MemoryReceiveStream] = []
    fault: ProtocolError | None = None
    async with trio.open_nursery() as nursery:

        async def open_stream(_host: str, _port: int) -> trio.abc.Stream:
            ours, theirs = trio.testing.memory_stream_pair()
            streams.append(ours.receive_stream)
            nursery.start_soon(peer, theirs)
            return ours

        adapter = WebSocketAdapter(Endpoint.parse("ws://peer:1"), open_stream=open_stream, limits=LIMITS)
        with trio.fail_after(BOUND_S):
            try:
                async with adapter.connect("/") as link:
                    while True:
                        received.append(await link.receive())
            except ProtocolError as exc:
                fault = exc
        assert adapter.statistics().connections == 0
        nursery.cancel_scope.cancel()
    assert fault is not None
    for stream in streams:
        with pytest.raises(trio.ClosedResourceError):
            await stream.receive_some(1)
    return received, fault


def run(peer: Callable[[trio.abc.Stream], Awaitable[None]]) -> tuple[list[Frame], ProtocolError]:
    return trio.run(converse, peer, clock=trio.testing.MockClock(autojump_threshold=0))


async def say(stream: trio.abc.Stream, pieces: list[bytes], *, leave: bool) -> None:
    """Send what can be sent, then leave or stay silent."""
    try:
        for piece in pieces:
            await stream.send_all(piece)
        if leave:
            await stream.aclose()
        await trio.sleep_forever()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return


@given(damaged(VALID), st.booleans(), st.random_module())
def test_damaged_frames(pieces: list[bytes], leave: bool, schedule: object) -> None:
    """After a good handshake any bytes at all lead to messages and then one fault."""

    async def peer(stream: trio.abc.Stream) -> None:
        head = bytes(await stream.receive_some(10_000))
        key = re.search(rb"(?i)sec-websocket-key: (\S+)", head)
        assert key is not None
        accept = generate_accept_token(key[1])
        await say(
            stream,
            [
                b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
                b"sec-websocket-accept: " + accept + b"\r\n\r\n",
                *pieces,
            ],
            leave=leave,
        )

    received, _fault = run(peer)
    if b"".join(pieces) == VALID:
        whole = ["hello", "parted", b"x" * 300]
        # What a peer sent before it left may be lost behind a pong that cannot be delivered.
        assert received == (whole[: len(received)] if leave else whole)


ANSWER = (
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
    b"sec-websocket-accept: " + base64.b64encode(bytes(20)) + b"\r\n\r\n"
)
REFUSAL = b"HTTP/1.1 503 Busy\r\nretry-after: 3\r\ncontent-length: 20\r\n\r\n" + b"x" * 20


@given(st.sampled_from([ANSWER, REFUSAL]).flatmap(damaged), st.booleans(), st.random_module())
def test_damaged_handshakes(pieces: list[bytes], leave: bool, schedule: object) -> None:
    """Whatever answers a handshake, it ends in a fault that leaves no outcome unknown."""

    async def peer(stream: trio.abc.Stream) -> None:
        await say(stream, pieces, leave=leave)

    received, fault = run(peer)
    assert received == []
    assert not fault.outcome_unknown


def client_bytes() -> tuple[bytes, bytes]:
    """A valid handshake and a valid conversation of a client."""
    parser = h11.Connection(h11.CLIENT)
    headers = [
        ("host", "x"),
        ("upgrade", "websocket"),
        ("connection", "Upgrade"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", base64.b64encode(bytes(16)).decode()),
    ]
    head = parser.send(h11.Request(method="GET", target="/ws", headers=headers)) or b""
    client = Connection(ConnectionType.CLIENT)
    events = (
        TextMessage(data="a", message_finished=False),
        TextMessage(data="b"),
        Ping(payload=b"beat"),
        BytesMessage(data=b"\x00" * 200),
        CloseConnection(code=1000),
    )
    return head, b"".join(client.send(event) for event in events)


HANDSHAKE, TALK = client_bytes()


@given(
    st.one_of(damaged(HANDSHAKE + TALK), damaged(TALK).map(lambda pieces: [HANDSHAKE, *pieces])),
    st.random_module(),
)
def test_the_server_survives_damaged_clients(pieces: list[bytes], schedule: object) -> None:
    """Whatever a client sends, the handler gets messages and one end, and the connection closes."""
    received: list[Frame] = []
    ends: list[str] = []

    async def handle(request: ServerRequest, responder: Responder) -> None:
        socket = await accept_websocket(request, responder)
        if socket is None:
            return
        try:
            while True:
                received.append(await socket.receive())
        except WebSocketEnded:
            ends.append(request.path)

    async def main() -> None:
        ours, theirs = trio.testing.memory_stream_pair()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_stream, handle, theirs)
            await say_all(ours, pieces)

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    if b"".join(pieces) == HANDSHAKE + TALK:
        assert ends == ["/ws"]
        assert received == ["ab", b"\x00" * 200]


async def say_all(stream: trio.abc.Stream, pieces: list[bytes]) -> None:
    """Send everything, read what comes, and leave."""
    try:
        for piece in pieces:
            await stream.send_all(piece)
        with trio.move_on_after(5):
            while await stream.receive_some(10_000):
                pass
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    await stream.aclose()
