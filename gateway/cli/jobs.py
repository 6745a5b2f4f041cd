"""Commands about single jobs: submit, status, watch, cancel, explain."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli import submit_options as options
from gateway.cli.common import Common, command, parse_json, read_payload
from gateway.cli.output import age, clock, console, remark, write_json, write_line, write_table
from gateway.errors import InvalidSubmission

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from gateway.client import Client, JobHandle, StreamItem
    from gateway.models import JobView

WAIT_TIMEOUT_S = 3600.0
EXIT_JOB_FAILED = 1
EXIT_NOT_FOUND = 3


def register(app: typer.Typer) -> None:
    """Add the commands."""
    command(app, "submit")(submit)
    command(app, "status")(status)
    command(app, "watch")(watch)
    command(app, "cancel")(cancel)
    command(app, "explain")(explain)


def submit(
    common: Common,
    service: Annotated[str, typer.Argument(help="Kind of backend, for example comfyui.")],
    payload: Annotated[
        str | None, typer.Argument(help="The service's request as JSON; - reads standard input.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", help="Read the payload from a file; - is standard input.")
    ] = None,
    requires: options.Requires = None,
    priority: options.Priority = 50,
    max_attempts: options.MaxAttempts = 3,
    timeout_s: options.TimeoutS = 1800.0,
    delay_s: Annotated[float, typer.Option(help="Seconds before the job may be claimed.")] = 0.0,
    idempotency_key: Annotated[str | None, typer.Option(help="Same key, same job.")] = None,
    job_id: Annotated[str | None, typer.Option(help="Chosen id instead of a fresh one.")] = None,
    tenant: options.Tenant = "",
    expires_in: options.ExpiresIn = None,
    expires_at: options.ExpiresAt = None,
    unique: options.Unique = None,
    unique_for: options.UniqueFor = 0.0,
    after: options.After = None,
    on_parent_failure: options.OnParentFailure = "cancel",
    durable: Annotated[
        bool, typer.Option("--durable", help="Wait until Redis confirms that the job survives its crash.")
    ] = False,
    allow_unknown_service: options.AnyService = False,
    count: Annotated[int, typer.Option(help="Submit this many equal jobs.")] = 1,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the end and show the result.")] = False,
    wait_timeout_s: Annotated[
        float, typer.Option(help="Longest wait for the end, seconds.")
    ] = WAIT_TIMEOUT_S,
) -> int:
    """Put a job into the queue; prints its id.

    \b
    Examples:
      gateway submit simulation '{"steps": 4}'
      gateway submit comfyui --file workflow.json --priority 80 --tenant acme --wait
      echo '{"prompt": "a cat"}' | gateway submit a1111 - --json
      gateway submit comfyui --requires '{"vram_gb": {">=": 24}}' -f workflow.json --expires-in 600
      gateway submit a1111 -f upscale.json --after 01a20a1a-8d87-7d01-820d-1bf8b3a6683b --unique cover
    """
    if count < 1:
        raise InvalidSubmission(f"--count {count}: at least 1")
    if count > 1 and any(one is not None for one in (job_id, idempotency_key, unique)):
        raise InvalidSubmission(
            "--count: equal jobs cannot share one --job-id, --idempotency-key or --unique"
        )
    content = read_payload(payload, file)
    wanted = None if requires is None else parse_json(requires, "option --requires")
    from gateway.client import JobRequest

    expires_at_s = options.parse_moment(expires_at, "option --expires-at")
    request = JobRequest(
        *(service, content, wanted, priority, max_attempts, timeout_s, delay_s, idempotency_key, job_id),
        *(tenant, expires_in, expires_at_s, unique, unique_for, after or (), on_parent_failure),
    )
    with common.client() as client:
        handles = _put(client, request, count, durable=durable, allow_unknown_service=allow_unknown_service)
        if wait:
            return _await_all(client, handles, wait_timeout_s, as_json=common.json)
    if common.json:
        write_json(handles[0] if count == 1 else handles)
    else:
        for handle in handles:
            _announce(handle)
    return 0


def _put(
    client: Client, request: Any, count: int, *, durable: bool, allow_unknown_service: bool
) -> list[JobHandle]:
    if count == 1:
        fields = {name: getattr(request, name) for name in request.__struct_fields__}
        handle = client.submit(**fields, durable=durable, allow_unknown_service=allow_unknown_service)
        return [handle]
    result = client.submit_many(
        [request] * count, durable=durable, allow_unknown_service=allow_unknown_service
    )
    result.raise_for_refused()
    return [outcome.handle for outcome in result.outcomes]


def _announce(handle: JobHandle) -> None:
    write_line(handle.job_id)
    if handle.deduplicated:
        remark("an earlier job with the same id or key took its place")


def _await_all(client: Client, handles: list[JobHandle], timeout_s: float, *, as_json: bool) -> int:
    import time

    deadline_s = time.monotonic() + timeout_s
    if not as_json:
        for handle in handles:
            _announce(handle)
    views = [
        client.wait(
            handle.job_id, round(max(deadline_s - time.monotonic(), 0.0), 1) if position else timeout_s
        )
        for position, handle in enumerate(handles)
    ]
    if as_json:
        write_json(views[0] if len(views) == 1 else views)
    else:
        for view in views:
            _show_end(view)
    return 0 if all(view.state == "completed" for view in views) else EXIT_JOB_FAILED


def _show_end(view: JobView) -> None:
    """How a job ended, and its result or error."""
    import msgspec

    took = age(view.ended_ms - view.submitted_ms)
    remark(f"{view.job_id} {view.state.value} {took} after its submission")
    body = view.result if view.state == "completed" else view.error
    if body is not None:
        write_line(msgspec.json.format(msgspec.json.encode(body)).decode())


def status(
    common: Common,
    job: Annotated[str | None, typer.Argument(help="A job's id; without it the whole queue.")] = None,
) -> int:
    """Show the queue, or one job.

    \b
    Examples:
      gateway status
      gateway status 01a20a1a-8d87-7d01-820d-1bf8b3a6683b --json
    """
    with common.client() as client:
        if job is None:
            return _queue_status(client, as_json=common.json)
        view = client.get(job)
    if common.json:
        write_json(view)
    else:
        _show_job(view)
    return 0


def _queue_status(client: Client, *, as_json: bool) -> int:
    import msgspec

    stats = client.stats()
    workers = client.workers()
    if as_json:
        counts = {"queue": client.queue, **msgspec.to_builtins(stats), "pending_total": stats.pending_total}
        write_json({**counts, "workers": workers})
        return 0
    ended = stats.finished - stats.dead
    columns = ("pending", "scheduled", "waiting", "running", "completed or cancelled", "dead", "oldest waits")
    row = (
        stats.pending_total,
        stats.scheduled,
        stats.waiting,
        stats.running,
        ended,
        stats.dead,
        age(stats.oldest_pending_ms),
    )
    write_table(columns, [row], title=f"queue {client.queue}{' (paused)' if stats.paused else ''}")
    waiting = [(class_id, count) for class_id, count in stats.pending.items() if count]
    if len(waiting) > 1:
        write_table(("class", "pending"), waiting)
    rows = [
        (
            worker.worker_id,
            worker.connector,
            worker.endpoint,
            f"{'?' if worker.running is None else worker.running}/{worker.slots}",
            worker.refusal or ("unhealthy" if worker.healthy is False else "claims"),
            age(stats.now_ms - worker.seen_ms),
        )
        for worker in workers
    ]
    if rows:
        write_table(("worker", "connector", "endpoint", "slots", "state", "seen"), rows)
    else:
        write_line("no worker is registered")
    return 0


def _show_job(view: JobView) -> None:
    import msgspec

    rows: list[tuple[str, object]] = [
        ("job", view.job_id),
        ("state", view.state.value + (" (cancel requested)" if view.cancel_requested else "")),
        ("service", view.spec.service),
        ("class", view.class_id),
        ("priority", view.spec.priority),
        ("attempts", f"{view.attempts} of {view.spec.max_attempts} failed"),
        ("submitted", clock(view.submitted_ms)),
    ]
    optional: list[tuple[str, object]] = [
        ("tenant", view.spec.tenant),
        ("worker", view.worker_id),
        ("reference", view.reference),
        ("progress", f"{view.progress:.0%}" if view.progress else ""),
        ("due", clock(view.due_ms) if view.due_ms else ""),
        ("deadline", clock(view.expires_ms) if view.expires_ms else ""),
        ("unique key", view.unique_key),
        ("after", ", ".join(view.spec.after)),
        ("ended", clock(view.ended_ms) if view.ended_ms else ""),
        ("error", msgspec.json.encode(view.error).decode() if view.error else ""),
        ("result", msgspec.json.encode(view.result).decode() if view.result is not None else ""),
    ]
    write_table(("", ""), rows + [row for row in optional if row[1]])


def watch(
    common: Common,
    job: Annotated[str | None, typer.Argument(help="A job's id; without it all events of the queue.")] = None,
    after: Annotated[
        str | None, typer.Option(help="Resume after this id (a job) or cursor (the queue).")
    ] = None,
) -> int:
    """Follow a job until it ends, or the queue's events. Ctrl-C ends it.

    \b
    Exit code 1 when the job ends dead or cancelled.
    \b
    Examples:
      gateway watch 01a20a1a-8d87-7d01-820d-1bf8b3a6683b
      gateway watch --json | jq .type
    """
    with common.client() as client:
        if job is None:
            from gateway.cli.queue import show_event

            for event in client.events(after or "$"):
                show_event(event, as_json=common.json)
            return 0
        view = _follow(client, job, after or "0-0", as_json=common.json)
        return 0 if view.state == "completed" else EXIT_JOB_FAILED


def _follow(client: Client, job_id: str, after: str, *, as_json: bool) -> JobView:
    """Show a job's stream to its end. Whoever interrupts it is told how to go on; programs have the ids."""
    last = after

    def items() -> Iterator[StreamItem]:
        nonlocal last
        for item in client.job_stream(job_id, after):
            yield item
            last = item.id  # only now it has been shown: rather once more than not at all

    try:
        if as_json or not sys.stdout.isatty():
            for item in items():
                if as_json:
                    write_json(item)
                else:
                    write_line(_item_text(item))
        else:
            _progress_bar(client.get(job_id).state.value, items())
    except KeyboardInterrupt:
        if not as_json:
            remark(f"to go on from here: gateway watch {job_id} --after {last}")
        raise
    view = client.wait(job_id, 1.0)
    if as_json:
        write_json(view)
    else:
        _show_end(view)
    return view


def _item_text(item: StreamItem) -> str:
    import msgspec

    if item.kind == "chunk":
        return f"chunk {item.number}: {msgspec.json.encode(item.data).decode()}"
    message = item.data if isinstance(item.data, str) else ""
    return f"{item.value:4.0%} {message}".rstrip()


def _progress_bar(state: str, items: Iterable[StreamItem]) -> None:
    from rich.progress import Progress
    from rich.text import Text

    with Progress(console=console(), transient=True) as progress:
        task = progress.add_task(state, total=1.0)
        for item in items:
            if item.kind == "chunk":
                progress.console.print(Text(_item_text(item)))
            else:
                progress.update(task, completed=item.value, description="running")


def cancel(
    common: Common,
    jobs: Annotated[list[str], typer.Argument(help="Ids of jobs.")],
) -> int:
    """Stop jobs. Waiting ones end at once, running ones are told through their lease.

    \b
    Exit code 3 when a job is unknown.
    \b
    Example:
      gateway cancel 01a20a1a-8d87-7d01-820d-1bf8b3a6683b
    """
    with common.client() as client:
        statuses = client.cancel(jobs)
    if common.json:
        write_json([{"job_id": job, "status": found} for job, found in zip(jobs, statuses, strict=True)])
    else:
        words = {"requested": "cancel requested", "already_ended": "had ended already"}
        for job, found in zip(jobs, statuses, strict=True):
            write_line(f"{job} {words.get(found.value, found.value)}")
    return EXIT_NOT_FOUND if "unknown" in statuses else 0


def explain(common: Common, job: Annotated[str, typer.Argument(help="The job's id.")]) -> int:
    """Say why a job waits, and what happened to it so far. Also who could run it, and which requirements are unmet.

    \b
    Example:
      gateway explain 01a20a1a-8d87-7d01-820d-1bf8b3a6683b
    """
    from gateway.models import TERMINAL_STATES

    with common.client() as client:
        found = client.explain(job)
    if common.json:
        write_json(found)
        return 0
    tenant = f", tenant {found.tenant}" if found.tenant else ""
    write_line(
        f"job {found.job_id} is {found.state.value} (service {found.service}, class {found.class_id}{tenant})"
    )
    for sentence in found.summary:
        write_line(f"  {sentence}")
    if found.workers and found.state not in TERMINAL_STATES:
        rows = [
            (
                worker.worker_id,
                "yes" if worker.ready else "not now" if worker.fits else "no",
                "; ".join(worker.reasons),
            )
            for worker in found.workers
        ]
        write_table(("worker", "can run it", "because"), rows)
    if not found.story_complete:
        write_line("the event stream no longer reaches back to its submission")
    story = [(clock(line.at_ms), f"+{line.after_s:.3f} s", line.text) for line in found.story]
    if story:
        write_table(("when", "after", "what"), story)
    return 0
