"""The simulated WebSocket service on real sockets: the contract, and each fault as a client sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx
import pytest
import trio

from gateway.connectors.simulation import wire
from gateway.connectors.simulation import wire_websocket as frames
from gateway.connectors.simulation.wire_websocket import Verb
from protocols.base import Endpoint
from protocols.errors import ConnectTimeout, PeerClosed, ProtocolError, RequestTimeout, StatusFailure
from protocols.websocket import WebSocketAdapter
from protocols.websocket_link import WebSocket, WebSocketLimits
from simulator.faults import FaultPlan
from simulator.model import ServiceConfig
from simulator.seeding import streams
from simulator.services.websocket import SimulationWebSocketService

QUIET = FaultPlan.none()
#: Silence that a test takes for "nothing comes any more", in seconds.
SILENCE_S = 0.4
LIMITS = WebSocketLimits(connect_timeout_s=1.0, ping_timeout_s=0.5)


@dataclass
class Bed:
    """A running service, an adapter to it and a plain HTTP client of the same port."""

    service: SimulationWebSocketService
    adapter: WebSocketAdapter
    http: httpx.AsyncClient


@asynccontextmanager
async def running(plan: FaultPlan = QUIET, **config: Any) -> AsyncIterator[Bed]:
    """One service on a free port, with an absolute limit around all of it."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            config.setdefault("duration_s", 0.02)
            service = SimulationWebSocketService(
                ServiceConfig(instance="sim-w", **config), plan, random_for=streams(3, "sim-w")
            )
            handle = await nursery.start(partial(service.run, host="127.0.0.1", port=0))
            endpoint = Endpoint.parse(handle.url.replace("http://", "ws://"))
            async with (
                WebSocketAdapter(endpoint, limits=LIMITS) as adapter,
                httpx.AsyncClient(base_url=handle.url, timeout=5.0) as client,
            ):
                yield Bed(service, adapter, client)
            nursery.cancel_scope.cancel()


@dataclass
class Talk:
    """What came over one socket, and how it ended."""

    link: WebSocket
    replies: dict[int, frames.SocketReply] = field(default_factory=dict)
    events: list[wire.StreamEvent] = field(default_factory=list)
    garbage: int = 0
    end: str = "open"

    async def ask(self, number: int, verb: Verb, job: str = "j", **more: Any) -> None:
        await self.link.send(frames.encode_frame(frames.SocketRequest(verb=verb, id=number, job=job, **more)))

    async def hear(self, *, reply: int | None = None, silence_s: float = SILENCE_S) -> None:
        """Take in frames until a reply, a silence or the end."""
        try:
            while reply is None or reply not in self.replies:
                with trio.fail_after(silence_s):
                    message = await self.link.receive()
                try:
                    frame = frames.decode_server_frame(message)
                except wire.WireFormatError:
                    self.garbage += 1
                    continue
                if isinstance(frame, frames.SocketReply):
                    self.replies[frame.id] = frame
                else:
                    self.events.append(frame.event)
        except trio.TooSlowError:
            self.end = "silent"
        except PeerClosed:
            self.end = "cut"

    def body(self, number: int, kind: type[Any]) -> Any:
        return wire.decode(bytes(self.replies[number].body), kind)


async def test_a_job_is_submitted_watched_queried_and_cancelled() -> None:
    """The happy path of the contract over one socket, with the instance named at the handshake."""
    async with running() as bed, bed.adapter.connect(frames.SOCKET_PATH) as link:
        assert link.headers[wire.HEADER_INSTANCE] == "sim-w"
        talk = Talk(link)
        await talk.ask(1, Verb.SUBMIT, "a/b c", payload={"result": [1], "chunks": 2, "duration_s": 0.05})
        await talk.ask(2, Verb.SUBSCRIBE, "a/b c")
        await talk.hear()
        assert talk.end == "silent"
        assert talk.replies[1].status == 202
        assert [event.seq for event in talk.events] == list(range(1, 8))
        assert talk.events[-1].result == {"echo": [1], "instance": "sim-w", "execution": 1}
        await talk.ask(3, Verb.QUERY, "a/b c")
        await talk.ask(4, Verb.QUERY, "unknown")
        await talk.ask(5, Verb.SUBMIT, "long", payload={"duration_s": 60})
        await talk.ask(6, Verb.CANCEL, "long")
        await link.send("not json")
        await talk.hear(reply=0)
        assert talk.body(3, wire.JobStatus).result == talk.events[-1].result
        assert talk.replies[4].status == 404
        assert talk.body(6, wire.CancelReply).state is wire.RunState.CANCELLED
        assert talk.replies[0].status == 400


async def test_a_second_subscription_replaces_the_first() -> None:
    """After the reply to a subscription no event of an earlier one comes, and none is missing."""
    async with running() as bed, bed.adapter.connect(frames.SOCKET_PATH) as link:
        talk = Talk(link)
        await talk.ask(1, Verb.SUBMIT, payload={"duration_s": 0.3, "chunks": 30, "steps": 1})
        for number in range(2, 6):
            await talk.ask(number, Verb.SUBSCRIBE)
        await talk.hear(reply=5)
        talk.events.clear()
        await talk.hear()
        assert [event.seq for event in talk.events] == list(range(1, 33))


async def test_one_port_also_serves_health_journal_and_control_over_http() -> None:
    """Without a handshake the port speaks HTTP; a plain request to the socket's path is told what is due there."""
    async with running() as bed:
        assert (await bed.http.get(wire.HEALTH_PATH)).json()["status"] == "ok"
        assert (await bed.http.get(wire.JOURNAL_SUMMARY_PATH)).status_code == 200
        assert (await bed.http.get(frames.SOCKET_PATH)).status_code == 426
        assert (await bed.http.get("/elsewhere")).status_code == 404
        assert (await bed.adapter.health(wire.HEALTH_PATH)).healthy
        changed = await bed.http.put(wire.CONTROL_FAULTS_PATH, json={"health_failure_rate": 1.0})
        assert changed.status_code == 200
        report = await bed.adapter.health(wire.HEALTH_PATH)
        assert not report.healthy
        assert "503" in report.detail


@pytest.mark.parametrize(
    ("knob", "kind", "status"),
    [
        ("error_5xx_rate", StatusFailure, 500),
        ("unavailable_rate", StatusFailure, 503),
        ("hang_rate", ConnectTimeout, None),
    ],
)
async def test_faults_of_the_handshake(knob: str, kind: type[ProtocolError], status: int | None) -> None:
    """A handshake is refused, or never answered, as the knob says."""
    async with running(QUIET.updated({knob: 1.0})) as bed:
        with pytest.raises(kind) as caught:
            async with bed.adapter.connect(frames.SOCKET_PATH):
                pass
        assert getattr(caught.value, "status", None) == status


async def submitted(bed: Bed, **knobs: float) -> Talk:
    """Submit and listen under faults that begin once the socket stands."""
    async with bed.adapter.connect(frames.SOCKET_PATH) as link:
        bed.service.shell.set_faults(knobs)
        talk = Talk(link)
        await talk.ask(1, Verb.SUBMIT, payload={"duration_s": 0.05, "steps": 8})
        await talk.hear(reply=1)
        if talk.end == "open":
            await talk.ask(2, Verb.SUBSCRIBE)
            await talk.hear()
        return talk


@pytest.mark.parametrize(
    ("knob", "status", "known"),
    [
        ("rate_limit_rate", 429, False),
        ("error_4xx_rate", 400, False),
        ("error_5xx_rate", 500, False),
        ("submit_500_after_accept_rate", 500, True),
    ],
)
async def test_refused_submissions(knob: str, status: int, known: bool) -> None:
    """A refused submit carries its status, and was accepted only where the knob says so."""
    async with running() as bed:
        talk = await submitted(bed, **{knob: 1.0})
        assert talk.replies[1].status == status
        assert bool(bed.service.service.journal.executions("j")) is known


async def test_a_lost_reply_cuts_the_socket_after_accepting() -> None:
    """The job is accepted, and its submitter sees a reset."""
    async with running() as bed:
        talk = await submitted(bed, submit_reply_lost_rate=1.0)
        assert (talk.end, talk.replies) == ("cut", {})
        assert bed.service.service.journal.executions("j") == 1


async def test_a_hanging_request_gets_no_reply() -> None:
    """The socket stays, the reply never comes, and nothing was done."""
    async with running() as bed:
        talk = await submitted(bed, hang_rate=1.0)
        assert (talk.end, talk.replies) == ("silent", {})
        assert bed.service.service.journal.executions("j") == 0


async def test_garbage_is_a_frame_that_is_not_json() -> None:
    """Replies and events turn into garbage; the socket itself stays whole."""
    async with running() as bed:
        talk = await submitted(bed, garbage_rate=1.0)
        assert talk.garbage == 1
        assert talk.end == "silent"


async def test_a_lost_completion_is_silent_by_itself() -> None:
    """The terminal event never comes, but the same socket answers a query with the truth."""
    async with running() as bed, bed.adapter.connect(frames.SOCKET_PATH) as link:
        bed.service.shell.set_faults({"lost_completion_rate": 1.0})
        talk = Talk(link)
        await talk.ask(1, Verb.SUBMIT)
        await talk.ask(2, Verb.SUBSCRIBE)
        await talk.hear()
        assert talk.end == "silent"
        assert not any(event.terminal for event in talk.events)
        await talk.ask(3, Verb.QUERY)
        await talk.hear(reply=3)
        assert talk.body(3, wire.JobStatus).state is wire.RunState.COMPLETED


async def test_a_half_open_socket_answers_nothing_not_even_a_ping() -> None:
    """The connection stays open, and nothing comes over it any more."""
    async with running() as bed, bed.adapter.connect(frames.SOCKET_PATH) as link:
        bed.service.shell.set_faults({"half_open_rate": 1.0})
        talk = Talk(link)
        await talk.ask(1, Verb.SUBMIT)
        await talk.ask(2, Verb.SUBSCRIBE)
        await talk.hear()
        assert not any(event.terminal for event in talk.events)
        await talk.ask(3, Verb.QUERY)
        await talk.hear(reply=3)
        assert talk.end == "silent"
        with pytest.raises(RequestTimeout):
            await link.ping()


async def test_a_disconnect_is_a_reset_in_the_middle() -> None:
    """The socket is cut before the terminal event."""
    async with running() as bed:
        talk = await submitted(bed, disconnect_rate=1.0)
        assert talk.end == "cut"
        assert not any(event.terminal for event in talk.events)


@pytest.mark.parametrize(
    ("knob", "symptom"),
    [
        ("duplicate_event_rate", lambda numbers: len(set(numbers)) < len(numbers)),
        ("out_of_order_rate", lambda numbers: numbers != sorted(numbers)),
        ("event_after_terminal_rate", lambda numbers: len(numbers) == 10),
    ],
)
async def test_events_twice_late_or_after_the_end(knob: str, symptom: Any) -> None:
    """The order of events is broken as the knob says, and is whole without it."""
    async with running() as bed:
        talk = await submitted(bed)
        numbers = [event.seq for event in talk.events]
        assert numbers == list(range(1, 10))
        assert not symptom(numbers)
    async with running() as bed:
        talk = await submitted(bed, **{knob: 1.0})
        assert symptom([event.seq for event in talk.events])


@pytest.mark.parametrize("silent", [False, True])
async def test_a_restart_ends_every_socket(silent: bool) -> None:
    """Whatever a socket was doing, a restart cuts it, and the jobs are forgotten."""
    async with running() as bed, bed.adapter.connect(frames.SOCKET_PATH) as link:
        bed.service.shell.set_faults({"half_open_rate": float(silent)})
        talk = Talk(link)
        await talk.ask(1, Verb.SUBMIT, payload={"duration_s": 60})
        await talk.ask(2, Verb.SUBSCRIBE)
        await talk.hear()
        bed.service.shell.restart()
        await talk.hear(silence_s=5)
        assert talk.end == "cut"


async def test_a_pause_hangs_everything_but_the_controls() -> None:
    """While paused neither requests nor pings are answered; afterwards all of them are."""
    async with running() as bed, bed.adapter.connect(frames.SOCKET_PATH) as link:
        talk = Talk(link)
        await bed.http.post(wire.CONTROL_PAUSE_PATH)
        await talk.ask(1, Verb.SUBMIT)
        await talk.hear(reply=1)
        assert talk.end == "silent"
        await bed.http.post(wire.CONTROL_RESUME_PATH)
        await talk.hear(reply=1)
        assert talk.replies[1].status == 202
        assert await link.ping() < LIMITS.ping_timeout_s


async def test_the_journal_knows_the_caller_by_the_handshake() -> None:
    """Worker and epoch come with the handshake; a call meant for another instance is noted."""
    headers = wire.caller_headers(worker="m/w", epoch=7, instance="another")
    async with running() as bed:
        async with bed.adapter.connect(frames.SOCKET_PATH, headers=headers) as link:
            talk = Talk(link)
            await talk.ask(1, Verb.SUBMIT)
            await talk.hear(reply=1)
        entries = bed.service.service.journal.page(0, 100).entries
        assert {entry.worker for entry in entries} == {"m/w"}
        assert bed.service.service.journal.summary().misrouted == 2
