"""Single promises of the scripts that a random walk meets rarely, and bugs that were found once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import msgspec
import pytest

from gateway.models import (
    CancelStatus,
    ClaimRequest,
    ClassId,
    Grant,
    JobId,
    JobSpec,
    ProgressNote,
    RequeueStatus,
    Settlement,
    SettlementKind,
    Submission,
    SweepReport,
    Verdict,
    WorkerId,
)
from gateway.store import scripts
from gateway.store.calls import ScriptCall
from tests.store.bench import LEASE_S, LIMITS, START_US, Backend, Bench
from tests.store.walk import claim_request, lease_ref, settlement, submission


@pytest.fixture
def bench(fake_backend: Backend) -> Iterator[Bench]:
    opened = Bench(fake_backend)
    yield opened
    opened.close()


def _submission(job_id: str, service: str = "image", delay_s: float = 0.0) -> Submission:
    return Submission(job_id=JobId(job_id), spec=JobSpec(service=service), delay_s=delay_s)


def _run(bench: Bench, call: ScriptCall) -> list[bytes]:
    raw: list[bytes] = bench.backends[0].run(call)
    return raw


def _claim(bench: Bench, number: int, count: int = 1, worker: str = "w0") -> tuple[Grant, ...]:
    request = ClaimRequest(f"r{number}", WorkerId(worker), count, 9, (ClassId("image"),))
    raw = _run(bench, scripts.claim_call(bench.keys, LIMITS, LEASE_S, "i", [request]))
    return scripts.claim_reply(raw, 1)[0].grants


def _sweep(bench: Bench) -> SweepReport:
    return scripts.sweep_reply(_run(bench, scripts.sweep_call(bench.keys, LIMITS, ["image", "text"])))


@pytest.mark.parametrize("verb", ["cancel", "requeue"])
def test_a_late_replay_spares_a_new_job_of_another_class(bench: Bench, verb: str) -> None:
    """The pending set named by the old request is not the new job's: it must not be half moved."""
    _run(bench, scripts.submit_call(bench.keys, LIMITS, [_submission("a", "text")]))
    old = [(JobId("a"), ClassId("image"))]
    if verb == "cancel":
        raw = _run(bench, scripts.cancel_call(bench.keys, LIMITS, old))
        assert scripts.cancel_reply(raw) == [CancelStatus.UNKNOWN]
    else:
        raw = _run(bench, scripts.requeue_call(bench.keys, LIMITS, old))
        assert scripts.requeue_reply(raw) == [RequeueStatus.UNKNOWN]
    client = bench.backends[0].client
    assert client.zrange(bench.keys.pending("text"), 0, -1) == [b"a"]
    assert client.zcard(bench.keys.pending("image")) == 0


def test_a_claim_never_revives_a_job_that_is_not_waiting(bench: Bench) -> None:
    """An id that was left in a class's set by hand leaves it without becoming a lease."""
    _run(bench, scripts.submit_call(bench.keys, LIMITS, [_submission("a"), _submission("b")]))
    (grant,) = _claim(bench, 1)
    _run(bench, scripts.settle_call(bench.keys, LIMITS, [Settlement.completed(grant, body="{}")]))
    client = bench.backends[0].client
    client.zadd(bench.keys.pending("image"), {"a": 0, "ghost": 1})
    assert [found.job_id for found in _claim(bench, 2, count=5)] == ["b"]
    assert client.zcard(bench.keys.pending("image")) == 0


def test_an_index_entry_without_a_record_does_not_stop_the_sweeper(bench: Bench) -> None:
    """Deleting keys by hand is no reason to stop serving the others."""
    items = [_submission("a"), _submission("b", delay_s=1.0), _submission("c")]
    _run(bench, scripts.submit_call(bench.keys, LIMITS, items))
    assert len(_claim(bench, 1, count=2)) == 2
    client = bench.backends[0].client
    client.hdel(bench.keys.jobs, "a", "b")
    bench.advance(11_000_000)
    assert _sweep(bench) == SweepReport(1, 0, 0, 0, 0, 2, 0, 0, False, False)
    assert client.zcard(bench.keys.leases) == client.zcard(bench.keys.scheduled) == 0


def test_a_rolled_back_redis_does_not_issue_an_epoch_again(bench: Bench) -> None:
    """After a failover that lost the claim, the next epoch is still larger: it comes from the time."""
    _run(bench, scripts.submit_call(bench.keys, LIMITS, [_submission("a")]))
    client = bench.backends[0].client
    before = client.hget(bench.keys.jobs, "a")
    (lost,) = _claim(bench, 1)
    client.hset(bench.keys.jobs, "a", before)
    client.zadd(bench.keys.pending("image"), {"a": 0})
    bench.advance(1)
    (again,) = _claim(bench, 2, worker="w1")
    assert again.epoch > lost.epoch
    raw = _run(bench, scripts.settle_call(bench.keys, LIMITS, [Settlement.completed(lost, body="{}")]))
    assert scripts.settle_reply(raw)[0][0] is Verdict.STALE


def test_epochs_grow_even_when_time_stands_still_or_goes_back(bench: Bench) -> None:
    """Redis time is a floor of the epoch, not its source of order."""
    _run(bench, scripts.submit_call(bench.keys, LIMITS, [_submission("a")]))
    epochs = []
    for number in range(1, 4):
        (grant,) = _claim(bench, number)
        epochs.append(grant.epoch)
        settled = Settlement.released(grant)
        _run(bench, scripts.settle_call(bench.keys, LIMITS, [settled]))
        bench.advance(-1_000_000)
    assert epochs == [START_US, START_US + 1, START_US + 2]


def test_what_expires_by_itself_has_a_time_to_live(bench: Bench) -> None:
    """Claim memories last two leases, job streams their own time; nothing else of a queue expires."""
    bench.submit([submission(0, 0, 50, "", 0.0, 3)])
    bench.claim([claim_request(1, 0, 1, [0])])
    lease = lease_ref(bench, 0)
    note = ProgressNote(job_id=lease.job_id, epoch=lease.epoch, number=1, value=0.5)
    bench.progress([note])
    client = bench.backends[0].client
    assert 0 < client.pttl(bench.keys.claim_memory("w0:i")) <= LEASE_S * 2000
    assert 0 < client.ttl(bench.keys.stream("j0")) <= LIMITS.stream_ttl_s
    lasting = [bench.keys.jobs, bench.keys.specs, bench.keys.leases, bench.keys.events, bench.keys.classes]
    assert {client.ttl(key) for key in lasting} == {-1}


def test_two_processes_with_one_worker_id_do_not_share_a_memory(bench: Bench) -> None:
    """The same request id from another process is another request."""
    _run(bench, scripts.submit_call(bench.keys, LIMITS, [_submission("a"), _submission("b")]))
    request = ClaimRequest("r1", WorkerId("w0"), 1, 1, (ClassId("image"),))
    granted = [
        scripts.claim_reply(
            _run(bench, scripts.claim_call(bench.keys, LIMITS, LEASE_S, instance, [request])), 1
        )[0].grants[0]
        for instance in ("i", "k", "i")
    ]
    assert [grant.job_id for grant in granted] == ["a", "b", "a"]
    assert granted[0] == granted[2]


def test_jobs_leave_in_order_of_priority_then_arrival(bench: Bench) -> None:
    """Across the classes of a tenant too: the order is one number."""
    wishes = [(0, 1, 0), (1, 2, 50), (2, 1, 100), (3, 1, 50), (4, 2, 100)]
    bench.submit([submission(job, wish, priority, "", 0.0, 1) for job, wish, priority in wishes])
    bench.claim([claim_request(1, 0, 5, [1, 2])])
    assert [lease.job_id for lease, _, _ in bench.leases] == ["j2", "j4", "j1", "j3", "j0"]


def test_a_retried_job_keeps_its_place(bench: Bench) -> None:
    """A failure at the head of the queue does not send the job behind those that came later."""
    bench.submit([submission(0, 0, 50, "", 0.0, 3), submission(1, 0, 50, "", 0.0, 3)])
    bench.claim([claim_request(1, 0, 1, [0])])
    bench.settle([settlement(bench, 0, SettlementKind.FAILED, 0.0, 0.0, final=False)])
    bench.claim([claim_request(2, 1, 1, [0])])
    assert [lease.job_id for lease, _, _ in bench.leases] == ["j0", "j0"]


def test_heartbeats_register_expire_and_sign_off(bench: Bench) -> None:
    """The registry holds who spoke within the time to live."""
    limits = replace(LIMITS, worker_ttl_s=30.0)

    def beat(*workers: tuple[str, bytes]) -> int:
        return int(bench.backends[0].run(scripts.heartbeat_call(bench.keys, limits, workers)))

    assert beat(("w0", b'{"a":1}'), ("w1", b"{}")) == 2
    bench.advance(30_000_000)
    assert beat(("w1", b"{}")) == 2
    bench.advance(1_000)
    assert beat(("w2", b"{}")) == 2
    assert beat(("w2", b"")) == 1
    assert set(bench.backends[0].client.hgetall(bench.keys.workers)) == {b"w1"}


def test_a_record_is_a_flat_list_of_texts(bench: Bench) -> None:
    """Numbers above 2**53 would lose digits in Lua, so no number is stored as one."""
    bench.submit([submission(0, 0, 0, "k0", 0.0, 1)])
    bench.claim([claim_request(1, 0, 1, [0])])
    row = msgspec.json.decode(bench.backends[0].client.hget(bench.keys.jobs, "j0"))
    assert len(row) == 28
    assert all(isinstance(value, str) for value in row)
    assert int(row[2]) < 2**53
