"""A connector of a test against a server on a real socket: a twin, or a few lines that answer what the test wants."""

from __future__ import annotations

import functools
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import pytest
import trio

from gateway.connector import Connector, ConnectorSetup
from gateway.connectors.registry import default_registry
from gateway.connectors.simulation.wire import FailureWish, JournalEntry, JournalEvent, WorkPayload
from gateway.errors import FaultClass, JobFault
from gateway.models import JobSpec
from protocols.base import Endpoint, open_tcp
from protocols.http_responder import Responder, ServerRequest
from protocols.http_server import Handler, ServerHandle, serve_http
from simulator.contract.recorder import RecordingJob
from simulator.dialects.web import WebTwin
from simulator.faults import FaultPlan
from simulator.model import ServiceConfig
from simulator.seeding import streams

TwinT = TypeVar("TwinT", bound=WebTwin[Any])
#: Absolute limit of everything around one server, seconds.
LIMIT_S = 30.0


def make_connector(key: str, url: str, **options: Any) -> Connector:
    """A connector as the supervisor makes it."""
    setup = ConnectorSetup(
        endpoint=Endpoint.parse(url),
        open_stream=open_tcp,
        random=random.Random(0),
        now_s=trio.current_time,
        options={"stall_s": 0.05, **options},
    )
    return default_registry().load(key)(setup)


def make_job(payload: Any, *, reference: str = "job.1", timeout_s: float = LIMIT_S) -> RecordingJob:
    """A job that remembers what it was told."""
    spec = JobSpec(service="any", payload=payload, timeout_s=timeout_s)
    return RecordingJob(spec, job_id=reference.partition(".")[0], reference=reference)


async def fault_of(connector: Connector, job: RecordingJob, wanted: FaultClass) -> JobFault:
    """The fault that a job ends with."""
    with pytest.raises(JobFault) as caught:
        await connector.run(job)
    assert caught.value.fault_class is wanted, f"{caught.value.fault_class}: {caught.value}"
    return caught.value


def work(**members: Any) -> dict[str, Any]:
    """Simulated work as a request carries it; short unless it says otherwise."""
    return {"duration_s": 0.02, **members}


def failing(**members: Any) -> WorkPayload:
    """Work that fails."""
    return WorkPayload(duration_s=0.02, fail=FailureWish(**members))


@dataclass
class Served(Generic[TwinT]):
    """A running twin."""

    twin: TwinT
    url: str
    nursery: trio.Nursery
    made: list[Connector] = field(default_factory=list)

    def connector(self, key: str, **options: Any) -> Connector:
        """A connector that is closed at the end."""
        self.made.append(make_connector(key, self.url, **options))
        return self.made[-1]

    def journal(self, *events: JournalEvent) -> list[JournalEntry]:
        """What the twin did so far: all of it, or these events only."""
        self.twin.service.advance(trio.current_time())
        entries = self.twin.service.journal.page(0, 10_000).entries
        return [entry for entry in entries if not events or entry.event in events]

    async def seen(self, event: JournalEvent, count: int = 1) -> None:
        """Wait until something was journalled so often."""
        for _look in range(4_000):
            if len(self.journal(event)) >= count:
                return
            await trio.sleep(0.005)
        pytest.fail(f"no {event} in the journal")


@asynccontextmanager
async def served(
    twin: type[TwinT], oddities: Any = None, *, models: tuple[str, ...] = (), **knobs: Any
) -> AsyncIterator[Served[TwinT]]:
    """A twin on a free port, without faults but the given ones, with an absolute limit around all of it."""
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            made: TwinT = twin(
                ServiceConfig(instance="twin", models=models),
                FaultPlan.none().updated(knobs),
                random_for=streams(3, "twin"),
                oddities=oddities,
            )
            handle = await nursery.start(functools.partial(made.run, host="127.0.0.1", port=0))
            running = Served(made, handle.url, nursery)
            try:
                yield running
            finally:
                with trio.move_on_after(5, shield=True):
                    for connector in running.made:
                        await connector.aclose()
            nursery.cancel_scope.cancel()


@dataclass
class Script:
    """A server of a test's own words: what it was asked, and how it answers."""

    url: str
    requests: list[ServerRequest]


@asynccontextmanager
async def scripted(answer: Handler) -> AsyncIterator[Script]:
    """A server that answers with the given handler, and keeps the requests."""
    requests: list[ServerRequest] = []

    async def handle(request: ServerRequest, responder: Responder) -> None:
        requests.append(request)
        await answer(request, responder)

    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            handle_: ServerHandle = await nursery.start(serve_http, handle)
            yield Script(handle_.url, requests)
            nursery.cancel_scope.cancel()


def bytes_answer(
    body: bytes, status: int = 200, kind: str = "application/json", headers: Mapping[str, str] | None = None
) -> Handler:
    """A handler that always answers the same."""

    async def answer(_request: ServerRequest, responder: Responder) -> None:
        await responder.send_bytes(status, body, kind, headers)

    return answer
