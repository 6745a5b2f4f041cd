"""The view of ``gateway top``: rates over a window, states of workers, services with their users."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gateway.events import Event
from gateway.explain import WorkerView
from gateway.lifecycle import EventType
from gateway.models import Epoch, JobId, QueueStats
from gateway.overview import RateMeter, Rates, assemble
from gateway.registration import RegisteredService, ServiceEntry

NOW_MS = 1_700_000_000_000
TTL_S = 30.0


def event(at_ms: int, kind: EventType) -> Event:
    return Event(f"{at_ms}-0/0", at_ms, kind, JobId("a"), Epoch(1), "m/w", "")


def worker(
    name: str,
    *,
    seen_ms: int = NOW_MS,
    running: int = 0,
    refusal: str = "",
    healthy: bool | None = True,
    breakers: tuple[str, ...] = ("closed",),
) -> WorkerView:
    endpoints = [
        {"url": f"http://{name}:{number}", "breaker": state} for number, state in enumerate(breakers, 1)
    ]
    return WorkerView(
        worker_id=name, seen_ms=seen_ms, service="simulation", connector="simulation-http", endpoint="",
        slots=2, running=running, healthy=healthy, refusal=refusal, capabilities={},
        description={"endpoints": endpoints},
    )  # fmt: skip


def stats(**pending: int) -> QueueStats:
    return QueueStats(
        now_ms=NOW_MS, pending=pending, scheduled=1, running=3, finished=10, dead=4, jobs=20,
        oldest_pending_ms=2500, paused=True, waiting=2,
    )  # fmt: skip


@given(
    ages_ms=st.lists(st.integers(min_value=0, max_value=30_000)),
    watched_ms=st.integers(min_value=1, max_value=30_000),
    window_ms=st.integers(min_value=1, max_value=20_000),
)
def test_rates_count_exactly_the_window(ages_ms: list[int], watched_ms: int, window_ms: int) -> None:
    """A rate is the number of events in the watched part of the window, by its length; order of asking is nothing."""
    since_ms = NOW_MS - watched_ms
    meter = RateMeter(since_ms, window_ms)
    meter.feed(event(NOW_MS - age_ms, EventType.COMPLETED) for age_ms in sorted(ages_ms, reverse=True))
    span_ms = min(window_ms, watched_ms)
    wanted = sum(age_ms <= span_ms for age_ms in ages_ms) / (span_ms / 1000)
    assert abs(meter.rates(NOW_MS).completed - wanted) <= 0.005 + 1e-9 * wanted
    assert meter.rates(NOW_MS) == meter.rates(NOW_MS)


def test_each_way_to_end_counts_once() -> None:
    """Kinds of events that mean the same are one rate; others are none."""
    meter = RateMeter(NOW_MS - 10_000)
    meter.feed(event(NOW_MS - 5000, kind) for kind in EventType)
    assert meter.rates(NOW_MS) == Rates(
        window_s=10.0, submitted=0.3, claimed=0.1, completed=0.1, retried=0.2, recovered=0.1, dead=0.2
    )
    meter.restart(NOW_MS)
    assert meter.rates(NOW_MS) == Rates(window_s=0.0)


def test_workers_that_need_a_look_come_first() -> None:
    """A worker's state says why it does not claim; one that is silent counts for no slots and no breakers."""
    view = assemble(
        "q",
        stats(),
        [
            worker("a"),
            worker("b", running=2),
            worker("c", refusal="breaker open", breakers=("open", "closed")),
            worker("d", healthy=False, breakers=("half_open",)),
            worker("e", seen_ms=NOW_MS - 31_000),
        ],
        [],
        Rates(window_s=0.0),
        worker_ttl_s=TTL_S,
    )
    assert [(row.worker, row.state) for row in view.workers] == [
        ("c", "breaker open"),
        ("d", "unhealthy"),
        ("e", "silent for 31 s"),
        ("a", "claims"),
        ("b", "all slots busy"),
    ]
    assert (view.slots_busy, view.slots) == (2, 8)
    assert view.breakers == {"closed": 3, "open": 1, "half_open": 1}


def test_counts_are_the_queues_own() -> None:
    """Numbers are the queue's, dead letters apart; classes without jobs are left out, the largest comes first."""
    view = assemble("q", stats(x=1, y=5, z=0), [], [], Rates(window_s=0.0), worker_ttl_s=TTL_S)
    assert (view.pending, view.running, view.finished, view.dead) == (6, 3, 6, 4)
    assert (view.scheduled, view.waiting, view.oldest_wait_s, view.paused) == (1, 2, 2.5, True)
    assert list(view.classes.items()) == [("y", 5), ("x", 1)]
    assert (view.slots, view.workers, view.services) == (0, (), ())


def test_services_name_their_users() -> None:
    """A service shows who is bound to its address, and which newer entry holds in its place."""
    entry = ServiceEntry(service="simulation", url="http://a:1/", protocol="http")
    services = [
        RegisteredService("new", entry, NOW_MS + 20_000, NOW_MS - 1000),
        RegisteredService("old", entry, NOW_MS + 10_000, NOW_MS - 9000),
    ]
    view = assemble("q", stats(), [worker("a")], services, Rates(window_s=0.0), worker_ttl_s=TTL_S)
    assert [(row.id, row.state, row.workers, row.ends_in_s) for row in view.services] == [
        ("new", "healthy", ("a",), 20.0),
        ("old", "overtaken by new", ("a",), 10.0),
    ]
