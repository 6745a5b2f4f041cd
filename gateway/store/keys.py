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
        "_prefix", "classes", "config", "dead", "events", "finished", "idempotency", "jobs", "leases", "meta",
        "queue", "results", "scheduled", "services", "specs", "wake", "workers",
    )  # fmt: skip

    def __init__(self, queue: str) -> None:
        if not _QUEUE_NAME.fullmatch(queue):
            raise ConfigError(f"queue name {queue!r}: use 1 to 64 letters, digits, '.', '-' or '_'")
        self.queue = queue
        self._prefix = f"tg:{{{queue}}}:"
        for name in self.__slots__:
            if name not in ("_prefix", "queue"):
                setattr(self, name, self._prefix + name)

    classes: str
    config: str
    dead: str
    events: str
    finished: str
    idempotency: str
    jobs: str
    leases: str
    meta: str
    results: str
    scheduled: str
    services: str
    specs: str
    wake: str
    workers: str

    def pending(self, class_id: str) -> str:
        """Ordered set of the claimable jobs of one class."""
        return f"{self._prefix}pending:{class_id}"

    def stream(self, job_id: str) -> str:
        """Stream of one job's progress and result chunks."""
        return f"{self._prefix}stream:{job_id}"

    def claim_memory(self, instance: str) -> str:
        """Last answered claim of one claim loop, for replays of the same request id."""
        return f"{self._prefix}claim:{instance}"
