"""The simulated service over WebSocket: a thin shell around ``simulator.behaviour``, on any trio stream."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec
import trio

from gateway.connectors.simulation import wire
from gateway.connectors.simulation import wire_websocket as frames
from protocols.http_responder import Responder, ServerRequest
from protocols.websocket_server import ServerWebSocket, WebSocketEnded, accept_websocket, is_websocket
from simulator.cursor import GARBAGE, EventCursor, StreamAct
from simulator.faults import FaultPlan
from simulator.model import Caller, Delivery, Reply, ServiceConfig, refusal
from simulator.services.served import HTTPServed
from simulator.services.shell import ServiceShell, caller_of


class SimulationWebSocketService(HTTPServed[ServiceShell]):
    """One simulated instance that speaks the contract of ``gateway.connectors.simulation.wire_websocket``.

    Health, journal and control are served over HTTP on the same port.

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
        """Answer one request or handshake; whatever the path, the answer names this instance."""
        shell = self.shell
        refused = self._door(request, caller_of(request.headers))
        shell.wake()
        if refused is not None:
            await shell.send(refused, responder)
            return
        socket = await accept_websocket(
            request, responder, headers=shell.instance_header, gate=shell.not_paused
        )
        if socket is not None:
            await _Conversation(self.shell, socket, caller_of(request.headers)).run()

    def _door(self, request: ServerRequest, caller: Caller) -> Reply | None:
        """What to answer instead of a WebSocket; faults apply."""
        now_s = trio.current_time()
        if request.path == wire.HEALTH_PATH and request.method == "GET":
            health = self.service.health(now_s, caller)
            return None if is_websocket(request) and health.status == 200 else health
        if request.path == frames.SOCKET_PATH:
            return self.service.greet(now_s, caller) if is_websocket(request) else None
        return refusal(wire.ErrorKind.NOT_FOUND, f"nothing at {request.method} {request.path}")


class _Conversation:
    """One accepted socket: requests are answered in order, each subscription is a task."""

    def __init__(self, shell: ServiceShell, socket: ServerWebSocket, caller: Caller) -> None:
        self._shell = shell
        self._socket = socket
        self._caller = caller
        self._subscriptions: dict[str, _Subscription] = {}
        self._silent = False
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        """Converse until either side ends the socket, or a restart does."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._until_restart)
                await self._listen(nursery)
        if self._silent:
            await self._stay_silent()

    async def _listen(self, nursery: trio.Nursery) -> None:
        try:
            while True:
                message = await self._socket.receive()
                await self._shell.not_paused()
                await self._answer(message, nursery)
        except WebSocketEnded:
            self._scope.cancel()

    async def _until_restart(self) -> None:
        await self._shell.until_restart()
        await self._socket.abort()
        self._scope.cancel()

    async def _stay_silent(self) -> None:
        """A half-open connection: nothing is said any more, until the peer leaves or a restart ends it."""
        async with trio.open_nursery() as nursery:

            async def end() -> None:
                await self._shell.until_restart()
                await self._socket.abort()
                nursery.cancel_scope.cancel()

            nursery.start_soon(end)
            await self._socket.silence()
            nursery.cancel_scope.cancel()

    async def _answer(self, message: str | bytes, nursery: trio.Nursery) -> None:
        try:
            request = frames.decode_request(message)
        except wire.WireFormatError as error:
            # Its number is unknown, and 0 is nobody's.
            await self._reply(0, refusal(wire.ErrorKind.VALIDATION, error.detail))
            return
        outcome = self._dispatch(request)
        self._shell.wake()
        if isinstance(outcome, Reply):
            await self._reply(request.id, outcome)
            return
        if request.job in self._subscriptions:
            self._subscriptions[request.job].replace()
        self._subscriptions[request.job] = subscription = _Subscription(outcome)
        state = outcome.job.state
        await self._reply(request.id, Reply(200, frames.SubscribeReply(id=request.job, state=state)))
        nursery.start_soon(self._stream, subscription)

    def _dispatch(self, request: frames.SocketRequest) -> Reply | EventCursor:
        """Perform one request; faults apply."""
        now_s, caller, service = trio.current_time(), self._caller, self._shell.service
        if request.verb is frames.Verb.SUBMIT:
            submitted = wire.SubmitRequest(id=request.job, payload=request.payload)
            return service.submit(now_s, submitted, caller)
        if request.verb is frames.Verb.SUBSCRIBE:
            return service.listen(now_s, request.job, request.after, caller)
        if request.verb is frames.Verb.CANCEL:
            return service.cancel(now_s, request.job, caller)
        return service.status(now_s, request.job, caller)

    async def _reply(self, number: int, reply: Reply) -> None:
        """Send one reply the way it is to be delivered."""
        if reply.delivery is Delivery.HANG:
            return
        if reply.delivery is Delivery.CUT:
            await self._socket.abort()
        elif reply.delivery is Delivery.GARBAGE:
            await self._socket.send(GARBAGE)
        else:
            frame = frames.SocketReply(
                id=number,
                status=reply.status,
                body=msgspec.Raw(wire.encode(reply.body)),
                retry_after_s=reply.retry_after_s,
            )
            await self._socket.send(frames.encode_frame(frame))

    async def _stream(self, subscription: _Subscription) -> None:
        """Send a job's events as they happen, until they end the way their cursor says."""
        try:
            act = await self._show(subscription)
        except WebSocketEnded:
            self._scope.cancel()
            return
        if act is StreamAct.CUT:
            await self._socket.abort()
            self._scope.cancel()
        job = subscription.cursor.job
        # A lost completion is silent by itself, a half-open connection altogether.
        if act is StreamAct.SILENCE and not (job.ended and job.muted_seq):
            self._silent = True
            self._scope.cancel()

    async def _show(self, subscription: _Subscription) -> StreamAct:
        """Send events until an act ends them; ``END`` too when another subscription took over."""
        shell, cursor = self._shell, subscription.cursor
        while True:
            await shell.not_paused()
            steps = cursor.pull(shell.service.elapsed_s(trio.current_time()))
            for step in steps:
                if subscription.replaced:
                    return StreamAct.END
                if step.act is not StreamAct.LINE:
                    return step.act
                await self._socket.send(
                    GARBAGE if step.event is None else frames.event_frame(cursor.job.id, step.event)
                )
            if not steps:
                with subscription.waiting_anew():
                    await shell.news_of(cursor.job)
            if subscription.replaced:
                return StreamAct.END


class _Subscription:
    """One listener on a socket. Another one replaces it between two frames, never within one."""

    def __init__(self, cursor: EventCursor) -> None:
        self.cursor = cursor
        self.replaced = False
        self._waiting = trio.CancelScope()

    def waiting_anew(self) -> trio.CancelScope:
        """A scope for one wait, which a replacement ends."""
        self._waiting = trio.CancelScope()
        return self._waiting

    def replace(self) -> None:
        """Let nothing of it follow."""
        self.replaced = True
        self._waiting.cancel()
