"""A simulated model server of the Open Inference Protocol over gRPC: what MLServer and KServe were recorded to do.

What a request is to do comes in its parameter ``work``: a ``WorkPayload`` as JSON text; without it the work is the
service's default. The request's id is the job's name in the journal. Answers hold one tensor: ``result``, or in a
stream ``chunk`` until the last.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Mapping
from random import Random
from typing import Any, Literal

import msgspec
import trio
from google.protobuf.message import DecodeError

from gateway.connectors.openinference.grpc import MODEL_INFER, MODEL_STREAM_INFER, REPOSITORY_INDEX
from gateway.connectors.simulation.wire import (
    ErrorKind,
    EventType,
    JournalEntry,
    StreamEvent,
    SubmitRequest,
    WireFormatError,
    WorkPayload,
    decode,
)
from protocols.grpc_channel import CallEnded, Code
from protocols.grpc_health import CHECK, MODEL_READY, SERVER_LIVE, SERVER_READY
from protocols.grpc_server import GRPCServerLimits
from protocols.grpc_service import IncomingCall
from protocols.proto import health_pb2
from protocols.proto import inference_pb2 as pb
from simulator.cursor import GARBAGE, EventCursor, StreamAct
from simulator.faults import FaultPlan
from simulator.model import Caller, Delivery, Reply, ServiceConfig
from simulator.services.grpc import broken, refused, send_reply
from simulator.services.grpc_served import GRPCServed
from simulator.services.shell import ServiceShell, caller_of

MODEL = "simulation"
WORK_PARAMETER = "work"


class OpenInferenceOddities(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """In what this server differs; the defaults are MLServer's ways.

    Attributes:
        health_service: whether it has ``grpc.health.v1`` (KServe does, MLServer answers UNIMPLEMENTED).
        streams: whether it has ModelStreamInfer (MLServer does, KServe answers UNIMPLEMENTED).
        repository: whether it lists its models (MLServer and Triton do, KServe answers UNIMPLEMENTED).
        unknown_model: the status of ModelReady for a model it does not know (KServe says NOT_FOUND).
        model_loaded: without its model the server stays ready; ModelReady and inference say that they do not know it.
        model_ready: a model that says it is not ready, and serves all the same.
    """

    health_service: bool = False
    streams: bool = True
    repository: bool = True
    unknown_model: Literal["UNKNOWN", "NOT_FOUND"] = "UNKNOWN"
    model_loaded: bool = True
    model_ready: bool = True


def payload(work: WorkPayload) -> dict[str, Any]:
    """The payload of a job that is to be this work."""
    return {
        "model": MODEL,
        "stream": work.chunks > 0,
        "parameters": {WORK_PARAMETER: msgspec.json.encode(work).decode()},
        "inputs": [{"name": "input", "datatype": "INT32", "shape": [1], "data": [1]}],
    }


class OpenInferenceService(GRPCServed):
    """One simulated model server: its model ``simulation``, and those of its configuration, do the same.

    Args:
        config: name, capacity and defaults.
        plan: its faults at first; ``PUT /control/faults`` changes them.
        random_for: random stream by knob name, see ``simulator.seeding.streams``.
        sink: called with each new journal entry.
    """

    #: Room for as many requests as a fleet keeps open; 4 MiB is what real servers take unless told otherwise.
    limits = GRPCServerLimits(calls_max=1_024)

    def __init__(
        self,
        config: ServiceConfig,
        plan: FaultPlan,
        *,
        random_for: Callable[[str], Random],
        sink: Callable[[JournalEntry], None] | None = None,
    ) -> None:
        self.shell = ServiceShell(config, plan, random_for=random_for, sink=sink)
        self.oddities = OpenInferenceOddities()
        self._nameless = itertools.count(1)

    def set_oddities(self, values: Mapping[str, Any]) -> None:
        """Change some oddities from now on.

        Raises:
            msgspec.ValidationError: an unknown one or a bad value; nothing is changed then.
        """
        merged = {**msgspec.to_builtins(self.oddities), **values}
        self.oddities = msgspec.convert(merged, OpenInferenceOddities)

    async def handle(self, call: IncomingCall) -> None:
        """Answer one call; for ``serve_grpc``, or any channel that leads here.

        Raises:
            CallEnded: the call ends with another status than OK.
        """
        await self.shell.not_paused()
        if call.path == MODEL_INFER.path or (call.path == MODEL_STREAM_INFER.path and self.oddities.streams):
            await self._infer(call)
        else:
            await call.send(self._ready(call, caller_of(call.metadata)))

    def _ready(self, call: IncomingCall, caller: Caller) -> bytes:
        """Answer a question about health; a server whose model hangs is as ready as ever."""
        oddities, path = self.oddities, call.path
        if path == CHECK.path and oddities.health_service:
            state = "NOT_SERVING" if self._failing(caller) else "SERVING"
            return health_pb2.HealthCheckResponse(status=state).SerializeToString()
        if path == SERVER_LIVE.path:
            return pb.ServerLiveResponse(live=True).SerializeToString()
        if path == SERVER_READY.path:
            return pb.ServerReadyResponse(ready=not self._failing(caller)).SerializeToString()
        if path == MODEL_READY.path:
            try:
                name = pb.ModelReadyRequest.FromString(call.request).name
            except DecodeError as error:
                raise CallEnded(Code.INTERNAL, str(error)) from error
            if name not in self._models():
                raise CallEnded(Code[oddities.unknown_model], f"Model {name} not found")
            return pb.ModelReadyResponse(ready=oddities.model_ready).SerializeToString()
        if path == REPOSITORY_INDEX.path and oddities.repository:
            return self._index(call).SerializeToString()
        raise CallEnded(Code.UNIMPLEMENTED, f"no method {path}")

    def _models(self) -> tuple[str, ...]:
        """The models it knows."""
        return (MODEL, *self.service.config.models) if self.oddities.model_loaded else ()

    def _index(self, call: IncomingCall) -> pb.RepositoryIndexResponse:
        try:
            ready_only = pb.RepositoryIndexRequest.FromString(call.request).ready
        except DecodeError as error:
            raise CallEnded(Code.INTERNAL, str(error)) from error
        response, ready = pb.RepositoryIndexResponse(), self.oddities.model_ready
        if ready or not ready_only:
            # MLServer writes the name of its own enumeration along.
            state = "State.READY" if ready else "State.UNKNOWN"
            for name in self._models():
                response.models.add(name=name, version="1", state=state)
        return response

    def _failing(self, caller: Caller) -> bool:
        return self.service.health(trio.current_time(), caller).status != 200

    async def _infer(self, call: IncomingCall) -> None:
        """Run one request; whoever leaves before its end stops it."""
        request, work = self._read(call)
        caller, shell = caller_of(call.metadata), self.shell
        job_id = request.id or f"nameless-{next(self._nameless)}"
        submitted = SubmitRequest(id=job_id, payload=work)
        reply = self.service.submit(trio.current_time(), submitted, caller, dedupe=False)
        shell.wake()
        if reply.status != 202 or reply.delivery is not Delivery.NORMAL:
            await send_reply(shell, reply, call, _never)
            return
        job = self.service.job(job_id)
        assert job is not None, "it was accepted just now"
        execution = job.newest
        try:
            await self._tell(call, request, self.service.cursor(trio.current_time(), job, 0))
        finally:
            # A later request under the same id has a caller of its own.
            if not (job.ended or job.forgotten) and job.newest is execution:
                self.service.stop(trio.current_time(), job, caller)
                shell.wake()

    def _read(self, call: IncomingCall) -> tuple[pb.ModelInferRequest, Any]:
        """The request and the work it asks for."""
        try:
            request = pb.ModelInferRequest.FromString(call.request)
        except DecodeError as error:
            raise CallEnded(Code.INTERNAL, str(error)) from error
        if request.model_name not in self._models():
            raise CallEnded(Code.NOT_FOUND, f"Model {request.model_name} not found")
        text = request.parameters[WORK_PARAMETER].string_param if WORK_PARAMETER in request.parameters else ""
        try:
            return request, decode(text.encode(), dict[str, Any]) if text else None
        except WireFormatError as error:
            raise CallEnded(Code.INVALID_ARGUMENT, f"{WORK_PARAMETER}: {error}") from error

    async def _tell(self, call: IncomingCall, request: pb.ModelInferRequest, cursor: EventCursor) -> None:
        """Answer with the job's story, as far as this kind of call tells it."""
        shell, streamed, told = self.shell, call.path == MODEL_STREAM_INFER.path, 0
        while True:
            await shell.not_paused()
            for step in cursor.pull(self.service.elapsed_s(trio.current_time())):
                if step.act is StreamAct.SILENCE:
                    await shell.until_restart()
                if step.act in (StreamAct.SILENCE, StreamAct.CUT):
                    raise broken()
                event = step.event
                if event is None:
                    if step.act is StreamAct.LINE:
                        await call.send(GARBAGE)
                    return
                # Within one call nothing comes twice or overtakes: those faults do not exist here.
                if event.seq > told and (streamed or event.terminal):
                    told = event.seq
                    await self._say(call, request, event)
                    if event.terminal:
                        return
            await shell.news_of(cursor.job)

    async def _say(self, call: IncomingCall, request: pb.ModelInferRequest, event: StreamEvent) -> None:
        if event.error is not None:
            if event.error.kind is ErrorKind.NOT_FOUND:
                raise CallEnded(Code.NOT_FOUND, event.error.message)
            raise refused(self.shell, event.error)
        if event.type is EventType.CANCELLED:
            raise CallEnded(Code.CANCELLED, "cancelled")
        if event.type is EventType.CHUNK:
            await call.send(_response(request, "chunk", event.data))
        elif event.type is EventType.COMPLETED:
            await call.send(_response(request, "result", event.result))


def _response(request: pb.ModelInferRequest, name: str, value: Any) -> bytes:
    """One answer; raw contents for a request that brought such, no output at all for an empty one."""
    response = pb.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
    if value is not None:
        text = msgspec.json.encode(value)
        output = response.outputs.add(name=name, datatype="BYTES", shape=[1])
        if request.raw_input_contents:
            response.raw_output_contents.append(struct.pack("<I", len(text)) + text)
        else:
            output.contents.bytes_contents.append(text)
    return response.SerializeToString()


def _never(reply: Reply) -> pb.ModelInferResponse:
    raise AssertionError(f"an accepted request is answered by its job, not by {reply}")
