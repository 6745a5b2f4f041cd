"""What an error of an OpenAI-compatible server means: by status first, then by its ``type`` and ``code`` (pure).

Servers agree on little: ``code`` is a string, a number or null; some answer in FastAPI's ``detail``, some in plain
text, some with nothing, and some report an error inside an answer of status 200. Messages are for people only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.connectors.faults import job_fault
from gateway.errors import FaultClass, JobFault
from protocols.errors import ProtocolError, StatusFailure

_MESSAGE_CHARS_MAX = 300

#: A policy decided, and will decide so again (OpenAI, Azure OpenAI; litellm passes them on).
_REFUSED = frozenset(
    {
        "content_filter",
        "content_policy_violation",
        "moderation_blocked",
        "responsibleaipolicyviolation",
        "sensitive_information",
    }
)
#: ``no_db_connection`` is how litellm answers a key that it does not know: status 400.
_AUTH = frozenset(
    {"authentication_error", "auth_error", "invalid_api_key", "permission_error", "no_db_connection"}
)
#: ``OutOfMemoryError`` is the name of PyTorch's exception class, which servers written in Python pass on.
_OUT_OF_MEMORY = frozenset(
    {"outofmemoryerror", "torch.outofmemoryerror", "torch.cuda.outofmemoryerror", "out_of_memory"}
)
_RATE_LIMITED = frozenset({"rate_limit_exceeded", "rate_limit_error", "throttling_error"})
#: An account that is spent: waiting for a moment does not help here, another worker's account may.
_QUOTA = frozenset({"insufficient_quota", "billing_hard_limit_reached"})
_UNAVAILABLE = frozenset(
    {"overloaded_error", "service_unavailable", "service_unavailable_error", "server_overloaded"}
)
_VALIDATION = frozenset(
    {
        "invalid_request_error",
        "context_length_exceeded",
        "invalid_prompt",
        "model_not_found",
        "invalid_image",
        "image_parse_error",
    }
)
_TIMEOUT = frozenset({"timeout", "timeout_error", "vector_store_timeout"})

#: Tried in this order: the more specific name decides where ``type`` and ``code`` differ.
_BY_NAME: tuple[tuple[frozenset[str], FaultClass], ...] = (
    (_REFUSED, FaultClass.REFUSED),
    (_QUOTA, FaultClass.UNAVAILABLE),
    (_AUTH, FaultClass.AUTH),
    (_OUT_OF_MEMORY, FaultClass.OUT_OF_MEMORY),
    (_RATE_LIMITED, FaultClass.RATE_LIMITED),
    (_UNAVAILABLE, FaultClass.UNAVAILABLE),
    (_TIMEOUT, FaultClass.TIMEOUT),
    (_VALIDATION, FaultClass.VALIDATION),
)
#: Statuses whose meaning here differs from the protocol's general one.
_BY_STATUS = {
    # A proxy that gave up on its upstream (litellm): the work may have been done.
    408: FaultClass.TIMEOUT,
    504: FaultClass.TIMEOUT,
    # A conflict with other work of the server; OpenAI's own client repeats it.
    409: FaultClass.SERVICE_ERROR,
    507: FaultClass.OUT_OF_MEMORY,
}
#: Classes by which a name may overrule a status of its group.
_NAMES_OF_4XX = frozenset({FaultClass.REFUSED, FaultClass.AUTH})
_NAMES_OF_5XX = frozenset({FaultClass.OUT_OF_MEMORY})


@dataclass(frozen=True, slots=True)
class ErrorDetail:
    """What an error body says; empty where it says nothing.

    Attributes:
        names: its ``type`` and ``code``, and those of an inner error, in lower case.
        code: the number it gives as its code, 0 when it gives none.
    """

    message: str = ""
    names: frozenset[str] = frozenset()
    code: int = 0


def read_error(body: bytes) -> ErrorDetail:
    """Read an error body of any kind."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ErrorDetail(_line(body.decode("utf-8", "replace")))
    return error_detail(value)


def error_detail(value: Any) -> ErrorDetail:
    """Read an error that is already JSON: ``{"error": ...}``, FastAPI's ``{"detail": ...}``, or the error itself."""
    if not isinstance(value, dict):
        return ErrorDetail(_line(value if isinstance(value, str) else ""))
    error = value.get("error", value.get("detail", value))
    if isinstance(error, list):
        error = error[0] if error else {}
    if not isinstance(error, dict):
        return ErrorDetail(_line(error if isinstance(error, str) else ""))
    inner = error.get("innererror")
    candidates = [
        error.get("type"),
        error.get("code"),
        inner.get("code") if isinstance(inner, dict) else None,
    ]
    names = frozenset(name.lower() for name in candidates if isinstance(name, str))
    code = error.get("code")
    if isinstance(code, str) and code.isascii() and code.isdigit() and len(code) == 3:
        code = int(code)
    message = error.get("message", error.get("msg"))
    return ErrorDetail(
        _line(message if isinstance(message, str) else ""),
        names,
        code if isinstance(code, int) and not isinstance(code, bool) else 0,
    )


def fault_of(error: ProtocolError) -> JobFault:
    """The job fault of a failed exchange."""
    if not isinstance(error, StatusFailure):
        return job_fault(error)
    plain, detail = job_fault(error), read_error(error.body)
    fault_class = _by_status(error.status, detail.names, plain.fault_class)
    message = f"status {error.status}: {detail.message or 'no message'}"
    return JobFault(
        fault_class, message, retry_after_s=error.retry_after_s, outcome_unknown=error.outcome_unknown
    )


def reported_fault(value: Any) -> JobFault:
    """The job fault of an error that came inside an answer of status 200."""
    detail = error_detail(value)
    if 400 <= detail.code <= 599:
        fault_class = _by_status(detail.code, detail.names, _general(detail.code))
    else:
        fault_class = _named(detail.names) or FaultClass.SERVICE_ERROR
    return JobFault(fault_class, f"the server reported: {detail.message or 'an error without a message'}")


def _by_status(status: int, names: frozenset[str], general: FaultClass) -> FaultClass:
    named = _named(names)
    if status == 429:
        return FaultClass.UNAVAILABLE if names & _QUOTA else FaultClass.RATE_LIMITED
    if 400 <= status <= 499 and named in _NAMES_OF_4XX and status not in _BY_STATUS:
        return named
    if status >= 500 and named in _NAMES_OF_5XX:
        return named
    return _BY_STATUS.get(status, general)


def _general(status: int) -> FaultClass:
    """What a status means that came as a number in a body."""
    if status in (401, 403, 407):
        return FaultClass.AUTH
    if status == 503:
        return FaultClass.UNAVAILABLE
    return FaultClass.VALIDATION if status < 500 else FaultClass.SERVICE_ERROR


def _named(names: frozenset[str]) -> FaultClass | None:
    return next((fault_class for known, fault_class in _BY_NAME if names & known), None)


def _line(text: str) -> str:
    return " ".join(text[: _MESSAGE_CHARS_MAX * 2].split())[:_MESSAGE_CHARS_MAX]
