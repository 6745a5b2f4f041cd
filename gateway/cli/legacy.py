"""Moving a queue from the replaced system: docs/migration.md."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.common import Common, command
from gateway.cli.output import remark, write_json, write_line, write_table
from gateway.errors import InvalidSubmission

if TYPE_CHECKING:
    from gateway.client.legacy import LegacySurvey
    from gateway.client.requests import SubmitOutcome

EXIT_REFUSED = 1
#: Refused jobs shown to people; JSON has all.
REASONS_SHOWN = 20


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "import-legacy")(import_legacy)


def import_legacy(
    common: Common,
    source: Annotated[
        str, typer.Option("--from", help="Redis of the replaced system: redis://, rediss:// or unix://.")
    ],
    apply: Annotated[
        bool, typer.Option("--apply", help="Submit the jobs; without it nothing is changed.")
    ] = False,
    service: Annotated[
        list[str] | None, typer.Option("--service", help="OLD=NEW name of a service; may be repeated.")
    ] = None,
    ignore_requirement: Annotated[
        list[str] | None,
        typer.Option("--ignore-requirement", help="Leave this requirement out; may be repeated."),
    ] = None,
    take_running: Annotated[
        bool,
        typer.Option(
            "--take-running", help="Also take jobs that workers there hold: stop those workers first."
        ),
    ] = False,
    allow_unknown_service: Annotated[
        bool, typer.Option("--allow-unknown-service", help="Also take jobs for services nobody serves yet.")
    ] = False,
) -> int:
    """Take over the replaced system's jobs. A dry run unless --apply is given (jobs:pending, job:ID).

    Nothing there is changed or deleted. Jobs keep their ids, so running it twice takes no job twice.
    Exit code 1 when a job was refused; each is listed with its reason.

    \b
    Examples:
      gateway import-legacy --from redis://old:6379
      gateway import-legacy --from redis://old:6379 --service openai_text=openai --apply
    """
    from gateway.client.legacy import LegacyQueue, survey, take_over
    from gateway.connectors.registry import known_services
    from gateway.legacy import LegacyRules

    rules = LegacyRules(
        services=dict(_pair(item) for item in service or []),
        ignored=frozenset(ignore_requirement or []),
        take_running=take_running,
    )
    settings = common.settings()
    with LegacyQueue(source) as old, common.client(settings) as client:
        served = {worker.service for worker in client.workers()} | set(known_services())
        found = survey(
            old,
            client,
            rules,
            limits=settings.limits.store_limits(),
            known_services=None if allow_unknown_service else served,
        )
        outcomes = take_over(client, found) if apply else None
    facts = _facts(found, outcomes)
    _show(common, facts, found)
    complete = facts["reconciled"] and not facts["refused"] and not facts["refused_by_store"]
    return 0 if complete else EXIT_REFUSED


def _facts(found: LegacySurvey, outcomes: list[SubmitOutcome] | None) -> dict[str, Any]:
    """The counts; ``outcomes`` is None for a dry run."""
    from gateway.client.legacy import tally
    from gateway.legacy import LegacyFate

    taken, known, refused = tally(outcomes or [])
    ready = len(found.ready)
    left = {
        "running_there": found.count(LegacyFate.RUNNING),
        "ended_there": found.count(LegacyFate.ENDED),
        "without_record": found.count(LegacyFate.NO_RECORD),
        "refused": found.count(LegacyFate.REFUSED),
    }
    # Every id that was found has exactly one fate, and every one that was submitted one answer.
    fates = len(found.jobs) == ready + len(found.here) + sum(left.values())
    return {
        "applied": outcomes is not None,
        "found": len(found.jobs),
        "ready": ready,
        "already_here": len(found.here) + known,
        "taken_over": taken,
        **left,
        "refused_by_store": refused,
        "history_there": dict(found.history),
        "reconciled": fates and (outcomes is None or ready == taken + known + refused),
    }


def _pair(text: str) -> tuple[str, str]:
    old, separator, new = text.partition("=")
    if not (old and separator and new):
        raise InvalidSubmission(f"option --service: {text!r} is not OLD=NEW")
    return old, new


def _show(common: Common, facts: dict[str, Any], found: LegacySurvey) -> None:
    from gateway.legacy import LegacyFate

    left = [job for job in found.jobs if job.fate is not LegacyFate.READY]
    if common.json:
        reasons = [{"job_id": job.job_id, "fate": job.fate.value, "reason": job.reason} for job in left]
        write_json({**facts, "left": reasons})
        return
    rows = [(name.replace("_", " "), value) for name, value in facts.items() if isinstance(value, int)]
    write_table(("", "jobs"), [row for row in rows if not isinstance(row[1], bool)])
    if left:
        shown = [(job.job_id, job.fate.value, job.reason) for job in left[:REASONS_SHOWN]]
        write_table(("left there", "fate", "why"), shown)
    if len(left) > REASONS_SHOWN:
        remark(f"and {len(left) - REASONS_SHOWN} more; --json lists all")
    if not facts["applied"]:
        write_line("a dry run: nothing was changed; add --apply to take the ready jobs over")
