"""The twin of OpenAI-compatible servers: chat, completions, embeddings, images and responses, whole or streamed.

A request may describe its work in the member ``simulation`` (a ``WorkPayload``); the answer holds the work's result
in a member of the same name. Everything else takes the defaults. The job's name is the header
``X-Client-Request-Id``. A repeat is never recognised. Journal and control are as on the simulated service, and
``/control/oddities`` chooses manners, see ``simulator.dialects.openai_words.Oddities``.

Chunks of a completion have no number and share one connection, so ``duplicate_event_rate`` and ``out_of_order_rate``
do nothing here; a chunk after the end is what ``event_after_terminal_rate`` shows.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import msgspec
import trio

from gateway.connectors.openai.requests import PATHS, STREAMED, Operation
from gateway.connectors.simulation.wire import (
    ErrorKind,
    ErrorReply,
    EventType,
    JournalEntry,
    ServiceFailure,
    StreamEvent,
    SubmitRequest,
)
from protocols.http_responder import BodyStream, Responder, ServerRequest
from simulator.cursor import GARBAGE, EventCursor, StreamAct
from simulator.dialects import openai_words as words
from simulator.dialects.openai_words import Completion, Flavour, Oddities, payload
from simulator.dialects.web import WebTwin
from simulator.faults import FaultPlan
from simulator.model import Caller, Delivery, Reply, ServiceConfig
from simulator.services.shell import caller_of

__all__ = ["OpenAIService", "payload"]

HEADER_REQUEST_ID = "x-client-request-id"
_OPERATIONS = {path: operation for operation, path in PATHS.items()}
_HUNG = ServiceFailure(kind=ErrorKind.SERVICE_ERROR, message="the generation was stopped")

_NOISE = b"data: " + GARBAGE + b"\n\n"


@dataclass(slots=True)
class _Generation:
    """One request being answered."""

    cursor: EventCursor
    completion: Completion
    oddities: Oddities
    garbage: bool
    pieces: list[str] = field(default_factory=list)
    over: bool = False

    def ended(self, event: StreamEvent) -> Completion | ServiceFailure:
        """What came of it."""
        failure = event.error or _HUNG
        if event.type is EventType.COMPLETED:
            return replace(self.completion, pieces=tuple(self.pieces), result=event.result)
        if failure.kind is ErrorKind.REFUSED and self.oddities.refusal == "finish":
            return replace(self.completion, pieces=tuple(self.pieces), reason="content_filter")
        return failure


class OpenAIService(WebTwin[Oddities]):
    """One simulated OpenAI-compatible server; see ``WebTwin`` for its arguments."""

    def __init__(
        self,
        config: ServiceConfig,
        plan: FaultPlan,
        *,
        random_for: Callable[[str], Random],
        sink: Callable[[JournalEntry], None] | None = None,
        oddities: Oddities | None = None,
    ) -> None:
        super().__init__(config, plan, oddities or Oddities(), random_for=random_for, sink=sink)
        self._requests = 0

    async def answer(self, request: ServerRequest, responder: Responder) -> None:
        path = request.path.removeprefix("/v1") if request.path.startswith("/v1/") else request.path
        now_s, caller = trio.current_time(), caller_of(request.headers)
        refused = self._unauthorised(request)
        if refused is not None:
            await self._send(refused, responder)
        elif (operation := _OPERATIONS.get(path)) is not None and request.method == "POST":
            await self._generate(operation, request, caller, responder)
        elif path == "/models" and request.method == "GET":
            reply = self.service.health(now_s, caller)
            self.shell.wake()
            healthy = words.Answer(200, msgspec.json.encode(words.models(self.service.config.models)))
            down = self._error(ErrorKind.UNAVAILABLE, "simulated: failing")
            await self._send(healthy if reply.status == 200 else down, responder)
        elif path == "/health/liveliness" and self.oddities.flavour is Flavour.LITELLM:
            await self._send(words.Answer(200, b'"I\'m alive!"'), responder)
        else:
            await self._send(
                self._error(ErrorKind.NOT_FOUND, f"nothing at {request.method} {path}"), responder
            )

    def _unauthorised(self, request: ServerRequest) -> words.Answer | None:
        key, given = self.oddities.key, request.headers.get("authorization", "")
        if not key or given == f"Bearer {key}":
            return None
        shown = given.removeprefix("Bearer ")
        return self._error(ErrorKind.AUTH, f"Incorrect API key provided: {shown}")

    def _error(self, kind: ErrorKind, message: str) -> words.Answer:
        return words.error(self.oddities.flavour, ServiceFailure(kind=kind, message=message))

    async def _generate(
        self, operation: Operation, request: ServerRequest, caller: Caller, responder: Responder
    ) -> None:
        oddities = self.oddities
        try:
            body = msgspec.json.decode(request.body, type=dict[str, Any])
        except msgspec.DecodeError:
            await self._send(words.bad_json(oddities.flavour), responder)
            return
        self._requests += 1
        job_id = request.headers.get(HEADER_REQUEST_ID) or f"request-{self._requests}"
        wanted = SubmitRequest(id=job_id, payload=body.get(words.EXTENSION))
        now_s = trio.current_time()
        reply = self.service.submit(now_s, wanted, caller, dedupe=False)
        self.shell.wake()
        if reply.delivery is Delivery.HANG or (oddities.hung and reply.status < 300):
            await self.break_off(StreamAct.SILENCE, responder)
            return
        if reply.delivery is Delivery.CUT:
            await responder.abort()
            return
        if reply.status >= 300:
            await self._send(self._refusal(reply), responder)
            return
        cursor = self.follow(job_id)
        model = body.get("model")
        completion = Completion(
            operation, f"gen-{job_id}", model if isinstance(model, str) else words.MODEL, (), None
        )
        generation = _Generation(cursor, completion, oddities, reply.delivery is Delivery.GARBAGE)
        execution = cursor.job.newest
        streamed = body.get("stream") is True and operation in STREAMED and not oddities.whole
        try:
            await (self._stream(generation, responder) if streamed else self._whole(generation, responder))
        except (trio.Cancelled, trio.BrokenResourceError):
            if oddities.disconnect_stops:
                self.give_up(cursor.job, execution, caller)
            raise

    def _refusal(self, reply: Reply) -> words.Answer:
        assert isinstance(reply.body, ErrorReply), "every answer other than 2xx says why"
        return words.error(self.oddities.flavour, reply.body.error)

    async def _whole(self, generation: _Generation, responder: Responder) -> None:
        """Answer when all is generated."""
        while True:
            for step in await self.pull(generation.cursor):
                if step.act is not StreamAct.LINE:
                    await self.break_off(step.act, responder)
                    return
                event = step.event
                if event is None:
                    generation.garbage = True
                elif event.type is EventType.CHUNK:
                    generation.pieces.append(_text(event))
                elif event.terminal:
                    await self._send(self._final(generation, event), responder)
                    return

    def _final(self, generation: _Generation, event: StreamEvent) -> words.Answer:
        if generation.garbage:
            return words.Answer(200, GARBAGE)
        ended = generation.ended(event)
        if isinstance(ended, ServiceFailure):
            return words.error(generation.oddities.flavour, ended)
        return words.Answer(200, msgspec.json.encode(ended.whole()))

    async def _stream(self, generation: _Generation, responder: Responder) -> None:
        """Answer piece by piece. The head goes out with the first piece, so that a failure before has a status."""
        async with contextlib.AsyncExitStack() as stack:
            body: BodyStream | None = None
            while True:
                for step in await self.pull(generation.cursor):
                    if step.act is not StreamAct.LINE:
                        if step.act is not StreamAct.END:
                            await self.break_off(step.act, responder)
                        return
                    data = self._line(generation, step.event, begun=body is not None)
                    if isinstance(data, words.Answer):
                        await self._send(data, responder)
                        return
                    if data and body is None:
                        head = responder.stream(200, words.EVENTS_TYPE, self.shell.instance_header)
                        body = await stack.enter_async_context(head)
                    if data and body is not None:
                        await body.send(data)

    def _line(
        self, generation: _Generation, event: StreamEvent | None, *, begun: bool
    ) -> bytes | words.Answer:
        """What one event of the job is in the stream; an answer of its own while nothing was sent."""
        if event is None:
            return _NOISE
        noise, generation.garbage = (_NOISE if generation.garbage else b""), False
        oddities, completion = generation.oddities, generation.completion
        if event.type is EventType.CHUNK:
            generation.pieces.append(_text(event))
            return noise + completion.piece(generation.pieces[-1])
        if generation.over:
            return completion.piece("late")
        if not event.terminal:
            return noise + (b": keep-alive\n\n" if begun and oddities.comments else b"")
        generation.over = True
        ended = generation.ended(event)
        if isinstance(ended, ServiceFailure):
            return words.failed_chunk(ended) if begun else words.error(oddities.flavour, ended)
        return noise + (b": the end\n\n" if oddities.truncated else ended.last(oddities))

    async def _send(self, answer: words.Answer, responder: Responder) -> None:
        headers = dict(self.shell.instance_header)
        if answer.retry_after_s is not None:
            headers["retry-after"] = str(math.ceil(answer.retry_after_s))
        await responder.send_bytes(answer.status, answer.body, answer.content_type, headers)


def _text(event: StreamEvent) -> str:
    """The text of one chunk of simulated work."""
    return f"{event.data['text']} " if isinstance(event.data, dict) else ""
