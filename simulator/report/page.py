"""One run as a self-contained page: swim-lanes of gateways, Redis, services and jobs over simulated time (pure).

Everything is inline: the page opens from a file, needs no network and no script.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING

from simulator.report.lanes import Bar, Lane, Story, Tick, story_of

if TYPE_CHECKING:
    from simulator.run import Run

WIDTH_MIN_PX = 1080.0
PX_PER_S_MIN = 6.0
ROW_PX = 16
AXIS_PX = 22
#: Room for a label, in pixels per character of the small font, measured with a wide one (DejaVu Sans).
CHAR_PX = 6.0
#: Distances of the axis' lines that are tried, seconds; the first that leaves so many pixels is taken.
STEPS_S = (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 3600)
STEP_PX_MIN = 70
#: Gateways' hues in degrees, far apart, each with a lightness in percent at which both a white label on it and the bar
#: itself on dark paper are easy to see; further gateways start again.
COLOURS = ((212, 48), (28, 40), (278, 56), (160, 31), (330, 51), (190, 35), (52, 31), (250, 61))


def page(run: Run) -> str:
    """The whole page."""
    story = story_of(run)
    scale = max(PX_PER_S_MIN, WIDTH_MIN_PX / max(story.end_s, 1.0))
    names = [lane.name for lane in story.groups["gateways"]]
    colours = {name: _colour(number) for number, name in enumerate(names)}
    chart = _Chart(story, scale, colours)
    seed = run.outcome.plan.seed
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Simulated run of seed {seed}</title>",
            f"<style>{files('simulator.report').joinpath('page.css').read_text(encoding='utf-8')}</style>",
            "</head><body>",
            *_head(run),
            *_legend(colours),
            '<div class="chart">',
            chart.axis(),
            *chart.groups(),
            "</div>",
            *_table(story),
            "</body></html>\n",
        ]
    )


def _colour(number: int) -> str:
    hue, lightness = COLOURS[number % len(COLOURS)]
    return f"hsl({hue} 62% {lightness}%)"


def _head(run: Run) -> Iterator[str]:
    outcome = run.outcome
    plan = outcome.plan
    yield f"<h1>Simulated run of seed {plan.seed}</h1>"
    verdict = "every promise held" if outcome.ok else f"broken: {outcome.kind}"
    yield f'<p class="verdict {"ok" if outcome.ok else "broken"}">{verdict}</p>'
    if outcome.findings:
        items = "".join(f"<li>{escape(finding)}</li>" for finding in outcome.findings)
        yield f'<ul class="findings">{items}</ul>'
    if outcome.undurable:
        items = "".join(f"<li>{escape(finding)}</li>" for finding in outcome.undurable)
        yield "<p>Redis itself lost acknowledged writes in this run; no promise covers what follows from it:</p>"
        yield f'<ul class="findings apart">{items}</ul>'
    yield (
        f'<p class="facts"><b>{outcome.jobs}</b> jobs planned; <b>{outcome.completed}</b> completed, '
        f"<b>{outcome.dead}</b> dead, <b>{outcome.cancelled}</b> cancelled, <b>{outcome.lost}</b> lost · "
        f"<b>{outcome.simulated_s:g}</b> simulated seconds · gateways: {plan.gateways}, services: {plan.services}, "
        f"slots: {plan.slots} · lease {plan.lease_s:g} s</p>"
    )
    yield f'<p class="facts">Faults: {_counts(outcome.faults)}</p>'
    yield f'<p class="facts">Reached: {_counts(outcome.marks)}</p>'
    yield f'<p class="facts">History digest {outcome.history_digest}</p>'


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{escape(name)} <b>{count}</b>" for name, count in counts.items()) or "none"


def _legend(colours: dict[str, str]) -> Iterator[str]:
    entries = [(f"background:{colour}", f"owned or run for {name}") for name, colour in colours.items()]
    entries += [
        ("background:var(--life)", "process alive"),
        ("background:var(--wait)", "job pending"),
        ("border:1px dashed var(--dim)", "job scheduled"),
        ("border:1px dotted var(--dim)", "job waiting for its parents"),
        (
            "background:color-mix(in srgb, var(--fault) 28%, transparent);border:1px solid var(--fault)",
            "fault",
        ),
        ("background:var(--good);width:.75em;border-radius:50%", "completed"),
        ("background:var(--fault);width:.75em;border-radius:50%", "dead"),
        ("background:var(--warn);width:.75em;border-radius:50%", "cancelled"),
        ("border-left:2px dashed var(--good);width:0;height:1em", "the world heals"),
    ]
    spans = "".join(f'<span><i style="{style}"></i>{escape(text)}</span>' for style, text in entries)
    yield f'<div class="legend">{spans}</div>'


def _table(story: Story) -> Iterator[str]:
    yield "<details open><summary>Everything, in order</summary><table>"
    for line in story.lines:
        look = ' class="fault"' if line.actor == "fault" else ""
        yield (
            f"<tr{look}><td>{line.at_s:.3f}</td><td>{escape(line.actor)}</td><td>{escape(line.what)}</td></tr>"
        )
    yield "</table></details>"


class _Chart:
    """Draws lanes at one scale."""

    def __init__(self, story: Story, scale: float, colours: dict[str, str]) -> None:
        self._story = story
        self._scale = scale
        self._colours = colours
        self._width = story.end_s * scale + 40
        self._step_s = next((step for step in STEPS_S if step * scale >= STEP_PX_MIN), STEPS_S[-1])

    def _x(self, at_s: float) -> float:
        return round(at_s * self._scale, 1)

    def _marks_s(self) -> Iterable[int]:
        return range(0, int(self._story.end_s) + 1, self._step_s)

    def axis(self) -> str:
        """The line of times."""
        texts = "".join(
            f'<text class="axis" x="{self._x(at_s) + 2}" y="14">{at_s} s</text>' for at_s in self._marks_s()
        )
        return self._row("", AXIS_PX, texts)

    def groups(self) -> Iterator[str]:
        """All lanes under their headings."""
        for title, lanes in self._story.groups.items():
            yield f"<h2>{escape(title)}</h2>"
            for lane in lanes:
                yield self._lane(lane)

    def _row(self, name: str, height: int, inside: str) -> str:
        grid = "".join(
            f'<line class="grid" x1="{self._x(at_s)}" x2="{self._x(at_s)}" y1="0" y2="{height}"/>'
            for at_s in self._marks_s()
        )
        heal = self._x(self._story.safety_s)
        grid += f'<line class="heal" x1="{heal}" x2="{heal}" y1="0" y2="{height}"/>'
        return (
            f'<div class="lane"><div class="name" title="{escape(name)}">{escape(name)}</div>'
            f'<svg width="{self._width:.0f}" height="{height}">{grid}{inside}</svg></div>'
        )

    def _lane(self, lane: Lane) -> str:
        base = [bar for bar in lane.bars if bar.kind == "life"]
        rows = _pack([bar for bar in lane.bars if bar.kind != "life"])
        height = max(1, len(rows)) * ROW_PX + 6
        drawn = [self._bar(bar, 1, height - 2) for bar in base]
        for number, row in enumerate(rows):
            drawn += [self._bar(bar, 3 + number * ROW_PX, ROW_PX - 2) for bar in row]
        drawn += [self._tick(tick, height) for tick in lane.ticks]
        return self._row(lane.name, height, "".join(drawn))

    def _bar(self, bar: Bar, top: int, height: int) -> str:
        x, width = self._x(bar.start_s), max(2.0, round((bar.end_s - bar.start_s) * self._scale, 1))
        owned = bar.kind in ("own", "running", "execution")
        fill = f' style="fill:{self._colours.get(bar.owner, "var(--dim)")}"' if owned else ""
        about = f"{bar.kind}: {bar.label}, {bar.start_s:.3f} to {bar.end_s:.3f} s"
        title = escape(f"{about}: {bar.outcome}" if bar.outcome else about)
        text = ""
        fits = int((width - 4) / CHAR_PX)
        # A worker or job cut short says nothing; the title tells it all.
        if bar.kind != "life" and (fits >= len(bar.label) or (bar.kind == "fault" and fits > 4)):
            shown = bar.label if len(bar.label) <= fits else bar.label[: fits - 2] + "…"
            look = ' class="on"' if owned else ""
            text = f'<text{look} x="{x + 3}" y="{top + height - 4}">{escape(shown)}</text>'
        return (
            f'<rect class="{bar.kind}" x="{x}" y="{top}" width="{width}" height="{height}" rx="2"{fill}>'
            f"<title>{title}</title></rect>{text}"
        )

    def _tick(self, tick: Tick, height: int) -> str:
        x, title = self._x(tick.at_s), f"<title>{escape(f'{tick.at_s:.3f} s: {tick.label}')}</title>"
        if tick.kind in ("completed", "dead", "cancelled"):
            return f'<circle class="end {tick.kind}" cx="{x}" cy="{height / 2}" r="4.5">{title}</circle>'
        return f'<line class="tick {tick.kind}" x1="{x}" x2="{x}" y1="1" y2="{height - 1}">{title}</line>'


def _pack(bars: list[Bar]) -> list[list[Bar]]:
    """Bars on as few rows as needed so that none covers another."""
    rows: list[list[Bar]] = []
    for bar in sorted(bars, key=lambda bar: (bar.start_s, bar.end_s, bar.label)):
        free = next((row for row in rows if row[-1].end_s <= bar.start_s), None)
        if free is None:
            rows.append([bar])
        else:
            free.append(bar)
    return rows
