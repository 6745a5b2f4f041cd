"""What a gateway counts: the names an operator's dashboards and alerts are written against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.breaker import BreakerState
from gateway.errors import FaultClass
from gateway.models import Grant, QueueStats, Settlement, SettlementKind, SweepReport, Verdict
from gateway.rollout import RolloutPolicy, Side
from gateway.strategies import Strategy
from gateway.telemetry.instruments import InstrumentSet, Labels

#: From a no-op to an hour: one model run takes seconds to minutes.
DURATION_BOUNDS_S = (
    *(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
    *(10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0),
)
#: The goal is a p99 below 10 ms on an idle gateway, so the resolution is finest around it.
LATENCY_BOUNDS_S = (
    *(0.001, 0.0025, 0.005, 0.0075, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
    *(10.0, 30.0, 60.0, 300.0, 1800.0, 3600.0),
)
ROUND_TRIP_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

#: Statuses of an attempt that ended without the store's answer.
LOST = "lost"
SPOOLED = "spooled"
LAPSED = "lapsed"
DEAD = "dead"

_BREAKER_VALUES = {BreakerState.CLOSED: 0.0, BreakerState.HALF_OPEN: 1.0, BreakerState.OPEN: 2.0}


def status_of(grant: Grant, settlement: Settlement, verdict: Verdict | None) -> str:
    """How an attempt ended, in one word.

    Args:
        grant: the job as it was claimed.
        settlement: what we asked the store to record.
        verdict: what the fence said; None when the store could not be reached.

    Returns:
        The settlement's kind; ``dead`` for a failure that used up the attempts or is final; ``lost`` when the fence
        refused us; ``spooled`` when the settlement waits on disk; ``lapsed`` for a release nobody could be told of.
    """
    if verdict is Verdict.STALE:
        return LOST
    if verdict is None:
        return LAPSED if settlement.kind is SettlementKind.RELEASED else SPOOLED
    if settlement.kind is SettlementKind.FAILED:
        used_up = settlement.final or grant.attempts + 1 >= grant.spec.max_attempts
        return DEAD if used_up else settlement.kind.value
    return settlement.kind.value


class GatewayMetrics:
    """All instruments of one gateway process, one method per fact.

    Args:
        instruments: where they are registered.
    """

    def __init__(self, instruments: InstrumentSet) -> None:
        self._job_metrics(instruments)
        self._queue_metrics(instruments)
        self._process_metrics(instruments)

    def _job_metrics(self, new: InstrumentSet) -> None:
        self._duration = new.histogram(
            "job_duration_seconds",
            "Time from the claim of a job to its completion or failure",
            DURATION_BOUNDS_S,
            ("service", "success"),
        )
        self._jobs = new.counter("jobs_total", "Attempts by how they ended", ("service", "status"))
        self._running = new.gauge("jobs_running", "Attempts under way in this process", ("service",))
        self._faults = new.counter(
            "attempt_faults_total", "Faults of attempts by class", ("service", "fault_class")
        )
        self._consumed = new.counter(
            "consumed_total",
            "What services say that completed jobs used up, such as tokens",
            ("service", "kind"),
        )
        self._refused = new.counter(
            "settlements_refused_total",
            "Settlements the fence refused: another owner holds or ended the job",
            ("service", "kind"),
        )
        self._duplicate = new.counter(
            "settlements_duplicate_total",
            "Settlements the store had already recorded (a reply was lost)",
            ("service", "kind"),
        )

    def _queue_metrics(self, new: InstrumentSet) -> None:
        self._claims = new.counter("claims_total", "Jobs claimed", ("worker",))
        self._claim_latency = new.histogram(
            "claim_latency_seconds",
            "Time from becoming claimable to the claim, by the clock of Redis",
            LATENCY_BOUNDS_S,
            ("service",),
        )
        self._round_trip = new.histogram(
            "claim_round_trip_seconds",
            "Time from asking for jobs to having them, for claims that got some",
            ROUND_TRIP_BOUNDS_S,
        )
        self._depth = new.gauge("queue_depth", "Jobs in the queue", ("class", "state"))
        self._oldest = new.gauge(
            "queue_oldest_age_seconds", "Age of the longest waiting claimable job", unit="s"
        )
        self._expiries = new.counter("lease_expiries_total", "Leases found expired by this process")
        self._recoveries = new.counter(
            "recoveries_total", "Recoveries by named strategy, see docs/operations.md", ("strategy",)
        )
        for strategy in Strategy:
            # Every strategy shows its zero from the start, so that an alert on its rate has a beginning.
            self._recoveries.add((strategy.value,), 0)
        self._rollout_percent = new.gauge(
            "rollout_percent", "Share of a worker's jobs that go to its rollout's candidate", ("worker",)
        )
        self._rollout_decisions = new.counter(
            "rollout_decisions_total", "Decisions about rollouts", ("worker", "decision")
        )
        self._rollout_attempts = new.counter(
            "rollout_attempts_total",
            "Ends of attempts of workers with a rollout, by side",
            ("worker", "side", "success"),
        )
        self._poison = new.counter("poison_pills_total", "Jobs given up after too many expired leases")
        self._missed = new.counter(
            "deadlines_missed_total",
            "Jobs that nobody had claimed by their deadline, as found by this process",
        )
        self._firings = new.counter(
            "schedule_firings_total",
            "Instants of schedules that this process settled",
            ("schedule", "outcome"),
        )

    def _process_metrics(self, new: InstrumentSet) -> None:
        endpoint = ("service", "endpoint", "worker")
        self._health = new.gauge("service_health", "1 while the service is healthy, else 0", endpoint)
        self._breaker = new.gauge("breaker_state", "0 closed, 1 half open, 2 open", endpoint)
        self._store = new.gauge("store_available", "1 while Redis answers, else 0")
        self._spool = new.gauge("spool_size", "Settlements waiting on disk for Redis")
        self._lag = new.gauge("event_loop_lag_seconds", "How late a timer of the event loop fired", unit="s")

    def began(self, service: str) -> None:
        self._running.add((service,), 1)

    def ended(self, service: str) -> None:
        self._running.add((service,), -1)

    def lost(self, service: str) -> None:
        """An attempt ended without a settlement: its lease was lost."""
        self._jobs.add((service, LOST))

    def settled(
        self, grant: Grant, settlement: Settlement, verdict: Verdict | None, duration_s: float
    ) -> str:
        """An attempt ended; returns its status.

        Only an attempt that completed or failed has a duration worth comparing: a snoozed or released one ends
        whenever it is asked to.
        """
        service = grant.spec.service
        status = status_of(grant, settlement, verdict)
        self._jobs.add((service, status))
        if verdict is Verdict.STALE:
            self._refused.add((service, settlement.kind.value))
            return status
        if verdict is Verdict.DUPLICATE:
            self._duplicate.add((service, settlement.kind.value))
        if settlement.kind is SettlementKind.COMPLETED:
            self._duration.observe((service, "true"), duration_s)
        elif settlement.kind is SettlementKind.FAILED:
            self._duration.observe((service, "false"), duration_s)
        return status

    def faulted(self, service: str, fault_class: FaultClass) -> None:
        self._faults.add((service, fault_class.value))

    def consumed(self, service: str, amounts: Mapping[str, int]) -> None:
        for kind, amount in amounts.items():
            self._consumed.add((service, kind), amount)

    def claimed(self, worker_id: str, grants: Sequence[Grant], round_trip_s: float) -> None:
        self._claims.add((worker_id,), len(grants))
        self._round_trip.observe((), round_trip_s)
        observe = self._claim_latency.observe
        for grant in grants:
            observe((grant.spec.service,), max(0, grant.claimed_ms - grant.enqueued_ms) / 1000)

    def health(self, worker_id: str, service: str, endpoint: str, *, healthy: bool) -> None:
        self._health.set((service, endpoint, worker_id), 1.0 if healthy else 0.0)

    def breaker(self, worker_id: str, service: str, endpoint: str, state: BreakerState) -> None:
        self._breaker.set((service, endpoint, worker_id), _BREAKER_VALUES[state])

    def left(self, worker_id: str, service: str, endpoint: str) -> None:
        """No series of an endpoint outlives it: one that moved away must not count as unhealthy for ever."""
        self._health.remove((service, endpoint, worker_id))
        self._breaker.remove((service, endpoint, worker_id))

    def swept(self, report: SweepReport) -> None:
        """``cancelled`` counts expired leases of jobs somebody had asked to cancel."""
        self._expiries.add((), report.recovered + report.poisoned + report.cancelled)
        self._poison.add((), report.poisoned)
        self._missed.add((), report.expired)

    def fired(self, schedule: str, outcome: str) -> None:
        self._firings.add((schedule, outcome))

    def queue(self, stats: QueueStats) -> None:
        depth: dict[Labels, float] = {
            ("", "scheduled"): float(stats.scheduled),
            ("", "waiting"): float(stats.waiting),
            ("", "running"): float(stats.running),
            ("", "finished"): float(stats.finished),
            ("", "dead"): float(stats.dead),
        }
        depth.update({(class_id, "pending"): float(count) for class_id, count in stats.pending.items()})
        self._depth.replace(depth)
        self._oldest.set((), stats.oldest_pending_ms / 1000)

    def store(self, *, available: bool) -> None:
        self._store.set((), 1.0 if available else 0.0)

    def spool(self, size: int) -> None:
        self._spool.set((), float(size))

    def rollout(self, worker_id: str, decision: str, policy: RolloutPolicy) -> None:
        self._rollout_percent.set((worker_id,), 0.0 if policy.stopped else policy.percent)
        self._rollout_decisions.add((worker_id, decision))

    def rollout_attempt(self, worker_id: str, side: Side, *, failed: bool) -> None:
        self._rollout_attempts.add((worker_id, side.value, "false" if failed else "true"))

    def recovering(self, strategy: Strategy, count: int) -> None:
        self._recoveries.add((strategy.value,), count)

    def loop_lag(self, lag_s: float) -> None:
        self._lag.set((), lag_s)
