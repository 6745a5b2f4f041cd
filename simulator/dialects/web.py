"""What the twins of services over plain HTTP share: serving, steering, waiting for a job beside its own request."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any, Generic, TypeVar

import msgspec
import trio

from gateway.connectors.simulation.wire import JournalEntry
from protocols.http_responder import Responder, ServerRequest
from simulator.cursor import EventCursor, StreamAct, StreamStep
from simulator.faults import FaultPlan
from simulator.model import Caller, Execution, Job, ServiceConfig
from simulator.services.control import steer_oddities
from simulator.services.served import HTTPServed
from simulator.services.shell import ServiceShell

OdditiesT = TypeVar("OdditiesT", bound=msgspec.Struct)


class WebTwin(HTTPServed[ServiceShell], Generic[OdditiesT]):
    """One simulated instance of a service over HTTP. Create it inside trio: its schedules count from there.

    Args:
        config: name, capacity and defaults.
        plan: its faults at first; ``PUT /control/faults`` changes them.
        oddities: what this service is to do differently, a frozen ``msgspec.Struct``.
        random_for: random stream by knob name, see ``simulator.seeding.streams``.
        sink: called with each new journal entry.
    """

    def __init__(
        self,
        config: ServiceConfig,
        plan: FaultPlan,
        oddities: OdditiesT,
        *,
        random_for: Callable[[str], Random],
        sink: Callable[[JournalEntry], None] | None = None,
    ) -> None:
        self.shell = ServiceShell(config, plan, random_for=random_for, sink=sink)
        #: What it does differently just now.
        self.oddities = oddities

    async def handle(self, request: ServerRequest, responder: Responder) -> None:
        """As every instance does; oddities are steered like faults."""
        steered = steer_oddities(self, request)
        if steered is not None:
            await self.shell.send(steered, responder)
            return
        await super().handle(request, responder)

    def set_oddities(self, values: Mapping[str, Any]) -> None:
        """Change some oddities from now on.

        Raises:
            msgspec.ValidationError: an unknown one or a bad value; nothing is changed then.
        """
        merged = {**msgspec.to_builtins(self.oddities), **values}
        self.oddities = msgspec.convert(merged, type=type(self.oddities))

    def follow(self, job_id: str) -> EventCursor:
        """The story of a job that was just accepted, for the answer to the request that submitted it."""
        job = self.service.job(job_id)
        assert job is not None, "an accepted job is known"
        return self.service.cursor(trio.current_time(), job, 0)

    def give_up(self, job: Job, execution: Execution | None, caller: Caller) -> None:
        """Stop an execution without a request that names it: its peer left, or whatever runs is interrupted."""
        now_s = trio.current_time()
        self.service.advance(now_s)
        # A later run under the same id has a peer of its own.
        if not job.ended and not job.forgotten and job.newest is execution:
            self.service.stop(now_s, job, caller)
        self.shell.wake()

    async def pull(self, cursor: EventCursor) -> list[StreamStep]:
        """Wait for the next acts of a job's story, in the order in which one connection must tell them."""
        while True:
            await self.shell.not_paused()
            steps = cursor.pull(self.service.elapsed_s(trio.current_time()))
            if steps:
                return in_order(steps)
            await self.shell.news_of(cursor.job)

    async def break_off(self, act: StreamAct, responder: Responder) -> None:
        """Fall silent or cut the connection, as the cursor says."""
        if act is StreamAct.SILENCE:
            await self.shell.until_restart()
        await responder.abort()


def in_order(steps: Iterable[StreamStep]) -> list[StreamStep]:
    """The same acts without repeats and overtaking: within one answer neither can happen."""
    seen: set[int] = set()
    told: list[StreamStep] = []
    for step in steps:
        if step.event is None:
            told.append(step)
        elif step.event.seq not in seen:
            seen.add(step.event.seq)
            told.append(step)
    events = iter(sorted((step for step in told if step.event is not None), key=_number))
    return [step if step.event is None else next(events) for step in told]


def _number(step: StreamStep) -> int:
    assert step.event is not None
    return step.event.seq
