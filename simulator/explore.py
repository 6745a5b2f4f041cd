"""Explore many seeds: each a whole fleet, spread over a few processes, with what they reached and what went wrong.

Processes are watched by wall clock: under a jumping clock a deadlock is a silent spin that no time-out of the
simulation can end, so a run that takes far too long is killed, together with its process, and reported as a crash.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

import msgspec

from simulator.coverage import SEEDS_JUDGED_MIN, Coverage
from simulator.plan import FaultKind, FleetPlan, generate_plan

if TYPE_CHECKING:
    from multiprocessing.process import BaseProcess

    from simulator.run import Outcome

#: Wall-clock seconds after which one run counts as stuck: the longest of thousands of runs took about 20.
RUN_LIMIT_S = 300.0
#: How long the parent sleeps at most before it looks at the watch again, seconds.
LOOK_S = 0.5
#: Failures kept with their text; further ones are counted only.
FAILURES_MAX = 200

#: Exit codes by the gravest thing that was found.
EXIT_CODES = {"ok": 0, "safety": 3, "liveness": 4, "crash": 5, "coverage": 6}
_GRAVEST_FIRST = ("safety", "crash", "liveness", "coverage", "ok")


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How large the fleets are."""

    gateways: int = 3
    services: int = 2
    jobs: int = 20

    def plan(self, seed: int) -> FleetPlan:
        """The plan of a seed in this size."""
        return generate_plan(seed, gateways=self.gateways, services=self.services, jobs=self.jobs)

    def options(self) -> str:
        """The command-line options that name this size, as far as it is not the default."""
        default = Size()
        return "".join(
            f" --{name} {getattr(self, name)}"
            for name in self.__struct_fields__
            if getattr(self, name) != getattr(default, name)
        )


class SeedResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one seed showed, small enough to travel between processes."""

    seed: int
    kind: str
    findings: tuple[str, ...]
    undurable: tuple[str, ...]
    durable: bool
    simulated_s: float
    jobs: int
    completed: int
    lost: int
    violations: int
    faults: dict[str, int]
    transitions: dict[str, int]
    marks: dict[str, int]
    history_digest: str


def result_of(outcome: Outcome) -> SeedResult:
    """The part of an outcome that an exploration adds up."""
    return SeedResult(
        seed=outcome.plan.seed,
        kind=outcome.kind,
        findings=outcome.findings,
        undurable=outcome.undurable,
        durable=outcome.plan.durable,
        simulated_s=outcome.simulated_s,
        jobs=outcome.jobs,
        completed=outcome.completed,
        lost=outcome.lost,
        violations=len(outcome.safety),
        faults=outcome.faults,
        transitions=outcome.transitions,
        marks=outcome.marks,
        history_digest=outcome.history_digest,
    )


def run_seed(seed: int, size: Size) -> SeedResult:
    """Run one seed here."""
    from simulator.run import simulate

    return result_of(simulate(size.plan(seed)).outcome)


def _stuck(seed: int, reason: str) -> SeedResult:
    """The result of a run that never gave one."""
    return SeedResult(
        seed=seed,
        kind="crash",
        findings=(reason,),
        undurable=(),
        durable=True,
        simulated_s=0.0,
        jobs=0,
        completed=0,
        lost=0,
        violations=0,
        faults={},
        transitions={},
        marks={},
        history_digest="",
    )


@dataclass(slots=True)
class Exploration:
    """The sum over all seeds so far.

    Args:
        size: of the fleets, for the commands that repeat a failure.
    """

    size: Size
    seeds: int = 0
    elapsed_s: float = 0.0
    simulated_s: float = 0.0
    jobs: int = 0
    completed: int = 0
    faults_injected: int = 0
    violations: int = 0
    lost: int = 0
    undurable_runs: int = 0
    undurable_with_findings: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    failures: list[SeedResult] = field(default_factory=list)
    coverage: Coverage = field(default_factory=Coverage)

    def add(self, result: SeedResult) -> None:
        """Count one more seed."""
        self.seeds += 1
        self.simulated_s += result.simulated_s
        self.jobs += result.jobs
        self.completed += result.completed
        self.faults_injected += sum(result.faults.get(kind.value, 0) for kind in FaultKind)
        self.violations += result.violations
        self.lost += result.lost
        if not result.durable:
            self.undurable_runs += 1
            self.undurable_with_findings += bool(result.undurable)
        self.coverage.add(result.faults, result.transitions, result.marks)
        if result.kind != "ok":
            self.failed[result.kind] = self.failed.get(result.kind, 0) + 1
            if len(self.failures) < FAILURES_MAX:
                self.failures.append(result)

    def replay_command(self, seed: int) -> str:
        """The command that repeats one seed."""
        return f"simulator replay --seed {seed}{self.size.options()}"

    def verdict(self, *, judge_coverage: bool) -> str:
        """The gravest thing found: a key of ``EXIT_CODES``."""
        found = {*self.failed, "ok"}
        if judge_coverage and self.coverage.missing():
            found.add("coverage")
        return next(kind for kind in _GRAVEST_FIRST if kind in found)

    def report(self, *, judge_coverage: bool) -> dict[str, Any]:
        """The whole result for programs."""
        verdict = self.verdict(judge_coverage=judge_coverage)
        speed = self.simulated_s / self.elapsed_s if self.elapsed_s else 0.0
        return {
            "seeds": self.seeds,
            "simulated_seconds": round(self.simulated_s, 3),
            "simulated_seconds_per_second": round(speed, 1),
            "jobs": self.jobs,
            "faults_injected": self.faults_injected,
            "violations": self.violations,
            "lost": self.lost,
            "verdict": verdict,
            "exit_code": EXIT_CODES[verdict],
            "elapsed_s": round(self.elapsed_s, 3),
            "completed": self.completed,
            "failed_seeds": dict(sorted(self.failed.items())),
            "failures": [
                {
                    "seed": failure.seed,
                    "kind": failure.kind,
                    "findings": list(failure.findings[:5]),
                    "replay": self.replay_command(failure.seed),
                }
                for failure in sorted(self.failures, key=lambda failure: failure.seed)
            ],
            "undurable": {
                "runs": self.undurable_runs,
                "runs_with_findings": self.undurable_with_findings,
            },
            "faults": dict(sorted(self.coverage.faults.items())),
            "transitions": dict(sorted(self.coverage.events.items())),
            "states": dict(sorted(self.coverage.marks.items())),
            "never_reached": self.coverage.missing(),
            "coverage_judged": judge_coverage,
        }


def coverage_is_judged(seeds: int, *, required: bool) -> bool:
    """Whether so many seeds must have reached everything."""
    return required or seeds >= SEEDS_JUDGED_MIN


def explore(
    size: Size,
    seeds: Iterator[int],
    *,
    processes: int,
    on_result: Callable[[SeedResult], bool],
    budget_s: float | None = None,
    run_limit_s: float = RUN_LIMIT_S,
) -> None:
    """Run seeds in child processes until there are none left, time is over, or ``on_result`` says stop.

    Args:
        seeds: which ones; may be endless.
        processes: children at once; each runs one seed at a time.
        on_result: told of every seed, in the order in which they end; False stops.
        budget_s: wall-clock seconds after which no further seed is begun.
        run_limit_s: wall-clock seconds after which one run is killed and counted as a crash.
    """
    begun_s = time.monotonic()
    children = [_Child(size) for _ in range(processes)]

    def feed(child: _Child) -> None:
        over = budget_s is not None and time.monotonic() - begun_s >= budget_s
        seed = None if over else next(seeds, None)
        if seed is not None:
            child.begin(seed)

    try:
        for child in children:
            feed(child)
        while busy := [child for child in children if child.seed is not None]:
            wait([child.pipe for child in busy], LOOK_S)
            for child in busy:
                result = child.look(run_limit_s)
                if result is None:
                    continue
                if not on_result(result):
                    return
                feed(child)
    finally:
        for child in children:
            child.end()


class _Child:
    """One process that runs seeds; replaced when it dies or hangs."""

    def __init__(self, size: Size) -> None:
        self._size = size
        self._context = multiprocessing.get_context("spawn")
        self.seed: int | None = None
        self._since_s = 0.0
        self.pipe: Connection
        self._process: BaseProcess
        self._start()

    def _start(self) -> None:
        self.pipe, theirs = self._context.Pipe()
        self._process = self._context.Process(target=_serve, args=(theirs, self._size), daemon=True)
        self._process.start()
        theirs.close()

    def begin(self, seed: int) -> None:
        """Run this seed next."""
        self.seed, self._since_s = seed, time.monotonic()
        # One that died while idle is found by the next look.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send(seed)

    def look(self, run_limit_s: float) -> SeedResult | None:
        """The result of the current seed, if there is one by now."""
        assert self.seed is not None, "nothing was begun"
        seed = self.seed
        try:
            answer: SeedResult | str = self.pipe.recv() if self.pipe.poll() else ""
        except (EOFError, ConnectionResetError):
            self._process.join(LOOK_S)
            answer = f"the process that ran it died with exit code {self._process.exitcode}"
        if not answer and time.monotonic() - self._since_s >= run_limit_s:
            answer = f"no end within {run_limit_s:g} s of wall clock: a deadlock, or an endless loop"
        if not answer:
            return None
        self.seed = None
        if isinstance(answer, SeedResult):
            return answer
        self.end()
        self._start()
        return _stuck(seed, answer)

    def end(self) -> None:
        """Stop the process; it has nothing to tidy up."""
        self._process.kill()
        self._process.join()
        self.pipe.close()


def _serve(pipe: Connection, size: Size) -> None:
    """A child: runs what it is told until its parent goes away."""
    # Ctrl-C reaches the whole group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)
    try:
        while True:
            seed = pipe.recv()
            try:
                pipe.send(run_seed(seed, size))
            except (EOFError, OSError):
                raise
            except Exception as error:
                pipe.send(f"the simulation itself failed: {type(error).__name__}: {error}")
    except (EOFError, OSError):
        pass  # the parent is gone
