"""Tests that can fail: every deliberately broken script must be caught by the model or by the auditor."""

from __future__ import annotations

import pytest
import redis

from gateway.store.calls import script
from tests.store.bench import Backend, Bench, Mutation
from tests.store.contents import Mismatch
from tests.store.walk import Walk
from tests.support.twin_redis import twin_client

SEEDS = range(60)
STEPS = 80
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
    "completion leaves the lease": [Mutation("settle", "redis.call('ZREM', leases_key, unpack(let_go))", "")],
    "late result leaves the job claimable": [
        Mutation("settle", "redis.call('ZREM', KEYS[class_base + tonumber(ARGV[at + 8])], id)", "")
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
    "claim ignores the order": [Mutation("claim", "order and order < least and", "order and")],
    "claim forgets whom to avoid": [Mutation("claim", "record[AVOID_WORKER] == worker", "false")],
    "claim loses an avoided job": [Mutation("claim", "for i = 1, #avoided, 3 do", "for i = 1, 0 do")],
    "claim ignores how many run": [
        Mutation(
            "claim", "budget.running = tonumber(running) - tonumber(active[i] or 0)", "budget.running = 99"
        )
    ],
    "claim ignores the rate": [
        Mutation("claim", "math.floor((now_us + budget.ahead - budget.meter) / budget.interval)", "99")
    ],
    "claim reserves nothing within one call": [
        Mutation("claim", "if spend(head, #popped / 2) then", "if false then"),
        Mutation("claim", "      count = math.min(count, budget.left)\n", ""),
    ],
    "claim forgets whom no limit of their own names": [
        Mutation("claim", "(string.sub(field, 1, 7) == 'tenant ' and defined[1])", "nil")
    ],
    "claim never moves a rate's meter": [
        Mutation("claim", "int(budget.meter + budget.started * budget.interval)", "int(budget.meter)")
    ],
    "claim lets a rate save up starts": [
        Mutation("claim", "math.max(tonumber(meters[i] or 0), now_us)", "tonumber(meters[i] or now_us)")
    ],
    "claim does not count what runs": [Mutation("claim", "        count_running(record, 1)\n", "")],
    "claim serves whoever came first": [Mutation("claim", "turn_of(group.best) or 0", "0 or 0")],
    "claim gives no turn for priority": [
        Mutation(
            "claim",
            "(stamps['tenant ' .. head.tenant], patient)) + lead",
            "(stamps['tenant ' .. head.tenant], patient))",
        )
    ],
    "settle does not free what a limit counts": [Mutation("settle", "      count_running(record, -1)\n", "")],
    "sweep does not free what a limit counts": [Mutation("sweep", "    count_running(record, -1)\n", "")],
    "priority does not age": [Mutation("submit", "tick + i + rank * aging", "tick + i + rank * 2 ^ 38")],
    "a first definition overrules": [Mutation("limit", "(before == '' or ARGV[1] == '0')", "true")],
    "submit not idempotent": [Mutation("submit", "known[i] or records[id]", "records[id]")],
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
    "claim ignores the deadline": [
        Mutation("claim", "record[EXPIRES] ~= '0' and tonumber(record[EXPIRES]) <= now_ms", "false")
    ],
    "sweep lets deadlines pass": [Mutation("sweep", "elseif take_out(record, id) then", "elseif false then")],
    "sweep leaves an expired job in its queue": [
        Mutation("sweep", "redis.call('ZREM', KEYS[position_of[record[CLASS]]], id)", "")
    ],
    "settle gives back what cannot be claimed any more": [
        Mutation("settle", "tonumber(record[EXPIRES]) <= now_ms + delay_ms then", "false then")
    ],
    "a requeued job keeps its deadline": [
        Mutation("requeue", "record[EXPIRES], record[PARENTS] = '0', '0'", "")
    ],
    "a failed parent releases its children": [
        Mutation("settle", "if state == 'completed' or child[3] == 'release' then", "if true then")
    ],
    "the first parent releases": [Mutation("settle", "if record[PARENTS] == '0' then", "if true then")],
    "families beyond the bound are forgotten": [
        Mutation("settle", "redis.call('RPUSH', untold_key, cjson.encode(ended[at]))", "")
    ],
    "a cancelled parent tells nobody": [
        Mutation("cancel", "tell_families(tonumber(ARGV[3]), retention_ms)\n", "")
    ],
    "submit forgets the parents": [
        Mutation("submit", "local waits = parents and #parents > 0", "local waits = false")
    ],
    "submit ignores the unique key": [
        Mutation("submit", "options and options.unique and holder_of(options.unique)", "nil")
    ],
    "a unique key is never released": [Mutation("settle", "if record[UNIQUE] ~= '' then", "if false then")],
    "a unique key is not held after the end": [Mutation("settle", "if hold_ms == '0' then", "if true then")],
    "requeue takes a unique key away": [
        Mutation("requeue", "elseif not take_unique(id, record) then", "elseif false then")
    ],
    "a schedule fires twice": [Mutation("submit", "if not schedule or fires(schedule) then", "if true then")],
    "a schedule fires before its time": [Mutation("submit", "schedule[3] <= now_ms", "true")],
    "a fired schedule stays due": [
        Mutation("submit", "redis.call('ZADD', schedule_due_key, int(schedule[4]), schedule[1])", "")
    ],
}

#: Seen only where many jobs have deadlines or parents.
EAGER = {
    "settle gives back what cannot be claimed any more",
    "families beyond the bound are forgotten",
}
#: Caught by the events alone, as on a production queue.
AUDITED = [
    "settle without epoch check",
    "settle accepts a second time",
    "completion leaves the lease",
    "claim reuses the epoch",
    "submit not idempotent",
    "cancel frees a running job early",
    "claim ignores the deadline",
    "a failed parent releases its children",
    "the first parent releases",
    "submit ignores the unique key",
    "a schedule fires twice",
]


def first_mismatch(
    client: redis.Redis,
    mutations: list[Mutation],
    *,
    model_judges: bool,
    seeds: range = SEEDS,
    eager: bool = False,
) -> str | None:
    """What the first walk that disagrees reports; None when every walk passes."""
    backend = Backend(client, mutations)
    for seed in seeds:
        bench = Bench(backend, watch_every=WATCH_EVERY, model_judges=model_judges)
        try:
            Walk(bench, seed, eager=eager).run(STEPS)
        except Mismatch as mismatch:
            return str(mismatch)
        finally:
            bench.close()
    return None


@pytest.mark.parametrize("name", MUTANTS)
def test_a_broken_script_is_caught(name: str, fake_client: redis.Redis) -> None:
    """The judges that pass the shipped scripts turn this fault down within a bounded number of walks."""
    assert first_mismatch(fake_client, MUTANTS[name], model_judges=True, eager=name in EAGER)


@pytest.mark.parametrize("name", AUDITED)
def test_the_auditor_alone_catches_it(name: str, fake_client: redis.Redis) -> None:
    """Faults that break a promise show in the events, without any model beside them."""
    found = first_mismatch(fake_client, MUTANTS[name], model_judges=False)
    assert found is not None
    assert found.startswith("the auditor objects")


def test_the_shipped_scripts_pass_the_same_walks() -> None:
    """The judges object to faults only; both of them have something to judge."""
    client = twin_client()
    for eager in (False, True):
        assert first_mismatch(client, [], model_judges=True, seeds=SEEDS[:25], eager=eager) is None
    client.close()


def test_a_mutation_that_does_not_apply_is_an_error() -> None:
    """When a script changes, its mutants must follow; they may not silently turn into the original."""
    with pytest.raises(LookupError):
        Mutation("settle", "no such text", "").apply(script("settle").source)
