"""What a gRPC method is to its callers: a path and the types of its messages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from google.protobuf.message import Message

RequestT = TypeVar("RequestT", bound=Message)
ReplyT = TypeVar("ReplyT", bound=Message)


@dataclass(frozen=True, slots=True)
class Method(Generic[RequestT, ReplyT]):
    """One method; a streaming one is asked with one message too, which on the wire is the same.

    Attributes:
        path: ``/package.Service/Method``.
        request: type of what is sent.
        reply: type of what comes back, or of each message that does.
    """

    path: str
    request: type[RequestT]
    reply: type[ReplyT]
