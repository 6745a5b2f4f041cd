"""The synchronous client on a real Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import trio

from gateway.client import BatchInterrupted, BatchRefused, Client, JobRequest
from gateway.errors import (
    ConfigError,
    InvalidSubmission,
    JobNotFound,
    QueueFull,
    StoreRejected,
    StoreUnavailable,
    TooManyClasses,
    UnknownService,
    WaitTimeout,
)
from gateway.models import CancelStatus, JobState, RequeueStatus, Settlement, SubmitStatus
from gateway.store.calls import StoreLimits
from tests.support.hand_worker import HandWorker, fresh_queue, hand_worker
from tests.support.redis_server import RedisServer
from tests.support.tcp_proxy import TcpProxy, serve_tcp_proxy


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with Client(redis_url, queue=fresh_queue()) as client:
        yield client


@pytest.fixture
def worker(redis_url: str, client: Client) -> Iterator[HandWorker]:
    with hand_worker(redis_url, client.queue) as worker:
        yield worker


def test_job_from_submit_to_result(client: Client, worker: HandWorker) -> None:
    """What was submitted is what runs, and its result comes back."""
    handle = client.submit("simulation", {"steps": 4}, priority=80, timeout_s=60, max_attempts=2)
    assert not handle.deduplicated
    view = client.get(handle.job_id)
    assert (view.state, view.spec.priority, view.spec.max_attempts) == (JobState.PENDING, 80, 2)
    assert worker.complete({"image": "cat"}).spec.payload == {"steps": 4}
    done = client.wait(handle.job_id, 5)
    assert (done.state, done.result) == (JobState.COMPLETED, {"image": "cat"})
    assert client.get_many([handle.job_id, "nobody"])[1] is None


def test_same_key_and_same_id_are_the_same_job(client: Client) -> None:
    """A repeated submit answers with the earlier job and says so."""
    first = client.submit("simulation", 1, idempotency_key="order-7")
    again = client.submit("simulation", 2, idempotency_key="order-7")
    assert (again.job_id, again.deduplicated) == (first.job_id, True)
    assert client.submit("simulation", 1, job_id="mine").deduplicated is False
    assert client.submit("simulation", 1, job_id="mine").deduplicated is True
    assert client.stats().jobs == 2


def test_nothing_invalid_is_stored(client: Client) -> None:
    """Bad input, and one bad request in a batch, leave the queue untouched."""
    bad: list[dict[str, Any]] = [
        {"payload": {1}},
        {"priority": 200},
        {"requires": {"a": {}}},
        {"job_id": "a b"},
    ]
    for changes in bad:
        with pytest.raises(InvalidSubmission):
            client.submit("simulation", **changes)
    with pytest.raises(InvalidSubmission, match="job 2 of 3"):
        client.submit_many([JobRequest("simulation", payload) for payload in (1, float("nan"), 2)])
    with pytest.raises(UnknownService) as caught:
        client.submit("comfy-typo")
    assert "simulation" in caught.value.known
    assert client.stats().jobs == 0
    assert client.classes() == {}


def test_live_worker_makes_its_service_known(client: Client, worker: HandWorker) -> None:
    """A service is known when a registered worker serves it, or when the caller insists."""
    with pytest.raises(UnknownService):
        client.submit("upscaler")
    assert client.submit("painter", allow_unknown_service=True).job_id
    worker.register("m/up", {"service": "upscaler", "slots": 2, "capabilities": {"vram_gb": 24}})
    assert client.submit("upscaler").job_id
    (seen,) = client.workers()
    assert (seen.worker_id, seen.service, seen.slots) == ("m/up", "upscaler", 2)


def test_full_queue_is_told_per_job(redis_url: str) -> None:
    """A full queue refuses single jobs by error, jobs of a batch by outcome, and never half-silently."""
    limits = StoreLimits(unfinished_max=3, classes_max=2)
    with Client(redis_url, queue=fresh_queue(), limits=limits) as client:
        result = client.submit_many([JobRequest("simulation", number) for number in range(5)])
        assert [outcome.status for outcome in result.outcomes] == [SubmitStatus.ACCEPTED] * 3 + [
            SubmitStatus.FULL
        ] * 2
        assert [outcome.request.payload for outcome in result.refused] == [3, 4]
        with pytest.raises(BatchRefused) as caught:
            result.raise_for_refused()
        assert caught.value.refused == result.refused
        with pytest.raises(QueueFull):
            client.submit("simulation")
        client.cancel([outcome.job_id for outcome in result.accepted])
        client.submit("simulation", requires={"vram_gb": {">=": 8}})
        with pytest.raises(TooManyClasses):
            client.submit("simulation", requires={"vram_gb": {">=": 16}})


def test_large_batch_is_cut_into_calls(client: Client) -> None:
    """Neither the number nor the bytes of one script call are unbounded; order and answers stay."""
    numbers = client.submit_many([JobRequest("simulation", number) for number in range(600)])
    assert len(numbers.accepted) == 600
    big = client.submit_many([JobRequest("simulation", "x" * 900_000) for _ in range(6)])
    assert len({outcome.job_id for outcome in big.accepted}) == 6
    assert client.submit_many([]).outcomes == ()
    assert client.stats().pending_total == 606


def test_wait_sees_every_end(client: Client, worker: HandWorker) -> None:
    """An end before, and an end during the wait, are both seen at once; no end is a time-out."""
    before = client.submit("simulation")
    worker.complete()
    assert client.wait(before.job_id, 0).state is JobState.COMPLETED
    during = client.submit("simulation")
    timer = threading.Timer(0.2, worker.bury)
    timer.start()
    started_s = time.monotonic()
    dead = client.wait(during.job_id, 10)
    timer.join()
    assert (dead.state, dead.error) == (JobState.DEAD, {"kind": "validation", "message": "no such model"})
    assert time.monotonic() - started_s < 3
    never = client.submit("simulation")
    with pytest.raises(WaitTimeout):
        client.wait(never.job_id, 0.1)
    with pytest.raises(JobNotFound):
        client.wait("nobody", 1)


def test_events_resume_inside_an_entry(client: Client) -> None:
    """After any cursor come exactly the events after it, also between those of one script call."""
    client.submit_many([JobRequest("simulation", job_id=f"j{number}") for number in range(5)])
    client.cancel(["j1", "j3"])
    everything = list(client.events(follow=False))
    assert [event.job_id for event in everything] == ["j0", "j1", "j2", "j3", "j4", "j1", "j3"]
    for position, event in enumerate(everything):
        assert list(client.events(event.cursor, follow=False)) == everything[position + 1 :]
    follower = client.events("$")
    timer = threading.Timer(0.2, client.cancel, [["j0"]])
    timer.start()
    assert next(follower).job_id == "j0"
    timer.join()
    assert client.events_complete()


def test_job_stream_resumes_and_ends(client: Client, worker: HandWorker) -> None:
    """Progress and chunks arrive in order, resumable by id, and the stream ends with the job."""
    handle = client.submit("simulation")
    grant = worker.claim()
    worker.note(grant, 1, value=0.5)
    worker.note(grant, 2, chunk={"token": "a"})
    seen = list(client.job_stream(handle.job_id, follow=False))
    assert [(item.kind, item.number, item.value, item.data) for item in seen] == [
        ("progress", 1, 0.5, "working"),
        ("chunk", 2, 0.0, {"token": "a"}),
    ]
    worker.note(grant, 3, chunk="b")
    timer = threading.Timer(0.2, worker.settle, [Settlement.completed(grant, body="1")])
    timer.start()
    rest = list(client.job_stream(handle.job_id, seen[-1].id))
    timer.join()
    assert [item.data for item in rest] == ["b"]
    with pytest.raises(JobNotFound):
        next(iter(client.job_stream("nobody", follow=False)))


def test_operator_verbs(client: Client, worker: HandWorker) -> None:
    """Dead letters, requeue, cancel, pause and resume do what they say and answer for each job."""
    for number in range(3):
        client.submit("simulation", job_id=f"d{number}")
        worker.bury()
    assert [view.job_id for view in client.dead_letters(2)] == ["d2", "d1"]
    assert client.requeue(["d0", "nobody"]) == [RequeueStatus.REQUEUED, RequeueStatus.UNKNOWN]
    assert client.requeue(["d0"]) == [RequeueStatus.NOT_DEAD]
    assert {job_id for job_id, _ in client.requeue_all()} == {"d1", "d2"}
    assert client.requeue_all() == []
    grant = worker.claim()
    assert client.cancel([grant.job_id, "d1", "nobody"]) == [
        CancelStatus.REQUESTED,
        CancelStatus.CANCELLED,
        CancelStatus.UNKNOWN,
    ]
    assert (client.pause(), client.pause(), client.stats().paused) == (True, False, True)
    assert (client.resume(), client.resume(), client.stats().paused) == (True, False, False)


def test_threads_share_a_client(client: Client) -> None:
    """Calls of many threads at once never see each other's replies."""

    def submit(number: int) -> bool:
        handle = client.submit("simulation", number, job_id=f"t{number}")
        return bool(client.get(handle.job_id).spec.payload == number)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(submit, range(200)))
    assert client.stats().jobs == 200


def test_restart_of_redis_is_repeated_over(redis_server: RedisServer) -> None:
    """A killed and restarted Redis costs a repetition, not an error."""
    with Client(redis_server.url) as client:
        client.submit("simulation", job_id="a")
        time.sleep(1.1)  # everysec: the first job is on disk
        redis_server.restart(kill=True)
        assert client.submit("simulation", job_id="b").deduplicated is False
        assert client.stats().jobs == 2


def test_silent_redis_is_an_unknown_outcome(redis_server: RedisServer) -> None:
    """Without an answer until the deadline the error says that the job may be stored; the same id is then safe."""
    with Client(redis_server.url, timeout_s=0.6, command_timeout_s=0.2) as client:
        client.stats()
        redis_server.pause()
        started_s = time.monotonic()
        with pytest.raises(StoreUnavailable) as caught:
            client.submit("simulation", job_id="a", allow_unknown_service=True)
        redis_server.resume()
        assert caught.value.outcome_unknown
        assert time.monotonic() - started_s < 2
        client.submit("simulation", job_id="a", allow_unknown_service=True)
        assert client.stats().jobs == 1


async def test_lost_reply_stores_one_job(redis_url: str) -> None:
    """A submit whose reply is lost is repeated and stores one job, reported as new."""

    def submit(proxy: TcpProxy, queue: str) -> None:
        with Client(f"redis://127.0.0.1:{proxy.port}/0", queue=queue, command_timeout_s=0.3) as client:
            client.submit("simulation")
            lost = trio.from_thread.run_sync(
                proxy.drop_next_reply_matching, lambda request: b'"payload":"second"' in request
            )
            assert not client.submit("simulation", "second").deduplicated
            assert lost.happened
            assert client.stats().jobs == 2

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            port = int(redis_url.rpartition(":")[2].partition("/")[0])
            proxy: TcpProxy = await nursery.start(serve_tcp_proxy, ("127.0.0.1", port))
            await trio.to_thread.run_sync(submit, proxy, fresh_queue())
            nursery.cancel_scope.cancel()


async def test_interrupted_batch_names_what_is_unconfirmed(redis_url: str) -> None:
    """When Redis goes away midway, the answered requests and those to submit again are both told, with ids."""

    def submit(proxy: TcpProxy, queue: str) -> None:
        url = f"redis://127.0.0.1:{proxy.port}/0"
        requests = [JobRequest("simulation", number) for number in range(600)]
        with Client(url, queue=queue, command_timeout_s=0.3, timeout_s=0.5) as client:
            client.submit("simulation", job_id="first")
            lost = trio.from_thread.run_sync(
                proxy.drop_next_reply_matching, lambda request: b'"payload":300' in request
            )
            trio.from_thread.run_sync(proxy.refuse)
            with pytest.raises(BatchInterrupted) as caught:
                client.submit_many(requests)
            trio.from_thread.run_sync(proxy.accept)
            assert lost.happened
            assert len(caught.value.result.outcomes) == 256
            assert [request.payload for request in caught.value.unconfirmed] == list(range(256, 600))
            again = client.submit_many(caught.value.unconfirmed)
            assert sum(outcome.deduplicated for outcome in again.accepted) == 256
            assert client.stats().jobs == 601

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            port = int(redis_url.rpartition(":")[2].partition("/")[0])
            proxy: TcpProxy = await nursery.start(serve_tcp_proxy, ("127.0.0.1", port))
            await trio.to_thread.run_sync(submit, proxy, fresh_queue())
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "url", ["http://host", "redis://", "redis://host/x", "unix://", "redis://host:99999"]
)
def test_malformed_url_is_a_config_error(url: str) -> None:
    """What cannot be an address is told before anything is tried."""
    with pytest.raises(ConfigError):
        Client(url)


def test_unreachable_redis_is_told_at_once() -> None:
    """A wrong address is no matter of patience."""
    started_s = time.monotonic()
    with pytest.raises(StoreUnavailable) as caught:
        Client("redis://127.0.0.1:1/0")
    assert not caught.value.outcome_unknown
    assert time.monotonic() - started_s < 2


def test_wrong_password_is_a_rejection(redis_url: str) -> None:
    """Credentials that Redis refuses are not repeated."""
    with pytest.raises(StoreRejected):
        Client(redis_url.replace("//", "//nobody:wrong@"))
