"""One worker: a claim loop's view of its service instance: slots, health, breaker and served classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gateway.breaker import Breaker, BreakerState, HealthGate
from gateway.config import HealthConfig, WorkerConfig
from gateway.connector import Connector
from gateway.errors import FaultClass
from gateway.matching import matches
from gateway.models import ClassId, JobClass, WorkerId
from gateway.observer import Observer
from gateway.retry import ENDPOINT_FAULTS


class Worker:
    """State of one worker; all methods are synchronous.

    Args:
        worker_id: ``machine/name``; a label only, nothing is ever parsed from it.
        config: what the operator asked for.
        connector: speaks to the one instance.
        now_s: monotonic clock.
        observer: told of changes of health and breaker.
    """

    def __init__(
        self,
        worker_id: WorkerId,
        config: WorkerConfig,
        connector: Connector,
        *,
        health: HealthConfig,
        now_s: Callable[[], float],
        observer: Observer,
        machine: str,
    ) -> None:
        self.worker_id = worker_id
        self.config = config
        self.connector = connector
        self.url = connector.setup.endpoint.url
        self.slots = config.slots
        self.running = 0
        self.gate = HealthGate(health.health_policy())
        self.breaker = Breaker(health.breaker_policy())
        self.health_detail = "not probed yet"
        self._now_s = now_s
        self._observer = observer
        self._breaker_told = BreakerState.CLOSED
        self.capabilities: Mapping[str, Any] = {
            "service": connector.service,
            "connector": connector.key,
            "machine": machine,
            "worker": worker_id,
            **config.capabilities,
        }

    @property
    def service(self) -> str:
        return self.connector.service

    def serves(self, job_class: JobClass) -> bool:
        """Whether jobs of this class may run here at all."""
        return job_class.service == self.service and matches(job_class.requires, self.capabilities)

    def served(self, classes: Mapping[ClassId, JobClass]) -> tuple[ClassId, ...]:
        """The classes this worker can run."""
        return tuple(class_id for class_id, job_class in classes.items() if self.serves(job_class))

    def admissible(self) -> int:
        """How many jobs may be claimed now: free slots, as far as health and breaker let through."""
        if not self.gate.healthy:
            return 0
        return self.breaker.admits(self._now_s(), self.slots - self.running)

    def refusal(self) -> str:
        """Why nothing is claimed now; empty when something may be."""
        if not self.gate.healthy:
            return f"unhealthy: {self.health_detail}"
        if self.running >= self.slots:
            return "all slots busy"
        if self.admissible() == 0:
            return f"breaker {self.breaker.state(self._now_s()).value}"
        return ""

    def job_started(self) -> None:
        self.running += 1
        assert self.running <= self.slots, f"{self.worker_id}: {self.running} jobs in {self.slots} slots"
        self.breaker.started(self._now_s())

    def job_ended(self) -> None:
        assert self.running > 0, f"{self.worker_id}: a job ended that never started"
        self.running -= 1

    def probed(self, *, healthy: bool, detail: str) -> bool:
        """Take in a health probe; returns whether the verdict changed."""
        self.health_detail = detail
        changed = self.gate.record(healthy)
        self._observer.health(
            self.worker_id, self.service, self.config.endpoint, healthy=self.gate.healthy, detail=detail
        )
        return changed

    def endpoint_spoke(self, fault_class: FaultClass | None) -> None:
        """Feed the breaker with the end of one attempt: None for success."""
        now_s = self._now_s()
        if fault_class is None:
            self.breaker.succeeded(now_s)
        elif fault_class is FaultClass.AUTH:
            self.breaker.trip(now_s)
        elif fault_class in ENDPOINT_FAULTS:
            self.breaker.faulted(now_s)
        elif fault_class in (FaultClass.INTERRUPTED, FaultClass.LEASE_LOST, FaultClass.INTERNAL):
            self.breaker.undecided()
        else:
            self.breaker.succeeded(now_s)
        state = self.breaker.state(now_s)
        if state is not self._breaker_told:
            self._breaker_told = state
            self._observer.breaker(self.worker_id, self.service, self.config.endpoint, state)
