"""The wire contract of the simulated service over WebSocket (pure: frames, encode and decode; no I/O).

Meaning, names and structures are those of :mod:`gateway.connectors.simulation.wire`; only the envelope is another.
One socket at ``/v1/socket`` carries requests one way, and replies and events the other, each a text frame of JSON:

``{"verb": "submit", "id": 1, "job": "...", "payload": ...}``
    Hand a job over; the reply is that of ``POST /v1/jobs``.
``{"verb": "subscribe", "id": 2, "job": "...", "after": 0}``
    The reply (200 :class:`SubscribeReply`, or a refusal) is followed by the job's events with a number above
    ``after``. A second subscription to the same job replaces the first.
``{"verb": "query", "id": 3, "job": "..."}``, ``{"verb": "cancel", "id": 4, "job": "..."}``
    The replies are those of ``GET`` and ``DELETE /v1/jobs/{id}``.

Each reply names the ``id`` of its request. Events are told apart by their envelope, so that a reader may drop a
progress event for a newer one without looking inside. Headers of the handshake say who calls, as over HTTP. ``GET
/health`` with a handshake is accepted when the service is well and refused with 503 when not. Without a handshake the
port serves the HTTP of ``/health``, ``/journal`` and ``/control``.
"""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from gateway.connectors.simulation.wire import (
    EventType,
    RunState,
    StreamEvent,
    WireFormatError,
)

SOCKET_PATH = "/v1/socket"
#: How the frame of a progress event begins; nothing else does.
PROGRESS_PREFIX = '{"type":"progress"'


class Verb(enum.StrEnum):
    """What a request asks for."""

    SUBMIT = "submit"
    SUBSCRIBE = "subscribe"
    QUERY = "query"
    CANCEL = "cancel"


class SocketRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A frame from the gateway; ``id`` is the caller's own number, named by the reply."""

    verb: Verb
    id: int
    job: str
    after: int = 0
    payload: Any = None


class SubscribeReply(msgspec.Struct, frozen=True, kw_only=True):
    """The events of this job follow; its state as the subscription begins."""

    id: str
    state: RunState


class SocketReply(
    msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="reply"
):
    """The answer to one request; ``status`` and ``body`` are those of HTTP, ``retry_after_s`` its header."""

    id: int
    status: int
    body: msgspec.Raw
    retry_after_s: float | None = None


class SocketEvent(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="event"):
    """An event that must be delivered: a chunk, or the end."""

    job: str
    event: StreamEvent


class SocketProgress(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="progress"):
    """A progress event, which a newer one replaces."""

    job: str
    event: StreamEvent


ServerFrame = SocketReply | SocketEvent | SocketProgress
_SERVER_FRAMES: msgspec.json.Decoder[ServerFrame] = msgspec.json.Decoder(ServerFrame)
_REQUESTS: msgspec.json.Decoder[SocketRequest] = msgspec.json.Decoder(SocketRequest)


def encode_frame(frame: msgspec.Struct) -> str:
    """A frame as text."""
    return msgspec.json.encode(frame).decode()


def event_frame(job_id: str, event: StreamEvent) -> str:
    """The frame of one event."""
    kind = SocketProgress if event.type is EventType.PROGRESS else SocketEvent
    return encode_frame(kind(job=job_id, event=event))


def decode_server_frame(frame: str | bytes) -> ServerFrame:
    """Read a frame of the service.

    Raises:
        WireFormatError: it is not JSON, or not of the contract.
    """
    try:
        return _SERVER_FRAMES.decode(frame)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise WireFormatError("ServerFrame", str(error)) from error


def decode_request(frame: str | bytes) -> SocketRequest:
    """Read a frame of a gateway.

    Raises:
        WireFormatError: it is not JSON, or not of the contract.
    """
    try:
        return _REQUESTS.decode(frame)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise WireFormatError(SocketRequest.__name__, str(error)) from error
