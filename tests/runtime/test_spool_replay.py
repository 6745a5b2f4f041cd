"""Replaying the spool against a real Redis: what can be recorded is, whatever stands before it."""

from __future__ import annotations

import redis
import trio

from gateway.leases import LeaseKeeper
from gateway.models import ClaimRequest, ClassId, JobId, JobSpec, JobState, Settlement, Submission, WorkerId
from gateway.observer import SilentObserver
from gateway.settling import Settler
from gateway.spool import MemorySpool
from gateway.store.keys import QueueKeys
from tests.chaos.fleet import make_store, until

QUEUE = "spool-replay"


async def test_a_rejected_entry_does_not_hold_up_those_behind_it(redis_url: str) -> None:
    """The first entry's record is damaged, so Redis rejects it for ever; the second is recorded all the same."""
    store = make_store(redis_url, QUEUE, "test")
    keeper = LeaseKeeper(
        store, lease_s=15, margin_s=1.5, renew_s=5, now_s=trio.current_time, observer=SilentObserver()
    )
    spool = MemorySpool()
    settler = Settler(store, spool, keeper, SilentObserver())
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await store.start(nursery)
            for job_id in ("damaged", "good"):
                await store.submit(Submission(job_id=JobId(job_id), spec=JobSpec(service="spool")))
            reply = await store.claim(ClaimRequest("r1", WorkerId("w"), 2, 2, (ClassId("spool"),)))
            for grant in reply.grants:
                spool.put(Settlement.completed(grant, body="1"))
            with redis.Redis.from_url(redis_url) as server:
                server.hset(QueueKeys(QUEUE).jobs, "damaged", "no record")
                await nursery.start(settler.run)
                await until(lambda: len(spool) == 1, 10.0, "the good entry is recorded")
                server.hdel(QueueKeys(QUEUE).jobs, "damaged")
            view = (await store.inspect(["good"]))[0]
            assert view is not None
            assert view.state is JobState.COMPLETED
            assert [entry.job_id for entry in spool.pending()] == ["damaged"]
            nursery.cancel_scope.cancel()
