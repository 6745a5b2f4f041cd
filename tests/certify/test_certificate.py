"""From what a run left behind to a verdict, and how it is told: table, JSON, JUnit XML, page."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Sequence
from xml.etree import ElementTree

import pytest
from rich.console import Console

from gateway.audit import Auditor
from gateway.connectors.simulation.wire import JournalEntry, JournalEvent, JournalPage, JournalSummary
from gateway.events import Event
from gateway.lifecycle import EventType
from gateway.models import Epoch, JobId
from simulator.certify_config import builtin_setup
from simulator.certify_judge import Certificate, FaultMark, RunFacts, as_json, judge
from simulator.certify_page import page
from simulator.certify_report import junit, show, verdict_line
from simulator.fault_plans import preset

BEGUN_MS = 1_700_000_000_000
WORKER = "gateway-0/simulation-gpu0"


class Story:
    """Writes events as the queue would."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.acknowledged: list[str] = []

    def add(self, at_s: float, kind: EventType, job: str, epoch: int = 1, worker: str = WORKER) -> None:
        cursor = f"{len(self.events) + 1}-0/0"
        at_ms = BEGUN_MS + round(at_s * 1000)
        self.events.append(Event(cursor, at_ms, kind, JobId(job), Epoch(epoch), worker, ""))

    def job(self, job: str, *ends: EventType, at_s: float = 1.0) -> None:
        self.acknowledged.append(job)
        self.add(at_s, EventType.SUBMITTED, job, 0, "")
        self.add(at_s + 0.1, EventType.CLAIMED, job)
        for end in ends:
            self.add(at_s + 1.0, end, job)

    def recovered(self, job: str, after_s: float) -> None:
        """Claimed at 1 s, lost with its gateway at 5 s, claimed again after so long."""
        self.job(job)
        self.add(5 + after_s - 0.1, EventType.RECOVERED, job)
        self.add(5 + after_s, EventType.CLAIMED, job, 2, "gateway-1/simulation-gpu0")
        self.add(6 + after_s, EventType.COMPLETED, job, 2, "gateway-1/simulation-gpu0")


def journal(*finished: str, misrouted: int = 0) -> JournalPage:
    entries = tuple(
        JournalEntry(seq=number, at_s=0.0, event=JournalEvent.FINISHED, id=name)
        for number, name in enumerate(finished, 1)
    )
    return JournalPage(
        entries=entries,
        summary=JournalSummary(
            instance="service-0", executions_by_job={}, completed=0, duplicates=0, misrouted=misrouted
        ),
    )


def certificate(
    story: Story,
    *,
    plan: str = "default",
    marks: Sequence[FaultMark] = (),
    page: JournalPage | None = None,
    unclean: Sequence[str] = (),
) -> Certificate:
    auditor = Auditor()
    auditor.feed(story.events)
    return judge(
        RunFacts(
            plan=preset(plan),
            setup=builtin_setup(2),
            report=auditor.finish(acknowledged=story.acknowledged),
            events=story.events,
            journals={"service-0": page or journal()},
            worker_ids={"gateway-0": frozenset({WORKER})},
            acknowledged=story.acknowledged,
            marks=marks,
            crashes={},
            unclean=unclean,
            begun_ms=BEGUN_MS,
            ended_ms=BEGUN_MS + 30_000,
        )
    )


def mark(kind: str, target: str, at_s: float, until_s: float | None) -> FaultMark:
    until_ms = None if until_s is None else BEGUN_MS + round(until_s * 1000)
    return FaultMark(kind=kind, target=target, at_ms=BEGUN_MS + round(at_s * 1000), until_ms=until_ms)


def verdicts(found: Certificate) -> dict[str, str]:
    return {measure.key: measure.verdict for measure in found.measures}


def good() -> Certificate:
    story = Story()
    for number in range(20):
        story.job(f"job-{number}", EventType.COMPLETED, at_s=0.3 * number)
    story.recovered("orphan", 14.5)
    marks = [mark("kill", "gateway-0", 5.0, 6.0), mark("redis", "redis", 16.0, 18.0)]
    return certificate(story, marks=marks, page=journal("job-0.1", "job-1.1"))


def test_a_good_run_is_certified() -> None:
    """All that was asked is met; recovery and outage are measured from the fault."""
    found = good()
    assert found.certified
    assert set(verdicts(found).values()) == {"met"}
    assert [fact.seconds for fact in found.recoveries] == [(14.5,), (1.5,)]


@pytest.mark.parametrize(
    ("key", "story_of", "options"),
    [
        ("reliability", lambda story: story.job("dies", EventType.DEAD), {}),
        ("completion", lambda story: story.job("stuck"), {}),
        (
            "duplicates",
            lambda story: story.job("twice", EventType.COMPLETED, EventType.COMPLETED),
            {},
        ),
        ("invariants", lambda story: story.job("odd", EventType.COMPLETED, EventType.RETRIED), {}),
        ("routing", lambda story: None, {"page": journal(misrouted=1)}),
        ("work", lambda story: None, {"page": journal("job.1", "job.2")}),
        ("gateways", lambda story: None, {"unclean": ["gateway-1"]}),
        ("outage", lambda story: None, {"marks": [mark("redis", "redis", 25.0, 26.0)]}),
        ("recovery", lambda story: story.recovered("late", 21.0), {"marks": [mark("kill", "gateway-0", 5, 6)]}),
        ("recovery", lambda story: None, {"marks": [mark("kill", "gateway-0", 28.0, 29.0)]}),
    ],
)  # fmt: skip
def test_each_metric_can_be_missed(key: str, story_of: object, options: dict[str, object]) -> None:
    """Each broken promise is seen by the metric that names it, and then nothing is certified."""
    story = Story()
    story.job("fine", EventType.COMPLETED)
    assert callable(story_of)
    story_of(story)
    found = certificate(story, **options)  # type: ignore[arg-type]
    assert verdicts(found)[key] == "missed"
    assert not found.certified
    assert verdict_line(found).startswith("not certified: missed ")


def test_what_a_plan_does_not_ask_is_not_judged() -> None:
    """Without kills and outages there is no recovery to judge; a service that forgets may do work twice."""
    story = Story()
    story.job("fine", EventType.COMPLETED)
    found = certificate(story, plan="lossy", page=journal("fine.1", "fine.2"))
    assert found.certified
    assert [key for key, verdict in verdicts(found).items() if verdict == "not asked"] == [
        "recovery",
        "outage",
        "work",
    ]


def test_junit_has_one_case_per_metric() -> None:
    """CI systems see each metric: passed, failed with target and measured value, or skipped."""
    story = Story()
    story.job("dies \x01 <&>", EventType.DEAD)
    root = ElementTree.fromstring(junit(certificate(story)).encode())
    cases = root.findall("./testsuite/testcase")
    assert len(cases) == 9
    failed = [case.attrib["name"] for case in cases if case.find("failure") is not None]
    assert failed == ["job processing reliability"]
    assert root.attrib["failures"] == "1"
    assert (
        root.attrib["skipped"]
        == str(len([case for case in cases if case.find("skipped") is not None]))
        == "2"
    )


def test_the_page_is_one_file_with_three_plots() -> None:
    """No outer resource, no script; each plot is well-formed SVG and shows the faults and the limit."""
    text = page(good())
    assert not re.search(
        r"<script|<link|src=|url\(|https?://(?!www\.w3\.org/2000/svg)", text.split("<details>")[0]
    )
    plots = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]
    assert len(plots) == 3
    assert "gateway-0 killed" in text
    assert "redis down" in text
    assert "limit 20 s" in text
    numbers = [float(number) for svg in plots for node in svg.iter() for number in _places(node)]
    assert numbers
    assert all(0 <= number <= 1000 for number in numbers)


def _places(node: ElementTree.Element) -> list[str]:
    return [
        value for name, value in node.attrib.items() if name in ("x", "x1", "x2", "y", "y1", "y2", "cx", "cy")
    ]


def test_an_empty_run_can_be_told() -> None:
    """Nothing completed: the page has its plots, and the verdict is no."""
    story = Story()
    story.job("stuck")
    found = certificate(story)
    assert page(found).count("<svg") == 2
    assert not found.certified


def test_table_and_json_tell_the_same() -> None:
    """People and programs see the same metrics and the same verdict."""
    found = good()
    text = io.StringIO()
    show(found, Console(file=text, width=160))
    told = json.loads(as_json(found))
    assert told["certified"] is True
    assert told["latency_seconds"]["p50"] == pytest.approx(1.0)
    for measure in told["measures"]:
        assert measure["name"] in text.getvalue()
        assert measure["measured"] in text.getvalue()
    assert text.getvalue().splitlines()[-1] == "certified: every metric is met"
