"""Durable submits: what counts as a confirmation, on real servers where this machine has them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from gateway.client import Client
from gateway.client.blocking import finish
from gateway.client.durability import (
    Confirmation,
    ServerFacts,
    confirm,
    confirmation_of,
    parse_info,
    server_facts,
)
from gateway.errors import DurabilityUnconfirmed, StoreRejected
from gateway.store.calls import ScriptCall
from tests.support.redis_server import RedisServer


def facts(**changes: Any) -> ServerFacts:
    values: dict[str, Any] = {
        "version": (7, 0, 15), "name": "Redis 7.0.15", "aof_enabled": True, "appendfsync": "everysec", "replicas": 0,
        "role": "master", "eviction": "noeviction", "snapshots": False, "aof_last_write_ok": True,
    }  # fmt: skip
    return ServerFacts(**{**values, **changes})


@pytest.mark.parametrize(
    ("changes", "way"),
    [
        ({}, Confirmation.NONE),
        ({"version": (7, 2, 0)}, Confirmation.WAITAOF),
        ({"version": (8, 0), "replicas": 2}, Confirmation.WAITAOF),
        ({"version": (7, 2, 0), "aof_enabled": False}, Confirmation.NONE),
        ({"version": (7, 2, 0), "aof_enabled": False, "replicas": 1}, Confirmation.WAIT),
        ({"replicas": 1}, Confirmation.WAIT),
        ({"replicas": 1, "appendfsync": "always"}, Confirmation.WAIT),
        ({"appendfsync": "always"}, Confirmation.ALWAYS),
        ({"appendfsync": "always", "aof_enabled": False}, Confirmation.NONE),
        ({"appendfsync": ""}, Confirmation.NONE),
    ],
)
def test_best_confirmation(changes: dict[str, Any], way: Confirmation) -> None:
    """The strongest confirmation that a server offers is the one that is used."""
    assert confirmation_of(facts(**changes)) is way


class ScriptedServer:
    """Answers commands from a table: a server of a version that this machine need not have."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self._answers = answers
        self.asked: list[tuple[str | bytes | int, ...]] = []

    async def command(self, *parts: str | bytes | int, timeout_s: float | None = None) -> Any:
        self.asked.append(parts)
        words = [part.decode() if isinstance(part, bytes) else str(part) for part in parts]
        answer = self._answers[" ".join(words[:3] if words[0] == "CONFIG" else words[:1])]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def script(self, call: ScriptCall, *, timeout_s: float | None = None) -> Any:
        raise AssertionError(f"no script is run here: {call.script.name}")


@pytest.mark.parametrize(("local", "confirmed"), [(1, True), (0, False)])
def test_waitaof_waits_for_the_local_file(local: int, confirmed: bool) -> None:
    """On Redis 7.2 the local append-only file confirms, in the time given."""
    server = ScriptedServer({"WAITAOF": [local, 0]})
    waiting = confirm(server, facts(version=(7, 2, 4)), 1.5)
    if confirmed:
        assert finish(waiting) is Confirmation.WAITAOF
    else:
        with pytest.raises(DurabilityUnconfirmed, match="disk"):
            finish(waiting)
    assert server.asked == [(b"WAITAOF", 1, 0, 1500)]


def test_facts_of_a_managed_server() -> None:
    """Where CONFIG is forbidden the facts say that they do not know, and Valkey is named as itself."""
    info = b"# Server\r\nredis_version:7.2.4\r\nvalkey_version:8.0.1\r\nrole:master\r\naof_enabled:1\r\n"
    forbidden = StoreRejected("no permission")
    server = ScriptedServer({"INFO": info, "CONFIG GET save": forbidden, "CONFIG GET appendfsync": forbidden})
    found = finish(server_facts(server))
    assert (found.name, found.version, found.appendfsync, found.snapshots) == (
        "Valkey 8.0.1",
        (7, 2, 4),
        "",
        None,
    )
    assert parse_info("a:b:c\n# x\n\n") == {"a": "b:c"}


def test_unconfirmed_job_is_stored_and_named(redis_server: RedisServer) -> None:
    """Without any means of confirmation the caller learns that the job is stored, which one, and the remedy."""
    with Client(redis_server.url) as client:
        if confirmation_of(client.server_facts()) is not Confirmation.NONE:
            pytest.skip("this Redis can confirm")
        with pytest.raises(DurabilityUnconfirmed) as caught:
            client.submit("simulation", job_id="a", durable=True)
        assert "appendfsync always" in str(caught.value)
        assert "stored: a" in str(caught.value)
        assert client.get("a").job_id == "a"


def test_server_that_always_syncs_confirms(tmp_path: Path) -> None:
    """A durable submit on a server that syncs each write survives kill -9 right after its answer."""
    with RedisServer(tmp_path, options={"appendfsync": "always"}) as server, Client(server.url) as client:
        assert not client.submit("simulation", job_id="a", durable=True).deduplicated
        server.restart(kill=True)
        assert client.get("a").job_id == "a"


def test_replica_confirms(tmp_path: Path) -> None:
    """With a replica the submit waits for it, and a replica that hangs leaves the job unconfirmed."""
    for name in ("primary", "replica"):
        (tmp_path / name).mkdir()
    with RedisServer(tmp_path / "primary", options={"repl-diskless-sync-delay": "0"}) as primary:
        link = {"replicaof": f"127.0.0.1 {primary.port}"}
        with RedisServer(tmp_path / "replica", options=link) as replica, Client(primary.url) as client:
            if client.server_facts().version >= (7, 2):
                pytest.skip("this Redis confirms by its own file")
            deadline_s = time.monotonic() + 10
            while client.server_facts().replicas == 0:
                assert time.monotonic() < deadline_s, "the replica did not connect"
                time.sleep(0.05)
            assert client.submit("simulation", job_id="a", durable=True, durable_timeout_s=10).job_id == "a"
            replica.pause()
            try:
                with pytest.raises(DurabilityUnconfirmed, match="none of 1 replica"):
                    client.submit("simulation", job_id="b", durable=True, durable_timeout_s=0.2)
            finally:
                replica.resume()
            assert client.get("b").job_id == "b"
