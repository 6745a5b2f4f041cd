"""Names of all Redis keys of one queue; they share one hash tag, so a queue lives in one Cluster slot (pure)."""

from __future__ import annotations

import re

from gateway.errors import ConfigError

_QUEUE_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


class QueueKeys:
    """Key names of one queue.

    Args:
        queue: 1 to 64 letters, digits, dots, dashes or underscores.

    Raises:
        ConfigError: the queue's name has other characters or length.
    """

    __slots__ = (
        "_prefix", "children", "classes", "config", "dead", "deadlines", "events", "finished", "holds", "idempotency",
        "jobs", "leases", "limits", "meta", "owners", "queue", "rates", "results", "schedule_due", "schedule_runs",
        "scheduled", "schedules", "served", "services", "specs", "unique", "untold", "usage", "waiting", "wake",
        "workers",
    )  # fmt: skip

    def __init__(self, queue: str) -> None:
        if not _QUEUE_NAME.fullmatch(queue):
            raise ConfigError(f"queue name {queue!r}: use 1 to 64 letters, digits, '.', '-' or '_'")
        self.queue = queue
        self._prefix = f"tg:{{{queue}}}:"
        for name in self.__slots__:
            if name not in ("_prefix", "queue"):
                setattr(self, name, self._prefix + name)

    children: str
    classes: str
    config: str
    dead: str
    deadlines: str
    events: str
    finished: str
    holds: str
    idempotency: str
    jobs: str
    leases: str
    limits: str
    meta: str
    owners: str
    rates: str
    results: str
    schedule_due: str
    schedule_runs: str
    scheduled: str
    schedules: str
    served: str
    services: str
    specs: str
    unique: str
    untold: str
    usage: str
    waiting: str
    wake: str
    workers: str

    @property
    def ending(self) -> list[str]:
        """First keys of every operation that ends jobs, in the order of ``_prelude_ending.lua``."""
        return [
            self.jobs, self.results, self.scheduled, self.finished, self.dead, self.deadlines, self.waiting,
            self.children, self.untold, self.unique, self.holds, self.events, self.wake,
        ]  # fmt: skip

    def pending(self, class_id: str) -> str:
        """Ordered set of the claimable jobs of one class."""
        return f"{self._prefix}pending:{class_id}"

    def stream(self, job_id: str) -> str:
        """Stream of one job's progress and result chunks."""
        return f"{self._prefix}stream:{job_id}"

    def claim_memory(self, instance: str) -> str:
        """Last answered claim of one claim loop, for replays of the same request id."""
        return f"{self._prefix}claim:{instance}"
