"""Trace context of the submitter: only the OpenTelemetry API, a no-op where no tracer is configured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace


def _traceparent(context: trace.SpanContext) -> str:
    """W3C Trace Context, version 00."""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


@contextmanager
def submit_span(queue: str, count: int) -> Iterator[str]:
    """The ``traceparent`` that jobs submitted inside this block should carry; empty when nothing is traced.

    The current span's, if there is one; otherwise that of a new span ``submit`` around the block.

    Args:
        queue: name of the queue, an attribute of the new span.
        count: number of jobs, an attribute of the new span.
    """
    current = trace.get_current_span().get_span_context()
    if current.is_valid:
        yield _traceparent(current)
        return
    tracer = trace.get_tracer("trio-gateway")
    attributes: dict[str, str | int] = {
        "messaging.destination.name": queue,
        "messaging.batch.message_count": count,
    }
    with tracer.start_as_current_span("submit", kind=trace.SpanKind.PRODUCER, attributes=attributes) as span:
        context = span.get_span_context()
        yield _traceparent(context) if context.is_valid else ""
