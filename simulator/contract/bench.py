"""The bench a case works on: one connector, one twin, jobs that remember, and the twin's journal."""

from __future__ import annotations

import enum
import functools
import random as random_module
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import trio
import trio.testing

from gateway.config import RunnerConfig
from gateway.connector import Connector, ConnectorCapabilities, ConnectorSetup, JobResult
from gateway.connectors.simulation.wire import (
    FailureWish,
    JournalEntry,
    JournalEvent,
    JournalSummary,
    WorkPayload,
)
from gateway.errors import FaultClass, JobFault
from gateway.models import JobSpec
from protocols.base import Endpoint, OpenStream, open_tcp
from simulator.contract.recorder import RecordingJob, routing_headers
from simulator.dialects.catalogue import Dialect, StreamTwin, Twin
from simulator.faults import FaultPlan
from simulator.model import ServiceConfig
from simulator.network import LinkFaults, Network, Node
from simulator.seeding import streams

AnswerT = TypeVar("AnswerT")

INSTANCE = "twin-0"
HOST = "127.0.0.1"
#: Absolute limit of one case: virtual seconds where time jumps, else seconds.
LIMIT_S_VIRTUAL = 7_200.0
LIMIT_S_REAL = 60.0
#: One unit of a case's time in seconds: cases count in units, so that they can run in real time as well.
UNIT_S_VIRTUAL = 1.0
UNIT_S_REAL = 0.25
#: A connector that needs more units than this to notice something has not noticed it.
PATIENCE_UNITS = 120.0
#: How long the runner gives a connector to stop its work at the service, seconds: what it does by default.
CANCEL_TIMEOUT_S = RunnerConfig().cancel_timeout_s
#: The same in real time, where a busy machine may be slow, seconds.
CANCEL_TIMEOUT_S_REAL = 10.0
#: What a job of a case may take at most, so that no case succeeds by its own deadline.
TIMEOUT_S = 3_600.0
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
WORKER = "machine/contract-gpu0"
_ENDED = frozenset(
    {JournalEvent.FINISHED, JournalEvent.FAILED, JournalEvent.CANCELLED, JournalEvent.FORGOTTEN}
)


class End(enum.Enum):
    """How a run ended."""

    RESULT = "result"
    FAULT = "fault"
    STOPPED = "stopped"


@dataclass(slots=True)
class Attempt:
    """One run of a job in the background."""

    job: RecordingJob
    connector: Connector
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: trio.Event = field(default_factory=trio.Event)
    end: End | None = None
    result: JobResult | None = None
    fault: JobFault | None = None
    elapsed_s: float = 0.0

    def value(self) -> Any:
        """The result's value; for a run that had to succeed."""
        assert self.end is End.RESULT, f"no result, but {self.described()}"
        assert self.result is not None
        return self.result.value

    def failed(self, *classes: FaultClass) -> JobFault:
        """The fault; for a run that had to fail, with one of these classes when any are named."""
        assert self.end is End.FAULT, f"no fault, but {self.described()}"
        assert self.fault is not None
        wanted = ", ".join(classes)
        assert not classes or self.fault.fault_class in classes, f"not {wanted}, but {self.described()}"
        return self.fault

    def described(self) -> str:
        """How it ended, in words."""
        if self.end is End.FAULT and self.fault is not None:
            return f"{self.fault.fault_class.value}: {self.fault}"
        if self.end is End.RESULT and self.result is not None:
            return f"the result {str(self.result.value)[:200]!r}"
        return "stopped from outside" if self.end is End.STOPPED else "still running"


class Bench:
    """One connector key against one fresh twin.

    Args:
        dialect: what is spoken.
        key: the connector's key.
        make: the connector's class.
        twin: the running twin.
        endpoint: its address.
        open_stream: how connectors reach it.
        nursery: runs attempts in the background.
        seed: of everything random.

    Attributes:
        unit_s: one unit of time; a case says "two units of work", not how many seconds these are.
        cancel_timeout_s: how long stopping work at the service, and closing, may take.
    """

    def __init__(
        self,
        dialect: Dialect,
        make: type[Connector],
        twin: Twin,
        endpoint: Endpoint,
        open_stream: OpenStream,
        nursery: trio.Nursery,
        seed: int,
    ) -> None:
        self.dialect = dialect
        self.twin = twin
        self.endpoint = endpoint
        self.unit_s = UNIT_S_VIRTUAL if dialect.streams else UNIT_S_REAL
        self.cancel_timeout_s = CANCEL_TIMEOUT_S if dialect.streams else CANCEL_TIMEOUT_S_REAL
        self._make = make
        self._open_stream = open_stream
        self._nursery = nursery
        self._seed = seed
        self._made: list[Connector] = []
        self._attempts: list[Attempt] = []
        self._jobs = 0

    @property
    def capabilities(self) -> ConnectorCapabilities:
        """What the connector declares."""
        return self._make.capabilities

    @property
    def patience_s(self) -> float:
        """How long noticing something may take, far less than a job's own time."""
        return PATIENCE_UNITS * self.unit_s

    def connector(self, **options: Any) -> Connector:
        """A fresh instance, as after a start of the gateway; closed at the end of the case."""
        return self._connector(self.endpoint, {**self.dialect.options, **options})

    def _connector(self, endpoint: Endpoint, options: Mapping[str, Any]) -> Connector:
        setup = ConnectorSetup(
            endpoint=endpoint,
            open_stream=self._open_stream,
            random=random_module.Random(f"{self._seed}/connector/{len(self._made)}"),
            now_s=trio.current_time,
            options=options,
        )
        made = self._make(setup)
        self._made.append(made)
        return made

    def stray_connector(self) -> Connector:
        """A connector for a port where nobody listens."""
        endpoint = Endpoint(scheme=self.dialect.scheme, host=HOST, port=1)
        return self._connector(endpoint, self.dialect.options)

    def faults(self, **knobs: Any) -> None:
        """Turn knobs of the twin."""
        self.twin.shell.set_faults(knobs)

    def heal(self) -> None:
        """A twin without faults."""
        self.twin.shell.set_faults(FaultPlan.none().to_mapping())

    def job(
        self,
        *,
        units: float = 0.5,
        chunks: int = 0,
        steps: int = 4,
        result: Any = None,
        fail: FailureWish | None = None,
        reference: str = "",
    ) -> RecordingJob:
        """A job whose work takes so many units of time."""
        self._jobs += 1
        work = WorkPayload(
            duration_s=units * self.unit_s, steps=steps, result=result, fail=fail, chunks=chunks
        )
        spec = JobSpec(
            service=self._make.service, payload=self.dialect.payload_for(work), timeout_s=TIMEOUT_S
        )
        headers = routing_headers(
            worker=WORKER, epoch=self._jobs, endpoint=self.endpoint.url, traceparent=TRACEPARENT
        )
        return RecordingJob(
            spec, job_id=f"job-{self._jobs}", epoch=self._jobs, reference=reference, headers=headers
        )

    async def run(self, connector: Connector, job: RecordingJob, *, resume: bool = False) -> Attempt:
        """Run a job to its end, which comes by itself within the bench's patience."""
        attempt = self.start(connector, job, resume=resume)
        await self.end_of(attempt)
        return attempt

    def start(self, connector: Connector, job: RecordingJob, *, resume: bool = False) -> Attempt:
        """Run a job in the background."""
        attempt = Attempt(job, connector)
        self._attempts.append(attempt)
        self._nursery.start_soon(self._attempt, attempt, connector.resume if resume else connector.run)
        return attempt

    async def end_of(self, attempt: Attempt) -> None:
        """Wait until an attempt has ended by itself."""
        with trio.move_on_after(self.patience_s) as scope:
            await attempt.ended.wait()
        assert not scope.cancelled_caught, f"nothing was noticed within {self.patience_s:g} s"

    async def _attempt(self, attempt: Attempt, perform: Callable[[RecordingJob], Any]) -> None:
        begun_s = trio.current_time()
        try:
            with attempt.scope:
                try:
                    attempt.result = await perform(attempt.job)
                    attempt.end = End.RESULT
                except JobFault as fault:
                    attempt.fault, attempt.end = fault, End.FAULT
            if attempt.end is None:
                attempt.end = End.STOPPED
        finally:
            attempt.elapsed_s = trio.current_time() - begun_s
            attempt.ended.set()

    async def stop(self, attempt: Attempt) -> None:
        """End an attempt as the runner does for a deadline or a cancel: its scope, then its work at the service."""
        await self.crash(attempt)
        if self.capabilities.cancel:
            with trio.move_on_after(self.cancel_timeout_s) as scope:
                await attempt.connector.cancel(attempt.job.reference)
            assert not scope.cancelled_caught, f"cancel took longer than {self.cancel_timeout_s:g} s"

    async def crash(self, attempt: Attempt) -> None:
        """End an attempt as the death of its process does: nothing is said to the service."""
        attempt.scope.cancel()
        with trio.move_on_after(self.cancel_timeout_s) as scope:
            await attempt.ended.wait()
        assert not scope.cancelled_caught, "run() does not end when it is cancelled"

    async def units(self, count: float) -> None:
        """Let so many units of time pass."""
        await trio.sleep(count * self.unit_s)

    def journal(self, *events: JournalEvent) -> list[JournalEntry]:
        """What the twin did so far: all of it, or these events only."""
        service = self.twin.shell.service
        service.advance(trio.current_time())
        entries = service.journal.page(0, 10_000).entries
        return [entry for entry in entries if not events or entry.event in events]

    def summary(self) -> JournalSummary:
        """The journal in numbers."""
        service = self.twin.shell.service
        service.advance(trio.current_time())
        return service.journal.summary()

    @property
    def executions(self) -> int:
        """How often any job was begun at the twin."""
        return sum(self.summary().executions_by_job.values())

    async def begun(self, count: int = 1) -> None:
        """Wait until so many executions have begun."""
        await self.until(lambda: self.executions >= count, f"{count} executions began")

    async def idle(self) -> None:
        """Wait until nothing is being worked on at the twin any more."""
        await self.until(lambda: self.working == 0, "the work at the service ended")

    @property
    def working(self) -> int:
        """Executions that were begun and have not ended."""
        alive: dict[str, int] = {}
        for entry in self.journal():
            if entry.event is JournalEvent.STARTED:
                alive[entry.id] = alive.get(entry.id, 0) + 1
            elif entry.event in _ENDED:
                alive[entry.id] = 0
        return sum(alive.values())

    async def within_patience(self, call: Callable[[], Awaitable[AnswerT]]) -> AnswerT:
        """What a call answers, within the bench's patience."""
        with trio.move_on_after(self.patience_s):
            return await call()
        raise AssertionError(f"no answer within {self.patience_s:g} s")

    async def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition, within the bench's patience."""
        with trio.move_on_after(self.patience_s) as scope:
            while not condition():
                await self.units(0.02)
        assert not scope.cancelled_caught, f"within {self.patience_s:g} s it did not happen that {what}"

    async def aclose(self) -> None:
        """End what still runs and close all connectors within the runner's bound; a second close does nothing."""
        with trio.move_on_after(self.cancel_timeout_s, shield=True) as scope:
            for attempt in self._attempts:
                attempt.scope.cancel()
                await attempt.ended.wait()
            for made in self._made:
                await made.aclose()
                await made.aclose()
        assert not scope.cancelled_caught, f"aclose() took longer than {self.cancel_timeout_s:g} s"


@asynccontextmanager
async def open_bench(dialect: Dialect, make: type[Connector], *, seed: int) -> AsyncIterator[Bench]:
    """A running twin of a dialect and a bench on it; both are gone at the end.

    Args:
        dialect: what is spoken; it decides whether time is virtual (the caller brings the clock).
        make: the connector's class.
        seed: of everything random.
    """
    limit_s = LIMIT_S_VIRTUAL if dialect.streams else LIMIT_S_REAL
    with trio.fail_after(limit_s):
        async with trio.open_nursery() as nursery:
            config = ServiceConfig(instance=INSTANCE, duration_s=0.1, queue_max=64)
            twin = dialect.load_twin()(config, FaultPlan.none(), random_for=streams(seed, INSTANCE))
            if dialect.streams:
                node, open_stream = _in_memory(twin, dialect, nursery, seed)
                port = dialect.port
            else:
                handle = await nursery.start(functools.partial(twin.run, host=HOST, port=0))
                node, open_stream, port = None, open_tcp, handle.port
            endpoint = Endpoint(scheme=dialect.scheme, host=HOST, port=port)
            bench = Bench(dialect, make, twin, endpoint, open_stream, nursery, seed)
            try:
                yield bench
            finally:
                await bench.aclose()
            assert node is None or not node.streams, f"{len(node.streams)} connections were left open"
            nursery.cancel_scope.cancel()


def _in_memory(twin: Twin, dialect: Dialect, nursery: trio.Nursery, seed: int) -> tuple[Node, OpenStream]:
    """A network of two machines that carries everything; the twin listens on its usual port."""
    network = Network(
        lambda label: random_module.Random(f"{seed}/{label}"),
        default=LinkFaults(),
        on_fault=_nothing_happens,
        on_ghost=_nothing_happens,
    )
    gateway, machine = Node("gateway"), Node("machine")
    stream_twin: StreamTwin = twin  # type: ignore[assignment]
    network.listen(HOST, dialect.port, machine, stream_twin.serve_stream, nursery)
    twin.shell.service.listening_on(HOST, dialect.port)

    async def open_stream(host: str, port: int) -> trio.abc.Stream:
        return await network.connect(gateway, host, port)

    return gateway, open_stream


def _nothing_happens(*_what: str) -> None:
    """This network injects no faults; the twin does."""


def marked(value: Any, mark: str) -> bool:
    """Whether a result holds the mark that its job's work was given, at any depth and inside of texts."""
    if isinstance(value, str):
        return mark in value
    if isinstance(value, Mapping):
        return any(marked(item, mark) for item in value.values())
    return isinstance(value, list | tuple) and any(marked(item, mark) for item in value)
