"""Hypothesis strategies for simulated fleets: workloads, fault plans, whole runs; for our tests and for users'.

Plans are drawn component by component, so that a failing one shrinks: fewer incidents, fewer jobs, quieter links. The
seed, and with it the schedule of all tasks, is always part of what is drawn.
"""

from __future__ import annotations

from collections.abc import Collection

import msgspec
from hypothesis import strategies as st

from simulator.plan import (
    SERVICE_KNOBS,
    UNDURABLE,
    FaultKind,
    FleetPlan,
    Incident,
    LinkLevels,
    PlannedJob,
    PlannedSchedule,
    ServiceProtocol,
    generate_plan,
)
from simulator.shares import NO_SHARES, draw_shares

#: Kinds that happen at a moment of a run and are drawn as incidents.
MOMENTARY = (
    FaultKind.KILL,
    FaultKind.KILL_AT_STEP,
    FaultKind.PAUSE,
    FaultKind.TERMINATE,
    FaultKind.PARTITION,
    FaultKind.ONE_WAY_PARTITION,
    FaultKind.REDIS_RESTART,
    FaultKind.SERVICE_RESTART,
    FaultKind.SERVICE_DOWN,
    FaultKind.SERVICE_MOVE,
    FaultKind.CANCEL,
    FaultKind.REQUEUE,
    FaultKind.DUPLICATE_SUBMIT,
)
_MACHINE = (FaultKind.KILL, FaultKind.KILL_AT_STEP, FaultKind.PAUSE, FaultKind.TERMINATE)
_CUTS = (FaultKind.PARTITION, FaultKind.ONE_WAY_PARTITION)
_SERVICE = (FaultKind.SERVICE_RESTART, FaultKind.SERVICE_DOWN, FaultKind.SERVICE_MOVE)
_OPERATORS = (FaultKind.CANCEL, FaultKind.REQUEUE, FaultKind.DUPLICATE_SUBMIT)
STEPS_MAX = 4_000


def _seconds(low: float, high: float) -> st.SearchStrategy[float]:
    """Times in whole milliseconds: they shrink to round numbers and survive a plan's JSON."""
    return st.integers(round(low * 1000), round(high * 1000)).map(lambda ms: ms / 1000)


def _rate(highest: float) -> st.SearchStrategy[float]:
    return st.integers(0, 1000).map(lambda share: round(highest * share / 1000, 5))


def _parents(number: int) -> st.SearchStrategy[tuple[str, ...]]:
    """None, mostly; else jobs of lower number, which may or may not have been submitted before."""
    if number == 0:
        return st.just(())
    elders = st.lists(
        st.integers(0, number - 1).map(lambda elder: f"job-{elder:03d}"), max_size=2, unique=True
    )
    return st.just(()) | elders.map(tuple)


def schedules(longest_s: float) -> st.SearchStrategy[tuple[PlannedSchedule, ...]]:
    """At most one recurring job; ``longest_s`` bounds its work, seconds."""
    one = st.builds(
        PlannedSchedule,
        name=st.just("often"),
        cron=st.sampled_from(["*/20 * * * * *", "*/10 * * * * *"]),
        duration_s=_seconds(0.01, longest_s),
        missed=st.sampled_from(["once", "skip"]),
        unique=st.booleans(),
        expires_in_s=st.sampled_from([0.0, 10.0]),
    )
    return st.just(()) | one.map(lambda schedule: (schedule,))


@st.composite
def workloads(
    draw: st.DrawFn, *, jobs_max: int = 12, within_s: float = 30.0, longest_s: float = 20.0
) -> tuple[PlannedJob, ...]:
    """Jobs to submit.

    Args:
        jobs_max: most jobs; there is at least one.
        within_s: all are submitted in this time, seconds.
        longest_s: longest work of one job, seconds.
    """
    count = draw(st.integers(1, jobs_max))
    failures = st.builds(
        lambda kind, times: {"kind": kind, "times": times, "retry_after_s": 1.0},
        st.sampled_from(["validation", "rate_limited", "unavailable", "service_error", "out_of_memory"]),
        st.sampled_from([1, 5]),
    )
    return tuple(
        PlannedJob(
            job_id=f"job-{number:03d}",
            at_s=draw(_seconds(0.0, within_s)),
            duration_s=draw(_seconds(0.01, longest_s)),
            priority=draw(st.sampled_from([50, 10, 90])),
            timeout_s=draw(st.sampled_from([60.0, 5.0])),
            delay_s=draw(st.sampled_from([0.0, 0.0, 2.0])),
            fail=draw(st.none() | failures),
            chunks=draw(st.sampled_from([0, 3])),
            idempotency_key=draw(st.sampled_from(["", f"key-{number:03d}"])),
            vram_gb=draw(st.sampled_from([0, 0, 24])),
            expires_in_s=draw(st.sampled_from([0.0, 0.0, 5.0, 30.0])),
            unique_key=draw(st.sampled_from(["", "", "red"])),
            unique_for_s=draw(st.sampled_from([0.0, 5.0])),
            after=draw(_parents(number)),
            release_on_failure=draw(st.booleans()),
        )
        for number in range(count)
    )


@st.composite
def incidents(
    draw: st.DrawFn,
    *,
    gateways: int,
    services: int,
    job_ids: Collection[str],
    safety_s: float,
    lease_s: float,
    incidents_max: int = 8,
    kinds: Collection[FaultKind] = MOMENTARY,
) -> tuple[Incident, ...]:
    """Faults at moments of a run, in order.

    Args:
        gateways, services: size of the fleet.
        job_ids: whom operators may meddle with.
        safety_s: length of the phase in which anything may fail, seconds.
        lease_s: length of a lease; lasting faults last up to 2.5 of them, seconds.
        incidents_max: most of them.
        kinds: which ones; those in ``UNDURABLE`` break the condition of the promises.
    """
    machines = [f"gateway-{number}" for number in range(gateways)]
    instances = [f"service-{number}" for number in range(services)]

    def target(kind: FaultKind) -> st.SearchStrategy[str]:
        if kind in _MACHINE:
            return st.sampled_from(machines)
        if kind in _CUTS:
            pairs = [(machine, other) for machine in machines for other in ("redis", *instances)]
            return st.sampled_from([">".join(way) for pair in pairs for way in (pair, pair[::-1])])
        if kind in _OPERATORS:
            return st.sampled_from(sorted(job_ids))
        if kind in _SERVICE:
            return st.sampled_from(instances)
        return st.just("redis")

    found = []
    for _ in range(draw(st.integers(0, incidents_max))):
        kind = draw(st.sampled_from(sorted(kinds)))
        found.append(
            Incident(
                at_s=draw(_seconds(0.5, 0.9 * safety_s)),
                kind=kind,
                target=draw(target(kind)),
                for_s=draw(_seconds(0.0, 2.5 * lease_s)) if kind not in _OPERATORS else 0.0,
                number=draw(st.integers(1, STEPS_MAX)) if kind is FaultKind.KILL_AT_STEP else 0,
            )
        )
    return tuple(sorted(found, key=lambda one: (one.at_s, one.kind, one.target)))


def link_levels() -> st.SearchStrategy[LinkLevels]:
    """What the links do to chunks: often nothing, else up to the levels of a swarm."""
    loud = st.builds(
        LinkLevels,
        slow=_rate(0.1),
        lost_request=_rate(0.03),
        lost_reply=_rate(0.03),
        reset=_rate(0.03),
        duplicate=_rate(0.1),
    )
    return st.just(LinkLevels()) | loud


@st.composite
def service_faults(draw: st.DrawFn) -> dict[str, float | bool]:
    """Knobs of the simulated services that are turned, each up to a swarm's highest rate; see ``simulator faults``."""
    names = draw(st.lists(st.sampled_from(sorted(SERVICE_KNOBS)), unique=True, max_size=6))
    return {name: draw(_rate(SERVICE_KNOBS[name])) for name in names}


@st.composite
def fault_plans(
    draw: st.DrawFn,
    *,
    gateways: int = 3,
    services: int = 2,
    jobs_max: int = 12,
    incidents_max: int = 8,
    durable: bool = True,
) -> FleetPlan:
    """Whole runs, drawn part by part.

    Args:
        gateways, services: largest fleet.
        jobs_max, incidents_max: most jobs and incidents.
        durable: leave out what makes Redis lose acknowledged writes, under which nothing is promised.
    """
    lease_s = draw(st.sampled_from([6.0, 15.0]))
    safety_s = draw(_seconds(2 * lease_s, 5 * lease_s))
    size = draw(st.integers(1, gateways)), draw(st.integers(1, services))
    jobs = draw(workloads(jobs_max=jobs_max, within_s=0.7 * safety_s, longest_s=1.5 * lease_s))
    tenants = st.integers(0, 2**32 - 1).map(lambda seed: draw_shares(seed, [job.job_id for job in jobs]))
    kinds = [*MOMENTARY] if durable else [*MOMENTARY, *sorted(UNDURABLE)]
    return FleetPlan(
        seed=draw(st.integers(0, 2**32 - 1)),
        gateways=size[0],
        services=size[1],
        slots=draw(st.sampled_from([1, 2, 4])),
        lease_s=lease_s,
        safety_s=safety_s,
        jobs=jobs,
        incidents=draw(
            incidents(
                gateways=size[0],
                services=size[1],
                job_ids=[job.job_id for job in jobs],
                safety_s=safety_s,
                lease_s=lease_s,
                incidents_max=incidents_max,
                kinds=kinds,
            )
        ),
        links=draw(link_levels()),
        service_faults=draw(service_faults()),
        redis_offset_s=draw(st.sampled_from([0.0, -3600.0, 3600.0])),
        # Half the margin: a margin of a tenth of the lease carries drifts up to 5 %.
        redis_rate=draw(st.sampled_from([1.0, 0.96, 1.04])),
        schedules=draw(schedules(lease_s)),
        shares=draw(st.just(NO_SHARES) | tenants),
        protocols=draw(st.lists(st.sampled_from(ServiceProtocol), max_size=size[1]).map(tuple)),
        discovered=draw(st.booleans()),
    )


@st.composite
def fleet_plans(draw: st.DrawFn, *, gateways: int = 3, services: int = 2, jobs_max: int = 12) -> FleetPlan:
    """Runs of both kinds: swarms that follow from a seed alone, and plans drawn part by part, or a cross of the two.

    Args:
        gateways, services, jobs_max: largest fleet and workload.
    """
    swarm = generate_plan(
        draw(st.integers(0, 2**32 - 1)),
        gateways=draw(st.integers(1, gateways)),
        services=draw(st.integers(1, services)),
        jobs=draw(st.integers(1, jobs_max)),
    )
    swarm = msgspec.structs.replace(
        swarm, incidents=tuple(one for one in swarm.incidents if one.kind not in UNDURABLE)
    )
    if draw(st.booleans()):
        return swarm
    drawn = draw(fault_plans(gateways=gateways, services=services, jobs_max=jobs_max))
    if draw(st.booleans()):
        return drawn
    return msgspec.structs.replace(drawn, links=swarm.links, service_faults=swarm.service_faults)
