"""One worker: a claim loop's view of its endpoints (one, or a pool) and of what they can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gateway.config import WorkerConfig
from gateway.discovery import Place
from gateway.endpoints import BoundEndpoint
from gateway.models import WorkerId


class Worker:
    """State of one worker; all methods are synchronous.

    Args:
        worker_id: ``machine/name``; a label only, nothing is ever parsed from it.
        name: its name in the configuration.
        config: what the operator asked for.
        connector_key: how its endpoints are spoken to.
        service: kind of backend that the connector speaks to.
        machine: label of this host.
    """

    def __init__(
        self,
        worker_id: WorkerId,
        name: str,
        config: WorkerConfig,
        *,
        connector_key: str,
        service: str,
        machine: str,
    ) -> None:
        self.worker_id = worker_id
        self.name = name
        self.config = config
        self.connector_key = connector_key
        self.service = service
        self.slots_each = config.slots
        self.labels: dict[str, Any] = {
            "service": service,
            "connector": connector_key,
            "machine": machine,
            "worker": worker_id,
        }
        #: Where jobs may go; empty while nothing resolves.
        self.endpoints: list[BoundEndpoint] = []
        #: Endpoints that were the worker's and still finish a job.
        self.leaving: list[BoundEndpoint] = []
        #: Where a rollout sends its share of the jobs; never claimed for by themselves.
        self.candidates: list[BoundEndpoint] = []
        #: Why the endpoints are not (all) those that one might expect.
        self.problem = "no endpoint yet"

    @property
    def slots(self) -> int:
        """Jobs at once: so many on each endpoint."""
        return self.slots_each * len(self.endpoints)

    @property
    def running(self) -> int:
        return sum(endpoint.running for endpoint in self.bound)

    @property
    def bound(self) -> tuple[BoundEndpoint, ...]:
        """Every endpoint that may run a job of this worker."""
        return (*self.endpoints, *self.leaving, *self.candidates)

    @property
    def healthy(self) -> bool:
        """Whether at least one endpoint is."""
        return any(endpoint.gate.healthy for endpoint in self.endpoints)

    @property
    def url(self) -> str:
        """Its endpoints' addresses, for people."""
        return ", ".join(endpoint.url for endpoint in self.endpoints)

    @property
    def capabilities(self) -> Mapping[str, Any]:
        """What the first endpoint can do; of a worker without one, what it is configured to."""
        if self.endpoints:
            return self.endpoints[0].capabilities
        return {**self.labels, **self.config.capabilities}

    def by_load(self) -> list[BoundEndpoint]:
        """Its endpoints, the least busy first; of equally busy ones the longest unused."""
        return sorted(self.endpoints, key=lambda endpoint: endpoint.running)

    def used(self, endpoint: BoundEndpoint) -> None:
        """Let other endpoints of equal load come first from now on."""
        if len(self.endpoints) > 1 and endpoint in self.endpoints:
            self.endpoints.remove(endpoint)
            self.endpoints.append(endpoint)

    def admissible(self) -> int:
        """How many jobs may be claimed now."""
        return sum(max(0, endpoint.admissible()) for endpoint in self.endpoints)

    def may_eject(self, endpoint: BoundEndpoint) -> bool:
        """Whether this endpoint's breaker may open: one always may, of a pool a bounded share at once."""
        if len(self.endpoints) <= 1 or endpoint.left:
            return True
        ejected = sum(other.ejected for other in self.endpoints if other is not endpoint)
        most = max(1, int(self.config.pool.ejected_share_max * len(self.endpoints)))
        return ejected < most

    def refusal(self) -> str:
        """Why nothing is claimed now; empty when something may be."""
        if not self.endpoints:
            return self.problem
        reasons = dict.fromkeys(endpoint.refusal() for endpoint in self.endpoints)
        return "" if "" in reasons else "; ".join(reasons)

    def bind(
        self, places: Sequence[Place], make: Callable[[Worker, Place], BoundEndpoint]
    ) -> tuple[list[BoundEndpoint], list[BoundEndpoint], bool]:
        """Take over what a resolution found.

        An endpoint is the same while its address and the name expected there are: it keeps its health and its jobs. One
        that is no longer named gets no more jobs and leaves when its last one has ended.

        Returns:
            Endpoints that came, endpoints that left, and whether the capabilities of one that stayed changed.
        """
        bound = {endpoint.place.identity: endpoint for endpoint in self.endpoints}
        left = {endpoint.place.identity: endpoint for endpoint in self.leaving}
        # All are made before anything changes: a connector that refuses its address changes nothing.
        came = [
            left.get(place.identity) or make(self, place) for place in places if place.identity not in bound
        ]
        changed = False
        for endpoint in came:
            endpoint.left = False
        wanted = {place.identity: place for place in places}
        gone = [endpoint for endpoint in self.endpoints if endpoint.place.identity not in wanted]
        # The order of those that stay says which was used longest ago.
        stayed = [endpoint for endpoint in self.endpoints if endpoint not in gone]
        for endpoint in stayed:
            changed = endpoint.renamed(wanted[endpoint.place.identity]) or changed
        for endpoint in gone:
            endpoint.left = True
        self.endpoints = [*came, *stayed]
        self.leaving = [*(endpoint for endpoint in self.leaving if endpoint.left), *gone]
        return came, gone, changed

    def drained(self) -> list[BoundEndpoint]:
        """Endpoints that left and have ended their last job; they are forgotten, the caller closes them."""
        ended = [endpoint for endpoint in self.leaving if not (endpoint.running or endpoint.probing)]
        self.leaving = [endpoint for endpoint in self.leaving if endpoint not in ended]
        return ended

    def status(self) -> dict[str, Any]:
        """What people are told of it."""
        return {
            "worker": self.worker_id,
            "service": self.service,
            "endpoint": self.url,
            "healthy": self.healthy,
            "running": self.running,
            "slots": self.slots,
            "refusal": self.refusal(),
        }
