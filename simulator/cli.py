"""Command line of the simulator. Heavy imports stay inside the commands, so that ``--help`` is instant."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator import cli_certify, cli_fleet, cli_mutants

if TYPE_CHECKING:
    from simulator.faults import FaultPlan

EXIT_USAGE = 2
#: The port the simulated HTTP service always had.
BASE_PORT_DEFAULT = 8299
INSTANCES_MAX = 1_000

app = typer.Typer(
    name="simulator",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    help="A faithful, misbehaving twin of the services a gateway talks to.",
    epilog="Start with [bold]simulator serve --http[/bold], then look at [bold]simulator faults[/bold].",
)


@app.callback()
def simulator() -> None:
    """A faithful, misbehaving twin of the services a gateway talks to."""


def _refuse(message: str) -> typer.Exit:
    """Say what is wrong in one line on stderr; the caller raises the exit."""
    typer.echo(f"simulator: {message}", err=True)
    return typer.Exit(EXIT_USAGE)


def _read_plan(file: Path | None, assignments: list[str], *, quiet: bool) -> FaultPlan:
    """Defaults or none, then the file, then the command line; the later one wins."""
    import tomllib

    from simulator.faults import FaultError, FaultPlan, parse_assignment

    plan = FaultPlan.none() if quiet else FaultPlan()
    try:
        if file is not None:
            table: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8"))
            nested = table.get("faults")
            plan = plan.updated(nested if isinstance(nested, dict) else table)
        return plan.updated(dict(parse_assignment(text) for text in assignments))
    except FaultError as error:
        raise _refuse(f"{error}; see: simulator faults") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise _refuse(f"cannot read the faults in {file}: {error}") from None


@app.command(
    epilog=(
        "[bold]Examples[/bold]\n\n"
        "[dim]# Two instances on ports 8299 and 8300, with the default 4 % faults[/dim]\n\n"
        "simulator serve --http --instances 2\n\n"
        "[dim]# No faults but one, the same way every time[/dim]\n\n"
        "simulator serve --http --no-faults --fault lost_completion_rate=0.5 --seed 7\n\n"
        "[dim]# Half of all requests fail during the first 30 seconds, then none[/dim]\n\n"
        "simulator serve --http --fault error_5xx_rate=0:0.5,30:0\n\n"
        "[dim]# For scripts: free ports, one JSON line when ready, a journal that survives[/dim]\n\n"
        "simulator serve --http --base-port 0 --json --journal journal.ndjson\n\n"
        "[dim]# While it runs: change a fault, forget all jobs, read what was really executed[/dim]\n\n"
        "curl -X PUT 127.0.0.1:8299/control/faults -d '{\"hang_rate\": 0.1}'\n\n"
        "curl -X POST 127.0.0.1:8299/control/restart\n\n"
        "curl 127.0.0.1:8299/journal/summary\n\n"
        "[bold]Exit codes[/bold]\n\n"
        "0 stopped by SIGTERM or SIGINT · 2 bad option, bad fault, busy port or unwritable journal"
    )
)
def serve(
    http: Annotated[bool, typer.Option("--http/--no-http", help="Serve over HTTP.")] = True,
    instances: Annotated[
        int, typer.Option(min=1, max=INSTANCES_MAX, help="How many instances, each on a port of its own.")
    ] = 1,
    base_port: Annotated[
        int,
        typer.Option(
            min=0, max=65_535, help="Port of the first instance, the next ones follow; 0: free ports."
        ),
    ] = BASE_PORT_DEFAULT,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    name: Annotated[str, typer.Option(help="Instances are called NAME-0, NAME-1, ...")] = "simulation",
    seed: Annotated[int, typer.Option(help="Repeats the same decisions for the same calls.")] = 0,
    faults: Annotated[
        Path | None, typer.Option(help="TOML file of knobs, at its top or in a table named faults.")
    ] = None,
    fault: Annotated[
        list[str] | None, typer.Option(help="One knob as name=value, may be repeated; wins over the file.")
    ] = None,
    no_faults: Annotated[
        bool, typer.Option("--no-faults", help="Start from no faults instead of the default 4 %.")
    ] = False,
    slots: Annotated[int, typer.Option(min=1, help="Jobs at once per instance; more wait in line.")] = 4,
    duration_s: Annotated[
        float, typer.Option(min=0.0, help="How long a job takes when it does not say, in seconds.")
    ] = 0.2,
    journal: Annotated[
        Path | None, typer.Option(help="Append the journal of all instances, as NDJSON.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line when ready, for scripts.")] = False,
) -> None:
    """Serve simulated services on real sockets until SIGTERM or SIGINT."""
    from simulator.serving import Fleet, JournalFile, Ready, StartError, serve_fleet

    def say_ready(ready: list[Ready]) -> None:
        if as_json:
            typer.echo(
                json.dumps(
                    {
                        "ready": True,
                        "pid": os.getpid(),
                        "instances": [dataclasses.asdict(one) for one in ready],
                    }
                )
            )
            return
        for instance in ready:
            typer.echo(f"{instance.instance} listening on {instance.url}")

    if not http:
        raise _refuse("nothing to serve: leave out --no-http")
    plan = _read_plan(faults, fault or [], quiet=no_faults)
    if base_port and base_port + instances - 1 > 65_535:
        raise _refuse(f"--base-port {base_port} leaves no ports for {instances} instances")
    fleet = Fleet(
        instances=instances,
        base_port=base_port,
        host=host,
        name=name,
        seed=seed,
        plan=plan,
        slots=slots,
        duration_s=duration_s,
    )
    try:
        with JournalFile(journal) as sink:
            serve_fleet(fleet, sink, say_ready)
    except StartError as error:
        raise _refuse(str(error)) from None


@app.command(name="faults")
def list_faults(
    as_json: Annotated[bool, typer.Option("--json", help="The table as JSON, for scripts.")] = False,
) -> None:
    """List all fault knobs: what they do, what they accept, what they are by default."""
    from simulator.faults import KNOBS, FaultPlan

    defaults = FaultPlan().to_mapping()
    if as_json:
        table = [
            {
                "name": knob.name,
                "meaning": knob.meaning,
                "allowed": knob.allowed,
                "default": defaults[knob.name],
            }
            for knob in KNOBS.values()
        ]
        typer.echo(json.dumps(table, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    shown = Table("knob", "default", "what happens", header_style="bold", box=None, pad_edge=False)
    for knob in KNOBS.values():
        shown.add_row(knob.name, json.dumps(defaults[knob.name]), knob.meaning)
    console = Console()
    console.print(shown)
    console.print(
        "\nA _rate is a chance from 0 to 1, or a schedule of steps: 0:0.5,30:0 is half of all for 30 s.\n"
        "Set knobs with: simulator serve --fault NAME=VALUE, a TOML file, or PUT /control/faults.",
        highlight=False,
    )


cli_fleet.register(app)
cli_certify.register(app)
cli_mutants.register(app)


def main() -> None:
    """Entry point of the command ``simulator``."""
    app()


if __name__ == "__main__":
    main()
