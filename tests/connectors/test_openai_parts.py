"""The pure parts of ``openai-http``: payloads, server-sent events, errors, and answers out of pieces."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.connectors.openai.answers import CompletionStream, ResponseStream, checked, tokens
from gateway.connectors.openai.faults import fault_of, reported_fault
from gateway.connectors.openai.requests import Call, Operation, read_call
from gateway.connectors.openai.sse import EventParser, ServerEvent
from gateway.errors import FaultClass, JobFault
from protocols.errors import BodyTooLarge, ProtocolViolation, status_failure

CHAT = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize(
    ("payload", "operation"),
    [
        ({"operation": "chat", "body": CHAT}, Operation.CHAT),
        ({"body": CHAT}, Operation.CHAT),
        (CHAT, Operation.CHAT),
        ({"operation": "completions", "body": {"prompt": "a"}}, Operation.COMPLETIONS),
        ({"operation": "images", "body": {"prompt": "a"}}, Operation.IMAGES),
        ({"operation": "embeddings", "body": {"input": "a"}}, Operation.EMBEDDINGS),
        ({"operation": "responses", "body": {"input": "a", "stream": True}}, Operation.RESPONSES),
    ],
)
def test_a_payload_says_which_operation_it_is(payload: Any, operation: Operation) -> None:
    """The operation is named, or the body leaves no doubt."""
    assert read_call(payload).operation is operation


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (None, "payload: expected an object"),
        ([1], "payload: expected an object .* not a list"),
        ({"operation": "chat"}, "payload.body: expected an object"),
        ({"operation": "chat", "body": "hello"}, "payload.body: .* not a string"),
        ({"operation": "sing", "body": {}}, r"payload.operation: 'sing' is none of chat, completions"),
        ({"operation": 7, "body": {}}, "payload.operation: a number is none of"),
        ({"body": {"prompt": "a"}}, "payload.operation: name one of"),
        ({"body": {"input": "a"}}, "payload.operation: name one of"),
        ({"operation": "chat", "body": CHAT, "model": "m"}, "unknown member 'model'"),
        (
            {"operation": "chat", "body": {**CHAT, "stream": "yes"}},
            "payload.body.stream: expected true or false",
        ),
        ({"operation": "images", "body": {"prompt": "a", "stream": True}}, "images is not streamed"),
        ({"operation": "responses", "body": {"input": "a", "background": True}}, "background"),
    ],
)
def test_a_bad_payload_is_refused_with_one_clear_line(payload: Any, message: str) -> None:
    """What is wrong with a payload is said before anything is sent, and no retry would mend it."""
    with pytest.raises(JobFault, match=message) as caught:
        read_call(payload)
    assert caught.value.fault_class is FaultClass.VALIDATION
    assert "\n" not in str(caught.value)


def test_options_fill_in_what_a_body_leaves_open() -> None:
    """The model and the wish for usage are added where the body does not say, and only there."""
    streamed = {**CHAT, "stream": True}
    assert read_call(streamed, model="m").body == {
        **streamed,
        "model": "m",
        "stream_options": {"include_usage": True},
    }
    own = {**streamed, "model": "own", "stream_options": None}
    assert read_call(own, model="m").body == own
    assert "stream_options" not in read_call(streamed, include_usage=False).body
    assert "stream_options" not in read_call(CHAT).body


texts = st.text(st.characters(blacklist_characters="\r\n\ufeff", blacklist_categories=["Cs"]), max_size=20)


@given(
    events=st.lists(st.lists(texts, min_size=1, max_size=3), max_size=6), noise=st.lists(texts, max_size=4)
)
def test_events_come_back_as_they_were_sent(events: list[list[str]], noise: list[str]) -> None:
    """Whatever comments stand between them, every event is read once, in order, with all its lines."""
    lines: list[str] = []
    for sent in events:
        lines += [f":{text}" for text in noise]
        lines += ["retry: 5", *(f"data: {text}" for text in sent), ""]
    parser = EventParser(data_bytes_max=10_000)
    found = [event for line in lines if (event := parser.feed(line.encode())) is not None]
    assert [event.data.decode() for event in found] == ["\n".join(sent) for sent in events]
    assert parser.flush() is None


def test_an_event_may_lack_its_blank_line_and_its_space() -> None:
    """The last event of a body that ends early counts, and the space after the colon is no part of the data."""
    parser = EventParser(data_bytes_max=100)
    assert parser.feed(b"\xef\xbb\xbfevent:error") is None
    assert parser.feed(b"data:{}") is None
    assert parser.flush() == ServerEvent(b"{}", b"error")


def test_an_event_has_a_bound() -> None:
    """Any number of short lines cannot make an event of any size."""
    parser = EventParser(data_bytes_max=100)
    for _line in range(12):
        parser.feed(b"data: 1234567")
    with pytest.raises(BodyTooLarge):
        parser.feed(b"data: 1234567")


def chat_call(**members: Any) -> Call:
    return read_call({**CHAT, "stream": True, **members})


def feed(stream: CompletionStream | ResponseStream, *pieces: Any) -> list[Any]:
    told: list[Any] = []
    for piece in pieces:
        told += stream.take(ServerEvent(msgspec.json.encode(piece)))
    return told


def chat_piece(delta: Any, reason: str | None = None, **members: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return {"id": "c1", "object": "chat.completion.chunk", "model": "m", "choices": [choice], **members}


@given(
    parts=st.lists(st.text(st.characters(blacklist_categories=["Cs"])), max_size=12), cut=st.integers(0, 12)
)
def test_a_stream_adds_up_to_its_answer(parts: list[str], cut: int) -> None:
    """However a text is cut into pieces, and whatever says nothing between them, the whole and the told agree."""
    stream = CompletionStream(chat_call())
    told = feed(stream, chat_piece({"role": "assistant", "content": ""}))
    for number, part in enumerate(parts):
        if number == cut:
            nothing: list[Any] = [[], None, [{"delta": {}}], [{"index": 0, "delta": None}], [{}]]
            told += feed(stream, *({"id": "c1", "choices": choices, "usage": None} for choices in nothing))
        told += feed(stream, chat_piece({"content": part}))
    assert not stream.finished
    told += feed(stream, chat_piece({}, "stop"), {"choices": [], "usage": {"total_tokens": 3}})
    assert stream.finished
    answer = stream.result()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": "".join(parts)}
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert (answer["object"], answer["usage"]) == ("chat.completion", {"total_tokens": 3})
    assert "".join(one["delta"]["content"] for one in told) == "".join(parts)


def test_tool_calls_are_merged_by_their_index() -> None:
    """Arguments of several calls may come interleaved; names and ids are said once, by some servers again and again."""

    def call(index: int, arguments: str, **rest: Any) -> dict[str, Any]:
        function = {"name": f"f{index}", "arguments": arguments}
        return {"index": index, "id": f"call{index}", "type": "function", "function": function, **rest}

    stream = CompletionStream(chat_call())
    feed(
        stream,
        chat_piece({"role": "assistant", "content": None, "tool_calls": [call(0, '{"a"'), call(1, "{")]}),
        chat_piece({"tool_calls": [call(1, "}")]}),
        chat_piece({"tool_calls": [call(0, ":1}")]}, "tool_calls"),
    )
    message = stream.result()["choices"][0]["message"]
    assert message["content"] is None
    assert [json.loads(one["function"]["arguments"]) for one in message["tool_calls"]] == [{"a": 1}, {}]
    assert [one["function"]["name"] for one in message["tool_calls"]] == ["f0", "f1"]


def test_a_stream_has_ended_only_when_every_choice_has() -> None:
    """With several choices asked for, the end of the first is not the end."""
    stream = CompletionStream(chat_call(n=2))
    feed(stream, chat_piece({"content": "a"}, "stop"))
    assert not stream.finished
    second = chat_piece({"content": "b"}, "length")
    second["choices"][0]["index"] = 1
    feed(stream, second)
    assert stream.finished
    assert [one["message"]["content"] for one in stream.result()["choices"]] == ["a", "b"]


def test_a_text_completion_is_put_together_too() -> None:
    """Pieces of a text completion have no delta."""
    stream = CompletionStream(Call(Operation.COMPLETIONS, {"prompt": "a", "stream": True}))
    told = feed(
        stream,
        {
            "id": "t",
            "object": "text_completion",
            "choices": [{"index": 0, "text": "a", "finish_reason": None}],
        },
        {
            "id": "t",
            "choices": [{"index": 0, "text": "b", "finish_reason": "length"}],
            "usage": {"total_tokens": 2},
        },
    )
    assert told == [{"index": 0, "text": "a"}, {"index": 0, "text": "b"}]
    answer = stream.result()
    assert answer["choices"] == [{"index": 0, "finish_reason": "length", "text": "ab"}]
    assert answer["usage"] == {"total_tokens": 2}


@pytest.mark.parametrize(
    ("response", "wanted"),
    [
        ({"status": "incomplete", "incomplete_details": {"reason": "content_filter"}}, FaultClass.REFUSED),
        (
            {"status": "failed", "error": {"code": "rate_limit_exceeded", "message": "m"}},
            FaultClass.RATE_LIMITED,
        ),
        ({"status": "failed", "error": {"code": "server_error", "message": "m"}}, FaultClass.SERVICE_ERROR),
        ({"status": "failed", "error": None}, FaultClass.SERVICE_ERROR),
        ({"status": "completed", "output": []}, FaultClass.SERVICE_ERROR),
    ],
)
def test_a_response_that_did_not_succeed_is_a_fault(response: dict[str, Any], wanted: FaultClass) -> None:
    """A response says in itself how it ended, streamed or not."""
    with pytest.raises(JobFault) as caught:
        checked(Operation.RESPONSES, response)
    assert caught.value.fault_class is wanted
    stream = ResponseStream()
    feed(stream, {"type": f"response.{response['status']}", "response": response})
    with pytest.raises(JobFault) as caught:
        stream.result()
    assert caught.value.fault_class is wanted


def test_a_response_cut_short_by_its_own_limit_is_a_result() -> None:
    """Reaching the number of tokens asked for is what was asked for."""
    response = {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}, "output": [{}]}
    assert checked(Operation.RESPONSES, response) == response


@pytest.mark.parametrize("piece", [b"<html>", b"[]", b'{"choices": [{"index": "a", "delta": {}}]}', b"\xff"])
def test_garbage_in_a_stream_is_a_violation_of_the_protocol(piece: bytes) -> None:
    """What is no chunk is never skipped: the text around it would look whole."""
    with pytest.raises(ProtocolViolation):
        CompletionStream(chat_call()).take(ServerEvent(piece))


ERRORS = [
    # OpenAI
    (
        400,
        {"error": {"message": "m", "type": "invalid_request_error", "code": "context_length_exceeded"}},
        "validation",
    ),
    (400, {"error": {"message": "m", "type": "invalid_request_error", "code": "content_filter"}}, "refused"),
    (
        400,
        {"error": {"message": "m", "type": "image_generation_user_error", "code": "moderation_blocked"}},
        "refused",
    ),
    (401, {"error": {"message": "m", "type": "invalid_request_error", "code": "invalid_api_key"}}, "auth"),
    (403, {"error": {"message": "m", "code": "unsupported_country_region_territory"}}, "auth"),
    (404, {"error": {"message": "m", "code": "model_not_found"}}, "validation"),
    (409, {"error": {"message": "m"}}, "service_error"),
    (429, {"error": {"message": "m", "code": "rate_limit_exceeded"}}, "rate_limited"),
    (429, {"error": {"message": "m", "code": "insufficient_quota"}}, "unavailable"),
    (503, {"error": {"message": "m", "type": "server_error", "code": None}}, "unavailable"),
    # Azure OpenAI
    (400, {"error": {"code": "x", "innererror": {"code": "ResponsibleAIPolicyViolation"}}}, "refused"),
    # litellm: the code is the status as a string; a wrong key is a 400
    (400, {"error": {"message": "m", "type": None, "param": None, "code": "400"}}, "validation"),
    (400, {"error": {"message": "No connected db.", "type": "no_db_connection", "code": "400"}}, "auth"),
    (408, {"error": {"message": "m", "type": None, "code": "408"}}, "timeout"),
    (429, {"error": {"message": "m", "type": "throttling_error", "code": "429"}}, "rate_limited"),
    # fakellm, transformers serve, a proxy, nothing at all
    (500, {"error": {"message": "m", "type": "mock_error", "code": None}}, "service_error"),
    (500, {"error": {"message": "m", "type": "mock_error", "code": 7}}, "service_error"),
    (422, {"detail": [{"loc": ["body"], "msg": "m", "type": "value_error"}]}, "validation"),
    (404, {"detail": "Not Found"}, "validation"),
    (500, {"error": "CUDA"}, "service_error"),
    (500, {"error": {"message": "m", "type": "OutOfMemoryError", "code": None}}, "out_of_memory"),
    (507, None, "out_of_memory"),
    (413, "too large", "validation"),
    (502, "<html>bad gateway</html>", "service_error"),
    (504, b"", "timeout"),
    (501, None, "unsupported"),
    (500, [], "service_error"),
]


@pytest.mark.parametrize(("status", "body", "wanted"), ERRORS)
def test_an_error_is_classified_by_status_then_by_its_names(status: int, body: Any, wanted: str) -> None:
    """Every recorded shape of an error has the class that its status, type and code give it."""
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    fault = fault_of(status_failure(status, "POST", body=raw))
    assert fault.fault_class.value == wanted
    assert fault.outcome_unknown is (status in (500, 502, 504, 507, 509))


def test_the_words_of_a_message_decide_nothing() -> None:
    """A message that speaks of a rate limit is still what its status says."""
    body = b'{"error": {"message": "rate_limit_exceeded: out of memory, content_filter", "type": null}}'
    assert fault_of(status_failure(500, "POST", body=body)).fault_class is FaultClass.SERVICE_ERROR


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        ({"code": 429, "message": "m"}, FaultClass.RATE_LIMITED),
        ({"code": "503", "message": "m"}, FaultClass.UNAVAILABLE),
        ({"code": "content_filter"}, FaultClass.REFUSED),
        ({"type": "overloaded_error"}, FaultClass.UNAVAILABLE),
        ({"type": "invalid_request_error"}, FaultClass.VALIDATION),
        ({"code": 504}, FaultClass.TIMEOUT),
        ("it broke", FaultClass.SERVICE_ERROR),
        ({}, FaultClass.SERVICE_ERROR),
        ([], FaultClass.SERVICE_ERROR),
    ],
)
def test_an_error_inside_a_success_is_one(error: Any, wanted: FaultClass) -> None:
    """Servers report errors under status 200 and in the middle of streams; they mean what they say."""
    assert reported_fault({"error": error}).fault_class is wanted


@given(value=st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=5))
def test_no_error_body_breaks_its_reader(value: Any) -> None:
    """Whatever JSON comes as an error, a fault comes out."""
    for body in (value, {"error": value}, {"detail": value}, {"error": {"type": value, "code": value}}):
        raw = msgspec.json.encode(body)
        assert fault_of(status_failure(400, "POST", body=raw)).fault_class in FaultClass
        assert reported_fault(body).fault_class in FaultClass


@pytest.mark.parametrize(
    ("usage", "wanted"),
    [
        (
            {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
            {"input_tokens": 3, "output_tokens": 2},
        ),
        ({"input_tokens": 3, "output_tokens": 2}, {"input_tokens": 3, "output_tokens": 2}),
        ({"prompt_tokens": 3}, {"input_tokens": 3}),
        ({"prompt_tokens": None, "completion_tokens": "2"}, {}),
        ({"prompt_tokens": True, "completion_tokens": -1}, {}),
        (None, {}),
        ([], {}),
    ],
)
def test_tokens_are_counted_as_far_as_they_are_told(usage: Any, wanted: dict[str, int]) -> None:
    """Both vocabularies of a usage are read, and nothing is made up."""
    assert tokens({"usage": usage}) == wanted
