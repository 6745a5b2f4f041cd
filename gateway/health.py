"""Probing: the health of each worker's service, and the lag of our own event loop."""

from __future__ import annotations

import logging
import random as random_module
from collections.abc import Callable

import trio

from gateway.observer import Observer
from gateway.strategies import Strategy
from gateway.worker import Worker

log = logging.getLogger(__name__)


async def probe_health(
    worker: Worker,
    *,
    every_s: float,
    timeout_s: float,
    random: random_module.Random,
    on_change: Callable[[], None],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Probe one service for ever; started once the first probe has been taken in.

    Args:
        every_s: pause between probes, seconds (jittered by a tenth, so that a fleet doesn't probe in step).
        timeout_s: longest probe; a longer one counts as failed.
        on_change: called whenever the verdict of the gate changes.
    """
    started = False
    while True:
        healthy, detail = False, f"no answer within {timeout_s:g} s"
        with trio.move_on_after(timeout_s):
            report = await worker.connector.health()
            healthy, detail = report.healthy, report.detail
        if worker.probed(healthy=healthy, detail=detail):
            log.info(
                "%s at %s is %s (%s)",
                worker.worker_id, worker.config.endpoint, "healthy" if healthy else "unhealthy", detail,
            )  # fmt: skip
            on_change()
        if not started:
            started = True
            task_status.started()
        await trio.sleep(every_s * random.uniform(0.9, 1.1))


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
