"""How OpenAI-compatible servers put things: answers, chunks and errors, in the flavours that were recorded (pure)."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from gateway.connectors.openai.requests import Operation
from gateway.connectors.simulation.wire import ErrorKind, ServiceFailure, WorkPayload

#: Member of a request that describes the simulated work, and of an answer that holds its result.
EXTENSION = "simulation"
MODEL = "simulated"
DONE = b"data: [DONE]\n\n"
JSON_TYPE = "application/json"
TEXT_TYPE = "text/plain; charset=utf-8"
EVENTS_TYPE = "text/event-stream; charset=utf-8"
#: A fixed moment, seconds since the epoch: answers must not differ between two runs of one seed.
CREATED_S = 1_700_000_000
#: A PNG of one grey pixel, in base64.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="


class Flavour(enum.StrEnum):
    """Whose manners an instance has."""

    OPENAI = "openai"
    LITELLM = "litellm"
    FAKELLM = "fakellm"
    TFSERVE = "tfserve"


class Oddities(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an instance does differently; None leaves it to the flavour.

    Attributes:
        flavour: whose errors, end marks and usage it has.
        done: whether a stream ends with ``[DONE]``.
        usage: where a stream tells its usage: in a chunk without choices (``empty``), in one with a choice that says
            nothing (``odd``), in one whose choices are null (``null``), in the last chunk (``finish``), or ``none``.
        truncated: a stream ends in order, but before its last choice has.
        refusal: a policy refuses by an error (``status``), or by the reason of a finished choice (``finish``).
        hung: the models are listed, but nothing is ever generated.
        disconnect_stops: a generation ends when its client leaves.
        comments: a stream carries keep-alive comments.
        whole: a stream is asked for, but the answer comes whole.
        key: the API key asked for, empty for none; a wrong one is repeated in the error, as OpenAI does in part.
    """

    flavour: Flavour = Flavour.OPENAI
    done: bool | None = None
    usage: Literal["empty", "odd", "null", "finish", "none"] | None = None
    truncated: bool = False
    refusal: Literal["status", "finish"] = "status"
    hung: bool = False
    disconnect_stops: bool = True
    comments: bool = True
    whole: bool = False
    key: str = ""

    @property
    def says_done(self) -> bool:
        """Whether a stream ends with ``[DONE]``: transformers serve never says it."""
        return self.flavour is not Flavour.TFSERVE if self.done is None else self.done

    @property
    def tells_usage(self) -> str:
        """Where a stream tells its usage."""
        by_flavour = {Flavour.LITELLM: "odd", Flavour.TFSERVE: "finish"}
        return by_flavour.get(self.flavour, "empty") if self.usage is None else self.usage


@dataclass(frozen=True, slots=True)
class Answer:
    """What to send: status, body, its type, and Retry-After in seconds."""

    status: int
    body: bytes
    content_type: str = JSON_TYPE
    retry_after_s: float | None = None


#: Status, ``type`` and ``code`` of OpenAI's own errors, by kind.
_ERRORS: dict[ErrorKind, tuple[int, str, str | None]] = {
    ErrorKind.VALIDATION: (400, "invalid_request_error", None),
    ErrorKind.AUTH: (401, "invalid_request_error", "invalid_api_key"),
    ErrorKind.REFUSED: (400, "invalid_request_error", "content_filter"),
    ErrorKind.NOT_FOUND: (404, "invalid_request_error", "model_not_found"),
    ErrorKind.RATE_LIMITED: (429, "requests", "rate_limit_exceeded"),
    ErrorKind.SERVICE_ERROR: (500, "server_error", None),
    ErrorKind.OUT_OF_MEMORY: (500, "OutOfMemoryError", None),
    ErrorKind.UNAVAILABLE: (503, "server_error", None),
}


def error(flavour: Flavour, failure: ServiceFailure) -> Answer:
    """An error as this flavour puts it; only OpenAI itself sends Retry-After."""
    status, kind, code = _ERRORS[failure.kind]
    if flavour is Flavour.FAKELLM:
        return Answer(status, _error(failure.message, "mock_error", None))
    if flavour is Flavour.TFSERVE:
        detail: Any = failure.message
        if failure.kind is ErrorKind.VALIDATION:
            status, detail = 422, [{"type": "value_error", "loc": ["body"], "msg": failure.message}]
        return Answer(status, msgspec.json.encode({"detail": detail}))
    if flavour is Flavour.LITELLM:
        if failure.kind is ErrorKind.AUTH:
            return Answer(400, _error("No connected db.", "no_db_connection", "400"))
        kind = "throttling_error" if failure.kind is ErrorKind.RATE_LIMITED else code or kind
        return Answer(status, _error(failure.message, kind, str(status)))
    return Answer(status, _error(failure.message, kind, code), retry_after_s=failure.retry_after_s)


def bad_json(flavour: Flavour) -> Answer:
    """A body that is not JSON: fakellm fails at it in plain text."""
    if flavour is Flavour.FAKELLM:
        return Answer(500, b"Internal Server Error", TEXT_TYPE)
    return error(flavour, ServiceFailure(kind=ErrorKind.VALIDATION, message="the body is not JSON"))


def failed_chunk(failure: ServiceFailure) -> bytes:
    """An error in the middle of a stream, whose status has long been sent."""
    status, kind, code = _ERRORS[failure.kind]
    body = {"error": {"message": failure.message, "type": kind, "param": None, "code": code or status}}
    return event(body)


def _error(message: str, kind: str, code: str | None) -> bytes:
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": code}})


def event(body: Any, name: str = "") -> bytes:
    """One server-sent event."""
    head = f"event: {name}\n".encode() if name else b""
    return head + b"data: " + msgspec.json.encode(body) + b"\n\n"


@dataclass(frozen=True, slots=True)
class Completion:
    """What was generated, to be said in the form of its operation.

    Attributes:
        operation: what was asked for.
        id: of the answer.
        model: as the request named it.
        pieces: the text, piece by piece.
        result: of the simulated work; None for an empty output.
        reason: why the choice ended.
    """

    operation: Operation
    id: str
    model: str
    pieces: tuple[str, ...]
    result: Any
    reason: str = "stop"

    @property
    def text(self) -> str:
        """The whole text; work without pieces says one word."""
        return "".join(self.pieces) or "done"

    @property
    def usage(self) -> dict[str, int]:
        """Tokens, one per piece; the request's are not counted but said to be three."""
        out = max(1, len(self.pieces))
        if self.operation is Operation.RESPONSES:
            return {"input_tokens": 3, "output_tokens": out, "total_tokens": 3 + out}
        return {"prompt_tokens": 3, "completion_tokens": out, "total_tokens": 3 + out}

    def whole(self) -> dict[str, Any]:
        """The answer to a request that was not streamed."""
        if self.operation is Operation.RESPONSES:
            return self._response()
        if self.operation is Operation.EMBEDDINGS:
            one = {"object": "embedding", "index": 0, "embedding": [0.25, -0.5, 0.75]}
            return self._answer("list", data=[] if self.result is None else [one])
        if self.operation is Operation.IMAGES:
            image = {"b64_json": PIXEL, "url": None, "revised_prompt": None}
            return self._answer("", data=[] if self.result is None else [image], created=CREATED_S)
        chat = self.operation is Operation.CHAT
        said: dict[str, Any] = (
            {"message": {"role": "assistant", "content": self.text}} if chat else {"text": self.text}
        )
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": self.reason}
        empty = self.result is None and self.reason == "stop"
        return self._answer(
            "chat.completion" if chat else "text_completion", choices=[] if empty else [choice]
        )

    def _answer(self, kind: str, **members: Any) -> dict[str, Any]:
        head = {"id": self.id, "object": kind, "created": CREATED_S, "model": self.model}
        return {**head, **members, "usage": self.usage, EXTENSION: self.result}

    def _response(self) -> dict[str, Any]:
        part = {"type": "output_text", "text": self.text, "annotations": []}
        message = {"type": "message", "id": f"msg_{self.id}", "role": "assistant", "content": [part]}
        filtered = self.reason == "content_filter"
        return {
            "id": self.id,
            "object": "response",
            "created_at": CREATED_S,
            "model": self.model,
            "status": "incomplete" if filtered else "completed",
            "incomplete_details": {"reason": self.reason} if filtered else None,
            "error": None,
            "output": [] if self.result is None else [message],
            "usage": self.usage,
            EXTENSION: self.result,
        }

    def piece(self, text: str) -> bytes:
        """One piece of a stream."""
        if self.operation is Operation.RESPONSES:
            place = {"item_id": f"msg_{self.id}", "output_index": 0, "content_index": 0}
            kind = "response.output_text.delta"
            return event({"type": kind, **place, "delta": text}, kind)
        return event(self._chunk([self._choice(text)]))

    def last(self, oddities: Oddities) -> bytes:
        """The end of a stream: why it ended, its usage, its end mark."""
        if self.operation is Operation.RESPONSES:
            response = self._response()
            kind = f"response.{response['status']}"
            return event({"type": kind, "response": response}, kind)
        told = oddities.tells_usage
        finish = self._chunk([self._choice("", self.reason)])
        finish[EXTENSION] = self.result
        if self.result is None and self.reason == "stop":
            finish["choices"] = []
        if told == "finish":
            finish["usage"] = self.usage
        data = event(finish)
        choices: dict[str, Any] = {"empty": [], "odd": [{"delta": {}}], "null": None}
        if told in choices:
            data += event({**self._chunk(choices[told]), "usage": self.usage})
        return data + (DONE if oddities.says_done else b"")

    def _choice(self, text: str, reason: str | None = None) -> dict[str, Any]:
        if self.operation is Operation.COMPLETIONS:
            return {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}
        delta = {"role": "assistant", "content": text} if reason is None else {}
        return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}

    def _chunk(self, choices: Any) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self.operation is Operation.CHAT else "text_completion"
        head = {"id": self.id, "object": kind, "created": CREATED_S, "model": self.model}
        return {**head, "choices": choices, "usage": None}


def models(further: tuple[str, ...] = ()) -> dict[str, Any]:
    """The list of models: the one of its own, and those it was told to have."""
    each = {"object": "model", "created": CREATED_S, "owned_by": "simulator"}
    return {"object": "list", "data": [{"id": name, **each} for name in (MODEL, *further)]}


def payload(work: WorkPayload) -> dict[str, Any]:
    """A job's payload for ``openai-http`` that asks for this work: a streamed chat with the work as an extension."""
    messages = [{"role": "user", "content": "simulate"}]
    body = {"model": MODEL, "messages": messages, "stream": True, EXTENSION: msgspec.to_builtins(work)}
    return {"operation": Operation.CHAT.value, "body": body}
