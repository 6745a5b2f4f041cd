"""What an exploration shows on a terminal while it runs, and what it says at its end."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from simulator.explore import Exploration, SeedResult

#: Where no terminal follows along, a line now and then, seconds.
LINE_EVERY_S = 30.0
FAILURES_SHOWN = 20


class Display:
    """Adds results up and shows them on standard error: a live line on a terminal, else a line every half minute.

    Args:
        exploration: what is added up.
        seeds: how many there will be; None for no end.
        first: the first of them.
    """

    def __init__(self, exploration: Exploration, seeds: int | None, first: int) -> None:
        self._exploration = exploration
        self._seeds = seeds
        self._first = first
        console = Console(stderr=True)
        self._console = console
        self._live = Progress(
            TextColumn("seeds"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._live.add_task("", total=seeds)
        self._begun_s = self._told_s = time.monotonic()

    def __enter__(self) -> Self:
        self._live.start()
        if not self._console.is_terminal:
            self._console.print(f"exploring {_of(self._seeds)} from {self._first} on", highlight=False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exploration.elapsed_s = time.monotonic() - self._begun_s
        self._live.stop()

    def add(self, result: SeedResult) -> None:
        """Take in one seed."""
        exploration = self._exploration
        exploration.add(result)
        exploration.elapsed_s = time.monotonic() - self._begun_s
        self._live.update(self._task, advance=1, description=_short(exploration))
        if not self._console.is_terminal and time.monotonic() - self._told_s >= LINE_EVERY_S:
            self._told_s = time.monotonic()
            done = f"{exploration.seeds:,} of {_of(self._seeds)}"
            self._console.print(f"{done}, {_line(exploration)}", highlight=False, soft_wrap=True)


def _of(seeds: int | None) -> str:
    return "seeds without end" if seeds is None else f"{seeds:,} seeds"


def _short(exploration: Exploration) -> str:
    """What fits beside a bar on a terminal of 80 columns."""
    elapsed_s = max(exploration.elapsed_s, 0.001)
    failed = sum(exploration.failed.values())
    return f"{exploration.simulated_s / elapsed_s:,.0f} simulated s per s, {failed} failed"


def _line(exploration: Exploration) -> str:
    elapsed_s = max(exploration.elapsed_s, 0.001)
    reached = ", ".join(
        f"{name} {seen}/{wanted}" for name, (seen, wanted) in exploration.coverage.shares().items()
    )
    failed = sum(exploration.failed.values())
    return (
        f"{exploration.seeds / elapsed_s:.2f}/s, {exploration.simulated_s:,.0f} simulated s "
        f"({exploration.simulated_s / elapsed_s:,.0f} per s), {reached}, {failed} failed"
    )


def conclusion(exploration: Exploration, *, judge_coverage: bool) -> None:
    """The end of an exploration, for people."""
    console = Console(highlight=False)
    report = exploration.report(judge_coverage=judge_coverage)
    shown = Table(show_header=False, box=None, pad_edge=False)
    for label, value in (
        ("seeds", f"{exploration.seeds:,} in {exploration.elapsed_s:,.1f} s"),
        (
            "simulated",
            f"{exploration.simulated_s:,.0f} s, {report['simulated_seconds_per_second']:,.0f} per second",
        ),
        ("jobs", f"{exploration.jobs:,}, {exploration.completed:,} completed, {exploration.lost:,} lost"),
        ("faults", f"{exploration.faults_injected:,} injected"),
        ("violations", f"{exploration.violations:,}"),
        (
            "undurable",
            f"{exploration.undurable_runs:,} runs in which Redis lost acknowledged writes, "
            f"{exploration.undurable_with_findings:,} with consequences (no promise covers these)",
        ),
        *((f"reached {name}", f"{seen} of {wanted}") for name, (seen, wanted) in _shares(exploration)),
    ):
        shown.add_row(label, value)
    console.print(shown)
    missing = exploration.coverage.missing()
    if missing:
        weight = "must be reached" if judge_coverage else "too few seeds to judge"
        console.print(f"never reached ({weight}): {', '.join(missing)}")
    for failure in sorted(exploration.failures, key=lambda failure: failure.seed)[:FAILURES_SHOWN]:
        first = failure.findings[0] if failure.findings else ""
        console.print(f"seed {failure.seed} failed ({failure.kind}): {first}", markup=False)
    console.print(f"verdict: {report['verdict']}")


def _shares(exploration: Exploration) -> list[tuple[str, tuple[int, int]]]:
    return list(exploration.coverage.shares().items())
