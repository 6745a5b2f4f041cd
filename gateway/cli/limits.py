"""Commands about limits: how much of a service or tenant may happen at once and how often, and how priority ages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gateway.cli.common import Common, command
from gateway.cli.output import write_json, write_line, write_table

if TYPE_CHECKING:
    from gateway.limits import QueueLimits

_KIND = typer.Argument(metavar="service|tenant", help="What is limited.")
_NAME = typer.Argument(help="Its name; '*' stands for all tenants without a limit of their own.")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    group = typer.Typer(
        help="Limits per service and tenant, and aging of priority.",
        no_args_is_help=True,
    )
    app.add_typer(group, name="limits")
    command(group, "show")(show)
    command(group, "set")(set_limit)
    command(group, "unset")(unset)
    command(group, "aging")(aging)
    command(group, "apply")(apply)


def show(common: Common) -> int:
    """Show all limits, and how many jobs of whom run.

    \b
    Example:
      gateway limits show --json
    """
    with common.client() as client:
        found = client.limits()
    _tell(found, as_json=common.json)
    return 0


def _tell(found: QueueLimits, *, as_json: bool) -> None:
    if as_json:
        write_json({"aging_s": found.aging_s, "limits": found.views()})
        return
    rows: list[tuple[Any, ...]] = [
        (
            view.name,
            view.running,
            "any" if view.running_max is None else view.running_max,
            "any" if view.starts_per_s is None else f"{view.starts_per_s:.6g}",
            "" if view.starts_per_s is None else view.burst,
            f"{view.wait_s:.1f} s" if view.wait_s else "",
        )
        for view in found.views()
    ]
    if rows:
        write_table(("limit", "running", "at most", "starts/s", "burst", "next start in"), rows)
    else:
        write_line("nothing is limited, nothing runs")
    write_line(f"{found.aging_s:g} s of waiting weigh as much as one level of priority")


def set_limit(
    common: Common,
    kind: Annotated[str, _KIND],
    name: Annotated[str, _NAME],
    running_max: Annotated[int | None, typer.Option(help="Jobs that may run at once; 0 for none.")] = None,
    rate: Annotated[int | None, typer.Option(help="Starts per --rate-s seconds.")] = None,
    rate_s: Annotated[float, typer.Option(help="The period of --rate, seconds.")] = 1.0,
    burst: Annotated[int, typer.Option(help="Starts that may come at once after a quiet time.")] = 1,
) -> int:
    """Limit a service or a tenant. Every later claim of every gateway obeys it.

    \b
    Examples:
      gateway limits set service comfyui --running-max 8
      gateway limits set tenant acme --rate 100 --rate-s 60 --burst 10
      gateway limits set tenant '*' --running-max 4
    """
    from gateway.limits import Limit

    limit = Limit(running_max=running_max, rate=rate, rate_s=rate_s, burst=burst)
    with common.client() as client:
        _tell(client.set_limits({f"{kind} {name}": limit}), as_json=common.json)
    return 0


def unset(common: Common, kind: Annotated[str, _KIND], name: Annotated[str, _NAME]) -> int:
    """Lift the limit of a service or a tenant.

    \b
    Example:
      gateway limits unset tenant acme
    """
    with common.client() as client:
        _tell(client.set_limits({f"{kind} {name}": None}), as_json=common.json)
    return 0


def aging(
    common: Common,
    seconds: Annotated[
        float | None, typer.Argument(help="Seconds of waiting per level of priority; absent: the default.")
    ] = None,
) -> int:
    """Set how fast waiting raises priority. It holds for jobs submitted from now on.

    \b
    Examples:
      gateway limits aging 30
      gateway limits aging 9000000    # hardly ever: strict priorities
    """
    with common.client() as client:
        _tell(client.set_aging(seconds), as_json=common.json)
    return 0


def apply(common: Common) -> int:
    """Make the limits of the configuration the queue's. Others that the queue has stay.

    \b
    Example:
      gateway limits apply --config gateway.toml
    """
    from gateway.errors import ConfigError

    settings = common.settings()
    wanted, aging_s = settings.limits.named_limits(), settings.limits.aging_s
    if not wanted and aging_s is None:
        raise ConfigError(
            "the configuration has no [limits.services], [limits.tenants] or limits.aging_s to apply"
        )
    with common.client(settings) as client:
        found = client.set_limits(wanted)
        if aging_s is not None:
            found = client.set_aging(aging_s)
    _tell(found, as_json=common.json)
    return 0
