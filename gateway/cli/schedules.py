"""Commands about schedules: recurring jobs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli import submit_options as options
from gateway.cli.common import Common, command, parse_json, read_payload
from gateway.cli.output import clock, remark, write_json, write_line, write_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gateway.schedules import ScheduleView

EXIT_NOT_FOUND = 3
Names = Annotated[list[str], typer.Argument(help="Names of schedules.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    schedules = typer.Typer(help="Recurring jobs by cron expression.", no_args_is_help=True)
    app.add_typer(schedules, name="schedules")
    command(schedules, "add")(add)
    command(schedules, "list")(show)
    command(schedules, "remove")(remove)
    command(schedules, "pause")(pause)
    command(schedules, "resume")(resume)
    command(schedules, "run-now")(run_now)


def add(
    common: Common,
    name: Annotated[str, typer.Argument(help="Name of the schedule.")],
    cron: Annotated[str, typer.Argument(help="Minute, hour, day of month, month, day of week: '0 3 * * *'.")],
    service: Annotated[str, typer.Argument(help="Kind of backend, for example comfyui.")],
    payload: Annotated[
        str | None, typer.Argument(help="The service's request as JSON; - reads standard input.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Read the payload from a file; - is standard input.")
    ] = None,
    timezone: Annotated[str, typer.Option(help="IANA name of the zone whose clock counts.")] = "UTC",
    missed: Annotated[
        str, typer.Option(help="After a time without gateways: once (one job for all that passed) or skip.")
    ] = "once",
    unique: Annotated[
        bool, typer.Option("--unique", help="No new job while an earlier one has not ended.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Take the place of the same name.")] = False,
    requires: options.Requires = None,
    priority: options.Priority = 50,
    max_attempts: options.MaxAttempts = 3,
    timeout_s: options.TimeoutS = 1800.0,
    tenant: options.Tenant = "",
    expires_in: options.ExpiresIn = None,
    allow_unknown_service: options.AnyService = False,
) -> int:
    """Submit a job at every instant of a cron expression. Exactly one per instant, whichever gateways run.

    \b
    Examples:
      gateway schedules add nightly '0 3 * * *' comfyui -f workflow.json --timezone Europe/Berlin
      gateway schedules add warm '*/10 * * * *' openai '{"prompt": "hi"}' --missed skip --expires-in 300
    """
    content = read_payload(payload, file)
    wanted = None if requires is None else parse_json(requires, "option --requires")
    from gateway.client import JobRequest

    job = JobRequest(
        service,
        content,
        wanted,
        priority,
        max_attempts,
        timeout_s,
        tenant=tenant,
        expires_in_s=expires_in,
    )
    with common.client() as client:
        view = client.add_schedule(
            name,
            cron,
            job,
            timezone=timezone,
            missed=missed,
            unique=unique,
            replace=replace,
            allow_unknown_service=allow_unknown_service,
        )
    if common.json:
        write_json(view)
    else:
        write_line(f"schedule {name} is due at {clock(view.due_ms or 0)}")
    return 0


def show(common: Common) -> int:
    """Show all schedules: when each is due, and its last job.

    \b
    Example:
      gateway schedules list --json
    """
    with common.client() as client:
        views = client.schedules()
    if common.json:
        write_json(views)
    elif views:
        columns = ("schedule", "cron", "zone", "service", "due", "last instant", "last job")
        write_table(columns, [_row(view) for view in views])
    else:
        write_line("no schedules")
    return 0


def _row(view: ScheduleView) -> tuple[object, ...]:
    schedule = view.schedule
    return (
        schedule.name,
        schedule.cron,
        schedule.timezone,
        schedule.spec.service,
        "paused" if view.due_ms is None else clock(view.due_ms),
        clock(view.last_ms) if view.last_ms else "",
        view.last_job_id,
    )


def _tell(common: Common, names: Sequence[str], statuses: Sequence[Enum]) -> int:
    words = [str(status.value) for status in statuses]
    if common.json:
        write_json([{"name": name, "status": word} for name, word in zip(names, words, strict=True)])
    else:
        for name, word in zip(names, words, strict=True):
            write_line(f"{name} {word.replace('_', ' ')}")
    return EXIT_NOT_FOUND if "unknown" in words else 0


def remove(common: Common, names: Names) -> int:
    """Forget schedules; jobs that they submitted stay.

    \b
    Exit code 3 when one is unknown.
    \b
    Example:
      gateway schedules remove nightly
    """
    with common.client() as client:
        return _tell(common, names, client.remove_schedules(names))


def pause(common: Common, names: Names) -> int:
    """Let schedules submit nothing until they are resumed.

    \b
    Exit code 3 when one is unknown.
    \b
    Example:
      gateway schedules pause nightly
    """
    with common.client() as client:
        return _tell(common, names, client.pause_schedules(names))


def resume(common: Common, names: Names) -> int:
    """Let paused schedules go on with their next instant. What passed meanwhile is not caught up.

    \b
    Exit code 3 when one is unknown.
    \b
    Example:
      gateway schedules resume nightly
    """
    with common.client() as client:
        return _tell(common, names, client.resume_schedules(names))


def run_now(common: Common, name: Annotated[str, typer.Argument(help="Name of the schedule.")]) -> int:
    """Submit one job of a schedule at once. Prints its id; the schedule's instants stay.

    \b
    Example:
      gateway schedules run-now nightly
    """
    with common.client() as client:
        handle = client.run_schedule_now(name)
    if common.json:
        write_json(handle)
    else:
        write_line(handle.job_id)
        if handle.deduplicated:
            remark("an earlier job of this schedule has not ended: this is its id")
    return 0
