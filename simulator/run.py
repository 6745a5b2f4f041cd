"""Run one plan: a safety phase in which anything may fail, then healing, then liveness; and judge it."""

from __future__ import annotations

import contextlib
from typing import Any

import msgspec
import trio
import trio.testing

from gateway.audit import Auditor, AuditReport, Invariant
from gateway.connectors.simulation.wire import JournalEntry
from gateway.events import Event, decode_entries
from gateway.lifecycle import is_terminal
from gateway.models import JobState
from gateway.store.keys import QueueKeys
from simulator.chaos import inflict
from simulator.cluster import QUEUE, Cluster
from simulator.coverage import SERVED, marks_of_events, standing_faults
from simulator.faults import FaultPlan
from simulator.invariants import Story, StreamEntry, broken_promises
from simulator.oracle import HistoryLine
from simulator.plan import FaultKind, FleetPlan
from simulator.roster import announce
from simulator.scheduling import deterministic_scheduler as deterministic_scheduler
from simulator.shares import Asked

#: Liveness: so many leases without any transition after healing mean that nothing moves any more.
QUIET_LEASES_MAX = 12.0
#: And so many leases altogether, however much seems to move.
LIVENESS_LEASES_MAX = 80.0
LOOK_LEASES = 0.2
_decode_record = msgspec.json.Decoder(list[str]).decode
#: Readable entries of a service's journal that a run hands over.
JOURNAL_MAX = 10_000


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What one run showed.

    Attributes:
        safety: broken invariants, in words; empty is good.
        liveness: what did not end after healing; empty is good.
        crash: an error of the gateway's or the simulation's own code, else empty.
        simulated_s: length of the run in simulated time.
        faults: injected faults by kind.
        transitions: lifecycle events by type.
        marks: other states that were reached, by ``simulator.coverage.Mark``.
        lost: acknowledged jobs that no store and no event knows any more.
        undurable: what was found in a run in which Redis itself lost acknowledged writes; no promise covers that,
            so it stands here instead of under ``safety`` and ``liveness``.
    """

    plan: FleetPlan
    safety: tuple[str, ...]
    liveness: tuple[str, ...]
    crash: str
    simulated_s: float
    faults: dict[str, int]
    transitions: dict[str, int]
    marks: dict[str, int]
    completed: int
    dead: int
    cancelled: int
    jobs: int
    lost: int
    history_digest: str
    undurable: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not (self.safety or self.liveness or self.crash)

    @property
    def kind(self) -> str:
        """The gravest thing that went wrong: ``safety``, ``crash``, ``liveness``, or ``ok``."""
        found = (("safety", self.safety), ("crash", self.crash), ("liveness", self.liveness))
        return next((kind for kind, present in found if present), "ok")

    @property
    def findings(self) -> tuple[str, ...]:
        """All that went wrong, the gravest first."""
        return (*self.safety, *((self.crash,) if self.crash else ()), *self.liveness)


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """An outcome with everything needed to tell its story."""

    outcome: Outcome
    history: tuple[HistoryLine, ...]
    events: tuple[Event, ...]
    journals: dict[str, tuple[JournalEntry, ...]]


def simulate(plan: FleetPlan) -> Run:
    """Run a plan from its first to its last simulated second."""
    with deterministic_scheduler(plan.seed):
        clock = trio.testing.MockClock(autojump_threshold=0)
        return trio.run(_simulate, plan, clock=clock)


async def _simulate(plan: FleetPlan) -> Run:
    crash = ""
    cluster: Cluster | None = None
    unfinished: list[str] = []
    try:
        async with trio.open_nursery() as nursery:
            cluster = Cluster(plan, nursery)
            if any(incident.kind is FaultKind.KILL_AT_STEP for incident in plan.incidents):
                trio.lowlevel.add_instrument(cluster.killer)
            # A far deadline: with none at all, a deadlock under the jumping clock would spin for ever.
            nursery.start_soon(trio.sleep, 10_000_000)
            cluster.start()
            nursery.start_soon(cluster.submit_all)
            if plan.discovered:
                for name in cluster.services:
                    nursery.start_soon(announce, cluster, name)
            nursery.start_soon(inflict, cluster)
            await trio.sleep_until(plan.safety_s)
            unfinished = await _heal(cluster)
            cluster.ended = True
            for machine in cluster.machines.values():
                machine.scope.cancel()
            nursery.cancel_scope.cancel()
    except Exception as error:
        crash = _describe(error)
    finally:
        if cluster is not None:
            with contextlib.suppress(KeyError):
                trio.lowlevel.remove_instrument(cluster.killer)
    assert cluster is not None, crash
    return _judge(cluster, unfinished, crash)


async def _heal(cluster: Cluster) -> list[str]:
    """End all faults and wait for every accepted job; returns what did not end within the budget."""
    cluster.history.tell("world", "heals")
    cluster.network.heal()
    cluster.killer.armed = 0
    for name, service in cluster.services.items():
        service.service.set_faults(trio.current_time(), FaultPlan.none().to_mapping())
        cluster.service_up(name)
    for machine in cluster.machines.values():
        machine.steps_left = None
        machine.node.resume()
        if not machine.node.alive:
            cluster.boot(machine)
    if cluster.plan.schedules:
        await cluster.pause_schedules()
    lease_s = cluster.plan.lease_s
    last, last_change_s = -1, trio.current_time()
    end_s = trio.current_time() + LIVENESS_LEASES_MAX * lease_s
    while trio.current_time() < end_s:
        open_jobs = _open_jobs(cluster)
        submitted = len(cluster.answered) >= len(cluster.plan.jobs)
        if not open_jobs and submitted:
            return []
        moved = int(cluster.redis.execute("XLEN", QueueKeys(QUEUE).events))
        if moved != last:
            last, last_change_s = moved, trio.current_time()
        if trio.current_time() - last_change_s > QUIET_LEASES_MAX * lease_s:
            break
        await trio.sleep(LOOK_LEASES * lease_s)
    return [
        f"{job_id} is {state} {QUIET_LEASES_MAX:g} leases after healing"
        for job_id, state in _open_jobs(cluster)
    ]


def _open_jobs(cluster: Cluster) -> list[tuple[str, str]]:
    """Acknowledged jobs, and those that schedules fired, that have not ended, with their state."""
    fired = [name.decode() for name in cluster.redis.execute("HKEYS", QueueKeys(QUEUE).jobs)]
    ids = [*cluster.acknowledged, *(job_id for job_id in fired if job_id.startswith("schedule:"))]
    if not ids:
        return []
    raws = cluster.redis.execute("HMGET", QueueKeys(QUEUE).jobs, *ids)
    states = [
        (job_id, msgspec.json.decode(raw)[0] if raw else "lost")
        for job_id, raw in zip(ids, raws, strict=True)
    ]
    return [
        (job_id, state) for job_id, state in states if state == "lost" or not is_terminal(JobState(state))
    ]


def _events(cluster: Cluster) -> list[Event]:
    raw: Any = cluster.redis.execute("XRANGE", QueueKeys(QUEUE).events, "-", "+")
    entries = []
    for entry_id, fields in raw:
        texts = [value.decode() for value in fields]
        entries.append((entry_id.decode(), dict(zip(texts[::2], texts[1::2], strict=True))))
    return decode_entries(entries)


def _judge(cluster: Cluster, unfinished: list[str], crash: str) -> Run:
    plan = cluster.plan
    events = _events(cluster)
    auditor = Auditor()
    auditor.feed(events)
    report = auditor.finish(
        expect_all_terminal=False, acknowledged=() if unfinished or crash else tuple(cluster.acknowledged)
    )
    for number, service in enumerate(cluster.services.values()):
        if service.service.journal.summary().executions_by_job:
            cluster.marks.note(SERVED[plan.protocol(number)])
    transitions: dict[str, int] = {}
    for event in events:
        transitions[event.type.value] = transitions.get(event.type.value, 0) + 1
        what = f"{event.type.value} {event.job_id} {event.worker_id} {event.detail}"[:160]
        cluster.history.tell("redis", what, kind="event", about=event.job_id)
    promises = broken_promises(_story(cluster, events))
    safety = [*cluster.beliefs.violations, *_violations(report), *_journals(cluster), *promises]
    lost = [*(job_id for job_id, state in _open_jobs(cluster) if state == "lost"), *_unknown(report)]
    undurable: list[str] = []
    if not plan.durable:
        undurable, safety, unfinished = [*safety, *unfinished], [], []
    outcome = Outcome(
        plan=plan,
        safety=tuple(safety),
        liveness=tuple(unfinished),
        crash=crash,
        simulated_s=round(trio.current_time(), 3),
        faults=dict(sorted({**cluster.faults, **standing_faults(plan)}.items())),
        transitions=dict(sorted(transitions.items())),
        marks=dict(sorted({**cluster.marks.counts, **marks_of_events(events)}.items())),
        completed=report.completed,
        dead=report.dead,
        cancelled=report.cancelled,
        jobs=len(plan.jobs),
        lost=len(set(lost)) if plan.durable else 0,
        history_digest=cluster.history.digest(),
        undurable=tuple(undurable),
    )
    return Run(
        outcome=outcome,
        history=tuple(cluster.history.lines),
        events=tuple(events),
        journals={
            name: service.service.journal.page(limit=JOURNAL_MAX).entries
            for name, service in cluster.services.items()
        },
    )


def _story(cluster: Cluster, events: list[Event]) -> Story:
    """The run's end, for the promises that the events alone can't show."""
    keys, links = QueueKeys(QUEUE), cluster.plan.links
    flat = cluster.redis.execute("HGETALL", keys.jobs)
    ids = [job_id.decode() for job_id in flat[::2]]
    counts = cluster.redis.execute("HGETALL", keys.usage)
    return Story(
        events=events,
        records=dict(zip(ids, map(_decode_record, flat[1::2]), strict=True)),
        streams={job_id: _stream(cluster, keys.stream(job_id)) for job_id in ids},
        testimony=cluster.beliefs.testimony,
        in_order=not (links.slow or links.duplicate),
        unique=_unique(cluster, keys),
        shares=cluster.plan.shares,
        asked=_asked(cluster.plan),
        usage=dict(zip((name.decode() for name in counts[::2]), map(int, counts[1::2]), strict=True)),
    )


def _unique(cluster: Cluster, keys: QueueKeys) -> dict[str, tuple[str, bool]]:
    """Who has each unique key, and whether only for a period after that job's end."""
    flat = [value.decode() for value in cluster.redis.execute("HGETALL", keys.unique)]
    held = {value.decode() for value in cluster.redis.execute("ZRANGE", keys.holds, 0, -1)}
    return {key: (holder, key in held) for key, holder in zip(flat[::2], flat[1::2], strict=True)}


def _asked(plan: FleetPlan) -> dict[str, Asked]:
    """Each job's place in line; nothing where deadlines, parents or schedules decide too who may be claimed."""
    if plan.schedules or any(job.expires_in_s or job.after for job in plan.jobs):
        return {}
    return {job.job_id: Asked(job.priority, job.vram_gb) for job in plan.jobs}


def _stream(cluster: Cluster, key: str) -> tuple[StreamEntry, ...]:
    entries = []
    for entry_id, flat in cluster.redis.execute("XRANGE", key, "-", "+"):
        texts = [value.decode() for value in flat]
        fields = dict(zip(texts[::2], texts[1::2], strict=True))
        at_ms = int(entry_id.partition(b"-")[0])
        entries.append(StreamEntry(at_ms, fields["kind"], int(fields["epoch"]), float(fields["value"])))
    return tuple(entries)


def _violations(report: AuditReport) -> list[str]:
    return [
        f"{violation.invariant.value}: {violation.job_id}: {violation.message}"
        for violation in report.violations
    ]


def _unknown(report: AuditReport) -> list[str]:
    """Acknowledged jobs that no event names, or that have no end."""
    return [found.job_id for found in report.violations if found.invariant is Invariant.NOTHING_LOST]


def _journals(cluster: Cluster) -> list[str]:
    """What the services saw: no request for another instance."""
    found = []
    for name, service in cluster.services.items():
        summary = service.service.journal.summary()
        if summary.misrouted:
            found.append(
                f"routed_correctly: {name} got {summary.misrouted} requests meant for another instance"
            )
    return found


def _describe(error: BaseException) -> str:
    leaf = error
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    trace = leaf.__traceback__
    where = ""
    while trace is not None:
        where = f"{trace.tb_frame.f_code.co_filename.rsplit('/', 2)[-1]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return f"{type(leaf).__name__}: {leaf} (at {where})"
