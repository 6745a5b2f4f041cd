"""Errors of the gateway: typed leafs, classified by attribute (pure leaf module).

Two families. ``JobFault`` says why an attempt at a job ended badly; its ``fault_class`` alone decides what happens
next (``gateway.retry``). Everything else under ``GatewayError`` concerns the gateway itself: its configuration, its
store, a caller's request.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence


class FaultClass(enum.StrEnum):
    """Why an attempt failed; the keys of the retry table."""

    VALIDATION = "validation"
    REFUSED = "refused"
    UNSUPPORTED = "unsupported"
    AUTH = "auth"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"
    NETWORK = "network"
    PROTOCOL = "protocol"
    SERVICE_ERROR = "service_error"
    OUT_OF_MEMORY = "out_of_memory"
    INTERRUPTED = "interrupted"
    LEASE_LOST = "lease_lost"
    INTERNAL = "internal"


class GatewayError(Exception):
    """Base of all errors raised on purpose. ``exit_code`` is what a command line tool ends with."""

    exit_code = 1


class JobFault(GatewayError):
    """An attempt at a job failed.

    Attributes:
        fault_class: decides what happens next.
        retry_after_s: the service's own wish, None when it has none.
        outcome_unknown: the service may still be doing the work.
        forgotten: the service no longer knows the work that it had accepted.
    """

    def __init__(
        self,
        fault_class: FaultClass,
        message: str,
        *,
        retry_after_s: float | None = None,
        outcome_unknown: bool = False,
        forgotten: bool = False,
    ) -> None:
        super().__init__(message)
        self.fault_class = fault_class
        self.forgotten = forgotten
        self.retry_after_s = retry_after_s
        self.outcome_unknown = outcome_unknown


class ConfigError(GatewayError):
    """A configuration source is wrong. The message names source, key and value, and what would be right."""

    exit_code = 2


class InvalidSubmission(GatewayError):
    """A job that must not enter the queue: bad JSON, oversize, malformed or impossible requirement."""

    exit_code = 2


class InvalidRegistration(GatewayError):
    """A service's entry that no worker could use: bad id, address, protocol, time to live or capability."""

    exit_code = 2


class UnknownService(InvalidSubmission):
    """No connector and no live worker serves this service."""

    def __init__(self, service: str, known: Sequence[str]) -> None:
        super().__init__(f"unknown service {service!r}: known are {', '.join(sorted(known)) or 'none'}")
        self.service = service
        self.known = tuple(sorted(known))


class QueueFull(GatewayError):
    """The queue holds as many unfinished jobs as it may; nothing was stored."""

    exit_code = 4

    def __init__(self, queue: str, unfinished_max: int) -> None:
        super().__init__(f"queue {queue!r} is full: {unfinished_max} unfinished jobs; try again later")
        self.queue = queue
        self.unfinished_max = unfinished_max


class TooManyClasses(GatewayError):
    """The queue knows as many different requirements as it may; nothing was stored."""

    exit_code = 4

    def __init__(self, queue: str, classes_max: int) -> None:
        super().__init__(
            f"queue {queue!r} already has {classes_max} different (service, requires) classes; reuse requirements"
        )
        self.queue = queue
        self.classes_max = classes_max


class TooManyChildren(GatewayError):
    """As many jobs wait for this parent as may; nothing was stored."""

    exit_code = 4

    def __init__(self, parent: str, children_max: int) -> None:
        super().__init__(
            f"{children_max} jobs wait for {parent!r} already; wait for one job between them instead"
        )
        self.parent = parent
        self.children_max = children_max


class JobNotFound(GatewayError):
    """No such job, or its retention ended."""

    exit_code = 3

    def __init__(self, job_id: str) -> None:
        super().__init__(f"no job {job_id!r} in this queue (unknown, or its retention ended)")
        self.job_id = job_id


class WaitTimeout(GatewayError):
    """A job did not end within the time the caller was willing to wait."""

    exit_code = 5

    def __init__(self, job_id: str, timeout_s: float) -> None:
        super().__init__(f"job {job_id!r} did not end within {timeout_s:g} s")
        self.job_id = job_id
        self.timeout_s = timeout_s


class StoreError(GatewayError):
    """Base of what can go wrong between us and Redis."""

    exit_code = 6


class StoreUnavailable(StoreError):
    """Redis cannot be reached or did not answer in time.

    Attributes:
        outcome_unknown: the command may have been executed; every script is safe to repeat.
    """

    def __init__(self, message: str, *, outcome_unknown: bool) -> None:
        super().__init__(message)
        self.outcome_unknown = outcome_unknown


class StoreRejected(StoreError):
    """Redis answered with an error that a repetition will not mend (permissions, wrong type, script error)."""


class StoreForbidden(StoreRejected):
    """The rights of our user in Redis do not cover the command, its keys or its channels."""


class DurabilityUnconfirmed(StoreError):
    """The job is stored, but the durability asked for could not be confirmed in time."""


class ConnectorError(GatewayError):
    """The connector registry refuses: unknown or duplicate key, broken naming."""

    exit_code = 2


class ScheduleNotFound(GatewayError):
    """No such schedule."""

    exit_code = 3

    def __init__(self, name: str, queue: str) -> None:
        super().__init__(f"no schedule {name!r} in queue {queue!r}")
        self.name = name


class InvalidSchedule(GatewayError):
    """A schedule that cannot be: malformed cron expression or name, unknown time zone."""

    exit_code = 2
