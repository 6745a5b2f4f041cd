"""The simulated gRPC channel: what happens to a connection is what a caller is told, and what reaches the handler."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from protocols.base import Endpoint
from protocols.grpc_channel import CallEnded, ChannelSettings, Code
from protocols.grpc_service import CallHandler, IncomingCall
from simulator.network import LinkFaults, Network, Node, SimStream
from simulator.run import deterministic_scheduler
from simulator.services.grpc_wire import WiredChannel, serve_calls

HERE = Endpoint(scheme="grpc", host="service", port=1)
BYTES_MAX = 1000


class Stage:
    """A channel and a served handler, a tenth of a second apart."""

    def __init__(self, handler: CallHandler, nursery: trio.Nursery) -> None:
        self.network = Network(
            lambda label: random.Random(label),
            default=LinkFaults(delay_min_s=0.1, delay_max_s=0.1),
            on_fault=lambda *_what: None,
            on_ghost=lambda: None,
        )
        self.gateway, self.service = Node("gateway"), Node("service")
        self.connections = 0

        async def serve(stream: SimStream) -> None:
            self.connections += 1
            await serve_calls(handler, stream, request_bytes_max=BYTES_MAX)

        async def open_stream(host: str, port: int) -> trio.abc.Stream:
            return await self.network.connect(self.gateway, host, port)

        self.network.listen(HERE.host, HERE.port, self.service, serve, nursery)
        settings = ChannelSettings(response_bytes_max=BYTES_MAX, streams_max=4, reconnect_s=1.0)
        self.channel = WiredChannel(HERE, settings, open_stream)

    async def call(self, request: bytes = b"?", *, timeout_s: float = 10.0) -> bytes:
        await self.channel.connect()
        return await self.channel.unary("/a.B/C", request, metadata=[("k", "v")], timeout_s=timeout_s)

    def break_all(self) -> None:
        """Reset every connection from the service's side."""
        for stream in list(self.service.streams):
            stream.vanish()


def staged(handler: CallHandler, check: Callable[[Stage, trio.Nursery], Awaitable[None]]) -> None:
    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 10_000)
            stage = Stage(handler, nursery)
            await check(stage, nursery)
            await stage.channel.aclose()
            assert not stage.gateway.streams, "a connection was left open"
            nursery.cancel_scope.cancel()

    with deterministic_scheduler(0):
        trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))


async def echo(call: IncomingCall) -> None:
    assert call.metadata == {"k": "v"}
    await call.send(call.request + b"!")


def ending(code: Code) -> Any:
    """The context of a call that must end with this status."""
    return pytest.raises(CallEnded, check=lambda ended: ended.code is code)


def test_calls_one_after_the_other_share_a_connection() -> None:
    """A connection whose call ended well carries the next one; one that broke while it waited is not used again."""

    async def check(stage: Stage, _nursery: trio.Nursery) -> None:
        assert [await stage.call(b"%d" % number) for number in range(3)] == [b"0!", b"1!", b"2!"]
        assert stage.connections == 1
        stage.break_all()
        await trio.sleep(1.0)
        assert await stage.call() == b"?!"
        assert stage.connections == 2

    staged(echo, check)


def test_a_deadline_is_kept_when_nobody_answers() -> None:
    """The caller's own clock ends a call into a partition, and the handler never sees more time than that."""
    left: list[float | None] = []

    async def handler(call: IncomingCall) -> None:
        left.append(call.time_left_s)
        await trio.sleep_forever()

    async def check(stage: Stage, _nursery: trio.Nursery) -> None:
        began_s = trio.current_time()
        with ending(Code.DEADLINE_EXCEEDED):
            await stage.call(timeout_s=3.0)
        assert trio.current_time() - began_s == pytest.approx(3.2)
        await stage.channel.connect()
        stage.network.cut("gateway", "service")
        with ending(Code.DEADLINE_EXCEEDED):
            await stage.channel.unary("/a.B/C", b"", metadata=[], timeout_s=3.0)
        assert left == [3.0]

    staged(handler, check)


def test_a_connection_that_breaks_is_unavailable() -> None:
    """In the middle of a call, and between two when nobody listens any more."""

    async def handler(call: IncomingCall) -> None:
        await call.send(b"the first of many")
        await trio.sleep_forever()

    async def check(stage: Stage, nursery: trio.Nursery) -> None:
        async def fail() -> None:
            await trio.sleep(2.0)
            stage.network.unlisten(HERE.host, HERE.port)
            stage.break_all()

        nursery.start_soon(fail)
        with ending(Code.UNAVAILABLE):
            async with stage.channel.stream("/a.B/C", b"", metadata=[], timeout_s=60.0) as replies:
                assert await replies.receive() == b"the first of many"
                await replies.receive()
        with pytest.raises(ConnectionRefusedError):
            await stage.channel.connect()
        with ending(Code.UNAVAILABLE):
            async with stage.channel.stream("/a.B/C", b"", metadata=[], timeout_s=60.0):
                pass

    staged(handler, check)


@pytest.mark.parametrize("leaves", ["cancelled", "closed"])
def test_who_leaves_ends_the_handler(leaves: str) -> None:
    """A cancelled caller, and one whose channel is closed, are gone for the handler too, a link's delay later."""
    ended_s: list[float] = []

    async def handler(_call: IncomingCall) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended_s.append(trio.current_time())

    async def check(stage: Stage, nursery: trio.Nursery) -> None:
        async def call() -> None:
            if leaves == "closed":
                with ending(Code.CANCELLED):
                    await stage.call()
            else:
                await stage.call()

        async with trio.open_nursery() as calls:
            calls.start_soon(call)
            await trio.sleep(2.0)
            left_s = trio.current_time()
            if leaves == "closed":
                await stage.channel.aclose()
            else:
                calls.cancel_scope.cancel()
        await trio.sleep(1.0)
        assert ended_s == [pytest.approx(left_s + 0.1)]

    staged(handler, check)


@pytest.mark.parametrize(("request_bytes", "answer_bytes"), [(BYTES_MAX + 1, 1), (1, BYTES_MAX + 1)])
def test_messages_have_a_bound(request_bytes: int, answer_bytes: int) -> None:
    """A message beyond the receiver's bound ends the call, in either direction; the channel goes on."""

    async def handler(call: IncomingCall) -> None:
        await call.send(b"x" * answer_bytes if len(call.request) < BYTES_MAX else b"taken")

    async def check(stage: Stage, _nursery: trio.Nursery) -> None:
        with ending(Code.RESOURCE_EXHAUSTED):
            await stage.call(b"x" * request_bytes)
        assert await stage.call(b"x" * BYTES_MAX) == b"taken"

    staged(handler, check)


def test_a_status_travels_with_its_metadata() -> None:
    """Text and bytes in the trailing metadata arrive as they were, and so does a missing answer."""
    metadata: dict[str, str | bytes] = {"retry-after": "3", "detail-bin": b"\x00\xff"}

    async def handler(call: IncomingCall) -> None:
        if call.request == b"refuse":
            raise CallEnded(Code.FAILED_PRECONDITION, "not now", metadata)

    async def check(stage: Stage, _nursery: trio.Nursery) -> None:
        with pytest.raises(CallEnded) as caught:
            await stage.call(b"refuse")
        ended = caught.value
        assert (ended.code, ended.details, ended.metadata) == (
            Code.FAILED_PRECONDITION,
            "not now",
            metadata,
        )
        with ending(Code.INTERNAL):
            await stage.call(b"say nothing")

    staged(handler, check)
