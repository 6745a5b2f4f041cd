"""The command ``simulator certify``. Heavy imports stay inside it."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from simulator.certify_judge import Certificate
    from simulator.fault_plans import FleetFaults

EXIT_MISSED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
MINUTES_MAX = 7 * 24 * 60


def register(app: typer.Typer) -> None:
    """Add the command to the simulator's application."""
    app.command(
        epilog=(
            "[bold]Examples[/bold]\n\n"
            "[dim]# Three gateways, two services, two kills, one Redis outage: about 40 s[/dim]\n\n"
            "simulator certify\n\n"
            "[dim]# Your own settings and connectors, for CI[/dim]\n\n"
            "simulator certify --config gateway.toml --faults lossy --junit certify.xml --html certify.html\n\n"
            "[dim]# Ten minutes of a plan drawn from a seed; first look at it[/dim]\n\n"
            "simulator certify --fault-seed 7 --print-plan > plan.toml\n\n"
            "simulator certify --faults plan.toml --minutes 10\n\n"
            "[bold]Presets[/bold]\n\n"
            "default · health-4pct · lossy · brutal · quiet\n\n"
            "[bold]Exit codes[/bold]\n\n"
            "0 certified · 1 a metric was missed, or the fleet did not start · 2 bad option, plan or configuration · "
            "130 interrupted"
        )
    )(certify)


def certify(
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="The gateways' settings; endpoints we can play are replaced."),
    ] = None,
    faults: Annotated[
        str | None, typer.Option(help="A preset, or a TOML file.", show_default="default")
    ] = None,
    fault_seed: Annotated[
        int | None, typer.Option(min=0, help="Draw the plan from this seed instead.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="How many jobs; the plan says if absent.")] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.1, max=MINUTES_MAX, help="Repeat the plan for so long.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON value on standard output.")] = False,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML, one test case per metric.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write a page with plots, in one file.")] = None,
    print_plan: Annotated[bool, typer.Option("--print-plan", help="Print the plan as TOML and end.")] = False,
    keep: Annotated[
        Path | None, typer.Option(help="Keep logs, settings and Redis data in this new folder.")
    ] = None,
) -> None:
    """Run a real fleet under a fault plan, kill parts of it, and judge what became of the jobs."""
    plan = _plan(faults, fault_seed, jobs, minutes)
    if print_plan:
        from gateway.fleet import toml_text

        typer.echo(toml_text(plan.to_mapping()), nl=False)
        return
    for file in (junit, html):
        if file is not None and not file.absolute().parent.is_dir():
            raise _refuse(f"cannot write {file}: there is no folder {file.absolute().parent}")
    certificate = _run(config, plan, keep)
    _write(certificate, as_json=as_json, junit=junit, html=html)
    raise typer.Exit(0 if certificate.certified else EXIT_MISSED)


def _refuse(message: str, code: int = EXIT_USAGE) -> typer.Exit:
    typer.echo(f"simulator: {' '.join(message.split())}", err=True)
    return typer.Exit(code)


def _plan(faults: str | None, fault_seed: int | None, jobs: int | None, minutes: float | None) -> FleetFaults:
    """The plan that the options name."""
    from simulator.certify_tables import PlanError
    from simulator.fault_plans import JOBS_MAX, choose_plan, draw_plan

    if faults is not None and fault_seed is not None:
        raise _refuse("name either --faults or --fault-seed")
    try:
        plan = draw_plan(fault_seed) if fault_seed is not None else choose_plan(faults or "default")
    except PlanError as error:
        raise _refuse(str(error)) from None
    if minutes is not None:
        plan = plan.repeated(max(1, math.ceil(minutes * 60 / plan.duration_s)))
    if jobs is not None:
        plan = plan.with_jobs(jobs)
    if plan.workload.jobs > JOBS_MAX:
        raise _refuse(f"{plan.workload.jobs} jobs, at most {JOBS_MAX}: lower --jobs or --minutes")
    return plan


@contextlib.contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    """A private folder: it holds settings, which may hold secrets."""
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="simulator-certify-") as name:
            yield Path(name)
        return
    try:
        keep.mkdir(mode=0o700, parents=True)
    except OSError as error:
        raise _refuse(f"--keep {keep}: {error.strerror}; name a folder that does not exist yet") from None
    yield keep.absolute()


class _Interrupts:
    """Ctrl-C, SIGTERM and a closed terminal end the run at the next safe point, where every process that was started
    is known and is ended; in the middle of a start it would be left running. A second signal ends it at once.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._asked = False
        self._earlier: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Callable[[], None]:
        self._earlier = {number: signal.signal(number, self._note) for number in self.SIGNALS}
        return self._check

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def _note(self, _signal: int, _frame: FrameType | None) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True

    def _check(self) -> None:
        if self._asked:
            raise KeyboardInterrupt


def _run(config: Path | None, plan: FleetFaults, keep: Path | None) -> Certificate:
    """Make the certificate; errors raised on purpose become one line."""
    from gateway.errors import ConfigError, ConnectorError, GatewayError
    from simulator.certify import certify as run_fleet
    from simulator.certify_config import builtin_setup, file_setup
    from simulator.certify_report import Display

    try:
        setup = builtin_setup(plan.services) if config is None else file_setup(config)
        plan = dataclasses.replace(plan, services=setup.instances)
        with _Interrupts() as check, _folder(keep) as folder, Display(check) as display:
            return run_fleet(folder, setup, plan, display)
    except (ConfigError, ConnectorError) as error:
        raise _refuse(str(error)) from None
    except GatewayError as error:
        raise _refuse(str(error), EXIT_MISSED) from None
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _write(certificate: Certificate, *, as_json: bool, junit: Path | None, html: Path | None) -> None:
    from rich.console import Console

    from simulator.certify_judge import as_json as encoded
    from simulator.certify_page import page
    from simulator.certify_report import junit as junit_text
    from simulator.certify_report import show

    if as_json:
        typer.echo(encoded(certificate).decode())
    else:
        show(certificate, Console(width=None if sys.stdout.isatty() else 160))
    for file, make in ((junit, junit_text), (html, page)):
        if file is not None:
            try:
                file.write_text(make(certificate), "utf-8")
            except OSError as error:
                raise _refuse(f"cannot write {file}: {error.strerror}") from None
