"""Takes up changes of the configuration, told by a signal or by the overrides in Redis, or says why not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import trio

from gateway.config import GatewayConfig
from gateway.errors import ConfigError, StoreError
from gateway.reload import Reloader
from gateway.store.base import JobStore

log = logging.getLogger(__name__)

#: Reads all sources again, with the fleet's overrides as given.
Reread = Callable[[Mapping[str, str]], GatewayConfig]
#: Net under the pushed changes, seconds.
POLL_S = 30.0


class ConfigWatch:
    """Takes up changes of the configuration until cancelled.

    Args:
        store: holds the fleet's overrides.
        reloader: judges and applies.
        reread: reads file, environment and command line again.
    """

    def __init__(self, store: JobStore, reloader: Reloader, reread: Reread) -> None:
        self._store = store
        self._reloader = reloader
        self._reread = reread
        self._asked = trio.Event()
        self._forced = False
        #: What was read last; None before the first look, which finds changes since the start.
        self._revision: int | None = None
        self._fleet: Mapping[str, str] = {}
        store.on_wake(self._on_wake)

    def _on_wake(self, message: str) -> None:
        if message in ("", "changed config"):
            self._asked.set()

    def reload(self) -> None:
        """Read everything again, whether or not the fleet's overrides changed."""
        self._forced = True
        self._asked.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look at the start, when told, and now and then."""
        task_status.started()
        while True:
            forced, self._forced = self._forced, False
            await self._look(forced=forced)
            with trio.move_on_after(POLL_S):
                await self._asked.wait()
            self._asked = trio.Event()

    async def _look(self, *, forced: bool) -> None:
        try:
            overrides = await self._store.overrides()
        except StoreError as error:
            log.info("the fleet's overrides cannot be read: %s", error)
            if not forced or self._revision is None:
                return
        else:
            if overrides.revision == self._revision and not forced:
                return
            self._revision, self._fleet = overrides.revision, overrides.values
        try:
            report = self._reloader.apply(self._reread(self._fleet))
        except ConfigError as error:
            log.error("reload refused, nothing changed: %s", error)
            return
        if report.applied:
            log.info("reloaded: %s", "; ".join(map(str, report.applied)))
        if report.restart:
            log.warning("a restart is needed for: %s", "; ".join(map(str, report.restart)))
        if forced and not (report.applied or report.restart):
            log.info("reloaded: nothing changed")
