"""The page of a certificate (``simulator certify --html``), as a browser shows it."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from playwright.sync_api import Page

from gateway.lifecycle import EventType
from simulator.certify_judge import Certificate
from simulator.certify_page import page as page_of
from simulator.certify_report import verdict_line
from tests.certify.test_certificate import Story, certificate, good, mark
from tests.pages.chromium import DARK, LOOKS, WIDE, Chromium, Look
from tests.pages.surveys import survey


def bad() -> Certificate:
    """Faults of every kind, metrics that were missed, and names that need room."""
    story = Story()
    story.job("fine", EventType.COMPLETED)
    story.job("dies", EventType.DEAD)
    story.recovered("late", 21.0)
    marks = [
        mark("kill", "gateway-0", 5.0, 6.0),
        mark("pause", "gateway-1", 7.0, 9.0),
        mark("restart", "service-0", 8.0, None),
        mark("redis", "redis", 16.0, 18.0),
    ]
    return certificate(story, marks=marks, unclean=["gateway-1", "gateway-" + "2" * 40])


def stuck() -> Certificate:
    """Nothing completed: two plots, and metrics that the plan did not ask for."""
    story = Story()
    story.job("stuck")
    return certificate(story, plan="lossy")


@dataclass(frozen=True)
class Told:
    """A certificate and the address of its page."""

    certificate: Certificate
    url: str


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Told]:
    """The pages of a good run, of a bad one, and of one in which nothing completed."""
    directory = tmp_path_factory.mktemp("certificates")
    pages = {}
    for name, found in (("good", good()), ("bad", bad()), ("stuck", stuck())):
        file = directory / f"{name}.html"
        file.write_text(page_of(found), encoding="utf-8")
        pages[name] = Told(found, file.as_uri())
    return pages


@pytest.mark.parametrize("look", LOOKS, ids=str)
@pytest.mark.parametrize("name", ["good", "bad", "stuck"])
def test_it_stands_alone_and_can_be_read(
    chromium: Chromium, told: dict[str, Told], name: str, look: Look
) -> None:
    """Nothing is fetched, nothing fails, every text is readable, and only the plots scroll sideways."""
    one = told[name]
    seen, wrong = survey(chromium, one.url, look)
    assert wrong == []
    assert seen.title == seen.heading == f"Certification under plan {one.certificate.plan['name']}"
    assert seen.texts > 50


@pytest.mark.parametrize("look", LOOKS, ids=str)
def test_each_plot_is_drawn(chromium: Chromium, told: dict[str, Told], look: Look) -> None:
    """Throughput, recovery and latency have a drawing with marks of a size, and a caption below it."""
    script = """figures => figures.map(figure => {
        const drawing = figure.querySelector("svg").getBoundingClientRect();
        const marks = [...figure.querySelectorAll("svg rect, svg circle")].map(mark => mark.getBoundingClientRect());
        const caption = figure.querySelector("figcaption");
        return {
            width: drawing.width, height: drawing.height, marks: marks.length,
            flat: marks.filter(mark => !(mark.width > 0 && mark.height > 0)).length,
            outside: marks.filter(mark => mark.left < drawing.left || mark.right > drawing.right).length,
            below: caption.getBoundingClientRect().top >= drawing.bottom, caption: caption.innerText,
        };
    })"""
    for name, plots in (("good", 3), ("bad", 3), ("stuck", 2)):
        found = chromium.visit(
            told[name].url, look, lambda page: page.locator("figure").evaluate_all(script)
        ).found
        assert len(found) == plots
        for plot in found:
            assert plot["width"] >= 600, plot
            assert plot["height"] >= 40, plot
            assert plot["marks"] or name == "stuck", plot
            assert (plot["flat"], plot["outside"], plot["below"]) == (0, 0, True), plot
            assert plot["caption"], plot


@pytest.mark.parametrize("look", [WIDE, DARK], ids=str)
def test_each_metric_is_in_the_table(chromium: Chromium, told: dict[str, Told], look: Look) -> None:
    """Every metric of the certificate has its row, and its verdict a colour of its own."""
    rows = """rows => rows.map(row => [[...row.cells].map(cell => cell.innerText.trim()),
        getComputedStyle(row.lastElementChild).color])"""

    def task(page: Page) -> list[tuple[list[str], str]]:
        return [(cells, colour) for cells, colour in page.locator("tbody tr").evaluate_all(rows)]

    colours: dict[str, set[str]] = {}
    for one in told.values():
        found = chromium.visit(one.url, look, task).found
        assert [cells for cells, _ in found] == [
            [measure.name, measure.target, measure.measured, measure.verdict]
            for measure in one.certificate.measures
        ]
        for cells, colour in found:
            colours.setdefault(cells[-1], set()).add(colour)
    assert set(colours) == {"met", "missed", "not asked"}
    assert all(len(same) == 1 for same in colours.values()), colours
    assert len({colour for same in colours.values() for colour in same}) == 3, colours


@pytest.mark.parametrize("look", [WIDE, DARK], ids=str)
def test_the_verdict_is_seen_at_once(chromium: Chromium, told: dict[str, Told], look: Look) -> None:
    """The first line says whether it is certified, on a ground of another colour for yes and for no."""

    def task(page: Page) -> tuple[str, str]:
        line = page.locator(".verdict")
        return line.inner_text(), str(line.evaluate("line => getComputedStyle(line).backgroundColor"))

    found = {name: chromium.visit(told[name].url, look, task).found for name in ("good", "bad")}
    assert {name: line for name, (line, _) in found.items()} == {
        name: verdict_line(told[name].certificate) for name in found
    }
    assert found["good"][1] != found["bad"][1]


def test_the_plan_opens(chromium: Chromium, told: dict[str, Told]) -> None:
    """The plan is there for who wants to see it, and a click shows it."""

    def task(page: Page) -> tuple[bool, bool, str]:
        plan = page.locator("details pre")
        before = plan.is_visible()
        page.get_by_text("The plan", exact=True).click()
        return before, plan.is_visible(), plan.inner_text()

    before, after, text = chromium.visit(told["good"].url, WIDE, task).found
    assert (before, after) == (False, True)
    assert 'name = "default"' in text
