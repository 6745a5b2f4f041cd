"""From transport faults to job faults: the one place where connectors translate (pure)."""

from __future__ import annotations

from types import MappingProxyType

from gateway.errors import FaultClass, JobFault
from protocols.errors import FaultKind, ProtocolError

FAULT_CLASSES: MappingProxyType[FaultKind, FaultClass] = MappingProxyType(
    {
        FaultKind.UNREACHABLE: FaultClass.UNAVAILABLE,
        # Our own limit: nothing was sent and nothing is known about the peer, so others may have the job.
        FaultKind.LOCAL_OVERLOAD: FaultClass.UNAVAILABLE,
        FaultKind.TIMEOUT: FaultClass.TIMEOUT,
        FaultKind.NETWORK: FaultClass.NETWORK,
        FaultKind.PROTOCOL: FaultClass.PROTOCOL,
        FaultKind.TOO_LARGE: FaultClass.VALIDATION,
        FaultKind.AUTH: FaultClass.AUTH,
        FaultKind.RATE_LIMITED: FaultClass.RATE_LIMITED,
        FaultKind.UNAVAILABLE: FaultClass.UNAVAILABLE,
        FaultKind.NOT_FOUND: FaultClass.VALIDATION,
        FaultKind.VALIDATION: FaultClass.VALIDATION,
        FaultKind.UNSUPPORTED: FaultClass.UNSUPPORTED,
        FaultKind.SERVICE_ERROR: FaultClass.SERVICE_ERROR,
        FaultKind.INTERNAL: FaultClass.INTERNAL,
    }
)


def job_fault(error: ProtocolError) -> JobFault:
    """The job fault that a transport fault amounts to, by its kind alone."""
    return JobFault(
        FAULT_CLASSES[error.fault],
        str(error),
        retry_after_s=error.retry_after_s,
        outcome_unknown=error.outcome_unknown,
    )
