"""What can go wrong between us and a service: typed leafs, classified by attribute (pure leaf module).

Every adapter (HTTP, WebSocket, gRPC) maps the exceptions of its library into these, once, at its edge.
Callers decide by three attributes and never by the message: ``fault`` (what kind of trouble),
``outcome_unknown`` (whether the peer may have acted on the request, so that repeating it may do the work
twice) and ``retry_after_s`` (the peer's own wish).
"""

from __future__ import annotations

import enum
import http


class FaultKind(enum.StrEnum):
    """Kinds of trouble, each wanting another reaction."""

    UNREACHABLE = "unreachable"
    """No connection came about: nothing was sent."""
    LOCAL_OVERLOAD = "local_overload"
    """Our own limit was reached: of connections (nothing was sent) or of buffered frames."""
    TIMEOUT = "timeout"
    NETWORK = "network"
    """The connection broke."""
    PROTOCOL = "protocol"
    """The peer spoke, but not the language agreed on."""
    TOO_LARGE = "too_large"
    """A message exceeds a limit, ours or the peer's; it would again."""
    AUTH = "auth"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    """The peer says that it cannot serve now."""
    NOT_FOUND = "not_found"
    VALIDATION = "validation"
    """The peer understood the request and refuses it; a repetition will be refused too."""
    UNSUPPORTED = "unsupported"
    SERVICE_ERROR = "service_error"
    """The peer failed while serving."""
    INTERNAL = "internal"
    """The request was malformed on our side, before anything was sent."""


class EndpointError(ValueError):
    """The text is not a usable endpoint. A ``ValueError``, so that validating models report it as their
    own.
    """


class ProtocolError(Exception):
    """Base of all faults between us and a peer.

    Attributes:
        fault: what kind of trouble.
        outcome_unknown: the peer may have acted on the request. False means that repeating it is safe.
        retry_after_s: seconds the peer asks us to wait, None when it does not say.
    """

    fault: FaultKind = FaultKind.INTERNAL
    retry_after_s: float | None = None

    def __init__(self, message: str, *, outcome_unknown: bool = False) -> None:
        super().__init__(message)
        self.outcome_unknown = outcome_unknown


class InvalidRequest(ProtocolError):
    """The caller asked for something the protocol cannot carry (illegal path or header): a bug on our
    side.
    """


class ConnectFailed(ProtocolError):
    """No connection: name not resolved, host unreachable, TLS refused. Nothing was sent."""

    fault = FaultKind.UNREACHABLE


class ConnectRefused(ConnectFailed):
    """Nobody listens there. Nothing was sent."""


class ConnectTimeout(ConnectFailed):
    """The connection was not established in time. Nothing was sent."""


class LocalOverload(ProtocolError):
    """No free connection of our own in time. Nothing was sent, and nothing is known about the peer."""

    fault = FaultKind.LOCAL_OVERLOAD


class ConsumerTooSlow(ProtocolError):
    """Our own consumer took frames too slowly, and the buffer is full of frames that nothing may replace. The
    connection was given up; what the peer did meanwhile is unknown.
    """

    fault = FaultKind.LOCAL_OVERLOAD


class RequestTimeout(ProtocolError):
    """The peer was silent for too long. The outcome is unknown once anything was sent."""

    fault = FaultKind.TIMEOUT


class PeerClosed(ProtocolError):
    """The peer closed or reset the connection before its answer was complete.

    The outcome is unknown once anything was sent; this includes the race in which the peer closed an idle
    connection just as we used it, because from here the two look the same.
    """

    fault = FaultKind.NETWORK


class ClosedWithCode(PeerClosed):
    """The peer closed a WebSocket with a code that says why (RFC 6455 §7.4).

    Attributes:
        code: the close code.
        fault: what kind of trouble the code stands for; of this instance.
    """

    def __init__(self, message: str, *, code: int, fault: FaultKind, outcome_unknown: bool) -> None:
        super().__init__(message, outcome_unknown=outcome_unknown)
        self.code = code
        self.fault = fault


class NetworkFault(ProtocolError):
    """The established connection failed in another way. The outcome is unknown once anything was sent."""

    fault = FaultKind.NETWORK


class ProtocolViolation(ProtocolError):
    """The peer answered with something the protocol does not allow: bad status line, bad JSON, garbage
    frame.
    """

    fault = FaultKind.PROTOCOL


class BodyTooLarge(ProtocolError):
    """The answer exceeds ``limit_bytes`` and was not read to its end. The peer has acted on the request."""

    fault = FaultKind.TOO_LARGE

    def __init__(self, message: str, *, limit_bytes: int) -> None:
        super().__init__(message, outcome_unknown=True)
        self.limit_bytes = limit_bytes


class RequestTooLarge(ProtocolError):
    """Our own message exceeds ``limit_bytes``: refused here before it was sent, or by the peer unread."""

    fault = FaultKind.TOO_LARGE

    def __init__(self, message: str, *, limit_bytes: int) -> None:
        super().__init__(message)
        self.limit_bytes = limit_bytes


class StatusFailure(ProtocolError):
    """The peer answered with a status that is not success.

    Attributes:
        status: the status code, HTTP's or gRPC's.
        body: the first bytes of the error body (at most the adapter's ``error_bytes_max``), for a connector
            that knows the service's error format. Over gRPC: the detail in the trailing metadata.
        retry_after_s: seconds, when the peer sent a usable ``Retry-After``.
    """

    fault = FaultKind.SERVICE_ERROR
    #: Whether a peer that answers so may have acted on the request.
    acted: bool = False

    def __init__(
        self, message: str, *, status: int, body: bytes = b"", retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, outcome_unknown=self.acted)
        self.status = status
        self.body = body
        self.retry_after_s = retry_after_s


class AuthRejected(StatusFailure):
    """401, 403, 407: our credentials are missing, wrong or not enough."""

    fault = FaultKind.AUTH


class RateLimited(StatusFailure):
    """429: too many requests; ``retry_after_s`` when the peer said how long."""

    fault = FaultKind.RATE_LIMITED


class Unavailable(StatusFailure):
    """503, and 408 or 425, by which a peer says that it did not process the request."""

    fault = FaultKind.UNAVAILABLE


class NotFound(StatusFailure):
    """404: the peer does not know this thing (or has forgotten it)."""

    fault = FaultKind.NOT_FOUND


class Rejected(StatusFailure):
    """Any other 4xx: the request itself is refused and would be refused again."""

    fault = FaultKind.VALIDATION


class Unsupported(StatusFailure):
    """501, 505: the peer does not have this function."""

    fault = FaultKind.UNSUPPORTED


class ServerFailure(StatusFailure):
    """Any other 5xx. The peer, or what stands behind it, may have done the work."""

    fault = FaultKind.SERVICE_ERROR
    acted = True


class UnexpectedStatus(StatusFailure):
    """1xx or 3xx where an answer was due: this is not the interface we were told it is (redirects are not
    followed).
    """

    fault = FaultKind.PROTOCOL


_BY_STATUS: dict[int, type[StatusFailure]] = {
    401: AuthRejected,
    403: AuthRejected,
    404: NotFound,
    407: AuthRejected,
    408: Unavailable,
    425: Unavailable,
    429: RateLimited,
    501: Unsupported,
    503: Unavailable,
    505: Unsupported,
}


def status_failure(
    status: int, what: str, *, body: bytes = b"", retry_after_s: float | None = None
) -> StatusFailure:
    """Make the failure that a HTTP status stands for (RFC 9110 §15).

    Args:
        status: a status code outside 200..299.
        what: the request in words, for the message.
        body: first bytes of the error body.
        retry_after_s: parsed ``Retry-After``, seconds.
    """
    if (leaf := _BY_STATUS.get(status)) is None:
        leaf = ServerFailure if status >= 500 else Rejected if status >= 400 else UnexpectedStatus
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        phrase = "unknown status"
    return leaf(
        f"{what}: {status} {phrase}{_excerpt(body)}", status=status, body=body, retry_after_s=retry_after_s
    )


def _excerpt(body: bytes) -> str:
    """Enough of an error body to read in a log line; never the whole, it may be a page of HTML."""
    text = " ".join(body[:400].decode("utf-8", "replace").split())
    return f": {text[:200]}" if text else ""
