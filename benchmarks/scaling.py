"""Processor time per job in the gateway's process as backlog, workers and classes grow: flat is the goal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import trio

from benchmarks.catalogue import Options, Report
from benchmarks.fleet import configuration, connected_store, running, submit
from benchmarks.noop import SERVICE
from benchmarks.server import machine, redis_server
from gateway.models import JobSpec
from gateway.process import calm_garbage_collection

#: Jobs at once in the whole process, the same at every point: more workers share them.
SLOTS = 256
JOBS = 10_000
WARM_UP = 2000
#: Each point is the best of several: what disturbs a processor only ever adds time.
REPEATS = 6


@dataclass(frozen=True, slots=True)
class Point:
    """One situation: jobs still waiting at the end of the measurement, workers, classes."""

    backlog: int
    workers: int
    classes: int


def _series(options: Options) -> dict[str, list[Point]]:
    backlogs = [1000, 10_000] if options.quick else [1000, 10_000, 100_000, 1_000_000]
    workers = [1, 8] if options.quick else [1, 4, 16, 64]
    classes = [1, 10] if options.quick else [1, 10, 100]
    return {
        "backlog": [Point(backlog, 4, 1) for backlog in backlogs],
        "workers": [Point(1000, count, 1) for count in workers],
        "classes": [Point(1000, 4, count) for count in classes],
    }


def measure(options: Options) -> Report:
    """Measure every point of every series.

    Raises:
        CannotMeasure: there is no redis-server.
    """
    calm_garbage_collection()
    jobs = options.jobs or (1000 if options.quick else JOBS)
    report: Report = {"jobs": jobs, "slots": SLOTS}
    for name, points in _series(options).items():
        costs_us = _costs_us(points, jobs, 1 if options.quick else REPEATS)
        report[name] = [
            {
                name: getattr(point, name),
                "cpu_us_per_job": round(cost_us, 1),
                "ratio_to_first": round(cost_us / costs_us[0], 3),
            }
            for point, cost_us in zip(points, costs_us, strict=True)
        ]
    with redis_server() as server:
        report["machine"] = machine(server)
    return report


def _costs_us(points: Sequence[Point], jobs: int, repeats: int) -> list[float]:
    """The least cost per job of each point, the points taken in turn so that all meet the same noise."""
    with ExitStack() as stack:
        servers = [stack.enter_context(redis_server()) for _ in points]
        for server, point in zip(servers, points, strict=True):
            trio.run(_fill, server.url, range(point.backlog), point)
        costs_us: list[list[float]] = [[] for _ in points]
        for repeat in range(repeats):
            for server, point, found in zip(servers, points, costs_us, strict=True):
                server.settle_down()
                # Ids that no earlier drain used; 10^7 is more than any of them submits.
                found.append(trio.run(_drain_us, server.url, point, jobs, (repeat + 1) * 10**7))
    return [min(found) for found in costs_us]


async def _fill(url: str, numbers: Sequence[int], point: Point) -> None:
    async with connected_store(url) as store:
        await submit(store, numbers, _specs(point.classes))


async def _drain_us(url: str, point: Point, jobs: int, first: int) -> float:
    """Cost per job of one drain on top of the backlog, which is the same afterwards."""
    total = WARM_UP + jobs
    await _fill(url, range(first, first + total), point)
    config = configuration(point.workers, max(1, SLOTS // point.workers), {"level": point.classes})
    async with running(url, config) as fleet:
        await fleet.counter.reach(WARM_UP)
        cpu_s, settled = time.process_time(), fleet.counter.settled
        await fleet.counter.reach(total)
        cpu_s, settled = time.process_time() - cpu_s, fleet.counter.settled - settled
    # Stopping took a few jobs more.
    await _fill(url, range(first + total, first + fleet.counter.settled), point)
    return cpu_s / settled * 1e6


def _specs(classes: int) -> Sequence[JobSpec]:
    """One specification per class, all of which every worker may run."""
    if classes == 1:
        return [JobSpec(service=SERVICE, payload={"size": 1})]
    return [
        JobSpec(service=SERVICE, payload={"size": 1}, requires={"level": {">=": number}})
        for number in range(classes)
    ]


def render(report: Report) -> str:
    """One small table per series."""
    lines = [f"processor time of the gateway's process per job, {report['jobs']} jobs per point"]
    for name in ("backlog", "workers", "classes"):
        lines.append(f"\n{name:>10}  µs per job  ratio")
        lines += [
            f"{row[name]:>10,}  {row['cpu_us_per_job']:>10}  {row['ratio_to_first']:>5}"
            for row in report[name]
        ]
    return "\n".join(lines) + "\n"
