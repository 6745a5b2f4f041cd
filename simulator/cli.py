"""Command line of the simulator. Heavy imports stay inside the commands, so that ``--help`` is instant."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator import cli_certify, cli_contract, cli_fleet, cli_mutants

if TYPE_CHECKING:
    from simulator.dialects.catalogue import Dialect
    from simulator.faults import FaultPlan
    from simulator.serving import Ready

EXIT_USAGE = 2
INSTANCES_MAX = 1_000

ModelOption = Annotated[
    list[str] | None, typer.Option(help="A model that each instance says it has; may be repeated.")
]
RegisterOption = Annotated[
    str, typer.Option(help="Redis URL: gateways of --queue find the instances in their registry there.")
]
QueueOption = Annotated[str, typer.Option(help="Whose registry, with --register.")]
PortOption = Annotated[
    int | None,
    typer.Option(
        "--base-port",
        "--port",
        min=0,
        max=65_535,
        help="Port of the first instance, the next ones follow; 0: free ports. Without it each dialect begins at its "
        "service's usual port: 8299 for the simulated service, 8188 for ComfyUI, ...",
    ),
]

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
        "[dim]# A ComfyUI that loses half of its completions, where ComfyUI listens[/dim]\n\n"
        "simulator serve --dialect comfyui --port 8188 --fault lost_completion_rate=0.5\n\n"
        "[dim]# Several kinds of services at once, on free ports[/dim]\n\n"
        "simulator serve --dialect openai --dialect a1111 --grpc --base-port 0\n\n"
        "[dim]# No faults but one, the same way every time[/dim]\n\n"
        "simulator serve --http --no-faults --fault lost_completion_rate=0.5 --seed 7\n\n"
        "[dim]# Half of all requests fail during the first 30 seconds, then none[/dim]\n\n"
        "simulator serve --http --fault error_5xx_rate=0:0.5,30:0\n\n"
        "[dim]# For scripts: free ports, one JSON line when ready, a journal that survives[/dim]\n\n"
        "simulator serve --http --base-port 0 --json --journal journal.ndjson\n\n"
        "[dim]# Found by the gateways of a queue, wherever they listen[/dim]\n\n"
        "simulator serve --http --instances 3 --base-port 0 --register redis://localhost:6379 --queue renders\n\n"
        "[dim]# While it runs: change a fault, forget all jobs, read what was really executed[/dim]\n\n"
        "curl -X PUT 127.0.0.1:8299/control/faults -d '{\"hang_rate\": 0.1}'\n\n"
        "curl -X POST 127.0.0.1:8299/control/restart\n\n"
        "curl 127.0.0.1:8299/journal/summary\n\n"
        "Services over gRPC have a listener of their own for these; its address is told at the start.\n\n"
        "[bold]Exit codes[/bold]\n\n"
        "0 stopped by SIGTERM or SIGINT · 2 bad option, unknown dialect, bad fault, busy port or unwritable journal"
    )
)
def serve(
    http: Annotated[
        bool | None,
        typer.Option(
            "--http/--no-http", help="Serve the simulated service over HTTP; what you get by default."
        ),
    ] = None,
    websocket: Annotated[
        bool, typer.Option("--websocket", help="Serve the simulated service over WebSocket.")
    ] = False,
    grpc: Annotated[bool, typer.Option("--grpc", help="Serve the simulated service over gRPC.")] = False,
    dialect: Annotated[
        list[str] | None,
        typer.Option(help="Serve this dialect; may be repeated. An unknown one lists those there are."),
    ] = None,
    instances: Annotated[
        int, typer.Option(min=1, max=INSTANCES_MAX, help="How many of each, each on a port of its own.")
    ] = 1,
    base_port: PortOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    name: Annotated[
        str, typer.Option(help="Instances are called NAME-0, NAME-1, ...; by default after their dialects.")
    ] = "",
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
    model: ModelOption = None,
    register: RegisterOption = "",
    queue: QueueOption = "default",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line when ready, for scripts.")] = False,
) -> None:
    """Serve simulated services on real sockets until SIGTERM or SIGINT."""
    from simulator.dialects.catalogue import DialectError
    from simulator.registering import Registry
    from simulator.serving import Fleet, JournalFile, StartError, serve_fleet

    chosen = _chosen(http, websocket=websocket, grpc=grpc, named=dialect or [])
    plan = _read_plan(faults, fault or [], quiet=no_faults)
    try:
        fleet = Fleet(
            dialects=_dialects(chosen),
            instances=instances,
            base_port=base_port,
            host=host,
            name=name,
            seed=seed,
            plan=plan,
            slots=slots,
            duration_s=duration_s,
            registry=Registry(register, queue) if register else None,
            models=tuple(model or ()),
        )
        with JournalFile(journal) as sink:
            serve_fleet(fleet, sink, _say_ready_json if as_json else _say_ready)
    except (StartError, DialectError) as error:
        raise _refuse(str(error)) from None


def _chosen(http: bool | None, *, websocket: bool, grpc: bool, named: list[str]) -> list[str]:
    """Names of the dialects to serve, each once; without any wish the simulated service over HTTP."""
    flags = {"simulation-http": http, "simulation-websocket": websocket, "simulation-grpc": grpc}
    names = [name for name, wanted in flags.items() if wanted] + named
    if not names and http is None:
        names = ["simulation-http"]
    if not names:
        raise _refuse("nothing to serve: leave out --no-http, or name a --dialect")
    return list(dict.fromkeys(names))


def _dialects(names: list[str]) -> tuple[Dialect, ...]:
    from simulator.dialects.catalogue import dialect

    return tuple(dialect(name) for name in names)


def _say_ready(ready: list[Ready]) -> None:
    for one in ready:
        steered = "" if one.control_url.endswith(f":{one.port}") else f" (control at {one.control_url})"
        typer.echo(f"{one.instance} listening on {one.url}{steered}")


def _say_ready_json(ready: list[Ready]) -> None:
    instances = [dataclasses.asdict(one) for one in ready]
    typer.echo(json.dumps({"ready": True, "pid": os.getpid(), "instances": instances}))


@app.command(
    name="faults",
    epilog=(
        "[bold]Examples[/bold]\n\n"
        "simulator faults\n\n"
        "simulator faults --json | jq '.[] | select(.default != 0)'\n\n"
        "simulator serve --http --fault hang_rate=0.1 --fault error_5xx_rate=0:0.5,30:0"
    ),
)
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
cli_contract.register(app)


def main() -> None:
    """Entry point of the command ``simulator``."""
    app()


if __name__ == "__main__":
    main()
