"""The twin of the Stable Diffusion web UI: txt2img and img2img, progress, interrupt, a few lists.

A request may describe its work in the member ``simulation`` (a ``WorkPayload``); the answer's ``info`` holds the
work's result in a member of the same name. Everything else takes the defaults. The job's name is ``force_task_id``.
Generations run one at a time, whatever the configured slots, and a repeat is never recognised. Journal and control
are as on the simulated service, and ``/control/oddities`` chooses manners, see ``a1111_words.Oddities``.

Progress and interrupt are the server's: both concern whatever task runs. An interrupted generation is answered with
status 200. There is no stream of events here, so the faults of one (duplicates, overtaking, a late event) do nothing.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import math
from collections.abc import Callable
from random import Random
from typing import Any

import msgspec
import trio

from gateway.connectors.a1111.wire import INTERRUPT_PATH, MODELS_PATH, PROGRESS_PATH, TASK_ID
from gateway.connectors.simulation.wire import (
    ErrorKind,
    ErrorReply,
    EventType,
    JournalEntry,
    JournalEvent,
    ServiceFailure,
    StreamEvent,
    SubmitRequest,
)
from protocols.http_responder import Responder, ServerRequest
from simulator.cursor import GARBAGE, EventCursor, StreamAct
from simulator.dialects import a1111_words as words
from simulator.dialects.a1111_words import Oddities, payload
from simulator.dialects.web import WebTwin
from simulator.faults import FaultPlan
from simulator.model import Caller, Delivery, Reply, ServiceConfig
from simulator.services.shell import caller_of

__all__ = ["A1111Service", "payload"]

JSON_TYPE = "application/json"
SAMPLERS_PATH = "/sdapi/v1/samplers"
SKIP_PATH = "/sdapi/v1/skip"
_GENERATE = {"/sdapi/v1/txt2img": False, "/sdapi/v1/img2img": True}


class A1111Service(WebTwin[Oddities]):
    """One simulated web UI; see ``WebTwin`` for its arguments."""

    def __init__(
        self,
        config: ServiceConfig,
        plan: FaultPlan,
        *,
        random_for: Callable[[str], Random],
        sink: Callable[[JournalEntry], None] | None = None,
        oddities: Oddities | None = None,
    ) -> None:
        self._sink = sink
        #: Set by an interrupt, cleared when the next task begins.
        self._interrupted = False
        super().__init__(
            dataclasses.replace(config, slots=1),
            plan,
            oddities or Oddities(),
            random_for=random_for,
            sink=self._entered,
        )
        # Nobody outside reads along: then there is nothing to write down in time.
        self.shell.ticking = sink is not None
        self._requests = 0

    def _entered(self, entry: JournalEntry) -> None:
        if entry.event is JournalEvent.STARTED:
            self._interrupted = False
        if self._sink is not None:
            self._sink(entry)

    async def answer(self, request: ServerRequest, responder: Responder) -> None:
        path, method = request.path, request.method
        now_s, caller = trio.current_time(), caller_of(request.headers)
        if path.startswith("/sdapi/") and not self._authorised(request):
            await self._refuse(request, responder)
        elif path in _GENERATE and method == "POST":
            await self._generate(request, caller, responder, from_images=_GENERATE[path])
        elif path == PROGRESS_PATH and method == "GET":
            skip = request.query_values().get("skip_current_image", "false").lower() in ("true", "1")
            await self._other(self.service.greet(now_s, caller), responder, lambda: self._progress(not skip))
        elif path in (INTERRUPT_PATH, SKIP_PATH) and method == "POST":
            await self._interrupt(caller, responder)
        elif path == SAMPLERS_PATH and method == "GET":
            reply = self.service.health(now_s, caller)
            names = [{"name": name, "aliases": [], "options": {}} for name in words.SAMPLERS]
            down = ServiceFailure(kind=ErrorKind.UNAVAILABLE, message="simulated: failing")
            await (self._send(200, names, responder) if reply.status == 200 else self._fail(down, responder))
        elif path == MODELS_PATH and method == "GET":
            models = words.models(self.service.config.models)
            await self._other(self.service.greet(now_s, caller), responder, lambda: models)
        elif path == "/internal/ping":
            await self._send(200, {}, responder)
        else:
            await self._send(404, {"detail": "Not Found"}, responder)

    def _authorised(self, request: ServerRequest) -> bool:
        wanted = self.oddities.credentials
        return not wanted or _credentials(request) == wanted

    async def _refuse(self, request: ServerRequest, responder: Responder) -> None:
        failure = ServiceFailure(kind=ErrorKind.AUTH, message=f"Incorrect login {_credentials(request)}")
        status, body = words.error(failure)
        headers = {**self.shell.instance_header, "www-authenticate": "Basic"}
        await responder.send_json(status, body, headers)

    async def _other(self, fault: Reply | None, responder: Responder, answer: Callable[[], Any]) -> None:
        """Answer a request that is no generation, or show the fault that it meets."""
        self.shell.wake()
        if fault is not None:
            await self._deliver(fault, responder)
        else:
            await self._send(200, answer(), responder)

    def _progress(self, image: bool) -> dict[str, Any]:
        running, _waiting = self.service.executions()
        job = running[0].job if running else None
        return words.progress(job, self.oddities, interrupted=self._interrupted, image=image)

    async def _interrupt(self, caller: Caller, responder: Responder) -> None:
        """Stop whatever runs, whoever asked for it; without a task the flag is set all the same."""
        now_s = trio.current_time()
        fault = self.service.greet(now_s, caller)
        if fault is None:
            self._interrupted = True
            for execution in self.service.executions()[0]:
                self.give_up(execution.job, execution, caller)
        await self._other(fault, responder, dict)

    async def _generate(
        self, request: ServerRequest, caller: Caller, responder: Responder, *, from_images: bool
    ) -> None:
        try:
            body = msgspec.json.decode(request.body, type=dict[str, Any])
        except msgspec.DecodeError as error:
            await self._send(*words.invalid("body", str(error)), responder)
            return
        refused = self._invalid(body, from_images)
        if refused is not None:
            await self._send(*refused, responder)
            return
        self._requests += 1
        job_id = body.get(TASK_ID) or f"task({self._requests})"
        now_s = trio.current_time()
        wanted = SubmitRequest(id=job_id, payload=body.get(words.EXTENSION))
        reply = self.service.submit(now_s, wanted, caller, dedupe=False)
        self.shell.wake()
        if self.oddities.hung and reply.status < 300:
            await self.break_off(StreamAct.SILENCE, responder)
        elif reply.status >= 300 or reply.delivery in (Delivery.CUT, Delivery.HANG):
            await self._deliver(reply, responder)
        else:
            cursor = self.follow(job_id)
            execution = cursor.job.newest
            try:
                await self._wait(cursor, body, responder, garbage=reply.delivery is Delivery.GARBAGE)
            except (trio.Cancelled, trio.BrokenResourceError):
                if self.oddities.disconnect_stops:
                    self.give_up(cursor.job, execution, caller)
                raise

    def _invalid(self, body: dict[str, Any], from_images: bool) -> tuple[int, dict[str, Any]] | None:
        if TASK_ID in body and self.oddities.forbids_task_id:
            return words.invalid(TASK_ID, "extra fields not permitted")
        if body.get("sampler_name", words.SAMPLERS[0]) not in words.SAMPLERS:
            return words.error(ServiceFailure(kind=ErrorKind.NOT_FOUND, message="Sampler not found"))
        if from_images and not body.get("init_images"):
            return words.error(ServiceFailure(kind=ErrorKind.NOT_FOUND, message="Init image not found"))
        return None

    async def _wait(
        self, cursor: EventCursor, body: dict[str, Any], responder: Responder, *, garbage: bool
    ) -> None:
        """Answer when the generation has ended."""
        while True:
            for step in await self.pull(cursor):
                if step.act is not StreamAct.LINE:
                    await self.break_off(step.act, responder)
                    return
                garbage = garbage or step.event is None
                if step.event is not None and step.event.terminal:
                    await self._end(step.event, body, responder, garbage=garbage)
                    return

    async def _end(
        self, event: StreamEvent, body: dict[str, Any], responder: Responder, *, garbage: bool
    ) -> None:
        if garbage:
            await responder.send_bytes(200, GARBAGE, JSON_TYPE, self.shell.instance_header)
        elif event.error is not None:
            await self._fail(event.error, responder)
        else:
            asked = math.prod(
                count for name in ("batch_size", "n_iter") if isinstance(count := body.get(name, 1), int)
            )
            partial = event.type is EventType.CANCELLED
            made = 1 if partial and not self.oddities.unmarked else asked
            result = {"partial": True} if partial else event.result
            await self._send(200, words.images(body, result, asked=asked, made=made), responder)

    async def _deliver(self, reply: Reply, responder: Responder) -> None:
        if reply.delivery is Delivery.HANG:
            await self.break_off(StreamAct.SILENCE, responder)
        elif reply.delivery is Delivery.CUT:
            await responder.abort()
        else:
            assert isinstance(reply.body, ErrorReply), "every answer other than 2xx says why"
            await self._fail(reply.body.error, responder)

    async def _fail(self, failure: ServiceFailure, responder: Responder) -> None:
        status, body = words.error(failure)
        headers = dict(self.shell.instance_header)
        if failure.retry_after_s is not None:
            headers["retry-after"] = str(math.ceil(failure.retry_after_s))
        await responder.send_json(status, body, headers)

    async def _send(self, status: int, body: Any, responder: Responder) -> None:
        await responder.send_json(status, body, self.shell.instance_header)


def _credentials(request: ServerRequest) -> str:
    """What the request says of HTTP Basic; empty for nothing readable."""
    scheme, _, coded = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return ""
    try:
        return base64.b64decode(coded, validate=True).decode("utf-8", "replace")
    except (binascii.Error, ValueError):
        return ""
