"""Connector ``simulation-grpc``: the reference connector, against the simulated service over gRPC.

How a job is handed over and followed is in ``following``, for all protocols alike.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec
from google.protobuf.message import Message

from gateway.connector import (
    Connector,
    ConnectorCapabilities,
    ConnectorSetup,
    JobContext,
    JobResult,
    ServicePhase,
    ServiceStatus,
)
from gateway.connectors.faults import job_fault
from gateway.connectors.grpc_options import GRPCOptions, open_adapter
from gateway.connectors.simulation import wire
from gateway.connectors.simulation import wire_grpc as messages
from gateway.connectors.simulation.following import Seen, follow, hand_over, service_status, take_in
from gateway.errors import ConfigError
from protocols.base import HealthReport
from protocols.errors import NotFound, ProtocolError, ProtocolViolation
from protocols.grpc import GRPCAdapter
from protocols.proto import simulation_pb2 as pb

MessageT = TypeVar("MessageT", bound=Message)
ReadT = TypeVar("ReadT")


class SimulationGRPCConnector(Connector):
    """Runs jobs at one instance of the simulated service.

    Raises (constructor):
        ConfigError: unknown option or impossible value, or an endpoint that is not one for gRPC.
    """

    key = "simulation-grpc"
    service = "simulation"
    capabilities = ConnectorCapabilities(query=True, cancel=True, stream=True, reattach=True, dedupe=True)

    def __init__(self, setup: ConnectorSetup) -> None:
        super().__init__(setup)
        try:
            self.options = msgspec.convert(dict(setup.options), GRPCOptions)
        except (msgspec.ValidationError, ValueError) as error:
            raise ConfigError(f"options of {self.key}: {error}") from None
        self._grpc = open_adapter(setup, self.options, key=self.key, detail_name=messages.ERROR_NAME)

    async def health(self) -> HealthReport:
        return await self._grpc.health("")

    async def aclose(self) -> None:
        await self._grpc.aclose()

    async def run(self, job: JobContext) -> JobResult:
        peer = self._peer(job)
        await hand_over(peer, self.setup.random)
        return await follow(peer, job, self.setup.random, stall_s=self.options.stall_s)

    async def resume(self, job: JobContext) -> JobResult:
        return await follow(self._peer(job), job, self.setup.random, stall_s=self.options.stall_s)

    async def query(self, reference: str) -> ServiceStatus:
        try:
            reply = await self._grpc.call(messages.STATUS, pb.JobRequest(id=reference))
            return service_status(_read(messages.read_status, reply))
        except NotFound:
            return ServiceStatus(ServicePhase.UNKNOWN)
        except ProtocolError as error:
            raise job_fault(error) from error

    async def cancel(self, reference: str) -> None:
        try:
            await self._grpc.call(messages.CANCEL, pb.JobRequest(id=reference))
        except NotFound:
            return
        except ProtocolError as error:
            raise job_fault(error) from error

    def _peer(self, job: JobContext) -> _GRPCPeer:
        return _GRPCPeer(self._grpc, job, self.options.stall_s)


class _GRPCPeer:
    """The service over gRPC, as one job sees it."""

    def __init__(self, grpc: GRPCAdapter, job: JobContext, stall_s: float) -> None:
        self._grpc = grpc
        self._job = job
        self._stall_s = stall_s

    async def submit(self) -> None:
        request = pb.SubmitRequest(
            id=self._job.reference, payload=messages.json_bytes(self._job.spec.payload)
        )
        reply = await self._grpc.call(messages.SUBMIT, request, metadata=self._metadata())
        _read(messages.read_submit_reply, reply)

    async def status(self) -> wire.JobStatus:
        request = pb.JobRequest(id=self._job.reference)
        reply = await self._grpc.call(messages.STATUS, request, metadata=self._metadata())
        return _read(messages.read_status, reply)

    async def watch(self, seen: Seen) -> JobResult | None:
        request = pb.EventsRequest(id=self._job.reference, after=seen.number)
        async with self._grpc.stream(
            messages.EVENTS,
            request,
            metadata=self._metadata(),
            timeout_s=self._job.spec.timeout_s,
            idle_timeout_s=self._stall_s,
        ) as events:
            async for event in events:
                ended = await take_in(_read(messages.read_event, event), self._job, seen)
                if ended is not None:
                    return ended
        return None

    def _metadata(self) -> dict[str, str]:
        return {**self._job.headers, messages.JOB_NAME: str(self._job.job_id)}


def _read(reader: Callable[[MessageT], ReadT], message: MessageT) -> ReadT:
    """Read an answer.

    Raises:
        ProtocolViolation: it is not what the contract says.
    """
    try:
        return reader(message)
    except wire.WireFormatError as error:
        raise ProtocolViolation(str(error), outcome_unknown=True) from error
