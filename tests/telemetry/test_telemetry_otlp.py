"""OTLP export against a collector on the loopback address."""

from __future__ import annotations

import functools
import socket
from collections.abc import AsyncIterator

import pytest
import trio
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from gateway.config import TelemetryConfig
from gateway.errors import ConfigError
from gateway.models import Settlement, Verdict
from gateway.telemetry import Telemetry, build_telemetry
from protocols.http_responder import Responder, ServerRequest
from protocols.http_server import ServerHandle, serve_http
from tests.telemetry.facts import TRACE_ID, TRACEPARENT, make_grant


class Collector:
    """Keeps the body of every request, by path."""

    def __init__(self) -> None:
        self.bodies: dict[str, list[bytes]] = {}
        self.url = ""

    async def handle(self, request: ServerRequest, responder: Responder) -> None:
        self.bodies.setdefault(request.path, []).append(request.body)
        await responder.send_bytes(200, b"", "application/x-protobuf")


@pytest.fixture
async def collector(nursery: trio.Nursery) -> AsyncIterator[Collector]:
    found = Collector()
    handle: ServerHandle = await nursery.start(functools.partial(serve_http, found.handle))
    found.url = handle.url
    yield found
    nursery.cancel_scope.cancel()


def one_job(telemetry: Telemetry) -> None:
    grant = make_grant(traceparent=TRACEPARENT)
    with telemetry.attempt(grant, worker_id="w", connector_key="c", endpoint="e") as attempt:
        with attempt.service_call("run"):
            pass
        attempt.settled(Settlement.completed(grant, body="1"), Verdict.ACCEPTED)


async def test_collector_gets_spans_and_metrics(collector: Collector) -> None:
    """A collector receives, at the latest at shutdown, every span and the metrics under their names."""
    with trio.fail_after(20):
        telemetry = build_telemetry(TelemetryConfig(otlp_endpoint=f"{collector.url}/", service_name="gw-7"))
        one_job(telemetry)
        assert await trio.to_thread.run_sync(telemetry.shutdown, 10)
    spans = []
    for body in collector.bodies["/v1/traces"]:
        request = ExportTraceServiceRequest.FromString(body)
        for resource_spans in request.resource_spans:
            names = {item.key: item.value.string_value for item in resource_spans.resource.attributes}
            assert names["service.name"] == "gw-7"
            spans += [span for scope in resource_spans.scope_spans for span in scope.spans]
    assert {span.name for span in spans} == {"queue.wait", "job.attempt", "service.run", "job.settle"}
    assert {span.trace_id.hex() for span in spans} == {TRACE_ID}
    metrics = ExportMetricsServiceRequest.FromString(collector.bodies["/v1/metrics"][-1])
    found = {
        metric.name: metric
        for resource in metrics.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert found["jobs_total"].sum.is_monotonic
    assert found["jobs_total"].sum.data_points[0].as_int == 1
    assert found["job_duration_seconds"].histogram.data_points[0].count == 1
    assert found["job_duration_seconds"].unit == "s"
    assert found["jobs_running"].gauge.data_points[0].as_int == 0


async def test_shutdown_is_bounded_when_the_collector_hangs() -> None:
    """A collector that accepts and never answers costs no more than the time given."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        telemetry = build_telemetry(TelemetryConfig(otlp_endpoint=endpoint))
        one_job(telemetry)
        with trio.fail_after(5):
            assert not await trio.to_thread.run_sync(telemetry.shutdown, 0.2)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4318", "grpc://127.0.0.1:4317", "http://", "http://a:port"])
def test_an_address_that_is_none_is_refused(endpoint: str) -> None:
    """An endpoint that is not an HTTP address is refused at start, with an example of a right one."""
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:4318"):
        build_telemetry(TelemetryConfig(otlp_endpoint=endpoint))
