"""The simulated service over gRPC: a thin shell around ``simulator.behaviour``."""

from __future__ import annotations

import math
from collections.abc import Callable
from random import Random

import trio
from google.protobuf.message import DecodeError, Message

from gateway.connectors.simulation import wire
from gateway.connectors.simulation import wire_grpc as messages
from protocols.grpc_channel import CallEnded, Code
from protocols.grpc_health import CHECK
from protocols.grpc_server import GRPCServerLimits
from protocols.grpc_service import IncomingCall
from protocols.proto import health_pb2
from protocols.proto import simulation_pb2 as pb
from simulator.cursor import GARBAGE, EventCursor, StreamAct
from simulator.faults import FaultPlan
from simulator.model import Caller, Delivery, Reply, ServiceConfig, refusal
from simulator.services.grpc_served import GRPCServed
from simulator.services.shell import SERVER_LIMITS, ServiceShell, caller_of


class SimulationGRPCService(GRPCServed):
    """One simulated instance that speaks the contract of ``gateway.connectors.simulation.wire_grpc``.

    A connection cannot be reset from within a call: what another dialect shows by a reset ends the call here as a
    broken connection does, with UNAVAILABLE and nothing else.

    Args:
        config: name, capacity and defaults.
        plan: its faults at first; ``PUT /control/faults`` changes them.
        random_for: random stream by knob name, see ``simulator.seeding.streams``.
        sink: called with each new journal entry.
    """

    #: A listener holds a call, and a call a thread.
    limits = GRPCServerLimits(calls_max=1_024, request_bytes_max=SERVER_LIMITS.body_bytes_max)

    def __init__(
        self,
        config: ServiceConfig,
        plan: FaultPlan,
        *,
        random_for: Callable[[str], Random],
        sink: Callable[[wire.JournalEntry], None] | None = None,
    ) -> None:
        self.shell = ServiceShell(config, plan, random_for=random_for, sink=sink)

    async def handle(self, call: IncomingCall) -> None:
        """Answer one call; for ``serve_grpc``, or any channel that leads here.

        Raises:
            CallEnded: the call ends with another status than OK.
        """
        await self.shell.not_paused()
        outcome = self._dispatch(call, caller_of(call.metadata))
        self.shell.wake()
        if isinstance(outcome, EventCursor):
            await self._stream(outcome, call)
        elif isinstance(outcome, Message):
            await call.send(outcome.SerializeToString())
        else:
            await send_reply(self.shell, outcome, call, _message_of)

    def _dispatch(self, call: IncomingCall, caller: Caller) -> Reply | EventCursor | Message:
        """Route a call; faults apply."""
        now_s, service, path = trio.current_time(), self.service, call.path
        try:
            if path == messages.SUBMIT.path:
                request = pb.SubmitRequest.FromString(call.request)
                payload = messages.json_value(request.payload)
                return service.submit(now_s, wire.SubmitRequest(id=request.id, payload=payload), caller)
            if path == messages.STATUS.path:
                return service.status(now_s, pb.JobRequest.FromString(call.request).id, caller)
            if path == messages.CANCEL.path:
                return service.cancel(now_s, pb.JobRequest.FromString(call.request).id, caller)
            if path == messages.EVENTS.path:
                wanted = pb.EventsRequest.FromString(call.request)
                return service.listen(now_s, wanted.id, wanted.after, caller)
            if path == CHECK.path:
                return self._health(health_pb2.HealthCheckRequest.FromString(call.request), caller)
        except (DecodeError, wire.WireFormatError) as error:
            return refusal(wire.ErrorKind.VALIDATION, str(error))
        raise CallEnded(Code.UNIMPLEMENTED, f"no method {path}")

    def _health(self, asked: health_pb2.HealthCheckRequest, caller: Caller) -> Message:
        """Answer the standard health check."""
        if asked.service:
            raise CallEnded(Code.NOT_FOUND, "only the server as a whole has a health")
        failing = self.service.health(trio.current_time(), caller).status != 200
        return health_pb2.HealthCheckResponse(status="NOT_SERVING" if failing else "SERVING")

    async def _stream(self, cursor: EventCursor, call: IncomingCall) -> None:
        """Send a job's events as they happen, until the stream ends the way its cursor says."""
        shell = self.shell
        while True:
            await shell.not_paused()
            steps = cursor.pull(self.service.elapsed_s(trio.current_time()))
            for step in steps:
                if step.act is StreamAct.LINE:
                    event = step.event
                    await call.send(
                        GARBAGE if event is None else messages.event_message(event).SerializeToString()
                    )
                    continue
                if step.act is StreamAct.SILENCE:
                    await shell.until_restart()
                if step.act is not StreamAct.END:
                    raise broken()
                return
            if not steps:
                await shell.news_of(cursor.job)


def broken() -> CallEnded:
    """What a caller sees when its connection breaks during a call."""
    return CallEnded(Code.UNAVAILABLE, "Socket closed")


async def send_reply(
    shell: ServiceShell, reply: Reply, call: IncomingCall, message_of: Callable[[Reply], Message]
) -> None:
    """Send one answer the way it is to be delivered.

    Args:
        shell: the instance.
        reply: the answer of the behaviour core.
        call: whom to answer.
        message_of: an answer that is no refusal as the dialect's message.

    Raises:
        CallEnded: the answer is a refusal, or the call is to end as by a broken connection.
    """
    if reply.delivery is Delivery.HANG:
        await shell.until_restart()
    if reply.delivery in (Delivery.HANG, Delivery.CUT):
        raise broken()
    if reply.delivery is Delivery.GARBAGE:
        await call.send(GARBAGE)
        return
    if isinstance(reply.body, wire.ErrorReply):
        raise refused(shell, reply.body.error)
    await call.send(message_of(reply).SerializeToString())


def refused(shell: ServiceShell, failure: wire.ServiceFailure) -> CallEnded:
    """A refusal as a status; its metadata names the instance, the kind of failure and the wish to wait."""
    metadata: dict[str, str | bytes] = dict(shell.instance_header)
    metadata[messages.ERROR_NAME] = wire.encode(wire.ErrorReply(error=failure))
    if failure.retry_after_s is not None:
        metadata["retry-after"] = str(math.ceil(failure.retry_after_s))
    return CallEnded(messages.CODES[failure.kind], failure.message, metadata)


def _message_of(reply: Reply) -> Message:
    body = reply.body
    if isinstance(body, wire.SubmitReply):
        return messages.submit_reply_message(body)
    if isinstance(body, wire.CancelReply):
        return messages.cancel_reply_message(body)
    assert isinstance(body, wire.JobStatus), f"no message for {type(body).__name__}"
    return messages.status_message(body)
