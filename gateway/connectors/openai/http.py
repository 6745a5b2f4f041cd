"""Connector ``openai-http``: chat, completions, embeddings, images and responses at any OpenAI-compatible server.

These servers forget a request with its connection: there is nobody to ask about a job, no name to cancel it by and
nothing to follow again. So the connector declares none of that. Ending a run closes the connection, by which the
server learns that nobody waits any more; a lost answer means that the work may be done twice.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import trio

from gateway.connector import Connector, ConnectorCapabilities, ConnectorSetup, JobContext, JobResult
from gateway.connectors.credentials import Credential, credential
from gateway.connectors.model_lists import LIST_TIMEOUT_S, MODELS, ask_models, names_in
from gateway.connectors.openai.answers import (
    CompletionStream,
    ResponseStream,
    checked,
    decode,
    stream_for,
    tokens,
)
from gateway.connectors.openai.faults import fault_of
from gateway.connectors.openai.requests import Call, read_call
from gateway.connectors.openai.sse import DONE, EventParser
from gateway.errors import ConfigError, JobFault
from protocols.base import HealthReport
from protocols.errors import BodyTooLarge, PeerClosed, ProtocolError, RequestTimeout
from protocols.http import HTTPAdapter, HTTPLimits
from protocols.http_edge import LineStream

#: Where OpenAI's own API lives below its host; used for an endpoint that names no path.
BASE_PATH_DEFAULT = "/v1"
#: OpenAI writes this one to its logs; one server's log line then leads to the job.
HEADER_REQUEST_ID = "x-client-request-id"
HEADER_IDEMPOTENCY = "idempotency-key"
#: How long a stream may go on after its last choice has ended, for the usage and the end mark, seconds.
FINISH_GRACE_S = 2.0
#: How long the end of a body is waited for after the end mark, so that its connection can be used again, seconds.
DRAIN_S = 0.2
#: A piece with a larger line is not told at once: the job's stream takes a mebibyte per entry.
TOLD_BYTES_MAX = 1024 * 1024


class OpenAIHTTPOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options in ``[workers.X.options]``.

    Attributes:
        api_key: for servers that ask for one; written ``{ env = "VARIABLE" }`` or ``{ file = "/path" }``.
        api_key_header: header it goes into: ``authorization`` as a bearer token, any other as it is.
        model: for payloads that name none.
        health_path: what is asked for health, from the root of the host; the list of models by default.
        include_usage: ask streams to tell their usage, for payloads that don't say.
        stream_idle_s: longest silence of a stream, the wait for its first piece included, in seconds: prompts are
            read, and models loaded, in silence.
        connections_max: requests to the server at once.
        reply_bytes_max: largest answer, streamed or not, in bytes.
        event_bytes_max: largest single event of a stream, in bytes.
        stall_s: given to every connector; nothing to ask here.
    """

    api_key: str = ""
    api_key_header: str = "authorization"
    model: str = ""
    health_path: str = ""
    include_usage: bool = True
    stream_idle_s: float = 300.0
    connections_max: int = 64
    reply_bytes_max: int = 64 * 1024 * 1024
    event_bytes_max: int = 16 * 1024 * 1024
    stall_s: float = 1.0

    def __post_init__(self) -> None:
        numbers = (self.stream_idle_s, self.connections_max, self.reply_bytes_max, self.event_bytes_max)
        if not all(math.isfinite(number) and number > 0 for number in numbers):
            raise ValueError(
                "stream_idle_s, connections_max, reply_bytes_max and event_bytes_max must be positive"
            )
        if self.health_path and not self.health_path.startswith("/"):
            raise ValueError("health_path must begin with a slash")
        name = self.api_key_header.replace("-", "")
        if not (name.isascii() and name.isalnum()):
            raise ValueError("api_key_header must be the name of a header")


class OpenAIHTTPConnector(Connector):
    """Runs jobs at one OpenAI-compatible server; the endpoint's path is its base URL, ``/v1`` when it has none.

    Raises (constructor):
        ConfigError: unknown option, impossible value, or an API key that cannot be one.
    """

    key = "openai-http"
    service = "openai"
    capabilities = ConnectorCapabilities(stream=True)

    def __init__(self, setup: ConnectorSetup) -> None:
        super().__init__(setup)
        try:
            options = msgspec.convert(dict(setup.options), OpenAIHTTPOptions)
        except (msgspec.ValidationError, ValueError) as error:
            raise ConfigError(f"options of {self.key}: {error}") from None
        self._credential = credential(self.key, "api_key", options.api_key)
        #: Without the key: options are looked at and shown.
        self.options = msgspec.structs.replace(options, api_key="")
        self._base = setup.endpoint.path or BASE_PATH_DEFAULT
        self._http = HTTPAdapter(
            # The health path may lie outside of the base URL, so paths are whole here.
            dataclasses.replace(setup.endpoint, path=""),
            open_stream=setup.open_stream,
            limits=HTTPLimits(
                connections_max=options.connections_max,
                body_bytes_max=options.reply_bytes_max,
                idle_timeout_s=options.stream_idle_s,
            ),
            auth_headers=None
            if self._credential is None
            else self._credential.header(options.api_key_header),
        )

    async def health(self) -> HealthReport:
        report = await self._http.health(self.options.health_path or f"{self._base}/models")
        return dataclasses.replace(report, detail=_redacted(report.detail, self._credential))

    async def probe_capabilities(self) -> Mapping[str, Any]:
        """The ids of the models, as requests name them; nothing at a server that has no list of them."""
        try:
            names = await ask_models(
                self._http, f"{self._base}/models", _listed, timeout_s=LIST_TIMEOUT_S, clean=self._clean
            )
        except ProtocolError as error:
            raise self._told(fault_of(error)) from None
        return {} if names is None else {MODELS: names}

    async def aclose(self) -> None:
        await self._http.aclose()

    async def run(self, job: JobContext) -> JobResult:
        call = read_call(job.spec.payload, model=self.options.model, include_usage=self.options.include_usage)
        try:
            answer = await (self._streamed(job, call) if call.stream else self._whole(job, call))
        except ProtocolError as error:
            fault = fault_of(error)
        except JobFault as error:
            fault = error
        else:
            return JobResult(answer, consumed=tokens(answer))
        # Not chained: the cause keeps the body of the answer, which may repeat the key.
        raise self._told(fault) from None

    def _told(self, fault: JobFault) -> JobFault:
        """The fault as it may be told."""
        return JobFault(
            fault.fault_class,
            _redacted(str(fault), self._credential),
            retry_after_s=fault.retry_after_s,
            outcome_unknown=fault.outcome_unknown,
        )

    def _headers(self, job: JobContext) -> dict[str, str]:
        return {
            **job.headers,
            HEADER_REQUEST_ID: job.reference,
            HEADER_IDEMPOTENCY: job.reference,
            "content-type": "application/json",
        }

    async def _whole(self, job: JobContext, call: Call) -> dict[str, Any]:
        """One request, one answer; silent until the work is done, so the job's own time bounds it."""
        reply = await self._http.request(
            "POST",
            f"{self._base}{call.path}",
            content=call.content(),
            headers={**self._headers(job), "accept": "application/json"},
            timeout_s=job.spec.timeout_s,
            idle_timeout_s=job.spec.timeout_s,
        )
        return checked(call.operation, decode(self._clean(reply.body)))

    async def _streamed(self, job: JobContext, call: Call) -> dict[str, Any]:
        """Tell each piece as it comes, return the whole."""
        async with self._http.stream_lines(
            "POST",
            f"{self._base}{call.path}",
            content=call.content(),
            headers={**self._headers(job), "accept": "text/event-stream"},
            head_timeout_s=job.spec.timeout_s,
            idle_timeout_s=self.options.stream_idle_s,
            line_bytes_max=self.options.event_bytes_max,
        ) as lines:
            if lines.headers.get("content-type", "").startswith("application/json"):
                # Some servers do not stream everything they are asked to.
                return checked(call.operation, decode(self._clean(await self._joined(lines))))
            stream = stream_for(call)
            ended = await self._read(job, lines, stream)
        if not ended and not stream.finished:
            raise PeerClosed("the stream ended before its last choice", outcome_unknown=True)
        return stream.result()

    async def _read(
        self, job: JobContext, lines: LineStream, stream: CompletionStream | ResponseStream
    ) -> bool:
        """Read a stream to its end; whether it said that this is the end."""
        parser = EventParser(data_bytes_max=self.options.event_bytes_max)
        size_bytes, over_at_s = 0, math.inf
        while True:
            if stream.finished and over_at_s == math.inf:
                # Once and for all: a server that sends comments for ever must not put it off.
                over_at_s = trio.current_time() + FINISH_GRACE_S
            line = await _line(lines, over_at_s)
            event = parser.flush() if line is None else parser.feed(self._clean(line))
            size_bytes = self._bounded(size_bytes + len(line or b"") + 1)
            if event is not None and event.data == DONE:
                await _drain(lines)
                return True
            if event is not None:
                for told in stream.take(event):
                    if len(event.data) <= TOLD_BYTES_MAX:
                        await job.chunk(told)
            if line is None:
                return False

    async def _joined(self, lines: LineStream) -> bytes:
        parts: list[bytes] = []
        size_bytes = 0
        async for line in lines:
            size_bytes = self._bounded(size_bytes + len(line) + 1)
            parts.append(line)
        return b"\n".join(parts)

    def _bounded(self, size_bytes: int) -> int:
        limit_bytes = self.options.reply_bytes_max
        if size_bytes > limit_bytes:
            raise BodyTooLarge(f"the answer exceeds {limit_bytes} bytes", limit_bytes=limit_bytes)
        return size_bytes

    def _clean(self, data: bytes) -> bytes:
        return data if self._credential is None else self._credential.redact_result(data)


def _listed(value: Any) -> list[str] | None:
    """The ids in a list of models."""
    return names_in(value.get("data"), "id") if isinstance(value, dict) else None


async def _line(lines: LineStream, over_at_s: float) -> bytes | None:
    """The next line; None at the end, which after the last choice may be a broken or a silent one.

    Args:
        lines: the stream.
        over_at_s: no line is waited for beyond this moment; infinity before the last choice has ended.
    """
    with trio.move_on_at(over_at_s):
        try:
            return await anext(lines)
        except StopAsyncIteration:
            return None
        except (PeerClosed, RequestTimeout):
            if over_at_s == math.inf:
                raise
    return None


async def _drain(lines: LineStream) -> None:
    """Wait for the end of a body that has said all."""
    with trio.move_on_after(DRAIN_S), contextlib.suppress(ProtocolError):
        async for _line in lines:
            continue


def _redacted(text: str, credential: Credential | None) -> str:
    return text if credential is None else credential.redact(text)
