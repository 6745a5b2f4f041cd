"""Mutants of what jobs may be born with: deadlines, unique keys, parents, instants of schedules."""

from __future__ import annotations

import itertools

from gateway import schedules
from gateway.models import JobId
from simulator.mutants.model import Edit, Favour, Judge, Mutant, both, edits, replacements
from simulator.plan import Condition, FaultKind

_WHY = "plain jobs have no conditions"
_numbers = itertools.count()


def _id_of_ones_own(name: str, instant_ms: int) -> JobId:
    """Not derived from the instant, so that nothing but the fence keeps a second job away."""
    return JobId(f"schedule:{name}:{instant_ms}:{next(_numbers)}")


def _everywhere(old: str, new: str) -> list[Edit]:
    """The same edit in every operation that ends jobs."""
    return [Edit(script, old, new) for script in ("settle", "sweep", "cancel")]


CONDITION_MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="expiry-unchecked-in-claim",
        breaks="A claim grants a job whose deadline has passed, as long as no sweep came first.",
        promise="No job is granted at or after its deadline.",
        judges=frozenset({Judge.AUDITOR}),
        put_in=edits(
            Edit("claim", "record[EXPIRES] ~= '0' and tonumber(record[EXPIRES]) <= now_ms", "false")
        ),
        favour=Favour(conditions=frozenset({Condition.DEADLINE}), why=_WHY),
    ),
    Mutant(
        name="expired-jobs-linger",
        breaks="The sweep leaves jobs alone whose deadline has passed.",
        promise="Every accepted job ends: nobody claims it any more, so the deadline must end it.",
        judges=frozenset({Judge.LIVENESS}),
        put_in=edits(
            Edit(
                "sweep",
                "redis.call('ZRANGEBYSCORE', deadlines_key, '-inf', int(now_ms), 'LIMIT', 0, limit)",
                "{}",
            )
        ),
        favour=Favour(conditions=frozenset({Condition.DEADLINE}), why=_WHY),
    ),
    Mutant(
        name="unique-key-ignored",
        breaks="A second job is accepted while one with the same unique key has not ended.",
        promise="At most one job that has not ended per unique key.",
        judges=frozenset({Judge.AUDITOR}),
        put_in=edits(Edit("submit", "options and options.unique and holder_of(options.unique)", "nil")),
        favour=Favour(conditions=frozenset({Condition.UNIQUE}), why=_WHY),
    ),
    Mutant(
        name="unique-key-not-released",
        breaks="A job keeps its unique key after its end.",
        promise="A unique key is released at the terminal state, whichever it is.",
        judges=frozenset({Judge.PROMISES}),
        put_in=edits(*_everywhere("if record[UNIQUE] ~= '' then", "if false then")),
        favour=Favour(conditions=frozenset({Condition.UNIQUE}), why=_WHY),
    ),
    Mutant(
        name="dependency-released-on-failure",
        breaks="A parent that ends dead or cancelled releases its children as if it had completed.",
        promise="No job is released before its parents were done.",
        judges=frozenset({Judge.AUDITOR}),
        put_in=edits(*_everywhere("if state == 'completed' or child[3] == 'release' then", "if true then")),
        favour=Favour(
            only=frozenset({FaultKind.CANCEL, FaultKind.SERVICE_FAULTS}),
            conditions=frozenset({Condition.PARENTS}),
            why=_WHY,
        ),
    ),
    Mutant(
        name="first-parent-releases",
        breaks="A job with several parents is released by the first of them.",
        promise="No job is released before its parents were done.",
        judges=frozenset({Judge.AUDITOR}),
        put_in=edits(*_everywhere("if record[PARENTS] == '0' then", "if true then")),
        favour=Favour(conditions=frozenset({Condition.PARENTS}), why=_WHY),
    ),
    Mutant(
        name="children-forgotten",
        breaks="The end of a job is told to nobody.",
        promise="Every accepted job ends: one that waits for an ended parent waits for ever.",
        judges=frozenset({Judge.LIVENESS}),
        put_in=edits(*_everywhere("if record[CHILDREN] ~= '0' then", "if false then")),
        favour=Favour(conditions=frozenset({Condition.PARENTS}), why=_WHY),
    ),
    Mutant(
        name="schedule-fires-twice",
        breaks="An instant is not fenced, and every gateway makes up an id of its own for its job.",
        promise="One job per schedule and instant in the whole fleet.",
        judges=frozenset({Judge.AUDITOR}),
        put_in=both(
            edits(Edit("submit", "if not schedule or fires(schedule) then", "if true then")),
            replacements((schedules, "job_id_at", _id_of_ones_own)),
        ),
        favour=Favour(conditions=frozenset({Condition.SCHEDULE}), why=_WHY),
    ),
)
