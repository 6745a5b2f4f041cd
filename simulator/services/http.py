"""The simulated service over HTTP: a thin shell around ``simulator.behaviour``, on any trio stream."""

from __future__ import annotations

import functools
import math
import urllib.parse
from collections.abc import Callable
from random import Random
from typing import Any

import trio

from gateway.connectors.simulation import wire
from gateway.headers import HEADER_EPOCH, HEADER_EXPECTED_ENDPOINT, HEADER_EXPECTED_INSTANCE, HEADER_WORKER
from protocols.http_responder import Responder, ServerRequest
from protocols.http_server import ServerHandle, ServerLimits, serve_http, serve_stream
from simulator.behaviour import SimulatedService
from simulator.cursor import GARBAGE, EventCursor, StreamAct
from simulator.faults import FaultError, FaultPlan
from simulator.journal import PAGE_ENTRIES_DEFAULT, PAGE_ENTRIES_MAX
from simulator.model import Caller, Delivery, Job, Reply, ServiceConfig, refusal

#: With a journal sink, work that nobody asks about is written down this late at most, in seconds.
TICK_S = 0.2
#: Longest whole number read from a query.
NUMBER_DIGITS_MAX = 15
#: A listener is a connection: room for as many as a fleet keeps open, and a bound on payloads.
LIMITS = ServerLimits(connections_max=4_096, body_bytes_max=16 * 1024 * 1024)


class SimulationHTTPService:
    """One simulated instance that speaks the contract of ``gateway.connectors.simulation.wire``.

    Create it inside trio: it starts counting its schedules at once.

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
        self._service = SimulatedService(config, plan, random_for, start_s=trio.current_time(), sink=sink)
        self._instance_header = {wire.HEADER_INSTANCE: config.instance}
        self._ticking = sink is not None
        self._resumed = trio.Event()
        self._resumed.set()
        self._restarted = trio.Event()
        self._restarts_seen = 0
        self._listeners: dict[str, set[trio.Event]] = {}

    @property
    def service(self) -> SimulatedService:
        """The behaviour behind the wire, for tests that share a process with it."""
        return self._service

    async def run(
        self, *, host: str, port: int, task_status: trio.TaskStatus[ServerHandle] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve on a TCP port until cancelled; starts with the server's handle (its port and URL).

        Args:
            host: address to listen on.
            port: port, or 0 for a free one.

        Raises:
            OSError: the port is taken, or the address is not ours.
        """
        async with trio.open_nursery() as nursery:
            listen = functools.partial(serve_http, self._handle, host=host, port=port, limits=LIMITS)
            handle: ServerHandle = await nursery.start(listen)
            self._service.listening_on(host, handle.port)
            if self._ticking:
                nursery.start_soon(self._tick)
            task_status.started(handle)

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        """Serve one connection until it ends; closes the stream."""
        await serve_stream(self._handle, stream, limits=LIMITS)

    async def _tick(self) -> None:
        while True:
            await trio.sleep(TICK_S)
            self._service.advance(trio.current_time())
            self._wake()

    async def _handle(self, request: ServerRequest, responder: Responder) -> None:
        """Answer one request; whatever the path, the answer names this instance."""
        path = request.path
        if path.startswith(("/control/", wire.JOURNAL_PATH)):
            await self._send(self._control(request, path), responder)
            return
        await self._not_paused()
        outcome = self._dispatch(request, path)
        self._wake()
        if isinstance(outcome, EventCursor):
            await self._stream(outcome, responder)
        else:
            await self._send(outcome, responder)

    def _dispatch(self, request: ServerRequest, path: str) -> Reply | EventCursor:
        """Route a request of the service itself; faults apply."""
        now_s, caller, method = trio.current_time(), _caller(request), request.method
        if path == wire.HEALTH_PATH and method == "GET":
            return self._service.health(now_s, caller)
        if path == wire.JOBS_PATH and method == "POST":
            try:
                return self._service.submit(now_s, wire.decode(request.body, wire.SubmitRequest), caller)
            except wire.WireFormatError as error:
                return refusal(wire.ErrorKind.VALIDATION, error.detail)
        job_id, _, tail = path.removeprefix(f"{wire.JOBS_PATH}/").partition("/")
        job_id = urllib.parse.unquote(job_id)
        if path.startswith(f"{wire.JOBS_PATH}/") and job_id:
            if not tail and method == "GET":
                return self._service.status(now_s, job_id, caller)
            if not tail and method == "DELETE":
                return self._service.cancel(now_s, job_id, caller)
            if tail == "events" and method == "GET":
                after = _number(request, "after", 0)
                if after is not None:
                    return self._service.listen(now_s, job_id, after, caller)
                return refusal(wire.ErrorKind.VALIDATION, "after is a whole number from 0")
        return refusal(wire.ErrorKind.NOT_FOUND, f"nothing at {method} {path}")

    def _control(self, request: ServerRequest, path: str) -> Reply | dict[str, Any]:
        """Journal and control: no faults and no pause, so that a test always sees and steers."""
        service, now_s, what = self._service, trio.current_time(), (request.method, path)
        service.advance(now_s)
        answer: Reply | dict[str, Any] = refusal(wire.ErrorKind.NOT_FOUND, f"nothing at {what[0]} {path}")
        if what == ("GET", wire.JOURNAL_PATH):
            after, limit = _number(request, "after", 0), _number(request, "limit", PAGE_ENTRIES_DEFAULT)
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
            answer = Reply(200, service.restart(now_s))
        elif what == ("POST", wire.CONTROL_PAUSE_PATH):
            answer = Reply(200, service.pause(now_s))
            if self._resumed.is_set():
                self._resumed = trio.Event()
        elif what == ("POST", wire.CONTROL_RESUME_PATH):
            answer = Reply(200, service.resume(now_s))
            self._resumed.set()
        self._wake()
        return answer

    def _set_faults(self, body: bytes) -> Reply | dict[str, Any]:
        try:
            values = wire.decode(body, dict[str, Any])
            return self._service.set_faults(trio.current_time(), values).to_mapping()
        except wire.WireFormatError as error:
            return refusal(wire.ErrorKind.VALIDATION, f"the body is an object of knobs: {error.detail}")
        except FaultError as error:
            return refusal(wire.ErrorKind.VALIDATION, str(error))

    async def _send(self, reply: Reply | dict[str, Any], responder: Responder) -> None:
        """Send one answer the way it is to be delivered."""
        if isinstance(reply, dict):
            await responder.send_json(200, reply, headers=self._instance_header)
            return
        if reply.delivery is Delivery.HANG:
            await self._hang(responder)
            return
        if reply.delivery is Delivery.CUT:
            await responder.abort()
            return
        headers = dict(self._instance_header)
        if reply.retry_after_s is not None:
            # The header knows whole seconds only; the exact wish is in the body.
            headers["retry-after"] = str(math.ceil(reply.retry_after_s))
        body = GARBAGE if reply.delivery is Delivery.GARBAGE else wire.encode(reply.body)
        await responder.send_bytes(reply.status, body, wire.JSON_TYPE, headers)

    async def _stream(self, cursor: EventCursor, responder: Responder) -> None:
        """Send a job's events as they happen, until the stream ends the way its cursor says."""
        async with responder.stream(200, wire.EVENTS_TYPE, self._instance_header) as stream:
            while True:
                await self._not_paused()
                steps = cursor.pull(self._service.elapsed_s(trio.current_time()))
                for step in steps:
                    if step.act is StreamAct.LINE:
                        await stream.send(step.data)
                    elif step.act is StreamAct.CUT:
                        await responder.abort()
                        return
                    elif step.act is StreamAct.SILENCE:
                        await self._hang(responder)
                        return
                    else:
                        return
                if not steps:
                    await self._news_of(cursor.job)

    async def _hang(self, responder: Responder) -> None:
        """Say nothing until the peer leaves (which cancels this) or a restart takes the connection down."""
        restarts = self._service.restarts
        while self._service.restarts == restarts:
            restart_s = self._service.next_restart_s()
            with trio.move_on_at(math.inf if restart_s is None else restart_s) as scope:
                await self._restarted.wait()
            if scope.cancelled_caught and restart_s is not None:
                await self._not_paused()
                self._service.advance(max(restart_s, trio.current_time()))
                self._wake()
        await responder.abort()

    async def _not_paused(self) -> None:
        while not self._resumed.is_set():
            await self._resumed.wait()

    async def _news_of(self, job: Job) -> None:
        """Wait until something may have happened to a job, and make it happen when it is due."""
        news = trio.Event()
        listeners = self._listeners.setdefault(job.id, set())
        listeners.add(news)
        due_s = self._service.next_due_for(job)
        try:
            with trio.move_on_at(math.inf if due_s is None else due_s) as scope:
                await news.wait()
        finally:
            listeners.discard(news)
            if not listeners and self._listeners.get(job.id) is listeners:
                del self._listeners[job.id]
        if scope.cancelled_caught and due_s is not None:
            # Not the clock's time: a virtual clock may stop a rounding error short of the moment, for ever.
            self._service.advance(max(due_s, trio.current_time()))
            self._wake()

    def _wake(self) -> None:
        """Wake the listeners of all jobs with news, and whatever hangs after a restart."""
        if self._service.restarts != self._restarts_seen:
            self._restarts_seen = self._service.restarts
            self._restarted.set()
            self._restarted = trio.Event()
        for job_id in self._service.drain_touched():
            for news in self._listeners.get(job_id, ()):
                news.set()


def _caller(request: ServerRequest) -> Caller:
    """Who asks, by the headers of the contract."""
    headers = request.headers
    return Caller(
        worker=headers.get(HEADER_WORKER, ""),
        epoch=headers.get(HEADER_EPOCH, ""),
        traceparent=headers.get(wire.HEADER_TRACEPARENT, ""),
        instance=headers.get(HEADER_EXPECTED_INSTANCE, ""),
        endpoint=headers.get(HEADER_EXPECTED_ENDPOINT, ""),
    )


def _number(request: ServerRequest, name: str, default: int) -> int | None:
    """A whole number from 0 in the query; None when it is something else."""
    text = request.query_values().get(name)
    if text is None:
        return default
    return int(text) if text.isascii() and text.isdigit() and len(text) <= NUMBER_DIGITS_MAX else None
