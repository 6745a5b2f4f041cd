"""What the simulation sees beyond the event stream: beliefs of ownership, and a readable history with a digest."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

from gateway.breaker import BreakerState
from gateway.errors import FaultClass
from gateway.models import Grant, JobId, LeaseRef, Settlement, SettlementKind, Verdict
from gateway.observer import AttemptObserver, SilentObserver
from simulator.coverage import Mark, Marks
from simulator.invariants import Testimony
from simulator.network import Node


@dataclass(frozen=True, slots=True)
class HistoryLine:
    """Who did what when (simulated seconds).

    Attributes:
        kind: ``boot``, ``kill``, ``end``, ``own``, ``disown`` or ``event`` where a report draws it; else empty.
        about: the job it concerns, if one.
    """

    at_s: float
    actor: str
    what: str
    kind: str = ""
    about: str = ""

    def text(self) -> str:
        return f"{self.at_s:10.4f}  {self.actor:<12} {self.what}"


class History:
    """Everything worth telling of one run, in order."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self._now_s = now_s
        self._digest = hashlib.sha256()
        self.lines: list[HistoryLine] = []

    def tell(self, actor: str, what: str, *, kind: str = "", about: str = "") -> None:
        line = HistoryLine(round(self._now_s(), 6), actor, what, kind, about)
        self.lines.append(line)
        self._digest.update(line.text().encode() + b"\n")

    def digest(self) -> str:
        """SHA-256 of the history so far: equal for equal runs, in any process."""
        return self._digest.hexdigest()


@dataclass(slots=True)
class _Belief:
    node: Node
    worker_id: str
    epoch: int
    until_s: float


@dataclass(slots=True)
class Beliefs:
    """Who believes to own what: at most one live owner per job at any moment.

    Attributes:
        testimony: what else the gateways were told and said, judged at the end of the run.
    """

    now_s: Callable[[], float]
    violations: list[str] = field(default_factory=list)
    testimony: Testimony = field(default_factory=Testimony)
    _held: dict[JobId, dict[int, _Belief]] = field(default_factory=dict)

    def owned(self, lease: LeaseRef, node: Node, worker_id: str, until_s: float) -> None:
        """A gateway began to believe, or believes for longer."""
        now_s = self.now_s()
        held = self._held.setdefault(lease.job_id, {})
        for other in held.values():
            if other.epoch != lease.epoch and other.node.alive and other.until_s > now_s:
                self.violations.append(
                    f"{lease.job_id}: {worker_id} owns epoch {lease.epoch} while {other.worker_id} believes in "
                    f"{other.epoch} for {other.until_s - now_s:.3f} s more"
                )
        held[lease.epoch] = _Belief(node, worker_id, lease.epoch, until_s)

    def disowned(self, lease: LeaseRef) -> None:
        self._held.get(lease.job_id, {}).pop(lease.epoch, None)


#: What the reason of a disownment says about the state that was reached.
_REASONS = {
    "expired": Mark.LEASE_EXPIRED,
    "lost": Mark.LEASE_LOST,
    f"settled {Verdict.STALE.value}": Mark.STALE_SETTLEMENT,
    f"settled {Verdict.DUPLICATE.value}": Mark.DUPLICATE_SETTLEMENT,
}


class _AttemptOracle:
    """Follows one attempt: what the service was asked for, and how the lease ended."""

    def __init__(self, node: Node, marks: Marks, testimony: Testimony) -> None:
        self.headers: dict[str, str] = {}
        self._node = node
        self._marks = marks
        self._testimony = testimony
        self._calls: list[str] = []

    def service_call(self, operation: str) -> AbstractContextManager[None]:
        self._calls.append(operation)
        if operation == "resume" and self._node.alive:
            self._marks.note(Mark.FOLLOWED)
        return nullcontext()

    def faulted(self, fault_class: FaultClass, message: str) -> None: ...

    def consumed(self, amounts: Mapping[str, int]) -> None: ...

    def settled(self, settlement: Settlement, verdict: Verdict | None) -> None:
        if not self._node.alive:
            return
        self._testimony.settled(settlement, verdict)
        if self._calls == ["query"] and settlement.kind is SettlementKind.COMPLETED:
            self._marks.note(Mark.COLLECTED)


class OracleObserver(SilentObserver):
    """The event sink of one simulated gateway.

    Args:
        redis_us: Redis' own time now, microseconds; epochs are made from it, so an epoch older than the claim that
            brought it was granted to an earlier sending of the same claim.
    """

    def __init__(
        self, node: Node, beliefs: Beliefs, history: History, marks: Marks, redis_us: Callable[[], float]
    ) -> None:
        self._node = node
        self._beliefs = beliefs
        self._history = history
        self._marks = marks
        self._redis_us = redis_us
        self._seen: dict[LeaseRef, None] = {}
        self._booted_us = redis_us()

    def owned(self, lease: LeaseRef, worker_id: str, until_s: float) -> None:
        if not self._node.alive:
            return
        if lease not in self._seen:
            self._seen[lease] = None
            what = f"{worker_id} owns {lease.job_id} until {until_s:.3f}"
            self._history.tell(self._node.name, what, kind="own", about=lease.job_id)
        self._beliefs.owned(lease, self._node, worker_id, until_s)

    def disowned(self, lease: LeaseRef, worker_id: str, reason: str) -> None:
        if self._node.alive:
            self._seen.pop(lease, None)
            what = f"{worker_id} lets go of {lease.job_id}: {reason}"
            self._history.tell(self._node.name, what, kind="disown", about=lease.job_id)
            self._beliefs.disowned(lease)
            if reason in _REASONS:
                self._marks.note(_REASONS[reason])

    @contextmanager
    def attempt(
        self, grant: Grant, *, worker_id: str, connector_key: str, endpoint: str
    ) -> Iterator[AttemptObserver]:
        yield _AttemptOracle(self._node, self._marks, self._beliefs.testimony)

    def claimed(self, worker_id: str, grants: Sequence[Grant], round_trip_s: float) -> None:
        if self._node.alive:
            self._beliefs.testimony.claimed(self, self._booted_us, worker_id, grants)
        # A tenth more than the round trip: Redis' clock may run a few per cent off the fleet's.
        oldest_us = self._redis_us() - 1.1 * round_trip_s * 1e6
        if self._node.alive and any(grant.epoch < oldest_us for grant in grants):
            self._history.tell(self._node.name, f"{worker_id} is told again what it was granted before")
            self._marks.note(Mark.CLAIM_REPLAYED)

    def breaker(self, worker_id: str, service: str, endpoint: str, state: BreakerState) -> None:
        if self._node.alive:
            self._history.tell(self._node.name, f"{worker_id}: breaker of {endpoint} is {state.value}")
            if state is BreakerState.OPEN:
                self._marks.note(Mark.BREAKER_OPENED)

    def health(self, worker_id: str, service: str, endpoint: str, *, healthy: bool, detail: str) -> None:
        if self._node.alive:
            self._beliefs.testimony.probed(self, worker_id, endpoint, healthy=healthy)
            if not healthy:
                self._marks.note(Mark.HEALTH_LOST)

    def left(self, worker_id: str, service: str, endpoint: str) -> None:
        if self._node.alive:
            self._history.tell(self._node.name, f"{worker_id} has done with {endpoint}")
            self._beliefs.testimony.left(self, worker_id, endpoint)

    def spool(self, size: int) -> None:
        if self._node.alive:
            if size:
                self._marks.note(Mark.SPOOL_USED)
            self._history.tell(self._node.name, f"spool holds {size}")
