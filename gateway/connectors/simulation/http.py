"""Connector ``simulation-http``: the reference connector, against the simulated service over HTTP.

Two witnesses tell that a job has ended: the event stream, and the query when the stream is silent for
``stall_s``, breaks or speaks garbage. A submission is never repeated blindly: when its outcome is unknown, the service
is asked first.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import msgspec
import trio

from gateway.connector import (
    Connector,
    ConnectorCapabilities,
    ConnectorSetup,
    JobContext,
    JobResult,
    ServicePhase,
    ServiceStatus,
)
from gateway.connectors.faults import job_fault
from gateway.connectors.simulation import wire
from gateway.errors import ConfigError, FaultClass, JobFault
from protocols.base import HealthReport
from protocols.errors import NotFound, ProtocolError, ProtocolViolation, StatusFailure
from protocols.http import HTTPAdapter, HTTPLimits

MessageT = TypeVar("MessageT")

#: Looks at a service that can't be reached, before the attempt counts as failed: with the pauses about 6 s.
QUERY_TRIES = 6
QUERY_PAUSE_S = 0.2
#: First pause before an event stream that told nothing is opened again, seconds; doubles up to ``stall_s``.
WATCH_PAUSE_S = 0.05
#: Submissions of one attempt: the first and, once the service has said that it does not know the job, two more.
SUBMIT_TRIES = 3

_FAULT_CLASSES = {
    wire.ErrorKind.VALIDATION: FaultClass.VALIDATION,
    wire.ErrorKind.REFUSED: FaultClass.REFUSED,
    wire.ErrorKind.RATE_LIMITED: FaultClass.RATE_LIMITED,
    wire.ErrorKind.UNAVAILABLE: FaultClass.UNAVAILABLE,
    wire.ErrorKind.SERVICE_ERROR: FaultClass.SERVICE_ERROR,
    wire.ErrorKind.OUT_OF_MEMORY: FaultClass.OUT_OF_MEMORY,
    wire.ErrorKind.AUTH: FaultClass.AUTH,
    wire.ErrorKind.NOT_FOUND: FaultClass.VALIDATION,
}
_PHASES = {
    wire.RunState.QUEUED: ServicePhase.RUNNING,
    wire.RunState.RUNNING: ServicePhase.RUNNING,
    wire.RunState.COMPLETED: ServicePhase.COMPLETED,
    wire.RunState.FAILED: ServicePhase.FAILED,
    wire.RunState.CANCELLED: ServicePhase.CANCELLED,
}


class SimulationHTTPOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options in ``[workers.X.options]``.

    Attributes:
        stall_s: longest silence of the event stream before the service is asked, seconds.
        request_timeout_s: longest single request, seconds.
        connections_max: connections to the instance at once.
    """

    stall_s: float = 1.0
    request_timeout_s: float = 10.0
    connections_max: int = 64

    def __post_init__(self) -> None:
        if min(self.stall_s, self.request_timeout_s, self.connections_max) <= 0:
            raise ValueError("stall_s, request_timeout_s and connections_max must be positive")


class _Seen:
    """Number of the last event taken in; survives a broken stream, so that no chunk is delivered twice."""

    def __init__(self) -> None:
        self.number = 0


class SimulationHTTPConnector(Connector):
    """Runs jobs at one instance of the simulated service.

    Raises (constructor):
        ConfigError: unknown option or impossible value.
    """

    key = "simulation-http"
    service = "simulation"
    capabilities = ConnectorCapabilities(query=True, cancel=True, stream=True, reattach=True, dedupe=True)

    def __init__(self, setup: ConnectorSetup) -> None:
        super().__init__(setup)
        try:
            self.options = msgspec.convert(dict(setup.options), SimulationHTTPOptions)
        except (msgspec.ValidationError, ValueError) as error:
            raise ConfigError(f"options of {self.key}: {error}") from None
        self._http = HTTPAdapter(
            setup.endpoint,
            open_stream=setup.open_stream,
            limits=HTTPLimits(
                connections_max=self.options.connections_max,
                request_timeout_s=self.options.request_timeout_s,
                idle_timeout_s=max(self.options.request_timeout_s, self.options.stall_s),
            ),
        )

    async def health(self) -> HealthReport:
        return await self._http.health(wire.HEALTH_PATH)

    async def aclose(self) -> None:
        await self._http.aclose()

    async def run(self, job: JobContext) -> JobResult:
        await self._submit(job)
        return await self._follow(job)

    async def resume(self, job: JobContext) -> JobResult:
        return await self._follow(job)

    async def query(self, reference: str) -> ServiceStatus:
        try:
            status = await self._status(reference, {})
        except NotFound:
            return ServiceStatus(ServicePhase.UNKNOWN)
        except ProtocolError as error:
            raise job_fault(error) from error
        return _service_status(status)

    async def cancel(self, reference: str) -> None:
        try:
            await self._http.request_json("DELETE", wire.job_path(reference))
        except NotFound:
            return
        except ProtocolError as error:
            raise job_fault(error) from error

    async def _submit(self, job: JobContext) -> None:
        """Hand the job over exactly as often as the service says that it does not know it."""
        request = wire.SubmitRequest(id=job.reference, payload=job.spec.payload)
        for last in (tries == SUBMIT_TRIES for tries in range(1, SUBMIT_TRIES + 1)):
            try:
                await self._http.request_json("POST", wire.JOBS_PATH, json=request, headers=job.headers)
                return
            except ProtocolError as error:
                if not error.outcome_unknown:
                    raise _refusal(error) from error
                unknown = error
            # Accepted or not? Ask; only a service that does not know the job gets it again.
            if await self._patient_status(job) is not None:
                return
            if last:
                raise job_fault(unknown) from unknown

    async def _follow(self, job: JobContext) -> JobResult:
        """Watch the job's events until its end; whenever they fail to tell, ask."""
        seen = _Seen()
        pause_s = WATCH_PAUSE_S
        while True:
            number_before = seen.number
            try:
                ended = await self._watch(job, seen)
            except ProtocolError:
                ended = None  # cut, silent or garbled: the second witness decides
            if ended is not None:
                return ended
            status = await self._patient_status(job)
            if status is None:
                raise JobFault(FaultClass.SERVICE_ERROR, f"the service has forgotten job {job.reference}")
            if status.state in wire.TERMINAL_RUN_STATES:
                return _ended(status.state, status.result, status.error, status.instance)
            job.progress(status.progress, status.message)
            # A stream that fails at once, again and again, must not become a storm of requests.
            pause_s = WATCH_PAUSE_S if seen.number > number_before else min(pause_s * 2, self.options.stall_s)
            await trio.sleep(pause_s)

    async def _watch(self, job: JobContext, seen: _Seen) -> JobResult | None:
        """Read events after the last seen one; returns the result once a terminal event came."""
        path = wire.events_path(job.reference, seen.number)
        async with self._http.stream_lines(
            "GET", path, headers=job.headers, idle_timeout_s=self.options.stall_s
        ) as lines:
            async for line in lines:
                event = _decode(line, wire.StreamEvent)
                if event.seq <= seen.number:
                    continue  # a duplicate, or one that was overtaken
                seen.number = event.seq
                if event.terminal:
                    return _ended(wire.RunState(event.type.value), event.result, event.error, event.instance)
                if event.type is wire.EventType.CHUNK:
                    await job.chunk(event.data)
                else:
                    job.progress(event.progress, event.message)
        return None

    async def _status(self, reference: str, headers: Mapping[str, str]) -> wire.JobStatus:
        reply = await self._http.request("GET", wire.job_path(reference), headers=headers)
        return _decode(reply.body, wire.JobStatus)

    async def _patient_status(self, job: JobContext) -> wire.JobStatus | None:
        """State of the job; None when the service does not know it. Passing faults are waited out, bounded."""
        for pause in range(QUERY_TRIES):
            try:
                return await self._status(job.reference, job.headers)
            except NotFound:
                return None
            except ProtocolError as error:
                if pause == QUERY_TRIES - 1:
                    raise job_fault(error) from error
            await trio.sleep(QUERY_PAUSE_S * 2**pause * self.setup.random.uniform(0.5, 1.0))
        raise AssertionError("unreachable: the last try returns or raises")


def _decode(body: bytes, kind: type[MessageT]) -> MessageT:
    try:
        return wire.decode(body, kind)
    except wire.WireFormatError as error:
        raise ProtocolViolation(str(error), outcome_unknown=True) from error


def _refusal(error: ProtocolError) -> JobFault:
    """A refused submission, by the error kind in its body where there is one, else by its status."""
    if isinstance(error, StatusFailure):
        try:
            failure = wire.decode(error.body, wire.ErrorReply).error
        except wire.WireFormatError:
            return job_fault(error)
        return JobFault(
            _FAULT_CLASSES[failure.kind],
            failure.message,
            retry_after_s=failure.retry_after_s if error.retry_after_s is None else error.retry_after_s,
        )
    return job_fault(error)


def _ended(
    state: wire.RunState, result: Any, failure: wire.ServiceFailure | None, instance: str
) -> JobResult:
    """The result of an ended job, or its fault raised."""
    if state is wire.RunState.COMPLETED:
        if result is None:
            # Success without output is a known lie of real services; a retry may bring the output.
            raise JobFault(FaultClass.SERVICE_ERROR, "the service reported success without a result")
        return JobResult(result, served_by=instance)
    if state is wire.RunState.CANCELLED:
        raise JobFault(FaultClass.SERVICE_ERROR, "the job was cancelled at the service")
    raise _failure_fault(failure)


def _failure_fault(failure: wire.ServiceFailure | None) -> JobFault:
    if failure is None:
        return JobFault(FaultClass.SERVICE_ERROR, "the service reported a failure without saying why")
    return JobFault(_FAULT_CLASSES[failure.kind], failure.message, retry_after_s=failure.retry_after_s)


def _service_status(status: wire.JobStatus) -> ServiceStatus:
    phase = _PHASES[status.state]
    if phase is ServicePhase.COMPLETED:
        try:
            return ServiceStatus(
                phase, result=_ended(status.state, status.result, status.error, status.instance)
            )
        except JobFault as fault:
            return ServiceStatus(ServicePhase.FAILED, fault=fault)
    if phase is ServicePhase.FAILED:
        return ServiceStatus(phase, fault=_failure_fault(status.error))
    return ServiceStatus(phase)
