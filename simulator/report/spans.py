"""One run as OpenTelemetry spans: a trace per job, and one of the machines; ids and times follow from the seed.

Each line is an OTLP export request in JSON, the form that the collector's file receiver reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from random import Random
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, format_span_id, format_trace_id

from gateway.telemetry.tracing import SeededIdGenerator, Tracing
from simulator.redis_twin import EPOCH_S
from simulator.report.lanes import Bar, Story, story_of

if TYPE_CHECKING:
    from simulator.run import Run

#: OTLP counts span kinds from 1, the SDK from 0.
_KIND_OFFSET = 1


class _LineExporter(SpanExporter):
    """Keeps each span as one line of OTLP JSON, in the order in which they end here."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.lines += [json.dumps(_request(span), separators=(",", ":")) for span in spans]
        return SpanExportResult.SUCCESS


def spans(run: Run) -> Iterator[str]:
    """The run's spans, one JSON line each; equal for equal runs."""
    story = story_of(run)
    seed = run.outcome.plan.seed
    exporter = _LineExporter()
    tracing = Tracing(
        [SimpleSpanProcessor(exporter)],
        resource=Resource({"service.name": "simulator", "simulation.seed": seed}),
        sample_ratio=1.0,
        wall_ns=lambda: _ns(story.end_s),
        id_generator=SeededIdGenerator(Random(f"{seed}/spans")),
    )
    _machines(tracing, story)
    _jobs(tracing, story)
    tracing.provider.shutdown()
    yield from exporter.lines


def _ns(at_s: float) -> int:
    return int((EPOCH_S + round(at_s, 6)) * 1_000_000) * 1000


def _span(
    tracing: Tracing,
    name: str,
    parent: SpanContext | None,
    bar: Bar,
    attributes: dict[str, str | int | bool],
    *,
    failed: bool = False,
) -> SpanContext:
    span = tracing.start(
        name, parent, kind=SpanKind.INTERNAL, attributes=attributes, start_ns=_ns(bar.start_s)
    )
    if failed:
        span.set_status(Status(StatusCode.ERROR, bar.outcome))
    span.end(_ns(bar.end_s))
    return span.get_span_context()


def _whole(story: Story, bars: Iterable[Bar]) -> Bar:
    found = list(bars)
    start_s = min((bar.start_s for bar in found), default=0.0)
    end_s = max((bar.end_s for bar in found), default=story.end_s)
    return Bar(start_s=start_s, end_s=end_s, kind="whole", label="")


def _machines(tracing: Tracing, story: Story) -> None:
    """One trace: the run, in it every life of a gateway and every lasting fault."""
    whole = Bar(start_s=0.0, end_s=story.end_s, kind="whole", label="")
    root = _span(tracing, "simulation.run", None, whole, {})
    for group in ("gateways", "redis, network and people", "services"):
        for lane in story.groups[group]:
            for bar in lane.bars:
                if bar.kind in ("life", "fault"):
                    attributes: dict[str, str | int | bool] = {"node": lane.name, "what": bar.label}
                    _span(tracing, f"node.{bar.kind}", root, bar, attributes, failed=bar.kind == "fault")


def _jobs(tracing: Tracing, story: Story) -> None:
    """One trace per job: its waits, its leases as Redis saw them, the beliefs of its owners, its executions."""
    beliefs = [bar for lane in story.groups["gateways"] for bar in lane.bars if bar.kind == "own"]
    executions = [(lane.name, bar) for lane in story.groups["services"] for bar in lane.bars]
    for lane in story.groups["jobs"]:
        job_id = lane.name
        root = _span(tracing, "job", None, _whole(story, lane.bars), {"job.id": job_id})
        for bar in lane.bars:
            attributes: dict[str, str | int | bool] = {"job.id": job_id, "outcome": bar.outcome}
            if bar.kind == "running":
                attributes["worker"] = bar.label
            _span(tracing, f"job.{bar.kind}", root, bar, attributes)
        for bar in beliefs:
            if bar.about == job_id:
                attributes = {"job.id": job_id, "gateway": bar.owner, "outcome": bar.outcome}
                _span(tracing, "gateway.owns", root, bar, attributes)
        for service, bar in executions:
            if bar.about.startswith(f"{job_id}."):
                attributes = {"job.id": job_id, "service": service, "reference": bar.about}
                _span(tracing, "service.execution", root, bar, {**attributes, "outcome": bar.outcome})


def _request(span: ReadableSpan) -> dict[str, Any]:
    context = span.get_span_context()
    assert context is not None, "a recorded span has a context"
    body: dict[str, Any] = {
        "traceId": format_trace_id(context.trace_id),
        "spanId": format_span_id(context.span_id),
        "parentSpanId": format_span_id(span.parent.span_id) if span.parent else "",
        "name": span.name,
        "kind": span.kind.value + _KIND_OFFSET,
        "startTimeUnixNano": str(span.start_time),
        "endTimeUnixNano": str(span.end_time),
        "attributes": _attributes(span.attributes or {}),
        "status": {"code": span.status.status_code.value, "message": span.status.description or ""},
    }
    resource = {"attributes": _attributes(span.resource.attributes)}
    scope = {"scope": {"name": "simulator"}, "spans": [body]}
    return {"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}


def _attributes(values: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": _value(values[key])} for key in sorted(values)]


def _value(value: object) -> dict[str, Any]:
    if isinstance(value, bool):
        return {"boolValue": value}
    if isinstance(value, int):
        return {"intValue": str(value)}
    return {"stringValue": str(value)}
