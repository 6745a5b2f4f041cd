"""The fleet's overrides in Redis: what may be set, what it applies to, and that nothing wrong is ever stored."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from gateway.client import Client
from gateway.config_sources import Sources
from gateway.errors import ConfigError
from gateway.store.fleet_scripts import ConfigureStatus
from tests.support.hand_worker import fresh_queue

WORKER = {"connector": "simulation-http", "endpoint": "http://127.0.0.1:1"}


def load(fleet: dict[str, str], **overrides: Any) -> Any:
    return Sources(overrides=overrides, environment={}).load(fleet).config


def test_overrides_apply_where_their_worker_exists() -> None:
    """An override of a worker adds none elsewhere; a name is stronger than the star."""
    fleet = {"workers.*.slots": "3", "workers.b.slots": "5", "workers.gone.slots": "7"}
    config = load(fleet, workers={"a": WORKER, "b": WORKER})
    assert {name: worker.slots for name, worker in config.workers.items()} == {"a": 3, "b": 5}
    assert load({"workers.gone.slots": "7"}).workers == {}


@pytest.mark.parametrize(
    ("fleet", "fragments"),
    [
        ({"lease.lenght_s": "1"}, ["Redis tg:{default}:config", "lease.lenght_s", "did you mean 'length_s'"]),
        ({"nothing": "1"}, ["nothing: unknown key"]),
        ({"lease.length_s": "soon"}, ["lease.length_s", "not valid JSON", "'soon'"]),
        ({"lease.length_s": '"soon"'}, ["Redis tg:{default}:config lease.length_s", "number", "'soon'"]),
        ({"lease.margin_s": "0.1"}, ["Redis tg:{default}:config lease.margin_s", "margin_s = 0.1"]),
        ({"queue": '"x"'}, ["queue: belongs to one machine"]),
        ({"redis.command_timeout_s": "1"}, ["redis.command_timeout_s: belongs to one machine"]),
        ({"workers.a.endpoint": '"http://h:1"'}, ["workers.a.endpoint: belongs to one machine"]),
        ({"workers.a.options.x": "1"}, ["workers.a.options.x: belongs to one machine"]),
        ({"workers.a": "{}"}, ["workers.a: a table"]),
        ({"lease": "{}"}, ["lease: a table"]),
        ({"workers.a.capabilities.token": '"hunter2"'}, ["secrets are never kept in Redis"]),
        ({"a b": "1"}, ["'a b': not a key"]),
    ],
)
def test_wrong_overrides_name_key_and_value(fleet: dict[str, str], fragments: list[str]) -> None:
    """Whoever wrote it into Redis, and however: the error names the hash, the key and the value."""
    with pytest.raises(ConfigError) as caught:
        load(fleet, workers={"a": WORKER})
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []
    assert "hunter2" not in str(caught.value)


def test_nothing_wrong_is_stored(redis_url: str) -> None:
    """A change is judged with all other overrides before it is stored; setting and removing are heard at once."""
    queue = fresh_queue()
    with Client(redis_url, queue=queue) as client, redis.Redis.from_url(redis_url) as raw:
        channel = raw.pubsub()
        channel.subscribe(f"tg:{{{queue}}}:wake")
        assert channel.get_message(timeout=5)
        assert client.configure({"lease.length_s": 30, "lease.margin_s": 3.5}).revision == 1
        heard = channel.get_message(timeout=5)
        assert heard is not None
        assert heard["data"] == b"changed config"
        for bad in ({"lease.margin_s": 0.5}, {"lease.length_s": 60}, {"workers.x.slots": 0}, {"bogus": 1}):
            with pytest.raises(ConfigError):
                client.configure(bad)
        with pytest.raises(ConfigError, match="margin_s"):
            client.configure({"lease.length_s": None, "lease.margin_s": 1.0})
        assert client.overrides().values == {"lease.length_s": "30", "lease.margin_s": "3.5"}
        assert client.configure({"lease.length_s": 30}).revision == 1
        assert channel.get_message(timeout=0.1) is None
        assert client.configure({"lease.margin_s": None, "lease.length_s": None}).values == {}
        assert client.overrides().revision == 2
        channel.close()


def test_a_change_is_made_on_what_was_read(redis_url: str) -> None:
    """Two people at once: the later one's change is judged again, and a repeated call finds its work done."""
    from gateway.client.blocking import finish

    with Client(redis_url, queue=fresh_queue()) as client:
        configure = client.core.ops.configure
        assert finish(configure(0, {"a": "1"})) == (ConfigureStatus.STORED, 1)
        assert finish(configure(0, {"a": "1"})) == (ConfigureStatus.UNCHANGED, 1)
        assert finish(configure(0, {"b": "1"})) == (ConfigureStatus.CONFLICT, 1)
        assert finish(configure(1, {"b": "1", "a": ""})) == (ConfigureStatus.STORED, 2)
        assert finish(configure(1, {"b": "1", "a": ""})) == (ConfigureStatus.UNCHANGED, 2)
        assert finish(client.core.ops.overrides()).values == {"b": "1"}
