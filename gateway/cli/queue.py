"""Commands about a whole queue: dead letters, pause and resume, events."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.common import Common, command
from gateway.cli.output import clock, remark, write_json, write_line, write_table
from gateway.errors import InvalidSubmission

if TYPE_CHECKING:
    from gateway.events import Event

EXIT_NOT_DEAD = 1
EXIT_NOT_FOUND = 3


def register(app: typer.Typer) -> None:
    """Add the commands."""
    dead = typer.Typer(help="Dead letters: jobs that failed for good.", no_args_is_help=True)
    app.add_typer(dead, name="dead")
    command(dead, "list")(dead_list)
    command(dead, "requeue")(dead_requeue)
    command(app, "pause")(pause)
    command(app, "resume")(resume)
    command(app, "events")(events)


def dead_list(
    common: Common, count: Annotated[int, typer.Option(min=1, help="Most dead letters to show.")] = 100
) -> int:
    """Show the most recent dead letters, newest first.

    \b
    Example:
      gateway dead list --count 20
    """
    from gateway.explain import error_text

    with common.client() as client:
        views = client.dead_letters(count)
    if common.json:
        write_json(views)
    elif views:
        rows = [
            (view.job_id, view.spec.service, clock(view.ended_ms), view.attempts, error_text(view))
            for view in views
        ]
        write_table(("job", "service", "died", "attempts", "error"), rows)
    else:
        write_line("no dead letters")
    return 0


def dead_requeue(
    common: Common,
    jobs: Annotated[list[str] | None, typer.Argument(help="Ids of dead letters.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All present dead letters.")] = False,
) -> int:
    """Give dead letters a new life. They get all their attempts, and no deadline or parents.

    \b
    Exit code 3 when a job is unknown, 1 when one is not dead or another job has
    its unique key.
    \b
    Examples:
      gateway dead requeue 01a20a1a-8d87-7d01-820d-1bf8b3a6683b
      gateway dead requeue --all
    """
    if every == bool(jobs):
        raise InvalidSubmission("dead requeue: name jobs, or give --all")
    with common.client() as client:
        found = (
            client.requeue_all() if every else list(zip(jobs or [], client.requeue(jobs or []), strict=True))
        )
    if common.json:
        write_json([{"job_id": job_id, "status": status} for job_id, status in found])
    else:
        for job_id, status in found:
            write_line(f"{job_id} {status.value.replace('_', ' ')}")
    statuses = {status.value for _, status in found}
    if "unknown" in statuses:
        return EXIT_NOT_FOUND
    return EXIT_NOT_DEAD if statuses & {"not_dead", "unique_taken"} and not every else 0


def pause(common: Common) -> int:
    """Let no worker claim until `resume`. Running jobs go on.

    \b
    Example:
      gateway pause --queue renders
    """
    with common.client() as client:
        changed, queue = client.pause(), client.queue
    if common.json:
        write_json({"queue": queue, "paused": True, "changed": changed})
    else:
        write_line(f"queue {queue} {'is paused' if changed else 'was paused already'}")
    return 0


def resume(common: Common) -> int:
    """Let workers claim again.

    \b
    Example:
      gateway resume --queue renders
    """
    with common.client() as client:
        changed, queue = client.resume(), client.queue
    if common.json:
        write_json({"queue": queue, "paused": False, "changed": changed})
    else:
        write_line(f"queue {queue} {'claims again' if changed else 'was not paused'}")
    return 0


def show_event(event: Event, *, as_json: bool) -> None:
    """One event as one line."""
    if as_json:
        write_json(event)
        return
    from gateway.explain import detail_text

    detail = f" ({detail_text(event.detail)})" if event.detail else ""
    worker = f" {event.worker_id}" if event.worker_id else ""
    write_line(f"{clock(event.at_ms)} {event.job_id} {event.type.value}{worker}{detail}")


def events(
    common: Common,
    after: Annotated[str, typer.Option(help="Cursor to go on after; 0-0 is the oldest kept event.")] = "0-0",
    job: Annotated[str | None, typer.Option(help="Only events of this job.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Most events to show (not with --follow).")] = 1000,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with new events until Ctrl-C.")] = False,
) -> int:
    """Show the queue's event stream, oldest first.

    \b
    Examples:
      gateway events --job 01a20a1a-8d87-7d01-820d-1bf8b3a6683b
      gateway events --follow --json
    """
    shown: list[Event] = []
    with common.client() as client:
        for event in client.events(after, follow=follow):
            if job is not None and event.job_id != job:
                continue
            if follow:
                show_event(event, as_json=common.json)
                continue
            if len(shown) == limit:
                remark(f"there are more: --after {shown[-1].cursor}")
                break
            shown.append(event)
    if common.json and not follow:
        write_json(shown)
    elif not follow:
        for event in shown:
            show_event(event, as_json=False)
    return 0
