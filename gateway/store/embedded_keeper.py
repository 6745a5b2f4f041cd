"""The keeper: the small process that owns the embedded redis-server (``python -m
gateway.store.embedded_keeper``).

It is detached from the process that started it, so that one's death changes nothing for the others. It ends
Redis and itself once no process holds ``users.lock`` any more, restarts Redis if that dies, and has a
stand-by: a fork that sleeps in the kernel on ``keeper.lock`` and takes over at once if the keeper itself is
killed. On Linux redis-server is told by the kernel when its keeper dies and ends too, so even killing every
process of the user by SIGKILL leaves no Redis. Elsewhere an orphan is replaced by the stand-by or, if that
was killed as well, by the next newcomer.
"""

from __future__ import annotations

import argparse
import ctypes
import enum
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from gateway.store.embedded_files import (
    LOG_BYTES_MAX,
    POLL_S,
    EmbeddedFiles,
    FileLock,
    ask_redis,
    is_ready,
    listener_process_id,
    make_private_directory,
)

WATCH_S = 0.25
"""How often the keeper looks for lost users and a lost Redis: the outage after a crash stays below half a
second.
"""

STOP_GRACE_S = 10.0
"""What Redis gets to write and fsync its append-only file before it is killed."""

ORPHAN_GRACE_S = 5.0
"""What a Redis left by an earlier keeper gets to end before it is killed."""

CRASHES_MAX = 20
"""Crashes in a row before the keeper gives up; with the pauses below that takes about a minute and a half."""

CRASH_PAUSE_FIRST_S, CRASH_PAUSE_MAX_S = 0.25, 5.0
"""Pause before the second restart in a row (the first is immediate); it doubles up to the maximum."""

STEADY_S = 10.0
"""A Redis that ran for so long was healthy: its crash starts a new row."""

PR_SET_PDEATHSIG = 1
"""From <linux/prctl.h>."""


class StartFault(enum.StrEnum):
    """Why a first start failed, as the keeper tells the process that started it."""

    BUSY = "busy"
    EXITED = "exited"
    TIMEOUT = "timeout"
    DOWNGRADE = "downgrade"
    ORPHAN = "orphan"
    SYSTEM = "system"


class StartFailureError(Exception):
    """A start that did not succeed; `fault` classifies it, `detail` is for people."""

    def __init__(self, fault: StartFault, detail: str) -> None:
        super().__init__(detail)
        self.fault = fault
        self.detail = detail


class _Watch(enum.Enum):
    NO_USERS = enum.auto()
    STANDBY_LOST = enum.auto()
    GAVE_UP = enum.auto()


def say(text: str) -> None:
    """Write one line to the common log (standard error of the keeper)."""
    sys.stderr.write(f"keeper {os.getpid()} {time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
    sys.stderr.flush()


def quoted(value: str | Path) -> str:
    """Return `value` as a double-quoted word of a Redis configuration file, byte by byte."""
    plain = (
        chr(byte) if 32 <= byte < 127 and byte not in b'"\\' else f"\\x{byte:02x}"
        for byte in os.fsencode(value)
    )
    return '"' + "".join(plain) + '"'


def config_text(files: EmbeddedFiles, socket_path: Path) -> str:
    """Return the configuration, in options that Redis 6.2 up to 8 and Valkey all know.

    No TCP port at all; append-only file with an fsync every second; no snapshots beside it; a full memory is
    an error for the writer, never a silent eviction of jobs; a tail cut by a crash is dropped at load, not
    fatal.
    """
    lines = [
        "# Written by the gateway before each start; edits are lost.",
        "port 0",
        f"unixsocket {quoted(socket_path)}",
        "unixsocketperm 700",
        f"dir {quoted(files.directory)}",
        "daemonize no",
        'logfile ""',
        'save ""',
        "appendonly yes",
        "appendfsync everysec",
        "aof-load-truncated yes",
        "maxmemory-policy noeviction",
    ]
    return "\n".join(lines) + "\n"


def major_version(binary: Path) -> int:
    """Return the major version of a redis-server or valkey-server binary.

    Raises:
        StartFailureError: it does not run or does not tell a version.
    """
    try:
        done = subprocess.run([binary, "--version"], capture_output=True, timeout=5.0, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StartFailureError(StartFault.SYSTEM, f"{binary} --version failed: {error}") from error
    found = re.search(rb"\bv=(\d+)\.", done.stdout)
    if found is None:
        raise StartFailureError(
            StartFault.SYSTEM, f"{binary} --version tells no version: {done.stdout[:200]!r}"
        )
    return int(found[1])


def _end_with_parent() -> Callable[[], None]:
    """Return the function that runs in the child between fork and exec (safe: the keeper has a single
    thread).
    """
    keeper_pid = os.getpid()
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None

    def in_child() -> None:
        if prctl is not None:
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != keeper_pid:  # it died before the line above took effect
            os._exit(1)

    return in_child


class Server:
    """redis-server as a child of this process.

    Arguments:
        files: the paths of this embedded Redis.
        socket_path: where it listens.
        binary: what to run.
    """

    def __init__(self, files: EmbeddedFiles, socket_path: Path, binary: Path) -> None:
        self._files = files
        self._socket_path = socket_path
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at_s = 0.0
        self._crashes = 0
        self._restart_at_s = 0.0

    def start(self) -> None:
        """Start Redis, after making sure that no earlier one still touches the files.

        Raises:
            StartFailureError: the data was written by a newer format generation, an earlier Redis cannot be
                ended, or the binary cannot be run.
        """
        if self._files.multi_part_aof.exists() and (major := major_version(self._binary)) < 7:
            # Redis 6 would not look there and start empty: the jobs would seem lost, and later writes would
            # diverge.
            raise StartFailureError(
                StartFault.DOWNGRADE,
                f"{self._files.multi_part_aof} was written by Redis 7 or later, "
                f"but {self._binary} is version {major}",
            )
        with self._exclusive() as lock:
            make_private_directory(
                self._socket_path.parent
            )  # cleaners of the temporary directory may remove it
            self._socket_path.unlink(missing_ok=True)
            self._files.socket_note.write_text(f"{self._socket_path}\n", "utf-8")
            self._files.config.write_text(config_text(self._files, self._socket_path), "utf-8")
            try:
                self._process = subprocess.Popen(
                    [self._binary, self._files.config],
                    stdin=subprocess.DEVNULL,
                    stdout=sys.stderr,
                    stderr=sys.stderr,
                    cwd=self._files.directory,
                    pass_fds=(lock.fd,),
                    preexec_fn=_end_with_parent(),
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise StartFailureError(
                    StartFault.SYSTEM, f"{self._binary} cannot be run: {error}"
                ) from error
        self._started_at_s = time.monotonic()
        say(f"started {self._binary} as process {self._process.pid}")

    def wait_ready(self, timeout_s: float) -> None:
        """Wait until the started Redis serves.

        Raises:
            StartFailureError: it ended, or did not serve within `timeout_s`.
        """
        deadline_s = time.monotonic() + timeout_s
        while not is_ready(self._socket_path):
            code = None if self._process is None else self._process.poll()
            if code is not None:
                raise StartFailureError(StartFault.EXITED, f"{self._binary} ended with status {code}")
            if time.monotonic() >= deadline_s:
                raise StartFailureError(
                    StartFault.TIMEOUT, f"{self._binary} did not serve within {timeout_s:g} s"
                )
            time.sleep(POLL_S)

    def tend(self) -> bool:
        """Restart Redis if it died; False once it died too often in a row to go on."""
        now_s = time.monotonic()
        if self._process is not None:
            code = self._process.poll()
            if code is None:
                if now_s - self._started_at_s >= STEADY_S and not self._socket_path.exists():
                    say("the socket was removed: nobody can connect any more, restarting Redis")
                    self._process.terminate()
                return True
            self._process = None
            self._crashes = 1 if now_s - self._started_at_s >= STEADY_S else self._crashes + 1
            self._restart_at_s = now_s + self._pause_s()
            say(f"Redis ended with status {code}, {self._crashes} in a row")
        if self._crashes > CRASHES_MAX:
            return False
        if now_s >= self._restart_at_s:
            try:
                self.start()
            except StartFailureError as failure:
                self._crashes += 1
                self._restart_at_s = time.monotonic() + self._pause_s()
                say(f"restart failed: {failure.detail}")
        return True

    def _pause_s(self) -> float:
        if self._crashes <= 1:
            return 0.0
        return float(min(CRASH_PAUSE_FIRST_S * 2 ** (self._crashes - 2), CRASH_PAUSE_MAX_S))

    def stop(self) -> None:
        """End Redis: SIGTERM lets it write and fsync its append-only file; SIGKILL after a bounded grace."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_GRACE_S)
            except subprocess.TimeoutExpired:
                say(f"Redis did not end within {STOP_GRACE_S:g} s of SIGTERM: killed")
                process.kill()
                process.wait()
        try:
            self._exclusive().close()  # a stand-by that took over has no child, but may have an orphan to end
        except StartFailureError as failure:
            say(failure.detail)
            return
        self._socket_path.unlink(missing_ok=True)

    def disown(self) -> None:
        """Forget the child: after a fork it is the child of the other process."""
        if self._process is not None:
            self._process.returncode = 0
            self._process = None

    def _exclusive(self) -> FileLock:
        """Return ``redis.lock`` held: nothing of an earlier Redis is left, politely or not."""
        lock = FileLock.attempt(self._files.redis_lock)
        if lock is not None:
            return lock
        noted = self._files.noted_socket() or self._socket_path
        say("an earlier Redis still holds the files: asking it to end")
        ask_redis(noted, b"SHUTDOWN")
        lock = FileLock.attempt_until(self._files.redis_lock, time.monotonic() + ORPHAN_GRACE_S)
        if lock is not None:
            return lock
        pid = listener_process_id(noted)
        if pid is not None:
            say(f"killing the earlier Redis, process {pid}")
            os.kill(pid, signal.SIGKILL)
        lock = FileLock.attempt_until(self._files.redis_lock, time.monotonic() + ORPHAN_GRACE_S)
        if lock is None:
            raise StartFailureError(
                StartFault.ORPHAN, f"an earlier Redis still holds {self._files.redis_lock}"
            )
        return lock


class Keeper:
    """Watches over one `Server` for as long as there are users.

    Arguments:
        files: the paths of this embedded Redis.
        server: its Redis.
        own_lock: ``keeper.lock``, held.
    """

    def __init__(self, files: EmbeddedFiles, server: Server, own_lock: FileLock) -> None:
        self._files = files
        self._server = server
        self._own_lock = own_lock
        self._last_gate: FileLock | None = None

    def run(self) -> None:
        """Keep Redis until nobody uses it, in this process and, if it dies, in its stand-by."""
        while True:
            standby_pid = os.fork()
            if standby_pid == 0:
                self._stand_by()
                continue  # promoted: from here on this process is the keeper, and needs a stand-by of its own
            outcome = self._watch(standby_pid)
            if outcome is not _Watch.STANDBY_LOST:
                break
            say("the stand-by died: another one takes its place")
        if outcome is _Watch.GAVE_UP:
            say(f"Redis died {CRASHES_MAX} times in a row: giving up")
        os.kill(standby_pid, signal.SIGKILL)
        os.waitpid(standby_pid, 0)
        self._server.stop()
        # In this order: a newcomer that gets past users.lock must never see the lock of a keeper about to
        # leave.
        self._own_lock.close()
        if self._last_gate is not None:
            self._last_gate.close()

    def _stand_by(self) -> None:
        # A fork shares the locked file description: it must go first, or the keeper's death would not free
        # the lock.
        self._own_lock.close()
        self._server.disown()
        self._own_lock = FileLock.wait(self._files.keeper_lock)
        say("the keeper died: its stand-by takes over")

    def _watch(self, standby_pid: int) -> _Watch:
        while True:
            self._last_gate = FileLock.attempt(self._files.users_lock)
            if self._last_gate is not None:
                return _Watch.NO_USERS
            if not self._server.tend():
                return _Watch.GAVE_UP
            if os.waitpid(standby_pid, os.WNOHANG)[0]:
                return _Watch.STANDBY_LOST
            time.sleep(WATCH_S)


def _ignore(signum: int, frame: FrameType | None) -> None:
    """Do nothing: only the users' absence ends the keeper (a handler, unlike SIG_IGN, is not inherited by
    Redis).
    """


def _tell(status: str, detail: str = "") -> None:
    """Report the outcome of the start on standard output, then leave that pipe to its reader."""
    line = json.dumps({"status": status, "detail": detail}) + "\n"
    try:
        os.write(1, line.encode())
    except BrokenPipeError:
        say("the process that started this keeper is gone")
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def _keep(files: EmbeddedFiles, socket_path: Path, binary: Path, start_timeout_s: float) -> int:
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, _ignore)
    own_lock = FileLock.attempt(files.keeper_lock)
    if own_lock is None:
        _tell(StartFault.BUSY)
        return 0
    server = Server(files, socket_path, binary)
    try:
        server.start()
        server.wait_ready(start_timeout_s)
    except StartFailureError as failure:
        say(f"start failed: {failure.detail}")
        _tell(
            failure.fault, failure.detail
        )  # first: whoever waits has a deadline, ending Redis may take longer
        server.stop()
        own_lock.close()
        return 1
    _tell("ready")
    Keeper(files, server, own_lock).run()
    return 0


def main(argv: list[str] | None = None) -> NoReturn:
    """Detach, start Redis, report on standard output, keep it until nobody uses it, exit.

    Arguments:
        argv: ``--directory DIR --socket PATH --binary PATH --start-timeout-s S``.
    """
    parser = argparse.ArgumentParser(prog="gateway.store.embedded_keeper")
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--binary", type=Path, required=True)
    parser.add_argument("--start-timeout-s", type=float, required=True)
    args = parser.parse_args(argv)
    if os.fork():  # the keeper must not be a child of its first user, which would have to reap it
        os._exit(0)
    files = EmbeddedFiles(args.directory)
    if files.log.stat().st_size > LOG_BYTES_MAX:
        files.log.replace(files.log.with_suffix(".log.1"))
        fresh = os.open(files.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(fresh, 2)
        os.close(fresh)
    sys.exit(_keep(files, args.socket, args.binary, args.start_timeout_s))


if __name__ == "__main__":
    main()
