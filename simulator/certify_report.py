"""A certificate for terminals and for CI: the table, JUnit XML, and the display while it is made."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self
from xml.sax.saxutils import escape, quoteattr

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from simulator.certify_judge import MET, MISSED, Certificate, Measure, percentile

#: Where no terminal follows along, a line now and then, seconds.
LINE_EVERY_S = 15.0
_COLOURS = {MET: "green", MISSED: "bold red"}


class Display:
    """Shows a run on standard error while it goes on: a bar on a terminal, lines elsewhere.

    Args:
        check: may raise to end the run.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self.check = check
        self._console = Console(stderr=True, highlight=False)
        self._live = Progress(
            TextColumn("jobs"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=self._console,
            disable=not self._console.is_terminal,
        )
        self._task = self._live.add_task("", total=None)
        self._begun_s = self._told_s = time.monotonic()

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def phase(self, text: str) -> None:
        """A line for what happened, and beside the bar what happened last."""
        self._live.update(self._task, description=text)
        self._console.print(f"{time.monotonic() - self._begun_s:6.1f} s  {text}", markup=False)

    def progress(self, ended: int, submitted: int, planned: int) -> None:
        """Where the jobs stand."""
        self._live.update(self._task, completed=ended, total=planned)
        now_s = time.monotonic()
        if not self._console.is_terminal and now_s - self._told_s >= LINE_EVERY_S:
            self._told_s = now_s
            text = f"{ended} of {planned} jobs ended, {submitted - ended} in the queue or running"
            self._console.print(f"{now_s - self._begun_s:6.1f} s  {text}", markup=False)


def show(certificate: Certificate, console: Console) -> None:
    """The table of metrics and what else there is to tell."""
    table = Table(title=f"Certification under plan {certificate.plan['name']}", title_justify="left")
    for column in ("metric", "target", "measured", "verdict"):
        table.add_column(column)
    asked_more = False
    for measure in certificate.measures:
        if not measure.of_audit and not asked_more:
            table.add_section()
            asked_more = True
        verdict = Text(measure.verdict, style=_COLOURS.get(measure.verdict, "dim"))
        table.add_row(Text(measure.name), Text(measure.target), Text(measure.measured), verdict)
    console.print(table)
    for line in (*_facts(certificate), *certificate.notes, *certificate.violations):
        console.print(line, markup=False, highlight=False)
    console.print(verdict_line(certificate), markup=False, highlight=False)


def _facts(certificate: Certificate) -> list[str]:
    counts, latency = certificate.counts, certificate.latency_s
    return [
        f"{counts['completed']} of {counts['submitted']} jobs completed in {certificate.seconds:g} s; from submission "
        f"to end: median {percentile(latency, 0.5):.2f} s, 99 % within {percentile(latency, 0.99):.2f} s",
        f"{len(certificate.faults)} faults of the fleet, {counts['recoveries']} leases lapsed, "
        f"{counts['refused']} late settlements refused by the fence",
    ]


def verdict_line(certificate: Certificate) -> str:
    """The outcome in one line."""
    missed = [measure.name for measure in certificate.measures if measure.verdict == MISSED]
    return f"not certified: missed {', '.join(missed)}" if missed else "certified: every metric is met"


def junit(certificate: Certificate) -> str:
    """One test case per metric, in the XML that CI systems read."""
    failures = sum(measure.verdict == MISSED for measure in certificate.measures)
    skipped = sum(measure.verdict not in (MET, MISSED) for measure in certificate.measures)
    numbers = f'tests="{len(certificate.measures)}" failures="{failures}" errors="0" skipped="{skipped}"'
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>',
        f'<testsuites name="simulator certify" {numbers} time="{certificate.seconds:.3f}">',
        f"<testsuite name={quoteattr('certify.' + str(certificate.plan['name']))} {numbers} "
        f'time="{certificate.seconds:.3f}">',
        "<properties>",
        f'<property name="plan" value={quoteattr(str(certificate.plan["name"]))}/>',
        f'<property name="seed" value="{certificate.plan["seed"]}"/>',
        f'<property name="configuration" value={quoteattr(certificate.configuration)}/>',
        "</properties>",
        *(_case(certificate, measure) for measure in certificate.measures),
        f"<system-out>{escape(_printable(_summary(certificate)))}</system-out>",
        "</testsuite>",
        "</testsuites>",
    ]
    return "\n".join(lines) + "\n"


def _summary(certificate: Certificate) -> str:
    return "\n".join((*_facts(certificate), *certificate.notes, *certificate.violations))


def _printable(text: str) -> str:
    """Text without the control characters that XML cannot hold."""
    return "".join(char if char in "\n\t" or char >= " " else " " for char in text)


def _case(certificate: Certificate, measure: Measure) -> str:
    group = "certify.audit" if measure.of_audit else "certify.further"
    head = f"<testcase classname={quoteattr(group)} name={quoteattr(measure.name)}"
    text = _printable(f"target: {measure.target}; measured: {measure.measured}")
    if measure.verdict == MET:
        return f"{head}><system-out>{escape(text)}</system-out></testcase>"
    if measure.verdict == MISSED:
        more = escape(_printable("\n".join(certificate.violations)))
        return f"{head}><failure message={quoteattr(text)}>{more}</failure></testcase>"
    return f"{head}><skipped message={quoteattr(text)}/></testcase>"
