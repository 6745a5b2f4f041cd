"""Log lines on standard error: for people or as JSON, each with the job it is about, none with a secret.

The standard library's logging stays the interface; this module only sets up its one handler.
"""

from __future__ import annotations

import logging
import re
import sys
from collections import OrderedDict
from datetime import UTC, datetime
from typing import TextIO

import msgspec
from rich.console import Console
from rich.highlighter import NullHighlighter
from rich.logging import RichHandler

from gateway.config import TelemetryConfig
from gateway.telemetry.context import NO_CONTEXT, LogContext, current_log_context

#: Packages whose lines follow ``telemetry.log_level``; those of libraries are shown from warnings up.
OWN_LOGGERS = ("gateway", "protocols", "simulator")
#: A warning that repeats is shown this often per window, then counted.
REPEATS_MAX = 10
WINDOW_S = 30.0
#: Different warnings remembered at once; beyond it the oldest is forgotten (and shown again).
REMEMBERED_MAX = 1024

#: What a secret looks like in a line: credentials in an address, and values named as secret.
_USERINFO = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)[^\s/?#]*@", re.IGNORECASE)
_NAMED = re.compile(
    r"(?P<name>\b(?:(?:authorization|password|passwd|secret|token|api[-_]?key)\b['\"]?\s*[:=]\s*['\"]?|bearer\s+))"
    r"(?:(?:bearer|basic)\s+)?[^\s'\",;}]{6,}",
    re.IGNORECASE,
)
_HIDDEN = "***"


def redact(text: str) -> str:
    """The text without credentials in addresses and without values named as secret."""
    if "@" in text:
        text = _USERINFO.sub(rf"\g<scheme>{_HIDDEN}@", text)
    return _NAMED.sub(rf"\g<name>{_HIDDEN}", text)


class ContextFilter(logging.Filter):
    """Puts the current attempt's ids on each record, as ``record.gateway``; lets everything through."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.gateway = current_log_context()
        return True


class RepeatFilter(logging.Filter):
    """Thins out repeated warnings and errors; lines below and above always pass.

    Lines are the same when logger, level and the text before its arguments are: a warning about each of a thousand
    jobs is one warning a thousand times. The first line of the next window says how many were left out.
    """

    def __init__(self) -> None:
        super().__init__()
        # Per kind of line: start of its window, lines in it, lines left out.
        self._seen: OrderedDict[tuple[str, int, str], tuple[float, int, int]] = OrderedDict()

    def filter(self, record: logging.LogRecord) -> bool:
        record.left_out = 0
        if not logging.WARNING <= record.levelno <= logging.ERROR:
            return True
        key = (record.name, record.levelno, str(record.msg))
        began_s, shown, left_out = self._seen.pop(key, (record.created, 0, 0))
        if record.created - began_s >= WINDOW_S:
            record.left_out = left_out
            began_s, shown, left_out = record.created, 0, 0
        passes = shown < REPEATS_MAX
        self._seen[key] = (began_s, shown + passes, left_out + (not passes))
        if len(self._seen) > REMEMBERED_MAX:
            self._seen.popitem(last=False)
        return passes


def _message(record: logging.LogRecord) -> str:
    text = redact(record.getMessage())
    left_out = getattr(record, "left_out", 0)
    return f"{text} ({left_out} more like this were left out)" if left_out else text


def _trouble(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    """The traceback, if the record has one."""
    if record.exc_info and record.exc_info[0] is not None:
        return redact(formatter.formatException(record.exc_info))
    return ""


class LineFormatter(logging.Formatter):
    """One line for people.

    Args:
        bare: leave out time and level, which the terminal handler shows in columns of its own.
    """

    def __init__(self, *, bare: bool = False) -> None:
        super().__init__()
        self._bare = bare

    def format(self, record: logging.LogRecord) -> str:
        context: LogContext = getattr(record, "gateway", NO_CONTEXT)
        parts = [] if self._bare else [_timestamp(record), f"{record.levelname:<7}", record.name]
        # One record is one line: what a service says may hold line ends, and could otherwise forge a line.
        parts.append(_message(record).replace("\r", "\\r").replace("\n", "\\n"))
        if context.job_id:
            parts.append(f"[job={context.job_id} epoch={context.epoch} worker={context.worker_id}]")
        if context.trace_id:
            parts.append(f"[trace={context.trace_id} span={context.span_id}]")
        trouble = _trouble(self, record)
        return " ".join(parts) + (f"\n{trouble}" if trouble else "")


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, and where they apply the ids and the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        context: LogContext = getattr(record, "gateway", NO_CONTEXT)
        line: dict[str, str | int] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _message(record),
        }
        if context.job_id:
            line |= {"job_id": context.job_id, "epoch": context.epoch, "worker_id": context.worker_id}
        if context.trace_id:
            line |= {"trace_id": context.trace_id, "span_id": context.span_id}
        trouble = _trouble(self, record)
        if trouble:
            line["exception"] = trouble
        return msgspec.json.encode(line).decode()


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class LogSetup:
    """What ``configure_logging`` changed, to be undone with ``remove``."""

    def __init__(self, handler: logging.Handler, level: int) -> None:
        self.handler = handler
        root = logging.getLogger()
        self._levels = [(root, root.level)]
        root.addHandler(handler)
        root.setLevel(max(level, logging.WARNING))
        for name in OWN_LOGGERS:
            logger = logging.getLogger(name)
            self._levels.append((logger, logger.level))
            logger.setLevel(level)

    def set_level(self, name: str) -> None:
        """Show our own lines from this level up from now on."""
        level = logging.getLevelNamesMapping()[name.upper()]
        logging.getLogger().setLevel(max(level, logging.WARNING))
        for own in OWN_LOGGERS:
            logging.getLogger(own).setLevel(level)

    def remove(self) -> None:
        """Take the handler away and put the levels back."""
        logging.getLogger().removeHandler(self.handler)
        for logger, level in self._levels:
            logger.setLevel(level)
        self.handler.close()


def configure_logging(config: TelemetryConfig, *, stream: TextIO | None = None) -> LogSetup:
    """Send log lines to standard error; call it once per process.

    On a terminal the lines are coloured; elsewhere they are plain, or JSON with ``config.log_json``.

    Args:
        config: level and form.
        stream: instead of standard error.

    Returns:
        A handle that undoes it.
    """
    out = sys.stderr if stream is None else stream
    handler: logging.Handler
    if config.log_json:
        handler = logging.StreamHandler(out)
        handler.setFormatter(JsonFormatter())
    elif out.isatty():
        handler = RichHandler(
            console=Console(file=out), show_path=False, markup=False, highlighter=NullHighlighter()
        )
        handler.setFormatter(LineFormatter(bare=True))
    else:
        handler = logging.StreamHandler(out)
        handler.setFormatter(LineFormatter())
    handler.addFilter(RepeatFilter())
    handler.addFilter(ContextFilter())
    return LogSetup(handler, logging.getLevelNamesMapping()[config.log_level.upper()])
