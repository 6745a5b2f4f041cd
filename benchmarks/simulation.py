"""How much faster than life a simulated fleet runs: simulated seconds per real second, 5 gateways, 2 services, 50 jobs.

Two loads, because what costs time is what happens, not how long it takes. A swarm crowds 50 short jobs and their faults
into a minute or two; a working hour has the same 50 jobs at the pace of graphics cards, 20 to 90 seconds each.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from random import Random

from benchmarks.catalogue import Options, Report
from simulator.plan import FleetPlan, PlannedJob, ServiceProtocol, generate_plan
from simulator.run import simulate

GATEWAYS, SERVICES, JOBS = 5, 2, 50
#: The design's aim.
AIM_PER_SECOND = 500.0
FIRST_SEED = 900_000
SWARM_RUNS = 16
HOUR_RUNS = 6
HOUR_S = 3600.0
QUICK_HOUR_S = 600.0
#: A generated image or clip takes about so long on the cards this is for, seconds.
JOB_S = (20.0, 90.0)


def swarm(seed: int, jobs: int) -> FleetPlan:
    """What ``simulator explore`` draws."""
    return generate_plan(seed, gateways=GATEWAYS, services=SERVICES, jobs=jobs)


def hour(seed: int, jobs: int, length_s: float = HOUR_S) -> FleetPlan:
    """The same fleet at work for an hour, undisturbed."""
    random = Random(f"hour/{seed}")
    protocols = tuple(random.sample(tuple(ServiceProtocol), SERVICES))
    return FleetPlan(
        seed=seed,
        gateways=GATEWAYS,
        services=SERVICES,
        slots=1,
        safety_s=length_s,
        protocols=protocols,
        jobs=tuple(
            PlannedJob(
                job_id=f"job-{number:03d}",
                at_s=round(random.uniform(0.0, 0.95 * length_s), 3),
                duration_s=round(random.uniform(*JOB_S), 3),
                timeout_s=600.0,
            )
            for number in range(jobs)
        ),
    )


def measure(options: Options) -> Report:
    """Run both loads on every processor at once.

    Raises:
        AssertionError: a run broke a promise; its speed means nothing.
    """
    processes = os.cpu_count() or 1
    jobs = options.jobs or JOBS
    report: Report = {
        "gateways": GATEWAYS,
        "services": SERVICES,
        "jobs": jobs,
        "processes": processes,
        "aim_per_second": AIM_PER_SECOND,
    }
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_quiet) as pool:
        # The first run of a process also imports everything.
        list(pool.map(_run, [swarm(seed, 1) for seed in range(2 * processes)]))
        an_hour = functools.partial(hour, length_s=QUICK_HOUR_S if options.quick else HOUR_S)
        for name, draw, runs in (("swarm", swarm, SWARM_RUNS), ("hour", an_hour, HOUR_RUNS)):
            count = processes if options.quick else runs
            plans = _plans(draw, count, jobs)
            begun_s = time.perf_counter()
            costs = list(pool.map(_run, plans))
            elapsed_s = time.perf_counter() - begun_s
            report[name] = _figures(costs, elapsed_s)
    return report


def _plans(draw: Callable[[int, int], FleetPlan], count: int, jobs: int) -> list[FleetPlan]:
    return [draw(FIRST_SEED + number, jobs) for number in range(count)]


def _quiet() -> None:
    logging.disable(logging.CRITICAL)


def _run(plan: FleetPlan) -> tuple[float, float, int]:
    """Simulated seconds, processor seconds and completed jobs of one run."""
    begun_s = time.process_time()
    outcome = simulate(plan).outcome
    assert outcome.ok, outcome.findings
    return outcome.simulated_s, time.process_time() - begun_s, outcome.completed


def _figures(costs: Sequence[tuple[float, float, int]], elapsed_s: float) -> Report:
    simulated_s = sum(cost[0] for cost in costs)
    return {
        "runs": len(costs),
        "simulated_seconds": round(simulated_s, 1),
        "completed": sum(cost[2] for cost in costs),
        "simulated_seconds_per_second": round(simulated_s / elapsed_s, 1),
        "simulated_seconds_per_cpu_second": round(simulated_s / sum(cost[1] for cost in costs), 1),
    }


def render(report: Report) -> str:
    """The report for a reader at a terminal."""
    lines = [
        f"{report['gateways']} gateways, {report['services']} services, {report['jobs']} jobs; "
        f"{report['processes']} processes; aim: {report['aim_per_second']:g} simulated seconds per second"
    ]
    for name, what in (("swarm", "drawn as explore does"), ("hour", "an hour of work")):
        figures = report[name]
        lines.append(
            f"{name:6} {figures['simulated_seconds_per_second']:8.1f} per second, "
            f"{figures['simulated_seconds_per_cpu_second']:8.1f} per processor second "
            f"({what}; {figures['runs']} runs, {figures['completed']} jobs completed)"
        )
    return "\n".join([*lines, ""])
