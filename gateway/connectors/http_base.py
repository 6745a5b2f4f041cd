"""What a connector over HTTP would write anyway: one adapter, a health path, and a patient way to ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import trio

from gateway.connector import Connector, ConnectorSetup
from gateway.connectors.faults import job_fault
from protocols.base import HealthReport
from protocols.errors import NotFound, ProtocolError
from protocols.http import HTTPAdapter, HTTPLimits

#: Questions about one thing, before a service that cannot be asked counts as lost.
ASK_TRIES = 6
#: Longest pause between two of them, seconds; the shortest is half of it, drawn from the connector's own source.
ASK_PAUSE_S = 0.2


class HTTPConnector(Connector):
    """Base of connectors that speak plain HTTP and JSON; subclasses run, and where they can, query and cancel.

    Attributes:
        health_path: answers 2xx while the service can take jobs.
        limits: bounds of every request.
        http: the adapter to the one endpoint.
    """

    health_path: ClassVar[str] = "/health"
    limits: ClassVar[HTTPLimits] = HTTPLimits(request_timeout_s=10.0)

    def __init__(self, setup: ConnectorSetup) -> None:
        super().__init__(setup)
        self.http = HTTPAdapter(setup.endpoint, open_stream=setup.open_stream, limits=self.limits)

    async def health(self) -> HealthReport:
        """See ``Connector``."""
        return await self.http.health(self.health_path)

    async def aclose(self) -> None:
        """See ``Connector``."""
        await self.http.aclose()

    async def ask(
        self, method: str, path: str, *, headers: Mapping[str, str] | None = None, tries: int = ASK_TRIES
    ) -> Any:
        """What the service answers, as JSON; None when it does not know the thing (404).

        Passing trouble is waited out: only for requests that may be repeated, such as GET and DELETE.

        Args:
            method: HTTP method.
            path: below the endpoint's own; quoted by the caller.
            headers: in addition.
            tries: requests at most.

        Raises:
            JobFault: the last of the faults.
        """
        for left in reversed(range(tries)):
            try:
                return (await self.http.request_json(method, path, headers=headers)).json
            except NotFound:
                return None
            except ProtocolError as error:
                if left == 0:
                    raise job_fault(error) from error
            await trio.sleep(ASK_PAUSE_S * self.setup.random.uniform(0.5, 1.0))
        raise ValueError(f"tries is at least 1, not {tries}")
