"""From what a run left behind to a certificate: the audit's metrics with target, measured and verdict (pure)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.audit import AuditReport, Invariant
from gateway.connectors.simulation.wire import JournalEvent, JournalPage
from gateway.demo import RECOVERY_S_MAX, SUCCESS_RATE_MIN
from gateway.events import Event
from gateway.lifecycle import BIRTHS, EventType
from simulator.certify_config import FleetSetup
from simulator.fault_plans import FleetFaults
from simulator.faults import RATE_NAMES

#: What the audit of the earlier system asked for; we ask for less than 20 s.
AUDIT_RECOVERY_S = 30.0
VIOLATIONS_SHOWN = 20
#: Faults after which a service honestly cannot know that it did the work already, or after which it must do it again.
_HARMLESS_RATES = frozenset({"health_failure_rate", "lost_completion_rate"})

MET, MISSED, NOT_ASKED = "met", "missed", "not asked"


@dataclass(slots=True, kw_only=True)
class FaultMark:
    """A fault that happened; ``until_ms`` is None while it lasts (wall clock, which is Redis' too)."""

    kind: str
    target: str
    at_ms: int
    until_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """All that is left of a run.

    Attributes:
        plan, setup: what was asked for.
        report: the auditor's.
        events: the queue's, in order.
        journals: the services', by instance.
        worker_ids: of each gateway.
        acknowledged: jobs that the queue accepted.
        marks: faults that happened.
        crashes: gateways that ended by themselves, with their last words.
        unclean: gateways that did not end cleanly on SIGTERM.
        begun_ms, ended_ms: first submission and end of the last job, wall clock.
    """

    plan: FleetFaults
    setup: FleetSetup
    report: AuditReport
    events: Sequence[Event]
    journals: Mapping[str, JournalPage]
    worker_ids: Mapping[str, frozenset[str]]
    acknowledged: Sequence[str]
    marks: Sequence[FaultMark]
    crashes: Mapping[str, str]
    unclean: Sequence[str]
    begun_ms: int
    ended_ms: int


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One metric: ``verdict`` is met, missed, or not asked (this plan says nothing about it).

    Attributes:
        of_audit: one of the five that the audit of the earlier system set.
    """

    key: str
    name: str
    target: str
    measured: str
    verdict: str
    of_audit: bool = True


class RecoveryFact(msgspec.Struct, frozen=True, kw_only=True):
    """How long orphans of a kill, or the queue after an outage, waited; seconds, the worst first."""

    kind: str
    target: str
    at_s: float
    seconds: tuple[float, ...]


class FaultFact(msgspec.Struct, frozen=True, kw_only=True):
    """One fault on the run's own time, seconds."""

    kind: str
    target: str
    at_s: float
    until_s: float | None


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a certification.

    Attributes:
        certified: no metric was missed.
        seconds: length of the run.
        counts: jobs and remarks in numbers.
        latency_s: from submission to end, of each completed job in order of its end.
        completions_s: when each was completed, on the run's own time.
        notes: what else to know.
        violations: the auditor's, the first ones.
    """

    certified: bool
    plan: dict[str, Any]
    configuration: str
    simulated: tuple[str, ...]
    left: tuple[str, ...]
    seconds: float
    counts: dict[str, int]
    measures: tuple[Measure, ...]
    faults: tuple[FaultFact, ...]
    recoveries: tuple[RecoveryFact, ...]
    latency_s: tuple[float, ...]
    completions_s: tuple[float, ...]
    notes: tuple[str, ...]
    violations: tuple[str, ...]


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of all lie; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0


def judge(facts: RunFacts) -> Certificate:
    """Weigh a run."""
    done = _Done(facts)
    recoveries = tuple(_recoveries(facts))
    measures = (*_audit_measures(facts, done, recoveries), *_further_measures(facts, done, recoveries))
    latency_s, completions_s = _latencies(facts)
    report = facts.report
    return Certificate(
        certified=all(measure.verdict != MISSED for measure in measures),
        plan=facts.plan.to_mapping(),
        configuration=facts.setup.source,
        simulated=tuple(facts.setup.places),
        left=facts.setup.left,
        seconds=round((facts.ended_ms - facts.begun_ms) / 1000, 1),
        counts={
            "submitted": len(facts.acknowledged),
            "completed": report.completed,
            "dead": report.dead,
            "cancelled": report.cancelled,
            "unfinished": report.unfinished,
            "recoveries": len(report.recoveries),
            "refused": report.refused,
            "finished_twice": done.twice,
            "misrouted": done.misrouted,
            "violations": report.violations_total,
        },
        measures=measures,
        faults=tuple(
            FaultFact(
                kind=mark.kind,
                target=mark.target,
                at_s=_since(facts, mark.at_ms),
                until_s=None if mark.until_ms is None else _since(facts, mark.until_ms),
            )
            for mark in facts.marks
        ),
        recoveries=recoveries,
        latency_s=latency_s,
        completions_s=completions_s,
        notes=tuple(_notes(facts)),
        violations=tuple(
            f"{one.invariant.value}: {one.job_id}: {one.message}"
            for one in report.violations[:VIOLATIONS_SHOWN]
        ),
    )


class _Done:
    """What the services did, added up over their journals."""

    def __init__(self, facts: RunFacts) -> None:
        # Our names for a job at a service end in the number of its life; ids of these runs hold no dots.
        finished = Counter(
            entry.id.partition(".")[0]
            for page in facts.journals.values()
            for entry in page.entries
            if entry.event is JournalEvent.FINISHED
        )
        self.twice = sum(count - 1 for count in finished.values())
        self.misrouted = sum(page.summary.misrouted for page in facts.journals.values())


def _since(facts: RunFacts, at_ms: int) -> float:
    return round((at_ms - facts.begun_ms) / 1000, 3)


def _verdict(met: bool) -> str:
    return MET if met else MISSED


def _broken(report: AuditReport, invariant: Invariant) -> int:
    return sum(violation.invariant is invariant for violation in report.violations)


def _audit_measures(facts: RunFacts, done: _Done, recoveries: Sequence[RecoveryFact]) -> list[Measure]:
    """The five metrics of the audit."""
    report, submitted = facts.report, len(facts.acknowledged)
    rate = report.completed / submitted if submitted else 0.0
    ended = report.completed + report.dead + report.cancelled
    misrouted = done.misrouted + _broken(report, Invariant.ROUTED_CORRECTLY)
    doubled = _broken(report, Invariant.ONE_COMPLETION)
    kills = [seconds for fact in recoveries if fact.kind == "kill" for seconds in fact.seconds]
    killed = any(mark.kind == "kill" for mark in facts.marks)
    worst_s = max(kills, default=0.0)
    recovered = f"{worst_s:.1f} s worst of {len(kills)}" if kills else "no killed gateway held a job"
    return [
        Measure(
            key="reliability",
            name="job processing reliability",
            target=f"≥ {100 * SUCCESS_RATE_MIN:.1f} % of all jobs succeed",
            measured=f"{100 * rate:.2f} % ({report.completed} of {submitted})",
            verdict=_verdict(rate >= SUCCESS_RATE_MIN),
        ),
        Measure(
            key="routing",
            name="service discovery",
            target="100 % of calls reach the worker's own service",
            measured=f"{misrouted} misrouted",
            verdict=_verdict(misrouted == 0),
        ),
        Measure(
            key="duplicates",
            name="concurrency",
            target="0 jobs completed twice",
            measured=f"{doubled} completed twice",
            verdict=_verdict(doubled == 0),
        ),
        Measure(
            key="completion",
            name="completion rate",
            target="100 % of jobs marked as ended",
            measured=f"{100 * ended / max(submitted, 1):.2f} % ({report.unfinished} unfinished)",
            verdict=_verdict(ended == submitted),
        ),
        Measure(
            key="recovery",
            name="error recovery",
            target=f"< {RECOVERY_S_MAX:g} s after a killed gateway (audit: < {AUDIT_RECOVERY_S:g} s)",
            measured=recovered if killed else "no gateway was killed",
            verdict=_verdict(bool(kills) and worst_s < RECOVERY_S_MAX) if killed else NOT_ASKED,
        ),
    ]


def _further_measures(facts: RunFacts, done: _Done, recoveries: Sequence[RecoveryFact]) -> list[Measure]:
    """What we ask for beyond the audit."""
    report = facts.report
    outages = [seconds for fact in recoveries if fact.kind == "redis" for seconds in fact.seconds]
    lost = any(mark.kind == "redis" for mark in facts.marks)
    worst_s = max(outages, default=0.0)
    fallen = sorted({*facts.crashes, *facts.unclean})
    once = facts.setup.asked and _work_is_done_once(facts.plan)
    return [
        Measure(
            key="outage",
            name="Redis outage",
            target=f"work goes on < {RECOVERY_S_MAX:g} s after Redis is back",
            measured=(f"{worst_s:.1f} s worst of {len(outages)}" if outages else "it never went on")
            if lost
            else "Redis was not killed",
            verdict=_verdict(bool(outages) and worst_s < RECOVERY_S_MAX) if lost else NOT_ASKED,
            of_audit=False,
        ),
        Measure(
            key="invariants",
            name="invariants",
            target="0 broken, by the auditor",
            measured=f"{report.violations_total} broken in {report.events} events",
            verdict=_verdict(report.ok),
            of_audit=False,
        ),
        Measure(
            key="work",
            name="work done once",
            target="0 jobs finished twice at a service"
            if once
            else "told only: this plan makes services repeat work"
            if facts.setup.asked
            else "told only: a service here cannot be asked what it did",
            measured=f"{done.twice} finished twice",
            verdict=_verdict(done.twice == 0) if once else NOT_ASKED,
            of_audit=False,
        ),
        Measure(
            key="gateways",
            name="gateways stay up",
            target="none ends by itself, all end cleanly",
            measured=", ".join(fallen) or "all did",
            verdict=_verdict(not fallen),
            of_audit=False,
        ),
    ]


def _work_is_done_once(plan: FleetFaults) -> bool:
    """Whether nothing in the plan can make a service do finished work again: exactly-once execution is promised
    by nobody, but where the service accepts our id and keeps its word, it must come out so.
    """
    turned = {name for name in RATE_NAMES if getattr(plan.knobs, name) != 0.0}
    forgets = bool(plan.knobs.restart_forgets_at_s) or any(fault.kind == "restart" for fault in plan.faults)
    return turned <= _HARMLESS_RATES and plan.knobs.dedupe and not forgets


def _recoveries(facts: RunFacts) -> list[RecoveryFact]:
    found: list[RecoveryFact] = []
    for mark in facts.marks:
        seconds: list[float] = []
        if mark.kind == "kill":
            seconds = facts.report.recoveries_after(mark.at_ms, facts.worker_ids.get(mark.target))
        elif mark.kind == "redis" and mark.until_ms is not None:
            back_ms = mark.until_ms
            after = next(
                (event.at_ms for event in facts.events if _works(event) and event.at_ms >= back_ms), None
            )
            seconds = [] if after is None else [(after - back_ms) / 1000]
        else:
            continue
        found.append(
            RecoveryFact(
                kind=mark.kind,
                target=mark.target,
                at_s=_since(facts, mark.at_ms),
                seconds=tuple(round(value, 3) for value in sorted(seconds, reverse=True)),
            )
        )
    return found


def _works(event: Event) -> bool:
    return event.type in (EventType.CLAIMED, EventType.COMPLETED)


def _latencies(facts: RunFacts) -> tuple[tuple[float, ...], tuple[float, ...]]:
    born = {event.job_id: event.at_ms for event in facts.events if event.type in BIRTHS}
    ends = [event for event in facts.events if event.type is EventType.COMPLETED and event.job_id in born]
    return (
        tuple(round((event.at_ms - born[event.job_id]) / 1000, 3) for event in ends),
        tuple(_since(facts, event.at_ms) for event in ends),
    )


def _notes(facts: RunFacts) -> list[str]:
    notes = [f"worker {name}: simulated" for name in facts.setup.places if facts.setup.source != "built in"]
    notes += [
        f"worker {name}: left as configured ({facts.setup.config.workers[name].connector} has no simulated "
        "service); no job of this run was for it"
        for name in facts.setup.left
    ]
    notes += [f"{name} ended by itself: {words}" for name, words in facts.crashes.items()]
    notes += [f"{name} did not end cleanly on SIGTERM" for name in facts.unclean]
    skipped = len(facts.plan.faults) - len(facts.marks)
    if skipped > 0:
        notes.append(f"{skipped} faults of the plan met a part that was down already")
    lease_s = facts.setup.config.lease.length_s
    if lease_s > RECOVERY_S_MAX - 2 and any(mark.kind == "kill" for mark in facts.marks):
        notes.append(f"lease.length_s = {lease_s:g} alone takes as long as a recovery may")
    return notes


def as_json(certificate: Certificate) -> bytes:
    """The certificate for programs: the series are told as percentiles."""
    values = {
        field.name: getattr(certificate, field.name)
        for field in msgspec.structs.fields(Certificate)
        if field.name not in ("latency_s", "completions_s")
    }
    seconds = certificate.latency_s
    values["latency_seconds"] = {
        "p50": percentile(seconds, 0.5),
        "p95": percentile(seconds, 0.95),
        "p99": percentile(seconds, 0.99),
        "max": max(seconds, default=0.0),
    }
    return msgspec.json.encode(values)
