"""What must be reached sometimes: fault kinds, lifecycle events and states that a set of runs has to visit (pure).

"Always" checks say that nothing bad happened; they are worth little when nothing happened at all. So each run notes
what it reached, and an exploration over enough seeds fails when something on this list was never reached.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from gateway.events import Event
from gateway.lifecycle import REMARKS, TRANSITIONS, EventType
from gateway.models import JobState
from simulator.plan import FaultKind, FleetPlan, ServiceProtocol

#: Seeds from which on a check that was never reached is a failure: the rarest of them (a stale settlement) came up in
#: 11 of 160 runs.
SEEDS_JUDGED_MIN = 200


#: Events that this fleet cannot bring about: every back-off and every snooze of its policy has a delay, and nobody
#: overrides its settings.
UNREACHABLE = frozenset({EventType.RETRIED, EventType.SNOOZED, EventType.CONFIGURED})
EVENTS_WANTED = tuple(event for event in EventType if event not in UNREACHABLE)


class Mark(enum.StrEnum):
    """States worth reaching that no single fault or event stands for."""

    LEASE_EXPIRED = "lease_expired"
    LEASE_LOST = "lease_lost"
    STALE_SETTLEMENT = "stale_settlement"
    DUPLICATE_SETTLEMENT = "duplicate_settlement"
    SPOOL_USED = "spool_used"
    CLAIM_REPLAYED = "claim_replayed"
    COMPLETED_IN_PENDING = "completed_in_pending"
    POISON_PILL = "poison_pill"
    GHOST_EXECUTED = "ghost_executed"
    SCRIPTS_RELOADED = "scripts_reloaded"
    KILLED_AT_STEP = "killed_at_step"
    BREAKER_OPENED = "breaker_opened"
    HEALTH_LOST = "health_lost"
    FOLLOWED = "followed"
    COLLECTED = "collected"
    FOLLOWED_ADDRESS = "followed_address"
    SERVED_HTTP = "served_http"
    SERVED_WEBSOCKET = "served_websocket"
    SERVED_GRPC = "served_grpc"


#: Too rare for seeds, each shown by a scenario instead: a poison pill needs a silence longer than a seed's workload; an
#: owner's own clock ends its belief before any renewal can learn of a loss, unless Redis itself lost writes; a result
#: between two leases came up in 1 of 160 runs.
SCENARIO_ONLY = frozenset({Mark.POISON_PILL, Mark.LEASE_LOST, Mark.COMPLETED_IN_PENDING})
MARKS_WANTED = tuple(mark for mark in Mark if mark not in SCENARIO_ONLY)

MEANINGS: dict[Mark, str] = {
    Mark.LEASE_EXPIRED: "an owner stopped by its own clock, before Redis gave the job away",
    Mark.LEASE_LOST: "a renewal learned that the lease belongs to nobody or to somebody else",
    Mark.STALE_SETTLEMENT: "the fence refused a settlement under an old epoch",
    Mark.DUPLICATE_SETTLEMENT: "a settlement was sent twice and had its effect once",
    Mark.SPOOL_USED: "a settlement waited in the spool for Redis to come back",
    Mark.CLAIM_REPLAYED: "a claim whose answer was lost was asked again and answered alike",
    Mark.COMPLETED_IN_PENDING: "a result was recorded after its lease ran out and before the next claim",
    Mark.POISON_PILL: "a job died because its owners kept dying",
    Mark.GHOST_EXECUTED: "a request was delivered once more, long after its sender had its answer or gave up",
    Mark.SCRIPTS_RELOADED: "Redis came back without its scripts and was given them again",
    Mark.KILLED_AT_STEP: "a gateway was killed between two steps of its own tasks",
    Mark.BREAKER_OPENED: "a circuit breaker opened",
    Mark.HEALTH_LOST: "an instance counted as unhealthy",
    Mark.FOLLOWED: "a new owner followed the run that an earlier one had begun",
    Mark.COLLECTED: "a new owner collected the result that an earlier one had left",
    Mark.FOLLOWED_ADDRESS: "a gateway called a service at the address to which it had moved",
    Mark.SERVED_HTTP: "a service did work that came over HTTP",
    Mark.SERVED_WEBSOCKET: "a service did work that came over WebSocket",
    Mark.SERVED_GRPC: "a service did work that came over gRPC",
}
#: The mark of a service that worked, by what it speaks.
SERVED: dict[ServiceProtocol, Mark] = {
    protocol: Mark(f"served_{protocol.value}") for protocol in ServiceProtocol
}


class Marks:
    """Counts what one run reached."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def note(self, mark: Mark) -> None:
        self.counts[mark.value] = self.counts.get(mark.value, 0) + 1


def marks_of_events(events: Iterable[Event]) -> dict[str, int]:
    """The marks that the event stream itself tells of."""
    marks = Marks()
    states: dict[str, JobState] = {}
    targets = {event: state for table in TRANSITIONS.values() for event, state in table.items()}
    for event in events:
        if event.type in REMARKS:
            continue
        if event.type is EventType.COMPLETED and states.get(event.job_id) is JobState.PENDING:
            marks.note(Mark.COMPLETED_IN_PENDING)
        if event.type is EventType.DEAD and _kind(event.detail) == "poison_pill":
            marks.note(Mark.POISON_PILL)
        states[event.job_id] = targets[event.type]
    return marks.counts


def _kind(detail: str) -> str:
    if not detail.startswith("{"):
        return ""
    fields = msgspec.json.decode(detail)
    return str(fields.get("kind", "")) if isinstance(fields, dict) else ""


def standing_faults(plan: FleetPlan) -> dict[str, int]:
    """Faults that last a whole run and are therefore injected at no moment."""
    standing = {
        FaultKind.CLOCK_SKEW: plan.redis_offset_s != 0.0,
        FaultKind.CLOCK_DRIFT: plan.redis_rate != 1.0,
        FaultKind.SERVICE_FAULTS: bool(plan.service_faults),
    }
    return {kind.value: 1 for kind, present in standing.items() if present}


@dataclass(slots=True)
class Coverage:
    """What a set of runs reached, and what it never did."""

    faults: dict[str, int] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    marks: dict[str, int] = field(default_factory=dict)

    def add(self, faults: Mapping[str, int], events: Mapping[str, int], marks: Mapping[str, int]) -> None:
        """Count one more run."""
        for total, one in ((self.faults, faults), (self.events, events), (self.marks, marks)):
            for name, count in one.items():
                total[name] = total.get(name, 0) + count

    def missing(self) -> list[str]:
        """The checks never reached: ``fault …``, ``event …`` or ``state …``."""
        wanted: list[tuple[str, Iterable[str], dict[str, int]]] = [
            ("fault", FaultKind, self.faults),
            ("event", EVENTS_WANTED, self.events),
            ("state", MARKS_WANTED, self.marks),
        ]
        return [f"{what} {name}" for what, names, seen in wanted for name in names if not seen.get(name)]

    def shares(self) -> dict[str, tuple[int, int]]:
        """Reached and wanted, by kind of check."""
        return {
            "faults": (sum(kind.value in self.faults for kind in FaultKind), len(FaultKind)),
            "events": (sum(event.value in self.events for event in EVENTS_WANTED), len(EVENTS_WANTED)),
            "states": (sum(mark.value in self.marks for mark in MARKS_WANTED), len(MARKS_WANTED)),
        }
