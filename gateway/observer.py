"""The event sink: what the gateway tells about itself, to telemetry and to tests alike (one of the seams).

The gateway calls these synchronously at the moment of the fact; an observer must neither block nor raise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

from gateway.breaker import BreakerState
from gateway.errors import FaultClass
from gateway.models import Grant, LeaseRef, QueueStats, Settlement, SweepReport, Verdict
from gateway.rollout import RolloutPolicy, Side
from gateway.strategies import Strategy


class AttemptObserver(Protocol):
    """Follows one attempt at one job."""

    @property
    def headers(self) -> Mapping[str, str]:
        """W3C trace headers for requests to the service."""
        ...

    def service_call(self, operation: str) -> AbstractContextManager[None]:
        """Wraps one exchange with the service: run, resume, query or cancel."""
        ...

    def faulted(self, fault_class: FaultClass, message: str) -> None:
        """The attempt failed with this fault."""
        ...

    def consumed(self, amounts: Mapping[str, int]) -> None:
        """The service said what the job used up, by kind."""
        ...

    def settled(self, settlement: Settlement, verdict: Verdict | None) -> None:
        """The lease ended; None while the settlement waits in the spool."""
        ...


class Observer(Protocol):
    """Follows one gateway process."""

    def attempt(
        self, grant: Grant, *, worker_id: str, connector_key: str, endpoint: str
    ) -> AbstractContextManager[AttemptObserver]:
        """Wraps everything between the claim of a job and its settlement."""
        ...

    def claimed(self, worker_id: str, grants: Sequence[Grant], round_trip_s: float) -> None: ...

    def owned(self, lease: LeaseRef, worker_id: str, until_s: float) -> None:
        """We believe to own this lease until this monotonic time."""
        ...

    def disowned(self, lease: LeaseRef, worker_id: str, reason: str) -> None:
        """We stopped believing: settled, lost, expired, released or dropped."""
        ...

    def health(self, worker_id: str, service: str, endpoint: str, *, healthy: bool, detail: str) -> None: ...

    def breaker(self, worker_id: str, service: str, endpoint: str, state: BreakerState) -> None: ...

    def left(self, worker_id: str, service: str, endpoint: str) -> None:
        """A worker gave an endpoint up, and its last job there has ended: nothing more is to be said of it."""
        ...

    def swept(self, report: SweepReport) -> None: ...

    def fired(self, schedule: str, outcome: str) -> None: ...

    def queue(self, stats: QueueStats) -> None: ...

    def store(self, *, available: bool) -> None: ...

    def spool(self, size: int) -> None: ...

    def loop_lag(self, lag_s: float) -> None: ...

    def rollout(self, worker_id: str, decision: str, policy: RolloutPolicy) -> None:
        """A rollout started, was changed or stopped by an operator, or was rolled back by its judge."""
        ...

    def rollout_attempt(self, worker_id: str, side: Side, *, failed: bool) -> None:
        """An attempt of a worker with a rollout ended at one of its sides."""
        ...

    def recovering(self, strategy: Strategy, count: int = 1) -> None:
        """A named recovery is under way, for so many jobs."""
        ...


class _SilentAttempt:
    """Its own context manager: generators would cost every job more than the rest of this class."""

    headers: Mapping[str, str] = {}

    def __enter__(self) -> AttemptObserver:
        return self

    def __exit__(self, *raised: object) -> None: ...

    def service_call(self, operation: str) -> AbstractContextManager[None]:
        return _NO_CONTEXT

    def faulted(self, fault_class: FaultClass, message: str) -> None: ...

    def consumed(self, amounts: Mapping[str, int]) -> None: ...

    def settled(self, settlement: Settlement, verdict: Verdict | None) -> None: ...


_NO_CONTEXT = nullcontext()
_SILENT_ATTEMPT = _SilentAttempt()


class SilentObserver:
    """Observes nothing: the default, and the base for observers interested in a few facts."""

    def attempt(
        self, grant: Grant, *, worker_id: str, connector_key: str, endpoint: str
    ) -> AbstractContextManager[AttemptObserver]:
        return _SILENT_ATTEMPT

    def claimed(self, worker_id: str, grants: Sequence[Grant], round_trip_s: float) -> None: ...

    def owned(self, lease: LeaseRef, worker_id: str, until_s: float) -> None: ...

    def disowned(self, lease: LeaseRef, worker_id: str, reason: str) -> None: ...

    def health(self, worker_id: str, service: str, endpoint: str, *, healthy: bool, detail: str) -> None: ...

    def breaker(self, worker_id: str, service: str, endpoint: str, state: BreakerState) -> None: ...

    def left(self, worker_id: str, service: str, endpoint: str) -> None: ...

    def swept(self, report: SweepReport) -> None: ...

    def fired(self, schedule: str, outcome: str) -> None: ...

    def queue(self, stats: QueueStats) -> None: ...

    def store(self, *, available: bool) -> None: ...

    def spool(self, size: int) -> None: ...

    def loop_lag(self, lag_s: float) -> None: ...

    def recovering(self, strategy: Strategy, count: int = 1) -> None: ...

    def rollout(self, worker_id: str, decision: str, policy: RolloutPolicy) -> None: ...

    def rollout_attempt(self, worker_id: str, side: Side, *, failed: bool) -> None: ...
