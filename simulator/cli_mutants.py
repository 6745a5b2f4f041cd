"""The command that tests the tests: ``simulator mutants``. Heavy imports stay inside the command."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from simulator.mutants.hunt import Kill

EXIT_SURVIVED = 1
EXIT_USAGE = 2
SEEDS_DEFAULT = 200
PROCESSES_MAX = 64


def register(app: typer.Typer) -> None:
    """Add the command to the simulator's application."""
    app.command(
        epilog=(
            "[bold]Examples[/bold]\n\n"
            "simulator mutants --processes 4\n\n"
            "[dim]# One of them, to see who catches it and why[/dim]\n\n"
            "simulator mutants --only lock-and-busy-flag\n\n"
            "[bold]Exit codes[/bold]\n\n"
            "0 every mutant was caught · 1 at least one survived all seeds · 2 bad option or unknown mutant"
        )
    )(mutants)


def mutants(
    only: Annotated[list[str] | None, typer.Option(help="Hunt this one only; may be repeated.")] = None,
    seeds: Annotated[int, typer.Option(min=1, max=100_000, help="Most runs per mutant.")] = SEEDS_DEFAULT,
    processes: Annotated[
        int, typer.Option(min=1, max=PROCESSES_MAX, help="Mutants hunted at the same time.")
    ] = 2,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON value on standard output, nothing else.")
    ] = False,
) -> None:
    """Break the shipped scripts and code on purpose, and show that the simulated fleet notices every time."""
    from simulator.mutants.catalogue import MUTANTS
    from simulator.mutants.hunt import hunt

    names = list(dict.fromkeys(only or MUTANTS))
    unknown = [name for name in names if name not in MUTANTS]
    if unknown:
        typer.echo(f"simulator: no mutant {unknown[0]!r}; known: {', '.join(MUTANTS)}", err=True)
        raise typer.Exit(EXIT_USAGE)
    kills = hunt(
        names,
        seeds=range(seeds),
        processes=min(processes, len(names)),
        on_kill=lambda kill: typer.echo(line_of(kill), err=as_json),
    )
    report = report_of(kills)
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        typer.echo(f"{report['killed']} of {report['mutants']} mutants caught")
    raise typer.Exit(EXIT_SURVIVED if report["survived"] else 0)


def line_of(kill: Kill) -> str:
    """One mutant's end, for people."""
    if not kill.killed:
        return f"{kill.name:<32} SURVIVED {kill.seeds} seeds in {kill.elapsed_s:.0f} s"
    seeds = "1 seed" if kill.seeds == 1 else f"{kill.seeds} seeds"
    return f"{kill.name:<32} {seeds:>9}  {kill.judge:<10} {kill.finding}"


def report_of(kills: Sequence[Kill]) -> dict[str, Any]:
    """All ends, for programs."""
    ordered = sorted(kills, key=lambda kill: kill.name)
    return {
        "mutants": len(ordered),
        "killed": sum(kill.killed for kill in ordered),
        "survived": [kill.name for kill in ordered if not kill.killed],
        "seeds_to_kill": {kill.name: kill.seeds for kill in ordered if kill.killed},
        "judges": {kill.name: kill.judge for kill in ordered if kill.killed},
        "findings": {kill.name: kill.finding for kill in ordered if kill.killed},
    }
