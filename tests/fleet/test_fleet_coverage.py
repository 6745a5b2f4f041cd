"""The checks that must be reached sometimes, and how an exploration judges itself."""

from __future__ import annotations

import pytest

from gateway.events import Event
from gateway.lifecycle import EventType
from gateway.models import Epoch, JobId
from simulator.coverage import (
    EVENTS_WANTED,
    MARKS_WANTED,
    MEANINGS,
    SCENARIO_ONLY,
    Coverage,
    Mark,
    marks_of_events,
)
from simulator.explore import EXIT_CODES, Exploration, SeedResult, Size, coverage_is_judged
from simulator.plan import FaultKind

EVERYTHING = (
    {kind.value: 1 for kind in FaultKind},
    {event.value: 1 for event in EVENTS_WANTED},
    {mark.value: 1 for mark in MARKS_WANTED},
)


def result(kind: str = "ok", **more: object) -> SeedResult:
    fields: dict[str, object] = {
        "seed": 3, "kind": kind, "findings": ("x",) if kind != "ok" else (), "undurable": (), "durable": True,
        "simulated_s": 10.0, "jobs": 4, "completed": 4, "lost": 0, "violations": int(kind == "safety"),
        "faults": EVERYTHING[0], "transitions": EVERYTHING[1], "marks": EVERYTHING[2], "history_digest": "d",
    }  # fmt: skip
    return SeedResult(**{**fields, **more})  # type: ignore[arg-type]


def event(kind: EventType, detail: str = "") -> Event:
    return Event("1-0/0", 0, kind, JobId("a"), Epoch(1), "w", detail)


def test_everything_reached_leaves_nothing_missing() -> None:
    """Each fault kind, event and state is asked for by its own name."""
    coverage = Coverage()
    assert len(coverage.missing()) == sum(len(names) for names in EVERYTHING)
    coverage.add(*EVERYTHING)
    assert coverage.missing() == []
    assert all(seen == wanted for seen, wanted in coverage.shares().values())
    assert set(MEANINGS) == set(Mark)
    assert set(MARKS_WANTED) | SCENARIO_ONLY == set(Mark)


def test_marks_are_read_off_the_events() -> None:
    """A completion in pending and a poison pill's death are recognised, ordinary ends are not."""
    begin = [event(EventType.SUBMITTED), event(EventType.CLAIMED)]
    assert marks_of_events([*begin, event(EventType.COMPLETED)]) == {}
    late = [
        *begin,
        event(EventType.RECOVERED),
        event(EventType.REFUSED, "failed"),
        event(EventType.COMPLETED),
    ]
    assert marks_of_events(late) == {"completed_in_pending": 1}
    assert marks_of_events([*begin, event(EventType.DEAD, '{"kind":"poison_pill"}')]) == {"poison_pill": 1}
    assert marks_of_events([*begin, event(EventType.DEAD, '{"kind":"validation"}')]) == {}


@pytest.mark.parametrize(
    ("kinds", "verdict"),
    [
        (["ok"], "ok"),
        (["ok", "liveness"], "liveness"),
        (["liveness", "crash"], "crash"),
        (["crash", "safety", "liveness"], "safety"),
    ],
)
def test_the_gravest_failure_names_the_exit_code(kinds: list[str], verdict: str) -> None:
    """A safety violation outweighs a crash, a crash outweighs a job that did not end."""
    exploration = Exploration(Size())
    for kind in kinds:
        exploration.add(result(kind))
    assert exploration.verdict(judge_coverage=True) == verdict
    assert exploration.report(judge_coverage=True)["exit_code"] == EXIT_CODES[verdict]
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)


def test_an_unreached_state_fails_only_when_judged() -> None:
    """Few seeds are forgiven what they did not reach; many are not."""
    exploration = Exploration(Size(gateways=5))
    exploration.add(result(marks={}))
    assert exploration.verdict(judge_coverage=False) == "ok"
    assert exploration.verdict(judge_coverage=True) == "coverage"
    assert not coverage_is_judged(10, required=False)
    assert coverage_is_judged(10, required=True)
    assert coverage_is_judged(100_000, required=False)
    assert exploration.replay_command(3) == "simulator replay --seed 3 --gateways 5"


def test_undurable_runs_are_reported_apart() -> None:
    """What follows from a Redis that lost acknowledged writes is counted, and no failure."""
    exploration = Exploration(Size())
    exploration.add(result(durable=False, undurable=("gone",)))
    report = exploration.report(judge_coverage=False)
    assert (report["violations"], report["verdict"]) == (0, "ok")
    assert report["undurable"] == {"runs": 1, "runs_with_findings": 1}
