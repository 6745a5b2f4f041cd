"""A process that uses the embedded Redis (``python -m tests.support.embedded_user DATA_DIR``), for tests to
kill.

It prints one JSON line, ``{"url", "pid"}`` or ``{"error", "text"}``, and then holds its lease until standard
input ends.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Self

from gateway.store.embedded import EmbeddedRedisError, acquire_embedded_redis

ROOT = Path(__file__).resolve().parents[2]


class EmbeddedUser:
    """A started user process, seen from the test.

    Arguments:
        data_dir: passed to it as an argument, or (None) not at all.
        environment: changes to its environment.
        python: the interpreter and its options.
    """

    def __init__(
        self,
        data_dir: Path | None,
        environment: dict[str, str] | None = None,
        python: tuple[str, ...] = (sys.executable,),
    ) -> None:
        words = [str(data_dir)] if data_dir is not None else []
        search_path = os.pathsep.join(filter(None, (str(ROOT), (environment or {}).get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [*python, "-m", "tests.support.embedded_user", *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, **(environment or {}), "PYTHONPATH": search_path},
        )
        self._report: dict[str, str] | None = None

    @property
    def report(self) -> dict[str, str]:
        """What it printed, waiting up to 15 s for it."""
        if self._report is None:
            output = self._process.stdout
            if output is None or not select.select([output], [], [], 15.0)[0]:
                raise TimeoutError("the user process said nothing")
            self._report = json.loads(output.readline())
        return self._report

    @property
    def url(self) -> str:
        """URL of its Redis."""
        return self.report["url"]

    @property
    def redis_pid(self) -> int:
        """Process id of its Redis when it got its lease."""
        return int(self.report["pid"])

    def kill9(self) -> None:
        """Kill it by SIGKILL."""
        self._process.kill()
        self.close()

    def close(self) -> None:
        """Let it end by itself; harmless if it is dead."""
        self._process.communicate(timeout=15.0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


def say(report: dict[str, str]) -> None:
    """Print the one line the test reads."""
    sys.stdout.write(json.dumps(report) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Acquire, report, hold."""
    data_dir = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    try:
        lease = acquire_embedded_redis(data_dir)
    except EmbeddedRedisError as error:
        say({"error": type(error).__name__, "text": str(error)})
        return
    with lease:
        say({"url": lease.url, "pid": str(lease.redis.pid)})
        sys.stdin.read()


if __name__ == "__main__":
    main()
