"""The simulated service over HTTP: a thin shell around ``simulator.behaviour``, on any trio stream."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from random import Random

import trio

from gateway.connectors.simulation import wire
from protocols.http_responder import Responder, ServerRequest
from simulator.cursor import EventCursor, StreamAct
from simulator.faults import FaultPlan
from simulator.model import Reply, ServiceConfig, refusal
from simulator.services.served import HTTPServed
from simulator.services.shell import ServiceShell, caller_of, whole_number


class SimulationHTTPService(HTTPServed[ServiceShell]):
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
        self.shell = ServiceShell(config, plan, random_for=random_for, sink=sink)

    async def answer(self, request: ServerRequest, responder: Responder) -> None:
        """Answer one request; whatever the path, the answer names this instance."""
        outcome = self._dispatch(request, request.path)
        self.shell.wake()
        if isinstance(outcome, EventCursor):
            await self._stream(outcome, responder)
        else:
            await self.shell.send(outcome, responder)

    def _dispatch(self, request: ServerRequest, path: str) -> Reply | EventCursor:
        """Route a request of the service itself; faults apply."""
        now_s, caller, method = trio.current_time(), caller_of(request.headers), request.method
        if path == wire.HEALTH_PATH and method == "GET":
            return self.service.health(now_s, caller)
        if path == wire.JOBS_PATH and method == "POST":
            try:
                return self.service.submit(now_s, wire.decode(request.body, wire.SubmitRequest), caller)
            except wire.WireFormatError as error:
                return refusal(wire.ErrorKind.VALIDATION, error.detail)
        job_id, _, tail = path.removeprefix(f"{wire.JOBS_PATH}/").partition("/")
        job_id = urllib.parse.unquote(job_id)
        if path.startswith(f"{wire.JOBS_PATH}/") and job_id:
            if not tail and method == "GET":
                return self.service.status(now_s, job_id, caller)
            if not tail and method == "DELETE":
                return self.service.cancel(now_s, job_id, caller)
            if tail == "events" and method == "GET":
                after = whole_number(request, "after", 0)
                if after is not None:
                    return self.service.listen(now_s, job_id, after, caller)
                return refusal(wire.ErrorKind.VALIDATION, "after is a whole number from 0")
        return refusal(wire.ErrorKind.NOT_FOUND, f"nothing at {method} {path}")

    async def _stream(self, cursor: EventCursor, responder: Responder) -> None:
        """Send a job's events as they happen, until the stream ends the way its cursor says."""
        shell = self.shell
        async with responder.stream(200, wire.EVENTS_TYPE, shell.instance_header) as stream:
            while True:
                await shell.not_paused()
                steps = cursor.pull(self.service.elapsed_s(trio.current_time()))
                for step in steps:
                    if step.act is StreamAct.LINE:
                        await stream.send(step.data)
                        continue
                    if step.act is StreamAct.SILENCE:
                        await shell.until_restart()
                    if step.act is not StreamAct.END:
                        await responder.abort()
                    return
                if not steps:
                    await shell.news_of(cursor.job)
