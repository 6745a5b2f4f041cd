"""The auditor: for each promise a broken sequence that it must catch, and good ones that it must pass."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import pytest

from gateway.audit import Auditor, AuditReport, Invariant
from gateway.events import Event
from gateway.lifecycle import EventType
from gateway.models import Epoch, JobId, JobState


class Story:
    """Builds an event sequence, one millisecond per event unless ``wait`` says more."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._now_ms = 1_000_000
        self._numbers = itertools.count()

    def wait(self, ms: int) -> Story:
        self._now_ms += ms
        return self

    def tell(self, kind: str, job: str, epoch: int = 0, worker: str = "", detail: str = "") -> Story:
        self._now_ms += 1
        cursor = f"{self._now_ms}-{next(self._numbers)}/0"
        event = Event(cursor, self._now_ms, EventType(kind), JobId(job), Epoch(epoch), worker, detail)
        self.events.append(event)
        return self

    def submit(self, *jobs: str) -> Story:
        for job in jobs:
            self.tell("submitted", job)
        return self

    def claim(self, job: str, epoch: int, worker: str = "w", slots: int = 9) -> Story:
        return self.tell("claimed", job, epoch, worker, str(slots))

    def judge(self, auditor: Auditor | None = None) -> AuditReport:
        auditor = auditor or Auditor()
        auditor.feed(self.events)
        return auditor.report()


def found(report: AuditReport) -> list[Invariant]:
    return [violation.invariant for violation in report.violations]


def served(expected: str, served_by: str) -> str:
    return json.dumps({"expected": expected, "served_by": served_by})


GOOD: dict[str, Callable[[], Story]] = {
    "straight": lambda: Story().submit("a").claim("a", 1).tell("completed", "a", 1, "w"),
    "delayed": lambda: (
        Story()
        .tell("deferred", "a")
        .tell("promoted", "a")
        .claim("a", 1)
        .tell("completed", "a", 1, "w", served("w", "w"))
    ),
    "retried at once and later": lambda: (
        Story()
        .submit("a")
        .claim("a", 5)
        .tell("retried", "a", 5, "w")
        .claim("a", 6)
        .tell("retried_later", "a", 6, "w")
        .tell("promoted", "a", 6)
        .claim("a", 9)
        .tell("dead", "a", 9, "w")
    ),
    "snoozed, released, cancelled": lambda: (
        Story()
        .submit("a")
        .claim("a", 5)
        .tell("snoozed_later", "a", 5, "w")
        .tell("promoted", "a", 5)
        .claim("a", 6)
        .tell("released", "a", 6, "w")
        .claim("a", 7)
        .tell("cancel_requested", "a", 7, "w")
        .tell("cancelled", "a", 7, "w")
    ),
    "late result of the newest owner": lambda: (
        Story().submit("a").claim("a", 1).tell("recovered", "a", 1, "w").tell("completed", "a", 1, "w")
    ),
    "fenced zombie": lambda: (
        Story()
        .submit("a")
        .claim("a", 1)
        .tell("recovered", "a", 1, "w")
        .claim("a", 2, "x")
        .tell("refused", "a", 1, "", "completed")
        .tell("completed", "a", 2, "x")
    ),
    "two lives": lambda: (
        Story()
        .submit("a")
        .claim("a", 1)
        .tell("dead", "a", 1, "w")
        .tell("requeued", "a", 1)
        .claim("a", 2)
        .tell("completed", "a", 2, "w")
    ),
    "as many as slots, again and again": lambda: (
        Story()
        .submit("a", "b", "c")
        .claim("a", 1, slots=2)
        .claim("b", 2, slots=2)
        .tell("completed", "a", 1, "w")
        .claim("c", 3, slots=2)
        .tell("completed", "b", 2, "w")
        .tell("completed", "c", 3, "w")
    ),
    "killed worker came back": lambda: (
        Story()
        .submit("a", "b")
        .claim("a", 1, slots=1)
        .claim("b", 2, slots=1)
        .tell("completed", "b", 2, "w")
        .tell("recovered", "a", 1, "w")
        .claim("a", 3, slots=1)
        .tell("completed", "a", 3, "w")
    ),
    "spooled result": lambda: (
        Story()
        .submit("a", "b")
        .claim("a", 1, slots=1)
        .claim("b", 2, slots=1)
        .tell("completed", "a", 1, "w", '{"spooled":true}')
        .tell("completed", "b", 2, "w")
    ),
    "poison pill of a killed worker": lambda: (
        Story()
        .submit("a", "b")
        .claim("a", 1, slots=1)
        .claim("b", 2, slots=1)
        .tell("dead", "a", 1, "w", '{"kind":"poison_pill"}')
        .tell("completed", "b", 2, "w")
    ),
    "detail that is not JSON": lambda: (
        Story().submit("a").claim("a", 1).tell("completed", "a", 1, "w", "{broken")
    ),
}


def born(**conditions: object) -> str:
    """What the first event of a job tells of its conditions."""
    return json.dumps(conditions)


def family(policy: str = "cancel") -> Story:
    """A child of two parents."""
    detail = born(after=["a", "b"], on_failure=policy)
    return Story().submit("a", "b").tell("blocked", "c", detail=detail)


CONDITIONS_KEPT: dict[str, Callable[[], Story]] = {
    "claimed before its deadline": lambda: (
        Story().tell("submitted", "a", detail=born(expires_ms=1_000_003)).claim("a", 1)
    ),
    "claimed after its deadline in a new life": lambda: (
        Story()
        .tell("submitted", "a", detail=born(expires_ms=1_000_002))
        .tell("expired", "a")
        .tell("requeued", "a")
        .claim("a", 1)
    ),
    "one unique key after the other": lambda: (
        Story()
        .tell("submitted", "a", detail=born(unique="k"))
        .tell("cancelled", "a")
        .tell("submitted", "b", detail=born(unique="k"))
    ),
    "released after both parents": lambda: (
        family()
        .claim("a", 1)
        .claim("b", 2)
        .tell("completed", "b", 2, "w")
        .tell("completed", "a", 1, "w")
        .tell("unblocked", "c")
    ),
    "released although a parent failed": lambda: (
        family("release").tell("cancelled", "a").tell("cancelled", "b").tell("unblocked", "c")
    ),
    "a parent's new life is its own": lambda: (
        family("release")
        .tell("cancelled", "a")
        .tell("expired", "b")
        .tell("requeued", "b")
        .tell("unblocked", "c")
    ),
    "instant after instant": lambda: (
        Story()
        .tell("submitted", "a", detail=born(schedule="s", instant_ms=60_000))
        .tell("submitted", "b", detail=born(schedule="s", instant_ms=120_000))
        .tell("submitted", "c", detail=born(schedule="t", instant_ms=60_000))
    ),
    "a forgotten letter's key is its own": lambda: (
        Story()
        .tell("submitted", "a", detail=born(unique="k"))
        .tell("expired", "a")
        .wait(60_000)
        .submit("a")
        .tell("submitted", "b", detail=born(unique="k"))
        .tell("expired", "a")
        .tell("requeued", "a")
    ),
}
BAD: dict[str, tuple[Callable[[], Story], Invariant]] = {
    "claimed twice": (
        lambda: Story().submit("a").claim("a", 1, "w").claim("a", 2, "x"),
        Invariant.ONE_OWNER,
    ),
    "epoch went back": (
        lambda: Story().submit("a").claim("a", 5).tell("recovered", "a", 5, "w").claim("a", 4),
        Invariant.EPOCHS_INCREASE,
    ),
    "epoch issued again": (
        lambda: Story().submit("a").claim("a", 5).tell("released", "a", 5, "w").claim("a", 5),
        Invariant.EPOCHS_INCREASE,
    ),
    "epoch started afresh in a new life": (
        lambda: (
            Story().submit("a").claim("a", 5).tell("dead", "a", 5, "w").tell("requeued", "a", 5).claim("a", 1)
        ),
        Invariant.EPOCHS_INCREASE,
    ),
    "completed twice": (
        lambda: (
            Story().submit("a").claim("a", 1).tell("completed", "a", 1, "w").tell("completed", "a", 1, "w")
        ),
        Invariant.ONE_COMPLETION,
    ),
    "completed under an old epoch": (
        lambda: (
            Story()
            .submit("a")
            .claim("a", 1)
            .tell("recovered", "a", 1, "w")
            .claim("a", 2, "x")
            .tell("completed", "a", 1, "w")
        ),
        Invariant.NEWEST_EPOCH_SETTLES,
    ),
    "released under an old epoch": (
        lambda: (
            Story()
            .submit("a")
            .claim("a", 1)
            .tell("recovered", "a", 1, "w")
            .claim("a", 2, "x")
            .tell("released", "a", 1, "w")
        ),
        Invariant.NEWEST_EPOCH_SETTLES,
    ),
    "claimed after the end": (
        lambda: Story().submit("a").tell("cancelled", "a").claim("a", 1),
        Invariant.TERMINAL_ABSORBS,
    ),
    "buried after completion": (
        lambda: Story().submit("a").claim("a", 1).tell("completed", "a", 1, "w").tell("dead", "a", 1, "w"),
        Invariant.TERMINAL_ABSORBS,
    ),
    "completed job requeued": (
        lambda: Story().submit("a").claim("a", 1).tell("completed", "a", 1, "w").tell("requeued", "a", 1),
        Invariant.TERMINAL_ABSORBS,
    ),
    "claimed at its deadline": (
        lambda: Story().tell("submitted", "a", detail=born(expires_ms=1_000_002)).claim("a", 1),
        Invariant.DEADLINE_KEPT,
    ),
    "two with one unique key": (
        lambda: (
            Story()
            .tell("submitted", "a", detail=born(unique="k"))
            .tell("deferred", "b", detail=born(unique="k"))
        ),
        Invariant.UNIQUE_HELD,
    ),
    "requeued while another has its unique key": (
        lambda: (
            Story()
            .tell("submitted", "a", detail=born(unique="k"))
            .tell("expired", "a")
            .tell("submitted", "b", detail=born(unique="k"))
            .tell("requeued", "a")
        ),
        Invariant.UNIQUE_HELD,
    ),
    "released by the first parent": (
        lambda: family().claim("a", 1).tell("completed", "a", 1, "w").tell("unblocked", "c"),
        Invariant.PARENTS_FIRST,
    ),
    "released by a failed parent": (
        lambda: family().tell("cancelled", "a").tell("cancelled", "b").tell("unblocked", "c"),
        Invariant.PARENTS_FIRST,
    ),
    "one instant twice": (
        lambda: (
            Story()
            .tell("submitted", "a", detail=born(schedule="s", instant_ms=60_000))
            .tell("submitted", "b", detail=born(schedule="s", instant_ms=60_000))
        ),
        Invariant.ONE_PER_INSTANT,
    ),
    "submitted twice": (lambda: Story().submit("a", "a"), Invariant.LEGAL_TRANSITION),
    "claimed before it was due": (
        lambda: Story().tell("deferred", "a").claim("a", 1),
        Invariant.LEGAL_TRANSITION,
    ),
    "never submitted": (lambda: Story().claim("a", 1), Invariant.LEGAL_TRANSITION),
    "retried while waiting": (
        lambda: Story().submit("a").tell("retried", "a", 0, "w"),
        Invariant.LEGAL_TRANSITION,
    ),
    "more jobs than slots": (
        lambda: (
            Story()
            .submit("a", "b")
            .claim("a", 1, slots=1)
            .claim("b", 2, slots=1)
            .tell("completed", "a", 1, "w")
            .tell("retried", "b", 2, "w")
        ),
        Invariant.SLOTS_RESPECTED,
    ),
    "misrouted": (
        lambda: Story().submit("a").claim("a", 1).tell("completed", "a", 1, "w", served("gpu0", "gpu1")),
        Invariant.ROUTED_CORRECTLY,
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_history_passes(name: str) -> None:
    """What the design allows is no violation, also when every job must have ended."""
    story = GOOD[name]()
    auditor = Auditor()
    assert story.judge(auditor).violations == ()
    report = auditor.finish(expect_all_terminal=True, acknowledged={event.job_id for event in story.events})
    assert report.ok
    assert report.unfinished == 0


@pytest.mark.parametrize("name", GOOD)
def test_every_suffix_of_a_good_history_passes_as_truncated(name: str) -> None:
    """A capped stream may begin anywhere."""
    events = GOOD[name]().events
    for start in range(len(events)):
        auditor = Auditor(truncated=True)
        auditor.feed(events[start:])
        assert auditor.finish(acknowledged=["trimmed"]).violations == ()


@pytest.mark.parametrize("name", BAD)
def test_a_broken_promise_is_reported(name: str) -> None:
    """Each invariant has a sequence that breaks it, and the report names invariant, job and place."""
    build, invariant = BAD[name]
    story = build()
    report = story.judge()
    assert found(report) == [invariant]
    assert not report.ok
    violation = report.violations[0]
    assert violation.job_id in {"a", "b", "c"}
    assert violation.cursor in {event.cursor for event in story.events}
    assert violation.message


@pytest.mark.parametrize("name", CONDITIONS_KEPT)
def test_kept_conditions_pass(name: str) -> None:
    """Deadlines, unique keys, parents and instants that were respected are no violation."""
    report = CONDITIONS_KEPT[name]().judge(Auditor(retention_s=60))
    assert report.violations == ()


def test_every_invariant_is_shown_to_bite() -> None:
    """No invariant is left without a broken sequence; the two judged at the end have tests of their own."""
    at_the_end = {Invariant.ALL_FINISHED, Invariant.NOTHING_LOST}
    assert {invariant for _, invariant in BAD.values()} | at_the_end == set(Invariant)


@pytest.mark.parametrize("last", ["submitted", "claimed", "retried_later"])
def test_an_unfinished_job_is_reported_only_when_the_end_is_expected(last: str) -> None:
    """A job that is still on its way is wrong only once everything should have ended."""
    story = Story().submit("a")
    if last != "submitted":
        story.claim("a", 1)
    if last == "retried_later":
        story.tell(last, "a", 1, "w")
    auditor = Auditor()
    assert story.judge(auditor).ok
    assert auditor.finish(expect_all_terminal=False, acknowledged=["a"]).ok
    assert found(auditor.finish(expect_all_terminal=True)) == [Invariant.ALL_FINISHED]
    assert found(auditor.finish(expect_all_terminal=True, acknowledged=["a"])) == [Invariant.NOTHING_LOST]
    assert auditor.report().ok, "judging the end must not change the auditor"


def test_an_acknowledged_job_without_events_is_lost() -> None:
    """The store promised to keep it; a truncated stream cannot say so."""
    story = GOOD["straight"]()
    report = _finished(story, Auditor(), acknowledged=["a", "b"])
    assert [(violation.invariant, violation.job_id) for violation in report.violations] == [
        (Invariant.NOTHING_LOST, "b")
    ]
    assert _finished(story, Auditor(truncated=True), acknowledged=["a", "b"]).ok


def _finished(story: Story, auditor: Auditor, acknowledged: list[str]) -> AuditReport:
    auditor.feed(story.events)
    return auditor.finish(acknowledged=acknowledged)


def test_a_new_job_may_take_an_old_id_after_its_retention() -> None:
    """Once the store has forgotten a job, its id is free again; before that, it is not."""
    story = GOOD["straight"]().wait(60_000).submit("a").claim("a", 7).tell("completed", "a", 7, "w")
    report = story.judge(Auditor(retention_s=60))
    assert report.ok
    assert (report.submitted, report.completed) == (2, 2)
    assert Invariant.TERMINAL_ABSORBS in found(story.judge(Auditor(retention_s=61)))
    assert Invariant.TERMINAL_ABSORBS in found(story.judge())


def test_counts_follow_each_job_to_its_last_state() -> None:
    """A requeued job counts once, by where it ended; a cancelled one says nothing about success."""
    story = GOOD["two lives"]().submit("b", "c", "d", "e").tell("cancelled", "b")
    story.claim("c", 3).tell("dead", "c", 3, "w").tell("refused", "c", 3, "", "completed").claim("d", 4)
    auditor = Auditor()
    report = story.judge(auditor)
    assert report.ok
    assert (report.submitted, report.completed, report.dead) == (5, 1, 1)
    assert (report.cancelled, report.unfinished) == (1, 2)
    assert (report.refused, report.requeued) == (1, 1)
    assert report.success_rate == 0.5
    assert report.events == len(story.events)
    assert auditor.state_of(JobId("d")) is JobState.RUNNING
    assert auditor.state_of(JobId("b")) is JobState.CANCELLED
    assert auditor.state_of(JobId("z")) is None
    assert Auditor().report().success_rate == 1.0


def test_recovery_time_counts_from_the_kill_to_the_next_claim() -> None:
    """Only leases held at the kill count, once per job, and only those of the killed workers."""
    story = Story().submit("a", "b", "c", "d").claim("a", 1, "w").claim("b", 2, "x").claim("d", 3, "w")
    kill_at_ms = story.events[-1].at_ms + 1
    story.wait(15_000).tell("recovered", "a", 1, "w").tell("recovered", "b", 2, "x")
    story.wait(998).claim("a", 11, "x")
    reclaimed_ms = story.events[-1].at_ms
    story.claim("b", 12, "x").claim("c", 13, "w")
    story.wait(20_000).tell("recovered", "c", 13, "w").tell("recovered", "d", 3, "w").claim("c", 14, "x")
    report = story.judge()
    assert report.ok
    assert report.recoveries_after(kill_at_ms, {"w"}) == [(reclaimed_ms - kill_at_ms) / 1000]
    assert len(report.recoveries_after(kill_at_ms)) == 2
    assert report.recoveries_after(kill_at_ms + 60_000) == []
    first, *_, last = report.recoveries
    assert (first.job_id, first.worker_id, first.reclaimed_at_ms) == ("a", "w", reclaimed_ms)
    assert (last.job_id, last.reclaimed_at_ms) == ("d", None)


def test_violations_are_bounded_and_still_counted() -> None:
    """A broken store fills the count, not the memory."""
    story = Story().submit("a").claim("a", 1).tell("completed", "a", 1, "w")
    for _ in range(50):
        story.tell("completed", "a", 1, "w")
    report = story.judge(Auditor(violations_max=10))
    assert len(report.violations) == 10
    assert report.violations_total == 50
