"""Connector ``openinference-grpc``: models behind the Open Inference Protocol, version 2.

A server knows a request only while it works on it: it can neither be asked about one nor be told to stop another's, and
a repeated id runs again. So a lost answer means at-least-once. Ending the call is what stops the work.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.connector import Connector, ConnectorCapabilities, ConnectorSetup, JobContext, JobResult
from gateway.connectors.faults import job_fault
from gateway.connectors.grpc_options import GRPCOptions, open_adapter
from gateway.connectors.model_lists import MODELS
from gateway.connectors.openinference.tensors import PayloadError, read_payload, request_of, result_of
from gateway.errors import ConfigError, FaultClass, JobFault
from protocols.base import HealthReport
from protocols.errors import NotFound, ProtocolError, ProtocolViolation, Unsupported
from protocols.grpc_health import MODEL_READY
from protocols.grpc_method import Method
from protocols.proto import inference_pb2 as pb

SERVICE = "/inference.GRPCInferenceService"
MODEL_INFER = Method(f"{SERVICE}/ModelInfer", pb.ModelInferRequest, pb.ModelInferResponse)
#: MLServer's extension: as many requests in as the client likes (here one), as many answers as the model has.
MODEL_STREAM_INFER = Method(f"{SERVICE}/ModelStreamInfer", pb.ModelInferRequest, pb.ModelInferResponse)
#: What a server's repository holds, asked for what is ready: the standard's own metadata name no models.
REPOSITORY_INDEX = Method(f"{SERVICE}/RepositoryIndex", pb.RepositoryIndexRequest, pb.RepositoryIndexResponse)
#: Names of one server at most.
MODELS_MAX = 10_000
#: Metadata of our own id of the job.
JOB_NAME = "x-gateway-job"


class OpenInferenceGRPCOptions(GRPCOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options in ``[workers.X.options]``, beside those of every gRPC connector.

    Attributes:
        model: the model whose readiness is this worker's health, and which payloads mean that name none.
        version: its version, empty for the server's choice.
        infer_timeout_s: longest inference, seconds; the job's own time-out where that is shorter. The server is told,
            as the call's deadline. (``stall_s`` means nothing here: a computing server is silent and can't be asked.)
    """

    model: str = ""
    version: str = ""
    infer_timeout_s: float = 600.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.infer_timeout_s <= 0:
            raise ValueError(f"infer_timeout_s must be positive, not {self.infer_timeout_s}")


class OpenInferenceGRPCConnector(Connector):
    """Runs jobs on the models of one server.

    Raises (constructor):
        ConfigError: unknown option or impossible value, or an endpoint that is not one for gRPC.
    """

    key = "openinference-grpc"
    service = "openinference"
    capabilities = ConnectorCapabilities(stream=True)

    def __init__(self, setup: ConnectorSetup) -> None:
        super().__init__(setup)
        try:
            self.options = msgspec.convert(dict(setup.options), OpenInferenceGRPCOptions)
        except (msgspec.ValidationError, ValueError) as error:
            raise ConfigError(f"options of {self.key}: {error}") from None
        self._grpc = open_adapter(setup, self.options, key=self.key)

    async def health(self) -> HealthReport:
        return await self._grpc.health(self.options.model)

    async def probe_capabilities(self) -> Mapping[str, Any]:
        """The models that are ready: all of them, or of a server without such a list the worker's own."""
        try:
            try:
                return {MODELS: await self._index()}
            except (Unsupported, NotFound):
                model = self.options.model
            return {MODELS: [model] if await self._is_ready(model) else []} if model else {}
        except ProtocolError as error:
            raise job_fault(error) from error

    async def _index(self) -> list[str]:
        """Names in the repository; several versions of a model are one name."""
        reply = await self._grpc.call(REPOSITORY_INDEX, pb.RepositoryIndexRequest(ready=True))
        if len(reply.models) > MODELS_MAX:
            raise ProtocolViolation(f"the server lists {len(reply.models)} models; {MODELS_MAX} is the most")
        return list(dict.fromkeys(one.name for one in reply.models if one.name and _says_ready(one.state)))

    async def _is_ready(self, model: str) -> bool:
        asked = pb.ModelReadyRequest(name=model, version=self.options.version)
        try:
            return (await self._grpc.call(MODEL_READY, asked)).ready
        except NotFound:
            return False

    async def aclose(self) -> None:
        await self._grpc.aclose()

    async def run(self, job: JobContext) -> JobResult:
        try:
            payload = read_payload(job.spec.payload)
            request = request_of(
                payload, model=self.options.model, version=self.options.version, request_id=job.reference
            )
        except PayloadError as error:
            raise JobFault(FaultClass.VALIDATION, str(error)) from None
        try:
            if payload.stream:
                return JobResult(await self._stream(job, request))
            return JobResult(await self._infer(job, request))
        except NotFound as error:
            raise self._not_found(error, request) from error
        except ProtocolError as error:
            raise job_fault(error) from error

    async def _infer(self, job: JobContext, request: pb.ModelInferRequest) -> dict[str, Any]:
        response = await self._grpc.call(
            MODEL_INFER, request, metadata=_metadata(job), timeout_s=self._timeout_s(job)
        )
        return _result(response, request)

    async def _stream(self, job: JobContext, request: pb.ModelInferRequest) -> dict[str, Any]:
        """Every answer is passed on as it comes; the last one is the result."""
        result: dict[str, Any] | None = None
        timeout_s = self._timeout_s(job)
        async with self._grpc.stream(
            MODEL_STREAM_INFER,
            request,
            metadata=_metadata(job),
            timeout_s=timeout_s,
            idle_timeout_s=timeout_s,
        ) as responses:
            async for response in responses:
                result = _result(response, request)
                await job.chunk(result)
        if result is None:
            raise JobFault(FaultClass.SERVICE_ERROR, "the server ended the stream without any answer")
        return result

    def _timeout_s(self, job: JobContext) -> float:
        return min(self.options.infer_timeout_s, job.spec.timeout_s)

    def _not_found(self, error: NotFound, request: pb.ModelInferRequest) -> JobFault:
        """A model that this worker is for and that its server has lost: another worker may have it."""
        own = (self.options.model, self.options.version)
        if self.options.model and own == (request.model_name, request.model_version):
            return JobFault(FaultClass.UNAVAILABLE, f"the server has lost its model: {error}")
        return job_fault(error)


def _says_ready(state: str) -> bool:
    """Whether a state in the index means ready: Triton writes ``READY``, MLServer 1.7.1 was seen to write
    ``State.READY``. None at all is believed, since only ready models were asked for.
    """
    return state.rpartition(".")[2] in ("", "READY")


def _metadata(job: JobContext) -> dict[str, str]:
    return {**job.headers, JOB_NAME: str(job.job_id)}


def _result(response: pb.ModelInferResponse, request: pb.ModelInferRequest) -> dict[str, Any]:
    """An answer as a result.

    Raises:
        ProtocolViolation: it is another request's, or makes no sense.
        JobFault: it holds no output.
    """
    if response.id and response.id != request.id:
        raise ProtocolViolation(
            f"the answer to {response.id!r} came for {request.id!r}", outcome_unknown=True
        )
    try:
        result = result_of(response)
    except ValueError as error:
        raise ProtocolViolation(str(error), outcome_unknown=True) from error
    if not result["outputs"]:
        # Success without output is a known lie of real services; a retry may bring the output.
        raise JobFault(FaultClass.SERVICE_ERROR, "the server reported success without any output")
    return result
