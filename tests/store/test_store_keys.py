"""Scripts touch declared keys only: what Redis Cluster demands, seen from the server's own monitor."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import redis

from gateway.models import JobId
from gateway.registration import ServiceEntry
from gateway.store import fleet_scripts, schedule_scripts, scripts
from gateway.store.calls import ScriptCall
from gateway.store.fleet_scripts import Registration
from gateway.store.keys import QueueKeys
from tests.store.bench import LIMITS, Backend, Bench
from tests.store.walk import Walk

#: Every operation that the store ships.
OPERATIONS = {
    *("submit", "claim", "renew", "attach", "progress", "settle", "sweep", "cancel", "requeue"),
    *("pause", "resume", "heartbeat", "inspect", "stats", "configure", "register", "discover"),
    *("schedule_put", "schedule_remove", "schedule_pause", "schedule_resume", "schedule_skip"),
    *("schedule_list", "schedule_due", "limit", "limits"),
}
#: Commands of ours whose only key (or channel) is their first argument.
ONE_KEY = {
    *("GET", "SET", "HGET", "HSET", "HDEL", "HLEN", "HMGET", "HEXISTS", "HINCRBY", "HGETALL", "PEXPIRE"),
    *("ZADD", "ZREM", "ZRANGE", "ZRANGEBYSCORE", "ZPOPMIN", "ZCARD", "ZSCORE", "XADD", "PUBLISH"),
    *("RPUSH", "LPOP"),
}
_LINE = re.compile(rb"\+[\d.]+ \[\d+ (\S+?)\] (.*)\r\n")
_WORD = re.compile(rb'"((?:\\.|[^"\\])*)"')
TIMEOUT_S = 10.0


class Shipped(Backend):
    """Runs the scripts exactly as shipped, under the server's own time, and remembers what each call declared."""

    def __init__(self, client: redis.Redis) -> None:
        super().__init__(client)
        self.declared: list[tuple[str, frozenset[str]]] = []

    def run(self, call: ScriptCall) -> object:
        self.declared.append((call.script.name, frozenset(call.keys)))
        execute = self.client.execute_command
        return execute("EVAL", call.script.source, len(call.keys), *call.keys, *call.args)


class Monitor:
    """The server's MONITOR stream on a socket of its own."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._socket = socket.create_connection(
            (parts.hostname or "127.0.0.1", parts.port or 6379), TIMEOUT_S
        )
        self._file = self._socket.makefile("rb")
        self._socket.sendall(b"MONITOR\r\n")
        assert self._file.readline() == b"+OK\r\n"

    def until(self, marker: str) -> Iterator[tuple[str, list[str]]]:
        """Source and words of each command, up to the one that names the marker."""
        for line in self._file:
            found = _LINE.fullmatch(line)
            assert found, line
            words = [word.decode() for word in _WORD.findall(found[2])]
            if marker in words:
                return
            yield found[1].decode(), words

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@pytest.fixture
def monitor(redis_url: str) -> Iterator[Monitor]:
    opened = Monitor(redis_url)
    yield opened
    opened.close()


def _work(backend: Shipped) -> QueueKeys:
    """Every operation, most of them many times; verdicts are not judged here, real time runs."""
    bench = Bench(backend, watch_every=100, model_judges=False)
    for seed in range(3):
        Walk(bench, seed).run(80)
    class_ids = list(bench.model.classes)
    bench.pause()
    bench.resume()
    bench.limit([("tenant acme", "1 0 1"), ("aging_ms", "5"), ("aging_ms", "")], only_new=False)
    backend.run(scripts.limits_call(bench.keys))
    backend.run(scripts.stats_call(bench.keys, class_ids))
    backend.run(scripts.inspect_call(bench.keys, [JobId("j0"), JobId("j1")]))
    backend.run(schedule_scripts.list_call(bench.keys))
    backend.run(schedule_scripts.due_call(bench.keys))
    backend.run(scripts.heartbeat_call(bench.keys, LIMITS, [("w0", b"{}"), ("w1", b"")]))
    backend.run(fleet_scripts.configure_call(bench.keys, 0, {"a": "1", "b": ""}, events_max=100))
    backend.run(fleet_scripts.configure_call(bench.keys, 1, {"a": ""}, events_max=100))
    entry = ServiceEntry(service="simulation", url="http://h:1", protocol="http")
    registrations = [
        Registration("s0", entry, 9.0),
        Registration("s1", entry, 0.001),
        Registration("s2", None),
    ]
    backend.run(fleet_scripts.register_call(bench.keys, registrations))
    backend.run(fleet_scripts.register_call(bench.keys, [Registration("s0", None)]))
    backend.run(fleet_scripts.discover_call(bench.keys))
    return bench.keys


def test_every_key_was_declared(monitor: Monitor, real_redis: redis.Redis) -> None:
    """Each command inside a script names a key that the call declared, under the queue's one hash tag."""
    backend = Shipped(real_redis)
    keys = _work(backend)
    real_redis.echo("the end")
    calls = iter(backend.declared)
    declared: frozenset[str] = frozenset()
    seen: dict[str, int] = {}
    name = ""
    for source, words in monitor.until("the end"):
        if source != "lua":
            if words[0].upper() == "EVAL":
                name, declared = next(calls)
            continue
        command = words[0].upper()
        if command == "TIME":
            continue
        assert command in ONE_KEY, f"{name}: {command} is new here: say which of its arguments are keys"
        assert words[1] in declared, f"{name}: {command} {words[1]} was not declared"
        assert words[1].startswith(f"tg:{{{keys.queue}}}:")
        seen[name] = seen.get(name, 0) + 1
    assert next(calls, None) is None
    assert set(seen) == OPERATIONS


def test_scripts_leave_no_globals_behind(real_redis: redis.Redis, fake_client: redis.Redis) -> None:
    """A global is an error on a real Redis and poisons a simulated one; all operations ran on both."""
    for client in (fake_client, real_redis):
        backend = Shipped(client)
        _work(backend)
        assert {name for name, _ in backend.declared} == OPERATIONS
        assert client.eval("return 1", 0) == 1
