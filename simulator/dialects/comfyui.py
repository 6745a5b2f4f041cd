"""ComfyUI's twin: HTTP and WebSocket on one port over the one behaviour core.

It says what a real server (v0.3.64) was recorded to say, misleading or not: the same id twice runs twice; a 500 may
have been accepted; the history is empty for a queued, a running and an unknown job; an interrupt without an id hits
whoever runs, and one with the id of a waiting job does nothing. All routes exist below ``/api`` too. The work of a job
is described by a node of the class ``SimulationWork``, whose inputs are a ``WorkPayload``; any other workflow takes the
default time.

The journal's id is the prompt id. A failure that ComfyUI itself has no words for is said by a proxy in front of it: a
payload that asks to fail as ``auth``, ``rate_limited`` or ``unavailable`` is turned away with 401, 429 or 503.
"""

from __future__ import annotations

import math
import urllib.parse
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import msgspec
import trio

from gateway.connectors.comfyui.wire import CHECKPOINTS_PATH, LOADER_PATH
from gateway.connectors.simulation.wire import (
    ErrorKind,
    FailureWish,
    JournalEntry,
    RunState,
    SubmitRequest,
    decode_payload,
)
from protocols.http_responder import Responder, ServerRequest
from protocols.websocket_server import accept_websocket
from simulator.behaviour import LOOPBACK_NAMES
from simulator.cursor import GARBAGE
from simulator.dialects import comfyui_words as words
from simulator.dialects.comfyui_sockets import ComfyUIShell
from simulator.dialects.comfyui_words import Prompt, Refused, payload
from simulator.faults import FaultPlan
from simulator.model import Caller, Delivery, Job, Reply, ServiceConfig
from simulator.services.served import HTTPServed
from simulator.services.shell import caller_of

__all__ = ["ComfyUIService", "payload"]

JSON_TYPE = "application/json; charset=utf-8"
TEXT_TYPE = "text/plain; charset=utf-8"
TROUBLE = b"500 Internal Server Error\n\nServer got itself in trouble"
#: Kinds that never come from ComfyUI, but from a proxy before it, with their status.
DOOR_STATUS = {ErrorKind.AUTH: 401, ErrorKind.RATE_LIMITED: 429, ErrorKind.UNAVAILABLE: 503}
#: Prompts whose workflow is kept for queue and history, and output files that stay readable.
PROMPTS_MAX = 20_000
FILES_MAX = 20_000
GIB = 1024**3


@dataclass(frozen=True, slots=True)
class _Answer:
    """What to answer to one request."""

    status: int = 200
    body: bytes = b""
    content_type: str = TEXT_TYPE
    delivery: Delivery = Delivery.NORMAL
    headers: Mapping[str, str] = field(default_factory=dict)


def _json(body: Any, status: int = 200, delivery: Delivery = Delivery.NORMAL) -> _Answer:
    return _Answer(status, msgspec.json.encode(body), JSON_TYPE, delivery)


class ComfyUIService(HTTPServed[ComfyUIShell]):
    """One simulated ComfyUI. Create it inside trio: it starts counting its schedules at once.

    Args:
        config: name, capacity and defaults; a real one has one slot.
        plan: its faults at first; ``PUT /control/faults`` changes them.
        random_for: random stream by knob name, see ``simulator.seeding.streams``.
        sink: called with each new journal entry.
        jobs_api: serve ``GET /api/jobs`` as servers of 2026 do.
        models_api: serve ``GET /models/checkpoints``, which older servers lack.
        own_ids: choose every prompt's id as older servers do, whatever the caller asks for.
    """

    def __init__(
        self,
        config: ServiceConfig,
        plan: FaultPlan,
        *,
        random_for: Callable[[str], Random],
        sink: Callable[[JournalEntry], None] | None = None,
        jobs_api: bool = False,
        models_api: bool = True,
        own_ids: bool = False,
    ) -> None:
        self.shell = ComfyUIShell(config, plan, random_for=random_for, sink=sink, outputs=self._outputs)
        self._jobs_api = jobs_api
        self._models_api = models_api
        self._own_ids = own_ids
        self._prompts: dict[str, Prompt] = {}
        self._number = 0.0
        self._restarts_seen = 0
        self._turned_away: Counter[str] = Counter()
        self._files: dict[str, tuple[bytes, int]] = {}

    # ── answering ──

    async def answer(self, request: ServerRequest, responder: Responder) -> None:
        """Answer one request or handshake, with or without ``/api`` before its path."""
        path = request.path.removeprefix("/api") if request.path.startswith("/api/") else request.path
        if path == "/ws" and request.method == "GET":
            web = await accept_websocket(request, responder)
            if web is not None:
                await self.shell.serve_socket(web, request.query_values().get("clientId", ""))
            return
        answer = self._dispatch(request, path)
        self.shell.wake()
        await self._send(answer, responder)

    async def _send(self, answer: _Answer, responder: Responder) -> None:
        if answer.delivery is Delivery.HANG:
            await self.shell.until_restart()
        if answer.delivery in (Delivery.HANG, Delivery.CUT):
            await responder.abort()
            return
        body = GARBAGE if answer.delivery is Delivery.GARBAGE else answer.body
        headers = {**self.shell.instance_header, **answer.headers}
        await responder.send_bytes(answer.status, body, answer.content_type, headers)

    def _dispatch(self, request: ServerRequest, path: str) -> _Answer:
        """Route a request of the service itself; faults apply."""
        if self._foreign_origin(request):
            return _Answer(403)
        now_s, caller = trio.current_time(), caller_of(request.headers)
        self.service.advance(now_s)
        self.shell.wake()
        if self.service.restarts != self._restarts_seen:
            self._restarts_seen, self._number = self.service.restarts, 0.0
            self._prompts.clear()
        route = (request.method, path)
        if route == ("POST", "/prompt"):
            return self._submit(now_s, request.body, caller)
        if route in (("GET", "/prompt"), ("GET", "/system_stats")):
            return self._health(now_s, caller, path)
        if request.method == "GET" and path.startswith("/history/"):
            return self._history(now_s, urllib.parse.unquote(path.removeprefix("/history/")), caller)
        if self._jobs_api and request.method == "GET" and request.path.startswith("/api/jobs"):
            return self._jobs(now_s, urllib.parse.unquote(path.removeprefix("/jobs").lstrip("/")), caller)
        faulty = self.service.greet(now_s, caller)
        if faulty is not None:
            return _faulty(faulty)
        if route == ("GET", "/queue"):
            return self._queue(now_s)
        if route == ("POST", "/queue"):
            return self._edit_queue(now_s, request.body, caller)
        if route == ("POST", "/interrupt"):
            return self._interrupt(now_s, request.body, caller)
        if route == ("GET", "/view"):
            return self._view(request.query_values())
        return self._lists(*route)

    def _lists(self, method: str, path: str) -> _Answer:
        """What a workflow can choose from: the checkpoints, by their folder or by the node that loads them."""
        names = list(self.service.config.models)
        if (method, path) == ("GET", CHECKPOINTS_PATH) and self._models_api:
            return _json(names)
        if (method, path) == ("GET", LOADER_PATH):
            return _json(words.loader_info(names))
        return _Answer(404, b"404: Not Found")

    @staticmethod
    def _foreign_origin(request: ServerRequest) -> bool:
        """A browser's page from elsewhere, which a server on the loopback interface turns away."""
        origin = urllib.parse.urlsplit(request.headers.get("origin", "")).netloc
        host = request.headers.get("host", "")
        return bool(origin) and origin != host and host.rpartition(":")[0] in LOOPBACK_NAMES

    def _health(self, now_s: float, caller: Caller, path: str) -> _Answer:
        reply = self.service.health(now_s, caller)
        if reply.status != 200:
            return _Answer(reply.status, b"503: Service Unavailable")
        if path == "/prompt":
            return _json({"exec_info": {"queue_remaining": self.shell.remaining()}})
        device = {
            "name": "simulation",
            "type": "cuda",
            "index": 0,
            "vram_total": 24 * GIB,
            "vram_free": 20 * GIB,
        }
        system = {"os": "posix", "ram_total": 64 * GIB, "ram_free": 48 * GIB, "comfyui_version": "0.3.64"}
        return _json({"system": system, "devices": [device]})

    # ── submitting ──

    def _submit(self, now_s: float, body: bytes, caller: Caller) -> _Answer:
        try:
            said = msgspec.json.decode(body, type=dict[str, Any])
        except (msgspec.DecodeError, RecursionError):
            return _Answer(500, TROUBLE)
        try:
            node, node_type, inputs = words.check_workflow(said.get("prompt"))
        except Refused as refused:
            return _json(refused.body, 400)
        asked = None if self._own_ids else said.get("prompt_id")
        prompt_id = str(asked or f"{self._number:032.0f}")
        turned_away = self._door(prompt_id, node, inputs)
        if turned_away is not None:
            return turned_away
        if _door_wish(inputs) is not None:
            # It came true as often as it should.
            inputs = {name: value for name, value in inputs.items() if name != "fail"}
        known = self.service.job(prompt_id)
        before, after = (None, 0) if known is None else (known.newest, known.seq)
        same_rank = self._same_rank(prompt_id, said.get("number"))
        request = SubmitRequest(id=prompt_id, payload=inputs)
        reply = self.service.submit(now_s, request, caller, dedupe=False)
        job = self.service.job(prompt_id)
        if job is None or job.newest is before:
            return _faulty(reply, node)
        prompt = self._enter(said, prompt_id, node, node_type)
        self.shell.tell(prompt, after)
        if same_rank or reply.status == 500:
            return _Answer(500, TROUBLE)
        partial = self.service.roll(now_s, "partial_accept_rate")
        errors = words.SKIPPED_OUTPUT if partial else {}
        accepted = {"prompt_id": prompt_id, "number": prompt.number, "node_errors": errors}
        return _json(accepted, delivery=reply.delivery)

    def _door(self, prompt_id: str, node: str, inputs: Any) -> _Answer | None:
        """The refusal of a payload that asks to fail in a way that keeps it from being accepted."""
        wish = _door_wish(inputs)
        if wish is None:
            return None
        key = wish.key or prompt_id
        if wish.times is not None and self._turned_away[key] >= wish.times:
            return None
        self._turned_away[key] += 1
        if wish.kind is ErrorKind.VALIDATION:
            return _json(words.invalid_input(node, wish.message), 400)
        headers = {} if wish.retry_after_s is None else {"retry-after": str(math.ceil(wish.retry_after_s))}
        return _Answer(DOOR_STATUS[wish.kind], wish.message.encode(), headers=headers)

    def _same_rank(self, prompt_id: str, number: object) -> bool:
        """Whether a waiting prompt has the same number and id, which the server's queue cannot compare."""
        if isinstance(number, bool) or not isinstance(number, int | float):
            return False
        earlier, job = self._prompts.get(prompt_id), self.service.job(prompt_id)
        return earlier is not None and earlier.number == number and job is not None and not job.ended

    def _enter(self, said: Mapping[str, Any], prompt_id: str, node: str, node_type: str) -> Prompt:
        number = said.get("number")
        if isinstance(number, bool) or not isinstance(number, int | float):
            number = -self._number if said.get("front") else self._number
            self._number += 1
        extra, client_id = said.get("extra_data"), str(said.get("client_id") or "")
        extra_data = dict(extra) if isinstance(extra, dict) else {}
        if client_id:
            extra_data["client_id"] = client_id
        prompt = Prompt(number, prompt_id, said["prompt"], extra_data, client_id, node, node_type)
        self._prompts[prompt_id] = prompt
        while len(self._prompts) > PROMPTS_MAX:
            del self._prompts[next(iter(self._prompts))]
        return prompt

    # ── looking ──

    def _record(self, now_s: float, prompt_id: str) -> dict[str, Any] | None:
        """What the history holds of a prompt; one that was deleted before its turn leaves nothing."""
        job, prompt = self.service.job(prompt_id), self._prompts.get(prompt_id)
        if job is None or prompt is None or not job.ended_for(now_s):
            return None
        if job.state is RunState.CANCELLED and (job.newest is None or job.newest.number == 0):
            return None
        now_ms = round(self.service.elapsed_s(now_s) * 1000)
        return words.history_entry(job, prompt, self._outputs(job, prompt), now_ms)

    def _history(self, now_s: float, prompt_id: str, caller: Caller) -> _Answer:
        reply = self.service.status(now_s, prompt_id, caller)
        if reply.status not in (200, 404):
            return _faulty(reply)
        record = self._record(now_s, prompt_id)
        return _json({} if record is None else {prompt_id: record}, delivery=reply.delivery)

    def _queue(self, now_s: float) -> _Answer:
        running, waiting = self._places(now_s)
        shown = {
            "queue_running": [self._prompts[prompt_id].queue_item() for prompt_id in running],
            "queue_pending": [self._prompts[prompt_id].queue_item() for prompt_id in waiting],
        }
        garbage = self.service.roll(now_s, "garbage_rate")
        return _json(shown, delivery=Delivery.GARBAGE if garbage else Delivery.NORMAL)

    def _places(self, now_s: float) -> tuple[list[str], list[str]]:
        """Ids of the prompts that run and that wait; one whose record is still to come counts as running."""
        running, waiting = (
            [run.job.id for run in runs if run.job.id in self._prompts] for runs in self.service.executions()
        )
        if self.service.faults.late_record_rate:
            jobs = (self.service.job(prompt_id) for prompt_id in self._prompts)
            running += [job.id for job in jobs if job is not None and job.ended and not job.ended_for(now_s)]
        return running, waiting

    def _jobs(self, now_s: float, prompt_id: str, caller: Caller) -> _Answer:
        """The interface of newer servers: one look instead of two."""
        faulty = self.service.greet(now_s, caller)
        if faulty is not None:
            return _faulty(faulty)
        if not prompt_id:
            return _json({"jobs": [], "pagination": {"offset": 0, "limit": 1, "total": 0, "has_more": False}})
        garbage = self.service.roll(now_s, "garbage_rate")
        delivery = Delivery.GARBAGE if garbage else Delivery.NORMAL
        record, (running, waiting) = self._record(now_s, prompt_id), self._places(now_s)
        if record is not None:
            return _json(words.job_view(prompt_id, record), delivery=delivery)
        for status, ids in (("in_progress", running), ("pending", waiting)):
            if prompt_id in ids:
                return _json({"id": prompt_id, "status": status, "outputs_count": 0}, delivery=delivery)
        return _json({"error": "Job not found"}, 404)

    def _outputs(self, job: Job, prompt: Prompt) -> dict[str, Any]:
        """What a job put out; its picture can be viewed from now on."""
        execution = 0 if job.newest is None else job.newest.number
        filename = f"simulation_{prompt.number:05.0f}_{execution}_.png"
        outputs = words.outputs_of(job, prompt, filename)
        if outputs:
            size_bytes = len(job.result.get(words.PADDING, ""))
            self._files[filename] = (job.id.encode("utf-8", "replace"), size_bytes)
            while len(self._files) > FILES_MAX:
                del self._files[next(iter(self._files))]
        return outputs

    def _view(self, query: Mapping[str, str]) -> _Answer:
        filename = query.get("filename", "")
        if not filename or ".." in filename or filename.startswith("/"):
            return _Answer(400)
        if filename not in self._files or query.get("type", "output") != "output" or query.get("subfolder"):
            return _Answer(404)
        picture = words.png(*self._files[filename])
        return _Answer(200, picture, words.PNG_TYPE, headers={"etag": f'"{zlib.crc32(picture):x}"'})

    # ── stopping ──

    def _edit_queue(self, now_s: float, body: bytes, caller: Caller) -> _Answer:
        """Take prompts that wait out of the queue; 200 and empty whatever was there."""
        said = _object(body)
        if said is None:
            return _Answer(500, TROUBLE)
        asked = said.get("delete")
        waiting = {run.job.id for run in self.service.executions()[1]}
        wanted = sorted(waiting) if said.get("clear") else asked if isinstance(asked, list) else []
        for prompt_id in wanted:
            job = self.service.job(str(prompt_id))
            if job is not None and job.state is RunState.QUEUED:
                self.service.stop(now_s, job, caller)
        return _Answer()

    def _interrupt(self, now_s: float, body: bytes, caller: Caller) -> _Answer:
        """Stop what runs: that prompt if it runs; whatever runs when none is named. 200 and empty in any case."""
        said = _object(body) if body else {}
        if said is None:
            return _Answer(500, TROUBLE)
        prompt_id = said.get("prompt_id")
        for run in self.service.executions()[0]:
            if prompt_id in (None, run.job.id) and not run.job.ended:
                self.service.stop(now_s, run.job, caller)
        return _Answer()


def _door_wish(inputs: Any) -> FailureWish | None:
    """The failure that a payload asks for, when it is one that keeps a prompt from being accepted."""
    wish = decode_payload(inputs).fail
    return (
        wish if wish is not None and (wish.kind is ErrorKind.VALIDATION or wish.kind in DOOR_STATUS) else None
    )


def _object(body: bytes) -> dict[str, Any] | None:
    """A JSON object, or None when it is something else."""
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError):
        return None


def _faulty(reply: Reply, node: str = "") -> _Answer:
    """A fault of the behaviour in the words of ComfyUI, or of the proxy before it."""
    failure = getattr(reply.body, "error", None)
    message = getattr(failure, "message", "")
    headers = {} if reply.retry_after_s is None else {"retry-after": str(math.ceil(reply.retry_after_s))}
    if reply.status == 400:
        return _json(words.invalid_input(node or words.WORK_NODE, message), 400, reply.delivery)
    if reply.status == 500:
        return _Answer(500, TROUBLE, delivery=reply.delivery)
    return _Answer(reply.status, message.encode(), delivery=reply.delivery, headers=headers)
