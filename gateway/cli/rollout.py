"""Commands about gradual rollouts, live for every gateway of a queue."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from gateway.cli.common import Common, command
from gateway.cli.output import write_json, write_line, write_table
from gateway.errors import ConfigError

_NAME = typer.Argument(help="Name of the worker in the configuration; '*' means every worker.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        help="Gradual rollouts: a candidate for a share of the jobs.",
        no_args_is_help=True,
    )
    app.add_typer(group, name="rollout")
    command(group, "show")(show)
    command(group, "set")(set_share)
    command(group, "abort")(abort)


def show(common: Common) -> int:
    """Show each worker's rollout, and how both sides fare. Its share too, and why one was stopped.

    \b
    Example:
      gateway rollout show
    """
    with common.client() as client:
        workers = [
            (view.worker_id, view.description["rollout"])
            for view in client.workers()
            if isinstance(view.description.get("rollout"), dict)
        ]
    if common.json:
        write_json([{"worker": worker_id, **rollout} for worker_id, rollout in workers])
        return 0
    if not workers:
        write_line("no live worker has a rollout; [workers.NAME.rollout] in a gateway's file adds one")
        return 0
    rows = [
        (
            worker_id,
            f"{0 if rollout['stopped'] else rollout['percent']:g} %",
            _side(rollout["stable"]),
            _side(rollout["candidate"]),
            ", ".join(candidate["url"] for candidate in rollout["candidates"]),
            rollout["stopped"],
        )
        for worker_id, rollout in workers
    ]
    write_table(("worker", "share", "stable", "candidate", "candidate at", "stopped because"), rows)
    return 0


def _side(figures: dict[str, Any]) -> str:
    return f"{figures['failures']}/{figures['attempts']} failed, {figures['mean_s']:g} s"


def set_share(
    common: Common,
    name: Annotated[str, _NAME],
    percent: Annotated[float, typer.Option("--percent", min=0.0, max=100.0, help="Share of the jobs.")],
) -> int:
    """Send a share of a worker's jobs to its candidate. It holds in every gateway, from now on.

    \b
    Which jobs follows from their ids: a larger share only adds jobs. A rollout that was
    stopped or rolled back begins anew.
    \b
    Examples:
      gateway rollout set gpu0 --percent 10
      gateway rollout set '*' --percent 50
    """
    return _configure(common, {_key(name, "percent"): percent, _key(name, "stopped"): None})


def abort(
    common: Common,
    name: Annotated[str, _NAME],
    reason: Annotated[str, typer.Option("--reason", help="Told to whoever looks.")] = "by hand",
) -> int:
    """Send no job to the candidate any more. It holds in every gateway; what runs there is finished.

    \b
    Example:
      gateway rollout abort gpu0 --reason "wrong colours"
    """
    if not reason:
        raise ConfigError("option --reason: is empty")
    return _configure(common, {_key(name, "stopped"): f"aborted: {reason}"})


def _key(name: str, key: str) -> str:
    quoted = name if name == "*" or name.replace("-", "").replace("_", "").isalnum() else f'"{name}"'
    return f"workers.{quoted}.rollout.{key}"


def _configure(common: Common, changes: dict[str, Any]) -> int:
    with common.client() as client:
        overrides = client.configure(changes)
        queue = client.queue
    if common.json:
        write_json({"queue": queue, "revision": overrides.revision, "changed": changes})
        return 0
    for key, value in changes.items():
        write_line(f"{key} {'unset' if value is None else f'= {value}'} for every gateway of queue {queue}")
    return 0
