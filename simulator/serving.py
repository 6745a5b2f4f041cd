"""Serving several simulated instances on real sockets until a signal: what ``simulator serve`` does."""

from __future__ import annotations

import errno
import functools
import platform
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, cast

import msgspec
import trio

from gateway.connectors.simulation.wire import JournalEntry, encode
from gateway.errors import GatewayError
from simulator.dialects.catalogue import Dialect, Listening, Twin
from simulator.faults import FaultPlan
from simulator.model import ServiceConfig
from simulator.registering import Registrations, Registry, announcements
from simulator.seeding import streams
from simulator.services.control import Odd, serve_control

PORT_MAX = 65_535


class StartError(Exception):
    """The fleet cannot start: a port is taken, an address is not ours, or the journal cannot be written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What to serve.

    Attributes:
        dialects: what is spoken; each by so many ``instances``.
        base_port: port of the first instance of all, the others follow; 0 for free ones. None: each dialect begins at
            the port where such services listen.
        name: the instances are called ``NAME-0`` and so on; empty: after their dialects.
        duration_s: how long a job takes that does not say, seconds.
        registry: where the instances are registered; None for nowhere.
        models: what each instance says it has.
    """

    dialects: tuple[Dialect, ...]
    instances: int
    base_port: int | None
    host: str
    name: str
    seed: int
    plan: FaultPlan
    slots: int
    duration_s: float
    registry: Registry | None = None
    models: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ready:
    """One listening instance; ``control_url`` is where it is steered and its journal is read, over HTTP."""

    instance: str
    dialect: str
    protocol: str
    host: str
    port: int
    url: str
    control_url: str


@dataclass(frozen=True, slots=True)
class Place:
    """One instance before it listens: which dialect, under which name, on which port (0: a free one)."""

    dialect: Dialect
    instance: str
    port: int


def places(fleet: Fleet) -> list[Place]:
    """All instances of a fleet, in the order of their dialects.

    Raises:
        StartError: there are not enough ports, or two instances would have one.
    """
    found: list[Place] = []
    for dialect in fleet.dialects:
        for index in range(fleet.instances):
            number = len(found) if fleet.name else index
            port = dialect.port + index if fleet.base_port is None else fleet.base_port + len(found)
            name = fleet.name or dialect.instance_name
            found.append(Place(dialect, f"{name}-{number}", port if fleet.base_port != 0 else 0))
    taken: dict[int, str] = {}
    for place in found:
        if place.port > PORT_MAX:
            raise StartError(f"--base-port {found[0].port} leaves no ports for {len(found)} instances")
        if place.port and place.port in taken:
            raise StartError(
                f"port {place.port} is wanted by {taken[place.port]} and by {place.instance}; name a --base-port"
            )
        taken[place.port] = place.instance
    return found


class JournalFile:
    """Appends journal entries to a file, one JSON object per line, each written out at once.

    Args:
        path: the file; None writes nowhere.

    Raises:
        StartError: on entering, when the file cannot be opened.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Callable[[str, JournalEntry], None] | None:
        if self._path is None:
            return None
        try:
            # Unbuffered: another process may read the file while this one runs, or after it was killed.
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise StartError(f"cannot write the journal {self._path}: {error.strerror}") from error
        return self._write

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, instance: str, entry: JournalEntry) -> None:
        if self._file is not None:
            self._file.write(b'{"instance":%b,' % msgspec.json.encode(instance) + encode(entry)[1:] + b"\n")


def serve_fleet(
    fleet: Fleet, sink: Callable[[str, JournalEntry], None] | None, on_ready: Callable[[list[Ready]], None]
) -> None:
    """Serve until SIGTERM or SIGINT, then return; blocks.

    Args:
        fleet: what to serve.
        sink: called with (instance, entry) for each new journal entry.
        on_ready: called once, when all instances listen.

    Raises:
        StartError: an instance cannot listen; none is left listening.
    """
    trio.run(_serve, fleet, sink, on_ready)


async def _serve(
    fleet: Fleet, sink: Callable[[str, JournalEntry], None] | None, on_ready: Callable[[list[Ready]], None]
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        try:
            async with trio.open_nursery() as nursery:
                ready = [await _start(nursery, fleet, place, sink) for place in places(fleet)]
                registrations = await _announce(nursery, fleet, ready)
                on_ready(ready)
                async for _signal in signals:
                    if registrations is not None:
                        await registrations.sign_off()
                    nursery.cancel_scope.cancel()
                    break
        except* StartError as group:
            raise _first(group) from None


async def _announce(nursery: trio.Nursery, fleet: Fleet, ready: list[Ready]) -> Registrations | None:
    """Register all instances; returns once gateways can find them."""
    if fleet.registry is None:
        return None
    connectors = {dialect.name: dialect.connectors for dialect in fleet.dialects}
    announced = [
        announcement
        for one in ready
        for announcement in announcements(one.instance, one.url, platform.node(), connectors[one.dialect])
    ]
    registrations = Registrations(fleet.registry, announced)
    try:
        await nursery.start(registrations.run)
    except* GatewayError as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        raise StartError(f"cannot register the instances: {error}") from None
    return registrations


def _first(group: BaseExceptionGroup[StartError]) -> StartError:
    """The one error to show; a start stops at the first."""
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


async def _start(
    nursery: trio.Nursery, fleet: Fleet, place: Place, sink: Callable[[str, JournalEntry], None] | None
) -> Ready:
    """Start one instance; returns when it listens."""
    instance, dialect = place.instance, place.dialect
    try:
        config = ServiceConfig(
            instance=instance, slots=fleet.slots, duration_s=fleet.duration_s, models=fleet.models
        )
        make = dialect.load_twin()
    except ValueError as error:
        raise StartError(str(error)) from error
    twin: Twin = make(
        config,
        fleet.plan,
        random_for=streams(fleet.seed, instance),
        sink=None if sink is None else functools.partial(sink, instance),
    )
    try:
        handle: Listening = await nursery.start(functools.partial(twin.run, host=fleet.host, port=place.port))
        control: Listening = handle
        if not dialect.steered:
            odd = cast(Odd, twin) if hasattr(twin, "set_oddities") else None
            control = await nursery.start(
                functools.partial(serve_control, twin.shell, host=fleet.host, odd=odd)
            )
    except* OSError as group:
        raise StartError(_why_not(fleet.host, place.port, group)) from None
    control_url = f"http://{control.url.partition('://')[2]}"
    return Ready(instance, dialect.name, dialect.scheme, handle.host, handle.port, handle.url, control_url)


def _why_not(host: str, port: int, group: BaseExceptionGroup[OSError]) -> str:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return f"port {port} on {host} is taken; choose another --base-port, or 0 for free ones"
    return f"cannot listen on {host} port {port}: {error}"
