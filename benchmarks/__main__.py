"""``python -m benchmarks list`` and ``python -m benchmarks run NAME [--json [FILE]] [--jobs N] [--quick]``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks.catalogue import BENCHMARKS, Options, by_name
from benchmarks.server import CannotMeasure


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure the gateway.")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list", help="what can be measured")
    run = verbs.add_parser("run", help="measure one of them")
    run.add_argument("name", choices=sorted(by_name()))
    run.add_argument("--json", nargs="?", const="-", metavar="FILE", help="the report as JSON, - for stdout")
    run.add_argument("--jobs", type=int, metavar="N", help="jobs of the main measurement")
    run.add_argument("--quick", action="store_true", help="a small run to see that it works")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    options = _parser().parse_args(arguments)
    if options.verb == "list":
        width = max(len(benchmark.name) for benchmark in BENCHMARKS)
        for benchmark in BENCHMARKS:
            sys.stdout.write(f"{benchmark.name:{width}}  {benchmark.summary}\n")
        return 0
    benchmark = by_name()[options.name]
    try:
        report = benchmark.measure(Options(jobs=options.jobs, quick=options.quick))
    except CannotMeasure as error:
        sys.stderr.write(f"{error}\n")
        return 1
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
        return 0
    if options.json is not None:
        Path(options.json).write_text(text, "utf-8")
    sys.stdout.write(benchmark.render(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
