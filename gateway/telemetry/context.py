"""Which attempt the current task works on: set by the attempt itself, read by every log line.

trio copies context variables into each task it starts, so a job's helpers (progress pump, watchdog) inherit it.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Protocol

import msgspec


class LogContext(msgspec.Struct, frozen=True):
    """What identifies a log line; ids are empty where there are none (hexadecimal where there are)."""

    job_id: str = ""
    epoch: int = 0
    worker_id: str = ""
    trace_id: str = ""
    span_id: str = ""


class InAttempt(Protocol):
    """An attempt that can say who it is; asked only when a line is written."""

    def log_context(self) -> LogContext: ...


NO_CONTEXT = LogContext()
CURRENT: ContextVar[InAttempt | None] = ContextVar("gateway_attempt", default=None)


def current_log_context() -> LogContext:
    """The context of the calling task, thread or callback."""
    attempt = CURRENT.get()
    return NO_CONTEXT if attempt is None else attempt.log_context()
