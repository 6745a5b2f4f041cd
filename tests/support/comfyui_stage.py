"""A simulated ComfyUI in memory, under virtual time, with the adapters of the gateway as its clients."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio
import trio.testing

from gateway.connector import Connector, ConnectorSetup
from gateway.connectors.comfyui.http import ComfyUIHTTPConnector
from gateway.connectors.comfyui.websocket import ComfyUIWebSocketConnector
from gateway.connectors.simulation.wire import JournalEvent, WorkPayload
from gateway.models import JobSpec
from protocols.base import Endpoint
from protocols.http import HTTPAdapter, RawReply
from protocols.websocket import WebSocketAdapter
from protocols.websocket_link import WebSocket
from simulator.contract.recorder import RecordingJob
from simulator.dialects.comfyui import ComfyUIService, payload
from simulator.faults import FaultPlan
from simulator.model import ServiceConfig
from simulator.seeding import streams

ENDPOINT = Endpoint(scheme="http", host="127.0.0.1", port=8188)
CONNECTORS: Mapping[str, type[Connector]] = {
    "comfyui-http": ComfyUIHTTPConnector,
    "comfyui-websocket": ComfyUIWebSocketConnector,
}
HELLO = '{"type":"feature_flags","data":{"supports_preview_metadata":true}}'


class ComfyUIStage:
    """One twin and whoever speaks to it.

    Attributes:
        paths: of every connection that was opened to the twin, its number of streams.
    """

    def __init__(
        self,
        nursery: trio.Nursery,
        plan: FaultPlan,
        *,
        jobs_api: bool,
        own_ids: bool,
        models_api: bool,
        **config: Any,
    ) -> None:
        config.setdefault("duration_s", 1.0)
        self.nursery = nursery
        self.twin = ComfyUIService(
            ServiceConfig(instance="comfy", **config),
            plan,
            random_for=streams(7, "comfy"),
            jobs_api=jobs_api,
            own_ids=own_ids,
            models_api=models_api,
        )
        self.http = HTTPAdapter(ENDPOINT, open_stream=self.open_stream)
        self.web = WebSocketAdapter(ENDPOINT, open_stream=self.open_stream)
        #: Requests by method and path, in order, as the twin got them.
        self.requests: list[tuple[str, str]] = []
        #: Answer every handshake with 404, as a proxy does that knows no WebSocket.
        self.refuse_sockets = False
        #: Answer every download with 503.
        self.refuse_views = False
        self.handle = self.twin.handle
        self.twin.handle = self._noting  # type: ignore[method-assign]

    async def _noting(self, request: Any, responder: Any) -> None:
        self.requests.append((request.method, request.path))
        if self.refuse_sockets and request.path == "/ws":
            await responder.send_bytes(404, b"")
            return
        if self.refuse_views and request.path == "/view":
            await responder.send_bytes(503, b"")
            return
        await self.handle(request, responder)

    async def open_stream(self, host: str, port: int) -> trio.abc.Stream:
        ours, theirs = trio.testing.memory_stream_pair()
        self.nursery.start_soon(self.twin.serve_stream, theirs)
        await trio.lowlevel.checkpoint()
        return ours

    # ── the server's own interface ──

    async def ask(self, method: str, path: str, body: object = None) -> Any:
        """The JSON of a 2xx, None for an empty one."""
        return (await self.http.request_json(method, path, json=body)).json

    async def raw(self, method: str, path: str, body: bytes = b"", **headers: str) -> RawReply:
        return await self.http.request(method, path, content=body or None, headers=headers)

    async def submit(
        self, prompt_id: str, client_id: str = "", *, also: Mapping[str, Any] = {}, **work: Any
    ) -> Any:
        """Submit simulated work under an id; the answer's JSON."""
        body = {**payload(WorkPayload(**work)), "prompt_id": prompt_id, **also}
        return await self.ask("POST", "/prompt", {**body, "client_id": client_id} if client_id else body)

    async def history(self, prompt_id: str) -> Any:
        return (await self.ask("GET", f"/history/{prompt_id}")).get(prompt_id)

    async def queue(self) -> tuple[list[str], list[str]]:
        """Ids that run and that wait."""
        said = await self.ask("GET", "/queue")
        running, pending = ([item[1] for item in said[key]] for key in ("queue_running", "queue_pending"))
        return running, pending

    @asynccontextmanager
    async def socket(self, client_id: str, *, hello: bool = True) -> AsyncIterator[WebSocket]:
        """A socket that asked for previews with names, unless told otherwise; what it hears at once is read."""
        async with self.web.connect(f"/ws?clientId={client_id}") as link:
            if hello:
                await link.send(HELLO)
            await heard(link)
            yield link

    # ── the gateway's side ──

    def connector(self, key: str, **options: Any) -> Connector:
        setup = ConnectorSetup(
            endpoint=ENDPOINT,
            open_stream=self.open_stream,
            random=random.Random(key),
            now_s=trio.current_time,
            options=options,
        )
        return CONNECTORS[key](setup)

    def job(self, reference: str = "job.1", **work: Any) -> RecordingJob:
        return self.job_of(payload(WorkPayload(**work)), reference)

    def job_of(self, body: Any, reference: str = "job.1") -> RecordingJob:
        return RecordingJob(JobSpec(service="comfyui", payload=body), reference=reference)

    def done(self, *events: JournalEvent) -> list[tuple[str, str]]:
        """(event, id) of the journal: all of it, or these events only."""
        self.twin.service.advance(trio.current_time())
        entries = self.twin.service.journal.page(0, 10_000).entries
        return [(entry.event.value, entry.id) for entry in entries if not events or entry.event in events]

    def executions(self, prompt_id: str = "job.1") -> int:
        return self.twin.service.journal.executions(prompt_id)


@asynccontextmanager
async def open_comfyui(
    *,
    jobs_api: bool = False,
    own_ids: bool = False,
    models_api: bool = True,
    models: tuple[str, ...] = (),
    slots: int = 4,
    duration_s: float = 1.0,
    **faults: Any,
) -> AsyncIterator[ComfyUIStage]:
    """A twin without faults but the given ones; use under a virtual clock."""
    async with trio.open_nursery() as nursery:
        plan = FaultPlan.none().updated(faults)
        stage = ComfyUIStage(
            nursery,
            plan,
            jobs_api=jobs_api,
            own_ids=own_ids,
            models_api=models_api,
            models=models,
            slots=slots,
            duration_s=duration_s,
        )
        yield stage
        nursery.cancel_scope.cancel()


async def heard(link: WebSocket, silence_s: float = 0.01) -> list[Any]:
    """Everything that arrives until there is silence: JSON of text frames, bytes of binary ones."""
    got: list[Any] = []
    while True:
        with trio.move_on_after(silence_s) as silence:
            frame = await link.receive()
        if silence.cancelled_caught:
            return got
        got.append(msgspec.json.decode(frame) if isinstance(frame, str) else frame)


def kinds(frames: list[Any]) -> list[str]:
    """What the text frames are, in order; a binary one by its event number, ``executing`` of no node as such."""
    return [
        f"binary {int.from_bytes(frame[:4], 'big')}"
        if isinstance(frame, bytes)
        else "executing null"
        if frame["type"] == "executing" and frame["data"]["node"] is None
        else frame["type"]
        for frame in frames
    ]
