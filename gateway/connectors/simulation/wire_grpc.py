"""The wire contract of the simulated service over gRPC: ``wire``, carried in messages of ``simulation.proto`` (pure).

A refusal is a status, by :data:`CODES`, with the ``ErrorReply`` of the HTTP contract as JSON in the trailing metadata
:data:`ERROR_NAME`. The caller says who it is by the headers of the HTTP contract, as metadata. Health is the standard
``grpc.health.v1``; journal and control verbs stay HTTP, on a listener of their own.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Any, TypeVar

import msgspec

from gateway.connectors.simulation import wire
from gateway.connectors.simulation.wire import ErrorKind, WireFormatError
from protocols.grpc_channel import Code
from protocols.grpc_method import Method
from protocols.proto import simulation_pb2 as pb

SERVICE = "/trio_gateway.simulation.v1.Simulation"
SUBMIT = Method(f"{SERVICE}/Submit", pb.SubmitRequest, pb.SubmitReply)
STATUS = Method(f"{SERVICE}/Status", pb.JobRequest, pb.JobStatus)
CANCEL = Method(f"{SERVICE}/Cancel", pb.JobRequest, pb.CancelReply)
EVENTS = Method(f"{SERVICE}/Events", pb.EventsRequest, pb.StreamEvent)

#: Trailing metadata of a refusal.
ERROR_NAME = "x-simulation-error-bin"
#: Metadata of our own id of the job, beside the headers of the HTTP contract.
JOB_NAME = "x-gateway-job"

CODES: MappingProxyType[ErrorKind, Code] = MappingProxyType(
    {
        ErrorKind.VALIDATION: Code.INVALID_ARGUMENT,
        ErrorKind.AUTH: Code.UNAUTHENTICATED,
        ErrorKind.REFUSED: Code.PERMISSION_DENIED,
        ErrorKind.NOT_FOUND: Code.NOT_FOUND,
        ErrorKind.RATE_LIMITED: Code.RESOURCE_EXHAUSTED,
        ErrorKind.SERVICE_ERROR: Code.INTERNAL,
        ErrorKind.OUT_OF_MEMORY: Code.INTERNAL,
        ErrorKind.UNAVAILABLE: Code.UNAVAILABLE,
    }
)

StructT = TypeVar("StructT", bound=msgspec.Struct)


def json_bytes(value: Any) -> bytes:
    """Any JSON value; empty for None."""
    return b"" if value is None else msgspec.json.encode(value)


def json_value(data: bytes) -> Any:
    """The value of :func:`json_bytes`.

    Raises:
        WireFormatError: not JSON.
    """
    try:
        return msgspec.json.decode(data) if data else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireFormatError("JSON value", str(error)) from error


def submit_reply_message(reply: wire.SubmitReply) -> pb.SubmitReply:
    """As a message."""
    return pb.SubmitReply(
        id=reply.id, state=reply.state, instance=reply.instance, deduplicated=reply.deduplicated
    )


def cancel_reply_message(reply: wire.CancelReply) -> pb.CancelReply:
    """As a message."""
    return pb.CancelReply(id=reply.id, state=reply.state)


def status_message(status: wire.JobStatus) -> pb.JobStatus:
    """As a message."""
    return pb.JobStatus(
        id=status.id,
        state=status.state,
        instance=status.instance,
        progress=status.progress,
        message=status.message,
        result=json_bytes(status.result),
        error=_failure_message(status.error),
        executions=status.executions,
    )


def event_message(event: wire.StreamEvent) -> pb.StreamEvent:
    """As a message."""
    return pb.StreamEvent(
        seq=event.seq,
        type=event.type,
        instance=event.instance,
        progress=event.progress,
        message=event.message,
        data=json_bytes(event.data),
        result=json_bytes(event.result),
        error=_failure_message(event.error),
    )


def read_submit_reply(message: pb.SubmitReply) -> wire.SubmitReply:
    """Read a message; see :func:`json_value` for errors."""
    fields = {
        "id": message.id,
        "state": message.state,
        "instance": message.instance,
        "deduplicated": message.deduplicated,
    }
    return _struct(fields, wire.SubmitReply)


def read_status(message: pb.JobStatus) -> wire.JobStatus:
    """Read a message; see :func:`json_value` for errors."""
    fields = {
        "id": message.id,
        "state": message.state,
        "instance": message.instance,
        "progress": message.progress,
        "message": message.message,
        "result": json_value(message.result),
        "error": _failure(message),
        "executions": message.executions,
    }
    return _struct(fields, wire.JobStatus)


def read_event(message: pb.StreamEvent) -> wire.StreamEvent:
    """Read a message; see :func:`json_value` for errors."""
    fields = {
        "seq": message.seq,
        "type": message.type,
        "instance": message.instance,
        "progress": message.progress,
        "message": message.message,
        "data": json_value(message.data),
        "result": json_value(message.result),
        "error": _failure(message),
    }
    return _struct(fields, wire.StreamEvent)


def _failure_message(failure: wire.ServiceFailure | None) -> pb.Failure | None:
    if failure is None:
        return None
    return pb.Failure(kind=failure.kind, message=failure.message, retry_after_s=failure.retry_after_s)


def _failure(message: pb.JobStatus | pb.StreamEvent) -> dict[str, Any] | None:
    if not message.HasField("error"):
        return None
    failure = message.error
    wish_s = failure.retry_after_s if failure.HasField("retry_after_s") else None
    return {"kind": failure.kind, "message": failure.message, "retry_after_s": wish_s}


def _struct(fields: dict[str, Any], kind: type[StructT]) -> StructT:
    try:
        return msgspec.convert(fields, kind)
    except msgspec.ValidationError as error:
        raise WireFormatError(kind.__name__, str(error)) from error
