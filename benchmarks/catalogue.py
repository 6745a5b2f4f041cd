"""The one list of benchmarks, and what each has to offer."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

#: What a benchmark returns: JSON values only.
Report = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How much to measure.

    Attributes:
        jobs: jobs of the main measurement; None for the benchmark's own choice.
        quick: a small run that shows that everything works; its figures mean little.
    """

    jobs: int | None = None
    quick: bool = False


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One measurement: ``module`` has ``measure(options) -> Report`` and ``render(report) -> str``."""

    name: str
    summary: str
    module: str

    def measure(self, options: Options) -> Report:
        """Run it."""
        found: Callable[[Options], Report] = importlib.import_module(self.module).measure
        return found(options)

    def render(self, report: Report) -> str:
        """The report for a reader at a terminal."""
        found: Callable[[Report], str] = importlib.import_module(self.module).render
        return found(report)


BENCHMARKS = (
    Benchmark(
        "claim", "jobs per second of one process, its latency, and Redis' own ceiling", "benchmarks.claim"
    ),
    Benchmark("scaling", "processor time per job over backlog, workers and classes", "benchmarks.scaling"),
    Benchmark("simulation", "simulated seconds per real second of a fleet", "benchmarks.simulation"),
)


def by_name() -> dict[str, Benchmark]:
    """The benchmarks by the name they are run with."""
    return {benchmark.name: benchmark for benchmark in BENCHMARKS}
