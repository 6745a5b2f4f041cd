"""Who hears what at the simulated ComfyUI: sockets by client id, and one loop that publishes to all of them.

Recorded from a real server and kept: events go to the newest socket of a client id, and when that one closes, an older
one stays open and deaf; who comes back is told of the running node only; one socket that does not read holds up all
others.
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

import msgspec
import trio

from gateway.connectors.simulation.wire import JournalEntry, RunState
from protocols.websocket_server import ServerWebSocket, WebSocketEnded
from simulator.cursor import GARBAGE, EventCursor, StreamAct
from simulator.dialects import comfyui_words as words
from simulator.dialects.comfyui_words import Frame, Prompt
from simulator.faults import FaultPlan
from simulator.model import Job, ServiceConfig
from simulator.services.shell import ServiceShell

#: Frames a socket may have unsent; then it is cut, so that one that never reads does not fill our memory.
OUTBOX_MAX = 10_000


class Socket:
    """One open socket and what is to be sent on it.

    Attributes:
        client_id: whose events it gets, as long as it is the newest of that id.
        named_previews: whether it negotiated previews that name their job.
    """

    def __init__(self, client_id: str) -> None:
        self.client_id = client_id
        self.named_previews = False
        self.outbox: deque[str | bytes] = deque()
        self.cut = False
        self.news = trio.Event()

    def put(self, data: str | bytes) -> None:
        """Send this as soon as the socket's turn comes."""
        self.outbox.append(data)
        if len(self.outbox) > OUTBOX_MAX:
            self.abort()
        self.news.set()

    def abort(self) -> None:
        """Reset the connection."""
        self.cut = True
        self.news.set()


@dataclass(slots=True)
class _Told:
    """A prompt whose events are being told."""

    job: Job
    prompt: Prompt
    cursor: EventCursor


class ComfyUIShell(ServiceShell):
    """The shared shell, with the sockets of this dialect.

    Args:
        config, plan, random_for, sink: see ``ServiceShell``.
        outputs: what a job of a prompt put out, by node.
    """

    def __init__(
        self,
        config: ServiceConfig,
        plan: FaultPlan,
        *,
        random_for: Callable[[str], Random],
        sink: Callable[[JournalEntry], None] | None,
        outputs: Callable[[Job, Prompt], Mapping[str, Any]],
    ) -> None:
        super().__init__(config, plan, random_for=random_for, sink=sink)
        self._outputs = outputs
        self._sockets: dict[str, Socket] = {}
        self._told: dict[str, _Told] = {}
        #: Ends whose record comes late: when the rest of the story may be told, and of which prompt.
        self._late: list[tuple[float, Prompt]] = []
        self._unnamed = 0
        self._publishing = trio.Lock()
        self._forgotten = 0

    # ── who listens ──

    def connect(self, client_id: str) -> Socket:
        """A socket opens: it takes over its client id and is told what runs now."""
        self.service.advance(trio.current_time())
        self.wake()
        if not client_id:
            self._unnamed += 1
            client_id = f"{self._unnamed:032x}"
        socket = self._sockets[client_id] = Socket(client_id)
        socket.put(words.status(self.remaining(), client_id))
        now_s = trio.current_time()
        for told in self._told.values():
            if told.prompt.client_id == client_id:
                # What happened while nobody listened is lost.
                told.cursor = self.service.cursor(now_s, told.job, told.job.seq)
                if told.job.state is RunState.RUNNING:
                    socket.put(words.resumed(told.prompt))
        return socket

    def disconnect(self, socket: Socket) -> None:
        """A socket has closed; whichever socket has its client id now hears nothing any more."""
        self._sockets.pop(socket.client_id, None)

    @property
    def listeners(self) -> tuple[str, ...]:
        """Client ids that somebody listens to."""
        return tuple(self._sockets)

    def remaining(self) -> int:
        """Prompts waiting or running."""
        running, waiting = self.service.executions()
        return len(running) + len(waiting)

    async def serve_socket(self, web: ServerWebSocket, client_id: str) -> None:
        """Publish to one socket until either side ends it."""
        socket = self.connect(client_id)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, web, socket, nursery.cancel_scope)
                with contextlib.suppress(WebSocketEnded):
                    await self._write(web, socket)
                nursery.cancel_scope.cancel()
        finally:
            self.disconnect(socket)

    async def _read(self, web: ServerWebSocket, socket: Socket, both: trio.CancelScope) -> None:
        """Take in what the client says; only its first frame counts."""
        first = True
        with contextlib.suppress(WebSocketEnded):
            while True:
                said = await web.receive()
                if first and isinstance(said, str):
                    self._negotiate(said, socket)
                first = False
        both.cancel()

    def _negotiate(self, said: str, socket: Socket) -> None:
        try:
            flags = msgspec.json.decode(said, type=dict[str, Any])
        except msgspec.DecodeError:
            return
        if flags.get("type") == "feature_flags" and isinstance(flags.get("data"), dict):
            socket.named_previews = flags["data"].get("supports_preview_metadata") is True
            ours = {"supports_preview_metadata": True, "max_upload_size": 104_857_600}
            socket.put(words.text("feature_flags", ours))

    async def _write(self, web: ServerWebSocket, socket: Socket) -> None:
        while not socket.cut:
            await self.not_paused()
            if socket.outbox:
                # One loop publishes to all: whoever does not read keeps everybody else waiting.
                async with self._publishing:
                    await web.send(socket.outbox.popleft())
            else:
                await self._news(socket)
        await web.abort()

    async def _news(self, socket: Socket) -> None:
        """Wait until there may be something to send, and make happen what is due."""
        socket.news = trio.Event()
        due_s = self._next_due_s()
        with trio.move_on_at(math.inf if due_s is None else due_s) as scope:
            await socket.news.wait()
        if scope.cancelled_caught and due_s is not None:
            # Not the clock's time: a virtual clock may stop a rounding error short of the moment, for ever.
            self.service.advance(max(due_s, trio.current_time()))
            self._tell_late(max(due_s, trio.current_time()))
            self.wake()

    def _next_due_s(self) -> float | None:
        due_s = self.service.next_due_s()
        moments = [moment_s for moment_s, _prompt in self._late]
        if due_s is not None:
            moments.append(due_s)
        return min(moments) if moments and not self.service.paused else None

    # ── what is told ──

    def tell(self, prompt: Prompt, after: int) -> None:
        """Tell the events of an accepted prompt from now on, those after a number."""
        job = self.service.job(prompt.prompt_id)
        if job is not None:
            cursor = self.service.cursor(trio.current_time(), job, after)
            self._told[prompt.prompt_id] = _Told(job, prompt, cursor)
            self._everyone(words.status(self.remaining()))

    def wake(self) -> None:
        """Publish what is new, and let everybody look again at what is due next."""
        if self.service.restarts != self._forgotten:
            self._forgotten = self.service.restarts
            self._told.clear()
            self._late.clear()
            for socket in self._sockets.values():
                socket.abort()
            self._sockets.clear()
        self._tell_late(trio.current_time())
        touched = self.service.drain_touched()
        for prompt_id in sorted(touched):
            if prompt_id in self._told:
                self._publish(self._told[prompt_id])
        if touched:
            for socket in self._sockets.values():
                socket.news.set()
        super().wake()

    def _publish(self, told: _Told) -> None:
        now_s = trio.current_time()
        owner = self._sockets.get(told.prompt.client_id)
        for step in told.cursor.pull(self.service.elapsed_s(now_s)):
            if step.act is StreamAct.LINE and step.event is None:
                if owner is not None:
                    owner.put(GARBAGE.decode("latin-1"))
            elif step.act is StreamAct.LINE and step.event is not None:
                outputs = self._outputs(told.job, told.prompt) if step.event.terminal else {}
                now_ms = round(self.service.elapsed_s(now_s) * 1000)
                for frame in words.frames(step.event, told.job, told.prompt, outputs, now_ms):
                    self._deliver(frame, owner)
                if step.event.terminal:
                    self._late.append((told.job.readable_s, told.prompt))
                    self._tell_late(now_s)
            elif step.act is StreamAct.CUT and owner is not None:
                owner.abort()

        if told.job.ended and self._told.get(told.prompt.prompt_id) is told:
            # Whatever was to be told of it has been, or never will be.
            del self._told[told.prompt.prompt_id]

    def _deliver(self, frame: Frame, owner: Socket | None) -> None:
        for socket in self._sockets.values() if frame.everyone else ([] if owner is None else [owner]):
            unnamed = frame.unnamed is not None and not socket.named_previews
            socket.put(frame.unnamed if unnamed and frame.unnamed is not None else frame.data)

    def _everyone(self, data: str) -> None:
        for socket in self._sockets.values():
            socket.put(data)

    def _tell_late(self, now_s: float) -> None:
        """The last frames of a job, which never come before its record: also after a failure."""
        due = [prompt for moment_s, prompt in self._late if moment_s <= now_s]
        self._late = [item for item in self._late if item[0] > now_s]
        for prompt in due:
            self._everyone(words.status(self.remaining()))
            owner = self._sockets.get(prompt.client_id)
            if owner is not None:
                owner.put(words.executing(prompt, None))
