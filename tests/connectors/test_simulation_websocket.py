"""The WebSocket connector against a scripted peer: what the simulated service shows only by chance."""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest
import trio
import trio.testing

from gateway.connector import ConnectorSetup, JobResult
from gateway.connectors.registry import default_registry
from gateway.connectors.simulation import wire
from gateway.connectors.simulation import wire_websocket as frames
from gateway.connectors.simulation.websocket import SimulationWebSocketConnector
from gateway.connectors.simulation.wire import EventType, RunState, StreamEvent
from gateway.connectors.simulation.wire_websocket import Verb
from gateway.errors import ConfigError, FaultClass, JobFault
from gateway.models import JobSpec
from protocols.base import Endpoint, open_tcp
from protocols.http_responder import Responder, ServerRequest
from protocols.http_server import ServerHandle, serve_http
from protocols.websocket_server import ServerWebSocket, WebSocketEnded, accept_websocket
from simulator.contract.bench import marked, open_bench
from simulator.contract.recorder import RecordingJob
from simulator.dialects.catalogue import dialect


class Scripted:
    """Keeps what it was asked, and answers each request with what the test's script does."""

    def __init__(
        self, answer: Callable[[Scripted, ServerWebSocket, frames.SocketRequest], Awaitable[None]]
    ) -> None:
        self._answer = answer
        self.asked: list[Verb] = []
        self.connections = 0

    async def __call__(self, request: ServerRequest, responder: Responder) -> None:
        socket = await accept_websocket(request, responder)
        assert socket is not None
        self.connections += 1
        with contextlib.suppress(WebSocketEnded):
            while True:
                asked = frames.decode_request(await socket.receive())
                self.asked.append(asked.verb)
                await self._answer(self, socket, asked)


async def reply(socket: ServerWebSocket, number: int, body: msgspec.Struct, status: int = 200) -> None:
    frame = frames.SocketReply(id=number, status=status, body=msgspec.Raw(wire.encode(body)))
    await socket.send(frames.encode_frame(frame))


async def tell(socket: ServerWebSocket, seq: int, kind: EventType = EventType.CHUNK) -> None:
    event = StreamEvent(
        seq=seq, type=kind, instance="x", data=seq, result="done" if kind is EventType.COMPLETED else None
    )
    await socket.send(frames.event_frame("job.1", event))


def state(of: RunState, result: str | None = None) -> wire.JobStatus:
    return wire.JobStatus(id="job.1", state=of, instance="x", result=result)


UNKNOWN = wire.ErrorReply(error=wire.ServiceFailure(kind=wire.ErrorKind.NOT_FOUND, message="no such job"))
ACCEPTED = wire.SubmitReply(id="job.1", state=RunState.RUNNING, instance="x")
SUBSCRIBED = frames.SubscribeReply(id="job.1", state=RunState.RUNNING)


@contextlib.asynccontextmanager
async def connector_to(peer: Scripted, **options: object) -> AsyncIterator[SimulationWebSocketConnector]:
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            handle: ServerHandle = await nursery.start(functools.partial(serve_http, peer))
            connector = SimulationWebSocketConnector(
                ConnectorSetup(
                    endpoint=Endpoint.parse(handle.url.replace("http", "ws")),
                    open_stream=open_tcp,
                    random=random.Random(1),
                    now_s=trio.current_time,
                    options={"stall_s": 0.3, **options},
                )
            )
            yield connector
            await connector.aclose()
            nursery.cancel_scope.cancel()


def job() -> RecordingJob:
    return RecordingJob(JobSpec(service="simulation", payload={}))


async def test_events_of_an_older_subscription_do_not_hide_those_in_between() -> None:
    """An event that overtook the reply to a subscription is not taken in, so no chunk before it is lost."""

    async def answer(_peer: Scripted, socket: ServerWebSocket, asked: frames.SocketRequest) -> None:
        if asked.verb is Verb.SUBMIT:
            await reply(socket, asked.id, ACCEPTED, 202)
        elif asked.verb is Verb.SUBSCRIBE:
            await tell(socket, 3)
            await reply(socket, asked.id, SUBSCRIBED)
            for seq in (1, 2, 3):
                await tell(socket, seq)
            await tell(socket, 4, EventType.COMPLETED)

    recorded = job()
    async with connector_to(Scripted(answer)) as connector:
        assert await connector.run(recorded) == JobResult("done", served_by="x")
    assert recorded.chunks == [1, 2, 3]


@pytest.mark.parametrize("known", [False, True])
async def test_a_submission_cut_off_is_asked_about_before_it_is_repeated(known: bool) -> None:
    """After a break the first words on the new connection are a question; only an unknown job is submitted again."""

    async def answer(peer: Scripted, socket: ServerWebSocket, asked: frames.SocketRequest) -> None:
        first = peer.asked.count(Verb.SUBMIT) == 1
        if asked.verb is Verb.SUBMIT and first:
            await socket.abort()
        elif asked.verb is Verb.SUBMIT:
            await reply(socket, asked.id, ACCEPTED, 202)
        elif asked.verb is Verb.SUBSCRIBE:
            await reply(socket, asked.id, SUBSCRIBED)
            await tell(socket, 1, EventType.COMPLETED)
        elif first and not known:
            await reply(socket, asked.id, UNKNOWN, 404)
        else:
            await reply(socket, asked.id, state(RunState.RUNNING))

    peer = Scripted(answer)
    async with connector_to(peer) as connector:
        assert (await connector.run(job())).value == "done"
    assert peer.asked[:2] == [Verb.SUBMIT, Verb.QUERY]
    assert peer.asked.count(Verb.SUBMIT) == (1 if known else 2)


async def test_a_break_while_listening_is_answered_by_a_question_at_once() -> None:
    """A connection cut in the middle of the events costs no silence: the new one begins with a question."""

    async def answer(peer: Scripted, socket: ServerWebSocket, asked: frames.SocketRequest) -> None:
        if asked.verb is Verb.SUBMIT:
            await reply(socket, asked.id, ACCEPTED, 202)
        elif asked.verb is Verb.SUBSCRIBE:
            await reply(socket, asked.id, SUBSCRIBED)
            await socket.abort()
        else:
            await reply(socket, asked.id, state(RunState.COMPLETED, "done"))

    peer = Scripted(answer)
    async with connector_to(peer, stall_s=10.0) as connector:
        began = trio.current_time()
        assert (await connector.run(job())).value == "done"
        assert trio.current_time() - began < 8
    assert peer.connections == 2


async def test_a_connection_that_answers_pings_but_no_question_is_replaced() -> None:
    """A request that gets no answer in time is asked again over another connection."""

    async def answer(peer: Scripted, socket: ServerWebSocket, asked: frames.SocketRequest) -> None:
        if asked.verb is Verb.SUBMIT:
            await reply(socket, asked.id, ACCEPTED, 202)
        elif peer.connections > 1:
            await reply(socket, asked.id, state(RunState.COMPLETED, "done"))

    peer = Scripted(answer)
    async with connector_to(peer, request_timeout_s=0.5) as connector:
        assert (await connector.run(job())).value == "done"
    assert peer.connections == 2


async def test_replies_to_others_questions_and_foreign_events_are_passed_over() -> None:
    """Neither a late reply nor an event of another job decides anything."""

    async def answer(_peer: Scripted, socket: ServerWebSocket, asked: frames.SocketRequest) -> None:
        if asked.verb is Verb.SUBMIT:
            await reply(socket, 0, UNKNOWN, 404)
            await reply(socket, asked.id, ACCEPTED, 202)
        elif asked.verb is Verb.SUBSCRIBE:
            await reply(socket, asked.id, SUBSCRIBED)
            stranger = StreamEvent(seq=9, type=EventType.FAILED, instance="x")
            await socket.send(frames.event_frame("another", stranger))
            await reply(socket, asked.id - 1, UNKNOWN, 404)
            await tell(socket, 1, EventType.COMPLETED)

    async with connector_to(Scripted(answer)) as connector:
        assert (await connector.run(job())).value == "done"


async def test_a_service_that_never_comes_back_fails_the_attempt_in_bounded_time() -> None:
    """When every new connection breaks, the job fails with the connection's fault, its outcome unknown."""

    async def answer(_peer: Scripted, socket: ServerWebSocket, _asked: frames.SocketRequest) -> None:
        await socket.abort()

    async with connector_to(Scripted(answer)) as connector:
        with pytest.raises(JobFault) as caught:
            await connector.run(job())
    assert caught.value.fault_class is FaultClass.NETWORK
    assert caught.value.outcome_unknown


class _SlowJob(RecordingJob):
    """Takes a while over each chunk."""

    async def chunk(self, data: Any) -> None:
        await trio.sleep(0.001)
        await super().chunk(data)


@pytest.mark.parametrize("key", ["simulation-http", "simulation-websocket"])
async def test_a_burst_of_chunks_beyond_every_buffer_arrives_whole(
    autojump_clock: trio.testing.MockClock, key: str
) -> None:
    """However slowly a job takes its chunks, it gets each one, once and in order, over either protocol."""
    count = 3_000
    async with open_bench(dialect(key), default_registry().load(key), seed=1) as bench:
        asked = bench.job(units=0.001, chunks=count, result="mark-1")
        slow = _SlowJob(asked.spec, headers=asked.headers)
        attempt = await bench.run(bench.connector(), slow)
        assert marked(attempt.value(), "mark-1")
        assert [chunk["index"] for chunk in slow.chunks] == list(range(1, count + 1))
        assert bench.executions == 1


@pytest.mark.parametrize("options", [{"stal_s": 1}, {"stall_s": 0}, {"connections_max": "many"}])
def test_a_wrong_option_is_one_clear_line(options: dict[str, object]) -> None:
    """Bad options fail at start, naming the connector."""
    setup = ConnectorSetup(
        endpoint=Endpoint.parse("ws://127.0.0.1:1"),
        open_stream=open_tcp,
        random=random.Random(1),
        now_s=trio.current_time,
        options=options,
    )
    with pytest.raises(ConfigError, match="simulation-websocket"):
        SimulationWebSocketConnector(setup)


def test_an_endpoint_of_another_protocol_is_refused() -> None:
    """A gRPC address is none of a WebSocket's."""
    setup = ConnectorSetup(
        endpoint=Endpoint.parse("grpc://127.0.0.1:1"),
        open_stream=open_tcp,
        random=random.Random(1),
        now_s=trio.current_time,
    )
    with pytest.raises(ConfigError, match="cannot speak 'grpc'"):
        SimulationWebSocketConnector(setup)
