"""Throughput of one process from submit to fenced settlement, its latency when idle, and its cost in Redis."""

from __future__ import annotations

import statistics
import time
from typing import Any

import trio

from benchmarks.catalogue import Options, Report
from benchmarks.ceiling import ceiling
from benchmarks.fleet import Fleet, configuration, connected_store, running, seeded, submit
from benchmarks.server import Server, machine, redis_server, resident_bytes
from gateway.process import calm_garbage_collection
from gateway.store.calls import BATCH_MAX
from gateway.store.redis import RedisStore

#: One process as an operator would run it for light jobs: 1024 at once.
WORKERS = 8
SLOTS = 128
WARM_UP = 5000
JOBS = 30_000
ROUNDS = 5
ROUND_FIGURES = (
    "jobs_per_second",
    "ceiling_ratio",
    "drain_jobs_per_second",
    "drain_ceiling_ratio",
    "cpu_us_per_job",
)
PENDING = 1_000_000
SAMPLES = 500
WARM_UP_SAMPLES = 20


def measure(options: Options) -> Report:
    """Measure everything, each part on a fresh Redis.

    Raises:
        CannotMeasure: there is no redis-server.
    """
    # As the gateway's own process does at its start.
    calm_garbage_collection()
    jobs = options.jobs or (2000 if options.quick else JOBS)
    report: Report = {}
    rounds = [_round(jobs) for _ in range(1 if options.quick else ROUNDS)]
    report |= _medians(rounds)
    with redis_server(append_only=False) as server:
        in_memory = trio.run(_throughput, server, jobs, min(WARM_UP, jobs))
        report["without_append_only_file"] = {
            key: in_memory[key] for key in ("jobs_per_second", "drain_jobs_per_second")
        }
    with redis_server() as server:
        report |= trio.run(_latency, server, 100 if options.quick else SAMPLES)
    with redis_server() as server:
        report |= trio.run(_memory, server, 5000 if options.quick else PENDING)
    return report


def _round(jobs: int) -> Report:
    """The gateway and the ceiling right after each other, so that both meet the same noise."""
    with redis_server() as server:
        report: Report = {"machine": machine(server)}
        report |= trio.run(_throughput, server, jobs, min(WARM_UP, jobs))
    report |= ceiling(jobs=jobs, batches=report["batches"])
    for prefix in ("", "drain_"):
        ceiling_rate = report[f"{prefix}ceiling_jobs_per_second"]
        rate = report[f"{prefix}jobs_per_second"]
        report[f"{prefix}ceiling_ratio"] = round(rate / ceiling_rate, 3) if ceiling_rate else None
        # What would be if the gateway and Redis each had a processor that nobody else wants.
        alone_us = report[f"{prefix}ceiling_redis_cpu_us_per_job"]
        slower_us = max(report[f"{prefix}cpu_us_per_job"], report[f"{prefix}redis_cpu_us_per_job"])
        report[f"{prefix}ceiling_ratio_by_cpu"] = round(alone_us / slower_us, 3) if alone_us else None
    return report


def _medians(rounds: list[Report]) -> Report:
    """Each figure's median over the rounds, and what every round found for the ones that matter."""
    report = dict(rounds[-1])
    for key, value in rounds[-1].items():
        if isinstance(value, int | float):
            report[key] = statistics.median(one[key] for one in rounds)
    report["rounds"] = {key: [one[key] for one in rounds] for key in ROUND_FIGURES}
    return report


async def _throughput(server: Server, jobs: int, warm_up: int) -> Report:
    async with running(server.url, configuration(WORKERS, SLOTS)) as fleet:
        await submit(fleet.store, range(warm_up))
        await fleet.counter.reach(warm_up)
        server.settle_down()
        commands, trips = server.commands(), fleet.store.round_trips
        batches_before = fleet.store.batches
        redis_cpu_s = server.cpu_s()
        begun_s, cpu_s = time.perf_counter(), time.process_time()
        await submit(fleet.store, range(warm_up, warm_up + jobs))
        await fleet.counter.reach(warm_up + jobs)
        spent_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - cpu_s
        redis_cpu_s = server.cpu_s() - redis_cpu_s
        commands, trips = server.commands() - commands, fleet.store.round_trips - trips
        batches = _batch_sizes(jobs, batches_before, fleet.store.batches)
        report = {
            "jobs": jobs,
            "workers": WORKERS,
            "slots": SLOTS,
            "jobs_per_second": round(jobs / spent_s, 1),
            "cpu_us_per_job": round(cpu_s / jobs * 1e6, 1),
            "redis_cpu_us_per_job": round(redis_cpu_s / jobs * 1e6, 1),
            "redis_commands_per_job": round(commands / jobs, 2),
            "round_trips_per_job": round(trips / jobs, 4),
            "batches": batches,
            "process_resident_bytes": resident_bytes(),
        }
    return report | await _drain(server, jobs, warm_up + jobs)


async def _drain(server: Server, jobs: int, first: int) -> Report:
    """The same jobs, all waiting before the gateway starts; measured from its first settlements on."""
    async with connected_store(server.url) as store:
        await submit(store, range(first, first + jobs))
    server.settle_down()
    warm_up = jobs // 10
    redis_cpu_s = server.cpu_s()
    async with running(server.url, configuration(WORKERS, SLOTS)) as fleet:
        await fleet.counter.reach(warm_up)
        begun_s, settled, cpu_s = time.perf_counter(), fleet.counter.settled, time.process_time()
        await fleet.counter.reach(jobs)
        spent_s, cpu_s = time.perf_counter() - begun_s, time.process_time() - cpu_s
        redis_cpu_s = server.cpu_s() - redis_cpu_s
    measured = jobs - settled
    return {
        "drain_jobs_per_second": round(measured / spent_s, 1),
        "drain_cpu_us_per_job": round(cpu_s / measured * 1e6, 1),
        "drain_redis_cpu_us_per_job": round(redis_cpu_s / jobs * 1e6, 1),
    }


def _batch_sizes(jobs: int, before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    """Jobs per script call, the mean of the run; submissions go in full batches."""
    means = {name: round(jobs / max(1, after[name] - before[name])) for name in after}
    return {"submit": BATCH_MAX, **means}


async def _latency(server: Server, samples: int) -> Report:
    """From before the submission to the first line of the connector, on an idle queue, one job at a time."""
    jitter = seeded("latency")
    waits_ms: list[float] = []
    async with (
        running(server.url, configuration(WORKERS, SLOTS)) as fleet,
        connected_store(server.url) as store,
    ):
        for number in range(samples + WARM_UP_SAMPLES):
            # Longer than anything the gateway does after a job, and never in step with a timer of its own.
            await trio.sleep(jitter.uniform(0.005, 0.02))
            waits_ms.append(1000 * await _one(fleet, store, number))
    waits_ms = waits_ms[WARM_UP_SAMPLES:]
    cuts = statistics.quantiles(waits_ms, n=100)
    return {
        "latency_samples": len(waits_ms),
        "latency_p50_ms": round(cuts[49], 2),
        "latency_p99_ms": round(cuts[98], 2),
        "latency_max_ms": round(max(waits_ms), 2),
    }


async def _one(fleet: Fleet, store: RedisStore, number: int) -> float:
    sent_s = time.perf_counter()
    await submit(store, [number])
    await fleet.counter.reach(number + 1)
    return max(connector.started_s for connector in fleet.connectors) - sent_s


async def _memory(server: Server, pending: int) -> Report:
    """What jobs that only wait cost Redis, with the payload that ``benchmarks.fleet.submit`` gives them."""
    empty = server.info("memory")
    async with connected_store(server.url) as store:
        accepted = await submit(store, range(pending))
    server.settle_down()
    full = server.info("memory")
    return {
        "pending_jobs": accepted,
        "redis_used_bytes_per_pending_job": round((full["used_memory"] - empty["used_memory"]) / accepted, 1),
        "redis_resident_bytes_per_pending_job": round(
            (full["used_memory_rss"] - empty["used_memory_rss"]) / accepted, 1
        ),
    }


def render(report: Report) -> str:
    """The figures, one per line."""
    return "".join(f"{key:36} {_shown(value)}\n" for key, value in report.items())


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return "unknown" if value is None else f"{value:,}" if isinstance(value, int) else str(value)
