"""The short way of the simulated Redis from a script to a command gives what the original's long way gives."""

from __future__ import annotations

import fakeredis
import pytest
import redis

from tests.support.twin_redis import twin_client

FILL = (
    ("SET", "text", "x"),
    ("HSET", "hash", "a", "1", "b", "2"),
    ("ZADD", "sorted", "1", "one", "2", "two"),
    ("RPUSH", "list", "a", "b"),
)
CALLS = (
    *(("PEXPIRE", key, "1000") for key in ("text", "nobody")),
    *(("HGET", key, "a") for key in ("hash", "nobody", "text")),
    *(("HMGET", key, "a", "z") for key in ("hash", "nobody")),
    *(("HDEL", key, "a", "b") for key in ("hash", "nobody")),
    *(("ZRANGE", key, "0", "-1", "WITHSCORES") for key in ("sorted", "nobody", "list")),
    *(("ZREM", key, "one", "two") for key in ("sorted", "nobody")),
    *(("ZPOPMIN", key) for key in ("sorted", "nobody")),
    *(("ZSCORE", "sorted", member) for member in ("one", "nobody")),
    *(("LPOP", key) for key in ("list", "nobody")),
    *(("GET", key) for key in ("text", "nobody", "hash")),
    *(("LINDEX", key, "0") for key in ("list", "nobody")),
    # The only kind whose answer for a missing key is a number; no script of ours calls it.
    ("ARLEN", "nobody"),
    ("HINCRBY", "hash", "a", "5"),
    ("HINCRBY", "hash", "a", "five"),
    ("INCR", "text"),
    ("XADD", "events", "1-1", "field", "value"),
    ("ZADD", "sorted", "high", "three"),
    ("GET",),
    ("NO-SUCH-COMMAND", "x"),
    ("OBJECT", "ENCODING", "text"),
    ("EVAL", "return 1", "0"),
)


def told(client: redis.Redis, call: tuple[str, ...]) -> object:
    """The reply of a command in a script, or what its error says, and all that is stored afterwards."""
    for fill in FILL:
        client.execute_command(*fill)  # type: ignore[no-untyped-call]
    try:
        reply: object = client.eval("return redis.call(unpack(ARGV))", 0, *call)
    except redis.ResponseError as error:
        reply = str(error)
    return reply, {key: client.dump(key) for key in sorted(client.keys())}


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_a_command_in_a_script_is_what_the_original_makes_of_it(call: tuple[str, ...]) -> None:
    """Replies, errors and what is stored are the same, missing keys and keys of another type included."""
    original = fakeredis.FakeRedis(server=fakeredis.FakeServer())
    assert told(twin_client(), call) == told(original, call)
