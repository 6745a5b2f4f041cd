"""A Redis for one measurement: fresh, on a free loopback port, append-only with fsync every second as in production."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import redis

from gateway.store.embedded import NoRedisBinary, find_redis_binary

START_TIMEOUT_S = 10.0
#: Longest wait for a rewrite of the append-only file to end, seconds: some 10^6 jobs take about 5 s.
REWRITE_TIMEOUT_S = 120.0


class CannotMeasure(Exception):
    """Something that the measurement needs is missing on this machine; the message names it."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running Redis: its loopback ``port`` and a synchronous ``client`` for preparation and questions."""

    port: int
    client: redis.Redis

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def info(self, section: str) -> dict[str, Any]:
        """One section of INFO."""
        found: dict[str, Any] = self.client.info(section)
        return found

    def commands(self) -> int:
        """Commands executed so far, those inside scripts included."""
        return sum(int(entry["calls"]) for entry in self.info("commandstats").values())

    def cpu_s(self) -> float:
        """Processor time that Redis has used so far, rewrites of its file excluded, seconds."""
        found = self.info("cpu")
        return float(found["used_cpu_user"]) + float(found["used_cpu_sys"])

    def settle_down(self) -> None:
        """Wait until no rewrite of the append-only file runs, so that it disturbs no measurement."""
        deadline_s = time.monotonic() + REWRITE_TIMEOUT_S
        while self.info("persistence")["aof_rewrite_in_progress"] and time.monotonic() < deadline_s:
            time.sleep(0.05)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _binary() -> Path:
    try:
        return find_redis_binary()
    except NoRedisBinary as error:
        raise CannotMeasure(str(error)) from None


@contextmanager
def redis_server(*, append_only: bool = True) -> Iterator[Server]:
    """Run a fresh Redis, and remove its data afterwards.

    Args:
        append_only: with an append-only file, fsynced every second (the product's default), or in memory only.

    Raises:
        CannotMeasure: there is no server to run, or it does not start.
    """
    directory = Path(tempfile.mkdtemp(prefix="trio-gateway-benchmark-"))
    port = _free_port()
    options = {
        "port": str(port),
        "bind": "127.0.0.1",
        "dir": str(directory),
        "save": "",
        "appendonly": "yes" if append_only else "no",
        "appendfsync": "everysec",
    }
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    process = subprocess.Popen([_binary(), *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    client = redis.Redis(port=port, socket_timeout=60.0)
    try:
        _wait_ready(client, process)
        yield Server(port, client)
    finally:
        client.close()
        process.terminate()
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(directory, ignore_errors=True)


def _wait_ready(client: redis.Redis, process: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            # The process id tells our server from another one that took the port meanwhile.
            if client.info("server")["process_id"] == process.pid:
                return
        except redis.RedisError:
            time.sleep(0.01)
    raise CannotMeasure("redis-server did not start")


def machine(server: Server) -> dict[str, Any]:
    """What was measured on: reported with every figure, because none means anything without it."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load_average_1_min": round(os.getloadavg()[0], 2),
        "system": platform.platform(),
        "python": platform.python_version(),
        "trio": version("trio"),
        "coredis": version("coredis"),
        "redis": str(server.info("server")["redis_version"]),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def resident_bytes() -> int | None:
    """Memory of this process that is resident now; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")
