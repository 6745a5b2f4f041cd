"""What `gateway explain` says: pure, from a job, the registry and the job's events."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from gateway.events import Event
from gateway.explain import Explanation, WorkerView, decode_worker, detail_text, explain, fit, tell
from gateway.lifecycle import EventType
from gateway.models import ClassId, Epoch, JobId, JobSpec, JobState, JobView, ParentPolicy

NOW_MS = 1_700_000_000_000


def job(state: JobState = JobState.PENDING, **changes: Any) -> JobView:
    spec = JobSpec(service="comfyui", requires=changes.pop("requires", {}))
    values: dict[str, Any] = {
        "job_id": JobId("a"), "state": state, "spec": spec, "class_id": ClassId("comfyui"), "epoch": Epoch(0),
        "attempts": 0, "recoveries": 0, "yields": 0, "worker_id": "", "reference": "", "progress": 0.0,
        "cancel_requested": False, "submitted_ms": NOW_MS - 5000, "enqueued_ms": NOW_MS - 5000, "ended_ms": 0,
        "lease_until_ms": None, "due_ms": None,
    }  # fmt: skip
    return JobView(**{**values, **changes})


def waiting(policy: ParentPolicy = ParentPolicy.CANCEL, **changes: Any) -> JobView:
    spec = JobSpec(service="comfyui", after=("p", "q", "r"), on_parent_failure=policy)
    return msgspec.structs.replace(job(JobState.WAITING, **changes), spec=spec)


def worker(**changes: Any) -> WorkerView:
    description = {
        "service": "comfyui", "connector": "comfyui-websocket", "endpoint": "http://h:1", "slots": 2, "running": 0,
        "healthy": True, "refusal": "", "capabilities": {"vram_gb": 12, "loras": ["x"]}, **changes,
    }  # fmt: skip
    return decode_worker("m/a", f"{NOW_MS - 1000} ".encode() + msgspec.json.encode(description))


def told(
    view: JobView, *workers: WorkerView, events: list[Event] | None = None, **changes: Any
) -> Explanation:
    options: dict[str, Any] = {
        "now_ms": NOW_MS,
        "paused": False,
        "ahead": None,
        "worker_ttl_s": 30.0,
        **changes,
    }
    return explain(view, workers, events or [], **options)


def event(at_ms: int, kind: EventType, *, worker_id: str = "", epoch: int = 0, detail: str = "") -> Event:
    return Event(f"{at_ms}-0/0", at_ms, kind, JobId("a"), Epoch(epoch), worker_id, detail)


@pytest.mark.parametrize(
    ("requires", "description", "fits", "ready", "reason"),
    [
        ({}, {}, True, True, ""),
        ({"vram_gb": {">=": 8}}, {}, True, True, ""),
        ({"vram_gb": {">=": 24}}, {}, False, False, "vram_gb >= 24 (worker has 12)"),
        ({"loras": {"has": "y"}}, {}, False, False, "loras has 'y' (worker has ['x'])"),
        ({"worker": {"==": "m/b"}}, {}, False, False, "worker == 'm/b'"),
        ({"worker": {"==": "m/a"}}, {}, True, True, ""),
        ({}, {"service": "a1111"}, False, False, "serves 'a1111', not 'comfyui'"),
        ({}, {"refusal": "breaker open"}, True, False, "breaker open"),
        ({}, {"healthy": False}, True, False, "unhealthy"),
        ({}, {"running": 2}, True, False, "all slots busy"),
    ],
)
def test_fit_names_what_is_unmet(
    requires: dict[str, Any], description: dict[str, Any], fits: bool, ready: bool, reason: str
) -> None:
    """For every worker: whether it could run the job, whether right now, and which predicate is in the way."""
    found = fit(job(requires=requires), worker(**description), now_ms=NOW_MS, worker_ttl_s=30.0)
    assert (found.fits, found.ready) == (fits, ready)
    assert reason in "; ".join(found.reasons)
    assert bool(found.reasons) == bool(reason)


def test_silent_worker_is_not_ready() -> None:
    """A worker that has not been heard of for longer than the registry keeps it could run the job, but not now."""
    found = fit(job(), worker(), now_ms=NOW_MS + 60_000, worker_ttl_s=30.0)
    assert (found.fits, found.ready, found.reasons) == (True, False, ("silent for 61 s",))


@pytest.mark.parametrize(
    "entry", [b"", b"x", b"17 {", b"17 []", b"17 {}", b'17 {"slots": "a", "capabilities": 5}']
)
def test_damaged_registry_entries_serve_nothing(entry: bytes) -> None:
    """What somebody wrote into the registry by hand cannot break the explanation."""
    assert fit(job(), decode_worker("w", entry), now_ms=NOW_MS, worker_ttl_s=30.0).fits is False


@pytest.mark.parametrize(
    ("explanation", "fragments"),
    [
        (told(job()), ["No worker is registered"]),
        (told(job(), worker(), ahead=3), ["1 worker(s) can run it now: m/a.", "3 job(s) of its class are ahead"]),
        (told(job(), worker(service="x")), ["None of 1 registered workers can run it"]),
        (told(job(), worker(healthy=False)), ["1 worker(s) could run it, but none right now"]),
        (told(job(), worker(), paused=True), ["The queue is paused"]),
        (told(job(attempts=2, error={"kind": "timeout", "message": "slow"}, recoveries=1), worker()),
         ["2 of 3 attempts failed; the last: timeout: slow", "lease expired 1 time"]),
        (told(job(JobState.SCHEDULED, due_ms=NOW_MS + 2500), worker()), ["due in 2.5 s"]),
        (told(job(JobState.SCHEDULED, due_ms=NOW_MS - 1, error={"message": "x"})),
         ["next sweep", "attempt failed: x", "No worker"]),
        (told(job(JobState.RUNNING, worker_id="m/a", lease_until_ms=NOW_MS + 9000, cancel_requested=True)),
         ["m/a runs it; its lease ends in 9.0 s", "cancellation was requested"]),
        (told(job(JobState.RUNNING, worker_id="m/a", lease_until_ms=NOW_MS - 1)), ["ran out"]),
        (told(job(JobState.DEAD, error={"kind": "poison_pill", "message": "m"})),
         ["failed for good: poison_pill: m", "gateway dead requeue a"]),
        (told(job(JobState.DEAD)), ["no reason was recorded"]),
        (told(job(JobState.COMPLETED)), ["It ended: completed."]),
        (told(job(expires_ms=NOW_MS + 1500), worker()), ["Its deadline is in 1.5 s"]),
        (told(job(expires_ms=NOW_MS), worker()), ["Its deadline has passed"]),
        (told(job(JobState.CANCELLED, error={"kind": "parent_failed", "message": "p"})),
         ["It was cancelled: parent_failed: p."]),
        (told(waiting(parents_left=2), parents={"p": JobState.RUNNING, "q": JobState.PENDING, "r": None}),
         ["It waits for 2 of its 3 parent(s): p (running), q (pending).", "cancels it", "No worker"]),
        (told(waiting(ParentPolicy.RELEASE, parents_left=1), parents={"p": JobState.DEAD}),
         ["Its parents have ended: the next sweep tells it", "counts as done"]),
    ],
)  # fmt: skip
def test_summary_answers_why(explanation: Explanation, fragments: list[str]) -> None:
    """Each state has its own answer, most important first."""
    text = " ".join(explanation.summary)
    assert [fragment for fragment in fragments if fragment not in text] == []


def test_story_counts_attempts() -> None:
    """The story names each attempt; releases charge none, and a requeue starts counting afresh."""
    lines = tell(
        [
            event(1000, EventType.SUBMITTED),
            event(1500, EventType.CLAIMED, worker_id="m/a", epoch=1),
            event(2000, EventType.RELEASED, worker_id="m/a", epoch=1),
            event(2500, EventType.CLAIMED, worker_id="m/b", epoch=2),
            event(3000, EventType.RETRIED_LATER, epoch=2, detail='{"kind": "timeout", "message": "slow"}'),
            event(3500, EventType.PROMOTED),
            event(4000, EventType.CLAIMED, worker_id="m/a", epoch=3),
            event(4500, EventType.DEAD, epoch=3, detail="gone"),
            event(5000, EventType.REQUEUED),
            event(5500, EventType.CLAIMED, worker_id="m/a", epoch=4),
        ]
    )
    assert [line.attempt for line in lines] == [0, 1, 1, 1, 1, 1, 2, 2, 0, 1]
    assert lines[4].text == "failed, waits for its back-off (timeout: slow)"
    assert lines[7].text == "went to the dead letters (gone)"
    assert lines[-1].after_s == 4.5


def test_every_event_has_a_phrase() -> None:
    """No event of the lifecycle is without words."""
    assert all(tell([event(1, kind)])[0].text for kind in EventType)


def test_story_knows_whether_it_is_complete() -> None:
    """A story that no longer begins with the submission says so."""
    assert told(job(), events=[event(1, EventType.SUBMITTED)]).story_complete
    assert not told(job(), events=[event(1, EventType.CLAIMED)]).story_complete
    assert not told(job()).story_complete


@pytest.mark.parametrize(
    ("detail", "text"),
    [
        ("", ""), ("2", "2"), ("word", "word"), ("[1]", "[1]"),
        ('{"a": 1}', "a 1"), ('{"kind": "k", "message": "m"}', "k: m"),
    ],
)  # fmt: skip
def test_details_read_like_sentences(detail: str, text: str) -> None:
    """Kind and message of an error, else what is there."""
    assert detail_text(detail) == text
