"""``openai-http`` against its twin and against servers of a few lines, on real sockets."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest
import trio

from gateway.connectors.openai.requests import Operation
from gateway.connectors.simulation.wire import ErrorKind, JournalEvent
from gateway.errors import ConfigError, FaultClass
from protocols.http_responder import Responder, ServerRequest
from simulator.dialects.openai import OpenAIService, payload
from simulator.dialects.openai_words import Flavour, Oddities
from tests.connectors.served import (
    bytes_answer,
    failing,
    fault_of,
    make_connector,
    make_job,
    scripted,
    served,
    work,
)

KEY = "sk-test-4f1c9a7be2d84d10"
BODIES: dict[Operation, dict[str, Any]] = {
    Operation.CHAT: {"messages": [{"role": "user", "content": "hello"}]},
    Operation.COMPLETIONS: {"prompt": "hello"},
    Operation.EMBEDDINGS: {"input": "hello"},
    Operation.IMAGES: {"prompt": "hello"},
    Operation.RESPONSES: {"input": "hello"},
}
STREAMED = (Operation.CHAT, Operation.COMPLETIONS, Operation.RESPONSES)


def wish(operation: Operation, *, stream: bool = False, **members: Any) -> dict[str, Any]:
    """A payload for this operation whose work is as told."""
    body = {**BODIES[operation], "model": "m", "simulation": work(**members)}
    return {"operation": operation.value, "body": {**body, "stream": True} if stream else body}


def text_of(operation: Operation, answer: dict[str, Any]) -> str:
    if operation is Operation.RESPONSES:
        text = answer["output"][0]["content"][0]["text"]
    else:
        choice = answer["choices"][0]
        text = choice["message"]["content"] if operation is Operation.CHAT else choice["text"]
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("operation", list(Operation))
async def test_each_operation_brings_its_answer(operation: Operation) -> None:
    """Every operation runs once, under the job's own name, and its answer comes whole, usage included."""
    async with served(OpenAIService) as twin:
        job = make_job(wish(operation, result="mark", chunks=2), reference="a/b.1")
        answer = (await twin.connector("openai-http").run(job)).value
        assert answer["simulation"]["echo"] == "mark"
        assert answer["usage"]["total_tokens"] > 0
        assert [entry.id for entry in twin.journal(JournalEvent.FINISHED)] == ["a/b.1"]
        assert job.chunks == []


@pytest.mark.parametrize("flavour", list(Flavour))
@pytest.mark.parametrize("operation", STREAMED)
async def test_a_stream_tells_pieces_and_adds_up(operation: Operation, flavour: Flavour) -> None:
    """The pieces told on the way are the text of the answer, and the answer is that of a request not streamed."""
    async with served(OpenAIService, Oddities(flavour=flavour)) as twin:
        connector = twin.connector("openai-http")
        job = make_job(wish(operation, stream=True, result="mark", chunks=3))
        answer = (await connector.run(job)).value
        whole = (
            await connector.run(make_job(wish(operation, result="mark", chunks=3), reference="w.1"))
        ).value
        assert text_of(operation, answer) == text_of(operation, whole) == "chunk 1 chunk 2 chunk 3 "
        told = [one.get("text") or one["delta"] for one in job.chunks]
        texts = [one["content"] if isinstance(one, dict) else one for one in told]
        assert texts == ["chunk 1 ", "chunk 2 ", "chunk 3 "]
        assert answer["usage"] == whole["usage"]
        for one in (answer, whole):
            one.pop("id"), one["simulation"].pop("execution"), one.pop("output", None)
        assert answer == whole


@pytest.mark.parametrize("usage", ["empty", "odd", "null", "finish", "none"])
@pytest.mark.parametrize("done", [True, False])
async def test_the_usage_may_come_in_any_chunk_and_the_end_mark_not_at_all(usage: Any, done: bool) -> None:
    """Wherever a server tells its usage, and whether or not it says [DONE], the answer is whole."""
    async with served(OpenAIService, Oddities(usage=usage, done=done)) as twin:
        job = make_job(wish(Operation.CHAT, stream=True, chunks=1))
        answer = (await twin.connector("openai-http").run(job)).value
        assert answer["choices"][0]["finish_reason"] == "stop"
        assert ("usage" in answer) is (usage != "none")


@pytest.mark.parametrize("operation", STREAMED)
async def test_a_stream_that_ends_before_its_last_choice_is_tried_again(operation: Operation) -> None:
    """An orderly end without a reason to finish is a broken answer, however much text had come."""
    async with served(OpenAIService, Oddities(truncated=True)) as twin:
        job = make_job(wish(operation, stream=True, chunks=2))
        fault = await fault_of(twin.connector("openai-http"), job, FaultClass.NETWORK)
        assert fault.outcome_unknown
        assert len(job.chunks) == 2


CLASSES = {
    ErrorKind.VALIDATION: FaultClass.VALIDATION,
    ErrorKind.REFUSED: FaultClass.REFUSED,
    ErrorKind.AUTH: FaultClass.AUTH,
    ErrorKind.RATE_LIMITED: FaultClass.RATE_LIMITED,
    ErrorKind.UNAVAILABLE: FaultClass.UNAVAILABLE,
    ErrorKind.SERVICE_ERROR: FaultClass.SERVICE_ERROR,
    ErrorKind.OUT_OF_MEMORY: FaultClass.OUT_OF_MEMORY,
    ErrorKind.NOT_FOUND: FaultClass.VALIDATION,
}
#: What only the names in OpenAI's own errors tell.
NAMELESS = {ErrorKind.REFUSED: FaultClass.VALIDATION, ErrorKind.OUT_OF_MEMORY: FaultClass.SERVICE_ERROR}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("flavour", list(Flavour))
@pytest.mark.parametrize("kind", list(ErrorKind))
async def test_each_failure_has_its_class_in_each_flavour(
    kind: ErrorKind, flavour: Flavour, stream: bool
) -> None:
    """A failure before the first piece has a status, in whatever shape its body is."""
    async with served(OpenAIService, Oddities(flavour=flavour)) as twin:
        job = make_job(wish(Operation.CHAT, stream=stream, fail={"kind": kind, "message": "as asked"}))
        nameless = NAMELESS if flavour in (Flavour.FAKELLM, Flavour.TFSERVE) else {}
        wanted = nameless.get(kind, CLASSES[kind])
        fault = await fault_of(twin.connector("openai-http"), job, wanted)
        assert fault.retry_after_s is None
        assert "\n" not in str(fault)


@pytest.mark.parametrize("kind", list(ErrorKind))
async def test_an_error_in_the_middle_of_a_stream_has_its_class(kind: ErrorKind) -> None:
    """After the first piece the status is sent; the error comes as an event, and means the same."""
    async with served(OpenAIService) as twin:
        job = make_job(
            wish(Operation.CHAT, stream=True, chunks=4, fail={"kind": kind, "message": "as asked"})
        )
        await fault_of(twin.connector("openai-http"), job, CLASSES[kind])
        assert job.chunks


async def test_the_service_s_own_wish_to_wait_is_handed_on_where_it_has_one() -> None:
    """Retry-After is passed on when it was sent; litellm sends none, and then the one retry policy decides."""
    for flavour, wanted in ((Flavour.OPENAI, 7.0), (Flavour.LITELLM, None)):
        async with served(OpenAIService, Oddities(flavour=flavour)) as twin:
            wishes = failing(kind=ErrorKind.RATE_LIMITED, message="slow down", retry_after_s=7.0)
            fault = await fault_of(
                twin.connector("openai-http"), make_job(payload(wishes)), FaultClass.RATE_LIMITED
            )
            assert fault.retry_after_s == wanted


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("operation", STREAMED)
async def test_a_filtered_answer_is_refused_for_good(operation: Operation, stream: bool) -> None:
    """A content filter that ends an answer of status 200 is a refusal, not a result."""
    async with served(OpenAIService, Oddities(refusal="finish")) as twin:
        failure = {"kind": ErrorKind.REFUSED, "message": "policy"}
        job = make_job(wish(operation, stream=stream, chunks=2, fail=failure))
        await fault_of(twin.connector("openai-http"), job, FaultClass.REFUSED)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("operation", list(Operation))
async def test_a_success_without_an_output_is_a_failure(operation: Operation, stream: bool) -> None:
    """Status 200 with nothing in it is tried again."""
    if stream and operation not in STREAMED:
        return
    async with served(OpenAIService, empty_output_rate=1.0) as twin:
        job = make_job(wish(operation, stream=stream))
        await fault_of(twin.connector("openai-http"), job, FaultClass.SERVICE_ERROR)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stops", [True, False])
async def test_leaving_closes_the_connection_and_stops_the_generation(stream: bool, stops: bool) -> None:
    """A cancelled run reaches the peer as a disconnect: it stops there, if the server heeds that at all."""
    async with served(OpenAIService, Oddities(disconnect_stops=stops)) as twin:
        job = make_job(wish(Operation.CHAT, stream=stream, chunks=30, duration_s=1.0))
        with trio.CancelScope() as scope:
            twin.nursery.start_soon(_cancel_when_started, twin, scope)
            await twin.connector("openai-http").run(job)
        await twin.seen(JournalEvent.CANCELLED if stops else JournalEvent.FINISHED)
        assert len(twin.journal(JournalEvent.CANCELLED)) == int(stops)


async def _cancel_when_started(twin: Any, scope: trio.CancelScope) -> None:
    await twin.seen(JournalEvent.STARTED)
    scope.cancel()


async def test_a_job_runs_as_long_as_it_may() -> None:
    """No time-out of the connection's own ends a silent generation: the job's does, and it is one."""
    async with served(OpenAIService, Oddities(hung=True)) as twin:
        connector = twin.connector("openai-http")
        assert (await connector.health()).healthy, "a hung model looks ready"
        began = trio.current_time()
        fault = await fault_of(connector, make_job(wish(Operation.CHAT), timeout_s=0.4), FaultClass.TIMEOUT)
        assert trio.current_time() - began >= 0.4
        assert fault.outcome_unknown


async def test_a_silent_stream_is_given_up() -> None:
    """A stream without a byte for its idle time is a time-out, long before the job's own."""
    async with served(OpenAIService, half_open_rate=1.0) as twin:
        connector = twin.connector("openai-http", stream_idle_s=0.2)
        await fault_of(connector, make_job(wish(Operation.CHAT, stream=True, chunks=3)), FaultClass.TIMEOUT)


async def test_a_server_may_answer_whole_although_a_stream_was_asked_for() -> None:
    """A JSON answer to a request for a stream is an answer."""
    async with served(OpenAIService, Oddities(whole=True)) as twin:
        job = make_job(wish(Operation.CHAT, stream=True, result="mark", chunks=1))
        assert (await twin.connector("openai-http").run(job)).value["simulation"]["echo"] == "mark"


def events(*bodies: Any, tail: bytes = b"") -> bytes:
    return b"".join(b"data: " + msgspec.json.encode(body) + b"\n\n" for body in bodies) + tail


FINISHED = {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": "stop"}]}


@pytest.mark.parametrize("then", ["cut", "silence", "comments"])
async def test_a_stream_may_break_or_never_end_after_its_last_choice(then: str) -> None:
    """Once the last choice has ended, a connection that is cut, stays open or chatters on takes no answer away."""

    async def answer(_request: ServerRequest, responder: Responder) -> None:
        async with responder.stream(200, "text/event-stream") as stream:
            await stream.send(events(FINISHED))
            if then == "cut":
                await responder.close()
            while then != "cut":
                await trio.sleep(0.2 if then == "comments" else 60.0)
                await stream.send(b": keep-alive\n\n")

    async with scripted(answer) as server:
        connector = make_connector("openai-http", server.url)
        value = (await connector.run(make_job(wish(Operation.CHAT, stream=True)))).value
        assert value["choices"][0]["message"]["content"] == "hi"
        await connector.aclose()


@pytest.mark.parametrize(
    "body",
    [
        b"data: " + b"x" * 3_000 + b"\n\n",
        b"data: xxxx\n" * 500 + b"\n",
        b": keep-alive, for ever\n" * 2_000,
        events(*([{"choices": [{"index": 0, "delta": {"content": "word " * 20}}]}] * 300)),
    ],
    ids=["line", "event", "comments", "stream"],
)
async def test_nothing_a_stream_sends_is_without_bound(body: bytes) -> None:
    """A line, an event, or a whole stream beyond its bound is refused for good."""
    async with scripted(bytes_answer(body, kind="text/event-stream")) as server:
        connector = make_connector("openai-http", server.url, event_bytes_max=2_000, reply_bytes_max=20_000)
        await fault_of(connector, make_job(wish(Operation.CHAT, stream=True)), FaultClass.VALIDATION)
        await connector.aclose()


@pytest.mark.parametrize(
    ("path", "wanted", "health"),
    [("", "/v1/chat/completions", "/v1/models"), ("/api/v4", "/api/v4/chat/completions", "/api/v4/models")],
)
async def test_the_endpoint_s_path_is_the_base_url(path: str, wanted: str, health: str) -> None:
    """Any compatible server is reached by its base URL; the job's name and trace go with each request."""
    async with scripted(bytes_answer(msgspec.json.encode({"choices": [{"text": "x"}]}))) as server:
        connector = make_connector("openai-http", server.url + path, model="default")
        payload = {"operation": "completions", "body": {"prompt": "a"}}
        job = make_job(payload, reference="job-7.2")
        with pytest.raises(Exception, match="without an output"):
            await connector.run(
                make_job({"operation": "chat", "body": {"messages": []}}, reference="job-7.2")
            )
        await connector.run(job)
        assert (await connector.health()).healthy
        other = make_connector("openai-http", server.url + path, health_path="/health/liveliness")
        assert (await other.health()).healthy
        await connector.aclose()
        await other.aclose()
    first, _second, probe, own_probe = server.requests
    assert (first.method, first.path, probe.path, own_probe.path) == (
        "POST",
        wanted,
        health,
        "/health/liveliness",
    )
    assert first.headers["x-client-request-id"] == first.headers["idempotency-key"] == "job-7.2"
    assert msgspec.json.decode(first.body) == {"messages": [], "model": "default"}
    assert "authorization" not in first.headers


def _texts(error: BaseException | None) -> list[str]:
    """All that an error and its causes would show."""
    found: list[str] = []
    while error is not None:
        found += [str(error), repr(error), repr(vars(error))]
        error = error.__cause__ or error.__context__
    return found


async def test_an_api_key_is_sent_and_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """The key reaches the server; no log line, error, report, repr, journal or result shows it, though servers do."""
    caplog.set_level(logging.DEBUG)
    shown: list[str] = []
    async with served(OpenAIService, Oddities(key=KEY)) as twin:
        connector = twin.connector("openai-http", api_key=KEY)
        for stream in (False, True):
            # The server repeats the key in its answer.
            job = make_job(
                wish(Operation.CHAT, stream=stream, chunks=1, result=f"it is {KEY}"), reference=f"j{stream}.1"
            )
            value = (await connector.run(job)).value
            assert value["simulation"]["echo"] == "it is [redacted]"
            shown += [msgspec.json.encode(value).decode(), str(job.chunks)]
        twin.twin.set_oddities({"key": "another"})
        for stream in (False, True):
            fault = await fault_of(connector, make_job(wish(Operation.CHAT, stream=stream)), FaultClass.AUTH)
            assert "Incorrect API key" in str(fault)
            shown += _texts(fault)
        report = await connector.health()
        assert not report.healthy
        shown += [repr(report), repr(connector), repr(vars(connector)), repr(connector.setup)]
        shown += [repr(entry) for entry in twin.journal()]
    shown += [record.getMessage() for record in caplog.records]
    assert not [text for text in shown if KEY in text]


async def test_a_key_goes_into_the_header_that_the_options_name() -> None:
    """Some servers want the bare key in a header of their own."""
    async with scripted(bytes_answer(b"{}")) as server:
        for header in ("authorization", "api-key"):
            connector = make_connector("openai-http", server.url, api_key=KEY, api_key_header=header)
            await connector.health()
            await connector.aclose()
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    assert server.requests[1].headers["api-key"] == KEY


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"apikey": KEY}, "unknown field `apikey`"),
        ({"api_key": {"env": KEY}}, r"at `\$.api_key`"),
        ({"api_key": " \n"}, "api_key: a credential is one line of visible ASCII"),
        ({"api_key": f"{KEY}\n{KEY}"}, "api_key: a credential is one line of visible ASCII"),
        ({"api_key_header": "a b"}, "api_key_header must be"),
        ({"stream_idle_s": 0}, "must be positive"),
        ({"health_path": "models"}, "health_path must begin"),
    ],
)
async def test_a_wrong_option_fails_at_the_start(options: dict[str, Any], message: str) -> None:
    """A key that cannot be one, or an impossible option, is one clear line without the key."""
    with pytest.raises(ConfigError, match=message) as caught:
        make_connector("openai-http", "http://127.0.0.1:1", **options)
    assert KEY not in str(caught.value)
    assert "\n" not in str(caught.value)
