"""Tests that can fail: every deliberately broken script must be caught by the model or by the auditor."""

from __future__ import annotations

import fakeredis
import pytest
import redis

from gateway.store.calls import script
from tests.store.bench import Backend, Bench, Mismatch, Mutation
from tests.store.walk import Walk

SEEDS = range(60)
STEPS = 60
#: What a fault leaves behind stays there: looking now and then finds it, and is quicker.
WATCH_EVERY = 4

MUTANTS: dict[str, list[Mutation]] = {
    "settle without epoch check": [
        Mutation("settle", "record[EPOCH] ~= ARGV[at + 1] or record[SETTLED_EPOCH]", "record[SETTLED_EPOCH]")
    ],
    "settle accepts a second time": [
        Mutation("settle", " or record[SETTLED_EPOCH] == ARGV[at + 1] then", " then"),
        Mutation("settle", "return record[STATE] == 'running' or (", "return record[STATE] ~= 'x' or ("),
    ],
    "a replayed settlement is called stale": [
        Mutation("settle", "and record[SETTLED_KIND] == ARGV[at + 2] then", "and false then")
    ],
    "release charges an attempt": [
        Mutation(
            "settle",
            "  record[YIELDS] = int(tonumber(record[YIELDS]) + 1)\n",
            "  record[YIELDS] = int(tonumber(record[YIELDS]) + 1)\n"
            "  record[ATTEMPTS] = int(tonumber(record[ATTEMPTS]) + 1)\n",
        )
    ],
    "completion leaves the lease": [Mutation("settle", "redis.call('ZREM', leases_key, unpack(ended))", "")],
    "late result leaves the job claimable": [
        Mutation("settle", "redis.call('ZREM', KEYS[8 + tonumber(ARGV[at + 8])], id)", "")
    ],
    "retry keeps the old reference": [Mutation("settle", "    record[REFERENCE] = ''\n", "")],
    "renew resurrects": [Mutation("renew", "record[STATE] == 'running' and ", "")],
    "renew without epoch check": [Mutation("renew", " and record[EPOCH] == ARGV[2 + i * 2]", "")],
    "claim not replayable": [Mutation("claim", "memory and memory[1] == request_id", "false")],
    "claim reissues a stale grant": [
        Mutation("claim", "record[STATE] == 'running' and record[EPOCH] == epochs[i]", "record")
    ],
    "claim reuses the epoch": [
        Mutation("claim", "int(math.max(tonumber(record[EPOCH]) + 1, now_us))", "record[EPOCH]")
    ],
    "claim ignores pause": [Mutation("claim", "elseif paused then", "elseif false then")],
    "claim ignores the order": [Mutation("claim", "heads[i][2] < heads[best][2]", "false")],
    "claim forgets whom to avoid": [Mutation("claim", "record[AVOID_WORKER] == worker", "false")],
    "claim loses an avoided job": [Mutation("claim", "for i = 1, #avoided, 2 do", "for i = 1, 0 do")],
    "submit not idempotent": [Mutation("submit", "known[i] or seen[id]", "seen[id]")],
    "submit ignores the idempotency key": [Mutation("submit", "if earlier then", "if false then")],
    "submit beyond the bound": [Mutation("submit", "unfinished >= unfinished_max", "false")],
    "sweep ignores that leases live": [Mutation("sweep", "'(' .. int(now_ms)", "'+inf'")],
    "sweep without recovery count": [
        Mutation("sweep", "  record[RECOVERIES] = int(tonumber(record[RECOVERIES]) + 1)\n", "")
    ],
    "sweep promotes before the time": [
        Mutation("sweep", "scheduled_key, '-inf', int(now_ms)", "scheduled_key, '-inf', '+inf'")
    ],
    "sweep keeps an old idempotency key": [
        Mutation("sweep", "redis.call('HDEL', idempotency_key, record[IDEMPOTENCY])", "")
    ],
    "progress unfenced": [Mutation("progress", " or record[EPOCH] ~= ARGV[at + 1]", "")],
    "progress repeats on replay": [Mutation("progress", "number <= tonumber(record[NUMBER])", "false")],
    "attach unfenced": [Mutation("attach", " or record[EPOCH] ~= epoch", "")],
    "cancel frees a running job early": [
        Mutation("cancel", "elseif record[STATE] == 'running' then", "elseif false then"),
        Mutation("cancel", "elseif record[STATE] == 'pending'", "elseif record[STATE] == 'running'"),
    ],
    "cancel ends a job of another class": [Mutation("cancel", " or record[CLASS] ~= class", "")],
    "requeue moves a job of another class": [Mutation("requeue", " or record[CLASS] ~= class", "")],
    "requeue keeps the attempts": [
        Mutation("requeue", "record[ATTEMPTS], record[RECOVERIES], record[YIELDS] = '0', '0', '0'", "")
    ],
}

#: Caught by the events alone, as on a production queue.
AUDITED = [
    "settle without epoch check",
    "settle accepts a second time",
    "completion leaves the lease",
    "claim reuses the epoch",
    "submit not idempotent",
    "cancel frees a running job early",
]


def first_mismatch(
    client: redis.Redis, mutations: list[Mutation], *, model_judges: bool, seeds: range = SEEDS
) -> str | None:
    """What the first walk that disagrees reports; None when every walk passes."""
    backend = Backend(client, mutations)
    for seed in seeds:
        bench = Bench(backend, watch_every=WATCH_EVERY, model_judges=model_judges)
        try:
            Walk(bench, seed).run(STEPS)
        except Mismatch as mismatch:
            return str(mismatch)
        finally:
            bench.close()
    return None


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_script_is_caught(name: str, fake_client: redis.Redis) -> None:
    """The judges that pass the shipped scripts turn this fault down within a bounded number of walks."""
    assert first_mismatch(fake_client, MUTANTS[name], model_judges=True)


@pytest.mark.parametrize("name", AUDITED)
def test_the_auditor_alone_catches_it(name: str, fake_client: redis.Redis) -> None:
    """Faults that break a promise show in the events, without any model beside them."""
    found = first_mismatch(fake_client, MUTANTS[name], model_judges=False)
    assert found is not None
    assert found.startswith("the auditor objects")


def test_the_shipped_scripts_pass_the_same_walks() -> None:
    """The judges object to faults only; both of them have something to judge."""
    client = fakeredis.FakeRedis(server=fakeredis.FakeServer())
    assert first_mismatch(client, [], model_judges=True, seeds=SEEDS[:25]) is None
    client.close()


def test_a_mutation_that_does_not_apply_is_an_error() -> None:
    """When a script changes, its mutants must follow; they may not silently turn into the original."""
    with pytest.raises(LookupError):
        Mutation("settle", "no such text", "").apply(script("settle").source)
