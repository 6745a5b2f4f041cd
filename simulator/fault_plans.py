"""Fault plans of real fleets: what happens to gateways, Redis and services during a certification (pure).

A plan is a TOML file, a preset, or drawn from a seed::

    duration_s = 24                     # length of the faulty phase
    [fleet]
    gateways = 3
    services = 2
    [workload]
    jobs = 200
    duration_s = [0.5, 2.0]
    [services]                          # knobs, see: simulator faults
    lost_completion_rate = 0.04
    [[kill]]
    at_s = 5
    target = "gateway-0"
    restart_s = 1                       # absent: it stays dead
    [[redis]]
    at_s = 16
    down_s = 2
    [[pause]]
    at_s = 10
    for_s = 18
    target = "gateway-1"
    [[restart]]                         # the service forgets its jobs
    at_s = 12
    target = "service-0"
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal

from simulator.certify_tables import PlanError, Table
from simulator.faults import FaultError, FaultPlan

JOBS_MAX = 1_000_000
FLEET_MAX = 16
DURATION_S_MAX = 7 * 86_400.0
JOB_DURATION_S_MAX = 3_600.0
ATTEMPTS_MAX = 100
#: With work of 0.5 to 2 s over 24 s some ten jobs run at any moment, so that a kill hits running ones.
JOBS_DEFAULT = 200

Kind = Literal["kill", "redis", "pause", "restart"]
KINDS: tuple[Kind, ...] = ("kill", "redis", "pause", "restart")


@dataclass(frozen=True, slots=True, kw_only=True)
class TimedFault:
    """One thing that happens to the fleet.

    Attributes:
        at_s: when, seconds since the first submission.
        kind: ``kill`` (SIGKILL of a gateway), ``redis`` (SIGKILL of Redis), ``pause`` (a gateway by SIGSTOP, or a
            service that answers nothing), ``restart`` (a service forgets all its jobs).
        target: ``gateway-N``, ``service-N`` or ``redis``.
        for_s: how long the target is gone; None for a kill without a restart.
    """

    at_s: float
    kind: Kind
    target: str
    for_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The jobs of a run.

    Attributes:
        jobs: how many, submitted evenly over the faulty phase.
        duration_s: shortest and longest work, seconds.
        max_attempts: charged tries per job.
        timeout_s: longest run of one attempt, seconds.
    """

    jobs: int = JOBS_DEFAULT
    duration_s: tuple[float, float] = (0.5, 2.0)
    max_attempts: int = 10
    timeout_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetFaults:
    """A whole plan; build it with :func:`parse_plan`, :func:`load_plan`, :func:`preset` or :func:`draw_plan`.

    Attributes:
        name: for the report.
        seed: of the services' dice and of the workload.
        duration_s: length of the phase in which jobs are submitted and faults happen.
        gateways: processes; each has all workers of the configuration.
        services: simulated instances, where no configuration says otherwise.
        knobs: faults of every simulated instance.
        faults: what happens to the fleet, in order of time.
    """

    name: str = "quiet"
    seed: int = 0
    duration_s: float = 10.0
    gateways: int = 3
    services: int = 2
    workload: Workload = Workload()
    knobs: FaultPlan = field(default_factory=FaultPlan.none)
    faults: tuple[TimedFault, ...] = ()

    def repeated(self, times: int) -> FleetFaults:
        """This plan so many times in a row, with as many times the jobs."""
        every = tuple(
            dataclasses.replace(fault, at_s=fault.at_s + number * self.duration_s)
            for number in range(times)
            for fault in self.faults
        )
        return dataclasses.replace(
            self,
            duration_s=self.duration_s * times,
            workload=dataclasses.replace(self.workload, jobs=self.workload.jobs * times),
            faults=every,
        )

    def with_jobs(self, jobs: int) -> FleetFaults:
        """This plan with another number of jobs."""
        return dataclasses.replace(self, workload=dataclasses.replace(self.workload, jobs=jobs))

    def with_knobs(self, knobs: Mapping[str, object]) -> FleetFaults:
        """This plan with some knobs of the services changed.

        Raises:
            FaultError: an unknown knob, or a value out of range.
        """
        return dataclasses.replace(self, knobs=self.knobs.updated(knobs))

    def to_mapping(self) -> dict[str, Any]:
        """As :func:`parse_plan` reads it. The knobs are the two that are on by default and all that are turned."""
        quiet, knobs = FaultPlan().to_mapping(), self.knobs.to_mapping()
        shown = {
            name: value
            for name, value in knobs.items()
            if value != quiet[name] or name in ("health_failure_rate", "lost_completion_rate")
        }
        workload = dataclasses.asdict(self.workload)
        workload["duration_s"] = list(self.workload.duration_s)
        tables: dict[str, list[dict[str, Any]]] = {}
        for fault in self.faults:
            entry: dict[str, Any] = {"at_s": fault.at_s}
            if fault.kind != "redis":
                entry["target"] = fault.target
            if fault.for_s is not None and fault.kind != "restart":
                entry[_LENGTHS[fault.kind]] = fault.for_s
            tables.setdefault(fault.kind, []).append(entry)
        return {
            "name": self.name,
            "seed": self.seed,
            "duration_s": self.duration_s,
            "fleet": {"gateways": self.gateways, "services": self.services},
            "workload": workload,
            "services": shown,
            **tables,
        }


#: What the length of a fault is called in a file.
_LENGTHS: dict[str, str] = {"kill": "restart_s", "redis": "down_s", "pause": "for_s"}


def parse_plan(values: Mapping[str, object], source: str) -> FleetFaults:
    """Check a plan and build it.

    Args:
        values: nested tables as read from TOML.
        source: the file, for errors and as the plan's name when it gives none.

    Raises:
        PlanError: names source, key and value of the first mistake.
    """
    top = Table(source, "", values)
    fleet, work = top.table("fleet"), top.table("workload")
    default = FleetFaults()
    duration_s = top.number("duration_s", 0.1, DURATION_S_MAX, default.duration_s)
    gateways = fleet.whole("gateways", 1, FLEET_MAX, default.gateways)
    services = fleet.whole("services", 1, FLEET_MAX, default.services)
    knobs = top.table("services")
    try:
        plan = FaultPlan().updated(knobs.values)
    except FaultError as error:
        raise knobs.refuse(error.knob, error.value, error.allowed) from None
    workload = Workload(
        jobs=work.whole("jobs", 1, JOBS_MAX, default.workload.jobs),
        duration_s=work.span("duration_s", JOB_DURATION_S_MAX, default.workload.duration_s),
        max_attempts=work.whole("max_attempts", 1, ATTEMPTS_MAX, default.workload.max_attempts),
        timeout_s=work.number("timeout_s", 0.1, JOB_DURATION_S_MAX, default.workload.timeout_s),
    )
    read = FleetFaults(
        name=top.text("name", Path(source).stem or "plan"),
        seed=top.whole("seed", 0, 2**63, 0),
        duration_s=duration_s,
        gateways=gateways,
        services=services,
        workload=workload,
        knobs=plan,
        faults=_in_order(_read_faults(top, duration_s, gateways, services)),
    )
    for table in (fleet, work, top):
        table.done()
    _refuse_dead_end(read, source)
    return read


def _in_order(faults: Iterable[TimedFault]) -> tuple[TimedFault, ...]:
    return tuple(sorted(faults, key=lambda fault: (fault.at_s, fault.kind, fault.target)))


def _read_faults(top: Table, duration_s: float, gateways: int, services: int) -> list[TimedFault]:
    found: list[TimedFault] = []
    both = {"gateway": gateways, "service": services}
    for kind in KINDS:
        for entry in top.tables(kind):
            at_s = entry.number("at_s", 0.0, duration_s)
            for_s: float | None = None
            target = "redis"
            if kind == "kill":
                target = entry.target({"gateway": gateways})
                if "restart_s" in entry.values:
                    for_s = entry.number("restart_s", 0.0, DURATION_S_MAX)
            elif kind == "redis":
                for_s = entry.number("down_s", 0.0, DURATION_S_MAX)
            elif kind == "pause":
                target, for_s = entry.target(both), entry.number("for_s", 0.0, DURATION_S_MAX)
            else:
                target = entry.target({"service": services})
            entry.done()
            found.append(TimedFault(at_s=at_s, kind=kind, target=target, for_s=for_s))
    return found


def _refuse_dead_end(plan: FleetFaults, source: str) -> None:
    """Somebody must be left to finish the work."""
    dead = {fault.target for fault in plan.faults if fault.kind == "kill" and fault.for_s is None}
    if len(dead) >= plan.gateways:
        raise PlanError(
            source, "kill", f"leaves none of {plan.gateways} gateways alive: give one of them restart_s"
        )


def load_plan(path: Path) -> FleetFaults:
    """Read a plan from a TOML file.

    Raises:
        PlanError: it cannot be read, or holds a mistake.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise PlanError(str(path), "", f"cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise PlanError(str(path), "", f"not valid TOML: {error}") from None
    return parse_plan(values, str(path))


_LOSSY: dict[str, object] = {
    "health_failure_rate": 0.1,
    "lost_completion_rate": 0.15,
    "submit_reply_lost_rate": 0.05,
    "disconnect_rate": 0.1,
    "half_open_rate": 0.05,
    "duplicate_event_rate": 0.2,
    "out_of_order_rate": 0.1,
    "event_after_terminal_rate": 0.1,
    "error_5xx_rate": 0.03,
    "rate_limit_rate": 0.05,
    "unavailable_rate": 0.03,
    "retry_after_s": 0.5,
}
_PRESETS: dict[str, dict[str, Any]] = {
    "quiet": {"duration_s": 10.0, "services": {"health_failure_rate": 0.0, "lost_completion_rate": 0.0}},
    "health-4pct": {
        "duration_s": 15.0,
        "services": {"health_failure_rate": 0.04, "lost_completion_rate": 0.0},
    },
    "default": {
        "duration_s": 24.0,
        "services": {"health_failure_rate": 0.04, "lost_completion_rate": 0.04},
        "kill": [
            {"at_s": 5.0, "target": "gateway-0", "restart_s": 1.0},
            {"at_s": 11.0, "target": "gateway-1", "restart_s": 1.0},
        ],
        "redis": [{"at_s": 16.0, "down_s": 2.0}],
    },
    "lossy": {
        "duration_s": 24.0,
        "services": _LOSSY,
        "kill": [{"at_s": 6.0, "target": "gateway-0", "restart_s": 1.0}],
        "redis": [{"at_s": 14.0, "down_s": 1.0}],
    },
    "brutal": {
        "duration_s": 45.0,
        "services": {
            **_LOSSY,
            "health_failure_rate": 0.2,
            "lost_completion_rate": 0.3,
            "garbage_rate": 0.03,
            "empty_output_rate": 0.03,
            "out_of_memory_rate": 0.03,
            "slow_rate": 0.03,
            "slow_factor": 4.0,
        },
        "kill": [
            {"at_s": 5.0, "target": "gateway-0", "restart_s": 1.0},
            {"at_s": 13.0, "target": "gateway-1", "restart_s": 4.0},
            {"at_s": 14.0, "target": "gateway-2", "restart_s": 1.0},
            {"at_s": 38.0, "target": "gateway-0", "restart_s": 1.0},
        ],
        "redis": [{"at_s": 9.0, "down_s": 3.0}, {"at_s": 33.0, "down_s": 0.0}],
        "pause": [
            {"at_s": 18.0, "target": "gateway-1", "for_s": 18.0},
            {"at_s": 28.0, "target": "service-1", "for_s": 3.0},
        ],
        "restart": [{"at_s": 24.0, "target": "service-0"}],
    },
}
PRESETS = tuple(_PRESETS)


def preset(name: str) -> FleetFaults:
    """A plan of this package by name.

    Raises:
        KeyError: no such preset.
    """
    return parse_plan({"name": name, **_PRESETS[name]}, f"preset {name}")


def choose_plan(name: str) -> FleetFaults:
    """A preset, or else the file of that name.

    Raises:
        PlanError: neither a preset nor a readable, correct file.
    """
    if name in _PRESETS:
        return preset(name)
    if not Path(name).exists():
        raise PlanError(name, "", f"is neither a file nor a preset; presets are {', '.join(PRESETS)}")
    return load_plan(Path(name))


#: Knobs that a drawn plan may turn, with their highest rate: none that makes work fail for good.
_DRAWN: dict[str, float] = {
    "health_failure_rate": 0.3,
    "lost_completion_rate": 0.3,
    "submit_reply_lost_rate": 0.1,
    "disconnect_rate": 0.2,
    "half_open_rate": 0.1,
    "duplicate_event_rate": 0.3,
    "out_of_order_rate": 0.2,
    "event_after_terminal_rate": 0.3,
    "error_5xx_rate": 0.05,
    "rate_limit_rate": 0.1,
    "unavailable_rate": 0.05,
    "finished_before_listening_rate": 0.3,
}


def draw_plan(seed: int) -> FleetFaults:
    """A plan that follows from a seed alone: a random half of the knobs, one to three kills, the rest by chance."""
    random = Random(f"fault-plan/{seed}")
    gateways, services = random.randint(2, 4), random.randint(1, 3)
    duration_s = 24.0

    def at_s() -> float:
        return round(random.uniform(2.0, 0.7 * duration_s), 1)

    def some(kind: str, count: int) -> str:
        return f"{kind}-{random.randrange(count)}"

    knobs: dict[str, object] = {"health_failure_rate": 0.0, "lost_completion_rate": 0.0}
    for name, highest in _DRAWN.items():
        value, chosen = round(random.uniform(0.0, highest), 3), random.random() < 0.5
        knobs |= {name: value} if chosen else {}
    plan: dict[str, object] = {
        "name": f"seed-{seed}",
        "seed": seed,
        "duration_s": duration_s,
        "fleet": {"gateways": gateways, "services": services},
        "services": {**knobs, "retry_after_s": 0.5},
        "kill": [
            {"at_s": at_s(), "target": some("gateway", gateways), "restart_s": random.choice([0.5, 1.0, 3.0])}
            for _ in range(random.randint(1, 3))
        ],
    }
    if random.random() < 0.6:
        plan["redis"] = [{"at_s": at_s(), "down_s": random.choice([0.0, 1.0, 3.0])}]
    if random.random() < 0.4:
        target = some(*random.choice([("gateway", gateways), ("service", services)]))
        plan["pause"] = [{"at_s": at_s(), "target": target, "for_s": round(random.uniform(1.0, 6.0), 1)}]
    if random.random() < 0.3:
        plan["restart"] = [{"at_s": at_s(), "target": some("service", services)}]
    return parse_plan(plan, f"seed {seed}")
