"""Probing: the health of each worker's service, and the lag of our own event loop."""

from __future__ import annotations

import logging
import random as random_module
from collections.abc import Callable

import trio

from gateway.config import HealthConfig
from gateway.endpoints import BoundEndpoint
from gateway.errors import JobFault
from gateway.observer import Observer
from gateway.strategies import Strategy

log = logging.getLogger(__name__)


class HealthProbe:
    """Probes endpoints: each one's health, and where the worker asks for it what the instance can do.

    Args:
        config: pauses and time-outs, seconds; pauses are jittered by a tenth, so that a fleet doesn't probe in step.
        random: makes the random source of one endpoint from its label.
        on_change: called whenever the verdict of a gate changes.
        on_capabilities: called whenever an instance can do something else than before.
    """

    def __init__(
        self,
        config: HealthConfig,
        *,
        now_s: Callable[[], float],
        random: Callable[[str], random_module.Random],
        on_change: Callable[[], None],
        on_capabilities: Callable[[], None],
    ) -> None:
        self._config = config
        self._now_s = now_s
        self._random = random
        self._on_change = on_change
        self._on_capabilities = on_capabilities

    async def __call__(self, endpoint: BoundEndpoint) -> None:
        """Probe one endpoint until cancelled."""
        config, worker_id = self._config, endpoint.worker.worker_id
        several = len(endpoint.worker.endpoints) > 1
        random = self._random(f"probe {worker_id}" + (f" {endpoint.url}" if several else ""))
        asked_s: float | None = None
        while True:
            healthy, detail = False, f"no answer within {config.probe_timeout_s:g} s"
            with trio.move_on_after(config.probe_timeout_s):
                report = await endpoint.connector.health()
                healthy, detail = report.healthy, report.detail
            due = asked_s is None or self._now_s() >= asked_s + config.capabilities_s
            if healthy and due and endpoint.worker.config.probe_capabilities:
                # Before the gate opens: nothing is claimed by what the instance could do once.
                asked_s = self._now_s()
                await self._ask(endpoint)
            if endpoint.probed(healthy=healthy, detail=detail):
                log.info(
                    "%s at %s is %s (%s)",
                    worker_id, endpoint.url, "healthy" if healthy else "unhealthy", detail,
                )  # fmt: skip
                self._on_change()
            await trio.sleep(config.probe_s * random.uniform(0.9, 1.1))

    async def _ask(self, endpoint: BoundEndpoint) -> None:
        """Ask what the instance can do; an answer that fails to come changes nothing."""
        with trio.move_on_after(self._config.probe_timeout_s):
            try:
                told = await endpoint.connector.probe_capabilities()
            except JobFault as fault:
                log.info("%s does not say what it can do: %s", endpoint.url, fault)
                return
            if endpoint.told(told):
                log.info("%s at %s can do %s", endpoint.worker.worker_id, endpoint.url, dict(told))
                self._on_capabilities()


class LagMonitor:
    """Measures how late timers fire: a loop that lags can neither renew leases nor hear cancels in time.

    Args:
        every_s: pause between measurements, seconds.
        limit_s: lag above which nothing is claimed; a tenth of the lease is sound.
    """

    def __init__(
        self, *, every_s: float, limit_s: float, now_s: Callable[[], float], observer: Observer
    ) -> None:
        self._every_s = every_s
        self._limit_s = limit_s
        self._now_s = now_s
        self._observer = observer
        self.lag_s = 0.0

    @property
    def lagging(self) -> bool:
        return self.lag_s > self._limit_s

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Measure until cancelled."""
        task_status.started()
        while True:
            slept_s = self._now_s()
            await trio.sleep(self._every_s)
            lagged = self.lagging
            self.lag_s = max(0.0, self._now_s() - slept_s - self._every_s)
            self._observer.loop_lag(self.lag_s)
            if self.lagging and not lagged:
                self._observer.recovering(Strategy.WORKER_STUCK)
            if self.lagging:
                log.warning(
                    "event loop lags %.2f s (limit %.2f s): claiming pauses", self.lag_s, self._limit_s
                )
