"""Small stories with a known cast: hand-written plans, each with what must be seen in its run.

Seeds find what nobody thought of; a scenario pins down what somebody did think of. Each names its topology, injects a
few incidents at chosen moments, and says which events, marks and executions prove that the intended thing happened.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.connectors.simulation.wire import JournalEvent
from gateway.lifecycle import EventType
from simulator.coverage import Mark
from simulator.plan import FaultKind, FleetPlan, Incident, LinkLevels, PlannedJob

if TYPE_CHECKING:
    from simulator.run import Run

#: Lease of the scenarios, seconds: the shortest that the swarm uses, so that a story takes few simulated minutes.
LEASE_S = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Expectation:
    """One thing that must hold in the run of a scenario."""

    says: str
    holds: Callable[[Run], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A plan and what its run must show.

    Attributes:
        name: for the command line.
        topology: who takes part, and what happens to them.
        shows: the promise that it puts to the test.
    """

    name: str
    topology: str
    shows: str
    plan: FleetPlan
    expectations: tuple[Expectation, ...]

    def unmet(self, run: Run) -> list[str]:
        """What the run failed to show, broken invariants included."""
        missing = [one.says for one in self.expectations if not one.holds(run)]
        return [*run.outcome.findings, *missing]


def count(run: Run, kind: EventType, job_id: str = "") -> int:
    """Events of a kind, of one job or of all."""
    return sum(event.type is kind and job_id in ("", event.job_id) for event in run.events)


def executions(run: Run, job_id: str) -> int:
    """How often the services began to work on a job, under any of its names there."""
    return sum(
        entry.event is JournalEvent.STARTED and entry.id.startswith(f"{job_id}.")
        for journal in run.journals.values()
        for entry in journal
    )


def _event(kind: EventType, times: int, job_id: str = "") -> Expectation:
    whose = f" of {job_id}" if job_id else ""
    return Expectation(
        says=f"{kind.value}{whose}: exactly {times}", holds=lambda run: count(run, kind, job_id) == times
    )


def _some(kind: EventType, job_id: str = "") -> Expectation:
    whose = f" of {job_id}" if job_id else ""
    return Expectation(
        says=f"{kind.value}{whose}: at least 1", holds=lambda run: count(run, kind, job_id) > 0
    )


def _reached(mark: Mark) -> Expectation:
    return Expectation(says=f"{mark.value}: at least 1", holds=lambda run: mark.value in run.outcome.marks)


def _executed(job_id: str, times: int) -> Expectation:
    return Expectation(
        says=f"executions of {job_id}: exactly {times}", holds=lambda run: executions(run, job_id) == times
    )


def _completed_by(worker_id: str, job_id: str) -> Expectation:
    return Expectation(
        says=f"{job_id} is completed by {worker_id}",
        holds=lambda run: any(
            event.type is EventType.COMPLETED and (event.job_id, event.worker_id) == (job_id, worker_id)
            for event in run.events
        ),
    )


def _job(
    number: int,
    at_s: float,
    duration_s: float,
    *,
    fail: str = "",
    max_attempts: int = 3,
    vram_gb: int = 0,
) -> PlannedJob:
    return PlannedJob(
        job_id=f"job-{number}",
        at_s=at_s,
        duration_s=duration_s,
        timeout_s=600.0,
        fail={"kind": fail, "times": 1} if fail else None,
        max_attempts=max_attempts,
        vram_gb=vram_gb,
    )


def _incident(kind: FaultKind, at_s: float, target: str, for_s: float = 0.0) -> Incident:
    return Incident(at_s=at_s, kind=kind, target=target, for_s=for_s)


def _plan(
    *incidents: Incident,
    jobs: tuple[PlannedJob, ...],
    safety_s: float,
    gateways: int = 2,
    services: int = 1,
    slots: int = 1,
    links: LinkLevels | None = None,
    discovered: bool = False,
) -> FleetPlan:
    return FleetPlan(
        seed=1,
        gateways=gateways,
        services=services,
        slots=slots,
        lease_s=LEASE_S,
        safety_s=safety_s,
        jobs=jobs,
        incidents=tuple(sorted(incidents, key=lambda incident: incident.at_s)),
        links=links or LinkLevels(),
        discovered=discovered,
        # Nothing but the story: not even the default failures.
        service_faults={"health_failure_rate": 0.0, "lost_completion_rate": 0.0},
    )


#: Only gateway-0 is up when the first job comes; gateway-1 joins two seconds after its kill.
_LATE_SECOND = _incident(FaultKind.KILL, 0.1, "gateway-1")


def _ownership() -> list[Scenario]:
    """Stories about who owns a job."""
    return [
        Scenario(
            name="paused-owner",
            topology="two gateways, one slot: owner paused beyond its lease, then resumes",
            shows="the successor follows the same run at the service; the returned owner stops and cancels nothing",
            plan=_plan(
                _LATE_SECOND,
                _incident(FaultKind.PAUSE, 3.0, "gateway-0", 2.5 * LEASE_S),
                jobs=(_job(0, 0.5, 40.0),),
                safety_s=60.0,
            ),
            expectations=(
                _event(EventType.RECOVERED, 1, "job-0"),
                _completed_by("gateway-1/gpu0", "job-0"),
                _executed("job-0", 1),
                _reached(Mark.LEASE_EXPIRED),
                _reached(Mark.FOLLOWED),
            ),
        ),
        Scenario(
            name="one-way-partition",
            topology="two gateways: nothing from the owner reaches Redis while it should renew",
            shows="an owner whose renewals vanish stops by its own clock before anybody else may start",
            plan=_plan(
                _LATE_SECOND,
                _incident(FaultKind.ONE_WAY_PARTITION, 3.0, "gateway-0>redis", 2.5 * LEASE_S),
                jobs=(_job(0, 0.5, 40.0),),
                safety_s=60.0,
            ),
            expectations=(
                _event(EventType.RECOVERED, 1, "job-0"),
                _completed_by("gateway-1/gpu0", "job-0"),
                _executed("job-0", 1),
                _reached(Mark.LEASE_EXPIRED),
            ),
        ),
    ]


def _late_news() -> list[Scenario]:
    """Stories about answers and results that come late, or never."""
    return [
        Scenario(
            name="lost-claim-reply",
            topology="two gateways, two slots: one answer in twelve never arrives, of Redis and of the service alike",
            shows="a lost claim is asked again and brings the same jobs; a settlement sent twice counts once",
            plan=_plan(
                jobs=tuple(_job(number, 0.5 + 0.2 * number, 0.2, max_attempts=20) for number in range(60)),
                safety_s=60.0,
                slots=2,
                links=LinkLevels(lost_reply=0.08),
            ),
            expectations=(
                _reached(Mark.CLAIM_REPLAYED),
                _reached(Mark.DUPLICATE_SETTLEMENT),
                _event(EventType.COMPLETED, 60),
                _event(EventType.DEAD, 0),
            ),
        ),
        Scenario(
            name="result-between-leases",
            topology="two gateways, one slot: a result comes back after its lease ran out, before the next claim",
            shows="the newest owner's result is taken although its lease is over; nothing runs twice",
            plan=_plan(
                _LATE_SECOND,
                _incident(FaultKind.PARTITION, 5.0, "gateway-0>redis", 2.5 * LEASE_S),
                # The second gateway is up, but its one slot is taken all the time: it sweeps and cannot claim.
                jobs=(_job(0, 0.5, 6.0), _job(1, 4.0, 50.0)),
                safety_s=70.0,
            ),
            expectations=(
                _event(EventType.RECOVERED, 1, "job-0"),
                _reached(Mark.SPOOL_USED),
                _reached(Mark.COMPLETED_IN_PENDING),
                _executed("job-0", 1),
                _event(EventType.COMPLETED, 2),
            ),
        ),
        Scenario(
            name="poison-pill",
            topology="one gateway that is killed whenever it has the job",
            shows="a job whose owners keep dying without progress is buried, with the reason, and kills no more",
            plan=_plan(
                *(_incident(FaultKind.KILL, 3.0 + 12.0 * number, "gateway-0") for number in range(6)),
                jobs=(_job(0, 0.5, 900.0),),
                safety_s=90.0,
                gateways=1,
            ),
            expectations=(
                _event(EventType.RECOVERED, 3, "job-0"),
                _event(EventType.DEAD, 1, "job-0"),
                _reached(Mark.POISON_PILL),
            ),
        ),
    ]


def _store() -> list[Scenario]:
    """Stories about Redis."""
    return [
        Scenario(
            name="redis-restarts",
            topology="three gateways: Redis restarts while results come back",
            shows="results wait in the spool, scripts are brought again, and no finished work is run twice",
            plan=_plan(
                _incident(FaultKind.REDIS_RESTART, 3.0, "redis", 2.0),
                _incident(FaultKind.REDIS_RESTART, 9.0, "redis", 2.0),
                jobs=tuple(_job(number, 0.5, 2.4 + 0.1 * number) for number in range(18)),
                safety_s=40.0,
                gateways=3,
                slots=2,
            ),
            expectations=(
                _reached(Mark.SPOOL_USED),
                _reached(Mark.SCRIPTS_RELOADED),
                _event(EventType.COMPLETED, 18),
                *(_executed(f"job-{number}", 1) for number in range(18)),
            ),
        ),
        Scenario(
            name="rollback",
            topology="two gateways: Redis fails over to a copy that lacks its last second",
            shows="no promise covers lost acknowledged writes; the run is reported apart and the fleet goes on",
            plan=_plan(
                _incident(FaultKind.REDIS_ROLLBACK, 3.0, "redis", 1.0),
                jobs=tuple(_job(number, 0.5 + 0.3 * number, 1.0) for number in range(12)),
                safety_s=30.0,
            ),
            expectations=(
                Expectation(
                    says="the run does not count as durable", holds=lambda run: not run.outcome.plan.durable
                ),
                _reached(Mark.LEASE_LOST),
                Expectation(says="jobs complete afterwards", holds=lambda run: run.outcome.completed >= 6),
            ),
        ),
    ]


def _services() -> list[Scenario]:
    """Stories about the services."""
    return [
        Scenario(
            name="forgetful-service",
            topology="two gateways, one service: it forgets its jobs while the owner is cut off from Redis",
            shows="the successor asks, hears that nobody knows the job, and runs it once more; one completion counts",
            plan=_plan(
                _LATE_SECOND,
                _incident(FaultKind.PARTITION, 3.0, "gateway-0>redis", 2.5 * LEASE_S),
                _incident(FaultKind.SERVICE_RESTART, 4.0, "service-0"),
                jobs=(_job(0, 0.5, 20.0),),
                safety_s=60.0,
            ),
            expectations=(
                _event(EventType.RECOVERED, 1, "job-0"),
                _event(EventType.COMPLETED, 1, "job-0"),
                Expectation(says="job-0 is run anew", holds=lambda run: executions(run, "job-0") >= 2),
            ),
        ),
        Scenario(
            name="service-moves",
            topology="one gateway that knows no address: its service moves while it works on a long job",
            shows="the gateway follows the registry, and finds the very run that it had begun at the old address",
            plan=_plan(
                _incident(FaultKind.SERVICE_MOVE, 5.0, "service-0", 1.0),
                jobs=(_job(0, 0.5, 20.0), _job(1, 15.0, 0.5)),
                safety_s=60.0,
                gateways=1,
                slots=2,
                discovered=True,
            ),
            expectations=(
                _reached(Mark.FOLLOWED_ADDRESS),
                _event(EventType.COMPLETED, 1, "job-0"),
                _event(EventType.COMPLETED, 1, "job-1"),
                _executed("job-0", 1),
            ),
        ),
        Scenario(
            name="service-down",
            topology="one gateway, one service: it refuses every connection for half a minute",
            shows="the breaker opens, jobs go back uncharged, and all complete at their first attempt afterwards",
            plan=_plan(
                _incident(FaultKind.SERVICE_DOWN, 1.0, "service-0", 30.0),
                jobs=tuple(_job(number, 2.0, 0.5, max_attempts=1) for number in range(6)),
                safety_s=60.0,
                gateways=1,
                slots=2,
            ),
            expectations=(
                _some(EventType.RELEASED_LATER),
                _reached(Mark.BREAKER_OPENED),
                _event(EventType.COMPLETED, 6),
                _event(EventType.DEAD, 0),
            ),
        ),
    ]


def _moves() -> list[Scenario]:
    """Stories about services whose addresses only the registry knows."""
    return [
        Scenario(
            name="moved-work-elsewhere",
            topology="one gateway, two services: one moves with a job, then its worker is busy with another one",
            shows="a worker of the other service asks for the work where the registry says it went, and follows it",
            plan=_plan(
                _incident(FaultKind.SERVICE_MOVE, 5.0, "service-0", 1.0),
                # The short one keeps the second worker away from the first; only the first one's card has the
                # memory for the last.
                jobs=(_job(2, 0.4, 0.5), _job(0, 0.6, 40.0), _job(1, 10.0, 60.0, vram_gb=24)),
                safety_s=90.0,
                gateways=1,
                services=2,
                discovered=True,
            ),
            expectations=(
                _event(EventType.RELEASED_LATER, 1, "job-0"),
                _completed_by("gateway-0/gpu1", "job-0"),
                _executed("job-0", 1),
                _event(EventType.COMPLETED, 1, "job-1"),
                _reached(Mark.FOLLOWED),
            ),
        ),
    ]


def _people_and_networks() -> list[Scenario]:
    """Stories about operators, deployments and duplicated requests."""
    return [
        Scenario(
            name="graceful-stop",
            topology="two gateways: the owner gets a SIGTERM in the middle of a long job",
            shows="the job is released without a charge and the next owner follows the same run",
            plan=_plan(
                _LATE_SECOND,
                _incident(FaultKind.TERMINATE, 5.0, "gateway-0"),
                jobs=(_job(0, 0.5, 25.0, max_attempts=1),),
                safety_s=60.0,
            ),
            expectations=(
                _event(EventType.RELEASED, 1, "job-0"),
                _event(EventType.RECOVERED, 0),
                _event(EventType.COMPLETED, 1, "job-0"),
                _executed("job-0", 1),
                _reached(Mark.FOLLOWED),
            ),
        ),
        Scenario(
            name="cancel-and-requeue",
            topology="one gateway: an operator cancels a running job and requeues a dead one",
            shows="a running job is told through its lease and ends cancelled; a dead one gets a new life",
            plan=_plan(
                _incident(FaultKind.CANCEL, 4.0, "job-0"),
                _incident(FaultKind.REQUEUE, 8.0, "job-1"),
                jobs=(_job(0, 0.5, 30.0), _job(1, 0.6, 1.0, fail="validation")),
                safety_s=30.0,
                gateways=1,
                slots=2,
            ),
            expectations=(
                _event(EventType.CANCEL_REQUESTED, 1, "job-0"),
                _event(EventType.CANCELLED, 1, "job-0"),
                _event(EventType.DEAD, 1, "job-1"),
                _event(EventType.REQUEUED, 1, "job-1"),
                _event(EventType.COMPLETED, 1, "job-1"),
            ),
        ),
        Scenario(
            name="echoes",
            topology="two gateways: half of all requests are delivered a second time, up to nine seconds later",
            shows="late repetitions of claims, renewals, settlements and submissions change nothing",
            plan=_plan(
                jobs=tuple(_job(number, 0.5 + 0.5 * number, 0.7) for number in range(20)),
                safety_s=30.0,
                slots=2,
                links=LinkLevels(duplicate=0.5),
            ),
            expectations=(_reached(Mark.GHOST_EXECUTED), _event(EventType.COMPLETED, 20)),
        ),
    ]


SCENARIOS: dict[str, Scenario] = {
    scenario.name: scenario
    for scenario in [
        *_ownership(),
        *_late_news(),
        *_store(),
        *_services(),
        *_moves(),
        *_people_and_networks(),
    ]
}
