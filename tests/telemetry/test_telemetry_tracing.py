"""Spans: one trace per job, the right parents, links, headers and times; nothing at all without an exporter."""

from __future__ import annotations

import io
import json
import random
import threading

import pytest
import trio
import trio.testing
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from gateway.config import TelemetryConfig
from gateway.errors import FaultClass, JobFault
from gateway.models import Grant, Settlement, Verdict
from gateway.telemetry import SeededIdGenerator, Telemetry, build_telemetry, current_log_context
from gateway.telemetry.tracing import REMEMBERED_MAX, parse_traceparent
from tests.telemetry.facts import CLAIMED_MS, TRACE_ID, TRACEPARENT, HandClock, make_grant


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def telemetry(spans: InMemorySpanExporter, clock: HandClock) -> Telemetry:
    return build_telemetry(
        TelemetryConfig(),
        span_exporter=spans,
        id_generator=SeededIdGenerator(random.Random(1)),
        now_s=clock.monotonic_s,
        wall_ns=clock.wall_ns,
    )


def run_job(telemetry: Telemetry, clock: HandClock, grant: Grant) -> str:
    """One attempt that succeeds; returns the traceparent its service saw."""
    with telemetry.attempt(
        grant, worker_id="m1/sim-gpu0", connector_key="simulation-http", endpoint="http://127.0.0.1:9"
    ) as attempt:
        clock.now_s += 1
        with attempt.service_call("run"):
            seen = attempt.headers["traceparent"]
            clock.now_s += 3
        clock.now_s += 0.5
        attempt.settled(Settlement.completed(grant, body="1"), Verdict.ACCEPTED)
    return seen


def by_name(spans: InMemorySpanExporter) -> dict[str, ReadableSpan]:
    return {span.name: span for span in spans.get_finished_spans()}


def ids(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def parent_id(span: ReadableSpan) -> int:
    assert span.parent is not None
    return span.parent.span_id


def duration_s(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def test_one_trace_from_submission_to_settlement(
    telemetry: Telemetry, spans: InMemorySpanExporter, clock: HandClock
) -> None:
    """Submit, wait, attempt, request and settlement are one trace, each under the span that caused it."""
    with telemetry.submitting("job-1", "simulation") as traceparent:
        assert trace.get_current_span().get_span_context().is_valid
    seen = run_job(telemetry, clock, make_grant(traceparent=traceparent))
    found = by_name(spans)
    assert set(found) == {"job.submit", "queue.wait", "job.attempt", "service.run", "job.settle"}
    assert len({ids(span)[0] for span in found.values()}) == 1
    submit, attempt = ids(found["job.submit"])[1], ids(found["job.attempt"])[1]
    assert found["job.submit"].parent is None
    assert parent_id(found["queue.wait"]) == parent_id(found["job.attempt"]) == submit
    assert parent_id(found["service.run"]) == parent_id(found["job.settle"]) == attempt
    trace_id, request = ids(found["service.run"])
    assert seen == f"00-{trace_id:032x}-{request:016x}-03"


def test_times_are_the_injected_clocks(
    telemetry: Telemetry, spans: InMemorySpanExporter, clock: HandClock
) -> None:
    """Spans last as long as the given clock says; the wait lasts as long as Redis says."""
    run_job(telemetry, clock, make_grant(traceparent=TRACEPARENT))
    found = by_name(spans)
    assert duration_s(found["job.attempt"]) == pytest.approx(4.5)
    assert duration_s(found["service.run"]) == pytest.approx(3)
    assert duration_s(found["job.settle"]) == pytest.approx(0.5)
    assert duration_s(found["queue.wait"]) == pytest.approx(0.5)
    assert found["queue.wait"].end_time == CLAIMED_MS * 1_000_000


def test_attempt_says_what_it_was(
    telemetry: Telemetry, spans: InMemorySpanExporter, clock: HandClock
) -> None:
    """An attempt's span names job, lease, worker, connector and end; the settlement's the verdict."""
    run_job(telemetry, clock, make_grant(traceparent=TRACEPARENT, attempts=1))
    found = by_name(spans)
    assert dict(found["job.attempt"].attributes or {}) == {
        "job.id": "job-1",
        "job.service": "simulation",
        "job.class": "simulation",
        "job.epoch": 7,
        "job.attempt": 2,
        "job.recoveries": 0,
        "worker.id": "m1/sim-gpu0",
        "connector": "simulation-http",
        "endpoint": "http://127.0.0.1:9",
        "verdict": "accepted",
        "job.status": "completed",
    }
    assert (found["job.settle"].attributes or {})["settlement.kind"] == "completed"
    assert (found["job.settle"].attributes or {})["verdict"] == "accepted"
    assert found["job.attempt"].resource.attributes["service.name"] == "trio-gateway"


def test_attempts_of_a_job_share_the_trace_and_link_back(
    telemetry: Telemetry, spans: InMemorySpanExporter, clock: HandClock
) -> None:
    """A second attempt hangs under the same submission and links to the first; a finished job is forgotten."""
    first = make_grant(traceparent=TRACEPARENT, epoch=7)
    with telemetry.attempt(first, worker_id="w", connector_key="c", endpoint="e") as attempt:
        attempt.faulted(FaultClass.TIMEOUT, "too slow")
        failure = Settlement.failed_for_retry(first, body="{}", detail="", delay_s=1, avoid_s=0)
        attempt.settled(failure, Verdict.ACCEPTED)
    run_job(telemetry, clock, make_grant(traceparent=TRACEPARENT, epoch=8, attempts=1))
    run_job(telemetry, clock, make_grant(traceparent=TRACEPARENT, epoch=9))
    one, two, three = (span for span in spans.get_finished_spans() if span.name == "job.attempt")
    assert f"{ids(one)[0]:032x}" == f"{ids(two)[0]:032x}" == TRACE_ID
    assert parent_id(one) == parent_id(two) == 0xB7AD6B7169203331
    assert [link.context.span_id for link in two.links] == [ids(one)[1]]
    assert not one.links
    assert not three.links
    assert one.status.status_code is StatusCode.ERROR
    assert (one.attributes or {})["fault.class"] == "timeout"


def test_without_a_submitter_each_attempt_begins_a_trace(
    telemetry: Telemetry, spans: InMemorySpanExporter, clock: HandClock
) -> None:
    """No or a malformed trace context begins a new trace, which holds the wait too, and links still lead back."""
    lost = make_grant(epoch=7)
    with telemetry.attempt(lost, worker_id="w", connector_key="c", endpoint="e"):
        clock.now_s += 1
    run_job(telemetry, clock, make_grant(epoch=8, traceparent="00-nonsense"))
    one, two = (span for span in spans.get_finished_spans() if span.name == "job.attempt")
    assert one.parent is None
    assert two.parent is None
    assert ids(one)[0] != ids(two)[0]
    assert [link.context.span_id for link in two.links] == [ids(one)[1]]
    assert (one.attributes or {})["job.status"] == "lost"
    waits = [span for span in spans.get_finished_spans() if span.name == "queue.wait"]
    assert [parent_id(span) for span in waits] == [ids(one)[1], ids(two)[1]]


def test_sampling_follows_the_submitter(clock: HandClock) -> None:
    """The submitter's decision wins over the own ratio, in both directions, and is passed on to the service."""
    for ratio, flags, recorded in ((0.0, "01", 4), (1.0, "00", 0)):
        spans = InMemorySpanExporter()
        telemetry = build_telemetry(TelemetryConfig(sample_ratio=ratio), span_exporter=spans)
        seen = run_job(telemetry, clock, make_grant(traceparent=f"{TRACEPARENT[:-2]}{flags}"))
        assert len(spans.get_finished_spans()) == recorded
        assert seen.startswith(f"00-{TRACE_ID}-")
        assert seen.endswith(flags)
    spans = InMemorySpanExporter()
    run_job(build_telemetry(TelemetryConfig(sample_ratio=0.0), span_exporter=spans), clock, make_grant())
    assert spans.get_finished_spans() == ()


async def test_calls_in_two_tasks_keep_their_own_headers(
    telemetry: Telemetry, spans: InMemorySpanExporter
) -> None:
    """A run and a query of one job at the same time each hand their own span to the service."""
    seen: dict[str, str] = {}
    grant = make_grant(traceparent=TRACEPARENT)

    async def call(operation: str) -> None:
        with attempt.service_call(operation):
            await trio.testing.wait_all_tasks_blocked()
            seen[operation] = attempt.headers["traceparent"].split("-")[2]

    with (
        trio.fail_after(5),
        telemetry.attempt(grant, worker_id="w", connector_key="c", endpoint="e") as attempt,
    ):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(call, "run")
            nursery.start_soon(call, "query")
        outside = attempt.headers["traceparent"].split("-")[2]
    found = by_name(spans)
    assert seen == {name: f"{ids(found[f'service.{name}'])[1]:016x}" for name in ("run", "query")}
    assert outside == f"{ids(found['job.attempt'])[1]:016x}"


async def test_how_a_call_ended_is_on_its_span(telemetry: Telemetry, spans: InMemorySpanExporter) -> None:
    """A fault marks the span as failed with its class, a cancellation only as cancelled; both go on."""
    grant = make_grant(traceparent=TRACEPARENT)
    with telemetry.attempt(grant, worker_id="w", connector_key="c", endpoint="e") as attempt:
        with pytest.raises(JobFault), attempt.service_call("run"):
            raise JobFault(FaultClass.NETWORK, "reset")
        with trio.CancelScope() as scope, attempt.service_call("query"):
            scope.cancel()
            await trio.lowlevel.checkpoint()
    found = by_name(spans)
    assert (found["service.run"].attributes or {})["fault.class"] == "network"
    assert found["service.run"].status.status_code is StatusCode.ERROR
    assert (found["service.query"].attributes or {})["cancelled"] is True
    assert found["service.query"].status.status_code is StatusCode.UNSET
    assert scope.cancelled_caught


def test_without_an_exporter_the_submitters_context_passes_unchanged(clock: HandClock) -> None:
    """Silent telemetry makes no span and no current context, and still connects the service to the submitter."""
    telemetry = build_telemetry(TelemetryConfig(), now_s=clock.monotonic_s, wall_ns=clock.wall_ns)
    assert telemetry.tracing is None
    assert run_job(telemetry, clock, make_grant(traceparent=TRACEPARENT)) == TRACEPARENT
    grant = make_grant()
    with telemetry.attempt(grant, worker_id="w", connector_key="c", endpoint="e") as attempt:
        assert attempt.headers == {}
        assert not trace.get_current_span().get_span_context().is_valid
        assert current_log_context().job_id == "job-1"
    assert current_log_context().job_id == ""
    with telemetry.submitting("job-1", "simulation") as traceparent:
        assert traceparent == ""


def test_a_seed_gives_the_same_spans_again() -> None:
    """Ids and times of a seeded run are the same each time, and no thread is started for it."""
    runs = []
    threads = threading.active_count()
    for _ in range(2):
        spans, clock = InMemorySpanExporter(), HandClock()
        telemetry = build_telemetry(
            TelemetryConfig(),
            span_exporter=spans,
            id_generator=SeededIdGenerator(random.Random(5)),
            now_s=clock.monotonic_s,
            wall_ns=clock.wall_ns,
        )
        run_job(telemetry, clock, make_grant())
        runs.append(
            [(span.name, ids(span), span.start_time, span.end_time) for span in spans.get_finished_spans()]
        )
        assert telemetry.shutdown(0.1)
    assert runs[0] == runs[1]
    assert threading.active_count() == threads


def test_links_are_remembered_within_bounds(telemetry: Telemetry) -> None:
    """A process that loses job after job does not remember them all."""
    tracing = telemetry.tracing
    assert tracing is not None
    span_context = parse_traceparent(TRACEPARENT)
    assert span_context is not None
    jobs = [make_grant(job_id=f"job-{number}").job_id for number in range(REMEMBERED_MAX + 1)]
    for job_id in jobs:
        tracing.remember(job_id, span_context)
    assert tracing.recall(jobs[0]) == []
    assert len(tracing.recall(jobs[1])) == 1


def test_console_gets_one_json_line_per_span(clock: HandClock) -> None:
    """The console exporter writes each span as one line of JSON, at the latest at shutdown."""
    out = io.StringIO()
    telemetry = build_telemetry(TelemetryConfig(console=True), console=out)
    run_job(telemetry, clock, make_grant(traceparent=TRACEPARENT))
    assert telemetry.shutdown(10)
    assert telemetry.shutdown(10)
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert {line["name"] for line in lines} == {"queue.wait", "job.attempt", "service.run", "job.settle"}
    assert {line["context"]["trace_id"] for line in lines} == {f"0x{TRACE_ID}"}
