"""A WebSocket that survives breaks: one supervised loop that connects again, and a re-sync after each time."""

from __future__ import annotations

import contextlib
import random as random_module
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass

import trio

from protocols.base import require_positive
from protocols.conflate import Frame
from protocols.errors import ConsumerTooSlow, FaultKind, ProtocolError, RequestTimeout
from protocols.websocket import WebSocketAdapter
from protocols.websocket_link import Inbox, KeyOf, WebSocket

#: Called on each new connection before anybody else may use it, to say hello, to subscribe, to catch up. It sends;
#: what the peer answers arrives like every other message.
Resync = Callable[[WebSocket], Awaitable[None]]

#: Troubles that another connection may not have.
_PASSING = frozenset(
    {
        FaultKind.UNREACHABLE,
        FaultKind.TIMEOUT,
        FaultKind.NETWORK,
        FaultKind.PROTOCOL,
        FaultKind.UNAVAILABLE,
        FaultKind.RATE_LIMITED,
        FaultKind.SERVICE_ERROR,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ReconnectPolicy:
    """How a session comes back.

    Attributes:
        tries_max: tries in a row before the session gives up; a received message starts the count anew.
        pause_s: bound of the first pause, seconds; doubles with each try. The pause is drawn from zero to the
            bound (full jitter), so that a service that comes back is not met by everybody at once.
        pause_max_s: largest bound, seconds. A peer that asks for a longer wait ends the session.
    """

    tries_max: int = 8
    pause_s: float = 0.1
    pause_max_s: float = 5.0

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        require_positive(tries_max=self.tries_max, pause_s=self.pause_s, pause_max_s=self.pause_max_s)

    def bound_s(self, failures: int) -> float:
        """Bound of the pause after so many failures in a row, seconds."""
        return float(min(self.pause_max_s, self.pause_s * 2 ** min(failures - 1, 30)))


class WebSocketSession:
    """Messages to and from one peer, over as many connections as it takes. Made by ``open_session``.

    What was lost in a break is not known here: after each connect the ``resync`` asks for it. A consumer that is too
    slow for messages that nothing may replace is such a break too: the next connection is made once it caught up.
    """

    def __init__(
        self,
        adapter: WebSocketAdapter,
        path: str,
        resync: Resync,
        random: random_module.Random,
        policy: ReconnectPolicy,
        *,
        insist: bool,
        headers: Mapping[str, str] | None,
        key_of: KeyOf | None,
        inactivity_s: float | None,
    ) -> None:
        self._adapter = adapter
        self._path = path
        self._resync = resync
        self._random = random
        self._policy = policy
        self._insist = insist
        self._headers = headers
        self._inactivity_s = inactivity_s
        self._inbox = Inbox(adapter.limits, key_of)
        self._link: WebSocket | None = None
        self._changed = trio.Event()
        self._closing = False
        #: Connections made so far.
        self.connects = 0
        #: The fault of the newest break; None before the first.
        self.last_fault: ProtocolError | None = None

    @property
    def connected(self) -> bool:
        """Whether a connection stands now."""
        return self._link is not None

    @property
    def over(self) -> bool:
        """Whether the session has ended for good."""
        return self._inbox.fault is not None

    @property
    def conflated(self) -> int:
        """Messages dropped so far because a newer one replaced them."""
        return self._inbox.conflated

    async def receive(self) -> Frame:
        """Return the next message, over whatever connection it comes. One consumer only.

        Raises:
            ProtocolError: the session has ended for good.
        """
        return await self._inbox.get()

    async def send(self, message: Frame) -> None:
        """Send one message over the connection that stands, or the next one.

        Raises:
            RequestTimeout: no connection within ``send_timeout_s``; nothing was sent.
            ProtocolError: the connection broke meanwhile, or the session has ended for good.
        """
        link = await self._connected()
        await link.send(message)

    def drop(self) -> None:
        """Give up the connection that stands (it seems dead) and make another one."""
        if self._link is not None:
            self._link.abort()
            self._link = None

    async def run(self) -> None:
        """Connect, re-sync and wait for the end, again and again."""
        failures = 0
        while True:
            frames = 0
            try:
                async with self._adapter.connect(
                    self._path, headers=self._headers, inactivity_s=self._inactivity_s, inbox=self._inbox
                ) as link:
                    await self._start(link)
                    await link.ended.wait()
                    frames = link.frames
                    assert link.fault is not None, "an ended connection has one"
                    raise link.fault
            except ProtocolError as exc:
                self._link, self.last_fault = None, exc
            fault = self.last_fault
            if isinstance(fault, ConsumerTooSlow):
                # What found no room is asked for again, once there is room; the peer is not to blame.
                await self._inbox.drained()
            failures = 1 if frames else failures + 1
            first = not self.connects and not self._insist
            if self._closing or first or not self._worth_another(fault, failures):
                self._over(fault)
                return
            pause_s = self._random.uniform(0.0, self._policy.bound_s(failures))
            await trio.sleep(max(pause_s, fault.retry_after_s or 0.0))

    async def close(self) -> None:
        """Close the connection that stands, in order."""
        self._closing = True
        if self._link is not None:
            await self._link.close()

    async def reconnected(self, connects: int) -> None:
        """Wait for a connection beyond the first so many; 0 waits for the first one.

        Raises:
            ProtocolError: the session has ended for good.
        """
        while self.connects <= connects:
            if self._inbox.fault is not None:
                raise self._inbox.fault.with_traceback(None)
            await self._changed.wait()

    async def _start(self, link: WebSocket) -> None:
        timeout_s = self._adapter.limits.send_timeout_s
        try:
            with trio.fail_after(timeout_s):
                await self._resync(link)
        except trio.TooSlowError as exc:
            raise RequestTimeout(f"no re-sync within {timeout_s:g} s", outcome_unknown=True) from exc
        self.connects += 1
        self._link = link
        self._announce()

    async def _connected(self) -> WebSocket:
        timeout_s = self._adapter.limits.send_timeout_s
        try:
            with trio.fail_after(timeout_s):
                while self._link is None or self._link.ended.is_set():
                    if self._inbox.fault is not None:
                        raise self._inbox.fault.with_traceback(None)
                    await self._changed.wait()
        except trio.TooSlowError as exc:
            raise RequestTimeout(f"no connection within {timeout_s:g} s") from exc
        return self._link

    def _worth_another(self, fault: ProtocolError, failures: int) -> bool:
        if (fault.retry_after_s or 0.0) > self._policy.pause_max_s:
            return False
        passing = fault.fault in _PASSING or isinstance(fault, ConsumerTooSlow)
        return passing and failures <= self._policy.tries_max

    def _over(self, fault: ProtocolError) -> None:
        self._inbox.fail(fault)
        self._announce()

    def _announce(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


@contextlib.asynccontextmanager
async def open_session(
    adapter: WebSocketAdapter,
    path: str,
    *,
    resync: Resync,
    random: random_module.Random,
    policy: ReconnectPolicy | None = None,
    insist: bool = False,
    headers: Mapping[str, str] | None = None,
    key_of: KeyOf | None = None,
    inactivity_s: float | None = None,
) -> AsyncIterator[WebSocketSession]:
    """Open a session, for as long as the block lasts; entered once the first connection stands.

    Args:
        adapter: to the peer.
        path: below the endpoint's own; quoted by the caller, with query.
        resync: called on each connection, the first included.
        random: seeded source of the pauses.
        policy: how it comes back.
        insist: whether the first connection is tried again like every other; by default its fault is raised at
            once, while nothing can have been done.
        headers: of every handshake.
        key_of: which messages replace each other while the consumer is busy; by default none does.
        inactivity_s: longest time without a message, seconds; that of the adapter's limits by default.

    Raises:
        ProtocolError: the first connection did not come about, or later, when receiving or sending, the session
            ended for good.
    """
    session = WebSocketSession(
        adapter,
        path,
        resync,
        random,
        policy or ReconnectPolicy(),
        insist=insist,
        headers=headers,
        key_of=key_of,
        inactivity_s=inactivity_s,
    )
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(session.run)
        # An exception that left the nursery's block would arrive wrapped in a group.
        try:
            await session.reconnected(0)
            yield session
            await session.close()
        except Exception as exc:
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
