"""How the health of a gRPC peer is asked: the standard service, else the Open Inference Protocol, then one model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from protocols.errors import FaultKind, NotFound, Unsupported
from protocols.grpc_method import Method
from protocols.proto import health_pb2, inference_pb2

if TYPE_CHECKING:
    from protocols.grpc import GRPCAdapter

CHECK = Method("/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse)
_INFERENCE = "/inference.GRPCInferenceService"
SERVER_LIVE = Method(
    f"{_INFERENCE}/ServerLive", inference_pb2.ServerLiveRequest, inference_pb2.ServerLiveResponse
)
SERVER_READY = Method(
    f"{_INFERENCE}/ServerReady", inference_pb2.ServerReadyRequest, inference_pb2.ServerReadyResponse
)
MODEL_READY = Method(
    f"{_INFERENCE}/ModelReady", inference_pb2.ModelReadyRequest, inference_pb2.ModelReadyResponse
)


class NotServing(Exception):
    """The peer answered, and said that it does not serve."""

    fault = FaultKind.UNAVAILABLE


async def probe(adapter: GRPCAdapter, model: str, *, timeout_s: float) -> str:
    """Climb the ladder; returns what was found, for people.

    ``grpc.health.v1`` first; a peer without it (MLServer) is asked for ServerLive and ServerReady. Either says nothing
    of a model (a server stays ready when its last model is gone), so that ModelReady follows when one is named.

    Args:
        adapter: makes the calls.
        model: name of the model that must be ready; empty for the server alone.
        timeout_s: seconds for each call; the caller bounds the whole.

    Raises:
        NotServing: the peer says that it, or the model, is not ready.
        ProtocolError: the peer could not be asked.
    """
    try:
        reply = await adapter.call(CHECK, health_pb2.HealthCheckRequest(), timeout_s=timeout_s)
    except (Unsupported, NotFound):
        reply = None
    if reply is None:
        said = "ready"
        live = await adapter.call(SERVER_LIVE, inference_pb2.ServerLiveRequest(), timeout_s=timeout_s)
        ready = await adapter.call(SERVER_READY, inference_pb2.ServerReadyRequest(), timeout_s=timeout_s)
        if not (live.live and ready.ready):
            raise NotServing("the server is not ready" if live.live else "the server is not live")
    else:
        said = "serving"
        if reply.status != health_pb2.HealthCheckResponse.SERVING:
            name = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
            raise NotServing(f"health check says {name}")
    if not model:
        return said
    asked = inference_pb2.ModelReadyRequest(name=model)
    if not (await adapter.call(MODEL_READY, asked, timeout_s=timeout_s)).ready:
        raise NotServing(f"model {model!r} is not ready")
    return f"{said}, model {model!r} ready"
