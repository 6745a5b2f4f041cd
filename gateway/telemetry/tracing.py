"""Spans of a job: one trace from its submission to its settlement, whoever runs it.

Everything is created through providers of our own; OpenTelemetry's process-wide ones stay untouched, since several
gateways may live in one process. Every time stamp is passed in, so that a simulation's spans carry virtual times.
"""

from __future__ import annotations

import random as random_module
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Link, Span, SpanContext, SpanKind
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway.models import Grant, JobId

SCOPE = "gateway"
#: Jobs whose last attempt this process remembers, to link the next one to it: 4096 are about 1 MB.
REMEMBERED_MAX = 4096

_W3C = TraceContextTextMapPropagator()


class SeededIdGenerator(IdGenerator):
    """Trace and span ids from an injected source, so that a simulation gives the same ids each time.

    Args:
        random: where the ids come from.
    """

    def __init__(self, random: random_module.Random) -> None:
        self._random = random

    def generate_trace_id(self) -> int:
        # Zero is the one invalid id.
        return self._random.randrange(1, 1 << 128)

    def generate_span_id(self) -> int:
        return self._random.randrange(1, 1 << 64)

    def is_trace_id_random(self) -> bool:
        return True


def parse_traceparent(traceparent: str) -> SpanContext | None:
    """The span a W3C traceparent names, or None for an empty or malformed one."""
    if not traceparent:
        return None
    context = _W3C.extract({"traceparent": traceparent}, context_api.Context())
    span_context = trace.get_current_span(context).get_span_context()
    return span_context if span_context.is_valid else None


def headers_of(span_context: SpanContext) -> dict[str, str]:
    """W3C headers (traceparent, and tracestate where there is one) that make a request a child of this span."""
    headers: dict[str, str] = {}
    span = trace.NonRecordingSpan(span_context)
    _W3C.inject(headers, trace.set_span_in_context(span, context_api.Context()))
    return headers


def ambient_traceparent() -> str:
    """The W3C traceparent of the calling code's own current span, or empty: what a submitter passes on."""
    span_context = trace.get_current_span().get_span_context()
    return headers_of(span_context)["traceparent"] if span_context.is_valid else ""


class Tracing:
    """A tracer of our own and what it remembers.

    Args:
        processors: where finished spans go.
        resource: who we are.
        sample_ratio: share of the traces that begin here and are recorded, 0 to 1; a trace that began elsewhere
            follows its own decision.
        wall_ns: wall clock, nanoseconds since the epoch.
        id_generator: source of ids; OpenTelemetry's own (unseeded) if None.
    """

    def __init__(
        self,
        processors: Sequence[SpanProcessor],
        *,
        resource: Resource,
        sample_ratio: float,
        wall_ns: Callable[[], int],
        id_generator: IdGenerator | None = None,
    ) -> None:
        self.provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
            resource=resource,
            shutdown_on_exit=False,
            id_generator=id_generator,
        )
        for processor in processors:
            self.provider.add_span_processor(processor)
        self._tracer = self.provider.get_tracer(SCOPE)
        self._wall_ns = wall_ns
        self._previous: OrderedDict[JobId, SpanContext] = OrderedDict()

    def now_ns(self) -> int:
        return self._wall_ns()

    def start(
        self,
        name: str,
        parent: SpanContext | None,
        *,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: dict[str, str | int | bool] | None = None,
        links: Sequence[Link] = (),
        start_ns: int | None = None,
    ) -> Span:
        """A span under that parent (a trace of its own for None), whatever the calling task's context holds."""
        context = context_api.Context()
        if parent is not None:
            context = trace.set_span_in_context(trace.NonRecordingSpan(parent), context)
        return self._tracer.start_span(
            name,
            context,
            kind=kind,
            attributes=attributes,
            links=links,
            start_time=self._wall_ns() if start_ns is None else start_ns,
        )

    @contextmanager
    def submitting(self, job_id: str, service: str) -> Iterator[str]:
        """The span of a submission, under the caller's current span if any, and current itself within the block.

        Yields its W3C traceparent.
        """
        ambient = trace.get_current_span().get_span_context()
        span = self.start(
            "job.submit",
            ambient if ambient.is_valid else None,
            kind=SpanKind.PRODUCER,
            attributes={"job.id": job_id, "job.service": service},
        )
        attached = context_api.attach(trace.set_span_in_context(span))
        try:
            yield headers_of(span.get_span_context())["traceparent"]
        finally:
            context_api.detach(attached)
            span.end(self._wall_ns())

    def waited(self, grant: Grant, parent: SpanContext) -> None:
        """The span of a job's time in the queue, by the clock of Redis."""
        if not 0 < grant.enqueued_ms <= grant.claimed_ms:
            return
        span = self.start(
            "queue.wait",
            parent,
            attributes={"job.id": grant.job_id, "job.epoch": grant.epoch, "job.class": grant.class_id},
            start_ns=grant.enqueued_ms * 1_000_000,
        )
        span.end(grant.claimed_ms * 1_000_000)

    def remember(self, job_id: JobId, attempt: SpanContext) -> None:
        """Keep an attempt for the link of the next one."""
        self._previous[job_id] = attempt
        self._previous.move_to_end(job_id)
        if len(self._previous) > REMEMBERED_MAX:
            self._previous.popitem(last=False)

    def recall(self, job_id: JobId) -> list[Link]:
        """The link to this job's previous attempt, as far as this process made it."""
        previous = self._previous.pop(job_id, None)
        return [] if previous is None else [Link(previous, {"link.type": "previous_attempt"})]
