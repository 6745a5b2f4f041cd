"""Hunt mutants: run each over the seeds until the judges turn one run down; several processes, bounded in time."""

from __future__ import annotations

import logging
import multiprocessing
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import FrameType

import msgspec

from gateway.audit import Invariant
from simulator.invariants import Promise
from simulator.mutants.catalogue import MUTANTS
from simulator.mutants.model import Judge, Mutant
from simulator.plan import FleetPlan
from simulator.run import Outcome, simulate

#: Longest hunt of one mutant, wall-clock seconds: 200 seeds take about 100 s of one undisturbed core.
MUTANT_LIMIT_S = 1200.0
#: Longest single run: a mutant may hang, and under a jumping clock a hang spins for ever.
RUN_LIMIT_S = 120.0
_JUDGES: dict[str, Judge] = {
    **{promise.value: Judge.PROMISES for promise in Promise},
    **{invariant.value: Judge.AUDITOR for invariant in Invariant},
}


class Kill(msgspec.Struct, frozen=True, kw_only=True):
    """How one mutant's hunt ended.

    Attributes:
        seed: whose run was turned down; None when the mutant survived.
        judge: who turned it down; empty for a survivor.
        finding: the first thing found, in words.
        seeds: runs it took, or that it survived.
        elapsed_s: wall-clock seconds.
    """

    name: str
    seed: int | None
    judge: str
    finding: str
    seeds: int
    elapsed_s: float

    @property
    def killed(self) -> bool:
        return self.seed is not None


def judged(outcome: Outcome) -> list[tuple[Judge, str]]:
    """Everything that turned a run down, with who found it."""
    found = [(judge_of(text), text) for text in outcome.safety]
    found += [(Judge.LIVENESS, text) for text in outcome.liveness]
    if outcome.crash:
        found.append((Judge.CRASH, outcome.crash))
    return found


def judge_of(finding: str) -> Judge:
    """Who wrote a safety finding: its first word names the promise, else it is about beliefs."""
    first, _, rest = finding.partition(": ")
    if first == Invariant.ROUTED_CORRECTLY.value and rest.startswith("service-"):
        return Judge.JOURNALS
    return _JUDGES.get(first, Judge.BELIEFS)


def verdict_on(mutant: Mutant, plan: FleetPlan) -> tuple[Judge, str] | None:
    """Run one plan with the mutant in place; what its own judges found, None when they pass it.

    A finding of another judge is no kill: the mutant would then be caught by accident, or the judge be wrong.
    """
    with mutant.put_in():
        outcome = simulate(plan).outcome
    return next(((judge, text) for judge, text in judged(outcome) if judge in mutant.judges), None)


class RunTooLong(Exception):
    """A run did not end in time."""


@contextmanager
def _alarm(limit_s: float) -> Iterator[None]:
    """End what hangs; only in a process of our own, whose alarm nobody else uses."""

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise RunTooLong(f"no end within {limit_s:g} s of wall clock")

    earlier = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, earlier)


def hunt_one(
    name: str, seeds: Sequence[int], *, limit: Callable[[], AbstractContextManager[None]] = nullcontext
) -> Kill:
    """Hunt one mutant through the seeds, in order; stops at the first kill, or when ``MUTANT_LIMIT_S`` is over.

    Args:
        limit: wraps each run and may end it with ``RunTooLong``, which counts as a failure to end.
    """
    mutant = MUTANTS[name]
    begun_s = time.monotonic()
    found: tuple[Judge, str] | None = None
    killer: int | None = None
    done = 0
    for seed in seeds:
        if time.monotonic() - begun_s > MUTANT_LIMIT_S:
            break
        done += 1
        try:
            with limit():
                found = verdict_on(mutant, mutant.favour.plan(seed))
        except RunTooLong as stuck:
            found = (Judge.LIVENESS, str(stuck))
        if found is not None:
            killer = seed
            break
    judge, text = found or ("", "")
    elapsed_s = round(time.monotonic() - begun_s, 3)
    return Kill(name=name, seed=killer, judge=judge, finding=text, seeds=done, elapsed_s=elapsed_s)


def _hunt_in_child(name: str, seeds: Sequence[int]) -> Kill:
    return hunt_one(name, seeds, limit=lambda: _alarm(RUN_LIMIT_S))


def hunt(
    names: Iterable[str], *, seeds: Sequence[int], processes: int, on_kill: Callable[[Kill], None]
) -> list[Kill]:
    """Hunt mutants in processes of their own; a crash of one can't be taken for another's.

    Args:
        names: which ones.
        seeds: tried in this order.
        processes: at once.
        on_kill: told of each as its hunt ends.
    """
    kills = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_quiet) as pool:
        hunts: list[Future[Kill]] = [pool.submit(_hunt_in_child, name, seeds) for name in names]
        for ended in as_completed(hunts):
            kill = ended.result()
            on_kill(kill)
            kills.append(kill)
    return kills


def _quiet() -> None:
    # What a broken gateway logs about itself would bury the result.
    logging.disable(logging.CRITICAL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
