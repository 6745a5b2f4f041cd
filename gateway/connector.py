"""The contract between the runner and a connector: how to run, query, resume and cancel one job at one service.

A connector is a thin I/O shell for one (service, protocol) pair. It returns a ``JobResult`` or raises a ``JobFault``;
nothing else. What it cannot do it declares in ``capabilities``, and the runner honours exactly that.
"""

from __future__ import annotations

import enum
import random as random_module
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from gateway.errors import JobFault
from gateway.models import Epoch, JobId, JobSpec
from protocols.base import Endpoint, HealthReport, OpenStream
from protocols.grpc_channel import OpenChannel, open_grpcio


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorCapabilities:
    """What the service can do for a job of ours.

    Attributes:
        query: tells the state of a job by reference: the second witness of a completion.
        cancel: stops a job by reference, and only that one.
        stream: delivers partial results while running.
        reattach: a job outlives the connection that started it and can be followed again by reference.
        dedupe: submitting the same reference twice runs it once.
    """

    query: bool = False
    cancel: bool = False
    stream: bool = False
    reattach: bool = False
    dedupe: bool = False


class ServicePhase(enum.StrEnum):
    """State of a job as the service tells it."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"


_NOTHING: Mapping[str, int] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a service answered.

    Attributes:
        value: any JSON value.
        served_by: the instance's own name, for the routing check; empty when the service does not tell.
        consumed: what the service says that the job used up, by kind (``input_tokens``); counted as a metric.
    """

    value: Any
    served_by: str = ""
    consumed: Mapping[str, int] = field(default_factory=lambda: _NOTHING)


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    """Answer to a query; ``result`` comes with COMPLETED, ``fault`` with FAILED."""

    phase: ServicePhase
    result: JobResult | None = None
    fault: JobFault | None = None


class JobContext(Protocol):
    """What a connector knows of the job it runs, and how it reports back.

    Attributes:
        reference: name to give the job at the service; already stored, so that a later owner can ask for it.
        headers: trace context and routing headers for requests to the service.
    """

    @property
    def job_id(self) -> JobId: ...

    @property
    def spec(self) -> JobSpec: ...

    @property
    def epoch(self) -> Epoch: ...

    @property
    def reference(self) -> str: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    async def attach(self, reference: str) -> None:
        """Replace the stored reference, for services that choose names themselves.

        Raises:
            JobFault: LEASE_LOST when the job is no longer ours.
        """
        ...

    def progress(self, value: float, message: str = "") -> None:
        """Report the fraction done, 0 to 1. Never blocks; intermediate values may be dropped."""
        ...

    async def chunk(self, data: Any) -> None:
        """Append a partial result (any JSON value) to the job's own stream; waits while the buffer is full."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectorSetup:
    """Everything a connector gets from outside; it has no globals.

    Attributes:
        endpoint: address of the one instance this connector speaks to.
        open_stream: how byte streams to the service are opened (the seam of the simulation).
        open_channel: the same for gRPC, whose library opens its connections itself.
        random: seeded source for jitter and ids.
        now_s: monotonic clock, seconds.
        options: the connector's own settings from the configuration, secrets among them: no repr shows any.
        instance: own name that the instance is expected to have; empty when nobody said.
    """

    endpoint: Endpoint
    open_stream: OpenStream
    random: random_module.Random
    now_s: Callable[[], float]
    options: Mapping[str, Any] = field(default_factory=dict, repr=False)
    open_channel: OpenChannel = open_grpcio
    instance: str = ""


class Connector(ABC):
    """Base of all connectors; subclasses set the class variables and follow the naming law.

    Key ``<service>-<protocol>`` ⇔ module ``gateway.connectors.<service>.<protocol>`` ⇔ class
    ``<Service><Protocol>Connector``.
    """

    key: ClassVar[str]
    service: ClassVar[str]
    capabilities: ClassVar[ConnectorCapabilities]

    def __init__(self, setup: ConnectorSetup) -> None:
        self.setup = setup

    @abstractmethod
    async def health(self) -> HealthReport:
        """Probe the service once, bounded in time; never raises for an unhealthy service."""

    async def probe_capabilities(self) -> Mapping[str, Any]:
        """What the instance can do now, as capabilities that jobs may require, for example ``models``.

        Asked only where the worker's configuration wants it, after a healthy probe and bounded by the same time. The
        default tells nothing. Values are text, numbers, true/false or lists of these.

        Raises:
            JobFault: the instance could not be asked; what it told before holds on.
        """
        return {}

    @abstractmethod
    async def run(self, job: JobContext) -> JobResult:
        """Submit the job under ``job.reference``, follow it to its end and return its result.

        Raises:
            JobFault: the attempt failed; its class decides what follows.
        """

    async def resume(self, job: JobContext) -> JobResult:
        """Follow a job that already runs under ``job.reference``; called only with capability reattach."""
        raise NotImplementedError(f"{self.key} declares no re-attach")

    async def query(self, reference: str) -> ServiceStatus:
        """State of the job at the service; called only with capability query.

        Raises:
            JobFault: the service could not be asked.
        """
        raise NotImplementedError(f"{self.key} declares no query")

    async def cancel(self, reference: str) -> None:
        """Stop the job at the service; called only with capability cancel. An unknown job is no error.

        Raises:
            JobFault: the service could not be told.
        """
        raise NotImplementedError(f"{self.key} declares no cancel")

    @abstractmethod
    async def aclose(self) -> None:
        """Close connections; quick and bounded."""
