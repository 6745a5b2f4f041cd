"""Gradual rollout: which job goes to the candidate, and when the candidate is given up (pure).

A job's share is drawn from its id alone, so every gateway, every attempt and every run sends the same job the same way,
and raising the percentage only ever adds jobs. The candidate is judged over the newest attempts of a window, against
bounds of its own and against the stable side; a verdict needs enough attempts, so that one failure decides nothing.
"""

from __future__ import annotations

import enum
import hashlib
from collections import deque
from dataclasses import dataclass

from gateway.errors import FaultClass
from gateway.models import JobId

#: Shares are drawn in steps of a hundredth of a per cent.
_STEPS = 10_000
#: What says nothing about the side that ran the job: the job's own fault, or ours.
_NOT_ITS_FAULT = frozenset(
    {FaultClass.VALIDATION, FaultClass.REFUSED, FaultClass.INTERRUPTED, FaultClass.LEASE_LOST}
)


class Side(enum.StrEnum):
    """Who runs a job while a rollout is on."""

    STABLE = "stable"
    CANDIDATE = "candidate"


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutPolicy:
    """How far a rollout goes, and what ends it.

    Attributes:
        percent: share of the jobs that go to the candidate, 0 to 100.
        salt: drawn into the hash; another salt chooses other jobs.
        stopped: why the candidate was given up, by a judge or by hand; while it says something, no job goes there.
        window_attempts: so many newest attempts of each side are judged.
        window_s: attempts older than this are not, seconds.
        attempts_min: attempts of a side before it is judged.
        failure_ratio_max: the candidate is given up when more of its attempts fail, 0 to 1.
        latency_ratio_max: and when its mean time is so many times the stable side's.
    """

    percent: float = 0.0
    salt: str = ""
    stopped: str = ""
    window_attempts: int = 100
    window_s: float = 600.0
    attempts_min: int = 20
    failure_ratio_max: float = 0.1
    latency_ratio_max: float = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SideFigures:
    """What the window holds of one side; ``mean_s`` is over attempts that succeeded, 0 for none."""

    attempts: int = 0
    failures: int = 0
    mean_s: float = 0.0

    @property
    def failure_ratio(self) -> float:
        """Failed attempts over all, 0 for none."""
        return self.failures / self.attempts if self.attempts else 0.0


def side_of(job_id: JobId, policy: RolloutPolicy) -> Side:
    """Where a job goes, by a stable hash of its id."""
    if policy.stopped:
        return Side.STABLE
    digest = hashlib.blake2b(f"{policy.salt}/{job_id}".encode(), digest_size=8).digest()
    drawn = int.from_bytes(digest, "big") % _STEPS
    return Side.CANDIDATE if drawn < policy.percent * _STEPS / 100.0 else Side.STABLE


def counts_as_failure(fault_class: FaultClass | None) -> bool | None:
    """Whether the end of an attempt counts against its side; None when it says nothing about it."""
    if fault_class is None:
        return False
    return None if fault_class in _NOT_ITS_FAULT else True


class _Window:
    """Newest attempts of one side: when each ended, whether it failed, how long it took."""

    def __init__(self) -> None:
        self._attempts: deque[tuple[float, bool, float]] = deque()

    def add(self, now_s: float, failed: bool, took_s: float, policy: RolloutPolicy) -> None:
        self._attempts.append((now_s, failed, took_s))
        self.forget(now_s, policy)

    def forget(self, now_s: float, policy: RolloutPolicy) -> None:
        while self._attempts and (
            len(self._attempts) > policy.window_attempts or self._attempts[0][0] < now_s - policy.window_s
        ):
            self._attempts.popleft()

    def figures(self) -> SideFigures:
        good = [took_s for _at_s, failed, took_s in self._attempts if not failed]
        return SideFigures(
            attempts=len(self._attempts),
            failures=len(self._attempts) - len(good),
            mean_s=sum(good) / len(good) if good else 0.0,
        )


class RolloutJudge:
    """Watches both sides of one rollout; every method takes the current monotonic time in seconds."""

    def __init__(self) -> None:
        self._windows = {side: _Window() for side in Side}

    def figures(self, side: Side, now_s: float, policy: RolloutPolicy) -> SideFigures:
        """What the window holds of a side now."""
        self._windows[side].forget(now_s, policy)
        return self._windows[side].figures()

    def ended(
        self,
        side: Side,
        fault_class: FaultClass | None,
        took_s: float,
        *,
        now_s: float,
        policy: RolloutPolicy,
    ) -> str:
        """Take in the end of one attempt; returns why the candidate must be given up, empty for no reason.

        Args:
            side: who ran it.
            fault_class: None for success.
            took_s: seconds from dispatch to the end.
            now_s: when it ended.
            policy: the bounds of this moment.
        """
        failed = counts_as_failure(fault_class)
        if failed is None:
            return ""
        self._windows[side].add(now_s, failed, took_s, policy)
        return "" if policy.stopped or policy.percent <= 0 else self.verdict(now_s, policy)

    def verdict(self, now_s: float, policy: RolloutPolicy) -> str:
        """Why the candidate must be given up by what the window holds; empty for no reason."""
        candidate = self.figures(Side.CANDIDATE, now_s, policy)
        if candidate.attempts < policy.attempts_min:
            return ""
        if candidate.failure_ratio > policy.failure_ratio_max:
            return (
                f"{candidate.failures} of its {candidate.attempts} newest attempts failed, "
                f"allowed are {policy.failure_ratio_max:.0%}"
            )
        stable = self.figures(Side.STABLE, now_s, policy)
        if stable.attempts < policy.attempts_min or stable.mean_s <= 0:
            return ""
        if candidate.mean_s > stable.mean_s * policy.latency_ratio_max:
            return (
                f"its attempts take {candidate.mean_s:.3g} s, more than {policy.latency_ratio_max:g} times the "
                f"stable side's {stable.mean_s:.3g} s"
            )
        return ""

    def reset(self) -> None:
        """Forget everything: another candidate, or a new try of the same one."""
        self._windows = {side: _Window() for side in Side}
