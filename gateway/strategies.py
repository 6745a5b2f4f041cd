"""The named ways out of trouble: for each cause, what the gateway does about it (pure).

The doing stands where the trouble is met (runner, settler, sweeper, lag monitor), because each needs other state; this
table names it, so that a metric, a log line, ``docs/operations.md`` and a test speak of the same thing.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from types import MappingProxyType


class Strategy(enum.StrEnum):
    """What is being recovered from."""

    JOB_TIMEOUT = "job_timeout"
    SERVICE_UNAVAILABLE = "service_unavailable"
    WORKER_STUCK = "worker_stuck"
    LEASE_LOST = "lease_lost"
    REDIS_LOST = "redis_lost"
    POISON_PILL = "poison_pill"
    SERVICE_RESTARTED = "service_restarted"
    DUPLICATE_EXECUTION_DETECTED = "duplicate_execution_detected"


@dataclass(frozen=True, slots=True)
class Recovery:
    """One row of the table: how the trouble shows, and what follows."""

    cause: str
    action: str


RECOVERIES: MappingProxyType[Strategy, Recovery] = MappingProxyType(
    {
        Strategy.JOB_TIMEOUT: Recovery(
            "an attempt outlasts the job's timeout_s",
            "the work is stopped at the service too; retried with back-off, charged, another worker preferred",
        ),
        Strategy.SERVICE_UNAVAILABLE: Recovery(
            "the service refuses connections or says that it cannot serve now",
            "the job goes back uncharged to other workers; the endpoint's breaker counts it and closes the intake",
        ),
        Strategy.WORKER_STUCK: Recovery(
            "no sign of life of an attempt for runner.silence_max_s, or an event loop that lags a tenth of the lease",
            "the attempt ends as timed out and its lease is no longer renewed; a lagging process claims nothing",
        ),
        Strategy.LEASE_LOST: Recovery(
            "a lease ran out or another owner has it",
            "the attempt stops at once and writes nothing; the work stays if the next owner follows it",
        ),
        Strategy.REDIS_LOST: Recovery(
            "Redis does not take the end of a lease",
            "the settlement waits in the fsynced spool and is replayed until the fence has decided",
        ),
        Strategy.POISON_PILL: Recovery(
            "more than limits.recoveries_max leases of a job expired without progress",
            "the job goes to the dead letter with that reason",
        ),
        Strategy.SERVICE_RESTARTED: Recovery(
            "the service no longer knows work that it had accepted",
            "the work is run again under the same or a fresh name; the fence keeps one completion",
        ),
        Strategy.DUPLICATE_EXECUTION_DETECTED: Recovery(
            "work was finished whose job has another owner, or an end, by now",
            "the fence refuses the result as stale; the audit shows it",
        ),
    }
)
