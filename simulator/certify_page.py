"""A certificate as one self-contained page: the metrics and three plots as inline SVG (pure)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from importlib.resources import files

from gateway.demo import RECOVERY_S_MAX
from gateway.fleet import toml_text
from simulator.certify_judge import MET, MISSED, Certificate, FaultFact, Measure, percentile
from simulator.certify_report import verdict_line

WIDTH = 960.0
LEFT, RIGHT = 56.0, 14.0
PLOT = WIDTH - LEFT - RIGHT
THROUGHPUT_PX = 190.0
HISTOGRAM_PX = 160.0
ROW_PX = 30.0
BINS_MAX = 120
LABEL_PX = 15.0
LABEL_ROWS_MAX = 5
#: Room for a label, in pixels per character of the small font.
CHAR_PX = 6.6
#: Edges of the latency histogram: eight to a factor of ten.
BINS_PER_DECADE = 8
_WORDS = {"kill": "killed", "redis": "redis down", "pause": "paused", "restart": "forgot its jobs"}


def page(certificate: Certificate) -> str:
    """The whole page."""
    style = files("simulator").joinpath("certify_page.css").read_text(encoding="utf-8")
    title = f"Certification under plan {certificate.plan['name']}"
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{style}</style></head><body>",
            *_head(certificate, title),
            *_metrics(certificate.measures),
            *_findings(certificate),
            "<h2>Throughput</h2>",
            _figure(_throughput(certificate), "Completed jobs per second; shaded is what the plan did."),
            "<h2>Recovery</h2>",
            *_recovery_part(certificate),
            "<h2>Latency</h2>",
            _figure(_histogram(certificate.latency_s), _latency_words(certificate.latency_s)),
            "<details><summary>The plan</summary>",
            f"<pre>{escape(toml_text(certificate.plan))}</pre></details>",
            "</body></html>\n",
        ]
    )


def _head(certificate: Certificate, title: str) -> Iterator[str]:
    counts = certificate.counts
    yield f"<h1>{escape(title)}</h1>"
    state = "ok" if certificate.certified else "broken"
    yield f'<p class="verdict {state}">{escape(verdict_line(certificate))}</p>'
    fleet = certificate.plan["fleet"]
    yield (
        f'<p class="dim">{counts["completed"]} of {counts["submitted"]} jobs completed in {certificate.seconds:g} s · '
        f"{fleet['gateways']} gateways, {fleet['services']} simulated services, one Redis · "
        f"{len(certificate.faults)} faults of the fleet, {counts['recoveries']} leases lapsed · "
        f"configuration: {escape(certificate.configuration)} · seed {certificate.plan['seed']}</p>"
    )


def _metrics(measures: Sequence[Measure]) -> Iterator[str]:
    yield '<div class="wide"><table>'
    yield "<thead><tr><th>metric</th><th>target</th><th>measured</th><th>verdict</th></tr></thead><tbody>"
    for measure in measures:
        style = measure.verdict if measure.verdict in (MET, MISSED) else "not"
        row = "" if measure.of_audit else ' class="further"'
        yield (
            f"<tr{row}><td>{escape(measure.name)}</td><td>{escape(measure.target)}</td>"
            f'<td>{escape(measure.measured)}</td><td class="{style}">{escape(measure.verdict)}</td></tr>'
        )
    yield "</tbody></table></div>"


def _findings(certificate: Certificate) -> Iterator[str]:
    lines = (*certificate.notes, *certificate.violations)
    if lines:
        yield "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _figure(svg: Iterator[str], caption: str) -> str:
    return f"<figure>{''.join(svg)}<figcaption>{escape(caption)}</figcaption></figure>"


def _svg(height: float, label: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH:g} {height:g}" role="img" aria-label="{escape(label)}" '
        'xmlns="http://www.w3.org/2000/svg">'
    )


def _nice_step(span: float, count: int) -> float:
    """A round distance of axis lines, about ``count`` of them."""
    rough = max(span, 1e-9) / count
    power = 10.0 ** math.floor(math.log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)


def _ticks(high: float, count: int) -> list[float]:
    step = _nice_step(high, count)
    return [number * step for number in range(int(high / step + 1e-9) + 1)]


def _text(x: float, y: float, text: str, *, anchor: str = "middle", style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{style}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>'


def _rect(x: float, y: float, width: float, height: float, style: str, title: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{max(height, 0.0):.1f}" '
        f'class="{style}"><title>{escape(title)}</title></rect>'
    )


def _throughput(certificate: Certificate) -> Iterator[str]:
    """Bars of completions per second over time, with the faults behind them and their names above."""
    times = certificate.completions_s
    end_s = max([certificate.seconds, *times, 1.0])
    bin_s = max(0.5, _nice_step(end_s, BINS_MAX))
    counts = [0] * (int(end_s / bin_s) + 1)
    for at_s in times:
        counts[max(0, int(at_s / bin_s))] += 1
    rates = [count / bin_s for count in counts]
    high = max([*rates, 1.0]) * 1.08

    def x(at_s: float) -> float:
        return LEFT + PLOT * min(max(at_s, 0.0), end_s) / end_s

    labels = _labels(certificate.faults, x)
    top = LABEL_PX * (max((row for _, row, _ in labels), default=-1) + 1) + 8
    bottom, height = top + THROUGHPUT_PX, top + THROUGHPUT_PX + 24

    def y(rate: float) -> float:
        return bottom - THROUGHPUT_PX * rate / high

    yield _svg(height, "completed jobs per second over time")
    for rate in _ticks(high, 4):
        yield _line(LEFT, y(rate), WIDTH - RIGHT, y(rate), "grid")
        yield _text(LEFT - 8, y(rate) + 4, f"{rate:g}", anchor="end")
    for fault in certificate.faults:
        until_s = end_s if fault.until_s is None else fault.until_s
        style, name = f"band {fault.kind}", _fault_words(fault)
        yield _rect(x(fault.at_s), top, x(until_s) - x(fault.at_s), THROUGHPUT_PX, style, name)
    for number, rate in enumerate(rates):
        if rate:
            left, right = x(number * bin_s), x((number + 1) * bin_s)
            words = f"{rate:g} per second at {number * bin_s:g} s"
            yield _rect(left + 0.5, y(rate), right - left - 1, bottom - y(rate), "bar", words)
    yield from _fault_marks(certificate.faults, labels, x, top, bottom)
    yield _line(LEFT, bottom, WIDTH - RIGHT, bottom, "axis")
    for at_s in _ticks(end_s, 10):
        yield _text(x(at_s), bottom + 17, f"{at_s:g} s")
    yield "</svg>"


def _fault_words(fault: FaultFact) -> str:
    who = "" if fault.kind == "redis" else f"{fault.target} "
    return who + _WORDS.get(fault.kind, fault.kind)


def _labels(faults: Sequence[FaultFact], x: Callable[[float], float]) -> list[tuple[float, int, FaultFact]]:
    """Where each fault's name begins, and in which row above the plot, as long as there is room."""
    free: list[float] = []
    placed = []
    for fault in faults:
        width = len(_fault_words(fault)) * CHAR_PX
        start = min(x(fault.at_s), WIDTH - RIGHT - width)
        row = next((row for row, end in enumerate(free) if end <= start), len(free))
        if row < LABEL_ROWS_MAX:
            free[row : row + 1] = [start + width + 6]
            placed.append((start, row, fault))
    return placed


def _fault_marks(
    faults: Sequence[FaultFact],
    labels: Sequence[tuple[float, int, FaultFact]],
    x: Callable[[float], float],
    top: float,
    bottom: float,
) -> Iterator[str]:
    """A line where each fault began, and its name where there was room for it."""
    for fault in faults:
        yield _line(x(fault.at_s), top, x(fault.at_s), bottom, f"mark {fault.kind}")
    for start, row, fault in labels:
        y = top - 5 - LABEL_PX * row
        yield _text(start, y, _fault_words(fault), anchor="start", style=f"mark {fault.kind}")


def _recovery_part(certificate: Certificate) -> Iterator[str]:
    if not any(fact.seconds for fact in certificate.recoveries):
        yield '<p class="dim">Nothing had to recover in this run.</p>'
        return
    caption = (
        "One dot per job: from the kill of its gateway to its next owner's claim; for Redis, from its return to the "
        "next claim or completion."
    )
    yield _figure(_recovery(certificate), caption)


def _recovery(certificate: Certificate) -> Iterator[str]:
    """A row of dots per kill and outage, and the limit."""
    facts = [fact for fact in certificate.recoveries if fact.seconds]
    high = max([RECOVERY_S_MAX * 1.1, *(fact.seconds[0] * 1.05 for fact in facts)])
    name_px = 170.0
    top, bottom = 22.0, 22.0 + ROW_PX * len(facts)

    def x(seconds: float) -> float:
        return LEFT + name_px + (PLOT - name_px) * seconds / high

    yield _svg(bottom + 26, "seconds from each fault to recovery")
    for tick in _ticks(high, 8):
        yield _line(x(tick), top, x(tick), bottom, "grid")
        yield _text(x(tick), bottom + 17, f"{tick:g} s")
    for row, fact in enumerate(facts):
        middle = top + ROW_PX * (row + 0.5)
        jobs = "" if fact.kind == "redis" else f": {len(fact.seconds)} job{'s' * (len(fact.seconds) != 1)}"
        name = f"{fact.target} at {fact.at_s:.1f} s{jobs}"
        yield _line(LEFT + name_px, middle, WIDTH - RIGHT, middle, "grid")
        yield _text(LEFT + name_px - 10, middle + 4, name, anchor="end", style="name")
        for seconds in fact.seconds:
            words = f"{name}: {seconds:.2f} s"
            yield (
                f'<circle cx="{x(seconds):.1f}" cy="{middle:.1f}" r="5" class="dot">'
                f"<title>{escape(words)}</title></circle>"
            )
    yield _line(x(RECOVERY_S_MAX), top - 4, x(RECOVERY_S_MAX), bottom, "limit")
    yield _text(x(RECOVERY_S_MAX), top - 8, f"limit {RECOVERY_S_MAX:g} s", style="limit")
    yield "</svg>"


def _latency_words(latency_s: Sequence[float]) -> str:
    quantiles = ", ".join(
        f"{name} {percentile(latency_s, share):.2f} s"
        for name, share in (("median", 0.5), ("95 %", 0.95), ("99 %", 0.99))
    )
    return f"From submission to completion, work included, on a logarithmic scale: {quantiles}."


def _histogram(latency_s: Sequence[float]) -> Iterator[str]:
    """How many jobs took how long, in bins of equal ratio."""
    low = math.floor(math.log10(max(min(latency_s, default=0.1), 0.001)) * BINS_PER_DECADE)
    highest = math.log10(max(*latency_s, 0.01)) if latency_s else 0.0
    bins = max(math.floor(highest * BINS_PER_DECADE) - low + 1, BINS_PER_DECADE)
    counts = [0] * bins
    for seconds in latency_s:
        place = math.floor(math.log10(max(seconds, 0.001)) * BINS_PER_DECADE) - low
        counts[min(max(place, 0), bins - 1)] += 1
    high = max([*counts, 1]) * 1.08
    bottom = 8.0 + HISTOGRAM_PX

    def y(count: float) -> float:
        return bottom - HISTOGRAM_PX * count / high

    yield _svg(bottom + 24, "jobs by time from submission to completion")
    for tick in _ticks(high, 4):
        if tick == int(tick):
            yield _line(LEFT, y(tick), WIDTH - RIGHT, y(tick), "grid")
            yield _text(LEFT - 8, y(tick) + 4, f"{tick:g}", anchor="end")
    width = PLOT / bins
    for number, count in enumerate(counts):
        begin, end = (10 ** ((low + number + more) / BINS_PER_DECADE) for more in (0, 1))
        words = f"{count} jobs between {begin:.3g} s and {end:.3g} s"
        if count:
            left = LEFT + number * width
            yield _rect(left + 0.5, y(count), width - 1, bottom - y(count), "bar", words)
    yield _line(LEFT, bottom, WIDTH - RIGHT, bottom, "axis")
    every = max(1, round(bins / 10))
    for number in range(0, bins + 1, every):
        edge = 10 ** ((low + number) / BINS_PER_DECADE)
        yield _text(LEFT + number * width, bottom + 17, f"{edge:.2g} s")
    yield "</svg>"
