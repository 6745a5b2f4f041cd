"""The story of a run as bars and ticks on lanes, from which the page and the spans are made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.connectors.simulation.wire import JournalEntry, JournalEvent
from gateway.lifecycle import REMARKS, TRANSITIONS, EventType, is_terminal
from gateway.models import JobState
from simulator.oracle import HistoryLine
from simulator.plan import FaultKind, FleetPlan, Incident

if TYPE_CHECKING:
    from gateway.events import Event
    from simulator.run import Run

from simulator.redis_twin import EPOCH_S

_TARGETS = {event: state for table in TRANSITIONS.values() for event, state in table.items()}
_OPERATIONS = frozenset({FaultKind.CANCEL, FaultKind.REQUEUE, FaultKind.DUPLICATE_SUBMIT})
_EXECUTION_ENDS = frozenset({JournalEvent.FINISHED, JournalEvent.FAILED, JournalEvent.CANCELLED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Something that lasted.

    Attributes:
        kind: what it is, for its look: ``life``, ``own``, ``pending``, ``running``, ``execution``, ``fault`` …
        owner: the gateway it belongs to, for its colour; empty for none.
        about: the job it concerns; empty for none.
    """

    start_s: float
    end_s: float
    kind: str
    label: str
    owner: str = ""
    about: str = ""
    outcome: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """Something at one moment."""

    at_s: float
    kind: str
    label: str


@dataclass(slots=True)
class Lane:
    """One actor's line."""

    name: str
    bars: list[Bar] = field(default_factory=list)
    ticks: list[Tick] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """All lanes of a run, by group, and its lines in the order of their moments."""

    end_s: float
    safety_s: float
    groups: dict[str, list[Lane]]
    lines: tuple[HistoryLine, ...]


def story_of(run: Run) -> Story:
    """Arrange a run for telling."""
    plan, end_s = run.outcome.plan, run.outcome.simulated_s
    gateways = {f"gateway-{number}": Lane(f"gateway-{number}") for number in range(plan.gateways)}
    services = {name: Lane(name) for name in run.journals}
    redis, network, people = Lane("redis"), Lane("network"), Lane("operators")
    gateway_of = {
        f"{gateway}/gpu{number}": gateway for gateway in gateways for number in range(plan.services)
    }
    for lane in gateways.values():
        mine = [line for line in run.history if line.actor == lane.name]
        lane.bars += [*_lives(mine, end_s), *_ownerships(mine, end_s)]
        lane.ticks += [
            Tick(at_s=line.at_s, kind="kill", label="killed") for line in mine if line.kind == "kill"
        ]
    for name, lane in services.items():
        lane.bars += _executions(run.journals[name], gateway_of, end_s)
    everywhere = {**gateways, **services, "redis": redis}
    for incident in plan.incidents:
        elsewhere = people if incident.kind in _OPERATIONS else network
        _place(incident, plan.safety_s, everywhere.get(incident.target, elsewhere))
    return Story(
        end_s=end_s,
        safety_s=plan.safety_s,
        groups={
            "gateways": list(gateways.values()),
            "redis, network and people": [redis, network, people],
            "services": list(services.values()),
            "jobs": [
                _job_lane(job_id, events, plan, gateway_of, end_s)
                for job_id, events in sorted(_by_job(run.events).items())
            ],
        },
        lines=tuple(_lines(run)),
    )


def simulated_s(at_ms: int, plan: FleetPlan) -> float:
    """The simulated moment of a Redis time stamp, seconds; Redis' clock may be off and may drift."""
    return (at_ms / 1000 - EPOCH_S - plan.redis_offset_s) / plan.redis_rate


def _lines(run: Run) -> Iterator[HistoryLine]:
    """The history with each event at its own moment (the run reads the stream only at its end)."""
    told = [line for line in run.history if line.kind != "event"]
    events = [
        HistoryLine(
            max(0.0, round(simulated_s(event.at_ms, run.outcome.plan), 3)),
            "redis",
            " ".join(
                part for part in (event.type.value, event.job_id, event.worker_id, event.detail) if part
            ),
            "event",
            event.job_id,
        )
        for event in run.events
    ]
    # Stable: what was told at one moment stays in its order.
    yield from sorted([*told, *events], key=lambda line: line.at_s)


def _lives(lines: Iterable[HistoryLine], end_s: float) -> Iterator[Bar]:
    start_s: float | None = None
    number = 0
    for line in lines:
        if line.kind == "boot":
            number, start_s = number + 1, line.at_s
        elif line.kind in ("kill", "end") and start_s is not None:
            yield Bar(start_s=start_s, end_s=line.at_s, kind="life", label=f"life {number}", owner=line.actor)
            start_s = None
    if start_s is not None:
        yield Bar(start_s=start_s, end_s=end_s, kind="life", label=f"life {number}")


def _ownerships(lines: Iterable[HistoryLine], end_s: float) -> Iterator[Bar]:
    held: dict[str, HistoryLine] = {}

    def bar(line: HistoryLine, until_s: float, outcome: str) -> Bar:
        return Bar(
            start_s=line.at_s,
            end_s=until_s,
            kind="own",
            label=line.about,
            owner=line.actor,
            about=line.about,
            outcome=outcome,
        )

    for line in lines:
        if line.kind == "own":
            held[line.about] = line
        elif line.kind == "disown" and line.about in held:
            yield bar(held.pop(line.about), line.at_s, line.what)
        elif line.kind in ("kill", "end"):
            for lease in held.values():
                yield bar(
                    lease, line.at_s, "its process died" if line.kind == "kill" else "its process ended"
                )
            held.clear()
    for lease in held.values():
        yield bar(lease, end_s, "still held at the end")


def _executions(entries: Iterable[JournalEntry], gateway_of: dict[str, str], end_s: float) -> Iterator[Bar]:
    started: dict[str, list[JournalEntry]] = {}

    def bar(entry: JournalEntry, until_s: float, outcome: str) -> Bar:
        return Bar(
            start_s=entry.at_s,
            end_s=until_s,
            kind="execution",
            label=entry.id,
            owner=gateway_of.get(entry.worker, ""),
            about=entry.id,
            outcome=outcome,
        )

    for entry in entries:
        if entry.event is JournalEvent.STARTED:
            started.setdefault(entry.id, []).append(entry)
        elif entry.event is JournalEvent.FORGOTTEN:
            for first in started.pop(entry.id, []):
                yield bar(first, entry.at_s, "forgotten")
        elif entry.event in _EXECUTION_ENDS and started.get(entry.id):
            alike = [first for first in started[entry.id] if first.execution == entry.execution]
            first = (alike or started[entry.id])[0]
            started[entry.id].remove(first)
            yield bar(first, entry.at_s, entry.event.value)
    for left in started.values():
        for first in left:
            yield bar(first, end_s, "still running at the end")


def _place(incident: Incident, safety_s: float, lane: Lane) -> None:
    kind = incident.kind
    label = kind.value if lane.name == incident.target else f"{kind.value} {incident.target}"
    lasts = incident.for_s > 0 and kind not in (FaultKind.KILL, FaultKind.KILL_AT_STEP, FaultKind.TERMINATE)
    if lasts:
        end_s = min(incident.at_s + incident.for_s, max(safety_s, incident.at_s))
        lane.bars.append(Bar(start_s=incident.at_s, end_s=end_s, kind="fault", label=label))
    else:
        lane.ticks.append(Tick(at_s=incident.at_s, kind="fault", label=label))


def _by_job(events: Iterable[Event]) -> dict[str, list[Event]]:
    by_job: dict[str, list[Event]] = {}
    for event in events:
        by_job.setdefault(event.job_id, []).append(event)
    return by_job


def _job_lane(
    job_id: str, events: list[Event], plan: FleetPlan, gateway_of: dict[str, str], end_s: float
) -> Lane:
    lane = Lane(job_id)
    state: JobState | None = None
    since_s, owner = 0.0, ""

    def close(until_s: float, outcome: str) -> None:
        if state is not None and not is_terminal(state):
            lane.bars.append(
                Bar(
                    start_s=since_s,
                    end_s=max(since_s, until_s),
                    kind=state.value,
                    label=owner or state.value,
                    owner=gateway_of.get(owner, ""),
                    about=job_id,
                    outcome=outcome,
                )
            )

    for event in events:
        at_s = max(0.0, simulated_s(event.at_ms, plan))
        text = f"{event.type.value} {event.worker_id} {event.detail}".strip()
        if event.type in REMARKS:
            lane.ticks.append(Tick(at_s=at_s, kind="refused", label=text))
            continue
        target = _TARGETS[event.type]
        if event.type is EventType.CANCEL_REQUESTED:
            lane.ticks.append(Tick(at_s=at_s, kind="cancel", label=text))
            continue
        close(at_s, text)
        state, since_s = target, at_s
        owner = event.worker_id if target is JobState.RUNNING else ""
        if is_terminal(target):
            lane.ticks.append(Tick(at_s=at_s, kind=target.value, label=text))
    close(end_s, "not ended")
    return lane
