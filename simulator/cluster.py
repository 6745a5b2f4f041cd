"""A whole fleet in one trio run: the shipped gateways, Redis client and Lua, on a simulated network and virtual time.

Only the outermost edge is exchanged: the byte streams under the Redis client and under each protocol, the clock, the
random sources, the event sink and the spool's disk.
"""

from __future__ import annotations

import contextvars
import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import trio

from gateway.config import GatewayConfig
from gateway.connectors.registry import default_registry
from gateway.errors import ConfigError, StoreError, StoreUnavailable
from gateway.models import JobId, JobSpec, ParentPolicy, Submission, SubmitStatus
from gateway.schedules import MissedPolicy, Schedule, check_schedule
from gateway.spool import MemorySpool
from gateway.store.calls import StoreLimits
from gateway.store.connection import RedisLink
from gateway.store.keys import QueueKeys
from gateway.store.operations import QueueOperations
from gateway.supervisor import Gateway, Seams, StopSwitch
from simulator.coverage import Mark, Marks
from simulator.faults import FaultPlan
from simulator.model import ServiceConfig
from simulator.network import LinkFaults, Network, Node, SimStream
from simulator.oracle import Beliefs, History, OracleObserver
from simulator.plan import FleetPlan, PlannedJob, PlannedSchedule, ServiceProtocol
from simulator.redis_link import HOST, PORT, sim_redis_connect
from simulator.redis_twin import RedisTwin
from simulator.seeding import streams
from simulator.services.grpc import SimulationGRPCService
from simulator.services.grpc_wire import wired_channels
from simulator.services.http import SimulationHTTPService
from simulator.services.websocket import SimulationWebSocketService
from simulator.shares import PlannedShares, limits_section

SERVICE_PORT = 8299
SimulationService = SimulationHTTPService | SimulationWebSocketService | SimulationGRPCService
#: The scheme of a service's address, and its class.
_SPOKEN: dict[ServiceProtocol, tuple[str, type[SimulationService]]] = {
    ServiceProtocol.HTTP: ("http", SimulationHTTPService),
    ServiceProtocol.WEBSOCKET: ("ws", SimulationWebSocketService),
    ServiceProtocol.GRPC: ("grpc", SimulationGRPCService),
}
QUEUE = "fleet"
#: No events may be trimmed: the auditor wants the whole story.
EVENTS_MAX = 10_000_000
RESTART_AFTER_S = 2.0
SUBMIT_PAUSE_S = 1.0

#: Which node a task belongs to; inherited by every task it starts.
current_node: contextvars.ContextVar[Node | None] = contextvars.ContextVar("current_node", default=None)

#: Looking for installed connectors reads the metadata of all packages, which no gateway's boot needs to do again.
_registry = functools.cache(default_registry)


def service_url(plan: FleetPlan, number: int, port: int) -> str:
    """Where a service is, as its clients write it."""
    return f"{_SPOKEN[plan.protocol(number)][0]}://service-{number}:{port}"


def fleet_config(plan: FleetPlan, machine: str) -> GatewayConfig:
    """Configuration of one gateway: the product's defaults, its times scaled with the plan's lease."""
    scale = plan.lease_s / 15.0
    return GatewayConfig.model_validate(
        {
            "queue": QUEUE,
            "machine": machine,
            "seed": plan.seed,
            "redis": {"command_timeout_s": 3.0 * scale, "connect_timeout_s": 3.0 * scale},
            "lease": {
                "length_s": plan.lease_s,
                "margin_s": plan.lease_s / 10,
                "renew_s": plan.lease_s / 3,
                "sweep_s": 3.0 * scale,
            },
            "limits": {
                "events_max": EVENTS_MAX,
                "worker_ttl_s": 60.0 * scale,
                "yields_max": 12,
                **limits_section(plan.shares),
            },
            "health": {"probe_s": 15.0 * scale, "probe_timeout_s": 2.0 * scale},
            "intake": {"poll_s": 15.0 * scale, "lag_check_s": 300.0},
            "retry": {"delay_max_s": 10.0},
            "telemetry": {"queue_look_s": 60.0 * scale},
            "shutdown": {"grace_s": 2.0 * scale},
            "discovery": {"poll_s": 10.0 * scale, "start_wait_s": 10.0 * scale},
            "workers": {
                f"gpu{number}": {
                    "connector": f"simulation-{plan.protocol(number)}",
                    **({} if plan.discovered else {"endpoint": service_url(plan, number, SERVICE_PORT)}),
                    "instance": f"service-{number}",
                    "slots": plan.slots,
                    "capabilities": {"vram_gb": 24 if number == 0 else 8},
                }
                for number in range(plan.services)
            },
        }
    )


class Machine:
    """One gateway machine: its node, its disk (the spool) and, while it runs, its process."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.spool = MemorySpool()
        self.node = Node(name)
        self.stop = StopSwitch()
        self.scope = trio.CancelScope()
        self.lives = 0
        #: Scheduler steps until this life ends by a kill; None for no such plan.
        self.steps_left: int | None = None


class StepKiller(trio.abc.Instrument):
    """Kills a machine at the n-th scheduler step of its own tasks: a crash at any checkpoint."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.armed = 0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if not self.armed:
            return
        node = task.context.get(current_node)
        if node is None:
            return
        machine = self._cluster.machines.get(node.name)
        if machine is None or machine.steps_left is None or machine.node is not node:
            return
        machine.steps_left -= 1
        if machine.steps_left <= 0:
            self.armed -= 1
            machine.steps_left = None
            self._cluster.marks.note(Mark.KILLED_AT_STEP)
            self._cluster.kill(machine)


class Cluster:
    """The fleet of one plan; opened inside ``trio.run`` under a mock clock."""

    def __init__(self, plan: FleetPlan, nursery: trio.Nursery) -> None:
        self.plan = plan
        self.nursery = nursery
        self.history = History(trio.current_time)
        self.beliefs = Beliefs(trio.current_time)
        self.marks = Marks()
        self.faults: dict[str, int] = {}
        links = plan.links
        self.network = Network(
            self.random,
            default=LinkFaults(
                slow=links.slow,
                slow_s=0.3 * plan.lease_s,
                lost_request=links.lost_request,
                lost_reply=links.lost_reply,
                reset=links.reset,
                duplicate=links.duplicate,
                duplicate_after_s=1.5 * plan.lease_s,
            ),
            on_fault=self.injected,
            on_ghost=lambda: self.marks.note(Mark.GHOST_EXECUTED),
        )
        self.redis = RedisTwin(
            offset_s=plan.redis_offset_s,
            rate=plan.redis_rate,
            on_reload=lambda: self.marks.note(Mark.SCRIPTS_RELOADED),
        )
        self.redis_node = Node(HOST)
        self.service_nodes = {
            f"service-{number}": Node(f"service-{number}") for number in range(plan.services)
        }
        self.services: dict[str, SimulationService] = {}
        #: Where each service listens, and whether it does.
        self.ports = dict.fromkeys(self.service_nodes, SERVICE_PORT)
        self.serving = dict.fromkeys(self.service_nodes, True)
        #: Replaced at each move, when what a service says in the registry is out of date.
        self.moved = {name: trio.Event() for name in self.service_nodes}
        self.machines = {f"gateway-{number}": Machine(f"gateway-{number}") for number in range(plan.gateways)}
        self.client_node = Node("submitter")
        self.acknowledged: dict[str, None] = {}
        #: Planned jobs that the store said something about: some it refuses, some stand for an earlier job.
        self.answered: dict[str, None] = {}
        self.killer = StepKiller(self)
        self.crashes: list[str] = []

    def random(self, label: str) -> Random:
        """One independent source per component."""
        return Random(f"{self.plan.seed}/{label}")

    def injected(self, kind: str, what: str) -> None:
        """Count and tell a fault."""
        self.faults[kind] = self.faults.get(kind, 0) + 1
        self.history.tell("fault", f"{kind} {what}")

    def start(self) -> None:
        """Redis, services and gateways come up."""
        self.network.listen(HOST, PORT, self.redis_node, self.redis.serve, self.nursery)
        knobs = FaultPlan.from_mapping(self.plan.service_faults) if self.plan.service_faults else FaultPlan()
        for number, name in enumerate(self.service_nodes):
            config = ServiceConfig(instance=name, slots=max(4, self.plan.slots * self.plan.gateways))
            speaks = _SPOKEN[self.plan.protocol(number)][1]
            service = speaks(config, knobs, random_for=streams(self.plan.seed, name))
            self.services[name] = service
            self.service_up(name)
        for machine in self.machines.values():
            self.boot(machine)

    def service_up(self, name: str) -> None:
        """Let a service listen where it is now."""
        node, service, port = self.service_nodes[name], self.services[name], self.ports[name]

        async def serve(stream: SimStream) -> None:
            if port != SERVICE_PORT:
                self.marks.note(Mark.FOLLOWED_ADDRESS)
            await service.serve_stream(stream)

        self.serving[name] = True
        self.network.listen(name, port, node, serve, self.nursery)

    def service_away(self, name: str) -> None:
        """Let a service refuse connections, and break those it has."""
        self.serving[name] = False
        self.network.unlisten(name, self.ports[name])
        for stream in list(self.service_nodes[name].streams):
            stream.vanish()

    def service_moves(self, name: str) -> None:
        """Let a service that is away come back at an address that nobody had before, with all that it knows."""
        self.service_away(name)
        self.ports[name] += 1
        self.service_up(name)
        news, self.moved[name] = self.moved[name], trio.Event()
        news.set()

    def url(self, name: str) -> str:
        """Where a service is now."""
        return service_url(self.plan, list(self.service_nodes).index(name), self.ports[name])

    def boot(self, machine: Machine) -> None:
        """Start a gateway process on a machine."""
        machine.node = Node(machine.name)
        machine.stop = StopSwitch()
        machine.scope = trio.CancelScope()
        machine.lives += 1
        self.history.tell(machine.name, f"boots for the {machine.lives}. time", kind="boot")
        self.nursery.start_soon(self._run_gateway, machine, machine.node, machine.scope, machine.stop)

    async def _run_gateway(
        self, machine: Machine, node: Node, scope: trio.CancelScope, stop: StopSwitch
    ) -> None:
        current_node.set(node)
        config = fleet_config(self.plan, machine.name)
        life = f"{machine.name}/{machine.lives}"
        open_stream = functools.partial(self.network.connect, node)
        seams = Seams(
            connect_redis=sim_redis_connect(
                open_stream,
                connect_timeout_s=config.redis.connect_timeout_s,
                command_timeout_s=config.redis.command_timeout_s,
            ),
            instance=life,
            machine=machine.name,
            open_stream=open_stream,
            open_channel=wired_channels(open_stream),
            registry=_registry(),
            now_s=trio.current_time,
            random=lambda label: self.random(f"{life}/{label}"),
            observer=OracleObserver(
                node, self.beliefs, self.history, self.marks, redis_us=lambda: self.redis.now_s() * 1e6
            ),
            spool=machine.spool,
        )
        try:
            with scope:
                await Gateway(config, seams).run(stop)
        except* (StoreError, ConfigError) as error:
            # Redis was away at the start, or no service had registered: a supervisor (systemd, say) would try again.
            if error.subgroup(ConfigError) is not None and not self.plan.discovered:
                raise
            self.history.tell(machine.name, f"did not start: {_leaf(error)}")
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError) as error:
            if node.alive:
                raise
            self.history.tell(machine.name, f"died with {_leaf(error)}")
        if machine.node is node and not self.ended:
            if node.alive:
                self.history.tell(machine.name, "ends", kind="end")
            await trio.sleep(RESTART_AFTER_S)
            if machine.node is node and not self.ended:
                self.boot(machine)

    ended = False

    def kill(self, machine: Machine) -> None:
        """SIGKILL: nothing of this life touches the world any more."""
        if machine.node.alive:
            self.history.tell(machine.name, "is killed", kind="kill")
            machine.node.kill()
            machine.scope.cancel()

    @asynccontextmanager
    async def operations(self, node: Node) -> AsyncIterator[QueueOperations]:
        """The queue as a client on another node sees it."""
        connect = sim_redis_connect(
            functools.partial(self.network.connect, node), connect_timeout_s=3.0, command_timeout_s=3.0
        )
        link = RedisLink(
            connect,
            name=node.name,
            command_timeout_s=3.0,
            connect_timeout_s=3.0,
            random=self.random(f"link of {node.name}"),
        )
        async with trio.open_nursery() as nursery:
            await self._insist(functools.partial(nursery.start, link.run))
            yield QueueOperations(link, QueueKeys(QUEUE), StoreLimits(events_max=EVENTS_MAX))
            nursery.cancel_scope.cancel()

    async def _insist(self, attempt: Callable[[], Awaitable[Any]]) -> Any:
        """Repeat what is safe to repeat until the store answers; bounded by the run itself."""
        while True:
            try:
                return await attempt()
            except StoreUnavailable:
                await trio.sleep(SUBMIT_PAUSE_S)

    async def submit_all(self) -> None:
        """The submitter: every planned job at its time, until acknowledged."""
        async with self.operations(self.client_node) as operations:
            for schedule in self.plan.schedules:
                await self._insist(functools.partial(self._put_schedule, operations, schedule))
            for job in sorted(self.plan.jobs, key=lambda job: (job.at_s, job.job_id)):
                await trio.sleep_until(job.at_s)
                await self.submit(operations, job)

    async def submit(self, operations: QueueOperations, job: PlannedJob) -> None:
        """Submit one job until acknowledged."""
        verdicts = await self._insist(lambda: operations.submit_many([_submission(job, self.plan.shares)]))
        if verdicts[0].status in (SubmitStatus.ACCEPTED, SubmitStatus.DUPLICATE):
            self.acknowledged[verdicts[0].job_id] = None
        self.answered[job.job_id] = None
        self.history.tell("submitter", f"submitted {job.job_id}: {verdicts[0].status.value}")

    async def _put_schedule(self, operations: QueueOperations, planned: PlannedSchedule) -> None:
        """Define a schedule, from its next instant by the clock of Redis on."""
        schedule = Schedule(
            name=planned.name,
            cron=planned.cron,
            spec=JobSpec(
                service="simulation",
                payload={"duration_s": planned.duration_s, "steps": 2, "result": planned.name},
                timeout_s=60.0,
            ),
            missed=MissedPolicy(planned.missed),
            unique=planned.unique,
            expires_in_s=planned.expires_in_s,
        )
        now_ms = (await operations.schedules()).now_ms
        await operations.put_schedule(
            schedule, revision="planned", next_ms=check_schedule(schedule, now_ms), replace=False
        )

    async def pause_schedules(self) -> None:
        """No further instants: what they fired must come to an end."""
        async with self.operations(Node("operator at the end")) as operations:
            names = [planned.name for planned in self.plan.schedules]
            await self._insist(lambda: operations.pause_schedules(names))


def _submission(job: PlannedJob, shares: PlannedShares) -> Submission:
    payload: dict[str, Any] = {
        "duration_s": job.duration_s, "steps": 4, "result": job.job_id, "chunks": job.chunks
    }  # fmt: skip
    if job.fail is not None:
        payload["fail"] = {**job.fail, "key": job.job_id}
    return Submission(
        job_id=JobId(job.job_id),
        spec=JobSpec(
            service="simulation",
            payload=payload,
            requires={"vram_gb": {">=": job.vram_gb}} if job.vram_gb else {},
            priority=job.priority,
            tenant=shares.tenants.get(job.job_id, ""),
            max_attempts=job.max_attempts,
            timeout_s=job.timeout_s,
            after=job.after,
            on_parent_failure=ParentPolicy.RELEASE if job.release_on_failure else ParentPolicy.CANCEL,
        ),
        idempotency_key=job.idempotency_key,
        delay_s=job.delay_s,
        expires_in_s=job.expires_in_s,
        unique_key=job.unique_key,
        unique_for_s=job.unique_for_s,
    )


def _leaf(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return f"{type(error).__name__}: {error}"
