"""Fair turns, aging and limits as figures: counted in claims and in virtual time, never in seconds of this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.matching import class_of
from gateway.models import (
    ClaimReply,
    ClaimRequest,
    Grant,
    JobId,
    JobSpec,
    Settlement,
    Submission,
    WorkerId,
)
from gateway.store import scripts
from gateway.store.calls import BATCH_MAX
from tests.store.bench import LEASE_S, Backend, Bench, Mutation
from tests.store.bench import LIMITS as BENCH_LIMITS

LIMITS = replace(BENCH_LIMITS, unfinished_max=1_000_000, classes_max=100)
BIG, SMALL = 100_000, 10


class Desk:
    """One queue without its model: jobs in, claims out, under the virtual clock."""

    def __init__(self, client: redis.Redis, mutations: Sequence[Mutation] = ()) -> None:
        self.bench = Bench(Backend(client, mutations), model_judges=False)
        self._submitted = 0
        self._requests = 0

    def put(self, tenant: str = "", count: int = 1, priority: int = 50, service: str = "image") -> list[str]:
        spec = JobSpec(service=service, tenant=tenant, priority=priority)
        ids = [JobId(f"{tenant}-{self._submitted + i}") for i in range(count)]
        self._submitted += count
        for first in range(0, count, BATCH_MAX):
            items = [Submission(job_id=job_id, spec=spec) for job_id in ids[first : first + BATCH_MAX]]
            self.bench.backends[0].run(scripts.submit_call(self.bench.keys, LIMITS, items))
        return [*ids]

    def limit(self, name: str, text: str) -> None:
        call = scripts.limit_call(self.bench.keys, [(name, text)], only_new=False)
        self.bench.backends[0].run(call)

    def ask(
        self, tenants: Sequence[str], count: int = 1, worker: str = "w", service: str = "image"
    ) -> ClaimReply:
        self._requests += 1
        classes = tuple(class_of(service, {}, tenant)[0].class_id for tenant in tenants)
        request = ClaimRequest(f"r{self._requests}", WorkerId(worker), count, count, classes)
        call = scripts.claim_call(self.bench.keys, LIMITS, LEASE_S, worker, [request])
        return scripts.claim_reply(self.bench.backends[0].run(call), 1)[0]

    def claim(self, *tenants: str, count: int = 1, worker: str = "w", service: str = "image") -> list[Grant]:
        return list(self.ask(tenants, count, worker, service).grants)

    def settle(self, *settlements: Settlement) -> None:
        self.bench.backends[0].run(scripts.settle_call(self.bench.keys, LIMITS, settlements))

    def sweep(self, *tenants: str) -> None:
        class_ids = [class_of("image", {}, tenant)[0].class_id for tenant in tenants]
        self.bench.backends[0].run(scripts.sweep_call(self.bench.keys, LIMITS, class_ids))

    def running(self) -> dict[str, int]:
        reply = self.bench.backends[0].run(scripts.limits_call(self.bench.keys))
        return dict(scripts.limits_reply(reply).running)

    def advance(self, seconds: float) -> None:
        self.bench.advance(round(seconds * 1_000_000))


@pytest.fixture
def desk(fake_client: redis.Redis) -> Iterator[Desk]:
    opened = Desk(fake_client)
    yield opened
    opened.bench.close()


@pytest.mark.parametrize("batch", [1, 7, 128])
def test_a_hundred_thousand_jobs_do_not_starve_ten(real_redis: redis.Redis, batch: int) -> None:
    """The small tenant is done after at most 21 claims, however long the other one has been waiting."""
    desk = Desk(real_redis)
    desk.put("big", BIG)
    desk.claim("big", count=50)
    desk.advance(3600)
    desk.put("small", SMALL)
    granted: list[str] = []
    while sum(tenant == "small" for tenant in granted) < SMALL:
        granted += [grant.spec.tenant for grant in desk.claim("big", "small", count=batch)]
        assert len(granted) <= 2 * SMALL + batch
    assert max(i for i, tenant in enumerate(granted) if tenant == "small") <= 2 * SMALL
    desk.bench.close()


@given(
    backlogs=st.lists(st.integers(0, 30), min_size=2, max_size=6),
    batches=st.lists(st.integers(1, 9), min_size=5, max_size=20),
    pause_s=st.sampled_from([0.0, 0.001, 400.0]),
)
@settings(max_examples=60, deadline=None)
def test_between_two_turns_of_a_tenant_everybody_else_has_at_most_one(
    fake_factory: Callable[[], redis.Redis], backlogs: list[int], batches: list[int], pause_s: float
) -> None:
    """Among equal priorities tenants take turns, whatever their backlogs, batches and pauses."""
    desk = Desk(fake_factory())
    tenants = [f"t{number}" for number in range(len(backlogs))]
    for tenant, backlog in zip(tenants, backlogs, strict=True):
        desk.put(tenant, backlog)
        desk.advance(pause_s)
    left = Counter(dict(zip(tenants, backlogs, strict=True)))
    turns: set[str] = set()
    since: dict[str, Counter[str]] = {tenant: Counter() for tenant in tenants}
    for batch in batches:
        for grant in desk.claim(*tenants, count=batch):
            served = grant.spec.tenant
            left[served] -= 1
            since[served].clear()
            for waiting in (tenant for tenant in tenants if left[tenant] and tenant != served):
                since[waiting][served] += 1
                # Once more before its first turn: who was served in the same moment as it came may be first again.
                assert since[waiting][served] <= 1 + (waiting not in turns)
            turns.add(served)
        desk.advance(pause_s)


@pytest.mark.parametrize(("priority", "tenant"), [(0, "a"), (20, "a"), (0, "b"), (40, "b")])
def test_the_oldest_low_priority_job_waits_at_most_its_levels_worth(
    desk: Desk, priority: int, tenant: str
) -> None:
    """Under an endless stream of top jobs it is claimed once it has waited aging_s per level, and not much earlier."""
    desk.limit("aging_ms", "500")
    (low,) = desk.put(tenant, priority=priority)
    bound_s = 0.5 * (100 - priority)
    waited_s = 0.0
    while True:
        desk.put("a", priority=100)
        if low in [grant.job_id for grant in desk.claim("a", "b")]:
            break
        desk.advance(1.0)
        waited_s += 1.0
        assert waited_s <= bound_s + 2.0
    assert waited_s >= bound_s - 2.0


def test_with_the_largest_aging_priorities_are_strict(desk: Desk) -> None:
    """Whoever wants strict priorities has them: a day of waiting is worth nothing."""
    desk.limit("aging_ms", "9000000000")
    (low,) = desk.put("a", priority=49)
    desk.advance(24 * 3600.0)
    high = desk.put("b", 3, priority=50) + desk.put("a", 3, priority=50)
    granted = [grant.job_id for grant in desk.claim("a", "b", count=7)]
    assert sorted(granted[:6]) == sorted(high)
    assert granted[6] == low


@given(
    steps=st.lists(st.tuples(st.integers(0, 3_000_000), st.integers(1, 5)), min_size=3, max_size=30),
    interval_us=st.integers(1, 900_000),
    burst=st.integers(1, 6),
)
@settings(max_examples=60, deadline=None)
def test_a_rate_holds_over_every_stretch_of_time(
    fake_factory: Callable[[], redis.Redis], steps: list[tuple[int, int]], interval_us: int, burst: int
) -> None:
    """Never more starts than the burst and one per interval, and the hint says when the next one is due."""
    desk = Desk(fake_factory())
    desk.put("a", 200)
    desk.limit("tenant a", f"-1 {interval_us} {burst}")
    starts: list[int] = []
    for us, count in steps:
        desk.bench.advance(us)
        reply = desk.ask(["a"], count)
        starts += [desk.bench.model.now_us] * len(reply.grants)
        if len(reply.grants) < count:
            desk.bench.advance(reply.wait_ms * 1000)
            late = desk.claim("a")
            starts += [desk.bench.model.now_us] * len(late)
            assert (reply.wait_ms > 0, len(late)) == (True, 1)
    for first, begun_us in enumerate(starts):
        for last in range(first, len(starts)):
            allowed = burst + (starts[last] - begun_us) // interval_us
            assert last - first + 1 <= allowed


def test_limits_of_service_and_tenant_hold_together(desk: Desk) -> None:
    """Each job counts for its service and its tenant; what ends frees both, whichever way it ends."""
    desk.limit("service image", "3 0 1")
    desk.limit("tenant *", "2 0 1")
    desk.put("a", 5)
    desk.put("b", 5)
    first = desk.claim("a", "b", count=9)
    assert Counter(grant.spec.tenant for grant in first) == {"a": 2, "b": 1}
    assert desk.running() == {"service image": 3, "tenant a": 2, "tenant b": 1}
    desk.settle(Settlement.completed(first[0], body="1"))
    assert [grant.spec.tenant for grant in desk.claim("a", "b", count=9)] == ["b"]
    desk.advance(LEASE_S + 1)
    desk.sweep("a", "b")
    assert desk.running() == {}
    assert len(desk.claim("a", "b", count=9)) == 3


def _served_elsewhere(desk: Desk) -> bool:
    """A tenant that another service keeps busy, and one rival in a service of their own."""
    desk.limit("aging_ms", "1000")
    desk.put("busy", 200, service="text")
    desk.put("busy", 5)
    desk.put("rival", 200)
    for _ in range(60):
        desk.advance(1.0)
        desk.claim("busy", worker="other", service="text")
        if any(grant.spec.tenant == "busy" for grant in desk.claim("busy", "rival")):
            return True
    return False


def _avoided_under_a_limit(desk: Desk) -> bool:
    """The first job is meant for another worker; the limit has room for one of the others."""
    desk.limit("tenant a", "1 0 1")
    first, second = desk.put("a", 2)
    (grant,) = desk.claim("a")
    desk.settle(Settlement.released(grant, avoid_s=60.0))
    return [found.job_id for found in desk.claim("a", count=2)] == [second] and first == grant.job_id


def _late_result(desk: Desk) -> bool:
    """A result arrives after its lease ran out, while another job of the tenant runs."""
    desk.put("a", 2)
    (late,) = desk.claim("a")
    other = desk.put("a", priority=100)
    desk.advance(LEASE_S + 1)
    desk.sweep("a")
    assert [grant.job_id for grant in desk.claim("a")] == other
    desk.settle(Settlement.completed(late, body="1"))
    return desk.running() == {"service image": 1, "tenant a": 1}


SCENES: dict[str, tuple[Callable[[Desk], bool], Mutation]] = {
    "a tenant that is served elsewhere": (
        _served_elsewhere,
        Mutation(
            "claim", "math.min(stamps['tenant ' .. head.tenant], patient)", "stamps['tenant ' .. head.tenant]"
        ),
    ),
    "an avoided job under a limit": (
        _avoided_under_a_limit,
        Mutation(
            "claim", "        spend(head, -1)\n        avoided[#avoided + 1]", "        avoided[#avoided + 1]"
        ),
    ),
    "a late result": (
        _late_result,
        Mutation(
            "settle",
            "    if record[STATE] == 'pending' then\n",
            "    if record[STATE] == 'pending' then\n      count_running(record, -1)\n",
        ),
    ),
}


@pytest.mark.parametrize("name", SCENES)
def test_a_scene_that_walks_meet_rarely(name: str, fake_factory: Callable[[], redis.Redis]) -> None:
    """What is promised holds in this scene, and the scene can tell when it does not."""
    scene, mutation = SCENES[name]
    assert scene(Desk(fake_factory()))
    assert not scene(Desk(fake_factory(), [mutation]))
