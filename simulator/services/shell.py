"""What the shells of all dialects share around ``simulator.behaviour``: waiting, waking, hanging, pausing, control.

A shell speaks one protocol; this module knows none. It owns the events by which tasks of one instance wait for each
other, and answers the journal and control verbs, which every dialect offers over HTTP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from random import Random
from typing import Any

import trio

from gateway.connectors.simulation import wire
from gateway.headers import HEADER_EPOCH, HEADER_EXPECTED_ENDPOINT, HEADER_EXPECTED_INSTANCE, HEADER_WORKER
from protocols.http_responder import Responder, ServerRequest
from protocols.http_server import ServerLimits
from simulator.behaviour import SimulatedService
from simulator.cursor import GARBAGE
from simulator.faults import FaultError, FaultPlan
from simulator.journal import PAGE_ENTRIES_DEFAULT, PAGE_ENTRIES_MAX
from simulator.model import Caller, Delivery, Job, Reply, ServiceConfig, refusal

#: With a journal sink, work that nobody asks about is written down this late at most, in seconds.
TICK_S = 0.2
#: Longest whole number read from a query.
NUMBER_DIGITS_MAX = 15
#: A listener is a connection: room for as many as a fleet keeps open, and a bound on payloads.
SERVER_LIMITS = ServerLimits(connections_max=4_096, body_bytes_max=16 * 1024 * 1024)


class ServiceShell:
    """One simulated instance without its protocol. Create it inside trio: its schedules count from there.

    Args:
        config: name, capacity and defaults.
        plan: its faults at first; ``PUT /control/faults`` changes them.
        random_for: random stream by knob name, see ``simulator.seeding.streams``.
        sink: called with each new journal entry.
    """

    def __init__(
        self,
        config: ServiceConfig,
        plan: FaultPlan,
        *,
        random_for: Callable[[str], Random],
        sink: Callable[[wire.JournalEntry], None] | None = None,
    ) -> None:
        self.service = SimulatedService(config, plan, random_for, start_s=trio.current_time(), sink=sink)
        #: Headers of every answer over HTTP.
        self.instance_header = {wire.HEADER_INSTANCE: config.instance}
        #: Whether somebody reads the journal as it grows, so that :meth:`tick` should run.
        self.ticking = sink is not None
        self._resumed = trio.Event()
        self._resumed.set()
        self._restarted = trio.Event()
        self._restarts_seen = 0
        self._listeners: dict[str, set[trio.Event]] = {}

    async def tick(self) -> None:
        """Write down work that nobody asks about; runs until cancelled."""
        while True:
            await trio.sleep(TICK_S)
            self.service.advance(trio.current_time())
            self.wake()

    async def not_paused(self) -> None:
        """Wait while the service hangs."""
        while not self._resumed.is_set():
            await self._resumed.wait()

    async def until_restart(self) -> None:
        """Say nothing until the peer leaves (which cancels this) or a restart takes the connection down."""
        restarts = self.service.restarts
        while self.service.restarts == restarts:
            restart_s = self.service.next_restart_s()
            with trio.move_on_at(math.inf if restart_s is None else restart_s) as scope:
                await self._restarted.wait()
            if scope.cancelled_caught and restart_s is not None:
                await self.not_paused()
                self.service.advance(max(restart_s, trio.current_time()))
                self.wake()

    async def news_of(self, job: Job) -> None:
        """Wait until something may have happened to a job, and make it happen when it is due."""
        news = trio.Event()
        listeners = self._listeners.setdefault(job.id, set())
        listeners.add(news)
        due_s = self.service.next_due_for(job)
        try:
            with trio.move_on_at(math.inf if due_s is None else due_s) as scope:
                await news.wait()
        finally:
            listeners.discard(news)
            if not listeners and self._listeners.get(job.id) is listeners:
                del self._listeners[job.id]
        if scope.cancelled_caught and due_s is not None:
            # Not the clock's time: a virtual clock may stop a rounding error short of the moment, for ever.
            self.service.advance(max(due_s, trio.current_time()))
            self.wake()

    def wake(self) -> None:
        """Wake the listeners of all jobs with news, and whatever hangs after a restart."""
        if self.service.restarts != self._restarts_seen:
            self._restarts_seen = self.service.restarts
            self._restarted.set()
            self._restarted = trio.Event()
        for job_id in self.service.drain_touched():
            for news in self._listeners.get(job_id, ()):
                news.set()

    def control(self, request: ServerRequest) -> Reply | dict[str, Any] | None:
        """Answer journal and control verbs; None for every other path.

        No faults and no pause apply here, so that a test always sees and steers.
        """
        if not request.path.startswith(("/control/", wire.JOURNAL_PATH)):
            return None
        service, now_s, what = self.service, trio.current_time(), (request.method, request.path)
        service.advance(now_s)
        answer: Reply | dict[str, Any] = refusal(wire.ErrorKind.NOT_FOUND, f"nothing at {what[0]} {what[1]}")
        if what == ("GET", wire.JOURNAL_PATH):
            after = whole_number(request, "after", 0)
            limit = whole_number(request, "limit", PAGE_ENTRIES_DEFAULT)
            if after is None or limit is None or limit > PAGE_ENTRIES_MAX:
                wanted = f"after is a whole number from 0, limit up to {PAGE_ENTRIES_MAX}"
                answer = refusal(wire.ErrorKind.VALIDATION, wanted)
            else:
                answer = Reply(200, service.journal.page(after, limit))
        elif what == ("GET", wire.JOURNAL_SUMMARY_PATH):
            answer = Reply(200, service.journal.summary())
        elif what == ("GET", wire.CONTROL_FAULTS_PATH):
            answer = service.faults.to_mapping()
        elif what == ("PUT", wire.CONTROL_FAULTS_PATH):
            answer = self._set_faults(request.body)
        elif what == ("POST", wire.CONTROL_RESTART_PATH):
            answer = Reply(200, self.restart())
        elif what == ("POST", wire.CONTROL_PAUSE_PATH):
            answer = Reply(200, self.pause())
        elif what == ("POST", wire.CONTROL_RESUME_PATH):
            answer = Reply(200, self.resume())
        self.wake()
        return answer

    def restart(self) -> wire.ControlReply:
        """Forget all jobs and take hanging connections down; the journal survives."""
        done = self.service.restart(trio.current_time())
        self.wake()
        return done

    def pause(self) -> wire.ControlReply:
        """Hang: no answer and no work until :meth:`resume`."""
        done = self.service.pause(trio.current_time())
        if self._resumed.is_set():
            self._resumed = trio.Event()
        self.wake()
        return done

    def resume(self) -> wire.ControlReply:
        """Go on where :meth:`pause` stopped."""
        done = self.service.resume(trio.current_time())
        self._resumed.set()
        self.wake()
        return done

    def set_faults(self, values: Mapping[str, object]) -> FaultPlan:
        """Change some knobs from now on.

        Raises:
            FaultError: an unknown knob or bad value; nothing is changed then.
        """
        plan = self.service.set_faults(trio.current_time(), values)
        self.wake()
        return plan

    def _set_faults(self, body: bytes) -> Reply | dict[str, Any]:
        try:
            values = wire.decode(body, dict[str, Any])
            return self.set_faults(values).to_mapping()
        except wire.WireFormatError as error:
            return refusal(wire.ErrorKind.VALIDATION, f"the body is an object of knobs: {error.detail}")
        except FaultError as error:
            return refusal(wire.ErrorKind.VALIDATION, str(error))

    async def send(self, reply: Reply | dict[str, Any], responder: Responder) -> None:
        """Send one answer in the simulation's own words, the way it is to be delivered."""
        if isinstance(reply, dict):
            await responder.send_json(200, reply, headers=self.instance_header)
            return
        if reply.delivery is Delivery.HANG:
            await self.until_restart()
        if reply.delivery in (Delivery.HANG, Delivery.CUT):
            await responder.abort()
            return
        headers = dict(self.instance_header)
        if reply.retry_after_s is not None:
            # The header knows whole seconds only; the exact wish is in the body.
            headers["retry-after"] = str(math.ceil(reply.retry_after_s))
        body = GARBAGE if reply.delivery is Delivery.GARBAGE else wire.encode(reply.body)
        await responder.send_bytes(reply.status, body, wire.JSON_TYPE, headers)


def caller_of(headers: Mapping[str, str]) -> Caller:
    """Who asks, by the headers (or metadata) of the contract, names in lower case."""
    return Caller(
        worker=headers.get(HEADER_WORKER, ""),
        epoch=headers.get(HEADER_EPOCH, ""),
        traceparent=headers.get(wire.HEADER_TRACEPARENT, ""),
        instance=headers.get(HEADER_EXPECTED_INSTANCE, ""),
        endpoint=headers.get(HEADER_EXPECTED_ENDPOINT, ""),
    )


def whole_number(request: ServerRequest, name: str, default: int) -> int | None:
    """A whole number from 0 in the query; None when it is something else."""
    text = request.query_values().get(name)
    if text is None:
        return default
    return int(text) if text.isascii() and text.isdigit() and len(text) <= NUMBER_DIGITS_MAX else None
