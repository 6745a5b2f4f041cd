"""Whichever gateways run, and however often they look, an instant of a schedule gives exactly one job."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import trio
import trio.testing

from gateway.audit import Auditor
from gateway.models import JobSpec, SubmitStatus, SweepReport
from gateway.observer import SilentObserver
from gateway.schedules import MissedPolicy, Schedule, fire, next_instant_ms
from gateway.store.calls import StoreLimits
from gateway.store.connection import redis_connect
from gateway.store.keys import QueueKeys
from gateway.store.redis import RedisStore
from gateway.sweeper import fire_due, sweep_regularly
from tests.support.hand_worker import fresh_queue

GATEWAYS = 3
SCHEDULE = Schedule(name="nightly", cron="0 3 * * *", spec=JobSpec(service="simulation"))
DAY_MS = 24 * 3_600_000


class Heard(SilentObserver):
    """What one gateway fired."""

    def __init__(self) -> None:
        self.outcomes: list[str] = []
        self.sweeps = 0

    def fired(self, schedule: str, outcome: str) -> None:
        self.outcomes.append(outcome)

    def swept(self, report: SweepReport) -> None:
        self.sweeps += 1


@asynccontextmanager
async def gateways(url: str, limits: StoreLimits | None = None) -> AsyncIterator[list[RedisStore]]:
    """As many stores as there would be gateways, each on connections of its own."""
    queue = fresh_queue()
    connect = redis_connect(url, connect_timeout_s=5.0, command_timeout_s=5.0)
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())
        stores = []
        for number in range(GATEWAYS):
            store = RedisStore(
                connect,
                QueueKeys(queue),
                limits or StoreLimits(),
                lease_s=15.0,
                instance=f"g{number}",
                random=random.Random(number),
            )
            await store.start(nursery)
            stores.append(store)
        yield stores
        nursery.cancel_scope.cancel()


async def put(store: RedisStore, schedule: Schedule, *, revision: str, ago_ms: int) -> int:
    """Define a schedule that was due a while ago; returns the instant."""
    instant_ms = (await store.schedules()).now_ms - ago_ms
    await store.put_schedule(schedule, revision=revision, next_ms=instant_ms, replace=True)
    return instant_ms


async def test_three_gateways_fire_an_instant_once(redis_url: str) -> None:
    """They all see that it is due, they all look again, and one job is there; so for instant after instant."""
    async with gateways(redis_url) as stores:
        observers = [Heard() for _ in stores]
        for round_number in range(8):
            await put(stores[0], SCHEDULE, revision=f"r{round_number}", ago_ms=5000 - 100 * round_number)
            assert (await stores[0].sweep()).schedules_due
            async with trio.open_nursery() as nursery:
                for store, observer in zip(stores, observers, strict=True):
                    for _ in range(2):
                        nursery.start_soon(fire_due, store, observer)
            assert not (await stores[0].sweep()).schedules_due
        fired = [outcome for observer in observers for outcome in observer.outcomes]
        events, _ = await stores[0].events("0-0", count=1000)
        auditor = Auditor()
        auditor.feed(events)
        assert auditor.report().ok
        births = [event for event in events if event.type == "submitted"]
        # Two instants within one second share the id of their job: the second one finds it there.
        assert len(births) == fired.count("accepted")
        assert len(fired) == 8
        assert set(fired) <= {"accepted", "duplicate"}


async def test_a_gateway_that_slept_fires_nothing(redis_url: str) -> None:
    """What it read before is fenced off: by the firing of another, by a new definition, by a removal."""
    async with gateways(redis_url) as stores:
        await put(stores[0], SCHEDULE, revision="r0", ago_ms=3000)
        (stale,) = await stores[1].due_schedules()
        submission, firing = fire(stale)
        assert submission is not None
        await fire_due(stores[0], Heard())
        assert (await stores[1].submit(submission)).status is SubmitStatus.FENCED
        assert not await stores[1].skip_instant(firing)
        await put(stores[0], SCHEDULE, revision="r1", ago_ms=3000)
        assert (await stores[1].submit(submission)).status is SubmitStatus.FENCED
        await stores[0].remove_schedules(["nightly"])
        assert (await stores[1].submit(submission)).status is SubmitStatus.FENCED
        assert (await stores[0].stats()).jobs == 1


async def test_days_without_gateways_are_one_job_or_none(redis_url: str) -> None:
    """Catching up is bounded: one job for all instants that passed, or a skip; then the next one in the future."""
    skipping = Schedule(
        name="skipping", cron="0 3 * * *", spec=JobSpec(service="simulation"), missed=MissedPolicy.SKIP
    )
    async with gateways(redis_url) as stores:
        store, heard = stores[0], Heard()
        instant_ms = await put(store, SCHEDULE, revision="a", ago_ms=30 * DAY_MS)
        await put(store, skipping, revision="b", ago_ms=30 * DAY_MS)
        await fire_due(store, heard)
        await fire_due(store, heard)
        assert sorted(heard.outcomes) == ["accepted", "skipped"]
        listing = await store.schedules()
        due = [view.due_ms for view in listing.schedules]
        assert due == [next_instant_ms("0 3 * * *", "UTC", listing.now_ms)] * 2
        assert [view.last_ms for view in listing.schedules] == [instant_ms, None]


async def test_a_full_queue_keeps_the_instant(redis_url: str) -> None:
    """An instant that cannot be fired now is fired as soon as there is room; the schedule stays due until then."""
    async with gateways(redis_url, StoreLimits(unfinished_max=1)) as stores:
        store, heard = stores[0], Heard()
        await put(store, SCHEDULE, revision="a", ago_ms=1000)
        await fire_due(store, heard)
        await put(store, SCHEDULE, revision="b", ago_ms=10)
        blocker = (await store.schedules()).schedules[0].last_job_id
        other = Schedule(name="other", cron="0 3 * * *", spec=JobSpec(service="simulation"))
        await put(store, other, revision="c", ago_ms=1000)
        await fire_due(store, heard)
        assert "full" in heard.outcomes
        await store.cancel([blocker])
        await fire_due(store, heard)
        assert heard.outcomes.count("accepted") == 2


async def test_the_sweeper_fires_what_is_due(redis_url: str) -> None:
    """Without anybody's doing: the regular sweep of each gateway sees it, and one job comes of it."""
    async with gateways(redis_url) as stores:
        observers = [Heard() for _ in stores]
        await put(stores[0], SCHEDULE, revision="a", ago_ms=10)
        async with trio.open_nursery() as nursery:
            for number, (store, observer) in enumerate(zip(stores, observers, strict=True)):
                await nursery.start(
                    lambda store=store, observer=observer, number=number, **more: sweep_regularly(
                        store, observer, every_s=0.01, random=random.Random(number), **more
                    )
                )
            with trio.fail_after(30):
                while min(observer.sweeps for observer in observers) < 5:
                    await trio.testing.wait_all_tasks_blocked(0.005)
            nursery.cancel_scope.cancel()
        assert [outcome for observer in observers for outcome in observer.outcomes] == ["accepted"]
        assert (await stores[0].stats()).pending_total == 1
