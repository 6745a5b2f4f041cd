"""Plans of simulated fleets: everything that happens in a run, as data, drawn from one seed (pure).

Swarm testing: each run leaves a random part of the fault kinds out entirely and draws the others' intensity. Uniformly
sparse faults missed half of the planted bugs; swarms found ten of eleven.
"""

from __future__ import annotations

import enum
from random import Random
from typing import Any

import msgspec

from simulator.shares import NO_SHARES, PlannedShares, draw_shares


class FaultKind(enum.StrEnum):
    """Kinds of faults that a plan may hold."""

    DELAY = "delay"
    LOST_REQUEST = "lost_request"
    LOST_REPLY = "lost_reply"
    RESET = "reset"
    DUPLICATE = "duplicate"
    PARTITION = "partition"
    ONE_WAY_PARTITION = "one_way_partition"
    KILL = "kill"
    KILL_AT_STEP = "kill_at_step"
    PAUSE = "pause"
    TERMINATE = "terminate"
    REDIS_RESTART = "redis_restart"
    REDIS_ROLLBACK = "redis_rollback"
    CLOCK_SKEW = "clock_skew"
    CLOCK_DRIFT = "clock_drift"
    SERVICE_RESTART = "service_restart"
    SERVICE_DOWN = "service_down"
    SERVICE_MOVE = "service_move"
    SERVICE_FAULTS = "service_faults"
    CANCEL = "cancel"
    REQUEUE = "requeue"
    DUPLICATE_SUBMIT = "duplicate_submit"


_DRAWN_KINDS = tuple(kind for kind in FaultKind if kind is not FaultKind.SERVICE_MOVE)
#: Faults that break the durability condition ("Redis loses no acknowledged write"); reported apart.
UNDURABLE = frozenset({FaultKind.REDIS_ROLLBACK})


class ServiceProtocol(enum.StrEnum):
    """What a simulated service of a fleet may speak."""

    HTTP = "http"
    WEBSOCKET = "websocket"
    GRPC = "grpc"


class Incident(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One fault at one time.

    Attributes:
        at_s: when, seconds of simulated time.
        kind: what.
        target: whom: ``gateway-1``, ``service-0``, ``redis``, a job id, or two nodes ``a>b``.
        for_s: how long, where it lasts.
        number: scheduler step for a kill at a step.
    """

    at_s: float
    kind: FaultKind
    target: str
    for_s: float = 0.0
    number: int = 0


class PlannedJob(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One job of the workload."""

    job_id: str
    at_s: float
    duration_s: float
    priority: int = 50
    timeout_s: float = 60.0
    max_attempts: int = 3
    delay_s: float = 0.0
    fail: dict[str, Any] | None = None
    chunks: int = 0
    idempotency_key: str = ""
    vram_gb: int = 0
    expires_in_s: float = 0.0
    unique_key: str = ""
    unique_for_s: float = 0.0
    after: tuple[str, ...] = ()
    release_on_failure: bool = False


class Condition(enum.StrEnum):
    """What jobs of a workload may be born with, beyond the plain job."""

    DEADLINE = "deadline"
    UNIQUE = "unique"
    PARENTS = "parents"
    SCHEDULE = "schedule"


class PlannedSchedule(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A recurring job of the workload."""

    name: str
    cron: str
    duration_s: float
    missed: str = "once"
    unique: bool = False
    expires_in_s: float = 0.0


class LinkLevels(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Probabilities per chunk on the links to Redis and to the services."""

    slow: float = 0.0
    lost_request: float = 0.0
    lost_reply: float = 0.0
    reset: float = 0.0
    duplicate: float = 0.0


class FleetPlan(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A whole run.

    Attributes:
        seed: names the run; also seeds the scheduler and every random source.
        gateways, services, slots: size of the fleet; every gateway has one worker per service.
        lease_s: length of a lease, seconds; the other times follow from it.
        safety_s: length of the first phase, in which anything may fail; then everything heals.
        redis_offset_s, redis_rate: Redis' clock against the fleet's.
        service_faults: knobs of every simulated service.
        protocols: what each service speaks, by its number; the ones not named speak HTTP.
        schedules: recurring jobs, set up at the start and paused when the world heals.
        shares: tenants, limits and aging.
        discovered: gateways know no addresses; their workers follow the services' entries in the registry.
    """

    seed: int
    gateways: int = 3
    services: int = 2
    slots: int = 2
    lease_s: float = 15.0
    safety_s: float = 60.0
    jobs: tuple[PlannedJob, ...] = ()
    incidents: tuple[Incident, ...] = ()
    links: LinkLevels = LinkLevels()
    service_faults: dict[str, float | bool] = {}
    redis_offset_s: float = 0.0
    redis_rate: float = 1.0
    protocols: tuple[ServiceProtocol, ...] = ()
    schedules: tuple[PlannedSchedule, ...] = ()
    shares: PlannedShares = NO_SHARES
    discovered: bool = False

    def protocol(self, service: int) -> ServiceProtocol:
        """What a service speaks."""
        return self.protocols[service] if service < len(self.protocols) else ServiceProtocol.HTTP

    @property
    def durable(self) -> bool:
        """Whether Redis keeps every acknowledged write in this run."""
        return not any(incident.kind in UNDURABLE for incident in self.incidents)

    def encoded(self) -> bytes:
        """The plan as JSON, for reports and regression tests."""
        return msgspec.json.encode(self)


#: Knobs of the simulated service that a swarm may turn, with their highest rate.
SERVICE_KNOBS: dict[str, float] = {
    "health_failure_rate": 0.5,
    "lost_completion_rate": 0.5,
    "error_5xx_rate": 0.2,
    "rate_limit_rate": 0.3,
    "unavailable_rate": 0.2,
    "hang_rate": 0.05,
    "slow_rate": 0.3,
    "disconnect_rate": 0.4,
    "half_open_rate": 0.2,
    "submit_reply_lost_rate": 0.4,
    "submit_500_after_accept_rate": 0.3,
    "duplicate_event_rate": 0.5,
    "out_of_order_rate": 0.5,
    "event_after_terminal_rate": 0.5,
    "finished_before_listening_rate": 0.5,
    "garbage_rate": 0.2,
    "cancel_ignored_rate": 0.5,
    "empty_output_rate": 0.1,
    "out_of_memory_rate": 0.1,
}
#: Kinds that a gateway's machine suffers, and how many of each a run may have.
_MACHINE_KINDS = {
    FaultKind.KILL: 4,
    FaultKind.KILL_AT_STEP: 3,
    FaultKind.PAUSE: 3,
    FaultKind.TERMINATE: 2,
}


def generate_plan(
    seed: int,
    *,
    gateways: int = 3,
    services: int = 2,
    jobs: int = 20,
    only: frozenset[FaultKind] | None = None,
    conditions: frozenset[Condition] | None = None,
) -> FleetPlan:
    """Draw a run from a seed.

    Args:
        seed: everything follows from it.
        gateways, services, jobs: size of the fleet and of the workload.
        only: exactly these kinds of faults, instead of a random half of all.
        conditions: exactly these kinds of conditions, instead of a random half of all.
    """
    random = Random(f"plan/{seed}")
    # Moves have a source of their own, further down.
    kinds: set[FaultKind] = {kind for kind in _DRAWN_KINDS if random.random() < 0.5}
    if random.random() < 0.85:
        kinds -= UNDURABLE
    if only is not None:
        kinds = set(only)
    lease_s = random.choice([6.0, 15.0, 15.0, 30.0])
    safety_s = random.uniform(3.0, 8.0) * lease_s
    workload = tuple(_jobs(random, jobs, safety_s, lease_s, kinds))
    # A source of its own: the rest of a plan is the same with and without conditions.
    drawn = Random(f"conditions/{seed}")
    if conditions is None:
        conditions = frozenset(one for one in Condition if drawn.random() < 0.5)
    workload = conditioned(drawn, workload, conditions, lease_s)
    slots = random.choice([1, 2, 4])
    incidents = _incidents(random, kinds, safety_s, lease_s, gateways, services, workload)
    discovered, moves = _moves(seed, safety_s, lease_s, services)
    if only is None or FaultKind.SERVICE_MOVE in only:
        incidents += moves
    return FleetPlan(
        seed=seed,
        gateways=gateways,
        services=services,
        slots=slots,
        lease_s=lease_s,
        safety_s=round(safety_s, 3),
        jobs=workload,
        incidents=tuple(
            sorted(incidents, key=lambda incident: (incident.at_s, incident.kind, incident.target))
        ),
        links=_links(random, kinds),
        service_faults=_service_faults(random) if FaultKind.SERVICE_FAULTS in kinds else {},
        redis_offset_s=round(random.uniform(-3600, 3600), 3) if FaultKind.CLOCK_SKEW in kinds else 0.0,
        # Half the margin: a margin of a tenth of the lease carries drifts up to 5 %.
        redis_rate=round(random.uniform(0.96, 1.04), 4) if FaultKind.CLOCK_DRIFT in kinds else 1.0,
        protocols=_protocols(seed, services),
        schedules=_schedules(drawn, conditions, lease_s),
        # Every tenth seed has tenants: the others mean what they meant before there were any.
        shares=draw_shares(seed, [job.job_id for job in workload]) if seed % 10 == 8 else NO_SHARES,
        discovered=discovered,
    )


def _protocols(seed: int, services: int) -> tuple[ServiceProtocol, ...]:
    """From a source of its own, so that everything else a seed means stays as it was."""
    random = Random(f"plan/{seed}/protocols")
    return tuple(random.choice(tuple(ServiceProtocol)) for _ in range(services))


def _moves(seed: int, safety_s: float, lease_s: float, services: int) -> tuple[bool, list[Incident]]:
    """Whether addresses come from the registry, and which services then move; from a source of its own too."""
    random = Random(f"plan/{seed}/moves")
    discovered = random.random() < 0.4
    if not discovered or random.random() < 0.4:
        return discovered, []
    return discovered, [
        Incident(
            at_s=round(random.uniform(0.5, 0.9 * safety_s), 3),
            kind=FaultKind.SERVICE_MOVE,
            target=f"service-{random.randrange(services)}",
            for_s=round(random.choice([0.0, 1.0]) * random.uniform(0.1, 1.0) * lease_s, 3),
        )
        for _ in range(random.randint(1, 3))
    ]


def _jobs(
    random: Random, count: int, safety_s: float, lease_s: float, kinds: set[FaultKind]
) -> list[PlannedJob]:
    jobs = []
    longest_s = random.choice([0.3, 2.0, 1.5 * lease_s])
    for number in range(count):
        fail = None
        if random.random() < 0.15:
            kind = random.choice(
                [
                    "validation",
                    "refused",
                    "rate_limited",
                    "unavailable",
                    "service_error",
                    "out_of_memory",
                    "auth",
                ]
            )
            fail = {"kind": kind, "times": random.choice([1, 1, 5]), "retry_after_s": 1.0}
        jobs.append(
            PlannedJob(
                job_id=f"job-{number:03d}",
                at_s=round(random.uniform(0.0, 0.7 * safety_s), 3),
                duration_s=round(random.uniform(0.01, longest_s), 3),
                priority=random.choice([10, 50, 50, 90]),
                timeout_s=random.choice([60.0, 60.0, 5.0]),
                delay_s=round(random.uniform(0.1, 5.0), 3) if random.random() < 0.1 else 0.0,
                fail=fail,
                chunks=random.choice([0, 0, 3]),
                idempotency_key=f"key-{number:03d}" if FaultKind.DUPLICATE_SUBMIT in kinds else "",
                vram_gb=random.choice([0, 0, 0, 24]),
            )
        )
    return jobs


def conditioned(
    random: Random, jobs: tuple[PlannedJob, ...], conditions: frozenset[Condition], lease_s: float
) -> tuple[PlannedJob, ...]:
    """Give some of the jobs conditions; parents are submitted before their children."""
    found: list[PlannedJob] = []
    for job in sorted(jobs, key=lambda job: (job.at_s, job.job_id)):
        changes: dict[str, Any] = {}
        if Condition.DEADLINE in conditions and random.random() < 0.3:
            changes["expires_in_s"] = round(job.delay_s + random.choice([0.1, 0.5, 1.5, 4.0]) * lease_s, 3)
        if Condition.UNIQUE in conditions and random.random() < 0.4:
            changes["unique_key"] = random.choice(["red", "blue"])
            changes["unique_for_s"] = random.choice([0.0, 0.0, round(0.5 * lease_s, 3)])
        if Condition.PARENTS in conditions and found and random.random() < 0.5:
            elders = [elder.job_id for elder in found[-4:]]
            changes["after"] = tuple(random.sample(elders, random.randint(1, min(3, len(elders)))))
            changes["release_on_failure"] = random.random() < 0.3
        found.append(msgspec.structs.replace(job, **changes))
    return tuple(sorted(found, key=lambda job: job.job_id))


def _schedules(
    random: Random, conditions: frozenset[Condition], lease_s: float
) -> tuple[PlannedSchedule, ...]:
    """A quick one that may overlap, and a slow one that may not."""
    if Condition.SCHEDULE not in conditions:
        return ()
    return (
        PlannedSchedule(
            name="quick", cron="*/5 * * * * *", duration_s=0.2, missed=random.choice(["once", "skip"])
        ),
        PlannedSchedule(
            name="slow",
            cron="*/12 * * * * *",
            duration_s=round(random.uniform(0.1, 1.0) * lease_s, 3),
            unique=True,
            expires_in_s=round(random.choice([0.0, 2.0 * lease_s]), 3),
        ),
    )


def _incidents(
    random: Random,
    kinds: set[FaultKind],
    safety_s: float,
    lease_s: float,
    gateways: int,
    services: int,
    jobs: tuple[PlannedJob, ...],
) -> list[Incident]:
    incidents: list[Incident] = []

    def add(kind: FaultKind, target: str, *, for_s: float = 0.0, number: int = 0) -> None:
        at_s = round(random.uniform(0.5, 0.9 * safety_s), 3)
        incidents.append(Incident(at_s=at_s, kind=kind, target=target, for_s=round(for_s, 3), number=number))

    gateway_names = [f"gateway-{number}" for number in range(gateways)]
    service_names = [f"service-{number}" for number in range(services)]
    for kind, most in _MACHINE_KINDS.items():
        if kind in kinds:
            for _ in range(random.randint(1, most)):
                for_s = random.uniform(0.2, 2.5) * lease_s
                add(kind, random.choice(gateway_names), for_s=for_s, number=random.randint(1, 4000))
    for kind in (FaultKind.PARTITION, FaultKind.ONE_WAY_PARTITION):
        if kind in kinds:
            for _ in range(random.randint(1, 3)):
                pair = [random.choice(gateway_names), random.choice([*service_names, "redis", "redis"])]
                random.shuffle(pair)
                add(kind, ">".join(pair), for_s=random.uniform(0.2, 2.0) * lease_s)
    if FaultKind.REDIS_RESTART in kinds:
        for _ in range(random.randint(1, 3)):
            add(FaultKind.REDIS_RESTART, "redis", for_s=random.uniform(0.0, 0.6) * lease_s)
    if FaultKind.REDIS_ROLLBACK in kinds:
        add(FaultKind.REDIS_ROLLBACK, "redis", for_s=random.uniform(0.1, 1.0))
    for kind in (FaultKind.SERVICE_RESTART, FaultKind.SERVICE_DOWN):
        if kind in kinds:
            add(kind, random.choice(service_names), for_s=random.uniform(0.1, 1.5) * lease_s)
    for kind in (FaultKind.CANCEL, FaultKind.REQUEUE, FaultKind.DUPLICATE_SUBMIT):
        if kind in kinds:
            for _ in range(random.randint(1, 5)):
                add(kind, random.choice(jobs).job_id if jobs else "")
    return incidents


def _links(random: Random, kinds: set[FaultKind]) -> LinkLevels:
    def level(kind: FaultKind, highest: float) -> float:
        return round(random.choice([0.2, 1.0]) * highest * random.random(), 4) if kind in kinds else 0.0

    return LinkLevels(
        slow=level(FaultKind.DELAY, 0.1),
        lost_request=level(FaultKind.LOST_REQUEST, 0.03),
        lost_reply=level(FaultKind.LOST_REPLY, 0.03),
        reset=level(FaultKind.RESET, 0.03),
        duplicate=level(FaultKind.DUPLICATE, 0.1),
    )


def _service_faults(random: Random) -> dict[str, float | bool]:
    chosen = {
        name: round(random.random() * highest, 3)
        for name, highest in SERVICE_KNOBS.items()
        if random.random() < 0.3
    }
    return {**chosen, "dedupe": random.random() < 0.8}
