"""Reduce a failing plan to a small one that still fails, by delta debugging with a bounded number of runs (pure).

What fails is the caller's business: any predicate over plans. Each accepted step is a plan that was seen to fail, so
the result fails too, whenever the budget ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from simulator.plan import FaultKind, FleetPlan, Incident, LinkLevels
from simulator.shares import NO_SHARES

RUNS_MAX_DEFAULT = 200
#: Quiet time kept after the last incident and submission, in leases: a lapse and its recovery fit in.
TAIL_LEASES = 3.0

#: An empty table would stand for the default 4 %.
_NO_SERVICE_FAULTS: dict[str, float | bool] = {"health_failure_rate": 0.0, "lost_completion_rate": 0.0}

Part = TypeVar("Part")


@dataclass(frozen=True, slots=True)
class Shrunk:
    """The smallest failing plan found.

    Attributes:
        runs: how often the predicate was asked.
        exhausted: whether the budget ended before no step helped any more.
    """

    plan: FleetPlan
    runs: int
    exhausted: bool


class _Spent(Exception):
    """The budget of runs is used up."""


class _Search:
    """The smallest failing plan so far, and what remains of the budget."""

    def __init__(
        self,
        plan: FleetPlan,
        fails: Callable[[FleetPlan], bool],
        runs_max: int,
        on_step: Callable[[FleetPlan, int], None] | None,
    ) -> None:
        self.plan = plan
        self.runs = 0
        self._fails = fails
        self._runs_max = runs_max
        self._on_step = on_step
        self._known: dict[bytes, bool] = {}

    def try_plan(self, plan: FleetPlan) -> bool:
        """Whether this plan fails as well; then it is the new smallest."""
        encoded = plan.encoded()
        if plan == self.plan or encoded in self._known:
            return False
        if self.runs >= self._runs_max:
            raise _Spent
        self.runs += 1
        failed = self._known[encoded] = self._fails(plan)
        if failed:
            self.plan = plan
            if self._on_step is not None:
                self._on_step(plan, self.runs)
        return failed

    def drop_parts(self, parts: Callable[[], Sequence[Part]], put: Callable[[list[Part]], FleetPlan]) -> None:
        """Delta debugging: leave out ever smaller slices of a list as long as the rest still fails."""
        size = len(parts())
        while size >= 1:
            start = 0
            while start < len(parts()):
                kept = [*parts()[:start], *parts()[start + size :]]
                if not self.try_plan(put(kept)):
                    start += size
            size //= 2


def shrink(
    plan: FleetPlan,
    fails: Callable[[FleetPlan], bool],
    *,
    runs_max: int = RUNS_MAX_DEFAULT,
    on_step: Callable[[FleetPlan, int], None] | None = None,
) -> Shrunk:
    """Find a smaller plan that fails as well.

    Args:
        plan: fails, as the caller has seen.
        fails: runs a plan and says whether it shows the same failure.
        runs_max: most calls of ``fails``.
        on_step: told of each smaller failing plan and of the runs so far.
    """
    search = _Search(plan, fails, runs_max, on_step)
    try:
        while True:
            before = search.plan
            _pass(search)
            if search.plan == before:
                return Shrunk(search.plan, search.runs, exhausted=False)
    except _Spent:
        return Shrunk(search.plan, search.runs, exhausted=True)


def _pass(search: _Search) -> None:
    """Every kind of step once, the ones that save most time first."""
    for step in _CALMER:
        search.try_plan(step(search.plan))
    search.drop_parts(
        lambda: search.plan.incidents,
        lambda kept: msgspec.structs.replace(search.plan, incidents=tuple(kept)),
    )
    search.drop_parts(
        lambda: search.plan.jobs,
        lambda kept: _with_jobs(search.plan, {job.job_id for job in kept}),
    )
    for name, value in list(search.plan.service_faults.items()):
        if value and value is not True:
            calmer = {**search.plan.service_faults, name: 0.0}
            search.try_plan(msgspec.structs.replace(search.plan, service_faults=calmer))
    for name in LinkLevels.__struct_fields__:
        links = msgspec.structs.replace(search.plan.links, **{name: 0.0})
        search.try_plan(msgspec.structs.replace(search.plan, links=links))
    while search.plan.gateways > 1 and search.try_plan(_without_gateway(search.plan)):
        pass
    while search.plan.services > 1 and search.try_plan(_without_service(search.plan)):
        pass
    _simplify(search)


def _without_times_off(plan: FleetPlan) -> FleetPlan:
    return msgspec.structs.replace(plan, redis_offset_s=0.0, redis_rate=1.0)


def _shorter(plan: FleetPlan) -> FleetPlan:
    """The first phase ends soon after the last thing that was planned for it."""
    moments = [incident.at_s + incident.for_s for incident in plan.incidents]
    moments += [job.at_s for job in plan.jobs]
    end_s = round(max(moments, default=0.0) + TAIL_LEASES * plan.lease_s, 3)
    return msgspec.structs.replace(plan, safety_s=min(end_s, plan.safety_s))


#: Each takes a whole class of trouble away.
_CALMER: tuple[Callable[[FleetPlan], FleetPlan], ...] = (
    lambda plan: msgspec.structs.replace(plan, links=LinkLevels()),
    lambda plan: msgspec.structs.replace(plan, service_faults=_NO_SERVICE_FAULTS),
    _without_times_off,
    lambda plan: msgspec.structs.replace(plan, slots=1),
    lambda plan: msgspec.structs.replace(plan, protocols=()),
    lambda plan: msgspec.structs.replace(plan, shares=NO_SHARES),
    lambda plan: msgspec.structs.replace(plan, discovered=False),
    _shorter,
)


def _with_jobs(plan: FleetPlan, kept: set[str]) -> FleetPlan:
    """Only these jobs, and only the incidents that still have their target."""
    about_jobs = {FaultKind.CANCEL, FaultKind.REQUEUE, FaultKind.DUPLICATE_SUBMIT}
    return msgspec.structs.replace(
        plan,
        jobs=tuple(job for job in plan.jobs if job.job_id in kept),
        incidents=tuple(
            incident
            for incident in plan.incidents
            if incident.kind not in about_jobs or incident.target in kept
        ),
    )


def _without(plan: FleetPlan, node: str) -> tuple[Incident, ...]:
    """The incidents that do not concern a node."""
    return tuple(incident for incident in plan.incidents if node not in incident.target.split(">"))


def _without_gateway(plan: FleetPlan) -> FleetPlan:
    last = plan.gateways - 1
    return msgspec.structs.replace(plan, gateways=last, incidents=_without(plan, f"gateway-{last}"))


def _without_service(plan: FleetPlan) -> FleetPlan:
    last = plan.services - 1
    return msgspec.structs.replace(plan, services=last, incidents=_without(plan, f"service-{last}"))


def _simplify(search: _Search) -> None:
    """Plainer jobs and shorter incidents, one field at a time."""
    replace = msgspec.structs.replace
    for index in range(len(search.plan.jobs)):
        for changes in (
            {"fail": None, "chunks": 0, "delay_s": 0.0, "priority": 50, "vram_gb": 0, "idempotency_key": ""},
            {"max_attempts": 3, "timeout_s": 60.0},
            {"duration_s": 0.1},
            {"at_s": 0.5},
        ):
            jobs = list(search.plan.jobs)
            jobs[index] = replace(jobs[index], **changes)
            search.try_plan(replace(search.plan, jobs=tuple(jobs)))
    for index in range(len(search.plan.incidents)):
        incidents = list(search.plan.incidents)
        incidents[index] = replace(incidents[index], for_s=round(incidents[index].for_s / 2, 3))
        search.try_plan(replace(search.plan, incidents=tuple(incidents)))


def regression_test(plan: FleetPlan, finding: str) -> str:
    """A test to paste: the plan as data, and that it must pass.

    Args:
        finding: the first line of what went wrong, for the docstring.
    """
    text = " ".join(finding.replace('"""', "'''").replace("\\", "/").split())[:90]
    pretty = msgspec.json.format(plan.encoded(), indent=1).decode()
    return f'''def test_plan_of_seed_{plan.seed}_stays_fixed() -> None:
    """Once broke with: {text}"""
    plan = msgspec.json.decode(PLAN_OF_SEED_{plan.seed}, type=FleetPlan)
    outcome = simulate(plan).outcome
    assert outcome.findings == ()


PLAN_OF_SEED_{plan.seed} = r"""
{pretty}
"""
'''
