"""What a mutant is, and how one is put in place of the shipped code and taken away again.

Nothing on disk changes: scripts are edited on their way out of ``gateway.store.calls.script``, code is replaced as an
attribute and restored. An edit that no longer fits its script is an error, never silently the original.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from hashlib import sha1
from random import Random
from typing import Any

import msgspec

from gateway.limits import Limit
from gateway.store import calls, scripts
from gateway.store.calls import Script
from simulator.plan import Condition, FaultKind, FleetPlan, Incident, LinkLevels, PlannedJob, generate_plan
from simulator.shares import PlannedShares

#: Stands for every script: what is edited is then the prelude that all of them share.
EVERY_SCRIPT = "*"


class DoesNotApply(LookupError):
    """The text to replace is not there exactly once: the script changed and its mutant must follow."""


class Judge(enum.StrEnum):
    """Who may turn a run down."""

    AUDITOR = "auditor"
    BELIEFS = "beliefs"
    JOURNALS = "journals"
    PROMISES = "promises"
    LIVENESS = "liveness"
    CRASH = "crash"


@dataclass(frozen=True, slots=True)
class Edit:
    """A piece of one script replaced by another.

    Attributes:
        script: name of the script, or ``EVERY_SCRIPT``.
        old: text that must be there exactly once.
        new: what stands there instead.
    """

    script: str
    old: str
    new: str

    def apply(self, source: str) -> str:
        """The edited source.

        Raises:
            DoesNotApply: the old text is missing, or there more than once.
        """
        if source.count(self.old) != 1:
            raise DoesNotApply(f"{self.script}.lua has {source.count(self.old)} times: {self.old}")
        return source.replace(self.old, self.new)


@dataclass(frozen=True, slots=True, kw_only=True)
class Favour:
    """What the plans of one mutant's hunt have more of than a plain swarm; everything else follows from the seed.

    Attributes:
        only: kinds of faults, instead of a random half of all.
        links: levels of the links' faults, instead of drawn ones.
        gateways, jobs: size of the fleet and of its workload.
        job_leases: least duration of every job, in leases.
        redis_rate: how fast Redis' clock runs, where it is not drawn.
        cut_off: how often every gateway is cut off from Redis for longer than a lease, beside the drawn faults.
        conditions: what jobs are born with beyond the plain job; a plain hunt has only plain jobs.
        limits: limits instead of drawn ones.
        crowd: all jobs come at once, most of them one tenant's; the levels are those of priority in turn.
        aging_s: seconds of waiting per level of priority.
        moves: gateways know no address, and every service moves.
        why: why a plain swarm would need more seeds.
    """

    only: frozenset[FaultKind] | None = None
    links: LinkLevels | None = None
    gateways: int = 3
    jobs: int = 20
    job_leases: float = 0.0
    redis_rate: float | None = None
    cut_off: int = 0
    conditions: frozenset[Condition] = frozenset()
    limits: dict[str, Limit] | None = None
    crowd: tuple[int, ...] = ()
    aging_s: float | None = None
    moves: bool = False
    why: str = ""

    def plan(self, seed: int) -> FleetPlan:
        """The plan of a seed."""
        plan = generate_plan(
            seed, gateways=self.gateways, jobs=self.jobs, only=self.only, conditions=self.conditions
        )
        least_s = self.job_leases * plan.lease_s
        jobs = tuple(
            msgspec.structs.replace(job, duration_s=max(job.duration_s, least_s)) for job in plan.jobs
        )
        if self.crowd:
            jobs = tuple(self._in_crowd(job, number) for number, job in enumerate(jobs))
        shares = plan.shares
        if self.crowd or self.limits:
            tenants = {job.job_id: _tenant(number, len(jobs)) for number, job in enumerate(jobs)}
            shares = PlannedShares(tenants=tenants, limits=self.limits or {}, aging_s=self.aging_s)
        return msgspec.structs.replace(
            plan,
            shares=shares,
            jobs=jobs,
            incidents=(*plan.incidents, *self._partitions(plan), *self._service_moves(plan)),
            discovered=plan.discovered or self.moves,
            links=plan.links if self.links is None else self.links,
            redis_rate=plan.redis_rate if self.redis_rate is None else self.redis_rate,
        )

    def _partitions(self, plan: FleetPlan) -> list[Incident]:
        """From a source of its own: the rest of the plan is the same with and without them."""
        drawn = Random(f"cut off/{plan.seed}")
        return [
            Incident(
                at_s=round(drawn.uniform(0.5, 0.9 * plan.safety_s), 3),
                kind=FaultKind.PARTITION,
                target=f"gateway-{number}>redis",
                for_s=round(1.3 * plan.lease_s, 3),
            )
            for number in range(plan.gateways)
            for _ in range(self.cut_off)
        ]

    def _service_moves(self, plan: FleetPlan) -> list[Incident]:
        at_s = round(0.3 * plan.safety_s, 3)
        kind, names = FaultKind.SERVICE_MOVE, [f"service-{number}" for number in range(plan.services)]
        return [Incident(at_s=at_s, kind=kind, target=name) for name in names] if self.moves else []

    def _in_crowd(self, job: PlannedJob, number: int) -> PlannedJob:
        """One after the other, none of them late, failing or for a few workers only."""
        priority = self.crowd[number % len(self.crowd)]
        at_s = round(1.0 + 0.2 * number, 3)
        return msgspec.structs.replace(job, at_s=at_s, priority=priority, delay_s=0.0, fail=None, vram_gb=0)


def _tenant(number: int, jobs: int) -> str:
    """A few of the small tenant's, so that workers know it, then a backlog of the big one's, then the small one's."""
    return "acme" if 3 <= number < jobs * 2 // 3 else "zeta"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutant:
    """One deliberate fault.

    Attributes:
        name: of the mutant, for ``--only``.
        breaks: what is wrong with it.
        promise: which promise that breaks, and how it shows.
        judges: who may catch it; whatever else turns its runs down would be an accident.
        put_in: replaces the shipped code while the context is open.
        favour: how its plans differ from a plain swarm.
    """

    name: str
    breaks: str
    promise: str
    judges: frozenset[Judge]
    put_in: Callable[[], AbstractContextManager[None]]
    favour: Favour = field(default_factory=Favour)


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Give a class or module another attribute for a while.

    Raises:
        DoesNotApply: the owner itself has no such attribute.
    """
    if name not in vars(owner):
        raise DoesNotApply(f"{owner!r} has no {name}")
    shipped = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, shipped)


@contextmanager
def edited_scripts(*edits: Edit) -> Iterator[None]:
    """Let every script call carry the edited source, under its own hash.

    Raises:
        DoesNotApply: an edit does not fit the shipped script.
    """
    shipped = calls.script
    made: dict[str, Script] = {}

    def edited(name: str) -> Script:
        found = made.get(name)
        if found is None:
            source = shipped(name).source
            for edit in edits:
                if edit.script in (name, EVERY_SCRIPT):
                    source = edit.apply(source)
            digest = sha1(source.encode(), usedforsecurity=False).hexdigest()
            found = made[name] = Script(name, source, digest)
        return found

    for edit in edits:
        edited("claim" if edit.script == EVERY_SCRIPT else edit.script)
    with replaced(calls, "script", edited), replaced(scripts, "script", edited):
        yield


def edits(*pieces: Edit) -> Callable[[], AbstractContextManager[None]]:
    """``Mutant.put_in`` for edited scripts."""
    return lambda: edited_scripts(*pieces)


def replacements(*pieces: tuple[Any, str, Any]) -> Callable[[], AbstractContextManager[None]]:
    """``Mutant.put_in`` for replaced attributes: owner, name and value of each."""

    @contextmanager
    def put_in() -> Iterator[None]:
        with ExitStack() as stack:
            for owner, name, value in pieces:
                stack.enter_context(replaced(owner, name, value))
            yield

    return put_in


def both(
    *parts: Callable[[], AbstractContextManager[None]],
) -> Callable[[], AbstractContextManager[None]]:
    """``Mutant.put_in`` for several at once."""

    @contextmanager
    def put_in() -> Iterator[None]:
        with ExitStack() as stack:
            for part in parts:
                stack.enter_context(part())
            yield

    return put_in
