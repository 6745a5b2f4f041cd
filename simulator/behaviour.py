"""The simulated service as a pure state machine: its answers, and the faults of the answers.

The work itself (jobs, executions, slots, time) is in ``simulator.engine``. A shell asks
:meth:`SimulatedService.next_due_s` how long it may sleep, and :meth:`SimulatedService.drain_touched` whose
listeners to wake.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from gateway.connectors.simulation.wire import (
    JOB_ID_CHARS_MAX,
    CancelReply,
    ControlReply,
    ErrorKind,
    HealthReply,
    JournalEntry,
    JournalEvent,
    RunState,
    SubmitReply,
    SubmitRequest,
    WireFormatError,
    WorkPayload,
    decode_payload,
)
from simulator.cursor import EventCursor
from simulator.engine import Engine
from simulator.faults import FaultPlan
from simulator.journal import Journal
from simulator.model import (
    CHUNKS_MAX,
    DURATION_S_MAX,
    STEPS_MAX,
    Caller,
    Delivery,
    Execution,
    Job,
    Reply,
    ServiceConfig,
    refusal,
)

if TYPE_CHECKING:
    from random import Random

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})


class SimulatedService:
    """One instance of the simulated service.

    Args:
        config: name, capacity and defaults.
        plan: its faults at first.
        random_for: random stream by knob name.
        start_s: the moment it starts; schedules and journal count from there, in seconds.
        sink: called with each new journal entry.
    """

    def __init__(
        self,
        config: ServiceConfig,
        plan: FaultPlan,
        random_for: Callable[[str], Random],
        *,
        start_s: float = 0.0,
        sink: Callable[[JournalEntry], None] | None = None,
    ) -> None:
        self.config = config
        self._engine = Engine(config, plan, random_for, start_s=start_s, sink=sink)
        self._dice = self._engine.dice
        self._port: int | None = None
        self._hosts: frozenset[str] = frozenset()

    @property
    def faults(self) -> FaultPlan:
        """The faults of this moment."""
        return self._dice.plan

    @property
    def journal(self) -> Journal:
        """What was done so far."""
        return self._engine.journal

    @property
    def paused(self) -> bool:
        """Whether everything hangs; the shell must not answer then."""
        return self._engine.paused

    @property
    def restarts(self) -> int:
        """How often the service restarted."""
        return self._engine.restarts

    def elapsed_s(self, now_s: float) -> float:
        """Seconds since the service started."""
        return self._engine.elapsed_s(now_s)

    def advance(self, now_s: float) -> None:
        """Do everything that is due until ``now_s``."""
        self._engine.advance(now_s)

    def next_due_s(self) -> float | None:
        """When something happens next without anybody asking, or None."""
        return self._engine.next_due_s()

    def next_due_for(self, job: Job) -> float | None:
        """When a listener of this job should look again at the latest, or None; a wake-up may come before."""
        return self._engine.next_due_for(job)

    def next_restart_s(self) -> float | None:
        """When the next planned restart is, or None."""
        return self._engine.next_restart_s()

    def drain_touched(self) -> set[str]:
        """Ids of the jobs with news since the last call."""
        return self._engine.drain_touched()

    def listening_on(self, host: str, port: int) -> None:
        """Tell the service its own address, so that it recognises calls meant for another one."""
        self._port = port
        if host in LOOPBACK_NAMES:
            self._hosts = LOOPBACK_NAMES
        else:
            # Bound to every interface, any name may be a right one; only the port can tell.
            self._hosts = frozenset() if host in ("0.0.0.0", "::", "") else frozenset({host})

    def health(self, now_s: float, caller: Caller) -> Reply:
        """Answer ``GET /health``."""
        self.advance(now_s)
        self._note_route(now_s, caller, "")
        failing = self._dice.roll("health_failure_rate", self.elapsed_s(now_s))
        status = "failing" if failing else "ok"
        reply = HealthReply(status=status, instance=self.config.instance, models=self.config.models)
        return Reply(503 if failing else 200, reply)

    def greet(self, now_s: float, caller: Caller) -> Reply | None:
        """Answer a handshake, or a request that only a dialect has: a refusal, or None to go on."""
        self.advance(now_s)
        self._note_route(now_s, caller, "")
        return self._request_fault(now_s)

    def submit(
        self, now_s: float, request: SubmitRequest, caller: Caller, *, dedupe: bool | None = None
    ) -> Reply:
        """Answer ``POST /v1/jobs``; ``dedupe`` overrides the knob, for services that never do or always."""
        self.advance(now_s)
        self._note_route(now_s, caller, request.id)
        faulty = self._request_fault(now_s) or self._submit_fault(now_s)
        if faulty is not None:
            return faulty
        try:
            work = _checked_work(request)
        except WireFormatError as error:
            return refusal(ErrorKind.VALIDATION, error.detail)
        job = self._engine.jobs.get(request.id)
        repeat = job is not None and (not job.ended or job.state is RunState.COMPLETED)
        if job is not None and repeat and (self.faults.dedupe if dedupe is None else dedupe):
            self._engine.note(now_s, JournalEvent.DEDUPLICATED, job, caller)
            return self._submit_delivery(now_s, job, deduplicated=True)
        if self._engine.full:
            wait_s = self.faults.retry_after_s
            return refusal(ErrorKind.UNAVAILABLE, "the queue is full", retry_after_s=wait_s)
        job = self._engine.enqueue(now_s, request.id, work, caller)
        return self._submit_delivery(now_s, job, deduplicated=False)

    def status(self, now_s: float, job_id: str, caller: Caller) -> Reply:
        """Answer ``GET /v1/jobs/{id}``."""
        self.advance(now_s)
        self._note_route(now_s, caller, job_id)
        faulty = self._request_fault(now_s)
        if faulty is not None:
            return faulty
        job = self._engine.jobs.get(job_id)
        if job is None:
            return refusal(ErrorKind.NOT_FOUND, f"no job {job_id}")
        body = job.status(self.journal.executions(job_id), now_s)
        garbage = self._dice.roll("garbage_rate", self.elapsed_s(now_s))
        return Reply(200, body, Delivery.GARBAGE if garbage else Delivery.NORMAL)

    def job(self, job_id: str) -> Job | None:
        """A job as it is, for dialects that tell more of it than a status; None when it is not known."""
        return self._engine.jobs.get(job_id)

    def executions(self) -> tuple[list[Execution], list[Execution]]:
        """Executions in slots and in line, each in the order of their start or arrival."""
        return self._engine.live_executions()

    def stop(self, now_s: float, job: Job, caller: Caller) -> None:
        """Cancel a job that has not ended, unless cancels are ignored now."""
        if not self._dice.roll("cancel_ignored_rate", self.elapsed_s(now_s)):
            self._engine.stop(now_s, job, caller)

    def roll(self, now_s: float, knob: str) -> bool:
        """Whether a fault that only a dialect can show happens now."""
        return self._dice.roll(knob, self.elapsed_s(now_s))

    def cursor(self, now_s: float, job: Job, after: int) -> EventCursor:
        """The events of a job after a number, for dialects whose streams carry many jobs."""
        return EventCursor(job, after, self._dice, self.elapsed_s(now_s))

    def cancel(self, now_s: float, job_id: str, caller: Caller) -> Reply:
        """Answer ``DELETE /v1/jobs/{id}``."""
        self.advance(now_s)
        self._note_route(now_s, caller, job_id)
        faulty = self._request_fault(now_s)
        if faulty is not None:
            return faulty
        job = self._engine.jobs.get(job_id)
        if job is None:
            return refusal(ErrorKind.NOT_FOUND, f"no job {job_id}")
        if job.ended:
            return Reply(200, CancelReply(id=job_id, state=job.state))
        self.stop(now_s, job, caller)
        return Reply(200, CancelReply(id=job_id, state=RunState.CANCELLED))

    def listen(self, now_s: float, job_id: str, after: int, caller: Caller) -> EventCursor | Reply:
        """Answer ``GET /v1/jobs/{id}/events``: a cursor to pull from, or a refusal."""
        self.advance(now_s)
        self._note_route(now_s, caller, job_id)
        faulty = self._request_fault(now_s)
        if faulty is not None:
            return faulty
        job = self._engine.jobs.get(job_id)
        if job is None:
            return refusal(ErrorKind.NOT_FOUND, f"no job {job_id}")
        return EventCursor(job, after, self._dice, self.elapsed_s(now_s))

    def set_faults(self, now_s: float, values: Mapping[str, object]) -> FaultPlan:
        """Change some knobs from now on.

        Raises:
            FaultError: an unknown knob or bad value; nothing is changed then.
        """
        return self._engine.set_faults(now_s, values)

    def restart(self, now_s: float) -> ControlReply:
        """Forget all jobs, as a service without a disk does; the journal survives."""
        self.advance(now_s)
        return self._done("restart", self._engine.forget_all(now_s))

    def pause(self, now_s: float) -> ControlReply:
        """Hang: work stands still until :meth:`resume`; the shell must not answer meanwhile."""
        self._engine.pause(now_s)
        return self._done("pause", self._engine.running)

    def resume(self, now_s: float) -> ControlReply:
        """Go on where :meth:`pause` stopped; whatever was due is due so much later."""
        self._engine.resume(now_s)
        return self._done("resume", self._engine.running)

    def _done(self, what: str, jobs: int) -> ControlReply:
        return ControlReply(done=what, instance=self.config.instance, jobs=jobs)

    def _request_fault(self, now_s: float) -> Reply | None:
        """A fault that any request may meet before anything is done; all are drawn, the first wins."""
        elapsed_s, roll = self.elapsed_s(now_s), self._dice.roll
        hang, unavailable, broken = (
            roll(knob, elapsed_s) for knob in ("hang_rate", "unavailable_rate", "error_5xx_rate")
        )
        if hang:
            return refusal(ErrorKind.UNAVAILABLE, "hangs", delivery=Delivery.HANG)
        if unavailable:
            return refusal(
                ErrorKind.UNAVAILABLE, "simulated: unavailable", retry_after_s=self.faults.retry_after_s
            )
        return refusal(ErrorKind.SERVICE_ERROR, "simulated: internal error") if broken else None

    def _submit_fault(self, now_s: float) -> Reply | None:
        """A fault that only a submit may meet, before anything is accepted."""
        elapsed_s = self.elapsed_s(now_s)
        limited, refused = (
            self._dice.roll(knob, elapsed_s) for knob in ("rate_limit_rate", "error_4xx_rate")
        )
        if limited:
            wait_s = self.faults.retry_after_s
            return refusal(ErrorKind.RATE_LIMITED, "simulated: too many requests", retry_after_s=wait_s)
        return refusal(ErrorKind.VALIDATION, "simulated: bad request") if refused else None

    def _submit_delivery(self, now_s: float, job: Job, *, deduplicated: bool) -> Reply:
        """The answer to an accepted submit, with the faults that may happen to it."""
        elapsed_s, roll = self.elapsed_s(now_s), self._dice.roll
        lost, broken, garbage = (
            roll(knob, elapsed_s)
            for knob in ("submit_reply_lost_rate", "submit_500_after_accept_rate", "garbage_rate")
        )
        if broken and not lost:
            return refusal(ErrorKind.SERVICE_ERROR, "simulated: failed after accepting")
        body = SubmitReply(
            id=job.id, state=job.state, instance=self.config.instance, deduplicated=deduplicated
        )
        if lost:
            return Reply(202, body, Delivery.CUT)
        return Reply(202, body, Delivery.GARBAGE if garbage else Delivery.NORMAL)

    def _note_route(self, now_s: float, caller: Caller, job_id: str) -> None:
        """Journal a request that was meant for another instance; it is served all the same."""
        elsewhere = ""
        if caller.instance and caller.instance != self.config.instance:
            elsewhere = caller.instance
        elif caller.endpoint and self._port is not None:
            host, port = _address(caller.endpoint)
            if port != self._port or (self._hosts and host not in self._hosts):
                elsewhere = caller.endpoint
        if elsewhere:
            event = JournalEvent.MISROUTED
            self.journal.add(self.elapsed_s(now_s), event, job_id, caller, detail=elsewhere)


def _address(endpoint: str) -> tuple[str, int]:
    """Host and port of a base URL; port -1 when it cannot be read."""
    try:
        parts = urllib.parse.urlsplit(endpoint if "//" in endpoint else f"//{endpoint}")
        port = parts.port
    except ValueError:
        return "", -1
    return parts.hostname or "", (443 if parts.scheme == "https" else 80) if port is None else port


def _checked_work(request: SubmitRequest) -> WorkPayload:
    """The work a submit asks for, within bounds.

    Raises:
        WireFormatError: an id or payload out of bounds.
    """
    work = decode_payload(request.payload)
    name = SubmitRequest.__name__
    if not 0 < len(request.id) <= JOB_ID_CHARS_MAX:
        raise WireFormatError(
            name, f"id has {len(request.id)} characters, allowed are 1 to {JOB_ID_CHARS_MAX}"
        )
    if not 1 <= work.steps <= STEPS_MAX:
        raise WireFormatError(name, f"steps = {work.steps}, allowed is 1 to {STEPS_MAX}")
    if not 0 <= work.chunks <= CHUNKS_MAX:
        raise WireFormatError(name, f"chunks = {work.chunks}, allowed is 0 to {CHUNKS_MAX}")
    if work.duration_s is not None and not 0 <= work.duration_s <= DURATION_S_MAX:
        raise WireFormatError(name, f"duration_s = {work.duration_s}, allowed is 0 to {DURATION_S_MAX:g}")
    return work
