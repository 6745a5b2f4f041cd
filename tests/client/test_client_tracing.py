"""The submitter's trace context travels with the job."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from opentelemetry import trace

from gateway.client import Client
from tests.support.hand_worker import fresh_queue

OWN_SPAN = """
import json, sys
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from gateway.client import Client

exporter = InMemorySpanExporter()
provider = TracerProvider(shutdown_on_exit=False)
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
with Client(sys.argv[1], queue=sys.argv[2]) as client:
    handle = client.submit("simulation", allow_unknown_service=True)
    traceparent = client.get(handle.job_id).spec.traceparent
(span,) = exporter.get_finished_spans()
print(json.dumps([span.name, format(span.context.trace_id, "032x"), format(span.context.span_id, "016x"), traceparent]))
"""


def test_current_span_is_carried(redis_url: str) -> None:
    """Inside a span the job carries that span's context; outside, without a tracer, none."""
    context = trace.SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=trace.TraceFlags(1))
    with Client(redis_url, queue=fresh_queue()) as client:
        with trace.use_span(trace.NonRecordingSpan(context)):
            traced = client.submit("simulation")
        untraced = client.submit("simulation")
        assert client.get(traced.job_id).spec.traceparent == f"00-{0xABC:032x}-{0xDEF:016x}-01"
        assert client.get(untraced.job_id).spec.traceparent == ""


def test_own_span_where_a_tracer_is_configured(redis_url: str) -> None:
    """Without a current span but with a tracer, the client's own span `submit` is the parent of the job."""
    done = subprocess.run(
        [sys.executable, "-c", OWN_SPAN, redis_url, fresh_queue()],
        capture_output=True, text=True, timeout=30, check=True, env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    name, trace_id, span_id, traceparent = json.loads(done.stdout)
    carried, _, flags = traceparent.rpartition("-")
    assert (name, carried) == ("submit", f"00-{trace_id}-{span_id}")
    assert int(flags, 16) & 1  # sampled
