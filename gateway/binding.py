"""Keeps each worker bound to the endpoints that its resolution finds, and each endpoint probed while it is bound."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import trio

from gateway.config import DiscoveryConfig
from gateway.discovery import (
    Place,
    asks_registry,
    configured,
    current,
    resolve,
    spelled,
    template,
)
from gateway.endpoints import BoundEndpoint
from gateway.errors import ConfigError, GatewayError, StoreError
from gateway.registration import RegisteredService
from gateway.store.base import JobStore
from gateway.worker import Worker

log = logging.getLogger(__name__)

#: Least pause between two looks at the registry: a burst of registrations is one change.
CHANGE_PAUSE_S = 0.05
#: Pause between looks while a start waits for services.
START_PAUSE_S = 0.2
#: Beyond the end of an entry's time, when to look whether it was renewed.
LAPSE_MARGIN_S = 0.05
#: Longest farewell to a connector whose endpoint left.
CLOSE_TIMEOUT_S = 3.0


class Probe(Protocol):
    """Probes one endpoint until cancelled."""

    async def __call__(self, endpoint: BoundEndpoint) -> None: ...


class Binder:
    """Binds workers to endpoints: at the start, and whenever the registry changes.

    Args:
        workers: all of this process.
        store: holds the registry.
        config: how it is followed.
        make: binds one place: ``make(worker, place)``.
        probe: probes one endpoint for as long as it is bound.
        on_change: called when endpoints came, left or can do something else.

    Raises:
        ConfigError: an address in the configuration is wrong.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        store: JobStore,
        config: DiscoveryConfig,
        *,
        make: Callable[[Worker, Place], BoundEndpoint],
        probe: Probe,
        on_change: Callable[[], None],
    ) -> None:
        self._workers = workers
        self._store = store
        self._config = config
        self._make = make
        self._probe = probe
        self._on_change = on_change
        self._changed = trio.Event()
        self._scopes: dict[BoundEndpoint, trio.CancelScope] = {}
        #: Addresses in the registry at the last look, by id.
        self._addresses: dict[str, str] = {}
        self._nursery: trio.Nursery | None = None
        self._followers = [worker for worker in workers if asks_registry(worker.config)]
        for worker in workers:
            if worker not in self._followers:
                places = configured(worker.name, worker.config) or template(worker.name, worker.config)
                worker.bind(places, make)
                worker.problem = ""
        store.on_wake(self._on_wake)

    def _on_wake(self, message: str) -> None:
        if self._followers and message in ("", "changed services"):
            self.look()

    def look(self) -> None:
        """The registry may have changed, or an endpoint that left has ended its last job."""
        self._changed.set()

    def address_of(self, service_id: str) -> str | None:
        """Where a service of the registry was at the last look; None if it is not there or nobody follows it."""
        return self._addresses.get(service_id)

    async def run(
        self, nursery: trio.Nursery, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Bind, then follow the registry until cancelled; ready once every worker is bound.

        Args:
            nursery: where the probes run.

        Raises:
            ConfigError: a worker has no endpoint when the time to wait is over, and ``discovery.required`` is set.
        """
        self._nursery = nursery
        for worker in self._workers:
            for endpoint in (*worker.endpoints, *worker.candidates):
                self._start_probe(endpoint)
        services = await self._first_look() if self._followers else (0, [])
        task_status.started()
        while True:
            await self._close_drained()
            with trio.move_on_after(self._pause_s(*services)):
                await self._changed.wait()
            await trio.sleep(CHANGE_PAUSE_S)
            self._changed = trio.Event()
            if not self._followers:
                continue
            try:
                services = await self._store.services()
            except StoreError as error:
                log.info("the registry cannot be read, endpoints stay as they are: %s", error)
                continue
            self._apply(services[1], strict=False)

    def _pause_s(self, now_ms: int, services: Sequence[RegisteredService]) -> float:
        """Until the next look without being told: the poll, or the end of the entry that lapses first."""
        if not self._followers:
            return math.inf
        if not services:
            return self._config.poll_s
        soonest_s = (min(service.ends_ms for service in services) - now_ms) / 1000 + LAPSE_MARGIN_S
        return min(self._config.poll_s, max(soonest_s, CHANGE_PAUSE_S))

    async def _first_look(self) -> tuple[int, list[RegisteredService]]:
        """Wait, bounded, until every worker is bound."""
        with trio.move_on_after(self._config.start_wait_s):
            while True:
                services = await self._store.services()
                self._apply(services[1], strict=True)
                if not self._unbound():
                    return services
                await trio.sleep(START_PAUSE_S)
        if self._config.required and (unbound := self._unbound()):
            raise ConfigError("; ".join(f"workers.{worker.name}: {worker.problem}" for worker in unbound))
        return await self._store.services()

    def _unbound(self) -> list[Worker]:
        return [worker for worker in self._followers if not worker.endpoints]

    def _apply(self, services: Sequence[RegisteredService], *, strict: bool) -> None:
        """Bind every worker to what the registry says now.

        Args:
            strict: raise what a connector says about its address or options, instead of showing it as the state.
        """
        changed = False
        self._addresses = {service.id: spelled(service.entry.url) for service in current(services)[0]}
        for worker in self._followers:
            resolution = resolve(worker.name, worker.config, worker.connector_key, services)
            if resolution.problem and resolution.problem != worker.problem:
                log.warning("worker %s: %s", worker.worker_id, resolution.problem)
            worker.problem = resolution.problem
            try:
                came, gone, other = worker.bind(resolution.places, self._make)
            except GatewayError as error:
                if strict:
                    raise
                log.warning("worker %s: %s", worker.worker_id, error)
                worker.problem = str(error)
                continue
            for endpoint in gone:
                log.info("worker %s leaves %s", worker.worker_id, endpoint.place.url)
                self._scopes.pop(endpoint).cancel()
            for endpoint in came:
                log.info(
                    "worker %s goes to %s (%s)", worker.worker_id, endpoint.url, endpoint.place.origin.value
                )
                self._start_probe(endpoint)
            changed = changed or bool(came or gone or other)
        if changed:
            self._on_change()

    def _start_probe(self, endpoint: BoundEndpoint) -> None:
        assert self._nursery is not None, "endpoints are probed only while the binder runs"
        self._scopes[endpoint] = trio.CancelScope()
        endpoint.probing += 1
        # Not awaited: a service that is down must not keep the gateway from starting.
        self._nursery.start_soon(partial(self._probe_in, self._scopes[endpoint], endpoint))

    async def _probe_in(self, scope: trio.CancelScope, endpoint: BoundEndpoint) -> None:
        try:
            with scope:
                await self._probe(endpoint)
        finally:
            endpoint.probing -= 1
            self.look()

    async def _close_drained(self) -> None:
        for worker in self._workers:
            for endpoint in worker.drained():
                with trio.move_on_after(CLOSE_TIMEOUT_S):
                    await endpoint.connector.aclose()
                endpoint.forgotten()
