"""Runs the shipped scripts against the plain-Python model, step by step, with the auditor listening.

The scripts' one line that reads Redis time is swapped for a key that the test moves, so that the simulated and
the real Redis live under the same virtual clock.
"""

from __future__ import annotations

import enum
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha1
from typing import Any

import msgspec

from gateway.audit import Auditor
from gateway.events import decode_entry
from gateway.models import (
    ClaimReply,
    ClaimRequest,
    ClassId,
    Firing,
    JobId,
    JobState,
    LeaseRef,
    ProgressNote,
    Settlement,
    Submission,
    SubmitVerdict,
    SweepReport,
)
from gateway.schedules import PutStatus, Schedule, encode_schedule
from gateway.store import schedule_scripts, scripts
from gateway.store.calls import ScriptCall, StoreLimits
from gateway.store.keys import QueueKeys
from tests.store.contents import Mismatch, as_text, check_conservation, contents
from tests.store.model import StoreModel
from tests.store.model_snapshot import snapshot

REAL_TIME = "local time = redis.call('TIME')\n"
VIRTUAL_TIME = (
    "local clock = redis.call('GET', string.match(KEYS[1], '^.-}') .. ':clock'); "
    "local time = { string.sub(clock, 1, -7), string.sub(clock, -6) }\n"
)
START_US = 1_700_000_000_123_456
LEASE_S = 10.0
#: Small bounds, so that a short walk reaches every one of them.
LIMITS = StoreLimits(
    unfinished_max=7,
    classes_max=3,
    retention_s=60.0,
    dead_retention_s=120.0,
    yields_max=2,
    recoveries_max=1,
    sweep_max=3,
    children_max=2,
    told_max=2,
    schedules_max=1,
)
_queues = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Mutation:
    """A deliberate fault: a piece of one script replaced by another. The piece must be there."""

    script: str
    old: str
    new: str

    def apply(self, source: str) -> str:
        if source.count(self.old) != 1:
            raise LookupError(f"{self.script}.lua has {source.count(self.old)} times: {self.old}")
        return source.replace(self.old, self.new)


class Backend:
    """One Redis, real or not, that runs the scripts under the virtual clock."""

    def __init__(self, client: Any, mutations: Sequence[Mutation] = ()) -> None:
        self.client = client
        self._mutations = mutations
        self._shas: dict[str, str] = {}

    def run(self, call: ScriptCall) -> Any:
        name = call.script.name
        if name not in self._shas:
            source = call.script.source
            if source.count(REAL_TIME) != 1:
                raise LookupError("the prelude reads the time in another way")
            source = source.replace(REAL_TIME, VIRTUAL_TIME)
            for mutation in self._mutations:
                if mutation.script == name:
                    source = mutation.apply(source)
            self._shas[name] = sha1(source.encode(), usedforsecurity=False).hexdigest()
            self.client.execute_command("SCRIPT LOAD", source)
        return self.client.execute_command(
            "EVALSHA", self._shas[name], len(call.keys), *call.keys, *call.args
        )

    def set_clock(self, keys: QueueKeys, now_us: int) -> None:
        self.client.set(f"tg:{{{keys.queue}}}:clock", now_us)

    def delete(self, keys: QueueKeys) -> None:
        found = list(self.client.scan_iter(f"tg:{{{keys.queue}}}:*", count=10_000))
        if found:
            self.client.delete(*found)


def outcomes(operation: str, got: Any) -> list[str]:
    """Names of the answers in one reply."""
    if isinstance(got, SweepReport):
        return [f"sweep {name}" for name in got.__struct_fields__ if getattr(got, name)]
    if isinstance(got, bool):
        return [f"{operation} {got}".lower()]
    if isinstance(got, enum.Enum):
        return [f"{operation} {got.value}"]
    found = []
    for item in got:
        if isinstance(item, SubmitVerdict):
            found.append(f"submit {item.status.value}")
        elif isinstance(item, ClaimReply):
            found.append(f"claim {'paused' if item.paused else 'granted' if item.grants else 'nothing'}")
        elif operation == "limit":
            found.append(f"limit {'set' if item[0] else 'kept'}")
        elif isinstance(item, tuple):
            verdict, state = item
            found.append(f"settle {verdict.value} {state.value if state else 'unknown'}")
        else:
            found.append(f"{operation} {item.value}")
    return found


class Bench:
    """A queue on one or two backends, its model and its auditor; each operation is judged before it returns.

    Args:
        backends: every call runs on each of them, and their replies must be identical.
        watch_every: steps between two comparisons of the whole contents and events; replies are always compared.
        model_judges: when false, the auditor is the only judge.
    """

    def __init__(self, *backends: Backend, watch_every: int = 1, model_judges: bool = True) -> None:
        self.backends = backends
        self.keys = QueueKeys(f"bench{next(_queues)}")
        self.model = StoreModel(LIMITS, LEASE_S, START_US)
        self.auditor = Auditor(retention_s=min(LIMITS.retention_s, LIMITS.dead_retention_s))
        #: Every call so far with what must be repeated on the model.
        self.history: list[tuple[ScriptCall, Callable[[], Any], Callable[[Any], Any]]] = []
        #: Every lease ever granted, dead ones too.
        self.leases: list[tuple[LeaseRef, ClassId, str]] = []
        self.job_ids: dict[JobId, ClassId] = {}
        #: How often each kind of answer was given, to show that a walk reaches it.
        self.seen: Counter[str] = Counter()
        self._events_at = "-"
        self._watch_every = watch_every
        self._steps = 0
        self._model_judges = model_judges
        self.advance(0)

    def advance(self, us: int) -> None:
        self.model.now_us += us
        for backend in self.backends:
            backend.set_clock(self.keys, self.model.now_us)

    def close(self) -> None:
        for backend in self.backends:
            backend.delete(self.keys)

    def _do(self, call: ScriptCall, model: Callable[[], Any], read: Callable[[Any], Any]) -> Any:
        raws = [backend.run(call) for backend in self.backends]
        if any(raw != raws[0] for raw in raws):
            raise Mismatch(f"{call.script.name}{call.args}: replies differ between backends: {raws}")
        got, expected = read(raws[0]), model()
        if self._model_judges and got != expected:
            raise Mismatch(f"{call.script.name}{call.args}: store answers {got}, model {expected}")
        self._steps += 1
        self.seen.update(outcomes(call.script.name, got))
        if self._steps % self._watch_every == 0:
            self.check()
        return got

    def _record(self, call: ScriptCall, model: Callable[[], Any], read: Callable[[Any], Any]) -> Any:
        self.history.append((call, model, read))
        return self._do(call, model, read)

    def replay(self, index: int) -> None:
        """Repeat an earlier request, byte for byte, as a network may."""
        self._do(*self.history[index % len(self.history)])

    def submit(self, items: Sequence[Submission]) -> None:
        call = scripts.submit_call(self.keys, LIMITS, items)
        self._record(call, lambda: self.model.submit(items), scripts.submit_reply)
        self.job_ids |= {job_id: job.class_id for job_id, job in self.model.jobs.items()}

    def claim(self, requests: Sequence[ClaimRequest]) -> None:
        call = scripts.claim_call(self.keys, LIMITS, LEASE_S, "i", requests)
        replies = self._record(
            call, lambda: self.model.claim(requests), lambda raw: scripts.claim_reply(raw, len(requests))
        )
        for request, reply in zip(requests, replies, strict=True):
            for grant in reply.grants:
                lease = LeaseRef(grant.job_id, grant.epoch)
                if lease not in [known for known, _, _ in self.leases]:
                    self.leases.append((lease, grant.class_id, request.worker_id))

    def renew(self, leases: Sequence[LeaseRef]) -> None:
        call = scripts.renew_call(self.keys, LEASE_S, leases)
        self._record(call, lambda: self.model.renew(leases), scripts.renew_reply)

    def attach(self, references: Sequence[tuple[LeaseRef, str]]) -> None:
        call = scripts.attach_call(self.keys, references)
        self._record(call, lambda: self.model.attach(references), scripts.verdicts_reply)

    def progress(self, notes: Sequence[ProgressNote]) -> None:
        call = scripts.progress_call(self.keys, LIMITS, notes)
        self._record(call, lambda: self.model.progress(notes), scripts.verdicts_reply)

    def settle(self, items: Sequence[Settlement]) -> None:
        call = scripts.settle_call(self.keys, LIMITS, items)
        self._record(call, lambda: self.model.settle(items), scripts.settle_reply)

    def sweep(self, class_ids: Sequence[str]) -> None:
        call = scripts.sweep_call(self.keys, LIMITS, class_ids)
        self._record(call, lambda: self.model.sweep(class_ids), scripts.sweep_reply)

    def cancel(self, job_ids: Sequence[JobId]) -> None:
        jobs = [(job_id, self.job_ids.get(job_id, ClassId("none"))) for job_id in job_ids]
        call = scripts.cancel_call(self.keys, LIMITS, jobs)
        self._record(call, lambda: self.model.cancel(jobs), scripts.cancel_reply)

    def requeue(self, job_ids: Sequence[JobId]) -> None:
        jobs = [(job_id, self.job_ids.get(job_id, ClassId("none"))) for job_id in job_ids]
        call = scripts.requeue_call(self.keys, LIMITS, jobs)
        self._record(call, lambda: self.model.requeue(jobs), scripts.requeue_reply)

    def pause(self) -> None:
        self._record(scripts.pause_call(self.keys), self.model.pause, bool)

    def resume(self) -> None:
        self._record(scripts.resume_call(self.keys), self.model.resume, bool)

    def limit(self, limits: Sequence[tuple[str, str]], *, only_new: bool) -> None:
        call = scripts.limit_call(self.keys, limits, only_new=only_new)
        self._record(call, lambda: self.model.shares.define(limits, only_new=only_new), scripts.limit_reply)

    # Schedules

    def put_schedule(self, schedule: Schedule, due_in_s: float, *, replace: bool) -> None:
        """Each definition has a revision of its own; a replay has the same."""
        revision, next_ms = f"r{len(self.history)}", self.model.now_ms + round(due_in_s * 1000)
        call = schedule_scripts.put_call(
            self.keys, LIMITS, schedule, revision=revision, next_ms=next_ms, replace=replace
        )
        definition = encode_schedule(schedule).decode()

        def model() -> PutStatus:
            name = schedule.name
            return self.model.schedules.put(name, revision, definition, next_ms, replace=replace)

        self._record(call, model, schedule_scripts.put_reply)

    def remove_schedules(self, names: Sequence[str]) -> None:
        call = schedule_scripts.remove_call(self.keys, names)
        self._record(call, lambda: self.model.schedules.remove(names), schedule_scripts.remove_reply)

    def pause_schedules(self, names: Sequence[str]) -> None:
        call = schedule_scripts.pause_call(self.keys, names)
        self._record(call, lambda: self.model.schedules.pause(names), schedule_scripts.pause_reply)

    def resume_schedules(self, names: Sequence[str], due_in_s: float, *, stale: bool) -> None:
        next_ms = self.model.now_ms + round(due_in_s * 1000)
        wishes = [(name, "old" if stale else self._revision(name), next_ms) for name in names]
        call = schedule_scripts.resume_call(self.keys, wishes)
        self._record(call, lambda: self.model.schedules.resume(wishes), schedule_scripts.resume_reply)

    def skip_instant(self, name: str, next_in_s: float) -> None:
        firing = self._firing(name, next_in_s, stale=False)
        call = schedule_scripts.skip_call(self.keys, firing)
        self._record(
            call, lambda: self.model.schedules.skip(firing, self.model.now_ms), schedule_scripts.skip_reply
        )

    def fire(self, name: str, item: Submission, next_in_s: float, *, stale: bool) -> None:
        """Fire the instant at which the schedule is due, or one that is not its own any more."""
        self.submit([msgspec.structs.replace(item, firing=self._firing(name, next_in_s, stale=stale))])

    def _revision(self, name: str) -> str:
        found = self.model.schedules.by_name.get(name)
        return found.revision if found else "none"

    def _firing(self, name: str, next_in_s: float, *, stale: bool) -> Firing:
        found = self.model.schedules.by_name.get(name)
        instant_ms = (found.due_ms if found else None) or self.model.now_ms
        next_ms = self.model.now_ms + round(next_in_s * 1000)
        return Firing(name, self._revision(name), instant_ms - stale, next_ms)

    def forget_claims(self) -> None:
        """What the expiry of the claim memories does, without waiting for it."""
        for worker_id in self.model.memories:
            for backend in self.backends:
                backend.client.delete(self.keys.claim_memory(f"{worker_id}:i"))
        self.model.memories.clear()

    def look(self) -> None:
        """The reading operations agree with the model too."""
        job_ids = [*self.job_ids, "never"]
        call = scripts.inspect_call(self.keys, job_ids)
        views = scripts.inspect_reply(self.backends[0].run(call), job_ids)
        for job_id, view in zip(job_ids, views, strict=True):
            job = self.model.jobs.get(JobId(job_id))
            seen = view and (
                view.state,
                view.epoch,
                view.attempts,
                view.lease_until_ms,
                view.due_ms,
                view.spec,
            )
            known = job and (job.state, job.epoch, job.attempts, job.lease_until_ms, job.due_ms, job.spec)
            if seen != known:
                raise Mismatch(f"inspect {job_id}: store shows {seen}, model {known}")
        class_ids = list(self.model.classes)
        stats = scripts.stats_reply(self.backends[0].run(scripts.stats_call(self.keys, class_ids)), class_ids)
        states = [job.state for job in self.model.jobs.values() if not job.set_aside]
        counted = (
            *(stats.pending_total, stats.scheduled, stats.waiting, stats.running, stats.dead),
            *(stats.jobs, stats.paused),
        )
        counted_states = (
            *(JobState.PENDING, JobState.SCHEDULED, JobState.WAITING, JobState.RUNNING, JobState.DEAD),
        )
        wanted = (
            *map(states.count, counted_states),
            len(self.model.jobs),
            self.model.paused,
        )
        if counted != wanted:
            raise Mismatch(f"stats: store counts {counted}, model {wanted}")
        self._look_at_schedules()

    def _look_at_schedules(self) -> None:
        known = {
            name: (one.definition, one.revision, one.due_ms, one.last_ms or None, one.last_job)
            for name, one in self.model.schedules.by_name.items()
        }
        now_ms = self.model.now_ms
        due = {name for name, one in known.items() if one[2] is not None and one[2] <= now_ms}
        listed = schedule_scripts.list_reply(self.backends[0].run(schedule_scripts.list_call(self.keys)))
        shown = {
            one.schedule.name: (
                encode_schedule(one.schedule).decode(),
                one.revision,
                one.due_ms,
                one.last_ms,
                one.last_job_id,
            )
            for one in listed.schedules
        }
        found = schedule_scripts.due_reply(self.backends[0].run(schedule_scripts.due_call(self.keys)))
        if shown != known or {one.view.schedule.name for one in found} != due:
            raise Mismatch(f"schedules: store shows {shown}, due {found}; model {known}, due {due}")

    def check(self) -> None:
        """Contents equal the model's, each job is in one place, and the events tell the same story."""
        self._listen()
        if not self._model_judges:
            return
        held = [
            contents(backend.client, self.keys, list(self.model.classes), list(self.model.streams))
            for backend in self.backends
        ]
        wanted = snapshot(self.model)
        for one in held:
            for part, expected in wanted.items():
                if one[part] != expected:
                    raise Mismatch(f"{part}: store holds {one[part]}, model {expected}")
        check_conservation(held[0], self.model.now_ms)
        for job_id, job in self.model.jobs.items():
            told = self.auditor.state_of(job_id)
            if told is not job.state:
                raise Mismatch(f"job {job_id}: the events end in {told}, the record in {job.state}")

    def _listen(self) -> None:
        client = self.backends[0].client
        for entry_id, fields in client.xrange(self.keys.events, min=self._events_at):
            self.auditor.feed(decode_entry(as_text(entry_id), fields[b"at"], fields[b"e"]))
            self._events_at = f"({as_text(entry_id)}"
        report = self.auditor.report()
        if not report.ok:
            raise Mismatch(f"the auditor objects: {report.violations}")
