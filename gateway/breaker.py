"""Health of one endpoint: probe hysteresis and circuit breaker, as pure state machines fed with times.

Health gates claiming, never settling. A single failed probe changes nothing (a 4 % flaky probe would otherwise stop
claims all day): ``fail_after`` failures in a row close the gate, ``pass_after`` successes in a row open it again.
With independent 4 % failures and fail_after = 3 the gate closes by chance once in 1 / 0.04**3, about 15 600 probes.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthPolicy:
    """Probe hysteresis.

    Attributes:
        fail_after: failures in a row that make an endpoint unhealthy.
        pass_after: successes in a row that make it healthy again.
    """

    fail_after: int = 3
    pass_after: int = 2


class HealthGate:
    """Counts probe results; an endpoint starts unhealthy until its first successful probe."""

    def __init__(self, policy: HealthPolicy) -> None:
        self._policy = policy
        self._healthy = False
        self._ever_probed_well = False
        self._streak = 0

    @property
    def healthy(self) -> bool:
        return self._healthy

    def record(self, ok: bool) -> bool:
        """Take in one probe; returns whether the verdict changed."""
        if ok == self._healthy:
            self._streak = 0
            return False
        self._streak += 1
        needed = self._policy.pass_after if ok and self._ever_probed_well else 1
        if not ok:
            needed = self._policy.fail_after
        if self._streak < needed:
            return False
        self._healthy = ok
        self._ever_probed_well = self._ever_probed_well or ok
        self._streak = 0
        return True


class BreakerState(enum.StrEnum):
    """closed lets work through, open lets none, half_open lets one job try."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When the breaker opens and how long it stays open.

    Attributes:
        faults_max: endpoint faults in a row that open it.
        open_s: first opening, seconds; doubles with every failed trial.
        open_max_s: longest opening, seconds.
    """

    faults_max: int = 5
    open_s: float = 2.0
    open_max_s: float = 60.0


class Breaker:
    """Circuit breaker of one endpoint; every method takes the current monotonic time in seconds."""

    def __init__(self, policy: BreakerPolicy) -> None:
        self._policy = policy
        self._state = BreakerState.CLOSED
        self._faults = 0
        self._openings = 0
        self._until_s = 0.0
        self._trial_running = False

    def state(self, now_s: float) -> BreakerState:
        """Current state; an open breaker becomes half open when its time is over."""
        if self._state is BreakerState.OPEN and now_s >= self._until_s:
            self._state = BreakerState.HALF_OPEN
            self._trial_running = False
        return self._state

    def admits(self, now_s: float, wanted: int) -> int:
        """How many of ``wanted`` jobs may start now: all, none, or the one trial of a half-open breaker."""
        state = self.state(now_s)
        if state is BreakerState.CLOSED:
            return wanted
        if state is BreakerState.HALF_OPEN and not self._trial_running:
            return min(1, wanted)
        return 0

    def started(self, now_s: float) -> None:
        """A job was handed to the endpoint."""
        if self.state(now_s) is BreakerState.HALF_OPEN:
            self._trial_running = True

    def succeeded(self, now_s: float) -> None:
        """The endpoint did what it was asked (an answer about the job, good or bad, counts)."""
        self._faults = 0
        if self.state(now_s) is not BreakerState.OPEN:
            self._state = BreakerState.CLOSED
            self._openings = 0
        self._trial_running = False

    def faulted(self, now_s: float, *, may_open: bool = True) -> None:
        """The endpoint failed as an endpoint.

        Args:
            may_open: False keeps a closed breaker closed, because too many of a pool are open already; the fault is
                counted, and the next one may open it.
        """
        self._faults += 1
        state = self.state(now_s)
        if state is BreakerState.HALF_OPEN or (
            state is BreakerState.CLOSED and self._faults >= self._policy.faults_max and may_open
        ):
            self.trip(now_s)

    def undecided(self) -> None:
        """A trial ended without saying anything about the endpoint (cancelled, interrupted): allow another one."""
        self._trial_running = False

    def trip(self, now_s: float) -> None:
        """Open now, for example because the endpoint refused our credentials."""
        self._state = BreakerState.OPEN
        self._until_s = now_s + min(
            self._policy.open_max_s, self._policy.open_s * 2 ** min(self._openings, 16)
        )
        self._openings += 1
        self._faults = 0
        self._trial_running = False
