"""A gateway inside the test's own trio run, on real sockets: real Redis, simulated services served over TCP.

For everything that needs no process to be killed: quicker to start, and its state can be looked at.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import trio

from gateway.breaker import BreakerState
from gateway.config_sources import Sources
from gateway.errors import FaultClass
from gateway.models import Grant, LeaseRef, Settlement, Verdict
from gateway.observer import AttemptObserver, SilentObserver
from gateway.rollout import RolloutPolicy
from gateway.spool import MemorySpool, Spool
from gateway.store.connection import redis_connect
from gateway.strategies import Strategy
from gateway.supervisor import Gateway, Seams, StopSwitch
from protocols.http_server import ServerHandle
from simulator.faults import FaultPlan
from simulator.model import ServiceConfig
from simulator.seeding import streams
from simulator.services.http import SimulationHTTPService
from tests.chaos.fleet import QueueWatch, Service, make_store, merged

#: Times for tests of what follows a fault; the lease is long, so that nothing is due to its expiry.
QUICK: dict[str, Any] = {
    "health": {"probe_s": 0.1, "probe_timeout_s": 1.0, "breaker_open_s": 0.5, "breaker_open_max_s": 1.0},
    "retry": {"base_s": 0.1, "avoid_s": 1.0, "release_s": 0.1},
    "lease": {"length_s": 15.0, "margin_s": 1.5, "renew_s": 0.5, "sweep_s": 0.1},
    "runner": {"progress_s": 0.1, "reconcile_timeout_s": 1.0, "cancel_timeout_s": 1.0},
    "intake": {"poll_s": 0.2},
}
#: Longest wait for the gateways at the end of a test, seconds: beyond their own bounds.
STOP_TIMEOUT_S = 10.0


class _NotingAttempt:
    def __init__(self, notes: Notes, job_id: str) -> None:
        self.headers: Mapping[str, str] = {}
        self._notes = notes
        self._job_id = job_id

    @contextmanager
    def service_call(self, operation: str) -> Iterator[None]:
        self._notes.calls.append((self._job_id, operation))
        yield

    def faulted(self, fault_class: FaultClass, message: str) -> None:
        self._notes.faults.append((self._job_id, fault_class))

    def consumed(self, amounts: Mapping[str, int]) -> None:
        self._notes.consumed.append((self._job_id, dict(amounts)))

    def settled(self, settlement: Settlement, verdict: Verdict | None) -> None:
        self._notes.verdicts.append((self._job_id, verdict))


class Notes(SilentObserver):
    """Keeps what the tests ask about, in order."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.faults: list[tuple[str, FaultClass]] = []
        self.consumed: list[tuple[str, dict[str, int]]] = []
        self.verdicts: list[tuple[str, Verdict | None]] = []
        self.probes: list[tuple[str, bool]] = []
        self.breakers: list[tuple[str, BreakerState]] = []
        self.left_endpoints: list[str] = []
        self.disownings: list[tuple[str, str]] = []
        self.spooled_most = 0
        self.recoveries: Counter[Strategy] = Counter()
        self.rollouts: list[tuple[str, RolloutPolicy]] = []

    @contextmanager
    def attempt(
        self, grant: Grant, *, worker_id: str, connector_key: str, endpoint: str
    ) -> Iterator[AttemptObserver]:
        yield _NotingAttempt(self, grant.job_id)

    def disowned(self, lease: LeaseRef, worker_id: str, reason: str) -> None:
        self.disownings.append((lease.job_id, reason))

    def health(self, worker_id: str, service: str, endpoint: str, *, healthy: bool, detail: str) -> None:
        self.probes.append((worker_id, healthy))

    def breaker(self, worker_id: str, service: str, endpoint: str, state: BreakerState) -> None:
        self.breakers.append((worker_id, state))

    def left(self, worker_id: str, service: str, endpoint: str) -> None:
        self.left_endpoints.append(endpoint)

    def rollout(self, worker_id: str, decision: str, policy: RolloutPolicy) -> None:
        self.rollouts.append((decision, policy))

    def recovering(self, strategy: Strategy, count: int = 1) -> None:
        self.recoveries[strategy] += count

    def spool(self, size: int) -> None:
        self.spooled_most = max(self.spooled_most, size)


class LiveService(Service):
    """A simulated instance in this trio run, which may go down and come back on the same port."""

    def __init__(self, nursery: trio.Nursery, name: str, plan: FaultPlan, slots: int) -> None:
        super().__init__("http://127.0.0.1:0", name)
        self._nursery = nursery
        self._plan = plan
        self._slots = slots
        #: What it says it has from its next start on.
        self.models: tuple[str, ...] = ()
        self._handle_port = 0
        self._scope = trio.CancelScope()

    async def up(self) -> None:
        """Listen; with the memory of a fresh process."""
        self._scope = trio.CancelScope()
        self.shell = SimulationHTTPService(
            ServiceConfig(instance=self.name, slots=self._slots, models=self.models),
            self._plan,
            random_for=streams(0, self.name),
        )
        handle: ServerHandle = await self._nursery.start(self._serve)
        self._handle_port = handle.port
        self.url = handle.url

    async def _serve(self, *, task_status: trio.TaskStatus[ServerHandle]) -> None:
        with self._scope:
            await self.shell.run(host="127.0.0.1", port=self._handle_port, task_status=task_status)

    async def down(self) -> None:
        """Connections are refused from now on."""
        self._scope.cancel()
        with trio.fail_after(5):
            while True:
                try:
                    stream = await trio.open_tcp_stream("127.0.0.1", self.port)
                except OSError:
                    return
                await stream.aclose()
                await trio.sleep(0.01)


@dataclass
class LiveGateway:
    """A running gateway and its controls."""

    gateway: Gateway
    stop: StopSwitch
    notes: Notes
    stopped: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def worker(self, name: str = "w") -> Any:
        return next(worker for worker in self.gateway.workers if worker.worker_id.endswith(f"/{name}"))


@dataclass
class Stage:
    """One queue of a test, on a Redis that others may share."""

    nursery: trio.Nursery
    redis_url: str
    queue: str
    watch: QueueWatch
    gateways: list[LiveGateway] = field(default_factory=list)

    async def service(self, name: str = "sim", *, slots: int = 64, **faults: Any) -> LiveService:
        """A simulated instance without faults but the given ones."""
        service = LiveService(self.nursery, name, FaultPlan.none().updated(faults), slots)
        await service.up()
        return service

    async def gateway(
        self,
        workers: Mapping[str, Service],
        *settings: Mapping[str, Any],
        machine: str = "m",
        slots: int = 4,
        redis_url: str = "",
        spool: Spool | None = None,
    ) -> LiveGateway:
        """Start a gateway with these workers, by name; returns when it claims."""
        overrides = merged(
            {
                "queue": self.queue,
                "machine": machine,
                "workers": {
                    name: {"connector": "simulation-http", "endpoint": service.url, "slots": slots}
                    for name, service in workers.items()
                },
            },
            QUICK,
            *settings,
        )
        # As environment, so that the fleet's overrides are stronger.
        variables = {
            f"GATEWAY_{key.upper()}": value if isinstance(value, str) else json.dumps(value)
            for key, value in overrides.items()
        }
        sources = Sources(environment=variables)
        config = sources.load().config
        notes = Notes()
        seams = Seams(
            connect_redis=redis_connect(
                redis_url or self.redis_url,
                connect_timeout_s=config.redis.connect_timeout_s,
                command_timeout_s=config.redis.command_timeout_s,
            ),
            instance=f"{self.queue}-{machine}",
            machine=machine,
            random=lambda label: random.Random(f"{self.queue}/{machine}/{label}"),
            observer=notes,
            spool=MemorySpool() if spool is None else spool,
            reread=lambda fleet: sources.load(fleet).config,
        )
        live = LiveGateway(Gateway(config, seams), StopSwitch(), notes)
        await self.nursery.start(self._run, live)
        self.gateways.append(live)
        return live

    @staticmethod
    async def _run(live: LiveGateway, *, task_status: trio.TaskStatus[None]) -> None:
        with live.scope:
            await live.gateway.run(live.stop, task_status=task_status)
        live.stopped.set()


@asynccontextmanager
async def open_stage(redis_url: str, queue: str) -> AsyncIterator[Stage]:
    """A queue of one test; gateways and services end with it."""
    async with trio.open_nursery() as nursery:
        store = make_store(redis_url, queue, f"{queue}-tester")
        await store.start(nursery)
        stage = Stage(nursery, redis_url, queue, QueueWatch(store))
        try:
            yield stage
        finally:
            with trio.move_on_after(STOP_TIMEOUT_S, shield=True):
                for live in stage.gateways:
                    live.stop.drain()
                    live.stop.drain()
                    await live.stopped.wait()
        nursery.cancel_scope.cancel()
