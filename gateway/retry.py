"""What a failed attempt leads to: one table from fault class to action (pure).

The back-off is exponential with full jitter: a uniformly random part of ``base * 2**attempt``, capped, so that jobs
which failed together don't come back together.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from types import MappingProxyType

from gateway.errors import FaultClass


class Action(enum.Enum):
    """What happens to the lease."""

    BURY = "bury"
    RETRY = "retry"
    SNOOZE = "snooze"
    RELEASE = "release"
    STOP = "stop"


ACTIONS: MappingProxyType[FaultClass, Action] = MappingProxyType(
    {
        FaultClass.VALIDATION: Action.BURY,
        FaultClass.REFUSED: Action.BURY,
        FaultClass.UNSUPPORTED: Action.BURY,
        FaultClass.AUTH: Action.BURY,
        FaultClass.RATE_LIMITED: Action.SNOOZE,
        FaultClass.UNAVAILABLE: Action.RELEASE,
        FaultClass.TIMEOUT: Action.RETRY,
        FaultClass.NETWORK: Action.RETRY,
        FaultClass.PROTOCOL: Action.RETRY,
        FaultClass.SERVICE_ERROR: Action.RETRY,
        FaultClass.OUT_OF_MEMORY: Action.RETRY,
        FaultClass.INTERRUPTED: Action.RELEASE,
        FaultClass.LEASE_LOST: Action.STOP,
        FaultClass.INTERNAL: Action.RETRY,
    }
)

#: Fault classes that say something about the endpoint, not about the job: they feed its breaker.
ENDPOINT_FAULTS = frozenset(
    {
        FaultClass.UNAVAILABLE,
        FaultClass.NETWORK,
        FaultClass.TIMEOUT,
        FaultClass.PROTOCOL,
        FaultClass.SERVICE_ERROR,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """Bounds of the back-off.

    Attributes:
        base_s: ceiling of the first delay, seconds.
        delay_max_s: ceiling of any back-off, seconds.
        avoid_s: seconds during which a failing worker leaves the job to others.
        release_s: delay before a job given back by an unavailable service may be claimed, seconds.
        snooze_default_s: delay after a rate limit without Retry-After, seconds.
        snooze_max_s: longest Retry-After that is honoured, seconds.
    """

    base_s: float = 1.0
    delay_max_s: float = 60.0
    avoid_s: float = 2.0
    release_s: float = 0.25
    snooze_default_s: float = 5.0
    snooze_max_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class Decision:
    """The action and, where it comes back, after how many seconds."""

    action: Action
    delay_s: float = 0.0
    avoid_s: float = 0.0


def decide(
    fault_class: FaultClass, *, attempts: int, retry_after_s: float | None, jitter: float, policy: RetryPolicy
) -> Decision:
    """Choose what follows a fault.

    Args:
        fault_class: why the attempt ended.
        attempts: charged attempts before this one, the exponent of the back-off.
        retry_after_s: the service's own wish in seconds, or None.
        jitter: uniform random number in [0, 1), from the caller's seeded source.
        policy: bounds.
    """
    assert 0.0 <= jitter < 1.0, f"jitter must be in [0, 1), not {jitter}"
    action = ACTIONS[fault_class]
    if action is Action.RETRY:
        ceiling = min(policy.delay_max_s, policy.base_s * 2 ** min(attempts, 30))
        # A floor of a tenth keeps "full jitter" from meaning "at once" again and again.
        return Decision(action, ceiling * max(jitter, 0.1), policy.avoid_s)
    if action is Action.SNOOZE:
        wish = policy.snooze_default_s if retry_after_s is None else retry_after_s
        return Decision(action, min(max(wish, 0.0), policy.snooze_max_s) + jitter * policy.base_s)
    if action is Action.RELEASE:
        if fault_class is FaultClass.INTERRUPTED:
            return Decision(action)
        return Decision(action, policy.release_s * (1.0 + jitter), policy.avoid_s)
    return Decision(action)
