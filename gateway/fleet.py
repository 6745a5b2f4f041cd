"""A fleet as child processes: starting, killing and pausing them, their configuration, the services' journals.

Shared by ``gateway demo``, ``simulator certify`` and the pytest plugin. Everything here blocks, within stated bounds.
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

from gateway.connectors.simulation import wire
from gateway.errors import GatewayError

START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
#: After SIGKILL the kernel needs no longer.
REAP_TIMEOUT_S = 10.0
POLL_S = 0.02
LOG_LINES = 8


class FleetFailed(GatewayError):
    """A part of the fleet did not start or did not end in time."""


class ChildProcess:
    """A child whose standard output and errors go to files, so that it never waits for a reader.

    Args:
        command: program and arguments.
        log: file for its standard error; standard output goes beside it, with the suffix ``.out``.
        environment: its variables; None for our own.
        own_group: keep Ctrl-C at the terminal from it, for a caller that ends its children in order.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        environment: Mapping[str, str] | None = None,
        own_group: bool = False,
    ) -> None:
        self.log = log
        self._out = log.with_suffix(".out")
        self._what = log.stem
        with self._out.open("wb") as output, log.open("ab") as errors:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=errors,
                env=environment,
                process_group=0 if own_group else None,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def first_line(
        self, timeout_s: float = START_TIMEOUT_S, check: Callable[[], None] = lambda: None
    ) -> dict[str, Any]:
        """The JSON object a child prints when it is ready.

        Args:
            timeout_s: longest wait, seconds.
            check: called now and then; may raise to give up.

        Raises:
            FleetFailed: it did not come in time, or the child ended instead.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            check()
            ended = self.ended
            line, newline, _ = self._out.read_bytes().partition(b"\n")
            if newline:
                answer: dict[str, Any] = json.loads(line)
                return answer
            if ended or time.monotonic() > deadline_s:
                why = "ended" if ended else f"was not ready within {timeout_s:g} s"
                raise FleetFailed(f"{self._what} {why}: {self.log_tail() or 'it said nothing'}")
            time.sleep(POLL_S)

    @property
    def ready(self) -> bool:
        """Whether it has said that it is ready."""
        return b"\n" in self._out.read_bytes()

    def log_tail(self, lines: int = LOG_LINES) -> str:
        """The last lines of its standard error."""
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-lines:])

    def kill(self) -> None:
        """End it by SIGKILL; harmless when it has ended."""
        self._process.kill()
        self._process.wait(REAP_TIMEOUT_S)

    def pause(self) -> None:
        """Stop it with SIGSTOP: connections stay open, nothing happens."""
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after ``pause``; harmless otherwise."""
        self._process.send_signal(signal.SIGCONT)

    def stop(self, timeout_s: float = STOP_TIMEOUT_S) -> int | None:
        """End it gently, by force after ``timeout_s``.

        Returns:
            Its exit code; None when force was needed.
        """
        if self.ended:
            return self._process.returncode
        self.resume()
        self._process.terminate()
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def request(url: str, method: str, path: str, body: Any = None, *, timeout_s: float = 10.0) -> bytes:
    """One HTTP request to a simulated service on this machine; returns the answer's body.

    Raises:
        FleetFailed: it cannot be reached, or answers with another status than 200.
    """
    import http.client

    host = urlsplit(url)
    connection = http.client.HTTPConnection(host.hostname or "", host.port or 80, timeout=timeout_s)
    try:
        connection.request(method, path, None if body is None else json.dumps(body))
        reply = connection.getresponse()
        content = reply.read()
    except (OSError, http.client.HTTPException) as error:
        raise FleetFailed(f"{method} {url}{path}: {error}") from error
    finally:
        connection.close()
    if reply.status != http.client.OK:
        failure = wire.decode_failure(content)
        raise FleetFailed(f"{method} {url}{path}: {reply.status} {failure.message if failure else ''}")
    return content


def read_journal(url: str) -> wire.JournalPage:
    """One simulated service's whole journal.

    Raises:
        FleetFailed: the service cannot be asked.
    """
    entries: list[wire.JournalEntry] = []
    while True:
        after = entries[-1].seq if entries else 0
        page = wire.decode(request(url, "GET", wire.journal_path(after)), wire.JournalPage)
        entries += page.entries
        if not page.entries or entries[-1].seq >= page.summary.last_seq:
            return wire.JournalPage(entries=tuple(entries), summary=page.summary)


def toml_text(values: Mapping[str, Any]) -> str:
    """Nested settings as TOML: plain values first, then one table per mapping. None is left out."""
    return "\n".join(_table("", values)).strip() + "\n"


def _table(name: str, values: Mapping[str, Any]) -> list[str]:
    plain = [(key, value) for key, value in values.items() if value is not None and not _is_table(value)]
    lines = [f"{_key(key)} = {_value(value)}" for key, value in plain]
    if name and (lines or not any(_is_table(value) for value in values.values())):
        lines = ["", f"[{name}]", *lines]
    for key, value in values.items():
        inner = f"{name}.{_key(key)}" if name else _key(key)
        if isinstance(value, Mapping):
            lines += _table(inner, value)
        elif _is_table(value):
            for item in value:
                lines += ["", f"[[{inner}]]"]
                lines += [f"{_key(k)} = {_value(v)}" for k, v in item.items() if v is not None]
    return lines


def _is_table(value: object) -> bool:
    """A mapping, or a list of nothing but mappings: they get headers of their own."""
    if isinstance(value, Mapping):
        return True
    return (
        isinstance(value, list | tuple) and bool(value) and all(isinstance(item, Mapping) for item in value)
    )


def _key(key: str) -> str:
    plain = key.isascii() and key.replace("_", "").replace("-", "").isalnum()
    return key if plain else _text(key)


def _text(text: str) -> str:
    # JSON and TOML escape alike but for DEL, which TOML wants escaped.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        inner = (f"{_key(key)} = {_value(item)}" for key, item in value.items() if item is not None)
        return "{ " + ", ".join(inner) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value if item is not None) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int | float) else _text(str(value))
