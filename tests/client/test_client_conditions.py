"""Deadlines, unique jobs, dependencies and schedules through the clients, on a real Redis."""

from __future__ import annotations

import re
from collections.abc import Iterator

import anyio
import pytest

from gateway.client import AsyncClient, BatchRefused, Client, JobRequest
from gateway.errors import (
    InvalidSchedule,
    InvalidSubmission,
    ScheduleNotFound,
    TooManyChildren,
    UnknownService,
)
from gateway.models import JobState, SubmitStatus
from gateway.schedules import PausedStatus, RemovedStatus, ResumedStatus
from gateway.store.calls import StoreLimits
from tests.support.hand_worker import HandWorker, fresh_queue, hand_worker

JOB = JobRequest("simulation", {"steps": 2}, expires_in_s=30)


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with Client(redis_url, queue=fresh_queue()) as client:
        yield client


@pytest.fixture
def worker(redis_url: str, client: Client) -> Iterator[HandWorker]:
    with hand_worker(redis_url, client.queue) as worker:
        yield worker


def test_a_deadline_is_by_the_clock_of_redis(client: Client, worker: HandWorker) -> None:
    """Relative ones count from the submission, absolute ones are kept, past ones are refused."""
    before_ms = client.now_ms()
    soon = client.get(client.submit("simulation", expires_in_s=60).job_id)
    assert before_ms + 60_000 <= soon.expires_ms <= client.now_ms() + 60_000
    at_s = before_ms / 1000 + 3600
    later = client.submit("simulation", expires_at_s=at_s)
    assert client.get(later.job_id).expires_ms == round(at_s * 1000)
    with pytest.raises(InvalidSubmission, match="deadline has passed"):
        client.submit("simulation", expires_at_s=before_ms / 1000 - 1)
    grant = worker.claim()
    assert 59 < grant.timeout_s <= 60
    assert worker.claim().timeout_s == 1800
    assert "Its deadline is in" in " ".join(client.explain(soon.job_id).summary)


def test_a_unique_job_is_one_at_a_time(client: Client, worker: HandWorker) -> None:
    """The second submit gets the first one's id; after the end a new job may come."""
    first = client.submit("simulation", unique_key="cover")
    again = client.submit("simulation", unique_key="cover")
    assert (again.job_id, again.deduplicated) == (first.job_id, True)
    worker.complete()
    third = client.submit("simulation", unique_key="cover", unique_for_s=60)
    assert third.job_id != first.job_id
    worker.complete()
    assert client.submit("simulation", unique_key="cover").job_id == third.job_id


def test_a_job_waits_for_its_parents(client: Client, worker: HandWorker) -> None:
    """It says for whom it waits; the last completion makes it due."""
    parents = [client.submit("simulation", number).job_id for number in range(2)]
    child = client.submit("simulation", after=[*parents, parents[0]]).job_id
    assert client.get(child).state is JobState.WAITING
    assert client.stats().waiting == 1
    worker.complete()
    told = client.explain(child)
    assert f"It waits for 1 of its 2 parent(s): {parents[1]} (pending)." in told.summary
    assert told.story_complete
    worker.complete()
    assert client.get(child).state is JobState.SCHEDULED


def test_a_failed_parent_is_the_reason(client: Client, worker: HandWorker) -> None:
    """The child's error names it; a child that does not mind goes on."""
    parent = client.submit("simulation").job_id
    cancelled = client.submit("simulation", after=[parent]).job_id
    released = client.submit("simulation", after=[parent], on_parent_failure="release").job_id
    worker.bury()
    assert client.wait(cancelled, 5).error == {
        "kind": "parent_failed",
        "message": f"its parent {parent} ended dead",
    }
    assert f"parent_failed: its parent {parent}" in " ".join(client.explain(cancelled).summary)
    assert client.get(released).state is JobState.SCHEDULED
    with pytest.raises(InvalidSubmission, match=f"job '{parent}' has ended dead or cancelled"):
        client.submit("simulation", after=[parent])


def test_a_child_needs_parents_that_exist(redis_url: str) -> None:
    """An unknown one refuses it, as does one with as many children as may be; a batch tells which."""
    limits = StoreLimits(children_max=1, parents_max=2)
    with Client(redis_url, queue=fresh_queue(), limits=limits) as client:
        with pytest.raises(InvalidSubmission, match="no job 'nobody' in this queue"):
            client.submit("simulation", after=["nobody"])
        parent = client.submit("simulation").job_id
        client.submit("simulation", after=[parent])
        with pytest.raises(TooManyChildren, match=re.escape(f"1 jobs wait for {parent!r} already")):
            client.submit("simulation", after=[parent])
        with pytest.raises(InvalidSubmission, match="after names 3 jobs; at most 2"):
            client.submit("simulation", after=["a", "b", "c"])
        jobs = [
            JobRequest("simulation", job_id="first"),
            JobRequest("simulation", after=["first"]),
            JobRequest("simulation", after=["later"]),
            JobRequest("simulation", job_id="later"),
        ]
        result = client.submit_many(jobs)
        assert [outcome.status for outcome in result.refused] == [SubmitStatus.UNKNOWN_PARENT]
        with pytest.raises(BatchRefused, match="unknown_parent"):
            result.raise_for_refused()


def test_many_parents_are_cut_into_calls(client: Client) -> None:
    """A batch whose jobs have many parents each is still accepted in order."""
    parents = [f"p{number}" for number in range(60)]
    client.submit_many([JobRequest("simulation", job_id=parent) for parent in parents])
    result = client.submit_many([JobRequest("simulation", after=parents) for _ in range(50)])
    assert not result.refused
    assert client.stats().waiting == 50


def test_a_schedule_from_its_definition_to_its_end(client: Client) -> None:
    """Added, shown, paused, resumed, run at once, replaced and removed."""
    now_ms = client.now_ms()
    added = client.add_schedule("nightly", "0  3 * * *", JOB, timezone="Europe/Berlin", unique=True)
    assert added.due_ms is not None
    assert now_ms < added.due_ms <= now_ms + 25 * 3_600_000
    assert (added.schedule.cron, added.schedule.expires_in_s, added.last_ms) == ("0 3 * * *", 30.0, None)
    assert client.schedules() == [added]
    with pytest.raises(InvalidSchedule, match="exists"):
        client.add_schedule("nightly", "0 4 * * *", JOB)
    assert client.pause_schedules(["nightly", "nobody"]) == [PausedStatus.PAUSED, PausedStatus.UNKNOWN]
    assert client.schedules()[0].paused
    assert client.resume_schedules(["nobody", "nightly"]) == [ResumedStatus.UNKNOWN, ResumedStatus.RESUMED]
    assert client.resume_schedules(["nightly"]) == [ResumedStatus.NOT_PAUSED]
    assert client.schedules()[0].due_ms == added.due_ms
    first, second = (client.run_schedule_now("nightly") for _ in range(2))
    assert (second.job_id, second.deduplicated) == (first.job_id, True)
    assert client.get(first.job_id).expires_ms
    replaced = client.add_schedule("nightly", "30 3 * * *", JOB, replace=True)
    assert (replaced.schedule.unique, replaced.revision != added.revision) == (False, True)
    assert client.remove_schedules(["nightly", "x"]) == [RemovedStatus.REMOVED, RemovedStatus.UNKNOWN]
    assert client.schedules() == []
    with pytest.raises(ScheduleNotFound):
        client.run_schedule_now("nightly")


def test_nothing_impossible_is_scheduled(redis_url: str) -> None:
    """One line says what is wrong; nothing is stored."""
    with Client(redis_url, queue=fresh_queue(), limits=StoreLimits(schedules_max=1)) as client:
        with pytest.raises(InvalidSchedule, match="cron expression '61 \\* \\* \\* \\*': bad minute"):
            client.add_schedule("a", "61 * * * *", JOB)
        with pytest.raises(InvalidSchedule, match="timezone 'Mars/Base' is unknown"):
            client.add_schedule("a", "* * * * *", JOB, timezone="Mars/Base")
        with pytest.raises(InvalidSchedule, match="missed must be once or skip"):
            client.add_schedule("a", "* * * * *", JOB, missed="all")
        with pytest.raises(InvalidSchedule, match="schedule name 'a b'"):
            client.add_schedule("a b", "* * * * *", JOB)
        with pytest.raises(InvalidSchedule, match="its jobs cannot have after"):
            client.add_schedule("a", "* * * * *", JobRequest("simulation", after=["x"]))
        with pytest.raises(InvalidSchedule, match="at most 65536"):
            client.add_schedule("a", "* * * * *", JobRequest("simulation", "x" * 70_000))
        with pytest.raises(InvalidSubmission, match="priority"):
            client.add_schedule("a", "* * * * *", JobRequest("simulation", priority=101))
        with pytest.raises(UnknownService):
            client.add_schedule("a", "* * * * *", JobRequest("nobody"))
        assert client.schedules() == []
        client.add_schedule("a", "* * * * *", JOB)
        with pytest.raises(InvalidSchedule, match="has 1 schedules already"):
            client.add_schedule("b", "* * * * *", JOB)


@pytest.mark.parametrize("backend", ["trio", "asyncio"])
def test_the_asynchronous_client_has_the_same_verbs(redis_url: str, backend: str) -> None:
    """Conditions and schedules under both event loops."""

    async def body() -> None:
        with anyio.fail_after(20):
            async with AsyncClient(redis_url, queue=fresh_queue()) as client:
                parent = await client.submit("simulation", unique_key="k", expires_in_s=9)
                child = await client.submit("simulation", after=[parent.job_id])
                assert (await client.submit("simulation", unique_key="k")).job_id == parent.job_id
                assert (await client.get(child.job_id)).state is JobState.WAITING
                added = await client.add_schedule("a", "* * * * *", JOB)
                assert await client.schedules() == [added]
                assert await client.pause_schedules(["a"]) == [PausedStatus.PAUSED]
                assert await client.resume_schedules(["a"]) == [ResumedStatus.RESUMED]
                assert not (await client.run_schedule_now("a")).deduplicated
                assert await client.remove_schedules(["a"]) == [RemovedStatus.REMOVED]

    anyio.run(body, backend=backend)
