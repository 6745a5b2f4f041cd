"""Where spans and metrics leave the process: OTLP over HTTP and the console.

Everything here owns threads, so that a slow collector or terminal never holds up the event loop; deterministic
simulations build none of it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TextIO
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import MetricExporter, MetricsData
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

from gateway.errors import ConfigError

log = logging.getLogger(__name__)

#: Pause between two exports of metrics; Prometheus scrapes every 15 s by custom.
METRICS_EVERY_S = 15.0
#: One export's time limit: shorter than the pause, so exports never queue up behind a dead collector.
EXPORT_TIMEOUT_S = 5.0
#: How often spans leave, and how many may wait: what exceeds it is dropped, never blocks a job.
SPANS_EVERY_MS = 1000
SPANS_WAITING_MAX = 8192


def otlp_url(endpoint: str, signal: str) -> str:
    """The address of one signal below the collector's base address.

    Args:
        endpoint: for example ``http://127.0.0.1:4318``.
        signal: ``traces`` or ``metrics``.

    Raises:
        ConfigError: not an HTTP address.
    """
    try:
        parts = urlsplit(endpoint)
        _ = parts.port
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(
            "telemetry.otlp_endpoint: must be the base address of an OTLP/HTTP collector, "
            "for example http://127.0.0.1:4318"
        )
    return f"{endpoint.rstrip('/')}/v1/{signal}"


def otlp_spans(endpoint: str) -> SpanProcessor:
    """Spans to an OTLP collector, in batches."""
    exporter = OTLPSpanExporter(endpoint=otlp_url(endpoint, "traces"), timeout=EXPORT_TIMEOUT_S)
    return BatchSpanProcessor(
        exporter, max_queue_size=SPANS_WAITING_MAX, schedule_delay_millis=SPANS_EVERY_MS
    )


def console_spans(out: TextIO) -> SpanProcessor:
    """Spans as JSON, one per line."""
    exporter = ConsoleSpanExporter(out=out, formatter=_one_line)
    return BatchSpanProcessor(
        exporter, max_queue_size=SPANS_WAITING_MAX, schedule_delay_millis=SPANS_EVERY_MS
    )


def otlp_metrics(endpoint: str) -> MetricExporter:
    """Metrics to an OTLP collector."""
    return OTLPMetricExporter(endpoint=otlp_url(endpoint, "metrics"), timeout=EXPORT_TIMEOUT_S)


def _one_line(span: ReadableSpan) -> str:
    return str(span.to_json(indent=None)) + "\n"


class MetricsPusher:
    """Hands the metrics to an exporter at a fixed pace, in a thread of its own.

    Args:
        exporter: where they go.
        read: the metrics as they are now; called in the thread.
        every_s: pause between two exports, seconds.
    """

    def __init__(
        self,
        exporter: MetricExporter,
        read: Callable[[], MetricsData],
        every_s: float = METRICS_EVERY_S,
    ) -> None:
        self._exporter = exporter
        self._read = read
        self._every_s = every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gateway-metrics", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self._export()
        # What was counted since the last round.
        self._export()

    def _export(self) -> None:
        try:
            self._exporter.export(self._read(), timeout_millis=EXPORT_TIMEOUT_S * 1000)
        except Exception:
            # The thread must outlive one bad export; the next one carries the same sums.
            log.exception("metrics could not be exported")

    def shutdown(self) -> None:
        """Export once more and end the thread; takes at most two exports' time limits."""
        self._stop.set()
        self._thread.join(2 * EXPORT_TIMEOUT_S)
        self._exporter.shutdown()
