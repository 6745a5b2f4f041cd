"""A TCP proxy that misbehaves on command, between a client under test and a real server.

Start it with ``proxy = await nursery.start(serve_tcp_proxy, target)``, connect to ``127.0.0.1:proxy.port``,
and cancel the nursery to end it. All controls may be called at any time from the same trio run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import trio

CHUNK_BYTES_MAX = 65536
REQUEST_BYTES_REMEMBERED_MAX = 1_048_576
"""How much of the requests since the last reply a predicate can see (a request may span several chunks)."""

Target = str | tuple[str, int]
"""Path of a unix socket, or (host, port)."""


class DroppedReply:
    """One armed loss of a reply.

    Arguments:
        predicate: judges the bytes that the client sent since it last received something.
        hang: leave the connection open and silent instead of cutting it.
    """

    def __init__(self, predicate: Callable[[bytes], bool], *, hang: bool) -> None:
        self.predicate = predicate
        self.hang = hang
        self.request = b""
        self._happened = trio.Event()

    @property
    def happened(self) -> bool:
        """Whether the server has answered a matching request and the answer was swallowed."""
        return self._happened.is_set()

    async def wait(self) -> None:
        """Wait until the reply of a matching request was swallowed: the server has executed it then."""
        await self._happened.wait()

    def mark(self) -> None:
        """Note that it happened."""
        self._happened.set()


@dataclass(slots=True, eq=False)
class _Link:
    """One proxied connection."""

    client: trio.abc.Stream
    server: trio.abc.Stream
    scope: trio.CancelScope
    unanswered: bytearray = field(default_factory=bytearray)
    doomed: DroppedReply | None = None


class _Gate:
    """Open or closed; whoever comes while it is closed waits."""

    def __init__(self) -> None:
        self._opened = trio.Event()
        self._opened.set()

    def close(self) -> None:
        if self._opened.is_set():
            self._opened = trio.Event()

    def open(self) -> None:
        self._opened.set()

    async def passed(self) -> None:
        await self._opened.wait()


class TcpProxy:
    """The controls of a running proxy; `port` is where clients connect (on 127.0.0.1)."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.port = 0
        self.delay_s = 0.0
        """Extra seconds before each chunk is forwarded, in both directions."""
        self.connections_accepted = 0
        self._links: set[_Link] = set()
        self._armed: list[DroppedReply] = []
        self._requests = _Gate()
        self._replies = _Gate()
        self._listening = _Gate()
        self._listener_scope = trio.CancelScope()
        self._listeners: list[trio.SocketListener] = []

    @property
    def connections_open(self) -> int:
        """How many connections are being proxied now."""
        return len(self._links)

    def drop_next_reply_matching(
        self, predicate: Callable[[bytes], bool], *, hang: bool = False
    ) -> DroppedReply:
        """Forward the next request for which `predicate` holds, but let its reply get lost (once).

        When the reply arrives, the connection is cut; with `hang` it stays open and stays silent.

        Arguments:
            predicate: judges the bytes the client sent on one connection since it last received something.
            hang: do not cut the connection.
        """
        dropped = DroppedReply(predicate, hang=hang)
        self._armed.append(dropped)
        return dropped

    def cut_all(self) -> int:
        """Close every open connection on both sides at once; return how many there were. New ones are
        welcome.
        """
        for link in self._links:
            link.scope.cancel()
        return len(self._links)

    def refuse(self) -> None:
        """From now on refuse new connections (nobody listens on the port); open ones go on."""
        self._listening.close()
        self._listener_scope.cancel()
        for listener in self._listeners:
            listener.socket.close()  # now, not at the next scheduling point: the very next connect must fail

    def accept(self) -> None:
        """Accept connections again, on the same port."""
        self._listening.open()

    def blackhole(self, *, requests: bool = True, replies: bool = True) -> None:
        """Make connections half-open: nothing arrives (in the given directions), nothing is closed.

        Bytes on their way are kept and delivered after `heal`, as retransmission would.
        """
        if requests:
            self._requests.close()
        if replies:
            self._replies.close()

    def heal(self) -> None:
        """End `blackhole`, `refuse` and the delay, and disarm replies not yet dropped."""
        self.delay_s = 0.0
        self._armed.clear()
        self._requests.open()
        self._replies.open()
        self._listening.open()

    async def run(self, *, task_status: trio.TaskStatus[TcpProxy] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        started = False
        async with trio.open_nursery() as nursery:
            while True:
                await self._listening.passed()
                self._listeners = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
                self.port = self._listeners[0].socket.getsockname()[1]
                with trio.CancelScope() as self._listener_scope:
                    serve = partial(
                        trio.serve_listeners, self._handle, self._listeners, handler_nursery=nursery
                    )
                    if not started:
                        started = True
                        task_status.started(self)
                    await serve()

    async def _handle(self, client: trio.SocketStream) -> None:
        self.connections_accepted += 1
        async with client:
            await self._requests.passed()
            try:
                server = await self._connect()
            except OSError:
                return
            async with server:
                with trio.CancelScope() as scope:
                    link = _Link(client, server, scope)
                    self._links.add(link)
                    try:
                        async with trio.open_nursery() as nursery:
                            nursery.start_soon(self._pump_requests, link)
                            nursery.start_soon(self._pump_replies, link)
                    finally:
                        self._links.discard(link)

    async def _connect(self) -> trio.SocketStream:
        if isinstance(self.target, str):
            return await trio.open_unix_socket(self.target)
        return await trio.open_tcp_stream(*self.target)

    async def _pump_requests(self, link: _Link) -> None:
        while chunk := await _receive(link.client):
            link.unanswered += chunk
            del link.unanswered[:-REQUEST_BYTES_REMEMBERED_MAX]
            if link.doomed is None:
                link.doomed = self._take_armed(bytes(link.unanswered))
            if self.delay_s:
                await trio.sleep(self.delay_s)
            await self._requests.passed()
            await _send(link, link.server, chunk)
        link.scope.cancel()

    async def _pump_replies(self, link: _Link) -> None:
        while chunk := await _receive(link.server):
            if link.doomed is not None:
                link.doomed.mark()
                if not link.doomed.hang:
                    break
                continue
            link.unanswered.clear()
            if self.delay_s:
                await trio.sleep(self.delay_s)
            await self._replies.passed()
            await _send(link, link.client, chunk)
        link.scope.cancel()

    def _take_armed(self, request: bytes) -> DroppedReply | None:
        for dropped in self._armed:
            if dropped.predicate(request):
                self._armed.remove(dropped)
                dropped.request = request
                return dropped
        return None


async def _receive(stream: trio.abc.Stream) -> bytes:
    try:
        return bytes(await stream.receive_some(CHUNK_BYTES_MAX))
    except trio.BrokenResourceError:
        return b""


async def _send(link: _Link, stream: trio.abc.Stream, chunk: bytes) -> None:
    try:
        await stream.send_all(chunk)
    except trio.BrokenResourceError:
        link.scope.cancel()


async def serve_tcp_proxy(
    target: Target, *, task_status: trio.TaskStatus[TcpProxy] = trio.TASK_STATUS_IGNORED
) -> None:
    """Run a proxy to `target` until cancelled; for ``nursery.start``, which returns its `TcpProxy`."""
    await TcpProxy(target).run(task_status=task_status)
