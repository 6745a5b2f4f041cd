"""Commands on whole simulated fleets: explore, replay, shrink, scenarios. Heavy imports stay inside the commands."""

from __future__ import annotations

import json
import logging
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from simulator.explore import Exploration
    from simulator.plan import FleetPlan
    from simulator.run import Outcome

EXIT_USAGE = 2
EXIT_INTERRUPTED = 130
SEEDS_DEFAULT = 100
PROCESSES_MAX = 64
FLEET_MAX = 50
JOBS_MAX = 5_000
CODES = (
    "0 every promise held · 2 bad option or plan · 3 a safety invariant was broken · 4 something did not end after "
    "healing · 5 the gateway's or the simulation's code crashed, or a run hung · 6 a state that must be reached "
    "sometimes never was · 130 interrupted"
)

Gateways = Annotated[int, typer.Option(min=1, max=FLEET_MAX, help="Gateway machines of each fleet.")]
Services = Annotated[int, typer.Option(min=1, max=FLEET_MAX, help="Service instances of each fleet.")]
Jobs = Annotated[int, typer.Option(min=1, max=JOBS_MAX, help="Jobs of each run.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON value on standard output, nothing else.")]
Seed = Annotated[int | None, typer.Option(help="The seed whose plan is drawn.")]
PlanFile = Annotated[Path | None, typer.Option("--plan", help="A plan as JSON instead of a seed.")]


def register(app: typer.Typer) -> None:
    """Add the commands to the simulator's application."""
    app.command(
        epilog=(
            "[bold]Examples[/bold]\n\n"
            "simulator explore --seeds 200 --processes 4\n\n"
            "[dim]# A minute of fleets that nobody has seen, as the checks do it[/dim]\n\n"
            "simulator explore --fresh --budget-s 60\n\n"
            "[dim]# Over night, eight hours, to the first failure[/dim]\n\n"
            "simulator explore --until-failure --budget-s 28800 --processes 8\n\n"
            f"[bold]Exit codes[/bold]\n\n{CODES}"
        )
    )(explore)
    app.command(
        epilog=(
            "[bold]Examples[/bold]\n\n"
            "simulator replay --seed 7 --html run.html --spans run.jsonl\n\n"
            "simulator replay --plan shrunk.json\n\n"
            f"[bold]Exit codes[/bold]\n\n{CODES}"
        )
    )(replay)
    app.command(
        epilog=(
            "[bold]Examples[/bold]\n\n"
            "simulator shrink --seed 7 --out shrunk.json\n\n"
            "[bold]Exit codes[/bold]\n\n"
            "0 a plan that fails was made as small as the budget allows · 2 bad option or plan, or it does not fail"
        )
    )(shrink)
    app.command(
        epilog=(
            "[bold]Examples[/bold]\n\n"
            "simulator scenarios\n\n"
            "simulator scenarios --run --name paused-owner\n\n"
            "[bold]Exit codes[/bold]\n\n"
            "0 listed, or all shown · 1 a scenario did not show what it must · 2 unknown scenario"
        )
    )(scenarios)


def _refuse(message: str) -> typer.Exit:
    typer.echo(f"simulator: {message}", err=True)
    return typer.Exit(EXIT_USAGE)


def _quiet() -> None:
    """The gateways' own log lines would drown the report: they tell of injected faults by the hundred."""
    logging.getLogger("gateway").setLevel(logging.CRITICAL + 1)
    logging.getLogger("protocols").setLevel(logging.CRITICAL + 1)
    logging.getLogger("coredis").setLevel(logging.CRITICAL + 1)


def _plan(seed: int | None, file: Path | None, gateways: int, services: int, jobs: int) -> FleetPlan:
    """The plan that the options name."""
    import msgspec

    from simulator.explore import Size
    from simulator.plan import FleetPlan

    if (seed is None) == (file is None):
        raise _refuse("name either --seed or --plan")
    if file is None:
        assert seed is not None
        return Size(gateways=gateways, services=services, jobs=jobs).plan(seed)
    try:
        return msgspec.json.decode(file.read_bytes(), type=FleetPlan)
    except (OSError, msgspec.DecodeError) as error:
        raise _refuse(f"cannot read the plan in {file}: {error}") from None


def _exit_code(outcome: Outcome) -> int:
    from simulator.explore import EXIT_CODES

    return EXIT_CODES[outcome.kind]


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise _refuse(f"cannot write {file}: {error.strerror}") from None


def explore(
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            help=f"How many seeds; {SEEDS_DEFAULT} if unsaid, endless with --until-failure or --budget-s.",
        ),
    ] = None,
    start: Annotated[int | None, typer.Option(min=0, help="The first seed; 0 if unsaid.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start at a seed that nobody has run before: the current time.")
    ] = False,
    gateways: Gateways = 3,
    services: Services = 2,
    jobs: Jobs = 20,
    until_failure: Annotated[
        bool, typer.Option("--until-failure", help="Stop at the first seed that fails.")
    ] = False,
    processes: Annotated[
        int, typer.Option(min=1, max=PROCESSES_MAX, help="Processes at once, one run each.")
    ] = 2,
    budget_s: Annotated[
        float | None, typer.Option(min=0.1, help="Begin no further seed after so many seconds of wall clock.")
    ] = None,
    require_coverage: Annotated[
        bool,
        typer.Option("--require-coverage", help="Judge the never reached states however few the seeds are."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run many random fleets, each from its seed, and judge every one."""
    from simulator import explore as exploring
    from simulator.progress import Display, conclusion

    size = exploring.Size(gateways=gateways, services=services, jobs=jobs)
    if fresh and start is not None:
        raise _refuse("--fresh chooses the first seed itself: leave out --start")
    first = int(time.time()) if fresh else start or 0
    endless = until_failure or budget_s is not None
    count = seeds if seeds is not None or endless else SEEDS_DEFAULT
    exploration = exploring.Exploration(size)
    interrupted = False
    display = Display(exploration, count, first)

    def take(result: exploring.SeedResult) -> bool:
        display.add(result)
        return not (until_failure and result.kind != "ok")

    try:
        with _terminable(), display:
            exploring.explore(
                size, _seeds(first, count), processes=processes, on_result=take, budget_s=budget_s
            )
    except KeyboardInterrupt:
        interrupted = True
    judged = exploring.coverage_is_judged(exploration.seeds, required=require_coverage)
    if as_json:
        typer.echo(json.dumps(exploration.report(judge_coverage=judged), indent=2))
    else:
        conclusion(exploration, judge_coverage=judged)
    _hint(exploration)
    if interrupted:
        raise typer.Exit(EXIT_INTERRUPTED)
    raise typer.Exit(exploring.EXIT_CODES[exploration.verdict(judge_coverage=judged)])


@contextmanager
def _terminable() -> Iterator[None]:
    """Take a SIGTERM for an interrupt: what is stopped by its supervisor still says what it found."""
    earlier = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


def _seeds(start: int, count: int | None) -> Iterator[int]:
    import itertools

    return itertools.count(start) if count is None else iter(range(start, start + count))


def _hint(exploration: Exploration) -> None:
    """The command that repeats the first failure."""
    if exploration.failures:
        first = min(failure.seed for failure in exploration.failures)
        typer.echo(f"repeat it with: {exploration.replay_command(first)}", err=True)


def replay(
    seed: Seed = None,
    plan: PlanFile = None,
    gateways: Gateways = 3,
    services: Services = 2,
    jobs: Jobs = 20,
    html: Annotated[
        Path | None, typer.Option(help="Write a self-contained page with swim-lanes here.")
    ] = None,
    spans: Annotated[
        Path | None, typer.Option(help="Write OpenTelemetry spans here, one OTLP JSON request per line.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run one seed or plan again and tell its story: who did what when, and which fault hit whom."""
    from simulator.report.lanes import story_of
    from simulator.report.text import as_data, summary, timeline
    from simulator.run import simulate

    _quiet()
    run = simulate(_plan(seed, plan, gateways, services, jobs))
    if html is not None:
        from simulator.report.page import page

        _write(html, page(run))
    if spans is not None:
        from simulator.report.spans import spans as spans_of

        _write(spans, "".join(f"{line}\n" for line in spans_of(run)))
    if as_json:
        typer.echo(json.dumps(as_data(run), indent=2))
    else:
        for line in (*timeline(story_of(run)), "", *summary(run)):
            typer.echo(line)
    raise typer.Exit(_exit_code(run.outcome))


def shrink(
    seed: Seed = None,
    plan: PlanFile = None,
    gateways: Gateways = 3,
    services: Services = 2,
    jobs: Jobs = 20,
    runs: Annotated[int, typer.Option(min=1, max=10_000, help="Most runs to spend.")] = 200,
    out: Annotated[Path, typer.Option(help="Write the smallest failing plan here.")] = Path("shrunk.json"),
    as_json: Json = False,
) -> None:
    """Reduce a failing plan to a small one that fails alike, and print it as a regression test."""
    from simulator.run import simulate
    from simulator.shrink import regression_test
    from simulator.shrink import shrink as reduce

    _quiet()
    failing = _plan(seed, plan, gateways, services, jobs)
    first = simulate(failing).outcome
    if first.ok:
        raise _refuse("this plan does not fail: there is nothing to shrink")

    def tell(smaller: FleetPlan, spent: int) -> None:
        if not as_json:
            typer.echo(
                f"after {spent} runs: {len(smaller.jobs)} jobs, {len(smaller.incidents)} incidents, "
                f"{smaller.gateways} gateways",
                err=True,
            )

    shrunk = reduce(
        failing, lambda smaller: simulate(smaller).outcome.kind == first.kind, runs_max=runs, on_step=tell
    )
    finding = next(iter(simulate(shrunk.plan).outcome.findings), "")
    _write(out, shrunk.plan.encoded().decode() + "\n")
    test, command = regression_test(shrunk.plan, finding), f"simulator replay --plan {out}"
    if as_json:
        found: dict[str, Any] = {
            "kind": first.kind,
            "finding": finding,
            "runs": shrunk.runs,
            "exhausted": shrunk.exhausted,
            "plan": json.loads(shrunk.plan.encoded()),
            "test": test,
            "replay": command,
        }
        typer.echo(json.dumps(found, indent=2))
        return
    typer.echo(test)
    typer.echo(f"{shrunk.runs} runs{', budget spent' if shrunk.exhausted else ''}; repeat it with: {command}")


def scenarios(
    run: Annotated[bool, typer.Option("--run", help="Run them instead of listing them.")] = False,
    name: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    as_json: Json = False,
) -> None:
    """List the hand-written stories with their topologies, or run them."""
    from simulator.scenarios import SCENARIOS

    unknown = [one for one in name or [] if one not in SCENARIOS]
    if unknown:
        raise _refuse(f"no scenario {unknown[0]!r}; known: {', '.join(SCENARIOS)}")
    chosen = [SCENARIOS[one] for one in name or SCENARIOS]
    table: list[dict[str, Any]] = [
        {"name": scenario.name, "topology": scenario.topology, "shows": scenario.shows} for scenario in chosen
    ]
    if run:
        from simulator.run import simulate

        _quiet()
        for row, scenario in zip(table, chosen, strict=True):
            done = simulate(scenario.plan)
            row |= {"unmet": scenario.unmet(done), "simulated_seconds": done.outcome.simulated_s}
    if as_json:
        typer.echo(json.dumps(table, indent=2))
    else:
        for row in table:
            mark = "" if not run else "FAILED  " if row["unmet"] else "shown   "
            typer.echo(f"{mark}{row['name']}\n    {row['topology']}\n    {row['shows']}")
            for unmet in row.get("unmet", ()):
                typer.echo(f"    missing: {unmet}")
    raise typer.Exit(int(any(row.get("unmet") for row in table)))
