"""The page of a simulated run (``simulator replay --html``), as a browser shows it."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from playwright.sync_api import Page

from simulator.plan import Condition, FaultKind, FleetPlan, Incident, PlannedJob, generate_plan
from simulator.report.page import page as page_of
from simulator.run import Run, simulate
from simulator.scenarios import SCENARIOS
from tests.pages.chromium import DARK, LOOKS, NARROW, WIDE, Chromium, Look
from tests.pages.surveys import survey

SCRIPT = Path(__file__).with_name("lanes.js").read_text(encoding="utf-8")
#: Every state of a job, every way to end, faults on every kind of lane; by hand, as what a seed means may change.
BUSY = FleetPlan(
    seed=4,
    slots=1,
    lease_s=6.0,
    safety_s=40.0,
    jobs=(
        *(PlannedJob(job_id=f"job-{number:02d}", at_s=0.5 * number, duration_s=4.0) for number in range(12)),
        PlannedJob(job_id="job-child", at_s=2.5, duration_s=2.0, after=("job-03", "job-04")),
        PlannedJob(job_id="job-dead", at_s=2.0, duration_s=1.0, fail={"kind": "refused", "times": 1}),
        PlannedJob(job_id="job-late", at_s=3.0, duration_s=0.01, delay_s=5.0),
        PlannedJob(job_id="job-unwanted", at_s=4.0, duration_s=30.0, delay_s=3.0),
    ),
    incidents=(
        Incident(at_s=3.0, kind=FaultKind.KILL, target="gateway-0"),
        Incident(at_s=6.0, kind=FaultKind.PAUSE, target="gateway-1", for_s=10.0),
        Incident(at_s=8.0, kind=FaultKind.CANCEL, target="job-unwanted"),
        Incident(at_s=9.0, kind=FaultKind.ONE_WAY_PARTITION, target="gateway-2>redis", for_s=4.0),
        Incident(at_s=12.0, kind=FaultKind.SERVICE_DOWN, target="service-1", for_s=5.0),
        Incident(at_s=20.0, kind=FaultKind.REDIS_RESTART, target="redis", for_s=2.0),
    ),
)
BIG = generate_plan(8, gateways=5, services=3, jobs=50, conditions=frozenset({Condition.PARENTS}))
#: A scenario whose only fault is a pause; its page is told as if promises had been broken, with long words.
BROKEN = "paused-owner"
FINDINGS = ("job-0: " + "owned_twice_" * 12, "job-0: <b>lost</b>")
#: A bar that would be thinner is drawn so wide, and may touch the next one.
BAR_PX_MIN = 2.0
CLEAR = "rgba(0, 0, 0, 0)"


class Box(msgspec.Struct, frozen=True):
    """Where something is, in pixels of the window."""

    left: float
    top: float
    right: float
    bottom: float

    def inside(self, outer: Box) -> bool:
        """Whether it lies within another one, up to half a pixel."""
        return (
            self.left >= outer.left - 0.5
            and self.right <= outer.right + 0.5
            and self.top >= outer.top - 0.5
            and self.bottom <= outer.bottom + 0.5
        )

    def shared_px(self, other: Box) -> float:
        """By how many pixels two boxes overlap, the smaller way; not above zero if they do not."""
        across = min(self.right, other.right) - max(self.left, other.left)
        down = min(self.bottom, other.bottom) - max(self.top, other.top)
        return min(across, down)


class Bar(msgspec.Struct, frozen=True):
    """One bar of a lane."""

    kind: str
    fill: str
    title: str
    box: Box
    label: Box | None


class Lane(msgspec.Struct, frozen=True):
    """One row of the chart; ``ticks`` are the titles of its marks without a length."""

    name: str
    box: Box
    drawing: Box
    bars: list[Bar]
    ticks: list[str]


class Swatch(msgspec.Struct, frozen=True):
    """One entry of the legend."""

    name: str
    colour: str
    border: str
    box: Box


class Chart(msgspec.Struct, frozen=True):
    """What ``lanes.js`` found."""

    lanes: list[Lane]
    legend: list[Swatch]


@dataclass(frozen=True)
class Told:
    """A run and the address of its page."""

    run: Run
    url: str


def chart_of(chromium: Chromium, url: str, look: Look = WIDE) -> Chart:
    return chromium.visit(url, look, lambda page: msgspec.convert(page.evaluate(SCRIPT), Chart)).found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Told]:
    """A busy run, one that broke its promises, and one of many gateways and jobs."""
    # Gateways under faults warn by the thousand.
    logging.disable(logging.CRITICAL)
    try:
        busy, quiet = simulate(BUSY), simulate(SCENARIOS[BROKEN].plan)
        big = simulate(BIG)
    finally:
        logging.disable(logging.NOTSET)
    outcome = msgspec.structs.replace(quiet.outcome, safety=FINDINGS, undurable=("redis forgot job-0",))
    told_of = {"busy": busy, "broken": msgspec.structs.replace(quiet, outcome=outcome), "big": big}
    directory = tmp_path_factory.mktemp("runs")
    told = {}
    for name, run in told_of.items():
        file = directory / f"{name}.html"
        file.write_text(page_of(run), encoding="utf-8")
        told[name] = Told(run, file.as_uri())
    return told


@pytest.mark.parametrize("look", LOOKS, ids=str)
@pytest.mark.parametrize("name", ["busy", "broken", "big"])
def test_it_stands_alone_and_can_be_read(
    chromium: Chromium, runs: dict[str, Told], name: str, look: Look
) -> None:
    """Nothing is fetched, nothing fails, every text is readable, and only the chart scrolls sideways."""
    told = runs[name]
    seen, wrong = survey(chromium, told.url, look)
    assert wrong == []
    assert seen.title == seen.heading == f"Simulated run of seed {told.run.outcome.plan.seed}"
    assert seen.texts > 50


@pytest.mark.parametrize("name", ["busy", "big"])
def test_each_actor_has_one_lane(chromium: Chromium, runs: dict[str, Told], name: str) -> None:
    """Every gateway, every service and every job of which Redis heard has one lane, in this order."""
    run = runs[name].run
    plan, heard = run.outcome.plan, {event.job_id for event in run.events}
    wanted = [f"gateway-{number}" for number in range(plan.gateways)]
    wanted += ["redis", "network", "operators"]
    wanted += [f"service-{number}" for number in range(plan.services)]
    names = [lane.name for lane in chart_of(chromium, runs[name].url).lanes]
    assert names == ["", *wanted, *sorted(heard)]
    # All planned jobs, where none was refused or lost on its way.
    if name != "big":
        assert heard >= {job.job_id for job in plan.jobs}


@pytest.mark.parametrize("look", [WIDE, NARROW], ids=str)
@pytest.mark.parametrize("name", ["busy", "big"])
def test_bars_are_drawn_where_they_belong(
    chromium: Chromium, runs: dict[str, Told], name: str, look: Look
) -> None:
    """Bars have a size and lie inside their drawing; those of a lane do not cover each other, and labels fit."""
    chart = chart_of(chromium, runs[name].url, look)
    assert sum(len(lane.bars) for lane in chart.lanes) > 3
    for lane in chart.lanes:
        for bar in lane.bars:
            assert bar.box.right - bar.box.left >= BAR_PX_MIN - 0.1, bar
            assert bar.box.bottom - bar.box.top > 5, bar
            assert bar.box.inside(lane.drawing), (lane.name, bar)
            assert bar.title.startswith(f"{bar.kind}: "), bar
            assert bar.label is None or bar.label.inside(bar.box), (lane.name, bar)
        placed = [bar for bar in lane.bars if bar.kind != "life"]
        for number, bar in enumerate(placed):
            covered = [other for other in placed[:number] if bar.box.shared_px(other.box) > BAR_PX_MIN]
            assert covered == [], (lane.name, bar)
        assert all(lane.ticks), lane.name


def test_lanes_do_not_overlap(chromium: Chromium, runs: dict[str, Told]) -> None:
    """However many rows the busiest lanes need, one begins where the one above ended."""
    lanes = chart_of(chromium, runs["big"].url).lanes
    assert len(lanes) > 40
    for above, below in itertools.pairwise(lanes):
        assert below.box.top >= above.box.bottom - 0.5, (above.name, below.name)
        assert above.drawing.inside(above.box), above.name


@pytest.mark.parametrize("look", [WIDE, DARK], ids=str)
def test_the_legend_explains_the_colours(chromium: Chromium, runs: dict[str, Told], look: Look) -> None:
    """Every entry has a swatch that can be seen, and every filled bar has the colour of one of them."""
    chart = chart_of(chromium, runs["busy"].url, look)
    assert len(chart.legend) > 8
    for entry in chart.legend:
        assert min(entry.box.right - entry.box.left, entry.box.bottom - entry.box.top) >= 1, entry
        assert entry.colour != CLEAR or entry.border != "none", entry
    told = {entry.colour for entry in chart.legend}
    bars = [bar for lane in chart.lanes for bar in lane.bars if bar.kind != "fault" and bar.fill != "none"]
    assert [bar for bar in bars if bar.fill not in told] == []
    kinds = {bar.kind for lane in chart.lanes for bar in lane.bars}
    assert kinds >= {"life", "own", "execution", "running", "pending", "scheduled", "waiting", "fault"}
    gateways = [entry for entry in chart.legend if "gateway-" in entry.name]
    assert len({entry.colour for entry in gateways}) == len(gateways) == 3


def test_a_fault_is_shown(chromium: Chromium, runs: dict[str, Told]) -> None:
    """The pause of a gateway is a bar on its lane, one can point at it, and a line of the list in its colour."""

    def task(page: Page) -> tuple[str | None, str, str, list[str]]:
        bar = page.locator(".lane", has_text="gateway-0").locator("rect.fault").first
        before = bar.evaluate("bar => getComputedStyle(bar).strokeWidth")
        # Refused by the browser's driver when something else lies above the bar's middle.
        bar.hover()
        after = bar.evaluate("bar => getComputedStyle(bar).strokeWidth")
        return bar.locator("title").text_content(), before, after, page.locator("tr.fault").all_inner_texts()

    title, before, after, lines = chromium.visit(runs["broken"].url, WIDE, task).found
    assert title is not None
    assert title.startswith("fault: pause, 3.000 to ")
    assert before != after
    assert any("pause gateway-0" in line for line in lines)


def test_the_list_closes_and_opens(chromium: Chromium, runs: dict[str, Told]) -> None:
    """A click on its heading hides everything that happened, in order, and another one shows it again."""

    def task(page: Page) -> list[bool]:
        table, found = page.locator("details table"), []
        for _ in range(2):
            found.append(table.is_visible())
            page.get_by_text("Everything, in order").click()
        return [*found, table.is_visible()]

    assert chromium.visit(runs["busy"].url, NARROW, task).found == [True, False, True]


def test_a_broken_promise_is_told_first(chromium: Chromium, runs: dict[str, Told]) -> None:
    """The verdict of a run that broke a promise looks different from a good one, and its findings are text."""

    def verdict(page: Page) -> tuple[str, str, list[str]]:
        line = page.locator(".verdict")
        colour = line.evaluate("line => getComputedStyle(line).color")
        return line.inner_text(), str(colour), page.locator("ul.findings li").all_inner_texts()

    good, bad = (chromium.visit(runs[name].url, WIDE, verdict).found for name in ("busy", "broken"))
    assert (good[0], good[2]) == ("every promise held", [])
    assert bad[0] == "broken: safety"
    assert bad[2] == [*FINDINGS, "redis forgot job-0"]
    assert good[1] != bad[1]
