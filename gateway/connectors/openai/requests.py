"""What a job's payload asks of an OpenAI-compatible server (pure).

``{"operation": "chat", "body": {...}}``: the body goes to the server as it is. Where the body alone says which
operation is meant, ``operation`` may be left out, and a chat body may be the whole payload.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.errors import FaultClass, JobFault


class Operation(enum.StrEnum):
    """What can be asked for."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    IMAGES = "images"
    RESPONSES = "responses"


#: Paths below the base URL (OpenAI's API reference).
PATHS = {
    Operation.CHAT: "/chat/completions",
    Operation.COMPLETIONS: "/completions",
    Operation.EMBEDDINGS: "/embeddings",
    Operation.IMAGES: "/images/generations",
    Operation.RESPONSES: "/responses",
}
STREAMED = frozenset({Operation.CHAT, Operation.COMPLETIONS, Operation.RESPONSES})
#: Operations whose streams tell the usage only when asked for it.
_USAGE_ON_DEMAND = frozenset({Operation.CHAT, Operation.COMPLETIONS})
_EXAMPLE = '{"operation": "chat", "body": {...}}'


@dataclass(frozen=True, slots=True)
class Call:
    """One request to the server.

    Attributes:
        operation: which one.
        body: as it is sent.
        choices: so many answers were asked for.
    """

    operation: Operation
    body: dict[str, Any]
    choices: int = 1

    @property
    def path(self) -> str:
        """Below the base URL."""
        return PATHS[self.operation]

    @property
    def stream(self) -> bool:
        """Whether the answer is to come piece by piece."""
        return self.body.get("stream") is True

    def content(self) -> bytes:
        """The body as bytes."""
        return msgspec.json.encode(self.body)


def read_call(payload: Any, *, model: str = "", include_usage: bool = True) -> Call:
    """Read a payload.

    Args:
        payload: of the job.
        model: goes into a body that names none; empty for none.
        include_usage: ask streams for their usage.

    Raises:
        JobFault: VALIDATION, with one line that says what is wrong and what would be right.
    """
    if not isinstance(payload, dict):
        raise _refused(f"payload: expected an object such as {_EXAMPLE}, not {_kind(payload)}")
    if "messages" in payload and not {"operation", "body"} & payload.keys():
        payload = {"operation": Operation.CHAT.value, "body": payload}
    unknown = sorted(map(str, payload.keys() - {"operation", "body"}))
    if unknown:
        raise _refused(f"payload: unknown member {unknown[0]!r}: expected {_EXAMPLE}")
    given = payload.get("body")
    if not isinstance(given, dict):
        raise _refused(f"payload.body: expected an object, the server's own request, not {_kind(given)}")
    operation = _operation(payload.get("operation"), given)
    body = dict(given)
    _check(operation, body)
    if model:
        body.setdefault("model", model)
    if include_usage and body.get("stream") is True and operation in _USAGE_ON_DEMAND:
        body.setdefault("stream_options", {"include_usage": True})
    wanted = body.get("n")
    return Call(operation, body, wanted if isinstance(wanted, int) and wanted > 1 else 1)


def _operation(named: Any, body: dict[str, Any]) -> Operation:
    known = ", ".join(Operation)
    if named is None:
        if "messages" in body:
            return Operation.CHAT
        # ``prompt`` is what completions and images want, ``input`` embeddings and responses.
        raise _refused(f"payload.operation: name one of {known}; this body does not tell which is meant")
    try:
        return Operation(named)
    except ValueError:
        shown = repr(named) if isinstance(named, str) and len(named) <= 40 else _kind(named)
        raise _refused(f"payload.operation: {shown} is none of {known}") from None


def _check(operation: Operation, body: dict[str, Any]) -> None:
    """Refuse what would make the server answer in a way that nobody here would understand."""
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise _refused(f"payload.body.stream: expected true or false, not {_kind(stream)}")
    if stream and operation not in STREAMED:
        raise _refused(f"payload.body.stream: {operation} is not streamed; leave it out")
    if body.get("background"):
        raise _refused("payload.body.background: such a response cannot be followed; leave it out")


def _refused(message: str) -> JobFault:
    return JobFault(FaultClass.VALIDATION, message)


def _kind(value: Any) -> str:
    """A JSON value's kind, for people."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "a boolean"
    kinds: dict[type, str] = {
        str: "a string",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return kinds.get(type(value), type(value).__name__)
