"""From the status of a gRPC call to the taxonomy of faults (pure).

What decides is the code, what we know ourselves (was there a connection, how large was the request), and what the peer
added as metadata. Texts decide in one case only, where nothing else tells: see ``_oversize``.
"""

from __future__ import annotations

from types import MappingProxyType

from google.protobuf.message import DecodeError

from protocols.errors import (
    AuthRejected,
    BodyTooLarge,
    NotFound,
    PeerClosed,
    ProtocolError,
    RateLimited,
    Rejected,
    RequestTimeout,
    RequestTooLarge,
    ServerFailure,
    StatusFailure,
    Unavailable,
    Unsupported,
)
from protocols.grpc_channel import CallEnded, Code
from protocols.proto import status_pb2
from protocols.retry_after import RETRY_AFTER_MAX_S, parse_retry_after

#: Largest request that gRPC servers take unless told otherwise, bytes (grpc.max_receive_message_length).
SERVER_BYTES_MAX = 4 * 1024 * 1024
STATUS_DETAILS = "grpc-status-details-bin"
#: Milliseconds, negative for "do not": the server's wish in gRPC's own retry design (gRFC A6).
PUSHBACK = "grpc-retry-pushback-ms"

_LEAFS: MappingProxyType[Code, type[StatusFailure]] = MappingProxyType(
    {
        Code.INVALID_ARGUMENT: Rejected,
        Code.FAILED_PRECONDITION: Rejected,
        Code.OUT_OF_RANGE: Rejected,
        Code.ALREADY_EXISTS: Rejected,
        Code.NOT_FOUND: NotFound,
        Code.UNIMPLEMENTED: Unsupported,
        Code.UNAUTHENTICATED: AuthRejected,
        Code.PERMISSION_DENIED: AuthRejected,
        Code.RESOURCE_EXHAUSTED: RateLimited,
        Code.UNAVAILABLE: Unavailable,
        Code.INTERNAL: ServerFailure,
        Code.UNKNOWN: ServerFailure,
        Code.DATA_LOSS: ServerFailure,
        Code.ABORTED: ServerFailure,
    }
)


def call_failure(
    ended: CallEnded, what: str, *, request_bytes: int, response_bytes_max: int, detail_name: str
) -> ProtocolError:
    """The fault that a call's end stands for, of a call that had a connection when it began.

    - DEADLINE_EXCEEDED: time-out, outcome unknown.
    - CANCELLED, which we did not ask for: the connection was closed, outcome unknown.
    - UNAVAILABLE: the service's own word when a wish to wait or its error detail came with it, and then nothing was
      done. Without either it is what the library says of a connection that broke during the call, and a proxy of one
      that broke behind it (with metadata of the proxy's own); a service that says it so is not told apart, and the
      outcome counts as unknown.
    - RESOURCE_EXHAUSTED: too much of something. A wish to wait in the metadata means rate limiting. Else a request
      larger than servers take by default was refused for its size, for good. Else see ``_oversize``; else rate
      limiting.

    Args:
        ended: how the call ended.
        what: the call in words.
        request_bytes: size of what was sent.
        response_bytes_max: the channel's bound of what is taken in.
        detail_name: name of the trailing metadata that becomes ``StatusFailure.body``.
    """
    code, text = ended.code, f"{what}: {ended}"
    if code is Code.DEADLINE_EXCEEDED:
        return RequestTimeout(text, outcome_unknown=True)
    wish_s = retry_after_s(ended)
    said_so = wish_s is not None or detail_name in ended.metadata
    if code is Code.CANCELLED or (code is Code.UNAVAILABLE and not said_so):
        return PeerClosed(text, outcome_unknown=True)
    if code is Code.RESOURCE_EXHAUSTED and wish_s is None:
        if request_bytes > SERVER_BYTES_MAX:
            return RequestTooLarge(text, limit_bytes=SERVER_BYTES_MAX)
        if _oversize(ended):
            return BodyTooLarge(text, limit_bytes=response_bytes_max)
    detail = ended.metadata.get(detail_name, b"")
    leaf = _LEAFS.get(code, ServerFailure)
    return leaf(
        text,
        status=int(code),
        body=detail if isinstance(detail, bytes) else detail.encode(),
        retry_after_s=wish_s,
    )


def retry_after_s(ended: CallEnded) -> float | None:
    """Seconds the peer asks us to wait: ``retry-after``, gRPC's push-back, or ``google.rpc.RetryInfo``."""
    plain = ended.metadata.get("retry-after")
    if isinstance(plain, str) and (seconds := parse_retry_after(plain)) is not None:
        return seconds
    pushback = ended.metadata.get(PUSHBACK)
    if isinstance(pushback, str) and pushback.isascii() and pushback.isdigit() and len(pushback) <= 10:
        return min(int(pushback) / 1000, RETRY_AFTER_MAX_S)
    details = ended.metadata.get(STATUS_DETAILS)
    return _retry_info_s(details) if isinstance(details, bytes) else None


def _retry_info_s(details: bytes) -> float | None:
    try:
        for detail in status_pb2.Status.FromString(details).details:
            if detail.type_url.endswith("/google.rpc.RetryInfo"):
                delay = status_pb2.RetryInfo.FromString(detail.value).retry_delay
                return min(max(delay.seconds + delay.nanos / 1e9, 0.0), RETRY_AFTER_MAX_S)
    except DecodeError:
        return None
    return None


def _oversize(ended: CallEnded) -> bool:
    """Whether this RESOURCE_EXHAUSTED is about the size of a message.

    The library uses the code both for an answer above our own bound, which it raises locally, and for what a peer says
    when it limits rates; neither the wire nor its interface tells which. Taken for rate limiting, a job with too large
    an answer would be put off and done again for ever, so here the library's own words decide; a test asks the
    installed version for them.
    """
    return "larger than max" in ended.details
