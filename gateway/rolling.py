"""Gradual rollouts of one process: which endpoint a job goes to, and giving a candidate up for the whole fleet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import trio

from gateway.config import GatewayConfig
from gateway.config_fleet import encode_overrides
from gateway.endpoints import BoundEndpoint
from gateway.errors import FaultClass, StoreError
from gateway.models import JobId
from gateway.observer import Observer
from gateway.reload import Change
from gateway.rollout import RolloutJudge, RolloutPolicy, Side, side_of
from gateway.store.base import JobStore
from gateway.store.fleet_scripts import ConfigureStatus
from gateway.worker import Worker

log = logging.getLogger(__name__)

#: Pause before a decision that Redis did not take is told again, seconds; doubles up to the longest.
TELL_AGAIN_FIRST_S = 0.5
TELL_AGAIN_MAX_S = 10.0


class _Rollout:
    """One worker's rollout as this process sees it."""

    def __init__(self, worker: Worker, policy: RolloutPolicy) -> None:
        self.worker = worker
        self.policy = policy
        self.judge = RolloutJudge()


class Rollouts:
    """All rollouts of one process. Everything but :meth:`run` is synchronous.

    Args:
        workers: those with candidates take part.
        policies: by the worker's name.
        store: where a decision is told to the fleet.
        observer: told of every decision.
        now_s: monotonic clock.
        on_change: called after each decision, so that the registry tells of it.
    """

    def __init__(
        self,
        workers: Sequence[Worker],
        policies: Mapping[str, RolloutPolicy],
        store: JobStore,
        observer: Observer,
        *,
        now_s: Callable[[], float],
        on_change: Callable[[], None],
    ) -> None:
        self._store = store
        self._on_change = on_change
        self._observer = observer
        self._now_s = now_s
        self._rollouts = {
            worker: _Rollout(worker, policies[worker.name]) for worker in workers if worker.candidates
        }
        self._untold: dict[str, str] = {}
        self._given_up = trio.Event()
        for rollout in self._rollouts.values():
            observer.rollout(rollout.worker.worker_id, "started", rollout.policy)

    def __bool__(self) -> bool:
        return bool(self._rollouts)

    def seat(self, worker: Worker, job_id: JobId, stable: BoundEndpoint) -> BoundEndpoint:
        """Where a granted job runs: at a candidate when its share says so and one can take it now."""
        rollout = self._rollouts.get(worker)
        if rollout is None or side_of(job_id, rollout.policy) is Side.STABLE:
            return stable
        open_now = [candidate for candidate in worker.candidates if candidate.admissible() > 0]
        return min(open_now, key=lambda candidate: candidate.running, default=stable)

    def ended(self, endpoint: BoundEndpoint, fault_class: FaultClass | None, took_s: float) -> None:
        """Take in the end of one attempt; gives the candidate up here and now when it must be."""
        rollout = self._rollouts.get(endpoint.worker)
        if rollout is None:
            return
        side = Side.CANDIDATE if endpoint in endpoint.worker.candidates else Side.STABLE
        self._observer.rollout_attempt(endpoint.worker.worker_id, side, failed=fault_class is not None)
        reason = rollout.judge.ended(side, fault_class, took_s, now_s=self._now_s(), policy=rollout.policy)
        if not reason:
            return
        # From this moment no job of this process goes there; the others are told.
        self._take(rollout, replace(rollout.policy, stopped=f"rolled back: {reason}"), "rolled_back")
        self._untold[endpoint.worker.name] = rollout.policy.stopped
        self._given_up.set()

    def reload(self, config: GatewayConfig, _changes: Sequence[Change]) -> None:
        """Take up what an operator, or another gateway's judge, changed."""
        for rollout in self._rollouts.values():
            settings = config.workers[rollout.worker.name].rollout
            policy = RolloutPolicy() if settings is None else settings.policy()
            if untold := self._untold.get(rollout.worker.name):
                # These settings may have been read before the fleet heard of our decision: it stands until then.
                policy = replace(policy, stopped=untold)
            if policy != rollout.policy:
                if rollout.policy.stopped and not policy.stopped:
                    rollout.judge.reset()
                self._take(rollout, policy, "stopped" if policy.stopped else "changed")

    def _take(self, rollout: _Rollout, policy: RolloutPolicy, decision: str) -> None:
        rollout.policy = policy
        log.warning(
            "rollout of worker %s %s: %g %% of the jobs go to the candidate%s",
            rollout.worker.worker_id,
            decision.replace("_", " "),
            0.0 if policy.stopped else policy.percent,
            f" ({policy.stopped})" if policy.stopped else "",
        )
        self._observer.rollout(rollout.worker.worker_id, decision, policy)
        self._on_change()

    def status(self, worker: Worker) -> dict[str, object] | None:
        """What people are told of a worker's rollout; None for none."""
        rollout = self._rollouts.get(worker)
        if rollout is None:
            return None
        now_s, policy = self._now_s(), rollout.policy
        sides: dict[str, object] = {}
        for side in Side:
            figures = rollout.judge.figures(side, now_s, policy)
            sides[side.value] = {
                "attempts": figures.attempts,
                "failures": figures.failures,
                "mean_s": round(figures.mean_s, 3),
            }
        return {
            "percent": policy.percent,
            "stopped": policy.stopped,
            "candidates": [candidate.status() for candidate in worker.candidates],
            **sides,
        }

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell the fleet of every candidate given up here, until cancelled."""
        task_status.started()
        pause_s = TELL_AGAIN_FIRST_S
        while True:
            await self._given_up.wait()
            self._given_up = trio.Event()
            for name, reason in list(self._untold.items()):
                try:
                    told = await self._tell(name, reason)
                except StoreError as error:
                    log.warning("the fleet was not told that %s was rolled back: %s", name, error)
                    told = False
                if told and self._untold.get(name) == reason:
                    del self._untold[name]
            if self._untold:
                self._given_up.set()
                await trio.sleep(pause_s)
                pause_s = min(pause_s * 2, TELL_AGAIN_MAX_S)
            else:
                pause_s = TELL_AGAIN_FIRST_S

    async def _tell(self, name: str, reason: str) -> bool:
        """Store the decision as the fleet's override; False when somebody else changed the overrides meanwhile."""
        key = f"workers.{name}.rollout.stopped"
        present = await self._store.overrides()
        if present.values.get(key):
            return True  # another gateway, or an operator, was first
        status, _revision = await self._store.configure(present.revision, encode_overrides({key: reason}))
        return status is not ConfigureStatus.CONFLICT
