"""The clock and the network of a simulated world: moments, orders, and what a reader of a connection sees."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from simulator.network import LinkFaults, Network, Node, SimStream
from simulator.run import deterministic_scheduler
from simulator.timetable import timetable

moments = st.lists(st.integers(0, 20), max_size=12)


def virtually(check: Callable[..., Awaitable[Any]], *args: Any, seed: int = 0) -> Any:
    with deterministic_scheduler(seed):
        return trio.run(check, *args, clock=trio.testing.MockClock(autojump_threshold=0))


@given(calls=moments, sleeps=moments, seed=st.integers(0, 2**32))
def test_everything_happens_at_its_moment(calls: list[int], sleeps: list[int], seed: int) -> None:
    """Calls and sleeping tasks meet their moments exactly, calls of a moment in the order in which they were made."""

    async def check() -> None:
        happened: list[tuple[float, str, int]] = []
        table = timetable()

        async def sleeper(number: int, at_s: int) -> None:
            await trio.sleep_until(at_s)
            happened.append((trio.current_time(), "sleep", number))

        def made(number: int) -> Callable[[], None]:
            return lambda: happened.append((trio.current_time(), "call", number))

        async with trio.open_nursery() as nursery:
            for number, at_s in enumerate(sleeps):
                nursery.start_soon(sleeper, number, at_s)
            for number, at_s in enumerate(calls):
                table.call_at(at_s, made(number))
            nursery.start_soon(trio.sleep_until, 30)
        assert trio.current_time() == 30
        assert [at_s for at_s, _kind, _number in happened] == sorted(calls + sleeps)
        assert all(at_s == (calls if kind == "call" else sleeps)[number] for at_s, kind, number in happened)
        told = [number for _at_s, kind, number in happened if kind == "call"]
        assert told == sorted(range(len(calls)), key=lambda number: (calls[number], number))

    virtually(check, seed=seed)


def test_a_call_may_make_calls_and_wake_tasks() -> None:
    """A call for a past moment happens as soon as no task can run, without time passing."""

    async def check() -> None:
        table, woken = timetable(), trio.Event()
        assert timetable() is table
        table.call_at(1.0, lambda: table.call_at(0.5, woken.set))
        await woken.wait()
        assert trio.current_time() == 1.0

    virtually(check)


def test_real_time_is_refused() -> None:
    """Arrivals would wait for a clock that does not ask for them."""

    async def check() -> None:
        with pytest.raises(TypeError, match="MockClock"):
            timetable()

    trio.run(check)


async def connected(nursery: trio.Nursery) -> tuple[SimStream, SimStream]:
    """Both ends of one connection; chunks take a second."""
    network = Network(
        lambda label: random.Random(label),
        default=LinkFaults(delay_min_s=1.0, delay_max_s=1.0),
        on_fault=lambda *_what: None,
        on_ghost=lambda: None,
    )
    ends: list[SimStream] = []
    over = trio.Event()

    async def keep(stream: SimStream) -> None:
        ends.append(stream)
        await over.wait()

    network.listen("server", 1, Node("server"), keep, nursery)
    near = await network.connect(Node("client"), "server", 1)
    await trio.sleep(0.1)
    nursery.start_soon(trio.sleep_until, 1_000)
    return near, ends[0]


def in_a_connection(check: Callable[[SimStream, SimStream], Awaitable[None]]) -> None:
    async def run() -> None:
        async with trio.open_nursery() as nursery:
            near, far = await connected(nursery)
            await check(near, far)
            nursery.cancel_scope.cancel()

    virtually(run)


def test_bytes_arrive_in_order_and_on_time() -> None:
    """A chunk may be read in pieces, what is left of it comes before the next; the end of file stays."""

    async def check(near: SimStream, far: SimStream) -> None:
        began_s = trio.current_time()
        await near.send_all(b"abc")
        await near.send_all(b"def")
        await near.aclose()
        assert not far.is_readable()
        assert await far.receive_some(2) == b"ab"
        assert trio.current_time() == began_s + 1.0
        assert far.is_readable()
        assert [await far.receive_some() for _ in range(4)] == [b"c", b"def", b"", b""]

    in_a_connection(check)


def test_a_cancelled_reader_loses_nothing() -> None:
    """Who waited and left takes nothing along; a second reader at once is a bug of its program."""

    async def check(near: SimStream, far: SimStream) -> None:
        with trio.move_on_after(0.5):
            await far.receive_some()
        await near.send_all(b"late")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(far.receive_some)
            await trio.sleep(0.1)
            with pytest.raises(trio.BusyResourceError):
                await far.receive_some()
            nursery.cancel_scope.cancel()
        assert await far.receive_some() == b"late"

    in_a_connection(check)


def test_a_reset_loses_what_was_not_read() -> None:
    """As a kernel does: bytes that waited are gone with the connection."""

    async def check(near: SimStream, far: SimStream) -> None:
        await near.send_all(b"unread")
        await trio.sleep(2.0)
        near.vanish()
        await trio.sleep(2.0)
        with pytest.raises(trio.BrokenResourceError):
            await far.receive_some()

    in_a_connection(check)


def test_pouring_needs_no_reader() -> None:
    """Bytes reach the function at the moment of their arrival; what it raises ends the pouring, and so does the end."""

    async def check(near: SimStream, far: SimStream) -> None:
        poured: list[tuple[float, bytes]] = []

        def sink(data: bytes) -> None:
            poured.append((trio.current_time(), data))
            far.send_now(data.upper())
            if data == b"bad":
                raise ValueError("not this one")

        async def send() -> None:
            for data in (b"one", b"two", b"bad"):
                await near.send_all(data)
                await trio.sleep(1.0)

        began_s = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            with pytest.raises(ValueError, match="not this one"):
                await far.pour(sink)
        assert [(round(at_s - began_s, 9), data) for at_s, data in poured] == [
            (1, b"one"),
            (2, b"two"),
            (3, b"bad"),
        ]
        assert await near.receive_some() == b"ONE"
        await near.aclose()
        await far.pour(sink)
        far.vanish()
        far.send_now(b"nobody hears this")
        with pytest.raises(trio.ClosedResourceError):
            await far.pour(sink)

    in_a_connection(check)
