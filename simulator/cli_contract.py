"""The command ``simulator contract``: holds connectors to it. Heavy imports stay inside the command."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from simulator.contract.runs import ContractRun
    from simulator.dialects.catalogue import Dialect

EXIT_BROKEN = 1
EXIT_USAGE = 2


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """What became of one case for one connector: ``holds``, ``broken`` or ``left out``; ``detail`` says why."""

    connector: str
    case: str
    promise: str
    verdict: str
    detail: str = ""


def register(app: typer.Typer) -> None:
    """Add the command to the simulator's application."""
    app.command(
        epilog=(
            "[bold]Examples[/bold]\n\n"
            "simulator contract\n\n"
            "[dim]# One connector, some cases[/dim]\n\n"
            "simulator contract --connector comfyui-websocket --case success --case reattach\n\n"
            "[dim]# A connector of your own, against a twin of your own (docs/connectors.md)[/dim]\n\n"
            "simulator contract --dialect press_twin:PRESS\n\n"
            "[bold]Exit codes[/bold]\n\n"
            "0 every promise holds · 1 at least one is broken · 2 unknown connector, case or dialect"
        )
    )(contract)


def contract(
    connector: Annotated[
        list[str] | None, typer.Option(help="Hold this connector to it; may be repeated. Default: all.")
    ] = None,
    case: Annotated[list[str] | None, typer.Option(help="Show this case only; may be repeated.")] = None,
    dialect: Annotated[
        list[str] | None,
        typer.Option(help="A dialect outside the catalogue, as module:NAME; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Repeats the same decisions of the twins.")] = 0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON value on standard output, nothing else.")
    ] = False,
) -> None:
    """Run every case of the contract against connectors and their simulated twins; say what was left out, and why."""
    from gateway.errors import ConnectorError
    from simulator.dialects.catalogue import DialectError

    lines: list[Line] = []
    try:
        for run in _runs(connector or [], case or [], [_dialect(name) for name in dialect or []]):
            line = _show(run, seed)
            lines.append(line)
            if not as_json and line.verdict != "holds":
                typer.echo(f"{line.verdict}: {line.connector}: {line.case}: {line.detail}")
    except (ConnectorError, DialectError) as error:
        typer.echo(f"simulator: {error}", err=True)
        raise typer.Exit(EXIT_USAGE) from None
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(line) for line in lines], indent=2))
    else:
        typer.echo(_conclusion(lines))
    if any(line.verdict == "broken" for line in lines):
        raise typer.Exit(EXIT_BROKEN)


def _dialect(name: str) -> Dialect:
    import os
    import sys

    from simulator.dialects.catalogue import Dialect, DialectError, load

    if os.getcwd() not in sys.path:  # as `python -m` would: the twin lies beside the connector's tests
        sys.path.insert(0, os.getcwd())
    found = load(name)
    if not isinstance(found, Dialect):
        raise DialectError(f"{name}: not a Dialect; written as module:NAME, for example press_twin:PRESS")
    return found


def _runs(keys: list[str], cases: list[str], dialects: list[Dialect]) -> list[ContractRun]:
    """The wanted runs, in order.

    Raises:
        DialectError: an unknown connector or case.
    """
    from simulator.contract.case import CASES
    from simulator.contract.runs import contract_runs
    from simulator.dialects.catalogue import DialectError

    runs = contract_runs(*dialects)
    known = list(dict.fromkeys(run.key for run in runs))
    for wanted, there, what in ((keys, known, "connector"), (cases, list(CASES), "case")):
        unknown = [name for name in wanted if name not in there]
        if unknown:
            raise DialectError(f"no {what} {unknown[0]!r} in the contract: known are {', '.join(there)}")
    return [run for run in runs if (not keys or run.key in keys) and (not cases or run.case.name in cases)]


def _show(run: ContractRun, seed: int) -> Line:
    """Run one case; whatever it raises breaks the promise."""
    skip = run.skip()
    head = (run.key, run.case.name, run.case.promise)
    if skip is not None:
        return Line(*head, "left out", str(skip))
    try:
        run(seed)
    except Exception as error:
        text = " ".join(str(error).split())
        return Line(*head, "broken", f"{type(error).__name__}: {text} (promised: {run.case.promise})")
    return Line(*head, "holds")


def _conclusion(lines: list[Line]) -> str:
    told = []
    for key in dict.fromkeys(line.connector for line in lines):
        verdicts = [line.verdict for line in lines if line.connector == key]
        counts = ", ".join(f"{verdicts.count(word)} {word}" for word in ("holds", "broken", "left out"))
        told.append(f"{key}: {counts}")
    return "\n".join(told)
