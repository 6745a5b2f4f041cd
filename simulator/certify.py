"""``simulator certify``: a real fleet under a fault plan, judged by the auditor and the services' journals."""

from __future__ import annotations

import functools
import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Protocol

from gateway.client import JobRequest
from gateway.connectors.simulation.wire import WorkPayload
from simulator.certify_config import FleetSetup
from simulator.certify_fleet import Rig
from simulator.certify_judge import Certificate, FaultMark, RunFacts, judge
from simulator.fault_plans import FleetFaults, TimedFault

TICK_S = 0.05
#: An outage waits so long for gateways that are just starting.
START_WAIT_S = 20.0
#: A kill waits so long for its victim to hold a job: one that hits an idle gateway shows nothing.
VICTIM_WAIT_S = 3.0
#: After the last fault: two leases of the default length and the longest back-offs; beyond it a job counts as stuck.
SETTLE_S = 90.0
RETRY_S = 0.2


class Watcher(Protocol):
    """Who is told how a run goes on."""

    def phase(self, text: str) -> None:
        """Something began or happened."""
        ...

    def progress(self, ended: int, submitted: int, planned: int) -> None:
        """Where the jobs stand."""
        ...

    def check(self) -> None:
        """Called at least every 50 ms between two steps: may raise to end the run."""
        ...


class SilentWatcher:
    """Tells nobody."""

    def phase(self, text: str) -> None:
        """Nothing."""

    def progress(self, ended: int, submitted: int, planned: int) -> None:
        """Nothing."""

    def check(self) -> None:
        """Nothing."""


@dataclass(frozen=True, slots=True)
class TimedJob:
    """A job and when to submit it, seconds since the start."""

    at_s: float
    request: JobRequest


def workload(plan: FleetFaults, setup: FleetSetup) -> list[TimedJob]:
    """The jobs of a plan, evenly over its faulty phase, in turns for each kind of service; all follow from its seed."""
    random = Random(f"workload/{plan.seed}")
    count, (shortest_s, longest_s) = plan.workload.jobs, plan.workload.duration_s
    kinds = [service for service, _dialect in setup.kinds]

    def payload(number: int) -> Any:
        work = WorkPayload(duration_s=round(random.uniform(shortest_s, longest_s), 3), result=number)
        return setup.payload(kinds[number % len(kinds)], work)

    return [
        TimedJob(
            plan.duration_s * number / count,
            JobRequest(
                kinds[number % len(kinds)],
                payload(number),
                max_attempts=plan.workload.max_attempts,
                timeout_s=plan.workload.timeout_s,
                job_id=f"certify-{number:06d}",
            ),
        )
        for number in range(count)
    ]


class Conductor:
    """Submits jobs, lets the faults happen, heals them, and follows until every job has ended.

    Args:
        rig: the running fleet.
        faults: what happens to it, in order of time.
        watcher: who is told.
    """

    def __init__(self, rig: Rig, faults: Sequence[TimedFault], watcher: Watcher) -> None:
        self._rig = rig
        self._watcher = watcher
        self._numbers = itertools.count()
        self._due: list[tuple[float, int, Callable[[float], None]]] = []
        self._begun_s = 0.0
        self.begun_ms = 0
        self.ended_ms = 0
        self.marks: list[FaultMark] = []
        self.crashes: dict[str, str] = {}
        for fault in faults:
            self._at(fault.at_s, functools.partial(self._strike, fault))

    def run(self, jobs: Sequence[TimedJob], *, settle_s: float = SETTLE_S) -> bool:
        """Play everything.

        Args:
            jobs: in order of time.
            settle_s: longest time from the last submission and the last fault to the last job's end, seconds.

        Returns:
            Whether every job has ended.
        """
        rig = self._rig
        self._begun_s, self.begun_ms = time.monotonic(), _wall_ms()
        pending, quiet_since_s = list(reversed(jobs)), 0.0
        while True:
            self._watcher.check()
            now_s = time.monotonic() - self._begun_s
            while self._due and self._due[0][0] <= now_s:
                heapq.heappop(self._due)[2](now_s)
            if pending or self._due:
                quiet_since_s = now_s
            if rig.redis.running:
                batch = []
                while pending and pending[-1].at_s <= now_s:
                    batch.append(pending.pop().request)
                if batch:
                    rig.submit(batch)
                rig.follow()
            self._note_crashes()
            self._watcher.progress(len(rig.ended), len(rig.accepted), len(jobs))
            done = not pending and not self._due and rig.ended.issuperset(rig.accepted)
            if done or now_s - quiet_since_s > settle_s:
                self.ended_ms = _wall_ms()
                return done
            time.sleep(TICK_S)

    def _at(self, at_s: float, action: Callable[[float], None]) -> None:
        heapq.heappush(self._due, (at_s, next(self._numbers), action))

    def _note_crashes(self) -> None:
        for name in self._rig.crashed():
            if name not in self.crashes:
                self.crashes[name] = self._rig.gateways[name].log_tail()
                self._watcher.phase(f"{name} ended by itself")

    def _strike(self, fault: TimedFault, now_s: float) -> None:
        """Let a fault happen, and plan its end."""
        if fault.kind == "kill":
            self._kill(fault, now_s)
        elif fault.kind == "redis":
            self._redis_away(fault, now_s)
        elif fault.kind == "pause":
            self._pause(fault, now_s)
        else:
            self._service(fault.target).restart()
            self._mark(fault, f"{fault.target} forgot its jobs").until_ms = _wall_ms()

    def _kill(self, fault: TimedFault, now_s: float) -> None:
        rig, name = self._rig, fault.target
        if rig.gateways[name].ended:
            return
        if not rig.running_at(name) and now_s < fault.at_s + VICTIM_WAIT_S:
            self._at(now_s + TICK_S, functools.partial(self._strike, fault))
            return
        rig.kill(name)
        mark = self._mark(fault, f"{name} killed")
        if fault.for_s is not None:
            self._at(now_s + fault.for_s, functools.partial(self._relaunch, name, mark))

    def _relaunch(self, name: str, mark: FaultMark, now_s: float) -> None:
        if not self._rig.redis.running:  # a gateway that finds no Redis does not start
            self._at(now_s + RETRY_S, functools.partial(self._relaunch, name, mark))
            return
        self._rig.launch(name)
        self._end(mark, f"{name} restarted")

    def _redis_away(self, fault: TimedFault, now_s: float) -> None:
        if self._rig.starting() and now_s < fault.at_s + START_WAIT_S:
            # A gateway that finds no Redis does not start, which is no answer to what an outage does to a running one.
            self._at(now_s + TICK_S, functools.partial(self._strike, fault))
        elif self._rig.redis.running:
            self._rig.redis.kill()
            mark = self._mark(fault, "redis killed")
            self._at(now_s + (fault.for_s or 0.0), lambda _: self._redis_back(mark))

    def _redis_back(self, mark: FaultMark) -> None:
        self._rig.redis.start()
        self._end(mark, "redis is back")

    def _pause(self, fault: TimedFault, now_s: float) -> None:
        name = fault.target
        if name.startswith("service"):
            self._service(name).pause()
        elif not self._rig.gateways[name].ended:
            self._rig.gateways[name].pause()
        else:
            return
        mark = self._mark(fault, f"{name} paused")
        pid = self._rig.gateways[name].pid if name in self._rig.gateways else 0
        self._at(now_s + (fault.for_s or 0.0), lambda _: self._wake(name, pid, mark))

    def _wake(self, name: str, pid: int, mark: FaultMark) -> None:
        if name.startswith("service"):
            self._service(name).resume()
        elif self._rig.gateways[name].pid == pid and not self._rig.gateways[name].ended:
            self._rig.gateways[name].resume()
        self._end(mark, f"{name} goes on")

    def _service(self, target: str) -> ServiceControl:
        """The instance of that number; a configuration may have fewer than the plan thought of."""
        services = self._rig.services
        return services[int(target.rpartition("-")[2]) % len(services)]

    def _mark(self, fault: TimedFault, text: str) -> FaultMark:
        mark = FaultMark(kind=fault.kind, target=fault.target, at_ms=_wall_ms())
        self.marks.append(mark)
        self._watcher.phase(text)
        return mark

    def _end(self, mark: FaultMark, text: str) -> None:
        mark.until_ms = _wall_ms()
        self._watcher.phase(text)


class ServiceControl(Protocol):
    """What a fault does to a service."""

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def restart(self) -> None: ...


def _wall_ms() -> int:
    """Redis runs on this machine and reads the same clock."""
    return time.time_ns() // 1_000_000


def certify(folder: Path, setup: FleetSetup, plan: FleetFaults, watcher: Watcher) -> Certificate:
    """Run a fleet under a plan and judge it. Blocks for about the plan's length and a lease.

    Args:
        folder: an empty folder for data, configurations and logs.
        setup: what the gateways run.
        plan: what happens.
        watcher: who is told of the progress.

    Raises:
        FleetFailed: a part did not start.
        StoreError: Redis cannot be had.
    """
    watcher.phase(f"starting Redis, {setup.instances} simulated services and {plan.gateways} gateways")
    with Rig(
        folder, setup, knobs=plan.knobs, seed=plan.seed, gateways=plan.gateways, check=watcher.check
    ) as rig:
        conductor = Conductor(rig, plan.faults, watcher)
        conductor.run(workload(plan, setup))
        watcher.phase("stopping the gateways")
        unclean = [name for name, code in rig.stop_gateways().items() if code != 0]
        facts = RunFacts(
            plan=plan,
            setup=setup,
            report=rig.report(all_terminal=True),
            events=tuple(rig.events),
            journals=rig.journals(),
            worker_ids=rig.worker_ids,
            acknowledged=tuple(rig.accepted),
            marks=tuple(conductor.marks),
            crashes=dict(conductor.crashes),
            unclean=tuple(unclean),
            begun_ms=conductor.begun_ms,
            ended_ms=conductor.ended_ms,
        )
    return judge(facts)
