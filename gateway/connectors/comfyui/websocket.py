"""Connector ``comfyui-websocket``: stock ComfyUI, followed over its socket and, whenever that fails to tell, by asking.

Each job has a socket of its own, opened before the job is submitted and under a client id that nobody else uses: a
server tells only the newest socket of a client id. What the socket says about an end is a hint (the same frame follows
success, failure and interruption); the record in the history decides. A socket that cannot be opened, breaks for good
or falls silent costs progress and previews, never the job.
"""

from __future__ import annotations

import base64
import contextlib
import logging

import trio

from gateway.connector import ConnectorCapabilities, ConnectorSetup, JobContext, JobResult
from gateway.connectors.comfyui import frames
from gateway.connectors.comfyui.base import ComfyUIConnector
from gateway.connectors.comfyui.options import ComfyUIWebSocketOptions, read_options
from gateway.connectors.comfyui.wire import Place, Workflow, execution_fault
from gateway.errors import JobFault
from protocols.errors import ProtocolError
from protocols.websocket import WebSocketAdapter
from protocols.websocket_link import WebSocket, WebSocketLimits
from protocols.websocket_session import WebSocketSession, open_session

log = logging.getLogger(__name__)

#: Sockets to one instance at once, one per job: far beyond the slots of a worker.
SOCKETS_MAX = 1024
#: Frames that may wait for a job's task beside those that newer ones replace; a workflow's nodes send a few each.
FRAMES_MAX = 4096


class _Story:
    """What the socket has told about one job so far."""

    def __init__(self, workflow: Workflow, now_s: float) -> None:
        self.progress = frames.WorkflowProgress(workflow.nodes)
        #: Why it failed, if the socket said so: for a server that does not live to write the record.
        self.fault: JobFault | None = None
        #: When the socket last spoke about the job, when it or the record last told, and when the queue did.
        self.heard_s = self.told_s = self.looked_s = now_s
        self.preview_s = -float("inf")


class ComfyUIWebSocketConnector(ComfyUIConnector[ComfyUIWebSocketOptions]):
    """Runs jobs at one ComfyUI; its options are ``ComfyUIWebSocketOptions``.

    Raises (constructor):
        ConfigError: unknown option or impossible value.
    """

    key = "comfyui-websocket"
    capabilities = ConnectorCapabilities(query=True, cancel=True, stream=True, reattach=True)

    def __init__(self, setup: ConnectorSetup) -> None:
        super().__init__(setup, read_options(self.key, setup.options, ComfyUIWebSocketOptions))
        self._sockets = WebSocketAdapter(
            setup.endpoint,
            open_stream=setup.open_stream,
            limits=WebSocketLimits(connections_max=SOCKETS_MAX, frames_max=FRAMES_MAX),
        )

    async def aclose(self) -> None:
        try:
            await self._sockets.aclose()
        finally:
            await super().aclose()

    async def _run(self, job: JobContext, workflow: Workflow) -> JobResult:
        async with contextlib.AsyncExitStack() as stack:
            session = await self._subscribe(stack, job)
            await self._submit(job, workflow)
            return await self._follow(job, workflow, session)

    async def _resume(self, job: JobContext, workflow: Workflow) -> JobResult:
        async with contextlib.AsyncExitStack() as stack:
            session = await self._subscribe(stack, job)
            # What happened before the socket was open is told by nobody.
            result = await self._concluded(job, await self._patient_look(job))
            return await self._follow(job, workflow, session) if result is None else result

    async def _subscribe(self, stack: contextlib.AsyncExitStack, job: JobContext) -> WebSocketSession | None:
        """Open the job's socket, or say that the job has to do without."""
        path = frames.socket_path(self._client_id(job.reference))
        session = open_session(
            self._sockets,
            path,
            resync=_hello,
            random=self.setup.random,
            key_of=frames.key_for(lambda: job.reference),
        )
        try:
            return await stack.enter_async_context(session)
        except ProtocolError as error:
            log.info(
                "%s: no socket for %s, it is polled instead: %s", self.setup.endpoint, job.reference, error
            )
            return None

    async def _follow(
        self, job: JobContext, workflow: Workflow, session: WebSocketSession | None
    ) -> JobResult:
        """Listen until the job's end, and look whenever there is silence or a gap."""
        if session is None:
            return await self._poll(job)
        story, connects = _Story(workflow, self.setup.now_s()), session.connects
        while True:
            frame: str | bytes | None = None
            try:
                # Frames about others may come all the time: only those about this job break its silence.
                with trio.move_on_after(max(0.0, story.told_s + self.options.stall_s - self.setup.now_s())):
                    frame = await session.receive()
            except ProtocolError as error:
                log.info("%s: the socket of %s is gone: %s", self.setup.endpoint, job.reference, error)
                return await self._poll(job)
            result: JobResult | None = None
            if session.connects != connects:
                # Whatever was said in between is lost.
                connects = session.connects
                result = await self._looked(job, story)
            if result is None and frame is None:
                result = await self._look_after_silence(job, story, session)
            elif result is None and frame is not None and await self._take(job, frame, story):
                result = await self._ended(job, story)
            if result is not None:
                return result

    async def _take(self, job: JobContext, frame: str | bytes, story: _Story) -> bool:
        """Learn from one frame; whether it announces the job's end. Frames of other jobs change nothing."""
        if isinstance(frame, bytes):
            await self._take_preview(job, frame, story)
            return False
        event = frames.read_text(frame)
        if event is None or event.prompt_id != job.reference:
            return False
        story.heard_s = story.told_s = self.setup.now_s()
        story.progress.take(event)
        job.progress(story.progress.fraction, story.progress.message)
        if event.kind == frames.ERROR:
            story.fault = execution_fault(event.data)
        return event.ends

    async def _take_preview(self, job: JobContext, frame: bytes, story: _Story) -> None:
        now_s = self.setup.now_s()
        if not self.options.previews or now_s - story.preview_s < self.options.preview_every_s:
            return
        preview = frames.read_binary(frame)
        if preview is None or preview.prompt_id != job.reference:
            return
        story.heard_s = story.told_s = now_s
        if len(preview.image) <= self.options.preview_bytes_max:
            story.preview_s = now_s
            data = base64.b64encode(preview.image).decode("ascii")
            await job.chunk({"node": preview.node_id, "media_type": preview.media_type, "data": data})

    async def _look_after_silence(
        self, job: JobContext, story: _Story, session: WebSocketSession
    ) -> JobResult | None:
        """The second witness: the record at each silence, the queue as well every ``look_s``."""
        now_s = story.told_s = self.setup.now_s()
        found = await self._glance(job)
        if found.outcome is not None or now_s - story.looked_s < self.options.look_s:
            return await self._concluded(job, found)
        result = await self._looked(job, story)
        if result is None and now_s - story.heard_s >= self.options.deaf_s:
            story.heard_s = now_s
            session.drop()
        return result

    async def _looked(self, job: JobContext, story: _Story) -> JobResult | None:
        """The result by a careful look, None while the job waits or runs.

        Raises:
            JobFault: it failed or is gone; then what the socket said about its end is better than that it is gone.
        """
        found = await self._patient_look(job)
        story.looked_s = self.setup.now_s()
        if found.place is Place.ABSENT and story.fault is not None:
            raise story.fault
        job.progress(story.progress.fraction, story.progress.message or found.place.value)
        return await self._concluded(job, found)

    async def _ended(self, job: JobContext, story: _Story) -> JobResult | None:
        """The result of a job whose end was announced; None when the server says that it runs on."""
        try:
            return await self._settle(job)
        except JobFault as fault:
            raise story.fault or fault from fault


async def _hello(link: WebSocket) -> None:
    """The first text frame of each connection, as the server wants it."""
    await link.send(frames.HELLO)
