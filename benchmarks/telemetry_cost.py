"""What telemetry costs per job: ``python -m benchmarks.telemetry_cost``.

Each configuration handles the same job again and again: claimed, attempted, one service call, settled. The best of
several rounds is shown, since everything else on the machine can only make a round slower.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import msgspec
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from gateway.config import TelemetryConfig
from gateway.models import ClassId, Epoch, Grant, JobId, JobSpec, Settlement, Verdict
from gateway.observer import Observer, SilentObserver
from gateway.telemetry import build_telemetry
from gateway.telemetry.instruments import InstrumentSet
from gateway.telemetry.metrics import GatewayMetrics

ROUNDS = 7
JOBS = 10_000
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

GRANT = Grant(
    job_id=JobId("job-1"),
    epoch=Epoch(1_700_000_000_000_000),
    class_id=ClassId("simulation"),
    spec=JobSpec(service="simulation", traceparent=TRACEPARENT),
    attempts=0,
    recoveries=0,
    reference="",
    cancel_requested=False,
    submitted_ms=1_700_000_000_000,
    enqueued_ms=1_700_000_000_000,
    claimed_ms=1_700_000_000_007,
)
SETTLEMENT = Settlement.completed(GRANT, body="1")


class Discard(SpanExporter):
    """Takes spans and drops them: what remains is the cost of making them."""

    def export(self, spans: object) -> SpanExportResult:
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Nothing to end."""


def best_us(once: Callable[[], None], *, times: int = JOBS) -> float:
    """Microseconds of one call, in the best of the rounds."""
    best_s = float("inf")
    for _ in range(ROUNDS):
        began_s = time.perf_counter()
        for _ in range(times):
            once()
        best_s = min(best_s, time.perf_counter() - began_s)
    return best_s / times * 1e6


def job(observer: Observer, grant: Grant = GRANT) -> Callable[[], None]:
    """One job as the runner tells it."""

    def once() -> None:
        with observer.attempt(
            grant, worker_id="m/w", connector_key="simulation-http", endpoint="http://127.0.0.1:1"
        ) as attempt:
            with attempt.service_call("run"):
                _ = attempt.headers
            attempt.settled(SETTLEMENT, Verdict.ACCEPTED)

    return once


def counted(metrics: GatewayMetrics) -> Callable[[], None]:
    """The metrics of one job alone, claimed by itself (a claim of many spreads its round trip)."""

    def once() -> None:
        metrics.claimed("m/w", (GRANT,), 0.001)
        metrics.began("simulation")
        metrics.settled(GRANT, SETTLEMENT, Verdict.ACCEPTED, 0.25)
        metrics.ended("simulation")

    return once


def counted_by_sdk() -> Callable[[], None]:
    """The same facts through the instruments of the OpenTelemetry SDK, with attributes made beforehand."""
    provider = MeterProvider(
        [InMemoryMetricReader()],
        resource=Resource({}),
        shutdown_on_exit=False,
        exemplar_filter=AlwaysOffExemplarFilter(),
    )
    meter = provider.get_meter("benchmark")
    claims, jobs = meter.create_counter("claims_total"), meter.create_counter("jobs_total")
    running = meter.create_up_down_counter("jobs_running")
    latency = meter.create_histogram("claim_latency_seconds")
    round_trip = meter.create_histogram("claim_round_trip_seconds")
    duration = meter.create_histogram("job_duration_seconds")
    worker, service = {"worker": "m/w"}, {"service": "simulation"}
    success = {"service": "simulation", "success": "true"}
    status = {"service": "simulation", "status": "completed"}

    def once() -> None:
        claims.add(1, worker)
        round_trip.record(0.001)
        latency.record(0.007, service)
        running.add(1, service)
        jobs.add(1, status)
        duration.record(0.25, success)
        running.add(-1, service)

    return once


def main() -> None:
    """Measure and show."""
    quiet = build_telemetry(TelemetryConfig())
    traced = build_telemetry(TelemetryConfig(), span_exporter=Discard())
    unsampled = msgspec.structs.replace(
        GRANT, spec=msgspec.structs.replace(GRANT.spec, traceparent=TRACEPARENT[:-1] + "0")
    )
    metrics = GatewayMetrics(InstrumentSet(Resource({}), "benchmark", time.time_ns))
    fewer = JOBS // 10
    figures = {
        "attempt, nothing observed": best_us(job(SilentObserver())),
        "attempt, no exporter (metrics included)": best_us(job(quiet)),
        "metrics of one job": best_us(counted(metrics)),
        "metrics of one job, SDK instruments": best_us(counted_by_sdk(), times=fewer),
        "attempt, exporter, submitter's trace not recorded": best_us(job(traced, unsampled), times=fewer),
        "attempt, exporter, recorded (4 spans)": best_us(job(traced), times=fewer),
    }
    for name, cost_us in figures.items():
        sys.stdout.write(f"{cost_us:9.2f} µs  {name}\n")
    ratio = figures["metrics of one job, SDK instruments"] / figures["metrics of one job"]
    sys.stdout.write(f"{ratio:9.1f} ×   SDK instruments against ours\n")


if __name__ == "__main__":
    main()
