"""What the reference connectors do alike over every protocol: hand a job over, follow it to its end, translate.

Two witnesses tell that a job has ended: its events, and the answer to a question when the events are silent, break off
or are garbage. A submission is never repeated blindly: when its outcome is unknown, the service is asked first.
"""

from __future__ import annotations

import random as random_module
from typing import Any, Protocol, TypeVar

import trio

from gateway.connector import JobContext, JobResult, ServicePhase, ServiceStatus
from gateway.connectors.faults import job_fault
from gateway.connectors.simulation import wire
from gateway.errors import FaultClass, JobFault
from protocols.errors import FaultKind, NotFound, ProtocolError, ProtocolViolation, StatusFailure

MessageT = TypeVar("MessageT")

#: Looks at a service that can't be reached, before the attempt counts as failed: with the pauses about 6 s.
QUERY_TRIES = 6
QUERY_PAUSE_S = 0.2
#: First pause before events that told nothing are asked for again, seconds; doubles up to ``stall_s``.
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


class Seen:
    """Number of the last event taken in; survives a broken stream, so that no chunk is delivered twice."""

    def __init__(self) -> None:
        self.number = 0


class Peer(Protocol):
    """The service as one job sees it over one protocol; each method tries once and raises what went wrong."""

    async def submit(self) -> None:
        """Hand the job over.

        Raises:
            ProtocolError: refused, or with ``outcome_unknown``.
        """
        ...

    async def status(self) -> wire.JobStatus:
        """Ask for the state of the job.

        Raises:
            NotFound: the service does not know it.
            ProtocolError: it could not be asked; another try may succeed.
            JobFault: it can't be asked any more.
        """
        ...

    async def watch(self, seen: Seen) -> JobResult | None:
        """Take in events after the last seen one; the result once a terminal event came, None at any other end.

        Raises:
            ProtocolError: the events broke off, or are garbage.
            JobFault: the job ended without success.
        """
        ...


async def hand_over(peer: Peer, random: random_module.Random) -> None:
    """Submit exactly as often as the service says that it does not know the job.

    Raises:
        JobFault: refused, or nobody can tell whether it was accepted.
    """
    for last in (tries == SUBMIT_TRIES for tries in range(1, SUBMIT_TRIES + 1)):
        try:
            await peer.submit()
            return
        except ProtocolError as error:
            if not error.outcome_unknown:
                raise refusal(error) from error
            unknown = error
        # Accepted or not? Ask; only a service that does not know the job gets it again.
        if await patient_status(peer, random) is not None:
            return
        if last:
            raise job_fault(unknown) from unknown


async def follow(peer: Peer, job: JobContext, random: random_module.Random, *, stall_s: float) -> JobResult:
    """Watch a job's events until its end; whenever they fail to tell, ask.

    Args:
        peer: the service.
        job: the job, for its progress.
        random: source of jitter.
        stall_s: longest pause between watching again.

    Raises:
        JobFault: the job failed, or is no longer known, or the service can't be reached.
    """
    seen = Seen()
    pause_s = WATCH_PAUSE_S
    while True:
        number_before = seen.number
        try:
            ended = await peer.watch(seen)
        except ProtocolError:
            ended = None  # cut, silent or garbled: the second witness decides
        if ended is not None:
            return ended
        status = await patient_status(peer, random)
        if status is None:
            message = f"the service has forgotten job {job.reference}"
            raise JobFault(FaultClass.SERVICE_ERROR, message, forgotten=True)
        if status.state in wire.TERMINAL_RUN_STATES:
            return result_of(status.state, status.result, status.error, status.instance)
        job.progress(status.progress, status.message)
        # A stream that fails at once, again and again, must not become a storm of requests.
        pause_s = WATCH_PAUSE_S if seen.number > number_before else min(pause_s * 2, stall_s)
        await trio.sleep(pause_s)


async def patient_status(peer: Peer, random: random_module.Random) -> wire.JobStatus | None:
    """State of the job; None when the service does not know it. Passing faults are waited out, bounded.

    Raises:
        JobFault: the service can't be asked.
    """
    for pause in range(QUERY_TRIES):
        try:
            return await peer.status()
        except NotFound:
            return None
        except ProtocolError as error:
            # An answer that is too large will be so again.
            if pause == QUERY_TRIES - 1 or error.fault is FaultKind.TOO_LARGE:
                raise job_fault(error) from error
        await trio.sleep(QUERY_PAUSE_S * 2**pause * random.uniform(0.5, 1.0))
    raise AssertionError("unreachable: the last try returns or raises")


async def take_in(event: wire.StreamEvent, job: JobContext, seen: Seen) -> JobResult | None:
    """Pass one event on to the job; the result when it was the terminal one.

    Raises:
        JobFault: it was the terminal one, and the job did not succeed.
    """
    if event.seq <= seen.number:
        return None  # a duplicate, or one that was overtaken
    seen.number = event.seq
    if event.terminal:
        return result_of(wire.RunState(event.type.value), event.result, event.error, event.instance)
    if event.type is wire.EventType.CHUNK:
        await job.chunk(event.data)
    else:
        job.progress(event.progress, event.message)
    return None


def decoded(body: bytes, kind: type[MessageT]) -> MessageT:
    """Read an answer.

    Raises:
        ProtocolViolation: it is not what the contract says.
    """
    try:
        return wire.decode(body, kind)
    except wire.WireFormatError as error:
        raise ProtocolViolation(str(error), outcome_unknown=True) from error


def refusal(error: ProtocolError) -> JobFault:
    """A refused request, by the error kind in its body where there is one, else by its status."""
    if isinstance(error, StatusFailure):
        failure = wire.decode_failure(error.body)
        if failure is not None:
            return JobFault(
                _FAULT_CLASSES[failure.kind],
                failure.message,
                retry_after_s=failure.retry_after_s if error.retry_after_s is None else error.retry_after_s,
            )
    return job_fault(error)


def result_of(
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


def service_status(status: wire.JobStatus) -> ServiceStatus:
    """The service's answer in the words of the connector contract."""
    phase = _PHASES[status.state]
    if phase is ServicePhase.COMPLETED:
        try:
            return ServiceStatus(
                phase, result=result_of(status.state, status.result, status.error, status.instance)
            )
        except JobFault as fault:
            return ServiceStatus(ServicePhase.FAILED, fault=fault)
    if phase is ServicePhase.FAILED:
        return ServiceStatus(phase, fault=_failure_fault(status.error))
    return ServiceStatus(phase)


def _failure_fault(failure: wire.ServiceFailure | None) -> JobFault:
    if failure is None:
        return JobFault(FaultClass.SERVICE_ERROR, "the service reported a failure without saying why")
    return JobFault(_FAULT_CLASSES[failure.kind], failure.message, retry_after_s=failure.retry_after_s)
