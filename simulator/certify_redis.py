"""A private Redis whose death is part of the test: it may be killed at any moment and started again on its data.

The embedded Redis of the gateway is kept alive by its keeper; here the killer decides when it comes back.
"""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from gateway.fleet import FleetFailed
from gateway.store.embedded import find_redis_binary
from gateway.store.embedded_files import choose_socket, is_ready, make_private_directory

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
POLL_S = 0.01


class PrivateRedis:
    """One append-only Redis on a unix socket, with its data in ``directory``; runs between enter and exit.

    Args:
        directory: for its data and log; made if missing, private to this user.

    Raises:
        NoRedisBinary: on entering: there is nothing to run.
        FleetFailed: on entering: it did not start.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        make_private_directory(directory)
        self._socket = choose_socket(directory)
        self._binary = find_redis_binary()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """``unix://`` URL; stays the same over restarts."""
        return f"unix://{self._socket}?db=0"

    @property
    def running(self) -> bool:
        return self._process is not None

    def start(self) -> None:
        """Start it on whatever data there is, and wait until it serves; harmless while it runs.

        Raises:
            FleetFailed: it ended, or did not serve within 10 s.
        """
        if self._process is not None:
            return
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "dir": str(self._directory),
            "save": "",
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
        }
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        log = self._directory / "redis.log"
        with log.open("ab") as output:
            process = subprocess.Popen(
                [self._binary, *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._directory,
                process_group=0,  # Ctrl-C at the terminal is for us, who end everything in order
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not is_ready(self._socket):
            if process.poll() is not None or time.monotonic() > deadline_s:
                process.kill()
                process.wait(STOP_TIMEOUT_S)
                tail = "\n".join(log.read_text("utf-8", "replace").splitlines()[-5:])
                raise FleetFailed(f"Redis did not start: {tail}")
            time.sleep(POLL_S)
        self._process = process

    def kill(self) -> None:
        """End it by SIGKILL; what it acknowledged is in the hands of the operating system. Harmless twice."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(STOP_TIMEOUT_S)
            self._process = None

    def close(self) -> None:
        """End it for good."""
        self.kill()
        if self._socket.parent != self._directory:
            self._socket.unlink(missing_ok=True)
            self._socket.parent.rmdir()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
