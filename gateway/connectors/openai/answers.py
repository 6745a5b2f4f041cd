"""Answers of OpenAI-compatible servers, whole or put together from a stream (pure).

A stream's pieces are merged the way OpenAI's format means them, and what a server adds of its own is kept: text
grows, tool calls are merged by their index, everything else is the last thing said.
"""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.connectors.openai.faults import reported_fault
from gateway.connectors.openai.requests import Call, Operation
from gateway.connectors.openai.sse import ServerEvent
from gateway.errors import FaultClass, JobFault
from protocols.errors import ProtocolViolation

#: Strings that are said, not continued.
_SAID_ONCE = frozenset({"role", "id", "type", "name", "object", "finish_reason", "format"})
_FILTERED = "content_filter"
#: Members of a message that are an output, beside its text.
_OUTPUTS = ("tool_calls", "function_call", "refusal", "audio", "reasoning_content", "reasoning", "images")
#: Where the chunks of a stream differ from the whole answer.
_OBJECTS = {"chat.completion.chunk": "chat.completion"}
_ENDED = frozenset({"completed", "incomplete", "failed", "cancelled"})


def decode(data: bytes) -> dict[str, Any]:
    """One JSON object.

    Raises:
        ProtocolViolation: it is none.
    """
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolViolation(f"the server's answer is not JSON: {error}", outcome_unknown=True) from error
    if not isinstance(value, dict):
        raise ProtocolViolation("the server's answer is no JSON object", outcome_unknown=True)
    return value


def checked(operation: Operation, answer: dict[str, Any]) -> dict[str, Any]:
    """A whole answer, if it is one.

    Raises:
        JobFault: it reports an error, was refused by a policy, or holds no output.
    """
    if answer.get("error") is not None:
        raise reported_fault(answer)
    if operation is Operation.RESPONSES:
        return _checked_response(answer)
    if operation in (Operation.EMBEDDINGS, Operation.IMAGES):
        if not _list(answer, "data"):
            raise _empty()
        return answer
    choices = [choice for choice in _list(answer, "choices") if isinstance(choice, dict)]
    if choices and all(choice.get("finish_reason") == _FILTERED for choice in choices):
        raise _filtered()
    if not any(_has_output(operation, choice) for choice in choices):
        raise _empty()
    return answer


def _checked_response(answer: dict[str, Any]) -> dict[str, Any]:
    status, details = answer.get("status"), answer.get("incomplete_details")
    if status == "incomplete" and isinstance(details, dict) and details.get("reason") == _FILTERED:
        raise _filtered()
    if status in ("failed", "cancelled"):
        raise JobFault(FaultClass.SERVICE_ERROR, f"the response {status} at the server without saying why")
    if status not in (None, *_ENDED):
        raise ProtocolViolation("the server answered before the response had ended", outcome_unknown=True)
    if not _list(answer, "output"):
        raise _empty()
    return answer


def _has_output(operation: Operation, choice: dict[str, Any]) -> bool:
    if operation is Operation.COMPLETIONS:
        return isinstance(choice.get("text"), str)
    message = choice.get("message")
    if not isinstance(message, dict):
        return False
    # An empty text is an answer; null without anything else is none.
    return message.get("content") is not None or any(message.get(name) for name in _OUTPUTS)


def _empty() -> JobFault:
    # Success without output is a known lie of real services; a retry may bring the output.
    return JobFault(FaultClass.SERVICE_ERROR, "the server reported success without an output")


def _filtered() -> JobFault:
    return JobFault(FaultClass.REFUSED, "the server's content filter withheld the output")


def _list(value: dict[str, Any], name: str) -> list[Any]:
    found = value.get(name)
    return found if isinstance(found, list) else []


#: The two vocabularies of a usage: that of responses, and that of everything older.
_TOKENS = {
    "input_tokens": ("input_tokens", "prompt_tokens"),
    "output_tokens": ("output_tokens", "completion_tokens"),
}


def tokens(answer: dict[str, Any]) -> dict[str, int]:
    """The tokens that an answer says were used, as far as it does."""
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return {}
    told = {
        kind: next((usage[name] for name in names if name in usage), None) for kind, names in _TOKENS.items()
    }
    return {kind: count for kind, count in told.items() if type(count) is int and count >= 0}


class CompletionStream:
    """Puts a streamed chat or text completion together.

    Args:
        call: what was asked for.
    """

    def __init__(self, call: Call) -> None:
        self._chat = call.operation is Operation.CHAT
        self._wanted = call.choices
        self._answer: dict[str, Any] = {}
        self._choices: dict[int, dict[str, Any]] = {}
        self._usage: Any = None

    @property
    def finished(self) -> bool:
        """Whether every choice asked for has said why it ended."""
        choices = self._choices.values()
        return len(choices) >= self._wanted and all(choice.get("finish_reason") for choice in choices)

    def take(self, event: ServerEvent) -> list[dict[str, Any]]:
        """Merge one event; returns what is worth telling at once.

        Raises:
            ProtocolViolation: it is not JSON.
            JobFault: it reports an error.
        """
        piece = decode(event.data)
        if event.name == b"error" or piece.get("error") is not None:
            raise reported_fault(piece)
        for name, value in piece.items():
            if name not in ("choices", "usage", "object") and (value is not None or name not in self._answer):
                self._answer[name] = value
        said = piece.get("object")
        if isinstance(said, str):
            self._answer["object"] = _OBJECTS.get(said, said)
        if isinstance(piece.get("usage"), dict):
            self._usage = piece["usage"]
        # The chunk that tells the usage has no choices, or an empty one.
        told = [self._merge(choice) for choice in _list(piece, "choices") if isinstance(choice, dict)]
        return [one for one in told if one is not None]

    def _merge(self, choice: dict[str, Any]) -> dict[str, Any] | None:
        # The chunk of the usage may have a choice that lacks any of its members.
        index = choice.get("index") or 0
        delta = (choice.get("delta") or {}) if self._chat else {"text": choice.get("text")}
        if not isinstance(index, int) or not isinstance(delta, dict):
            raise ProtocolViolation(
                "a chunk of the stream has a choice of another form", outcome_unknown=True
            )
        reason = choice.get("finish_reason")
        said = {name: value for name, value in delta.items() if value not in (None, "")}
        known = self._choices.get(index)
        if known is None:
            if not said and not reason:
                return None
            known = self._choices[index] = {"index": index}
        rest = {name: value for name, value in choice.items() if name not in ("index", "delta", "text")}
        _grow(known, rest)
        body = known.setdefault("message", {}) if self._chat else known
        _grow(body, said)
        told = {name: value for name, value in said.items() if name != "role"}
        if not told:
            return None
        return {"index": index, "delta": told} if self._chat else {"index": index, **told}

    def result(self) -> dict[str, Any]:
        """The whole answer, in the form of one that was not streamed.

        Raises:
            JobFault: it was refused by a policy, or holds no output.
        """
        choices = []
        for index in sorted(self._choices):
            choice: dict[str, Any] = _whole(self._choices[index])
            if self._chat:
                choice["message"].setdefault("role", "assistant")
                choice["message"].setdefault("content", None if choice["message"].keys() & _OUTPUTS else "")
            else:
                choice.setdefault("text", "")
            choices.append(choice)
        answer = {**self._answer, "choices": choices}
        if self._usage is not None:
            answer["usage"] = self._usage
        return checked(Operation.CHAT if self._chat else Operation.COMPLETIONS, answer)


class ResponseStream:
    """Follows a streamed response, whose last event carries it whole."""

    def __init__(self) -> None:
        self._answer: dict[str, Any] | None = None

    @property
    def finished(self) -> bool:
        """Whether the last event came."""
        return self._answer is not None

    def take(self, event: ServerEvent) -> list[dict[str, Any]]:
        """See ``CompletionStream.take``."""
        piece = decode(event.data)
        kind = piece.get("type")
        if kind == "error" or event.name == b"error" or piece.get("error") is not None:
            raise reported_fault(piece)
        if not isinstance(kind, str):
            raise ProtocolViolation("an event of the stream does not say its type", outcome_unknown=True)
        head, _, tail = kind.rpartition(".")
        if head == "response" and tail in _ENDED:
            self._answer = piece.get("response") if isinstance(piece.get("response"), dict) else {}
            return []
        if not kind.endswith(".delta"):
            return []
        kept = ("type", "delta", "output_index", "content_index", "item_id")
        return [{name: piece[name] for name in kept if name in piece}]

    def result(self) -> dict[str, Any]:
        """The response; see ``checked``."""
        return checked(Operation.RESPONSES, self._answer or {})


def stream_for(call: Call) -> CompletionStream | ResponseStream:
    """What puts this call's stream together."""
    return ResponseStream() if call.operation is Operation.RESPONSES else CompletionStream(call)


class _Text(list[str]):
    """A string that grows: parts, joined once at the end (a sum of strings would cost the square of its length)."""


def _grow(known: dict[str, Any], piece: dict[str, Any]) -> None:
    """Merge a piece into what is known."""
    for name, value in piece.items():
        before = known.get(name)
        if value is None:
            known.setdefault(name, None)
        elif isinstance(value, str) and name not in _SAID_ONCE:
            if isinstance(before, _Text):
                before.append(value)
            else:
                known[name] = _Text([value])
        elif isinstance(value, str) and before and name != "finish_reason":
            continue
        elif isinstance(value, dict):
            inner = known[name] = before if isinstance(before, dict) else {}
            _grow(inner, value)
        elif isinstance(value, list) and name == "tool_calls":
            known[name] = _grow_calls(before if isinstance(before, list) else [], value)
        elif isinstance(value, list) and isinstance(before, list):
            before.extend(value)
        else:
            known[name] = value


def _grow_calls(known: list[Any], pieces: list[Any]) -> list[Any]:
    """Merge pieces of tool calls by their index; a piece without one continues the call at its own place."""
    for place, piece in enumerate(pieces):
        if not isinstance(piece, dict):
            continue
        index = piece.get("index", place)
        found = next((call for call in known if call.get("index") == index), None)
        if found is None:
            found = {"index": index}
            known.append(found)
        _grow(found, {name: value for name, value in piece.items() if name != "index"})
    return known


def _whole(value: Any) -> Any:
    """The same with every growing text joined."""
    if isinstance(value, _Text):
        return "".join(value)
    if isinstance(value, dict):
        return {name: _whole(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_whole(inner) for inner in value]
    return value
