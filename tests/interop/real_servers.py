"""Real servers for the interoperability tests: each in a virtual environment of its own, on a free loopback port.

The environments live in the directory that ``TRIO_GATEWAY_INTEROP_DIR`` names (tox: inside its own environment) and
are made once; a change of what goes into one makes another.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.support.redis_server import free_port

DIRECTORY_VARIABLE = "TRIO_GATEWAY_INTEROP_DIR"
#: Absolute limits, seconds: an installation from the package index, the start of a server, and its end.
INSTALL_TIMEOUT_S = 900.0
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.2
#: Variables of ours that a server must not see; credentials of the machine are none of its business either.
KEPT_VARIABLES = ("PATH", "HOME", "LANG", "TMPDIR", "SSL_CERT_FILE", "PIP_INDEX_URL", "PIP_CONFIG_FILE")


def directory() -> Path:
    """Where the environments live."""
    return Path(os.environ.get(DIRECTORY_VARIABLE, ".tox/interop/servers")).absolute()


def server_environment(name: str, requirements: Sequence[str]) -> Path:
    """A virtual environment with these requirements, made unless it is there; returns its folder of programs.

    Args:
        name: for people.
        requirements: as ``pip install`` takes them.
    """
    digest = hashlib.sha256("\n".join((sys.version, *requirements)).encode()).hexdigest()[:12]
    home = directory() / f"{name}-{digest}"
    home.mkdir(parents=True, exist_ok=True)
    ready = home / "ready"
    # Several test processes may want it at once.
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            venv.create(home / "venv", with_pip=True, clear=True)
            command = [str(home / "venv/bin/python"), "-m", "pip", "install", "-q", *requirements]
            with (home / "pip.log").open("wb") as log:
                subprocess.run(command, check=True, timeout=INSTALL_TIMEOUT_S, stdout=log, stderr=log)
            ready.touch()
    return home / "venv/bin"


@contextlib.contextmanager
def server_process(
    command: Sequence[str | Path], log: Path, ready: Callable[[], bool], environment: Mapping[str, str]
) -> Iterator[int]:
    """Run a server until the end of the block; starts when it is ready. Yields its process id.

    Args:
        command: program and arguments.
        log: file that gets its output.
        ready: whether it serves now; asked until it says so.
        environment: variables beside the few that every program needs.
    """
    variables = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    with log.open("wb") as output:
        # A session of its own: servers start workers, and all of them must end.
        process = subprocess.Popen(
            list(map(str, command)),
            env={**variables, **environment},
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not ready():
            if process.poll() is not None or time.monotonic() > deadline_s:
                tail = log.read_text(errors="replace")[-3000:]
                raise RuntimeError(f"{command[0]} did not start (exit {process.poll()}):\n{tail}")
            time.sleep(POLL_S)
        yield process.pid
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server and whatever it started, by its own process group."""
    for kind in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_TIMEOUT_S)
            if kind is signal.SIGKILL:
                return


def answers(url: str) -> bool:
    """Whether a URL is answered with success."""
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return int(reply.status) == 200
    except (urllib.error.URLError, OSError):
        return False


__all__ = ["answers", "free_port", "server_environment", "server_process"]
