"""A reply lost on the wire: whatever the operation, repeating it has the same effect once."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
import redis
import trio

from gateway.errors import StoreUnavailable
from gateway.models import (
    CancelStatus,
    ClaimRequest,
    Grant,
    JobId,
    JobSpec,
    JobState,
    LeaseStatus,
    ProgressNote,
    RequeueStatus,
    Settlement,
    Submission,
    SubmitStatus,
    Verdict,
    WorkerId,
)
from gateway.store.calls import StoreLimits, script
from gateway.store.connection import redis_connect
from gateway.store.keys import QueueKeys
from gateway.store.redis import RedisStore
from tests.chaos.fleet import QueueWatch, make_store, until
from tests.runtime.live import Stage, open_stage
from tests.support.tcp_proxy import DroppedReply, TcpProxy, serve_tcp_proxy

#: Retention of nothing, so that a sweep has something to remove; recoveries at the second expiry are poison.
LIMITS = StoreLimits(recoveries_max=1, retention_s=0.001, dead_retention_s=60.0)
OPERATIONS = (
    *("submit", "claim", "renew", "attach", "progress", "settle", "sweep"),
    *("cancel", "requeue", "pause", "resume", "heartbeat"),
)


@dataclass
class Wire:
    """A store whose connection runs through a proxy, beside one that looks from the side."""

    store: RedisStore
    proxy: TcpProxy
    watch: QueueWatch

    def lose_reply_of(self, operation: str) -> DroppedReply:
        sha = script(operation).sha.encode()
        return self.proxy.drop_next_reply_matching(lambda request: sha in request)

    async def grant(self, job_id: str = "job", **spec: object) -> Grant:
        """A submitted and claimed job."""
        await self.watch.submit(job_id, **spec)
        return await self.claimed()

    async def claimed(self) -> Grant:
        (grant,) = (await self.store.claim(await self.request("grant"))).grants
        return grant

    async def request(self, request_id: str, count: int = 1) -> ClaimRequest:
        classes = tuple(await self.watch.store.classes())
        return ClaimRequest(f"{request_id}-{len(self.watch.accepted)}", WorkerId("w"), count, 4, classes)


@asynccontextmanager
async def open_wire(redis_url: str, queue: str, *, lease_s: float = 15.0) -> AsyncIterator[Wire]:
    """A fresh queue, reached through a proxy."""
    async with trio.open_nursery() as nursery:
        address = urlsplit(redis_url)
        assert address.hostname
        assert address.port
        proxy = await nursery.start(serve_tcp_proxy, (address.hostname, address.port))
        store = RedisStore(
            redis_connect(f"redis://127.0.0.1:{proxy.port}/0", connect_timeout_s=3.0, command_timeout_s=3.0),
            QueueKeys(queue),
            LIMITS,
            lease_s=lease_s,
            instance=queue,
            random=random.Random(0),
        )
        await store.start(nursery)
        beside = make_store(redis_url, queue, f"{queue}-beside")
        await beside.start(nursery)
        with redis.Redis.from_url(redis_url) as client:
            for operation in OPERATIONS:
                # Known to Redis, so that the reply which gets lost is the script's and not "load it first".
                client.script_load(script(operation).source)
        yield Wire(store, proxy, QueueWatch(beside))
        nursery.cancel_scope.cancel()


async def lost(call: Callable[[], Awaitable[object]]) -> None:
    """The call whose reply gets lost says that nobody knows what became of it."""
    with pytest.raises(StoreUnavailable) as caught:
        await call()
    assert caught.value.outcome_unknown


async def test_a_submit_is_stored_once(redis_url: str) -> None:
    """The repeated submission is recognised; there is one job and one event."""
    async with open_wire(redis_url, "lost-submit") as wire:
        submission = Submission(job_id=JobId("job"), spec=JobSpec(service="simulation"))
        wire.lose_reply_of("submit")
        await lost(lambda: wire.store.submit(submission))
        verdict = await wire.store.submit(submission)
        assert (verdict.status, verdict.job_id) == (SubmitStatus.DUPLICATE, "job")
        await wire.watch.refresh()
        assert wire.watch.of("job") == ["submitted"]
        assert (await wire.store.stats()).pending_total == 1


async def test_a_claim_gives_the_same_jobs_again(redis_url: str) -> None:
    """The same request id is answered with the same leases, at once and without a second claim event."""
    async with open_wire(redis_url, "lost-claim") as wire:
        for name in ("a", "b", "c"):
            await wire.watch.submit(name)
        request = await wire.request("request", count=2)
        wire.lose_reply_of("claim")
        await lost(lambda: wire.store.claim(request))
        begun_s = trio.current_time()
        reply = await wire.store.claim(request)
        assert trio.current_time() - begun_s < 1.0
        assert [grant.job_id for grant in reply.grants] == ["a", "b"]
        await wire.watch.refresh()
        claims = {event.job_id: event.epoch for event in wire.watch.events if event.type.value == "claimed"}
        assert claims == {grant.job_id: grant.epoch for grant in reply.grants}
        assert wire.watch.count("claimed") == 2


async def test_a_renewal_extends_the_lease(redis_url: str) -> None:
    """The lease moves with the lost renewal and with its repetition, never to somebody else."""
    async with open_wire(redis_url, "lost-renew", lease_s=1.0) as wire:
        grant = await wire.grant()
        lease = Settlement.cancelled(grant).lease
        before = (await wire.watch.view("job")).lease_until_ms
        await trio.sleep(0.01)
        wire.lose_reply_of("renew")
        await lost(lambda: wire.store.renew([lease]))
        between = (await wire.watch.view("job")).lease_until_ms
        assert await wire.store.renew([lease]) == [LeaseStatus.HELD]
        after = (await wire.watch.view("job")).lease_until_ms
        assert before is not None
        assert between is not None
        assert after is not None
        assert before < between <= after
        await wire.watch.refresh()
        assert wire.watch.of("job") == ["submitted", "claimed"]


async def test_a_reference_is_attached_once(redis_url: str) -> None:
    """The repeated attach finds its own reference."""
    async with open_wire(redis_url, "lost-attach") as wire:
        lease = Settlement.cancelled(await wire.grant()).lease
        wire.lose_reply_of("attach")
        await lost(lambda: wire.store.attach(lease, "there"))
        assert (await wire.watch.view("job")).reference == "there"
        assert await wire.store.attach(lease, "there") is Verdict.DUPLICATE


async def test_a_progress_note_is_streamed_once(redis_url: str) -> None:
    """The repeated note is recognised by its number; the job's stream has it once."""
    async with open_wire(redis_url, "lost-progress") as wire:
        grant = await wire.grant()
        note = ProgressNote(job_id=grant.job_id, epoch=grant.epoch, number=1, value=0.5)
        wire.lose_reply_of("progress")
        await lost(lambda: wire.store.progress(note))
        assert await wire.store.progress(note) is Verdict.DUPLICATE
        assert len(await wire.store.job_stream("job", "0-0", count=10)) == 1
        assert (await wire.watch.view("job")).progress == 0.5


SETTLEMENTS: list[tuple[Callable[[Grant], Settlement], JobState, str]] = [
    (lambda grant: Settlement.completed(grant, body="1"), JobState.COMPLETED, "completed"),
    (
        lambda grant: Settlement.failed_for_retry(grant, body="{}", detail="", delay_s=0, avoid_s=0),
        JobState.PENDING,
        "retried",
    ),
    (lambda grant: Settlement.failed_for_good(grant, body="{}", detail=""), JobState.DEAD, "dead"),
    (
        lambda grant: Settlement.snoozed(grant, body="{}", detail="", delay_s=60),
        JobState.SCHEDULED,
        "snoozed_later",
    ),
    (Settlement.released, JobState.PENDING, "released"),
    (Settlement.cancelled, JobState.CANCELLED, "cancelled"),
]


@pytest.mark.parametrize(
    ("settle", "state", "event"), SETTLEMENTS, ids=[event for _, _, event in SETTLEMENTS]
)
async def test_a_settlement_is_recorded_once(
    redis_url: str, settle: Callable[[Grant], Settlement], state: JobState, event: str
) -> None:
    """The repeated settlement is a duplicate; state, attempts and events are those of one."""
    async with open_wire(redis_url, f"lost-settle-{event}") as wire:
        settlement = settle(await wire.grant())
        wire.lose_reply_of("settle")
        await lost(lambda: wire.store.settle(settlement))
        assert await wire.store.settle(settlement) == (Verdict.DUPLICATE, state)
        await wire.watch.refresh()
        assert wire.watch.of("job") == ["submitted", "claimed", event]
        view = await wire.watch.view("job")
        assert (view.state, view.attempts) == (state, int(settlement.kind.value == "failed"))


async def test_a_sweep_recovers_promotes_and_removes_once(redis_url: str) -> None:
    """The repeated sweep finds nothing left to do: no recovery is counted twice."""
    async with open_wire(redis_url, "lost-sweep", lease_s=0.05) as wire:
        done = Settlement.completed(await wire.grant("done"), body="1")
        await wire.store.settle(done)
        await wire.grant("held")
        later = Submission(job_id=JobId("later"), spec=JobSpec(service="simulation"), delay_s=0.01)
        await wire.store.submit(later)
        deadline_ms = (await wire.watch.view("held")).lease_until_ms
        assert deadline_ms is not None
        while (await wire.watch.store.stats()).now_ms <= deadline_ms:  # noqa: ASYNC110 - Redis' own clock
            await trio.sleep(0.01)
        wire.lose_reply_of("sweep")
        await lost(wire.store.sweep)
        again = await wire.store.sweep()
        assert (again.recovered, again.promoted, again.removed, again.poisoned) == (0, 0, 0, 0)
        await wire.watch.refresh()
        assert wire.watch.of("held") == ["submitted", "claimed", "recovered"]
        assert wire.watch.of("later") == ["deferred", "promoted"]
        assert (await wire.watch.view("held")).recoveries == 1
        assert (await wire.watch.store.inspect(["done"])) == [None]


async def test_a_cancel_is_requested_and_done_once(redis_url: str) -> None:
    """A waiting job is cancelled once; a running one is told once."""
    async with open_wire(redis_url, "lost-cancel") as wire:
        await wire.grant("running")
        await wire.watch.submit("waiting")
        wire.lose_reply_of("cancel")
        await lost(lambda: wire.store.cancel(["running", "waiting"]))
        again = await wire.store.cancel(["running", "waiting"])
        assert again == [CancelStatus.REQUESTED, CancelStatus.ALREADY_ENDED]
        await wire.watch.refresh()
        assert wire.watch.of("running") == ["submitted", "claimed", "cancel_requested"]
        assert wire.watch.of("waiting") == ["submitted", "cancelled"]


async def test_a_dead_job_is_requeued_once(redis_url: str) -> None:
    """The repeated requeue finds the job alive; it waits in the queue once."""
    async with open_wire(redis_url, "lost-requeue") as wire:
        await wire.store.settle(Settlement.failed_for_good(await wire.grant(), body="{}", detail=""))
        wire.lose_reply_of("requeue")
        await lost(lambda: wire.store.requeue(["job"]))
        assert await wire.store.requeue(["job"]) == [RequeueStatus.NOT_DEAD]
        await wire.watch.refresh()
        assert wire.watch.of("job") == ["submitted", "claimed", "dead", "requeued"]
        assert (await wire.store.stats()).pending_total == 1


async def test_pause_resume_and_heartbeat_are_idempotent(redis_url: str) -> None:
    """Repeating them leaves the same state."""
    async with open_wire(redis_url, "lost-switches") as wire:
        wire.lose_reply_of("pause")
        await lost(wire.store.pause)
        assert not await wire.store.pause()
        assert (await wire.store.stats()).paused
        wire.lose_reply_of("resume")
        await lost(wire.store.resume)
        assert not await wire.store.resume()
        assert not (await wire.store.stats()).paused
        wire.lose_reply_of("heartbeat")
        await lost(lambda: wire.store.heartbeat([("w", b"{}")]))
        await wire.store.heartbeat([("w", b"{}")])
        assert list(await wire.store.workers()) == ["w"]


async def _behind_proxy(stage: Stage) -> TcpProxy:
    address = urlsplit(stage.redis_url)
    assert address.hostname
    assert address.port
    proxy: TcpProxy = await stage.nursery.start(serve_tcp_proxy, (address.hostname, address.port))
    return proxy


def _loses(operation: str) -> Callable[[bytes], bool]:
    sha = script(operation).sha.encode()
    return lambda request: sha in request


@pytest.mark.parametrize("operation", ["claim", "attach", "settle", "renew", "progress"])
async def test_a_gateway_loses_a_reply_and_nothing_else(redis_url: str, operation: str) -> None:
    """Whichever reply a gateway misses, its job is claimed and completed once and no lease has to expire."""
    async with open_stage(redis_url, f"gateway-lost-{operation}") as stage:
        watch, service = stage.watch, await stage.service()
        proxy = await _behind_proxy(stage)
        dropped = proxy.drop_next_reply_matching(_loses(operation))
        await stage.gateway(
            {"w": service},
            {"lease": {"renew_s": 0.2}},
            redis_url=f"redis://127.0.0.1:{proxy.port}/0",
        )
        job = await watch.submit("job", {"duration_s": 0.8, "steps": 4})
        await watch.wait_event("completed", job, 8)
        assert dropped.happened
        assert watch.of(job) == ["submitted", "claimed", "completed"]
        assert set((await service.summary()).executions_by_job.values()) == {1}
        await watch.audited()


async def test_a_lost_claim_is_given_back_by_a_stopping_gateway(redis_url: str) -> None:
    """SIGTERM while the answer to a claim is lost: the jobs are asked for and released, not orphaned."""
    async with open_stage(redis_url, "stop-during-claim") as stage:
        watch, service = stage.watch, await stage.service()
        proxy = await _behind_proxy(stage)
        live = await stage.gateway(
            {"w": service},
            {"redis": {"command_timeout_s": 0.5}},
            redis_url=f"redis://127.0.0.1:{proxy.port}/0",
        )
        dropped = proxy.drop_next_reply_matching(_loses("claim"), hang=True)
        job = await watch.submit("job", {"duration_s": 0.1})
        await dropped.wait()
        live.stop.drain()
        await watch.wait_event("released", job, 5)
        assert watch.of(job) == ["submitted", "claimed", "released"]
        assert (await watch.view(job)).attempts == 0
        with trio.fail_after(5):
            await live.stopped.wait()
        await stage.gateway({"w": service}, machine="next")
        await watch.wait_event("completed", job, 5)
        await watch.audited()


async def test_a_lost_claim_is_asked_for_even_when_nothing_may_be_claimed(redis_url: str) -> None:
    """The health gate closes while the answer to a claim is lost: the jobs granted to us are run all the same."""
    async with open_stage(redis_url, "gate-during-claim") as stage:
        watch, service = stage.watch, await stage.service()
        proxy = await _behind_proxy(stage)
        live = await stage.gateway(
            {"w": service},
            {"redis": {"command_timeout_s": 0.5}, "health": {"probe_s": 0.02}},
            redis_url=f"redis://127.0.0.1:{proxy.port}/0",
        )
        dropped = proxy.drop_next_reply_matching(_loses("claim"), hang=True)
        job = await watch.submit("job", {"duration_s": 0.1})
        await dropped.wait()
        await service.set_faults(health_failure_rate=1.0)
        await until(lambda: not live.worker().healthy, 5, "gate closed")
        await watch.wait_event("completed", job, 5)
        assert watch.of(job) == ["submitted", "claimed", "completed"]
        await watch.audited()


async def test_a_class_is_found_though_its_wake_up_was_lost(redis_url: str) -> None:
    """A worker that knows no class yet finds the first job without hearing of it."""
    async with open_stage(redis_url, "lost-wake") as stage:
        watch, service = stage.watch, await stage.service()
        proxy = await _behind_proxy(stage)
        await stage.gateway({"w": service}, redis_url=f"redis://127.0.0.1:{proxy.port}/0")
        proxy.drop_next_reply_matching(lambda request: b"SUBSCRIBE" in request)
        proxy.cut_all()
        job = await watch.submit("job", {"duration_s": 0.05})
        await watch.wait_event("completed", job, 5)
        await watch.audited()
