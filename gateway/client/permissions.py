"""What the user of a connection may do: every kind of command that clients and gateways send, asked without effect.

The commands are queued in a transaction that is then discarded. A server checks the rights of the user (commands, keys
and channels) when it queues a command, so nothing is run and nothing has to be cleaned up.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from gateway.client.repeating import Link
from gateway.errors import StoreForbidden, StoreRejected, StoreUnavailable
from gateway.store.keys import QueueKeys

Parts = tuple[str | bytes | int, ...]


class Denied(msgspec.Struct, frozen=True):
    """One command that the server refuses to this user, in its own words."""

    purpose: str
    command: str
    reason: str


def probes(keys: QueueKeys) -> Iterable[tuple[str, Parts]]:
    """Each command with what it is needed for."""
    key, stream = keys.jobs, keys.events
    commands: dict[str, tuple[Parts, ...]] = {
        "scripts": (("EVALSHA", "0" * 40, 1, key), ("EVAL", "return 1", 1, key)),
        "streams": (
            ("XADD", stream, "*", "at", 0),
            ("XREAD", "COUNT", 1, "STREAMS", stream, "0-0"),
            ("XRANGE", stream, "-", "+", "COUNT", 1),
            ("XREVRANGE", stream, "+", "-", "COUNT", 1),
            ("XINFO", "STREAM", stream),
        ),
        "pub/sub": (("PUBLISH", keys.wake, ""), ("SUBSCRIBE", keys.wake)),
        "jobs": (
            *(("HSET", key, "f", "v"), ("HGET", key, "f"), ("HMGET", key, "f"), ("HGETALL", key)),
            *(("HDEL", key, "f"), ("HLEN", key), ("HEXISTS", key, "f"), ("HINCRBY", key, "f", 1)),
            *(("ZADD", key, 1, "m"), ("ZREM", key, "m"), ("ZSCORE", key, "m"), ("ZRANK", key, "m")),
            *(("ZCARD", key), ("ZRANGE", key, 0, 0), ("ZREVRANGE", key, 0, 0), ("ZPOPMIN", key)),
            ("ZRANGEBYSCORE", key, 0, 0),
            *(("RPUSH", key, "v"), ("LPOP", key), ("SET", key, "v"), ("GET", key), ("PEXPIRE", key, 1)),
        ),
        "clock": (("TIME",),),
    }
    for purpose, wanted in commands.items():
        for parts in wanted:
            yield purpose, parts


async def denied(link: Link, keys: QueueKeys) -> list[Denied]:
    """What the server would refuse to the user of this connection.

    Args:
        link: one connection, lent to nobody else.
        keys: of the queue whose keys are asked for.

    Raises:
        StoreRejected: transactions are refused, so nothing can be told.
        StoreUnavailable: the connection was lost.
    """
    found = []
    await link.command(b"MULTI")
    for purpose, parts in probes(keys):
        try:
            await link.command(*parts)
        except StoreForbidden as error:
            found.append(Denied(purpose, str(parts[0]), str(error)))
        except StoreRejected:  # for another reason, such as its memory: not what is asked here
            continue
        except StoreUnavailable as error:
            if error.outcome_unknown:  # the connection is closed, and the transaction with it
                raise
            # Else it answered, as a replica does: its user has the right.
    await link.command(b"DISCARD")
    return found
