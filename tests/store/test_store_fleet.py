"""The scripts of the registry and of the overrides: against a model, on both kinds of Redis, and broken on purpose."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from gateway.store.fleet_scripts import ConfigureStatus, RegisterStatus
from tests.store import fleet_bench
from tests.store.bench import Backend, Mutation
from tests.store.contents import Mismatch
from tests.store.fleet_bench import (
    Advance,
    Configure,
    FleetBench,
    Operation,
    Register,
    Replay,
    drawn,
)

_numbers = itertools.count(1)
SEEDS = range(20)
STEPS = 40


def walked(operations: Sequence[Operation], *backends: Backend) -> Counter[str]:
    """The answers that were given on the way; every step is judged."""
    bench = FleetBench(f"fleet{next(_numbers)}", *backends)
    try:
        for operation in operations:
            bench.apply(operation)
        bench.finish()
        return bench.seen
    finally:
        bench.close()


def many_walks(backend: Backend) -> Counter[str]:
    """The answers that the seeded walks were given."""
    seen: Counter[str] = Counter()
    for seed in SEEDS:
        seen += walked(drawn(random.Random(seed), STEPS), backend)
    return seen


_register = st.lists(
    st.tuples(
        st.sampled_from(fleet_bench.IDS),
        st.sampled_from([*fleet_bench.URLS, None]),
        st.sampled_from(fleet_bench.TTLS_S),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda item: item[0],
).map(lambda items: Register(tuple(items)))
_configure = st.builds(
    Configure,
    st.dictionaries(
        st.sampled_from(fleet_bench.KEYS), st.sampled_from(fleet_bench.VALUES), min_size=1, max_size=2
    ),
    st.integers(0, 2),
)
_advance = st.builds(Advance, st.sampled_from(fleet_bench.STEPS_US))
_replay = st.builds(Replay, st.integers(0, 7))


@given(operations=st.lists(_register | _configure | _advance | _replay, max_size=30))
def test_the_scripts_do_as_the_model(
    fake_factory: Callable[[], redis.Redis], operations: list[Operation]
) -> None:
    """Entries live by the clock of Redis, the newest holds, stale revisions conflict, replays change nothing."""
    client = fake_factory()
    walked(operations, Backend(client))
    client.close()


@pytest.mark.parametrize("seed", range(4))
def test_both_kinds_of_redis_answer_the_same(seed: int, fake_backend: Backend, real_backend: Backend) -> None:
    """Replies, contents and what is published are compared between the simulated Redis and a real one."""
    walked(drawn(random.Random(seed), 150), fake_backend, real_backend)


def test_walks_reach_every_answer(fake_backend: Backend) -> None:
    """What no walk ever meets is not proven by walking."""
    seen = many_walks(fake_backend)
    wanted = {f"register {status.value}" for status in RegisterStatus}
    wanted |= {f"configure {status.value}" for status in ConfigureStatus}
    assert wanted - set(seen) == set()


MUTANTS: dict[str, Mutation] = {
    "discover shows what has lapsed": Mutation(
        "discover", "if ends_ms and tonumber(ends_ms) > now_ms then", "if ends_ms then"
    ),
    "an entry lives to its end and a moment": Mutation(
        "discover", "tonumber(ends_ms) > now_ms", "tonumber(ends_ms) >= now_ms"
    ),
    "a renewal counts as new": Mutation(
        "register", "local since_ms = same and known[id][2] or int(now_ms)", "local since_ms = int(now_ms)"
    ),
    "a moved service keeps its age": Mutation(
        "register", "local since_ms = same and known[id][2]", "local since_ms = known[id] and known[id][2]"
    ),
    "a renewal does not extend": Mutation(
        "register",
        "redis.call('HSET', services_key, id, int(now_ms + ttl_ms)",
        "redis.call(same and 'HSETNX' or 'HSET', services_key, id, int(now_ms + ttl_ms)",
    ),
    "a full registry takes more": Mutation("register", "count >= services_max", "false"),
    "a sign-off tells nobody": Mutation(
        "register", "      changed = true\n      redis.call('HDEL'", "      redis.call('HDEL'"
    ),
    "a renewal wakes everybody": Mutation("register", "changed = changed or not same", "changed = true"),
    "a stale revision overrules": Mutation("configure", "if revision ~= ARGV[1] then", "if false then"),
    "a change keeps its revision": Mutation(
        "configure", "revision = int(tonumber(revision) + 1)", "revision = int(tonumber(revision))"
    ),
    "a replayed change conflicts": Mutation(
        "configure", "if #sets == 0 and #removed == 0 then", "if false then"
    ),
    "a removed override stays": Mutation("configure", "redis.call('HDEL', config_key, unpack(removed))", ""),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_script_is_caught(name: str, fake_client: redis.Redis) -> None:
    """The walks that the shipped scripts pass turn this fault down."""
    backend = Backend(fake_client, [MUTANTS[name]])
    with pytest.raises(Mismatch):
        many_walks(backend)
