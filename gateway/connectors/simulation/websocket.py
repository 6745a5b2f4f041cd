"""Connector ``simulation-websocket``: the reference connector, against the simulated service over WebSocket.

Each job has a session of its own, over as many connections as it takes: it submits, listens and asks there, and its
cancellation cuts the connection. How a job is handed over and followed is in ``following``, for all protocols alike.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any, TypeVar

import msgspec
import trio

from gateway.connector import (
    Connector,
    ConnectorCapabilities,
    ConnectorSetup,
    JobContext,
    JobResult,
    ServicePhase,
    ServiceStatus,
)
from gateway.connectors.faults import job_fault
from gateway.connectors.simulation import wire
from gateway.connectors.simulation import wire_websocket as frames
from gateway.connectors.simulation.following import Seen, decoded, follow, hand_over, service_status, take_in
from gateway.errors import ConfigError
from protocols.base import HealthReport
from protocols.conflate import Frame
from protocols.errors import (
    ConsumerTooSlow,
    NotFound,
    PeerClosed,
    ProtocolError,
    ProtocolViolation,
    RequestTimeout,
    status_failure,
)
from protocols.websocket import WebSocketAdapter
from protocols.websocket_link import WebSocket, WebSocketLimits
from protocols.websocket_session import ReconnectPolicy, WebSocketSession, open_session

BodyT = TypeVar("BodyT")

#: A session comes back for as long as the other protocols go on asking: with full jitter about 6 s.
POLICY = ReconnectPolicy(tries_max=6, pause_s=0.2, pause_max_s=5.0)


class SimulationWebSocketOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options in ``[workers.X.options]``.

    Attributes:
        stall_s: longest silence before the service is asked, seconds; also the time for a sign of life.
        request_timeout_s: longest single request, seconds.
        connections_max: connections to the instance at once; each job holds one.
    """

    stall_s: float = 1.0
    request_timeout_s: float = 10.0
    connections_max: int = 64

    def __post_init__(self) -> None:
        if min(self.stall_s, self.request_timeout_s, self.connections_max) <= 0:
            raise ValueError("stall_s, request_timeout_s and connections_max must be positive")


class SimulationWebSocketConnector(Connector):
    """Runs jobs at one instance of the simulated service.

    Raises (constructor):
        ConfigError: unknown option or impossible value, or an endpoint that is no WebSocket's.
    """

    key = "simulation-websocket"
    service = "simulation"
    capabilities = ConnectorCapabilities(query=True, cancel=True, stream=True, reattach=True, dedupe=True)

    def __init__(self, setup: ConnectorSetup) -> None:
        super().__init__(setup)
        try:
            self.options = msgspec.convert(dict(setup.options), SimulationWebSocketOptions)
            self._adapter = WebSocketAdapter(
                setup.endpoint,
                open_stream=setup.open_stream,
                limits=WebSocketLimits(
                    connections_max=self.options.connections_max,
                    send_timeout_s=self.options.request_timeout_s,
                    ping_every_s=2 * self.options.stall_s,
                    ping_timeout_s=2 * self.options.stall_s,
                ),
            )
        except (msgspec.ValidationError, ValueError) as error:
            raise ConfigError(f"options of {self.key}: {error}") from None

    async def health(self) -> HealthReport:
        return await self._adapter.health(wire.HEALTH_PATH)

    async def aclose(self) -> None:
        await self._adapter.aclose()

    async def run(self, job: JobContext) -> JobResult:
        async with self._session(job, insist=False) as peer:
            await hand_over(peer, self.setup.random)
            return await follow(peer, job, self.setup.random, stall_s=self.options.stall_s)

    async def resume(self, job: JobContext) -> JobResult:
        async with self._session(job, insist=True) as peer:
            return await follow(peer, job, self.setup.random, stall_s=self.options.stall_s)

    async def query(self, reference: str) -> ServiceStatus:
        try:
            return service_status(await self._once(frames.Verb.QUERY, reference, wire.JobStatus))
        except NotFound:
            return ServiceStatus(ServicePhase.UNKNOWN)
        except ProtocolError as error:
            raise job_fault(error) from error

    async def cancel(self, reference: str) -> None:
        try:
            await self._once(frames.Verb.CANCEL, reference, wire.CancelReply)
        except NotFound:
            return
        except ProtocolError as error:
            raise job_fault(error) from error

    async def _once(self, verb: frames.Verb, reference: str, kind: type[BodyT]) -> BodyT:
        """One request over a connection of its own, which no running job's troubles can reach."""
        request = frames.SocketRequest(verb=verb, id=1, job=reference)
        timeout_s = self.options.request_timeout_s
        try:
            with trio.fail_after(timeout_s):
                async with self._adapter.connect(frames.SOCKET_PATH) as link:
                    await link.send(frames.encode_frame(request))
                    while True:
                        frame = _read(await link.receive())
                        if isinstance(frame, frames.SocketReply):
                            return _body(frame, kind, request)
        except trio.TooSlowError as error:
            raise RequestTimeout(f"{verb}: no answer within {timeout_s:g} s", outcome_unknown=True) from error

    @contextlib.asynccontextmanager
    async def _session(self, job: JobContext, *, insist: bool) -> AsyncIterator[_SocketPeer]:
        peer = _SocketPeer(job, self.options)
        try:
            async with open_session(
                self._adapter,
                frames.SOCKET_PATH,
                resync=peer.renew,
                random=self.setup.random,
                policy=POLICY,
                headers=job.headers,
                key_of=_replaceable,
                insist=insist,
            ) as peer.session:
                yield peer
        except ProtocolError as error:
            raise job_fault(error) from error


class _SocketPeer:
    """The service over a session, as one job sees it. One task uses it, one request at a time.

    A new connection begins with a question about the job, whatever was being waited for on the old one. Its answer is
    the sign that what the old one carried is lost: a submission's outcome is unknown then, and events must be asked
    for again.
    """

    session: WebSocketSession

    def __init__(self, job: JobContext, options: SimulationWebSocketOptions) -> None:
        self._job = job
        self._options = options
        #: Numbers requests; so a reply with a higher number than that of the newest request answers a renewal.
        self._requests = 0
        self._used = False
        #: What is listened to now, and the renewed subscription to it.
        self._listening: Seen | None = None
        self._resubscribed = 0

    async def renew(self, link: WebSocket) -> None:
        """Begin a new connection."""
        if self._listening is not None and isinstance(self.session.last_fault, ConsumerTooSlow):
            # The service is well, and the job was too slow for its chunks: the rest is what is wanted.
            again = self._request(frames.Verb.SUBSCRIBE, after=self._listening.number)
            self._resubscribed = again.id
            await link.send(frames.encode_frame(again))
        elif self._used:
            await link.send(frames.encode_frame(self._request(frames.Verb.QUERY)))

    async def submit(self) -> None:
        await self._ask(self._request(frames.Verb.SUBMIT, payload=self._job.spec.payload), wire.SubmitReply)

    async def status(self) -> wire.JobStatus:
        return await self._ask(self._request(frames.Verb.QUERY), wire.JobStatus)

    async def watch(self, seen: Seen) -> JobResult | None:
        request = self._request(frames.Verb.SUBSCRIBE, after=seen.number)
        await self._send(request)
        self._listening = seen
        try:
            return await self._listen(request, seen)
        finally:
            self._listening = None

    async def _listen(self, request: frames.SocketRequest, seen: Seen) -> JobResult | None:
        # Before the reply, events are those of an earlier subscription, with a gap behind them.
        subscribed = False
        while True:
            frame = await self._next(self._options.stall_s)
            if frame is None:
                return None
            if isinstance(frame, frames.SocketReply):
                if frame.id > request.id and frame.id != self._resubscribed:
                    return None
                if frame.id in (request.id, self._resubscribed):
                    _body(frame, frames.SubscribeReply, request)
                    subscribed = True
            elif subscribed and frame.job == self._job.reference:
                ended = await take_in(frame.event, self._job, seen)
                if ended is not None:
                    return ended

    async def _ask(self, request: frames.SocketRequest, kind: type[BodyT]) -> BodyT:
        """Send a request and wait for its reply; events that come meanwhile are asked for again later."""
        await self._send(request)
        deadline_s = trio.current_time() + self._options.request_timeout_s
        while True:
            frame = await self._next(deadline_s - trio.current_time())
            if frame is None:
                # A connection that does not answer is not worth waiting for a second time.
                self.session.drop()
                raise RequestTimeout(f"{request.verb}: no answer in time", outcome_unknown=True)
            if not isinstance(frame, frames.SocketReply):
                continue
            if frame.id == request.id:
                return _body(frame, kind, request)
            if frame.id > request.id:
                raise PeerClosed(
                    f"{request.verb}: the connection broke before the answer", outcome_unknown=True
                )

    async def _send(self, request: frames.SocketRequest) -> None:
        self._used = True
        try:
            await self.session.send(frames.encode_frame(request))
        except ProtocolError as error:
            self._give_up(error)
            raise

    async def _next(self, timeout_s: float) -> frames.ServerFrame | None:
        """The next frame, or None when none came in time."""
        frame: Frame | None = None
        with trio.move_on_after(timeout_s):
            try:
                frame = await self.session.receive()
            except ProtocolError as error:
                self._give_up(error)
                raise
        return None if frame is None else _read(frame)

    def _give_up(self, error: ProtocolError) -> None:
        """Raise the job's fault once the session is over: no further try can succeed."""
        if self.session.over:
            raise job_fault(error) from error

    def _request(self, verb: frames.Verb, *, after: int = 0, payload: Any = None) -> frames.SocketRequest:
        self._requests += 1
        return frames.SocketRequest(
            verb=verb, id=self._requests, job=self._job.reference, after=after, payload=payload
        )


def _replaceable(frame: Frame) -> str | None:
    """A progress event gives way to a newer one; everything else must be taken in."""
    return "progress" if isinstance(frame, str) and frame.startswith(frames.PROGRESS_PREFIX) else None


def _read(frame: Frame) -> frames.ServerFrame:
    try:
        return frames.decode_server_frame(frame)
    except wire.WireFormatError as error:
        raise ProtocolViolation(str(error), outcome_unknown=True) from error


def _body(reply: frames.SocketReply, kind: type[BodyT], request: frames.SocketRequest) -> BodyT:
    """The body of a success.

    Raises:
        StatusFailure: the leaf of the reply's status.
        ProtocolViolation: the body is not what the contract says.
    """
    body = bytes(reply.body)
    if not 200 <= reply.status < 300:
        what = f"{request.verb} {request.job}"
        raise status_failure(reply.status, what, body=body, retry_after_s=reply.retry_after_s)
    return decoded(body, kind)
