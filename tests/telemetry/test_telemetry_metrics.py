"""Metrics: the names on the page, what each fact changes, and bounds on their number."""

from __future__ import annotations

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.breaker import BreakerState
from gateway.config import TelemetryConfig
from gateway.errors import FaultClass
from gateway.models import Grant, LeaseRef, QueueStats, Settlement, SweepReport, Verdict
from gateway.telemetry import Telemetry, build_telemetry
from gateway.telemetry.instruments import SERIES_MAX, CounterInstrument, GaugeInstrument, HistogramInstrument
from tests.telemetry.facts import HandClock, make_grant

#: What dashboards and alerts are written against.
PUBLISHED = {
    *(
        "attempt_faults_total",
        "consumed_total",
        "breaker_state",
        "claim_latency_seconds",
        "claim_round_trip_seconds",
    ),
    *("claims_total", "event_loop_lag_seconds", "job_duration_seconds", "jobs_running", "jobs_total"),
    *("deadlines_missed_total", "schedule_firings_total"),
    *("lease_expiries_total", "poison_pills_total", "queue_depth", "queue_oldest_age_seconds"),
    *("recoveries_total", "rollout_attempts_total", "rollout_decisions_total", "rollout_percent"),
    *("service_health", "settlements_duplicate_total", "settlements_refused_total", "spool_size"),
    "store_available",
}


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def telemetry(clock: HandClock) -> Telemetry:
    return build_telemetry(TelemetryConfig(), now_s=clock.monotonic_s, wall_ns=clock.wall_ns)


def stats(pending: dict[str, int]) -> QueueStats:
    return QueueStats(
        now_ms=0,
        pending=pending,
        scheduled=3,
        running=2,
        finished=9,
        dead=1,
        jobs=15,
        oldest_pending_ms=2500,
        paused=False,
    )


def report(*, recovered: int = 0, poisoned: int = 0, cancelled: int = 0) -> SweepReport:
    counts = {"promoted": 5, "removed": 5, "skipped": 0, "expired": 0, "told": 0}
    return SweepReport(recovered, poisoned, cancelled, **counts, schedules_due=False, more=False)


def settle(telemetry: Telemetry, clock: HandClock, settlement: Settlement, verdict: Verdict | None) -> None:
    grant = make_grant(epoch=settlement.epoch)
    with telemetry.attempt(grant, worker_id="w", connector_key="c", endpoint="e") as attempt:
        clock.now_s += 2
        attempt.settled(settlement, verdict)


def test_the_page_has_exactly_the_published_names(telemetry: Telemetry, clock: HandClock) -> None:
    """Every metric appears under its published name, with a kind that fits; nothing else appears."""
    grant = make_grant()
    telemetry.claimed("w", [grant], 0.004)
    settle(telemetry, clock, Settlement.completed(grant, body="1"), Verdict.ACCEPTED)
    settle(telemetry, clock, Settlement.completed(grant, body="1"), Verdict.STALE)
    settle(telemetry, clock, Settlement.completed(grant, body="1"), Verdict.DUPLICATE)
    with telemetry.attempt(grant, worker_id="w", connector_key="c", endpoint="e") as attempt:
        attempt.faulted(FaultClass.TIMEOUT, "late")
        attempt.consumed({"input_tokens": 3})
    telemetry.health("w", "simulation", "http://a", healthy=True, detail="")
    telemetry.breaker("w", "simulation", "http://a", BreakerState.OPEN)
    telemetry.queue(stats({"simulation": 4}))
    telemetry.store(available=True)
    telemetry.spool(0)
    telemetry.loop_lag(0.25)
    body, content_type = telemetry.exposition()
    assert content_type.startswith("text/plain")
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    names = {name + ("_total" if family.type == "counter" else "") for name, family in families.items()}
    assert names == PUBLISHED
    assert {sample.name for sample in families["job_duration_seconds"].samples} == {
        "job_duration_seconds_bucket",
        "job_duration_seconds_sum",
        "job_duration_seconds_count",
    }
    lines = body.decode().splitlines()
    assert 'jobs_total{service="simulation",status="completed"} 2.0' in lines
    assert 'job_duration_seconds_count{service="simulation",success="true"} 2.0' in lines
    assert 'job_duration_seconds_sum{service="simulation",success="true"} 4.0' in lines
    assert 'job_duration_seconds_bucket{le="1.0",service="simulation",success="true"} 0.0' in lines
    assert 'job_duration_seconds_bucket{le="2.5",service="simulation",success="true"} 2.0' in lines
    assert 'service_health{endpoint="http://a",service="simulation",worker="w"} 1.0' in lines


GRANT = make_grant()
LAST = make_grant(attempts=2)


@pytest.mark.parametrize(
    ("grant", "settlement", "verdict", "status", "success"),
    [
        (GRANT, Settlement.completed(GRANT, body="1"), Verdict.ACCEPTED, "completed", "true"),
        (GRANT, Settlement.completed(GRANT, body="1"), Verdict.DUPLICATE, "completed", "true"),
        (GRANT, Settlement.completed(GRANT, body="1"), Verdict.STALE, "lost", ""),
        (GRANT, Settlement.completed(GRANT, body="1"), None, "spooled", "true"),
        (
            GRANT,
            Settlement.failed_for_retry(GRANT, body="", detail="", delay_s=1, avoid_s=0),
            Verdict.ACCEPTED,
            "failed",
            "false",
        ),
        (
            LAST,
            Settlement.failed_for_retry(LAST, body="", detail="", delay_s=1, avoid_s=0),
            Verdict.ACCEPTED,
            "dead",
            "false",
        ),
        (GRANT, Settlement.failed_for_good(GRANT, body="", detail=""), Verdict.ACCEPTED, "dead", "false"),
        (
            GRANT,
            Settlement.snoozed(GRANT, body="", detail="", delay_s=1),
            Verdict.ACCEPTED,
            "snoozed",
            "",
        ),
        (GRANT, Settlement.released(GRANT), Verdict.ACCEPTED, "released", ""),
        (GRANT, Settlement.released(GRANT), None, "lapsed", ""),
        (GRANT, Settlement.cancelled(GRANT), Verdict.ACCEPTED, "cancelled", ""),
    ],
)
def test_each_end_has_its_status(
    telemetry: Telemetry,
    clock: HandClock,
    grant: Grant,
    settlement: Settlement,
    verdict: Verdict | None,
    status: str,
    success: str,
) -> None:
    """An attempt is counted once, under how it ended; only completions and failures have a duration."""
    with telemetry.attempt(grant, worker_id="w", connector_key="c", endpoint="e") as attempt:
        assert telemetry.snapshot()['jobs_running{service="simulation"}'] == 1
        clock.now_s += 2
        attempt.settled(settlement, verdict)
    found = telemetry.snapshot()
    assert found[f'jobs_total{{service="simulation",status="{status}"}}'] == 1
    assert sum(value for key, value in found.items() if key.startswith("jobs_total")) == 1
    assert found['jobs_running{service="simulation"}'] == 0
    durations = {key: value for key, value in found.items() if key.startswith("job_duration_seconds_sum")}
    expected = f'job_duration_seconds_sum{{service="simulation",success="{success}"}}'
    assert durations == ({expected: 2.0} if success else {})


def test_an_attempt_without_settlement_is_lost(telemetry: Telemetry) -> None:
    """An attempt that ends by an exception is counted as lost, no longer runs, and the exception goes on."""
    with (
        pytest.raises(ZeroDivisionError),
        telemetry.attempt(GRANT, worker_id="w", connector_key="c", endpoint="e"),
    ):
        raise ZeroDivisionError
    found = telemetry.snapshot()
    assert found['jobs_total{service="simulation",status="lost"}'] == 1
    assert found['jobs_running{service="simulation"}'] == 0


def test_refused_and_repeated_settlements_are_counted(telemetry: Telemetry, clock: HandClock) -> None:
    """A stale verdict counts as refused, a duplicate as duplicate, each by kind."""
    settle(telemetry, clock, Settlement.completed(GRANT, body="1"), Verdict.STALE)
    settle(telemetry, clock, Settlement.cancelled(GRANT), Verdict.DUPLICATE)
    found = telemetry.snapshot()
    assert found['settlements_refused_total{service="simulation",kind="completed"}'] == 1
    assert found['settlements_duplicate_total{service="simulation",kind="cancelled"}'] == 1


def test_claims_measure_waiting_and_asking(telemetry: Telemetry) -> None:
    """One claim of several jobs is one round trip, and one latency for each job, never below zero."""
    grants = [make_grant(waited_ms=8), make_grant(waited_ms=2000), make_grant(waited_ms=-5)]
    telemetry.claimed("m/w", grants, 0.004)
    found = telemetry.snapshot()
    assert found['claims_total{worker="m/w"}'] == 3
    assert found["claim_round_trip_seconds_count"] == 1
    assert found["claim_round_trip_seconds_sum"] == 0.004
    assert found['claim_latency_seconds_count{service="simulation"}'] == 3
    assert found['claim_latency_seconds_sum{service="simulation"}'] == pytest.approx(2.008)


def test_an_endpoint_that_left_leaves_no_series(telemetry: Telemetry) -> None:
    """A service that moved away must not count as unhealthy for ever, nor use up the series of its gauges."""
    for endpoint in ("old", "new"):
        telemetry.health("w", "s", endpoint, healthy=False, detail="refused")
        telemetry.breaker("w", "s", endpoint, BreakerState.OPEN)
    telemetry.left("w", "s", "old")
    telemetry.left("w", "s", "never there")
    found = [name for name in telemetry.snapshot() if "service_health{" in name or "breaker_state{" in name]
    assert sorted(found) == [
        f'{name}{{service="s",endpoint="new",worker="w"}}' for name in ("breaker_state", "service_health")
    ]


def test_process_facts_are_shown_as_told(telemetry: Telemetry) -> None:
    """Health, breaker, store, spool, lag and sweeps appear with their last (or summed) values."""
    telemetry.health("w", "s", "e", healthy=False, detail="refused")
    for state in BreakerState:
        telemetry.breaker(f"w-{state.value}", "s", "e", state)
    telemetry.store(available=False)
    telemetry.spool(12)
    telemetry.loop_lag(0.5)
    telemetry.swept(report(recovered=2, poisoned=1))
    telemetry.swept(report(cancelled=1))
    lease = LeaseRef(GRANT.job_id, GRANT.epoch)
    telemetry.owned(lease, "w", 1.0)
    telemetry.disowned(lease, "w", "lost")
    found = telemetry.snapshot()
    assert found['service_health{service="s",endpoint="e",worker="w"}'] == 0
    states = {
        state: found[f'breaker_state{{service="s",endpoint="e",worker="w-{state.value}"}}']
        for state in BreakerState
    }
    assert states == {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}
    assert found["store_available"] == 0
    assert found["spool_size"] == 12
    assert found["event_loop_lag_seconds"] == telemetry.lag_s == 0.5
    assert found["lease_expiries_total"] == 4
    assert found["poison_pills_total"] == 1


def test_classes_that_emptied_leave_the_page(telemetry: Telemetry) -> None:
    """The depth shows the queue as it is now: a class no longer in it has no series."""
    telemetry.queue(stats({"a": 4, "b": 1}))
    telemetry.queue(stats({"b": 2}))
    found = {key: value for key, value in telemetry.snapshot().items() if key.startswith("queue_")}
    assert found == {
        'queue_depth{class="b",state="pending"}': 2,
        'queue_depth{class="",state="scheduled"}': 3,
        'queue_depth{class="",state="waiting"}': 0,
        'queue_depth{class="",state="running"}': 2,
        'queue_depth{class="",state="finished"}': 9,
        'queue_depth{class="",state="dead"}': 1,
        "queue_oldest_age_seconds": 2.5,
    }


def test_the_number_of_series_is_bounded() -> None:
    """Label values beyond the bound share one series, and no count is lost."""
    counter = CounterInstrument("a_total", "a", ("x",))
    gauge = GaugeInstrument("b", "b", ("x",))
    histogram = HistogramInstrument("c_seconds", "c", (1.0,), ("x",))
    for number in range(SERIES_MAX + 50):
        counter.add((str(number),))
        gauge.add((str(number),), 1)
        histogram.observe((str(number),), 0.5)
    gauge.set(("late",), 3)
    assert len(counter.values()) == len(gauge.values()) == SERIES_MAX + 1
    assert counter.values()[("other",)] == 50
    assert gauge.values()[("other",)] == 3
    counts = {labels: value for name, labels, value in histogram.samples() if name == "c_seconds_count"}
    assert counts[("other",)] == 50


def test_bucket_bounds_are_inclusive() -> None:
    """A value on a bound belongs to the bucket below it; one above all bounds to the last bucket."""
    histogram = HistogramInstrument("c_seconds", "c", (1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 7.0):
        histogram.observe((), value)
    buckets = {
        sample.labels["le"]: sample.value for sample in histogram.family().samples if "le" in sample.labels
    }
    assert buckets == {"1.0": 2, "2.0": 4, "+Inf": 5}
