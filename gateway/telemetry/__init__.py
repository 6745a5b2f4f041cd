"""Telemetry of a gateway process: traces, metrics and logs; ``build_telemetry`` makes its observer."""

from gateway.telemetry.build import Telemetry, build_telemetry
from gateway.telemetry.context import LogContext, current_log_context
from gateway.telemetry.logs import configure_logging
from gateway.telemetry.tracing import SeededIdGenerator

__all__ = [
    "LogContext",
    "SeededIdGenerator",
    "Telemetry",
    "build_telemetry",
    "configure_logging",
    "current_log_context",
]
