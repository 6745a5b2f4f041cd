"""The simulated Redis: fakeredis' core with the shipped Lua, behind a byte stream, on virtual time.

Everything private of fakeredis that is touched stands in this module and in ``redis_core``. What it was compared with a
real Redis on is listed in docs/simulation.md; gaps that matter (no sets, no globals, no ``cjson.encode({})``) are kept
out of our scripts by lint.
"""

from __future__ import annotations

import contextlib
import functools
import sys
import time
import types
from collections import deque
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import trio
from fakeredis import FakeServer
from fakeredis._clients._tcp_server import encode_reply
from redis.exceptions import NoScriptError

from simulator.network import SimStream
from simulator.redis_core import TwinSocket

#: Redis time of a simulation's first moment: 2026-01-01, in seconds. Any constant does; a fixed one replays.
EPOCH_S = 1_767_225_600.0
#: Version that HELLO names; clients then use the calls that every supported server has.
VERSION = (7, 0)


class _VirtualTime(types.SimpleNamespace):
    """Stands in for the module ``time`` inside fakeredis' own modules, and only there."""

    now: Callable[[], float]

    def time(self) -> float:
        return self.now()


_clock = _VirtualTime(now=time.time)


def _install_clock() -> None:
    """Give every module of fakeredis our clock instead of the process's."""
    for name, module in list(sys.modules.items()):
        if name.startswith("fakeredis.") and isinstance(getattr(module, "time", None), types.ModuleType):
            module.time = _clock  # type: ignore[attr-defined]


_install_clock()


class _OrderedSubscribers(dict[Any, None]):
    """A set of sockets that iterates in order of subscription (the original follows memory addresses)."""

    def add(self, socket: Any) -> None:
        self[socket] = None

    def discard(self, socket: Any) -> None:
        self.pop(socket, None)

    def remove(self, socket: Any) -> None:
        del self[socket]


class _Channels(dict[bytes, _OrderedSubscribers]):
    def __missing__(self, channel: bytes) -> _OrderedSubscribers:
        self[channel] = _OrderedSubscribers()
        return self[channel]


class _Responses:
    """The queue that fakeredis puts replies into; always true, as its caller asks."""

    def __init__(self, ring: Callable[[], None]) -> None:
        self.waiting: deque[Any] = deque()
        self._ring = ring

    def put(self, value: Any) -> None:
        self.waiting.append(value)
        self._ring()

    def __bool__(self) -> bool:
        return True


class _NoEvent:
    """fakeredis wakes threads by an event; here nobody waits on one."""

    def set(self) -> None:
        return None


#: First elements of what a server sends without being asked.
_PUSHES = frozenset({b"message", b"pmessage", b"subscribe", b"psubscribe", b"unsubscribe", b"punsubscribe"})


def _encoded(reply: Any, protocol: int) -> bytes:
    """A reply as bytes; fakeredis writes pushes as plain arrays, which a RESP3 client would take for an answer."""
    encoded = encode_reply(reply, protocol)
    if protocol == 3 and isinstance(reply, list) and reply and reply[0] in _PUSHES:
        return b">" + encoded[1:]
    return encoded


class RedisTwin:
    """One simulated Redis server.

    Args:
        offset_s: how far its clock is ahead of the simulation's.
        rate: how fast its clock runs, 1.0 being true.
        on_reload: called when a client has to bring a script again after a restart.
    """

    def __init__(
        self, *, offset_s: float = 0.0, rate: float = 1.0, on_reload: Callable[[], None] = lambda: None
    ) -> None:
        self._offset_s = offset_s
        self._rate = rate
        self._on_reload = on_reload
        self._restarts = 0
        self._server = self._fresh()
        self._streams: dict[SimStream, None] = {}
        self._snapshot: dict[int, Any] = {}
        #: Connections with replies or messages that were not sent yet.
        self._answering: dict[SimStream, tuple[TwinSocket, _Responses]] = {}
        self._look: tuple[TwinSocket, _Responses] | None = None
        self.commands = 0
        self.scripts: dict[str, int] = {}
        #: Called after every command, for checks that must hold after each script.
        self.after_command: Callable[[], None] | None = None

    @staticmethod
    def _fresh() -> FakeServer:
        server = FakeServer(version=VERSION)
        server.subscribers = _Channels()  # type: ignore[assignment]
        server.psubscribers = _Channels()  # type: ignore[assignment]
        server.ssubscribers = _Channels()  # type: ignore[assignment]
        return server

    def now_s(self) -> float:
        """This server's own time, seconds since 1970."""
        return EPOCH_S + self._offset_s + trio.current_time() * self._rate

    def now_ms(self) -> int:
        return int(self.now_s() * 1000)

    async def serve(self, stream: SimStream) -> None:
        """Serve one connection until it ends."""
        socket = TwinSocket(self._server, 0, None, type(self), client_info={})
        responses = _Responses(lambda: self._answering.update({stream: (socket, responses)}))
        socket.responses = responses  # type: ignore[assignment]
        socket.response_ready = _NoEvent()  # type: ignore[assignment]
        self._streams[stream] = None
        try:
            await stream.pour(functools.partial(self._execute, socket))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client is gone; what it sent was executed
        finally:
            self._streams.pop(stream, None)
            if socket in self._server.sockets:
                socket._cleanup(self._server)
                self._server.sockets.remove(socket)

    def _answer(self) -> None:
        """Send what the last commands left to be said, one chunk for each connection, as Redis does."""
        while self._answering:
            stream = next(iter(self._answering))
            socket, responses = self._answering.pop(stream)
            waiting, protocol = responses.waiting, socket._client_info.protocol_version
            if self._restarts and any(isinstance(reply, NoScriptError) for reply in waiting):
                self._on_reload()
            stream.send_now(b"".join(_encoded(reply, protocol) for reply in waiting))
            waiting.clear()

    @contextlib.contextmanager
    def _own_time(self) -> Iterator[None]:
        """fakeredis sees this server's time for one command, and the process's own otherwise: others use it too."""
        _clock.now = self.now_s
        try:
            yield
        finally:
            _clock.now = time.time

    def _execute(self, socket: TwinSocket, data: bytes) -> None:
        """Run the complete commands in these bytes; synchronous, as Redis is single-threaded."""
        self.commands += 1
        with self._own_time():
            socket.take(data)
        self._answer()
        if self.after_command is not None:
            self.after_command()

    def execute(self, *parts: bytes | str | int) -> Any:
        """One command from the simulation itself (an observer's look, not a client's)."""
        socket, responses = self._looker()
        encoded = [part if isinstance(part, bytes) else str(part).encode() for part in parts]
        body = b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in encoded)
        with self._own_time():
            socket.take(b"*%d\r\n" % len(encoded) + body)
        reply = responses.waiting.popleft()
        if isinstance(reply, Exception):
            raise RuntimeError(f"{encoded[0]!r}: {reply.args[0]}")
        return reply

    def _looker(self) -> tuple[TwinSocket, _Responses]:
        """The observer's own connection, made once."""
        if self._look is None:
            socket = TwinSocket(self._server, 0, None, type(self), client_info={})
            responses = _Responses(lambda: None)
            socket.responses = responses  # type: ignore[assignment]
            socket.response_ready = _NoEvent()  # type: ignore[assignment]
            self._look = (socket, responses)
        return self._look

    def restart(self) -> None:
        """Stop and start again with the data: connections and the script cache are lost."""
        self._restarts += 1
        self._server.script_cache.clear()
        for stream in list(self._streams):
            stream.vanish()

    def snapshot(self) -> None:
        """Remember the data as it is now, for a later rollback."""
        self._snapshot = {number: deepcopy(dict(db._dict)) for number, db in self._server.dbs.items()}

    def rollback(self) -> None:
        """Come back with the data of the last snapshot: a failover that lost acknowledged writes."""
        for number, data in self._snapshot.items():
            database = self._server.dbs[number]
            database._dict.clear()
            database._dict.update(deepcopy(data))
        self.restart()
