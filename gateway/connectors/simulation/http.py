"""Connector ``simulation-http``: the reference connector, against the simulated service over HTTP.

How a job is handed over and followed is in ``following``, for all protocols alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec

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
from gateway.connectors.simulation import wire
from gateway.connectors.simulation.following import Seen, decoded, follow, hand_over, service_status, take_in
from gateway.errors import ConfigError
from protocols.base import HealthReport
from protocols.errors import NotFound, ProtocolError
from protocols.http import HTTPAdapter, HTTPLimits


class SimulationHTTPOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options in ``[workers.X.options]``.

    Attributes:
        stall_s: longest silence of the event stream before the service is asked, seconds.
        request_timeout_s: longest single request, seconds.
        connections_max: connections to the instance at once.
    """

    stall_s: float = 1.0
    request_timeout_s: float = 10.0
    connections_max: int = 64

    def __post_init__(self) -> None:
        if min(self.stall_s, self.request_timeout_s, self.connections_max) <= 0:
            raise ValueError("stall_s, request_timeout_s and connections_max must be positive")


class SimulationHTTPConnector(Connector):
    """Runs jobs at one instance of the simulated service.

    Raises (constructor):
        ConfigError: unknown option or impossible value.
    """

    key = "simulation-http"
    service = "simulation"
    capabilities = ConnectorCapabilities(query=True, cancel=True, stream=True, reattach=True, dedupe=True)

    def __init__(self, setup: ConnectorSetup) -> None:
        super().__init__(setup)
        try:
            self.options = msgspec.convert(dict(setup.options), SimulationHTTPOptions)
        except (msgspec.ValidationError, ValueError) as error:
            raise ConfigError(f"options of {self.key}: {error}") from None
        self._http = HTTPAdapter(
            setup.endpoint,
            open_stream=setup.open_stream,
            limits=HTTPLimits(
                connections_max=self.options.connections_max,
                request_timeout_s=self.options.request_timeout_s,
                idle_timeout_s=max(self.options.request_timeout_s, self.options.stall_s),
            ),
        )

    async def health(self) -> HealthReport:
        """Healthy is a good answer of the right instance: at a port that changed hands another one may be well."""
        report = await self._http.health(wire.HEALTH_PATH)
        wanted = self.setup.instance
        if not (report.healthy and wanted):
            return report
        try:
            found = decoded(report.body, wire.HealthReply).instance
        except ProtocolError as error:
            return dataclasses.replace(report, healthy=False, detail=str(error), fault=error.fault)
        if found == wanted:
            return report
        return dataclasses.replace(report, healthy=False, detail=f"another instance answers: {found}")

    async def probe_capabilities(self) -> Mapping[str, Any]:
        try:
            reply = await self._http.request("GET", wire.HEALTH_PATH)
            return {"models": list(decoded(reply.body, wire.HealthReply).models)}
        except ProtocolError as error:
            raise job_fault(error) from error

    async def aclose(self) -> None:
        await self._http.aclose()

    async def run(self, job: JobContext) -> JobResult:
        peer = self._peer(job)
        await hand_over(peer, self.setup.random)
        return await follow(peer, job, self.setup.random, stall_s=self.options.stall_s)

    async def resume(self, job: JobContext) -> JobResult:
        peer = self._peer(job)
        return await follow(peer, job, self.setup.random, stall_s=self.options.stall_s)

    def _peer(self, job: JobContext) -> HTTPPeer:
        return HTTPPeer(self._http, job, self.options.stall_s)

    async def query(self, reference: str) -> ServiceStatus:
        try:
            return service_status(await _status(self._http, reference, {}))
        except NotFound:
            return ServiceStatus(ServicePhase.UNKNOWN)
        except ProtocolError as error:
            raise job_fault(error) from error

    async def cancel(self, reference: str) -> None:
        try:
            await self._http.request_json("DELETE", wire.job_path(reference))
        except NotFound:
            return
        except ProtocolError as error:
            raise job_fault(error) from error


class HTTPPeer:
    """The service over HTTP, as one job sees it."""

    def __init__(self, http: HTTPAdapter, job: JobContext, stall_s: float) -> None:
        self.http = http
        self.job = job
        self._stall_s = stall_s

    async def submit(self) -> None:
        job = self.job
        request = wire.SubmitRequest(id=job.reference, payload=job.spec.payload)
        await self.http.request_json("POST", wire.JOBS_PATH, json=request, headers=job.headers)

    async def status(self) -> wire.JobStatus:
        return await _status(self.http, self.job.reference, self.job.headers)

    async def watch(self, seen: Seen) -> JobResult | None:
        path = wire.events_path(self.job.reference, seen.number)
        async with self.http.stream_lines(
            "GET", path, headers=self.job.headers, idle_timeout_s=self._stall_s
        ) as lines:
            async for line in lines:
                ended = await take_in(decoded(line, wire.StreamEvent), self.job, seen)
                if ended is not None:
                    return ended
        return None


async def _status(http: HTTPAdapter, reference: str, headers: Mapping[str, str]) -> wire.JobStatus:
    reply = await http.request("GET", wire.job_path(reference), headers=headers)
    return decoded(reply.body, wire.JobStatus)
