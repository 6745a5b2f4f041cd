"""Tenants, limits and aging of a simulated fleet, and what the events must show of them (pure).

Everything is judged from the events alone: who ran when, who started when, who was passed over by whom. The store's own
counts are compared with its records at the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import msgspec

from gateway.events import Event
from gateway.lifecycle import REMARKS, EventType
from gateway.limits import Limit
from gateway.models import AGING_S_DEFAULT

SERVICE = "simulation"
#: Two readings of the clock in one script call may fall on both sides of a millisecond.
ROUNDING_MS = 2
#: Others may have two turns before a tenant's first one: whoever was served at the moment it came may be first again.
TURNS_MAX = 2
# Places in a job's record, counted from 0 (``_prelude.lua`` counts from 1).
_STATE, _TENANT, _SERVICE = 0, 26, 27


class PlannedShares(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who the jobs belong to, and what is limited.

    Attributes:
        tenants: tenant by job id; the others have none.
        limits: by the names of ``gateway.limits``.
        aging_s: seconds of waiting per level of priority; None for the product's default.
    """

    tenants: dict[str, str] = {}
    limits: dict[str, Limit] = {}
    aging_s: float | None = None


#: One object, so that plans without tenants are written as before there were any.
NO_SHARES = PlannedShares()


def draw_shares(seed: int, job_ids: Sequence[str]) -> PlannedShares:
    """Tenants for a workload, and limits for half of the seeds; from a source of its own."""
    random = Random(f"plan/{seed}/shares")
    names = ["acme", "zeta", ""][: random.choice([2, 3])]
    tenants = {job_id: random.choice(names) for job_id in job_ids}
    aging_s = random.choice([None, 0.05, 9_000_000.0])
    if random.random() < 0.5:
        return PlannedShares(tenants=tenants, aging_s=aging_s)
    limits = {
        f"service {SERVICE}": Limit(running_max=random.randint(2, 4)),
        "tenant *": Limit(running_max=random.randint(1, 2)),
        "tenant acme": Limit(rate=random.randint(1, 4), rate_s=2.0, burst=random.randint(1, 2)),
    }
    chosen = random.sample(sorted(limits), random.randint(1, 3))
    return PlannedShares(tenants=tenants, limits={name: limits[name] for name in chosen}, aging_s=aging_s)


def limits_section(shares: PlannedShares) -> dict[str, object]:
    """The plan's limits as a gateway's configuration has them."""
    kinds: dict[str, dict[str, object]] = {"service": {}, "tenant": {}}
    for name, limit in shares.limits.items():
        kind, _, rest = name.partition(" ")
        kinds[kind][rest] = msgspec.to_builtins(limit)
    aging = {} if shares.aging_s is None else {"aging_s": shares.aging_s}
    return {"services": kinds["service"], "tenants": kinds["tenant"], **aging}


def _names(tenant: str) -> list[str]:
    return [f"service {SERVICE}", *([f"tenant {tenant}"] if tenant else [])]


def limits_kept(events: Sequence[Event], shares: PlannedShares) -> Iterator[str]:
    """No limit is ever exceeded: neither by running jobs nor by starts."""
    running: dict[str, list[str]] = {}
    starts: dict[str, list[int]] = {}
    for event in events:
        if event.type in REMARKS or event.type is EventType.CANCEL_REQUESTED:
            continue
        running.pop(event.job_id, None)
        if event.type is not EventType.CLAIMED:
            continue
        names = running[event.job_id] = _names(shares.tenants.get(event.job_id, ""))
        count = Counter(name for held in running.values() for name in held)
        for name in names:
            limit = _limit(name, shares.limits)
            if limit is None:
                continue
            if limit.running_max is not None and count[name] > limit.running_max:
                yield f"{event.job_id}: {count[name]} jobs of {name} run, {limit.running_max} may"
            if limit.rate is not None:
                moments = starts.setdefault(name, [])
                moments.append(event.at_ms)
                yield from _too_fast(name, moments, limit)


def _limit(name: str, limits: Mapping[str, Limit]) -> Limit | None:
    return limits.get(name) or (limits.get("tenant *") if name.startswith("tenant ") else None)


def _too_fast(name: str, moments: Sequence[int], limit: Limit) -> Iterator[str]:
    for first, begun_ms in enumerate(moments):
        elapsed_us = (moments[-1] - begun_ms + ROUNDING_MS) * 1000
        allowed = limit.burst + elapsed_us // limit.interval_us
        if len(moments) - first > allowed:
            yield f"{name}: {len(moments) - first} starts within {elapsed_us} us, {allowed} may"
            return


def running_counted(records: Mapping[str, Sequence[str]], usage: Mapping[str, int]) -> Iterator[str]:
    """What the store counts is what runs, when all is over and at any other time."""
    running = (record for record in records.values() if record[_STATE] == "running")
    counted: Counter[str] = Counter()
    for record in running:
        counted[f"service {record[_SERVICE]}"] += 1
        if record[_TENANT]:
            counted[f"tenant {record[_TENANT]}"] += 1
    if counted != Counter({name: count for name, count in usage.items() if count}):
        yield f"the store counts {dict(usage)}, running are {dict(counted)}"


@dataclass(frozen=True, slots=True)
class Asked:
    """What matters of a job for its place: its priority and what it requires."""

    priority: int
    vram_gb: int


@dataclass(slots=True)
class _Waiting:
    """A job that waits for its first claim, and who went before it."""

    job_class: tuple[str, int]
    priority: int
    since_ms: int
    passed: Counter[str] = field(default_factory=Counter)


#: After these a job may be meant for another worker than the one that comes.
_GIVEN_BACK = frozenset(
    {EventType.RETRIED, EventType.RETRIED_LATER, EventType.RELEASED, EventType.RELEASED_LATER}
)


class _Line:
    """Follows who waits, and judges each first claim."""

    def __init__(self, asked: Mapping[str, Asked], shares: PlannedShares) -> None:
        self._asked = asked
        self._shares = shares
        self._aging_s = AGING_S_DEFAULT if shares.aging_s is None else shares.aging_s
        self._waiting: dict[str, _Waiting] = {}
        self._born_ms: dict[str, int] = {}
        self._known: set[tuple[str, tuple[str, int]]] = set()
        self._disturbed: set[str] = set()

    def feed(self, event: Event) -> str | None:
        """Take the next event; says what is wrong with it, if something is."""
        if event.type in REMARKS or event.job_id not in self._asked:
            return None
        job_class = self._shares.tenants.get(event.job_id, ""), self._asked[event.job_id].vram_gb
        if event.type in (EventType.SUBMITTED, EventType.DEFERRED):
            self._born_ms[event.job_id] = event.at_ms
        if event.type in _GIVEN_BACK:
            self._disturbed.add(job_class[0])
        if event.type is EventType.SUBMITTED:
            priority = self._asked[event.job_id].priority
            self._waiting[event.job_id] = _Waiting(job_class, priority, event.at_ms)
            return None
        self._waiting.pop(event.job_id, None)
        return self._claimed(event, job_class) if event.type is EventType.CLAIMED else None

    def _claimed(self, event: Event, job_class: tuple[str, int]) -> str | None:
        found = None
        for other_id, other in self._waiting.items():
            if other.job_class == job_class:
                found = found or self._order(event, other_id, other)
            elif other.job_class[0] != job_class[0] and (event.worker_id, other.job_class) in self._known:
                found = found or self._turn(event, job_class[0], other_id, other)
        self._known.add((event.worker_id, job_class))
        for other in self._waiting.values():
            if other.job_class[0] == job_class[0]:
                other.passed.clear()
        return found

    def _order(self, event: Event, other_id: str, other: _Waiting) -> str | None:
        """Within a class the order is arrival, with the levels' worth of waiting."""
        lead_ms = (other.priority - self._asked[event.job_id].priority) * self._aging_s * 1000
        if self._born_ms[event.job_id] - other.since_ms + lead_ms <= ROUNDING_MS:
            return None
        return f"{event.job_id} was claimed before {other_id} of its class, which comes first in order"

    def _turn(self, event: Event, tenant: str, other_id: str, other: _Waiting) -> str | None:
        """Another tenant has no second turn while this one waits for its first."""
        equal = self._asked[event.job_id].priority == other.priority
        if not equal or other.job_class[0] in self._disturbed or self._aging_s < AGING_S_DEFAULT:
            return None
        other.passed[tenant] += 1
        if other.passed[tenant] <= TURNS_MAX:
            return None
        return (
            f"{tenant or 'nobody'} had {TURNS_MAX + 1} turns while {other_id} of {other.job_class[0]} waited"
        )


def turns_taken(events: Sequence[Event], asked: Mapping[str, Asked], shares: PlannedShares) -> Iterator[str]:
    """Whoever waits for a first claim is passed over neither by later jobs of its class nor by others' turns.

    Where limits hold jobs back the events do not say who could have been claimed; there nothing is judged.
    """
    if shares.limits:
        return
    line = _Line(asked, shares)
    for event in events:
        found = line.feed(event)
        if found:
            yield found
            return
