"""Promises beyond the lifecycle: the events compared with what the store holds and gateways were told (pure).

The auditor judges the events by themselves, as on a production queue. A simulated run knows more: every job's record
and own stream at the end, and every answer a gateway heard. Each promise here was written for a deliberately broken
variant (``simulator mutants``) that the events alone need not expose.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from gateway.breaker import HealthPolicy
from gateway.events import Event
from gateway.lifecycle import REMARKS, EventType, is_terminal
from gateway.models import Grant, JobState, LeaseRef, ProgressKind, Settlement, SettlementKind, Verdict
from simulator.shares import Asked, PlannedShares, limits_kept, running_counted, turns_taken

#: Two readings of the clock in one script call may fall on both sides of a millisecond; twice that is tolerated.
ROUNDING_MS = 2
#: Progress that lets a job start counting its recoveries afresh (``progress.lua``).
BEST_STEP = 0.01
# Places in a job's record, counted from 0 (``_prelude.lua`` counts from 1).
STATE, ATTEMPTS, RECOVERIES, SETTLED_KIND = 0, 5, 6, 19


class Promise(enum.StrEnum):
    """Names of the promises, first word of each finding."""

    ATTEMPTS_CHARGED = "attempts_charged"
    RECOVERIES_COUNTED = "recoveries_counted"
    PROGRESS_FENCED = "progress_fenced"
    ENDED_BY_OWNER = "ended_by_owner"
    SETTLEMENT_KEPT = "settlement_kept"
    ANSWER_RECORDED = "answer_recorded"
    CLAIMS_REPLAYED = "claims_replayed"
    HEALTH_STEADY = "health_steady"
    UNIQUE_RELEASED = "unique_released"
    LIMITS_KEPT = "limits_kept"
    RUNNING_COUNTED = "running_counted"
    TURNS_TAKEN = "turns_taken"


@dataclass(frozen=True, slots=True)
class StreamEntry:
    """One entry of a job's own stream, Redis time in milliseconds."""

    at_ms: int
    kind: str
    epoch: int
    value: float


@dataclass(slots=True)
class _Life:
    """One process' claims of one worker, as it heard of them."""

    booted_us: float
    heard: dict[LeaseRef, None] = field(default_factory=dict)


@dataclass(slots=True)
class _Gate:
    """The verdicts about one endpoint's health since the last change."""

    healthy: bool = False
    since: int = 0
    ever_healthy: bool = False


class Testimony:
    """What the gateways of one run were told and said; filled by their observers while they live.

    Args:
        health: the hysteresis that their gates promise.
    """

    def __init__(self, health: HealthPolicy | None = None) -> None:
        self._health = health or HealthPolicy()
        self._gates: dict[tuple[object, str, str], _Gate] = {}
        self._lives: dict[str, dict[object, _Life]] = {}
        self._accepted: dict[LeaseRef, SettlementKind] = {}
        self.violations: list[str] = []

    def claimed(self, life: object, booted_us: float, worker_id: str, grants: Sequence[Grant]) -> None:
        """A process (``life``, up since this Redis time) heard the answer to a claim."""
        found = self._lives.setdefault(worker_id, {}).setdefault(life, _Life(booted_us))
        found.heard.update(dict.fromkeys(LeaseRef(grant.job_id, grant.epoch) for grant in grants))

    def settled(self, settlement: Settlement, verdict: Verdict | None) -> None:
        """A process that lives on has done with a lease."""
        if verdict is None and settlement.kind is not SettlementKind.RELEASED:
            self.violations.append(
                f"{Promise.SETTLEMENT_KEPT}: {settlement.job_id}: {settlement.kind.value} under epoch "
                f"{settlement.epoch} was dropped without an answer of the store"
            )
        if verdict is Verdict.ACCEPTED:
            self._accepted[settlement.lease] = settlement.kind

    def left(self, life: object, worker_id: str, endpoint: str) -> None:
        """A worker has done with an endpoint; should it ever come back, it is a new one."""
        self._gates.pop((life, worker_id, endpoint), None)

    def probed(self, life: object, worker_id: str, endpoint: str, *, healthy: bool) -> None:
        """A health probe was taken in; the gate says ``healthy`` now."""
        gate = self._gates.setdefault((life, worker_id, endpoint), _Gate())
        gate.since += 1
        if healthy == gate.healthy:
            return
        needed = self._health.fail_after
        if healthy:
            needed = self._health.pass_after if gate.ever_healthy else 1
        if gate.since < needed:
            self.violations.append(
                f"{Promise.HEALTH_STEADY}: {worker_id}: turned {'healthy' if healthy else 'unhealthy'} "
                f"after {gate.since} probes instead of {needed}"
            )
        gate.healthy, gate.since, gate.ever_healthy = healthy, 0, gate.ever_healthy or healthy

    def unrecorded(self, events: Sequence[Event]) -> Iterator[str]:
        """Settlements called accepted that no event tells of: an answer to somebody else's question."""
        recorded = {LeaseRef(event.job_id, event.epoch) for event in events if event.type in _SETTLED}
        for lease, kind in self._accepted.items():
            if lease not in recorded:
                yield (
                    f"{Promise.ANSWER_RECORDED}: {lease.job_id}: {kind.value} under epoch {lease.epoch} was "
                    "called accepted, but no event tells of it"
                )

    def unheard(self, events: Sequence[Event]) -> Iterator[str]:
        """Grants that lapsed unheard although their claim loop, which asks again until it knows, went on claiming."""
        for event in events:
            if event.type is not EventType.RECOVERED:
                continue
            lease = LeaseRef(event.job_id, event.epoch)
            lives = [
                life for life in self._lives.get(event.worker_id, {}).values() if life.booted_us < lease.epoch
            ]
            if not lives:
                continue
            life = max(lives, key=lambda one: one.booted_us)
            later = (lease.epoch < other.epoch < event.at_ms * 1000 for other in life.heard)
            if lease not in life.heard and any(later):
                yield (
                    f"{Promise.CLAIMS_REPLAYED}: {lease.job_id}: {event.worker_id} was never told of epoch "
                    f"{lease.epoch} and claimed further jobs meanwhile"
                )


#: Ends of a lease that a settlement causes.
_SETTLED = frozenset(
    {
        EventType.COMPLETED,
        EventType.DEAD,
        EventType.EXPIRED,
        EventType.CANCELLED,
        EventType.RETRIED,
        EventType.RETRIED_LATER,
        EventType.SNOOZED,
        EventType.SNOOZED_LATER,
        EventType.RELEASED,
        EventType.RELEASED_LATER,
    }
)
_FAILED = frozenset({EventType.RETRIED, EventType.RETRIED_LATER})


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """One run at its end.

    Attributes:
        events: all events in order.
        records: the store's record of every job.
        streams: every job's own stream, where it has one.
        testimony: what gateways were told and said.
        unique: who has each unique key at the end, and whether only for a period after that job's end.
        in_order: no request arrives late or twice in this run; else a claim that its sender has long had answered
            may be carried out once more, for nobody, and its lease has to lapse.
        shares, asked: what the plan says of tenants and limits, and of each job's place.
        usage: the store's counts of running jobs.
    """

    events: Sequence[Event]
    records: Mapping[str, Sequence[str]]
    streams: Mapping[str, Sequence[StreamEntry]]
    testimony: Testimony
    in_order: bool
    unique: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    shares: PlannedShares = field(default_factory=PlannedShares)
    asked: Mapping[str, Asked] = field(default_factory=dict)
    usage: Mapping[str, int] = field(default_factory=dict)


def broken_promises(story: Story) -> list[str]:
    """Everything that does not fit together; empty is good."""
    found = [*story.testimony.violations, *story.testimony.unrecorded(story.events)]
    if story.in_order:
        found += story.testimony.unheard(story.events)
    found += _unique_released(story)
    found += [f"{Promise.LIMITS_KEPT}: {text}" for text in limits_kept(story.events, story.shares)]
    found += [f"{Promise.RUNNING_COUNTED}: {text}" for text in running_counted(story.records, story.usage)]
    found += [
        f"{Promise.TURNS_TAKEN}: {text}" for text in turns_taken(story.events, story.asked, story.shares)
    ]
    by_job: dict[str, list[Event]] = {}
    for event in story.events:
        if event.type not in REMARKS:
            by_job.setdefault(event.job_id, []).append(event)
    for job_id, events in by_job.items():
        record, entries = story.records.get(job_id), story.streams.get(job_id, ())
        found += _ended_by_owner(job_id, events)
        found += _progress_fenced(job_id, events, entries)
        if record is not None:
            found += _attempts_charged(job_id, events, record)
            found += _recoveries_counted(job_id, events, entries, record)
    return found


def _unique_released(story: Story) -> list[str]:
    """A unique key is free once its job has ended, unless it is held for a period."""
    return [
        f"{Promise.UNIQUE_RELEASED}: {job_id}: ended {record[STATE]} and still has the unique key {key!r}"
        for key, (job_id, held) in story.unique.items()
        if not held and (record := story.records.get(job_id)) and is_terminal(JobState(record[STATE]))
    ]


def _kind(event: Event) -> str:
    """What a dead letter's event says it died of."""
    if not event.detail.startswith("{"):
        return ""
    fields = msgspec.json.decode(event.detail)
    return str(fields.get("kind", "")) if isinstance(fields, dict) else ""


def _lapsed(event: Event) -> bool:
    """Whether a lease ended by itself (a lapsed lease of a job to be cancelled is not counted here)."""
    return event.type is EventType.RECOVERED or (
        event.type is EventType.DEAD and _kind(event) == "poison_pill"
    )


def _attempts_charged(job_id: str, events: Sequence[Event], record: Sequence[str]) -> list[str]:
    """Failures charge an attempt; releases, snoozes and lapsed leases never do."""
    charged = 0
    for event in events:
        if event.type is EventType.REQUEUED:
            charged = 0
        elif event.type in _FAILED:
            charged += 1
    last = events[-1]
    # A deadline that ends a job under a lease does so in place of a retry.
    settled = last.type is EventType.DEAD or (last.type is EventType.EXPIRED and last.worker_id)
    if settled and not _lapsed(last) and record[SETTLED_KIND] == "failed":
        charged += 1
    if int(record[ATTEMPTS]) == charged:
        return []
    return [f"{Promise.ATTEMPTS_CHARGED}: {job_id}: {record[ATTEMPTS]} attempts for {charged} failures"]


def _recoveries_counted(
    job_id: str, events: Sequence[Event], entries: Sequence[StreamEntry], record: Sequence[str]
) -> list[str]:
    """Leases that lapse without progress in between are counted, or a poison pill could kill for ever."""
    notes = [entry for entry in entries if entry.kind == ProgressKind.PROGRESS.value]
    best, at, counted = 0.0, 0, 0
    for event in events:
        while at < len(notes) and notes[at].at_ms < event.at_ms - ROUNDING_MS:
            best, counted = _progressed(notes[at], best, counted)
            at += 1
        if event.type is EventType.REQUEUED:
            best, counted = 0.0, 0
        elif _lapsed(event):
            counted += 1
    for note in notes[at:]:
        best, counted = _progressed(note, best, counted)
    if int(record[RECOVERIES]) >= counted:
        return []
    return [
        f"{Promise.RECOVERIES_COUNTED}: {job_id}: its leases lapsed {counted} times without progress, "
        f"{record[RECOVERIES]} are counted"
    ]


def _progressed(note: StreamEntry, best: float, counted: int) -> tuple[float, int]:
    return (note.value, 0) if note.value >= best + BEST_STEP else (best, counted)


def _progress_fenced(job_id: str, events: Sequence[Event], entries: Sequence[StreamEntry]) -> list[str]:
    """Nobody writes into a job's stream but the owner of the moment."""
    if not entries:
        return []
    leases: dict[int, tuple[int, int | None]] = {}
    running = None
    for event in events:
        if event.type is EventType.CANCEL_REQUESTED:
            continue
        if running is not None:
            leases[running] = (leases[running][0], event.at_ms)
            running = None
        if event.type is EventType.CLAIMED:
            running = event.epoch
            leases[running] = (event.at_ms, None)
    for entry in entries:
        begin_ms, end_ms = leases.get(entry.epoch, (None, None))
        inside = begin_ms is not None and begin_ms - ROUNDING_MS <= entry.at_ms
        if not inside or (end_ms is not None and entry.at_ms > end_ms + ROUNDING_MS):
            return [
                f"{Promise.PROGRESS_FENCED}: {job_id}: {entry.kind} under epoch {entry.epoch} was taken at "
                f"{entry.at_ms} ms, outside of its lease ({begin_ms} to {end_ms} ms)"
            ]
    return []


def _ended_by_owner(job_id: str, events: Sequence[Event]) -> list[str]:
    """A running job is cancelled through its owner: until the owner has let go, its slot is not free."""
    running = False
    for event in events:
        if event.type is EventType.CANCELLED and running and not event.worker_id:
            return [f"{Promise.ENDED_BY_OWNER}: {job_id}: cancelled under its owner of epoch {event.epoch}"]
        if event.type is not EventType.CANCEL_REQUESTED:
            running = event.type is EventType.CLAIMED
    return []
