"""One endpoint of a worker: its connector, health, breaker, slots, and what it can do. All methods are synchronous."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gateway.breaker import Breaker, BreakerState, HealthGate
from gateway.config import HealthConfig
from gateway.connector import Connector
from gateway.discovery import Place
from gateway.errors import FaultClass
from gateway.matching import matches
from gateway.models import ClassId, JobClass
from gateway.observer import Observer
from gateway.retry import ENDPOINT_FAULTS

if TYPE_CHECKING:
    from gateway.worker import Worker


class BoundEndpoint:
    """One instance that a worker sends jobs to.

    Args:
        worker: whose endpoint it is.
        place: where it is, and who is expected to answer there.
        connector: speaks to it.
        now_s: monotonic clock.
        observer: told of changes of health and breaker.
    """

    def __init__(
        self,
        worker: Worker,
        place: Place,
        connector: Connector,
        *,
        health: HealthConfig,
        now_s: Callable[[], float],
        observer: Observer,
    ) -> None:
        self.worker = worker
        self.place = place
        self.connector = connector
        self.running = 0
        #: No longer the worker's: it finishes what it runs.
        self.left = False
        #: Probes that have not ended: while there is one, the connector stays open.
        self.probing = 0
        self.gate = HealthGate(health.health_policy())
        self.breaker = Breaker(health.breaker_policy())
        self.health_detail = "not probed yet"
        self._probed: Mapping[str, Any] = {}
        self._now_s = now_s
        self._observer = observer
        self._breaker_told = BreakerState.CLOSED

    @property
    def url(self) -> str:
        return self.place.url

    @property
    def capabilities(self) -> dict[str, Any]:
        """What jobs may require, from weak to strong: probed, registered, labels of ours, configured."""
        return {
            **self._probed,
            **self.place.capabilities,
            **self.worker.labels,
            **self.worker.config.capabilities,
        }

    def serves(self, job_class: JobClass) -> bool:
        """Whether jobs of this class may run here at all."""
        return job_class.service == self.worker.service and matches(job_class.requires, self.capabilities)

    def served(self, classes: Mapping[ClassId, JobClass]) -> tuple[ClassId, ...]:
        """The classes that may run here."""
        return tuple(class_id for class_id, job_class in classes.items() if self.serves(job_class))

    def admissible(self) -> int:
        """How many jobs may be claimed for it now: free slots, as far as health and breaker let through."""
        if not self.gate.healthy or self.left:
            return 0
        free = min(self.worker.slots_each - self.running, self.worker.slots - self.worker.running)
        return self.breaker.admits(self._now_s(), free)

    def refusal(self) -> str:
        """Why nothing is claimed for it now; empty when something may be."""
        if not self.gate.healthy:
            return f"unhealthy: {self.health_detail}"
        if self.running >= self.worker.slots_each:
            return "all slots busy"
        if self.admissible() <= 0:
            return f"breaker {self.breaker_state.value}"
        return ""

    @property
    def breaker_state(self) -> BreakerState:
        return self.breaker.state(self._now_s())

    @property
    def ejected(self) -> bool:
        """Whether its breaker keeps jobs away (a half-open one lets one try)."""
        return self.breaker_state is not BreakerState.CLOSED

    def job_started(self) -> None:
        self.running += 1
        self.breaker.started(self._now_s())

    def job_ended(self) -> None:
        assert self.running > 0, f"{self.worker.worker_id}: a job ended that never started"
        self.running -= 1

    def probed(self, *, healthy: bool, detail: str) -> bool:
        """Take in a health probe; returns whether the verdict changed."""
        self.health_detail = detail
        changed = self.gate.record(healthy)
        self._observer.health(
            self.worker.worker_id, self.worker.service, self.url, healthy=self.gate.healthy, detail=detail
        )
        return changed

    def forgotten(self) -> None:
        """The worker gave it up and its connector is closed."""
        if all(other.url != self.url for other in (*self.worker.endpoints, *self.worker.leaving)):
            self._observer.left(self.worker.worker_id, self.worker.service, self.url)

    def told(self, capabilities: Mapping[str, Any]) -> bool:
        """Take in probed capabilities; returns whether something changed."""
        before = self.capabilities
        self._probed = dict(capabilities)
        return self.capabilities != before

    def renamed(self, place: Place) -> bool:
        """Take in what the registry now says of the same instance; returns whether its capabilities changed."""
        before = self.capabilities
        self.place = place
        return self.capabilities != before

    def spoke(self, fault_class: FaultClass | None) -> None:
        """Feed the breaker with the end of one attempt: None for success."""
        now_s = self._now_s()
        if fault_class is None:
            self.breaker.succeeded(now_s)
        elif fault_class is FaultClass.AUTH:
            self.breaker.trip(now_s)
        elif fault_class in ENDPOINT_FAULTS:
            self.breaker.faulted(now_s, may_open=self.worker.may_eject(self))
        elif fault_class in (FaultClass.INTERRUPTED, FaultClass.LEASE_LOST, FaultClass.INTERNAL):
            self.breaker.undecided()
        else:
            self.breaker.succeeded(now_s)
        state = self.breaker.state(now_s)
        if state is not self._breaker_told:
            self._breaker_told = state
            self._observer.breaker(self.worker.worker_id, self.worker.service, self.url, state)

    def status(self) -> dict[str, Any]:
        """What people and the registry are told of it."""
        return {
            "url": self.url,
            "instance": self.place.instance,
            "origin": self.place.origin.value,
            "healthy": self.gate.healthy,
            "breaker": self.breaker_state.value,
            "running": self.running,
            "refusal": "leaving" if self.left else self.refusal(),
            "capabilities": self.capabilities,
        }
