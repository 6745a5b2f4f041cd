"""``gateway top``: the queue with its workers and services, again and again."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from gateway.cli.common import Common, command
from gateway.cli.output import age, clock, console, printable, remark, write_json, write_line, write_rich
from gateway.errors import StoreUnavailable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from gateway.client import Client
    from gateway.overview import Overview, ServiceRow, WorkerRow

EVERY_S_MIN = 0.2
#: Events read for one view. A queue with more of them is measured over those, and the rest is skipped.
EVENTS_MAX = 20_000
#: Narrower than this, a column that can be looked up elsewhere is left out.
WIDTH_FULL, WIDTH_MIDDLE = 100, 64
#: Lines of a table beside its rows: a blank one, two of its head, and how many more there are.
TABLE_LINES = 4
#: Columns that are cut where the width is short, the least that is left of one, and the space between two.
ELASTIC = frozenset({"state", "address", "endpoint", "used by"})
ELASTIC_MIN, GAP = 4, 3


def register(app: typer.Typer) -> None:
    """Add the command."""
    command(app, "top")(top)


def top(
    common: Common,
    every_s: Annotated[
        float, typer.Option("--every-s", min=EVERY_S_MIN, help="Pause between two views, seconds.")
    ] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show one view and end.")] = False,
) -> int:
    """Watch jobs, rates, workers and services live, until Ctrl-C.

    \b
    On a terminal the view is redrawn in place; elsewhere each view is a block of text
    with its time, or one JSON object per line with --json. Rates are averages over the
    last 10 seconds, read from the event stream. Workers that do not claim come first,
    with the reason. While Redis is away the last view stays, and so does the command.
    \b
    Examples:
      gateway top
      gateway top --once
      gateway top --queue renders --every-s 5 --json | jq '{pending, rates}'
    """
    settings = common.settings()
    with common.client(settings) as client:
        views = Views(client, settings.limits.worker_ttl_s)
        if once:
            _show(common, views.next())
            return 0
        if common.json or not sys.stdout.isatty():
            _repeat(common, views, every_s)
        else:
            _live(views, every_s)
    return 0


class Views:
    """Takes one view after the other.

    Args:
        client: of the queue that is watched.
        worker_ttl_s: silence after which a worker is taken for gone, seconds.
    """

    def __init__(self, client: Client, worker_ttl_s: float) -> None:
        from gateway.overview import RATE_WINDOW_MS, RateMeter

        self._client = client
        self._worker_ttl_s = worker_ttl_s
        start_ms = client.now_ms() - RATE_WINDOW_MS
        self._cursor = f"{max(start_ms, 0)}-0"
        self._meter = RateMeter(start_ms)

    def next(self) -> Overview:
        """The view of this moment.

        Raises:
            StoreError: Redis cannot be asked.
        """
        from gateway.overview import assemble

        client = self._client
        stats = client.stats()
        until_ms, cut = stats.now_ms, False
        events = list(itertools.islice(client.events(self._cursor, follow=False), EVENTS_MAX))
        if events:
            self._cursor = events[-1].cursor
            cut = len(events) == EVENTS_MAX
            until_ms = events[-1].at_ms if cut else max(until_ms, events[-1].at_ms)
        self._meter.feed(events)
        rates = self._meter.rates(until_ms)
        if cut:  # never fall behind: what lies between is not counted, and not averaged over either
            now_ms = client.now_ms()
            self._cursor = f"{now_ms}-0"
            self._meter.restart(now_ms)
        return assemble(
            client.queue,
            stats,
            client.workers(),
            client.services(),
            rates,
            worker_ttl_s=self._worker_ttl_s,
        )


def _show(common: Common, view: Overview) -> None:
    if common.json:
        write_json(view)
    else:
        write_rich(render(view, width=console().width))


def _repeat(common: Common, views: Views, every_s: float) -> None:
    """Views for programs and files."""
    _show(common, views.next())
    while True:
        time.sleep(every_s)
        try:
            view = views.next()
        except StoreUnavailable as error:
            remark(f"no view, trying again: {error}")
            continue
        if not common.json:
            write_line()
        _show(common, view)


def _live(views: Views, every_s: float) -> None:
    """One view, redrawn in place until Ctrl-C or SIGTERM."""
    import signal

    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    def end(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    view = views.next()
    trouble: list[Text] = []
    earlier = signal.signal(signal.SIGTERM, end)  # else the terminal is left in its other screen
    out = console()
    try:
        with Live(console=out, screen=True, auto_refresh=False) as live:
            while True:
                shown = render(view, width=out.width, height=out.height - len(trouble))
                live.update(Group(*trouble, shown), refresh=True)
                time.sleep(every_s)
                try:
                    view, trouble = views.next(), []
                except StoreUnavailable as error:
                    told = printable(f"trying again: {error}")
                    trouble = [Text(told, "bold red", no_wrap=True, overflow="ellipsis")]
    finally:
        signal.signal(signal.SIGTERM, earlier)


def render(view: Overview, *, width: int, height: int | None = None) -> RenderableType:
    """A view for people.

    Args:
        view: what is shown.
        width: of the terminal, characters; columns are left out where it is narrow.
        height: of the terminal, lines; rows are left out where it is low. None: show all.
    """
    from rich.console import Group
    from rich.text import Text

    head = [printable(f"queue {view.queue}"), *(["paused, nothing is claimed"] if view.paused else [])]
    style = "bold yellow" if view.paused else "bold"
    counts = [Text(line, style) for line in _flow([*head, clock(view.at_ms)], width)]
    counts += [Text(line) for line in _counts(view, width)]
    workers, services = len(view.workers), len(view.services)
    if height is not None:
        room = height - len(counts) - TABLE_LINES * (2 if services else 1)
        services = min(services, max(room // 3, 1))
        workers = min(workers, max(room - services, 1))
    parts: list[RenderableType] = [*counts, *_workers(view.workers, width, workers)]
    if view.services:
        parts += _services(view.services, width, services)
    return Group(*parts)


def _counts(view: Overview, width: int) -> Iterable[str]:
    """Lines of numbers, each pair kept together."""
    waits = age(view.oldest_wait_s * 1000) if view.pending else "-"
    yield from _flow(
        [
            f"pending {view.pending}",
            f"running {view.running}",
            f"scheduled {view.scheduled}",
            f"waiting for parents {view.waiting}",
            f"completed or cancelled {view.finished}",
            f"dead {view.dead}",
            f"oldest wait {waits}",
        ],
        width,
    )
    rates = view.rates
    named = ("submitted", "claimed", "completed", "retried", "recovered", "dead")
    yield from _flow([f"{name} {getattr(rates, name):g}/s" for name in named], width)
    breakers = ", ".join(f"{count} {state}" for state, count in sorted(view.breakers.items())) or "none"
    yield from _flow([f"slots {view.slots_busy} of {view.slots} busy", f"breakers {breakers}"], width)
    if len(view.classes) > 1:
        shown = [f"{class_id} {count}" for class_id, count in itertools.islice(view.classes.items(), 5)]
        yield from _flow(["pending by class:", *shown], width)


def _flow(pieces: Sequence[str], width: int) -> list[str]:
    """Pieces beside each other as far as the width goes."""
    lines = [pieces[0]]
    for piece in pieces[1:]:
        if len(lines[-1]) + 3 + len(piece) <= width:
            lines[-1] += f"   {piece}"
        else:
            lines.append(piece)
    return lines


def _workers(rows: Sequence[WorkerRow], width: int, rows_max: int) -> list[RenderableType]:
    from rich.text import Text

    if not rows:
        return [Text(""), Text("no worker is registered: `gateway run` starts some", "bold yellow")]
    columns = ["worker", "state", "slots"]
    if width >= WIDTH_MIDDLE:
        columns += ["breaker", "seen"]
    if width >= WIDTH_FULL:
        columns += ["connector", "endpoint"]
    cells = [
        {
            "worker": row.worker,
            "state": row.state,
            "slots": f"{'?' if row.running is None else row.running}/{row.slots}",
            "breaker": _breakers(row.breakers),
            "seen": age(row.seen_s * 1000),
            "connector": row.connector,
            "endpoint": ", ".join(row.endpoints) or "none",
        }
        for row in rows[:rows_max]
    ]
    styles = ["" if row.well else "red" for row in rows]
    return _table(columns, cells, styles, len(rows) - rows_max, "workers", width)


def _breakers(breakers: dict[str, int]) -> str:
    if sum(breakers.values()) == 1:
        return next(iter(breakers))
    return ", ".join(f"{count} {state}" for state, count in sorted(breakers.items()))


def _services(rows: Sequence[ServiceRow], width: int, rows_max: int) -> list[RenderableType]:
    columns = ["service", "state"]
    if width >= WIDTH_MIDDLE:
        columns += ["address", "used by"]
    if width >= WIDTH_FULL:
        columns += ["speaks", "believed for"]
    cells = [
        {
            "service": row.id,
            "state": row.state,
            "address": row.url,
            "used by": ", ".join(row.workers) or "nobody",
            "speaks": f"{row.service}-{row.protocol}",
            "believed for": age(row.ends_in_s * 1000),
        }
        for row in rows[:rows_max]
    ]
    styles = ["" if row.healthy and not row.overtaken_by else "red" for row in rows]
    return _table(columns, cells, styles, len(rows) - rows_max, "services", width)


def _table(
    columns: Sequence[str],
    cells: Sequence[dict[str, str]],
    styles: Sequence[str],
    more: int,
    what: str,
    width: int,
) -> list[RenderableType]:
    """A table whose rows take one line each, and how many did not fit."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column, most in _widths(columns, cells, width).items():
        table.add_column(column, no_wrap=True, overflow="ellipsis", max_width=most)
    for row, style in zip(cells, styles, strict=False):
        table.add_row(*(Text(printable(row[column]), style) for column in columns))
    left = [Text(f"and {more} more {what}")] if more > 0 else []
    return [Text(""), table, *left]


def _widths(columns: Sequence[str], cells: Sequence[dict[str, str]], width: int) -> dict[str, int]:
    """Widths at which a table fits: what may be long is cut, the longest first, before any name or number is."""
    widths = {column: max(len(column), *(len(row[column]) for row in cells)) for column in columns}
    excess = sum(widths.values()) + GAP * (len(columns) - 1) - width
    for column in sorted(ELASTIC & set(columns), key=lambda name: (-widths[name], name)):
        cut = min(max(excess, 0), max(widths[column] - ELASTIC_MIN, 0))
        widths[column] -= cut
        excess -= cut
    return widths
