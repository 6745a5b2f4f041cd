"""The simulated service over gRPC: it answers as its contract says, whatever it is sent, and shows its faults."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from gateway.connectors.simulation import wire
from gateway.connectors.simulation import wire_grpc as messages
from gateway.headers import HEADER_EXPECTED_INSTANCE, HEADER_WORKER
from protocols.base import Endpoint
from protocols.errors import NotFound, PeerClosed, ProtocolError, Rejected, Unavailable, Unsupported
from protocols.grpc import GRPCAdapter, GRPCLimits
from protocols.grpc_channel import CallEnded
from protocols.grpc_health import CHECK
from protocols.grpc_method import Method
from protocols.grpc_service import IncomingCall
from protocols.http import HTTPAdapter
from protocols.proto import health_pb2
from protocols.proto import simulation_pb2 as pb
from simulator.dialects.openinference import OpenInferenceService
from simulator.faults import FaultPlan
from simulator.model import ServiceConfig
from simulator.seeding import streams
from simulator.services.control import CONTROL_ODDITIES_PATH, serve_control
from simulator.services.grpc import SimulationGRPCService


def make(**knobs: Any) -> SimulationGRPCService:
    return SimulationGRPCService(
        ServiceConfig(instance="twin-0", duration_s=0.05),
        FaultPlan.none().updated(knobs),
        random_for=streams(0, "twin-0"),
    )


@asynccontextmanager
async def served(service: SimulationGRPCService) -> AsyncIterator[GRPCAdapter]:
    async with trio.open_nursery() as nursery:
        handle = await nursery.start(functools.partial(service.run, host="127.0.0.1", port=0))
        limits = GRPCLimits(call_timeout_s=1.0)
        async with GRPCAdapter(
            Endpoint.parse(handle.url), limits=limits, detail_name=messages.ERROR_NAME
        ) as adapter:
            yield adapter
        nursery.cancel_scope.cancel()


async def fault_of(adapter: GRPCAdapter, method: Method[Any, Any], request: Any) -> ProtocolError:
    with trio.fail_after(20), pytest.raises(ProtocolError) as caught:
        await adapter.call(method, request)
    return caught.value


async def test_a_job_from_submit_to_its_last_event() -> None:
    """Submit, repeat, listen, ask, cancel: each answers as over HTTP, and the journal knows who asked."""
    async with served(make()) as adapter:
        caller = {HEADER_WORKER: "machine/gpu0", HEADER_EXPECTED_INSTANCE: "somebody-else"}
        request = pb.SubmitRequest(id="job-1.1", payload=b'{"chunks": 2, "result": "x"}')
        reply = messages.read_submit_reply(await adapter.call(messages.SUBMIT, request, metadata=caller))
        assert (reply.id, reply.instance, reply.deduplicated) == ("job-1.1", "twin-0", False)
        again = messages.read_submit_reply(await adapter.call(messages.SUBMIT, request))
        assert again.deduplicated
        async with adapter.stream(messages.EVENTS, pb.EventsRequest(id="job-1.1")) as replies:
            events = [messages.read_event(event) async for event in replies]
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        assert events[-1].type is wire.EventType.COMPLETED
        assert events[-1].result["echo"] == "x"
        assert [event.data["index"] for event in events if event.type is wire.EventType.CHUNK] == [1, 2]
        async with adapter.stream(
            messages.EVENTS, pb.EventsRequest(id="job-1.1", after=events[-2].seq)
        ) as replies:
            assert [messages.read_event(event) async for event in replies] == [events[-1]]
        status = messages.read_status(await adapter.call(messages.STATUS, pb.JobRequest(id="job-1.1")))
        assert (status.state, status.executions) == (wire.RunState.COMPLETED, 1)
        kept = await adapter.call(messages.CANCEL, pb.JobRequest(id="job-1.1"))
        assert kept.state == wire.RunState.COMPLETED


async def test_who_asks_is_journalled() -> None:
    """The headers of the contract travel as metadata; a call meant for another instance is noted as such."""
    service = make()
    async with served(service) as adapter:
        caller = {HEADER_WORKER: "machine/gpu0", HEADER_EXPECTED_INSTANCE: "somebody-else"}
        await adapter.call(messages.SUBMIT, pb.SubmitRequest(id="job-1.1"), metadata=caller)
    journal = service.service.journal
    assert journal.summary().misrouted == 1
    assert {entry.worker for entry in journal.page(0, 10).entries} == {"machine/gpu0"}


async def test_refusals_say_why() -> None:
    """A refusal is a status, with the same body as over HTTP beside it; what is not known is not found."""
    async with served(make(unavailable_rate=1.0, retry_after_s=3.0)) as adapter:
        fault = await fault_of(adapter, messages.SUBMIT, pb.SubmitRequest(id="job-1.1"))
        assert isinstance(fault, Unavailable)
        assert fault.retry_after_s == 3.0
        failure = wire.decode_failure(fault.body)
        assert failure is not None
        assert failure.kind is wire.ErrorKind.UNAVAILABLE
    async with served(make()) as adapter:
        nobody = pb.JobRequest(id="nobody")
        assert type(await fault_of(adapter, messages.STATUS, nobody)) is NotFound
        assert type(await fault_of(adapter, messages.CANCEL, nobody)) is NotFound
        bad = pb.SubmitRequest(id="job-1.1", payload=b'{"steps": 0}')
        assert type(await fault_of(adapter, messages.SUBMIT, bad)) is Rejected
        unknown = Method("/no.Service/Method", pb.JobRequest, pb.JobStatus)
        assert type(await fault_of(adapter, unknown, nobody)) is Unsupported
        part = health_pb2.HealthCheckRequest(service="a-part")
        assert type(await fault_of(adapter, CHECK, part)) is NotFound


async def test_a_reset_is_a_call_that_breaks() -> None:
    """What HTTP shows by a reset ends a call as a broken connection does; the job was accepted all the same."""
    service = make(submit_reply_lost_rate=1.0)
    async with served(service) as adapter:
        fault = await fault_of(adapter, messages.SUBMIT, pb.SubmitRequest(id="job-1.1"))
    assert type(fault) is PeerClosed
    assert fault.outcome_unknown
    assert service.service.journal.summary().executions_by_job == {"job-1.1": 1}


async def test_a_restart_ends_what_listens() -> None:
    """A restart that forgets breaks the streams of the jobs it forgot."""
    service = make()
    async with served(service) as adapter:
        await adapter.call(messages.SUBMIT, pb.SubmitRequest(id="job-1.1", payload=b'{"duration_s": 60}'))
        async with adapter.stream(messages.EVENTS, pb.EventsRequest(id="job-1.1")) as replies:
            await anext(replies)
            service.shell.restart()
            with trio.fail_after(20), pytest.raises(PeerClosed):
                async for _event in replies:
                    pass
        assert type(await fault_of(adapter, messages.STATUS, pb.JobRequest(id="job-1.1"))) is NotFound


PATHS = [messages.SUBMIT.path, messages.STATUS.path, messages.CANCEL.path, messages.EVENTS.path, CHECK.path]


@given(path=st.sampled_from(PATHS), body=st.binary(max_size=40))
def test_any_bytes_get_an_answer_or_a_status(path: str, body: bytes) -> None:
    """Whatever is sent, the service answers with messages or a status of the protocol, and goes on."""

    async def check() -> None:
        async def keep(message: bytes) -> None:
            sent.append(message)

        sent: list[bytes] = []
        call = IncomingCall(path=path, request=body, metadata={}, time_left_s=None, send=keep)
        with trio.move_on_after(0), contextlib.suppress(CallEnded):
            await make().handle(call)

    trio.run(check)


failures = st.one_of(
    st.none(),
    st.builds(
        wire.ServiceFailure,
        kind=st.sampled_from(wire.ErrorKind),
        message=st.text(max_size=9),
        retry_after_s=st.one_of(st.none(), st.floats(0, 100)),
    ),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(
    st.builds(
        wire.StreamEvent,
        seq=st.integers(1, 2**40),
        type=st.sampled_from(wire.EventType),
        instance=st.text(max_size=9),
        progress=st.floats(0, 1),
        message=st.text(max_size=9),
        data=json_values,
        result=json_values,
        error=failures,
    )
)
def test_events_survive_the_wire(event: wire.StreamEvent) -> None:
    """Every event is read back as it was, through the bytes of the wire."""
    sent = messages.event_message(event).SerializeToString()
    assert messages.read_event(pb.StreamEvent.FromString(sent)) == event


@given(
    st.builds(
        wire.JobStatus,
        id=st.text(max_size=9),
        state=st.sampled_from(wire.RunState),
        instance=st.text(max_size=9),
        progress=st.floats(0, 1),
        message=st.text(max_size=9),
        result=json_values,
        error=failures,
        executions=st.integers(0, 2**40),
    )
)
def test_states_survive_the_wire(status: wire.JobStatus) -> None:
    """Every state is read back as it was, through the bytes of the wire."""
    sent = messages.status_message(status).SerializeToString()
    assert messages.read_status(pb.JobStatus.FromString(sent)) == status


def test_messages_that_break_the_contract_are_refused() -> None:
    """Unknown words and values that are no JSON are told as what they are."""
    for message in (
        pb.StreamEvent(seq=1, type="progres", instance="x"),
        pb.StreamEvent(seq=1, type="chunk", instance="x", data=b"{"),
        pb.StreamEvent(seq=1, type="failed", instance="x", error=pb.Failure(kind="odd")),
    ):
        with pytest.raises(wire.WireFormatError):
            messages.read_event(message)
    with pytest.raises(wire.WireFormatError):
        messages.read_submit_reply(pb.SubmitReply(id="x", state="gone"))


async def test_oddities_are_steered_over_http(nursery: trio.Nursery) -> None:
    """The control listener of a twin with oddities shows and changes them; a bad value changes nothing."""
    twin = OpenInferenceService(
        ServiceConfig(instance="twin-0"), FaultPlan.none(), random_for=streams(0, "twin-0")
    )
    serve = functools.partial(serve_control, twin.shell, host="127.0.0.1", odd=twin)
    handle = await nursery.start(serve)
    async with HTTPAdapter(Endpoint.parse(handle.url)) as http:
        changed = await http.request_json("PUT", CONTROL_ODDITIES_PATH, json={"streams": False})
        assert changed.json["streams"] is False
        assert twin.oddities.streams is False
        for bad in ({"streems": True}, {"unknown_model": "GONE"}):
            with pytest.raises(Rejected):
                await http.request_json("PUT", CONTROL_ODDITIES_PATH, json=bad)
        assert (await http.request_json("GET", CONTROL_ODDITIES_PATH)).json == changed.json
        assert (await http.request_json("GET", wire.JOURNAL_SUMMARY_PATH)).json["instance"] == "twin-0"
