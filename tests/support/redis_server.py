"""A real redis-server for tests: append-only, on a free loopback port or a unix socket, killable and
restartable.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Self

from gateway.store.embedded import find_redis_binary

START_TIMEOUT_S = 10.0
POLL_S = 0.01


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class RedisServer:
    """One redis-server process with its data in `directory`.

    Arguments:
        directory: where the append-only file lives; it survives `kill9`, `stop` and `restart`.
        unix: listen on ``directory/redis.sock`` instead of a loopback port.
        binary: server to run; default the one the embedded Redis would use.
        options: further configuration, e.g. ``{"appendfsync": "always"}``.
    """

    def __init__(
        self,
        directory: Path,
        *,
        unix: bool = False,
        binary: Path | None = None,
        options: dict[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.socket_path = directory / "redis.sock" if unix else None
        self.port = 0 if unix else free_port()
        self._binary = binary or find_redis_binary()
        self._options = {"appendfsync": "everysec", **(options or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """URL for redis-py and coredis; it stays the same over restarts."""
        if self.socket_path is not None:
            return f"unix://{self.socket_path}?db=0"
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        return self._running().pid

    def start(self) -> Self:
        """Start the server and wait until it serves (typically 0.02 s); a lost race for a fresh port is
        repeated.
        """
        if self._process is not None:
            raise RuntimeError("the server runs already")
        for attempt in range(5):
            if attempt and not any(self.directory.glob("append*")):
                self.port = 0 if self.socket_path else free_port()
            if self._start_once():
                return self
        raise RuntimeError((self.directory / "redis.log").read_text("utf-8", "replace")[-2000:])

    def _start_once(self) -> bool:
        options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(self.directory),
            "save": "",
            "appendonly": "yes",
            "aof-load-truncated": "yes",
            "maxmemory-policy": "noeviction",
            **self._options,
        }
        if self.socket_path is not None:
            options["unixsocket"] = str(self.socket_path)
        words = [word for key, value in options.items() for word in (f"--{key}", value)]
        with (self.directory / "redis.log").open("ab") as log:
            process = subprocess.Popen(
                [self._binary, *words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory
            )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._serves(process.pid):
            if process.poll() is not None:
                return False
            if time.monotonic() > deadline_s:
                process.kill()
                process.wait()
                return False
            time.sleep(POLL_S)
        self._process = process
        return True

    def _serves(self, pid: int) -> bool:
        """Say whether *this* server answers, and not another one that took the port meanwhile."""
        family = socket.AF_INET if self.socket_path is None else socket.AF_UNIX
        address = ("127.0.0.1", self.port) if self.socket_path is None else str(self.socket_path)
        with socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(1.0)
            try:
                connection.connect(address)
                connection.sendall(b"PING\r\n")
                if not connection.recv(64).startswith(b"+PONG"):
                    return False
                connection.sendall(b"INFO server\r\n")
                return f"\r\nprocess_id:{pid}\r\n".encode() in connection.recv(65536)
            except OSError:
                return False

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("the server does not run")
        return self._process

    def kill9(self) -> None:
        """Kill the server at once; the data written so far stays on disk."""
        self._running().kill()
        self._reap(5.0)

    def stop(self) -> None:
        """End the server politely (with an fsync), by force after 5 s; harmless if it does not run."""
        if self._process is None:
            return
        self.resume()
        self._process.terminate()
        try:
            self._reap(5.0)
        except subprocess.TimeoutExpired:
            self.kill9()

    def restart(self, *, kill: bool = False) -> None:
        """End the server if it runs (with `kill`: by SIGKILL) and start it again on the same address and
        data.
        """
        if self._process is not None:
            if kill:
                self.kill9()
            else:
                self.stop()
        self.start()

    def pause(self) -> None:
        """Stop the process with SIGSTOP: connections stay open, nothing is answered."""
        self._running().send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Continue after `pause`; harmless if it was not paused."""
        self._running().send_signal(signal.SIGCONT)

    def _reap(self, timeout_s: float) -> None:
        self._running().wait(timeout_s)
        self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc_info: object) -> None:
        self.stop()
