"""One attempt at a job, followed: silently (metrics and log context only) or with spans.

An attempt is its own context manager: one object per job on a path that sees thousands of jobs a second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from contextvars import Token
from types import TracebackType

import trio
from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.trace import Span, SpanContext, SpanKind, StatusCode

from gateway.errors import FaultClass, JobFault
from gateway.models import Grant, Settlement, Verdict
from gateway.telemetry.context import CURRENT, InAttempt, LogContext
from gateway.telemetry.metrics import DEAD, LOST, GatewayMetrics
from gateway.telemetry.tracing import Tracing, headers_of, parse_traceparent

#: A fault's message is for people; beyond this many characters it only costs.
MESSAGE_MAX = 500
_NO_HEADERS: Mapping[str, str] = {}
_NO_CALL: AbstractContextManager[None] = nullcontext()
_ENDED = frozenset({"completed", "cancelled", DEAD})


class QuietAttempt:
    """Counts, and passes the submitter's trace context on unchanged; makes no spans.

    Args:
        now_s: monotonic clock, seconds.
    """

    __slots__ = ("_metrics", "_now_s", "_settled", "_started_s", "_token", "grant", "worker_id")

    def __init__(
        self, metrics: GatewayMetrics, now_s: Callable[[], float], grant: Grant, worker_id: str
    ) -> None:
        self._metrics = metrics
        self._now_s = now_s
        self.grant = grant
        self.worker_id = worker_id
        self._started_s = 0.0
        self._settled = False
        self._token: Token[InAttempt | None] | None = None

    def __enter__(self) -> QuietAttempt:
        self._started_s = self._now_s()
        self._metrics.began(self.grant.spec.service)
        self._token = CURRENT.set(self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._token is not None:
            CURRENT.reset(self._token)
        service = self.grant.spec.service
        self._metrics.ended(service)
        if not self._settled:
            self._metrics.lost(service)

    @property
    def headers(self) -> Mapping[str, str]:
        traceparent = self.grant.spec.traceparent
        return {"traceparent": traceparent} if traceparent else _NO_HEADERS

    def service_call(self, operation: str) -> AbstractContextManager[None]:
        return _NO_CALL

    def faulted(self, fault_class: FaultClass, message: str) -> None:
        self._metrics.faulted(self.grant.spec.service, fault_class)

    def consumed(self, amounts: Mapping[str, int]) -> None:
        self._metrics.consumed(self.grant.spec.service, amounts)

    def settled(self, settlement: Settlement, verdict: Verdict | None) -> None:
        self._record(settlement, verdict)

    def log_context(self) -> LogContext:
        submitter = parse_traceparent(self.grant.spec.traceparent)
        return self._log_context(submitter)

    def _record(self, settlement: Settlement, verdict: Verdict | None) -> str:
        self._settled = True
        return self._metrics.settled(self.grant, settlement, verdict, self._now_s() - self._started_s)

    def _log_context(self, span_context: SpanContext | None) -> LogContext:
        return LogContext(
            job_id=self.grant.job_id,
            epoch=self.grant.epoch,
            worker_id=self.worker_id,
            trace_id="" if span_context is None else f"{span_context.trace_id:032x}",
            span_id="" if span_context is None else f"{span_context.span_id:016x}",
        )


class TracedAttempt(QuietAttempt):
    """Counts, and tells the attempt as spans: queue.wait, job.attempt, one per service call, job.settle.

    Args:
        connector_key: for example ``comfyui-websocket``.
        endpoint: address of the service.
    """

    __slots__ = ("_attached", "_called_ns", "_connector_key", "_endpoint", "_span", "_status", "_tracing")

    def __init__(
        self,
        tracing: Tracing,
        metrics: GatewayMetrics,
        now_s: Callable[[], float],
        grant: Grant,
        *,
        worker_id: str,
        connector_key: str,
        endpoint: str,
    ) -> None:
        super().__init__(metrics, now_s, grant, worker_id)
        self._tracing = tracing
        self._connector_key = connector_key
        self._endpoint = endpoint
        self._status = LOST
        self._called_ns = 0
        self._span: Span = trace.INVALID_SPAN
        self._attached: Token[context_api.Context] | None = None

    def __enter__(self) -> TracedAttempt:
        super().__enter__()
        grant, tracing = self.grant, self._tracing
        submitter = parse_traceparent(grant.spec.traceparent)
        self._called_ns = tracing.now_ns()
        self._span = tracing.start(
            "job.attempt",
            submitter,
            kind=SpanKind.CONSUMER,
            attributes={
                "job.id": grant.job_id,
                "job.service": grant.spec.service,
                "job.class": grant.class_id,
                "job.epoch": grant.epoch,
                "job.attempt": grant.attempts + 1,
                "job.recoveries": grant.recoveries,
                "worker.id": self.worker_id,
                "connector": self._connector_key,
                "endpoint": self._endpoint,
            },
            links=tracing.recall(grant.job_id),
            start_ns=self._called_ns,
        )
        if self._span.is_recording():
            # Without a submitter there is no span both could hang under, so the wait hangs under the attempt.
            tracing.waited(grant, submitter or self._span.get_span_context())
        self._attached = context_api.attach(trace.set_span_in_context(self._span))
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._attached is not None:
            context_api.detach(self._attached)
        self._span.set_attribute("job.status", self._status)
        _mark(self._span, exc)
        self._span.end(self._tracing.now_ns())
        if self._status not in _ENDED:
            self._tracing.remember(self.grant.job_id, self._span.get_span_context())
        super().__exit__(exc_type, exc, traceback)

    @property
    def headers(self) -> Mapping[str, str]:
        return headers_of(self.current())

    def current(self) -> SpanContext:
        """The calling task's innermost span of this job: a service call where there is one, else the attempt.

        A run and a query of the same job may be under way in two tasks; each has its own innermost span.
        """
        own = self._span.get_span_context()
        innermost = trace.get_current_span().get_span_context()
        return innermost if innermost.trace_id == own.trace_id else own

    def service_call(self, operation: str) -> AbstractContextManager[None]:
        # In a trace that nobody records, the attempt's own context is parent enough for the service.
        return _ServiceCall(self, operation) if self._span.is_recording() else _NO_CALL

    def begin_call(self, operation: str) -> Span:
        attributes: dict[str, str | int | bool] = {
            "job.id": self.grant.job_id,
            "operation": operation,
            "connector": self._connector_key,
            "endpoint": self._endpoint,
        }
        return self._tracing.start(
            f"service.{operation}", self.current(), kind=SpanKind.CLIENT, attributes=attributes
        )

    def end_call(self, span: Span, exc: BaseException | None) -> None:
        _mark(span, exc)
        self._called_ns = self._tracing.now_ns()
        span.end(self._called_ns)

    def faulted(self, fault_class: FaultClass, message: str) -> None:
        super().faulted(fault_class, message)
        if self._span.is_recording():
            self._span.set_attribute("fault.class", fault_class.value)
            self._span.set_status(StatusCode.ERROR, message[:MESSAGE_MAX])

    def consumed(self, amounts: Mapping[str, int]) -> None:
        super().consumed(amounts)
        for kind, amount in amounts.items():
            self._span.set_attribute(f"consumed.{kind}", amount)

    def settled(self, settlement: Settlement, verdict: Verdict | None) -> None:
        self._status = self._record(settlement, verdict)
        if not self._span.is_recording():
            return
        answer = "none" if verdict is None else verdict.value
        self._span.set_attribute("verdict", answer)
        # We are told when it is over; what followed the last word of the service was the settling.
        span = self._tracing.start(
            "job.settle",
            self._span.get_span_context(),
            attributes={
                "job.id": self.grant.job_id,
                "settlement.kind": settlement.kind.value,
                "verdict": answer,
                "job.status": self._status,
            },
            start_ns=self._called_ns,
        )
        span.end(self._tracing.now_ns())

    def log_context(self) -> LogContext:
        return self._log_context(self.current())


class _ServiceCall:
    """One exchange with the service as a span, current for the block."""

    __slots__ = ("_attached", "_attempt", "_operation", "_span")

    def __init__(self, attempt: TracedAttempt, operation: str) -> None:
        self._attempt = attempt
        self._operation = operation
        self._span: Span = trace.INVALID_SPAN
        self._attached: Token[context_api.Context] | None = None

    def __enter__(self) -> None:
        self._span = self._attempt.begin_call(self._operation)
        self._attached = context_api.attach(trace.set_span_in_context(self._span))

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._attached is not None:
            context_api.detach(self._attached)
        self._attempt.end_call(self._span, exc)


def _mark(span: Span, exc: BaseException | None) -> None:
    """Say on a span how its block ended; a cancellation is no error of anybody's."""
    if exc is None or not span.is_recording():
        return
    if isinstance(exc, trio.Cancelled):
        span.set_attribute("cancelled", True)
        return
    if isinstance(exc, JobFault):
        span.set_attribute("fault.class", exc.fault_class.value)
    span.set_attribute("error.type", type(exc).__qualname__)
    span.set_status(StatusCode.ERROR, str(exc)[:MESSAGE_MAX])
