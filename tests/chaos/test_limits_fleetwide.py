"""Limits hold over a whole fleet: eight gateway processes, kills included, one truth in Redis."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from gateway.events import Event
from gateway.lifecycle import EventType
from tests.chaos.fleet import SHORT_LEASE, Fleet, open_fleet

GATEWAYS = 8
JOBS = 48
RUNNING_MAX = 5
TENANT_MAX = 2
RATE, BURST = 20, 4
LIMITS = {
    "limits": {
        "services": {"simulation": {"running_max": RUNNING_MAX, "rate": RATE, "burst": BURST}},
        "tenants": {"*": {"running_max": TENANT_MAX}},
    }
}
_STILL_RUNS = frozenset({EventType.CANCEL_REQUESTED, EventType.REFUSED})


def most_running(events: Sequence[Event], tenant_of: dict[str, str]) -> Counter[str]:
    """The most jobs of each tenant, and of all (empty name), that ran at once."""
    running: dict[str, str] = {}
    most: Counter[str] = Counter()
    for event in events:
        if event.type is EventType.CLAIMED:
            running[event.job_id] = tenant_of[event.job_id]
        elif event.type not in _STILL_RUNS:
            running.pop(event.job_id, None)
        most |= Counter(running.values()) + Counter({"": len(running)})
    return most


def most_starts(events: Sequence[Event], within_ms: int) -> int:
    """The most starts in any stretch of this length."""
    starts = [event.at_ms for event in events if event.type is EventType.CLAIMED]
    return max(
        (sum(begun_ms <= at_ms <= begun_ms + within_ms for at_ms in starts) for begun_ms in starts), default=0
    )


async def _eight(fleet: Fleet) -> None:
    """All with the same limits in their configuration; whoever is first defines them."""
    started = [
        fleet.launch(f"m{number}", SHORT_LEASE, LIMITS, service=number % 2, slots=8)
        for number in range(GATEWAYS)
    ]
    for gateway in started:
        await gateway.ready()


@pytest.mark.chaos
@pytest.mark.limit_s(180)
async def test_limits_hold_across_eight_gateway_processes() -> None:
    """Eight processes with 64 slots never run or start more than the limits say, also while two of them are killed."""
    tenant_of = {f"job-{number}": f"t{number % 4}" for number in range(JOBS)}
    async with open_fleet(instances=2) as fleet:
        await _eight(fleet)
        watch = fleet.watch
        for job_id, tenant in tenant_of.items():
            await watch.submit(job_id, {"duration_s": 0.3}, tenant=tenant)
        await watch.wait_for(lambda: watch.count("completed") >= 5, 60, "five completions")
        fleet.gateways["m0"].kill9()
        await watch.wait_for(lambda: watch.count("completed") >= 15, 60, "fifteen completions")
        fleet.gateways["m1"].kill9()
        await watch.wait_terminal(list(tenant_of), 120)
        report = await watch.audited()
        assert report.completed == JOBS
        most = most_running(watch.events, tenant_of)
        assert most[""] == RUNNING_MAX
        assert max(most[tenant] for tenant in set(tenant_of.values())) == TENANT_MAX
        # A millisecond more than the stretch: the events' times are whole ones.
        assert most_starts(watch.events, 499) <= BURST + RATE // 2
        owners = {event.worker_id for event in watch.events if event.type is EventType.CLAIMED}
        assert len(owners) >= GATEWAYS // 2
        limits = await watch.store.limits_now()
        assert (dict(limits.running), set(limits.limits)) == ({}, {"service simulation", "tenant *"})
