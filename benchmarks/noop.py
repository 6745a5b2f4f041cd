"""A connector that does nothing: what is left is the gateway's own cost."""

from __future__ import annotations

import time
from typing import ClassVar

from gateway.connector import Connector, ConnectorCapabilities, ConnectorSetup, JobContext, JobResult
from gateway.connectors.registry import ConnectorSpec, Registry
from protocols.base import HealthReport

SERVICE = "noop"
KEY = "noop-http"
_RESULT = JobResult(None)


class NoopHTTPConnector(Connector):
    """Completes every job at once; can do nothing else, so no reference is stored at the service."""

    key: ClassVar[str] = KEY
    service: ClassVar[str] = SERVICE
    capabilities: ClassVar[ConnectorCapabilities] = ConnectorCapabilities()

    def __init__(self, setup: ConnectorSetup) -> None:
        super().__init__(setup)
        #: When the latest job was begun, ``time.perf_counter``.
        self.started_s = 0.0

    async def health(self) -> HealthReport:
        return HealthReport(healthy=True, detail="does nothing", latency_s=0.0)

    async def run(self, job: JobContext) -> JobResult:
        self.started_s = time.perf_counter()
        return _RESULT

    async def aclose(self) -> None:
        return None


def noop_registry() -> Registry:
    """A registry that knows this connector only."""
    registry = Registry()
    registry.add(ConnectorSpec(KEY, "benchmarks.noop", "NoopHTTPConnector"))
    return registry
