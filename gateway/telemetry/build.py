"""The telemetry of one gateway process: an observer that counts, traces and exports."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TextIO

from opentelemetry.sdk.metrics.export import MetricsData
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from gateway.breaker import BreakerState
from gateway.config import TelemetryConfig
from gateway.models import Grant, LeaseRef, QueueStats, SweepReport
from gateway.observer import AttemptObserver
from gateway.rollout import RolloutPolicy, Side
from gateway.strategies import Strategy
from gateway.telemetry.attempts import QuietAttempt, TracedAttempt
from gateway.telemetry.exporters import MetricsPusher, console_spans, otlp_metrics, otlp_spans
from gateway.telemetry.instruments import InstrumentSet
from gateway.telemetry.metrics import GatewayMetrics
from gateway.telemetry.tracing import SCOPE, Tracing, ambient_traceparent


class Telemetry:
    """Implements ``gateway.observer.Observer``; made by ``build_telemetry``.

    Attributes:
        metrics: what is counted.
        tracing: None while nobody receives spans.
        lag_s: last measured lag of the event loop, seconds.
    """

    def __init__(
        self,
        instruments: InstrumentSet,
        tracing: Tracing | None,
        pushers: Sequence[MetricsPusher],
        now_s: Callable[[], float],
        *,
        threaded: bool,
    ) -> None:
        self.metrics = GatewayMetrics(instruments)
        self.tracing = tracing
        self.lag_s = 0.0
        self._instruments = instruments
        self._pushers = pushers
        self._now_s = now_s
        self._threaded = threaded
        self._closed = False
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(instruments)

    def attempt(
        self, grant: Grant, *, worker_id: str, connector_key: str, endpoint: str
    ) -> AbstractContextManager[AttemptObserver]:
        if self.tracing is None:
            return QuietAttempt(self.metrics, self._now_s, grant, worker_id)
        return TracedAttempt(
            self.tracing,
            self.metrics,
            self._now_s,
            grant,
            worker_id=worker_id,
            connector_key=connector_key,
            endpoint=endpoint,
        )

    @contextmanager
    def submitting(self, job_id: str, service: str) -> Iterator[str]:
        """Wraps a submission: a client used within the block gives its jobs this span's trace context.

        Yields the W3C traceparent, for ``JobSpec.traceparent``. Without an exporter there is no span, and it is that
        of the caller's own current span, or empty.
        """
        if self.tracing is None:
            yield ambient_traceparent()
            return
        with self.tracing.submitting(job_id, service) as traceparent:
            yield traceparent

    def claimed(self, worker_id: str, grants: Sequence[Grant], round_trip_s: float) -> None:
        self.metrics.claimed(worker_id, grants, round_trip_s)

    def owned(self, lease: LeaseRef, worker_id: str, until_s: float) -> None:
        """Belief in a lease is for the auditor; nothing is counted."""

    def disowned(self, lease: LeaseRef, worker_id: str, reason: str) -> None:
        """Belief in a lease is for the auditor; nothing is counted."""

    def health(self, worker_id: str, service: str, endpoint: str, *, healthy: bool, detail: str) -> None:
        self.metrics.health(worker_id, service, endpoint, healthy=healthy)

    def breaker(self, worker_id: str, service: str, endpoint: str, state: BreakerState) -> None:
        self.metrics.breaker(worker_id, service, endpoint, state)

    def left(self, worker_id: str, service: str, endpoint: str) -> None:
        self.metrics.left(worker_id, service, endpoint)

    def swept(self, report: SweepReport) -> None:
        self.metrics.swept(report)

    def fired(self, schedule: str, outcome: str) -> None:
        self.metrics.fired(schedule, outcome)

    def queue(self, stats: QueueStats) -> None:
        self.metrics.queue(stats)

    def store(self, *, available: bool) -> None:
        self.metrics.store(available=available)

    def spool(self, size: int) -> None:
        self.metrics.spool(size)

    def loop_lag(self, lag_s: float) -> None:
        self.lag_s = lag_s
        self.metrics.loop_lag(lag_s)

    def rollout(self, worker_id: str, decision: str, policy: RolloutPolicy) -> None:
        self.metrics.rollout(worker_id, decision, policy)

    def rollout_attempt(self, worker_id: str, side: Side, *, failed: bool) -> None:
        self.metrics.rollout_attempt(worker_id, side, failed=failed)

    def recovering(self, strategy: Strategy, count: int = 1) -> None:
        self.metrics.recovering(strategy, count)

    def exposition(self) -> tuple[bytes, str]:
        """The metrics as a Prometheus page: body and content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def metrics_data(self) -> MetricsData:
        """The metrics in OpenTelemetry's data model."""
        return self._instruments.metrics_data()

    def snapshot(self) -> dict[str, float]:
        """Every series by its text form, for example ``jobs_total{service="x",status="completed"}``."""
        return self._instruments.snapshot()

    def shutdown(self, timeout_s: float = 5.0) -> bool:
        """Flush what waits and end the exporters' threads; later calls do nothing.

        Blocks: call it after the event loop ended, or in a thread.

        Args:
            timeout_s: longest wait, seconds; a collector that does not answer by then loses what waits.

        Returns:
            Whether everything ended in time.
        """
        if self._closed:
            return True
        self._closed = True
        if not self._threaded:
            self._close()
            return True
        # No exporter bounds its own shutdown, so the wait for it is bounded here; the thread dies with the process.
        closing = threading.Thread(target=self._close, name="gateway-telemetry-shutdown", daemon=True)
        closing.start()
        closing.join(timeout_s)
        return not closing.is_alive()

    def _close(self) -> None:
        if self.tracing is not None:
            self.tracing.provider.shutdown()
        for pusher in self._pushers:
            pusher.shutdown()


def build_telemetry(
    config: TelemetryConfig,
    *,
    span_exporter: SpanExporter | None = None,
    id_generator: IdGenerator | None = None,
    now_s: Callable[[], float] = time.monotonic,
    wall_ns: Callable[[], int] = time.time_ns,
    console: TextIO | None = None,
) -> Telemetry:
    """Build the telemetry of one process.

    Threads are started only for what ``config`` asks to export; a default configuration, with or without
    ``span_exporter``, starts none and reads no clock but the given ones.

    Args:
        config: what to export where.
        span_exporter: gets every span the moment it ends, in the calling task (tests, simulations).
        id_generator: source of trace and span ids, see ``SeededIdGenerator``.
        now_s: monotonic clock, seconds, for durations.
        wall_ns: wall clock, nanoseconds since the epoch, for time stamps.
        console: where ``config.console`` writes; standard error if None.

    Raises:
        ConfigError: ``otlp_endpoint`` is not an HTTP address.
    """
    # Resource.create would run its detectors in a thread pool.
    resource = Resource({"service.name": "gateway"}).merge(OTELResourceDetector().detect())
    resource = resource.merge(Resource({"service.name": config.service_name}))
    processors: list[SpanProcessor] = []
    if span_exporter is not None:
        processors.append(SimpleSpanProcessor(span_exporter))
    if config.otlp_endpoint:
        processors.append(otlp_spans(config.otlp_endpoint))
    if config.console:
        processors.append(console_spans(sys.stderr if console is None else console))
    tracing = None
    if processors:
        tracing = Tracing(
            processors,
            resource=resource,
            sample_ratio=config.sample_ratio,
            wall_ns=wall_ns,
            id_generator=id_generator,
        )
    instruments = InstrumentSet(resource, SCOPE, wall_ns)
    pushers = []
    if config.otlp_endpoint:
        pushers.append(MetricsPusher(otlp_metrics(config.otlp_endpoint), instruments.metrics_data))
    threaded = bool(config.otlp_endpoint) or config.console
    return Telemetry(instruments, tracing, pushers, now_s, threaded=threaded)
