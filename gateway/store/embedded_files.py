"""Files, locks and the raw probe that the embedded Redis' users and its keeper share (standard library only).

Everything lives in one private directory (mode 700), ``<data dir>/redis``:

=================== ==========================================================================================
``users.lock``      held shared by each process that uses the Redis; the kernel drops it, even at SIGKILL
``start.lock``      held by the one newcomer that starts or joins: a race of newcomers starts one Redis
``keeper.lock``     held by the keeper for its whole life
``redis.lock``      inherited by redis-server itself: held means "a Redis may still touch these files"
``redis.log``       what redis-server and the keeper say
``socket.path``     where the running Redis listens (not recomputed: TMPDIR may differ between shells)
=================== ==========================================================================================
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import socket
import stat
import struct
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Self

if sys.platform != "win32":
    import fcntl

SOCKET_PATH_BYTES_MAX = 100
"""``sun_path`` holds 104 bytes on macOS and 108 on Linux, with the final NUL; 100 leaves room on both."""

POLL_S = 0.02
"""Pause between two tries of a bounded wait: short beside a start (about 0.1 s), and 50 system calls a
second.
"""

PROBE_TIMEOUT_S = 1.0
"""How long one PING or INFO may take; a healthy local Redis answers within a millisecond."""

LOG_BYTES_MAX = 1_000_000
"""A longer log is moved aside (one generation) when a keeper starts."""

# One client library decodes %XX in a socket URL, the other does not: only paths that need no quoting work in
# both.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9/._-]+")


class PrivateDirectoryError(OSError):
    """A directory that must be private belongs to someone else, is a link, or is no directory."""


@dataclass(frozen=True, slots=True)
class EmbeddedFiles:
    """The paths of one embedded Redis.

    Arguments:
        directory: the private directory, ``<data dir>/redis``.
    """

    directory: Path

    @property
    def users_lock(self) -> Path:
        """Held shared by every user process."""
        return self.directory / "users.lock"

    @property
    def start_lock(self) -> Path:
        """Held by the newcomer that is starting or joining."""
        return self.directory / "start.lock"

    @property
    def keeper_lock(self) -> Path:
        """Held by the keeper."""
        return self.directory / "keeper.lock"

    @property
    def redis_lock(self) -> Path:
        """Held by redis-server (and the children it forks)."""
        return self.directory / "redis.lock"

    @property
    def config(self) -> Path:
        """The configuration file the keeper writes before each start."""
        return self.directory / "redis.conf"

    @property
    def log(self) -> Path:
        """Log of redis-server and of the keeper."""
        return self.directory / "redis.log"

    @property
    def socket_note(self) -> Path:
        """Text file with the path of the socket."""
        return self.directory / "socket.path"

    @property
    def multi_part_aof(self) -> Path:
        """Where Redis 7 and later keep the append-only file; earlier versions do not look there."""
        return self.directory / "appendonlydir"

    def log_tail(self, lines_max: int = 15, bytes_max: int = 8192) -> str:
        """Return the end of the log, at most `lines_max` lines out of the last `bytes_max` bytes."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - bytes_max))
                text = log.read(bytes_max).decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
        return "\n".join(text.splitlines()[-lines_max:])

    def noted_socket(self) -> Path | None:
        """Return the socket path the keeper wrote down, or None before the first start."""
        try:
            text = self.socket_note.read_text("utf-8").strip()
        except FileNotFoundError:
            return None
        return Path(text) if text else None


def make_private_directory(path: Path) -> None:
    """Create `path` with mode 700, or make sure that it is ours and nobody else can enter it.

    Raises:
        PrivateDirectoryError: it belongs to another user, is a symbolic link, or is no directory. This
            matters for the predictable name under the shared temporary directory, which anybody may have
            created first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode):
        raise PrivateDirectoryError(f"{path} is not a directory")
    if status.st_uid != os.geteuid():
        raise PrivateDirectoryError(f"{path} belongs to user id {status.st_uid}, not to {os.geteuid()}")
    if stat.S_IMODE(status.st_mode) != 0o700:
        path.chmod(0o700)


def choose_socket(directory: Path) -> Path:
    """Return where the Redis of `directory` should listen: inside it if the path is short and plain.

    Otherwise a private directory under the temporary directory is used, keyed by a hash of `directory`.

    Raises:
        PrivateDirectoryError: that directory is in another user's hands.
    """
    wished = directory / "redis.sock"
    if _fits(wished):
        return wished
    key = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    runtime = Path(tempfile.gettempdir()) / f"trio-gateway-{os.geteuid()}-{key}"
    if not _fits(runtime / "redis.sock"):
        runtime = Path("/tmp") / runtime.name
    make_private_directory(runtime)
    return runtime / "redis.sock"


def _fits(path: Path) -> bool:
    return len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX and _PLAIN_PATH.fullmatch(str(path)) is not None


class FileLock:
    """One held ``flock``; it ends with `close` or with the process, however that dies.

    The descriptor is not inherited by programs that are executed, so only the process itself (and plain forks
    of it) keeps the lock.
    """

    def __init__(self, fd: int) -> None:
        self._fd: int | None = fd

    @property
    def fd(self) -> int:
        """The locked descriptor.

        Raises:
            ValueError: the lock was closed.
        """
        if self._fd is None:
            raise ValueError("the lock is closed")
        return self._fd

    def close(self) -> None:
        """Let the lock go; calling it twice is harmless."""
        fd, self._fd = self._fd, None
        if fd is not None:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @classmethod
    def attempt(cls, path: Path, *, shared: bool = False) -> FileLock | None:
        """Take the lock at `path` without waiting; None if somebody holds it against us."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        except OSError:
            os.close(fd)
            raise
        return cls(fd)

    @classmethod
    def attempt_until(cls, path: Path, deadline_s: float, *, shared: bool = False) -> FileLock | None:
        """Take the lock at `path`, trying until the monotonic clock reaches `deadline_s`; None if it never
        came.
        """
        while True:
            lock = cls.attempt(path, shared=shared)
            if lock is not None or time.monotonic() >= deadline_s:
                return lock
            time.sleep(POLL_S)

    @classmethod
    def wait(cls, path: Path) -> FileLock:
        """Sleep in the kernel until the lock at `path` is ours (for the stand-by keeper, whose whole life
        this is).
        """
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        return cls(fd)


def ask_redis(socket_path: Path, command: bytes, timeout_s: float = PROBE_TIMEOUT_S) -> bytes | None:
    """Send one inline command and return its first reply (at most 64 KiB), or None if nobody answers in time.

    A simple reply ends at its line, a bulk reply at its announced length. An error reply is a reply.
    """
    deadline_s = time.monotonic() + timeout_s
    reply = b""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(socket_path))
            connection.sendall(command + b"\r\n")
            while not _complete(reply) and len(reply) < 65536 and time.monotonic() < deadline_s:
                chunk = connection.recv(16384)
                if not chunk:
                    break
                reply += chunk
        except OSError:
            return None
    return reply if _complete(reply) else None


def _complete(reply: bytes) -> bool:
    head, found, body = reply.partition(b"\r\n")
    if not found:
        return False
    return not head.startswith(b"$") or len(body) >= int(head[1:]) + 2


def is_ready(socket_path: Path) -> bool:
    """Say whether the Redis there serves (a Redis that still loads its data answers, but does not serve)."""
    return (ask_redis(socket_path, b"PING") or b"").startswith(b"+PONG")


def is_loading(socket_path: Path) -> bool:
    """Say whether a Redis is there that still reads its append-only file."""
    return (ask_redis(socket_path, b"PING") or b"").startswith(b"-LOADING")


def process_id(socket_path: Path) -> int | None:
    """Return the process id of the Redis there, as it tells it itself; None if it does not answer."""
    found = re.search(rb"\r\nprocess_id:(\d+)\r\n", ask_redis(socket_path, b"INFO server") or b"")
    return int(found[1]) if found else None


def listener_process_id(socket_path: Path) -> int | None:
    """Return who listens on the socket as the kernel knows it (Linux), even if that process is stopped or
    hung.
    """
    if not hasattr(socket, "SO_PEERCRED"):
        return process_id(socket_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(PROBE_TIMEOUT_S)
        try:
            connection.connect(str(socket_path))
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:
            return None
    pid: int = struct.unpack("3i", credentials)[0]
    return pid if pid > 0 else None
