"""The serving side of gRPC in the terms of this project: one incoming call, and what handles it (no gRPC library)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class IncomingCall:
    """One call as its handler sees it.

    Attributes:
        path: ``/package.Service/Method``.
        request: the message.
        metadata: text metadata by name, in lower case.
        time_left_s: seconds until the caller's deadline, None without one.
        send: sends one message; waits while too many are on their way.
    """

    path: str
    request: bytes
    metadata: Mapping[str, str]
    time_left_s: float | None
    send: Callable[[bytes], Awaitable[None]]


#: Answers one call: sends its messages and returns (OK), or raises ``CallEnded`` with another status. It is cancelled
#: when the caller leaves or its deadline passes.
CallHandler = Callable[[IncomingCall], Awaitable[None]]
