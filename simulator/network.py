"""A network in memory under virtual time: nodes, links that delay and lose, connections that break.

Bytes written before a close still arrive (a request whose sender gave up is executed all the same); a cut link
swallows bytes silently, as a partition does; a reset tells both ends after the link's delay. Everything random comes
from the link's own seeded source, everything iterated is a list or a dict, so a seed replays to the byte.
"""

from __future__ import annotations

import math
import random as random_module
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from simulator.timetable import Timetable, timetable

#: Serves one accepted connection.
Handler = Callable[["SimStream"], Awaitable[None]]

SEND_BYTES_MAX = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkFaults:
    """What may happen to a chunk on its way; probabilities per chunk, times in seconds.

    Attributes:
        delay_min_s, delay_max_s: every chunk takes a uniformly random time in between.
        slow: probability of a chunk that takes ``slow_s`` more.
        lost_request, lost_reply: probability that a chunk and all after it vanish, towards or from the server.
        reset: probability that the connection is reset instead of carrying the chunk.
        duplicate: probability that a request is delivered once more, later, on a connection of its own.
    """

    delay_min_s: float = 0.0002
    delay_max_s: float = 0.002
    slow: float = 0.0
    slow_s: float = 2.0
    lost_request: float = 0.0
    lost_reply: float = 0.0
    reset: float = 0.0
    duplicate: float = 0.0
    duplicate_after_s: float = 5.0


class Node:
    """A machine. A dead one touches nothing any more; a paused one freezes at its next input or output."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self._running = trio.Event()
        self._running.set()
        self.streams: dict[SimStream, None] = {}

    @property
    def paused(self) -> bool:
        return not self._running.is_set()

    def pause(self) -> None:
        """Freeze this node's input and output."""
        if not self.paused:
            self._running = trio.Event()

    def resume(self) -> None:
        """Thaw it; what it had decided to send before the pause is sent now."""
        self._running.set()

    async def wait_running(self) -> None:
        """Pass when the node is not paused; every pause ends, the simulation sees to it."""
        if self.paused:
            await self._running.wait()

    def kill(self) -> None:
        """Die at once: whatever ``finally`` blocks still run can't touch the world."""
        self.alive = False
        self.resume()
        for stream in list(self.streams):
            stream.vanish()


class _Pipe:
    """One direction of a connection: bytes on their way, bytes that arrived, and whoever waits for them."""

    def __init__(self, timetable: Timetable) -> None:
        self._timetable = timetable
        self._flying: deque[bytes | None] = deque()
        self._last_at_s = 0.0
        self.arrived: deque[bytes | None] = deque()
        self.swallow = False
        self.reset_at_s = math.inf
        self._waiting: trio.lowlevel.Task | None = None
        #: Takes what arrived without a task of its own, see ``SimStream.pour``.
        self.flow: Callable[[], None] | None = None

    def put(self, at_s: float, data: bytes | None) -> None:
        """Send bytes (None for end of file), never overtaking earlier ones."""
        self._last_at_s = max(at_s, self._last_at_s)
        self._flying.append(data)
        self._timetable.call_at(self._last_at_s, self._arrive)

    def _arrive(self) -> None:
        self.arrived.append(self._flying.popleft())
        if self.flow is not None:
            self.flow()
        else:
            self.ring()

    def reset(self, at_s: float) -> None:
        """Break at a moment; what arrived but was not read by then is lost."""
        if at_s < self.reset_at_s:
            self.reset_at_s = at_s
            self._timetable.call_at(at_s, self.ring)

    def ring(self) -> None:
        """Let the reader look again."""
        if self._waiting is not None:
            task, self._waiting = self._waiting, None
            trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        """Wait for news.

        Raises:
            trio.BusyResourceError: somebody waits already; streams have one reader.
        """
        if self._waiting is not None:
            raise trio.BusyResourceError("another task is reading from this connection")

        def abort(_raise_cancel: Callable[[], object]) -> trio.lowlevel.Abort:
            self._waiting = None
            return trio.lowlevel.Abort.SUCCEEDED

        self._waiting = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(abort)


class SimStream(trio.abc.HalfCloseableStream):
    """One end of a simulated connection."""

    def __init__(
        self, network: Network, node: Node, peer: Node, *, sends: _Pipe, receives: _Pipe, to_server: bool
    ) -> None:
        self._network = network
        self.node = node
        self.peer = peer
        self._sends = sends
        self._receives = receives
        self._to_server = to_server
        self._closed = False
        self._eof_sent = False
        #: What was left of a chunk: a view, because a large chunk is read in many small pieces.
        self._rest = memoryview(b"")
        #: Called with each request chunk before it leaves; the cluster uses it to replay requests.
        self.server: tuple[str, int] | None = None
        node.streams[self] = None

    def _check(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this end is closed")
        if not self.node.alive:
            raise trio.BrokenResourceError(f"node {self.node.name} is dead")
        if trio.current_time() >= self._receives.reset_at_s:
            raise trio.BrokenResourceError("connection reset by peer")

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Hand bytes to the network; returns when they are on their way."""
        await trio.lowlevel.checkpoint()
        self._check()
        if self.node.paused:
            # A frozen process had already decided to write: the bytes leave when it thaws, whatever its own
            # deadlines say meanwhile. Every pause ends, so the shield is bounded by the plan.
            with trio.CancelScope(shield=True):
                await self.node.wait_running()
            self._check()
        if self._eof_sent:
            raise trio.ClosedResourceError("end of file was sent")
        if data:
            self._network.transmit(self, bytes(data), self._sends, to_server=self._to_server)

    async def wait_send_all_might_not_block(self) -> None:
        """The network takes everything."""
        await trio.lowlevel.checkpoint()
        self._check()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self._check()
        if not self._eof_sent:
            self._eof_sent = True
            self._network.transmit(self, None, self._sends, to_server=self._to_server)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes; ``b""`` at the end of file."""
        pipe = self._receives
        if self._rest or pipe.arrived:
            await trio.lowlevel.checkpoint()
        while True:
            self._check()
            if self.node.paused:
                await self.node.wait_running()
            elif self._rest or pipe.arrived:
                data = self._next()
                if max_bytes is not None and len(data) > max_bytes:
                    data, self._rest = data[:max_bytes], data[max_bytes:]
                return bytes(data)
            else:
                await pipe.wait()

    def _next(self) -> memoryview:
        """What is read next; the end of file stays where it is."""
        arrived = self._receives.arrived
        if self._rest:
            data, self._rest = self._rest, memoryview(b"")
        elif arrived[0] is None:
            data = memoryview(b"")
        else:
            data = memoryview(arrived.popleft() or b"")
        return data

    async def pour(self, sink: Callable[[bytes], None]) -> None:
        """Hand everything that arrives to a function, at the moment of its arrival, until the end of file.

        For a server that answers at once and never pauses: it needs no step of any task.

        Args:
            sink: what it raises is raised here.
        """
        pipe, failures = self._receives, list[Exception]()

        def flow() -> None:
            try:
                while pipe.arrived and pipe.arrived[0] is not None:
                    self._check()
                    sink(pipe.arrived.popleft() or b"")
            except Exception as error:
                failures.append(error)
            if failures or pipe.arrived:
                pipe.ring()

        self._check()
        pipe.flow = flow
        try:
            flow()
            while not failures and not pipe.arrived:
                self._check()
                await pipe.wait()
        finally:
            pipe.flow = None
        if failures:
            raise failures[0]

    def send_now(self, data: bytes) -> None:
        """Hand bytes to the network outside of every task; lost if this end is broken."""
        if not self._closed and not self._eof_sent and self.node.alive:
            self._network.transmit(self, data, self._sends, to_server=self._to_server)

    def is_readable(self) -> bool:
        """Whether a read would return at once (httpcore asks before it uses an idle connection again)."""
        pipe = self._receives
        waiting = bool(self._rest) or bool(pipe.arrived)
        broken = trio.current_time() >= pipe.reset_at_s
        return waiting or broken or self._closed or not self.node.alive

    def vanish(self) -> None:
        """This end's process died: the other end is told by a reset, a link delay later."""
        self.node.streams.pop(self, None)
        if not self._closed:
            self._closed = True
            self._network.announce_reset(self, self._sends)
            self._receives.ring()

    async def aclose(self) -> None:
        """Close; bytes already sent still arrive."""
        if not self._closed:
            self._closed = True
            self.node.streams.pop(self, None)
            if self.node.alive and not self._eof_sent:
                self._network.transmit(self, None, self._sends, to_server=self._to_server)
            self._receives.ring()
        await trio.lowlevel.checkpoint()


class Network:
    """All nodes, listeners and links.

    Args:
        random: makes the seeded source of one link from its label.
        faults: of every link, by the pair of node names; the default link otherwise.
        on_fault: told of each fault as it is injected: kind and what it hit.
        on_ghost: told of each duplicate that reaches its server.
    """

    def __init__(
        self,
        random: Callable[[str], random_module.Random],
        *,
        default: LinkFaults,
        on_fault: Callable[[str, str], None],
        on_ghost: Callable[[], None],
    ) -> None:
        self._timetable = timetable()
        self._random_for = random
        self._default = default
        self._on_fault = on_fault
        self._on_ghost = on_ghost
        self._listeners: dict[tuple[str, int], tuple[Node, Handler, trio.Nursery]] = {}
        self._links: dict[tuple[str, str], random_module.Random] = {}
        self._faults: dict[tuple[str, str], LinkFaults] = {}
        self._cuts: dict[tuple[str, str], None] = {}
        self.healed = False

    def listen(self, host: str, port: int, node: Node, handler: Handler, nursery: trio.Nursery) -> None:
        """Accept connections to an address; handlers run in the caller's nursery."""
        self._listeners[host, port] = (node, handler, nursery)

    def unlisten(self, host: str, port: int) -> None:
        self._listeners.pop((host, port), None)

    def set_faults(self, client: str, server: str, faults: LinkFaults) -> None:
        """Faults of the link between two nodes, both directions."""
        self._faults[client, server] = self._faults[server, client] = faults

    def cut(self, source: str, target: str) -> None:
        """Swallow everything from source to target from now on (one direction)."""
        self._cuts[source, target] = None

    def mend(self, source: str, target: str) -> None:
        """Let the direction carry again; connections that lost bytes stay broken."""
        self._cuts.pop((source, target), None)

    def heal(self) -> None:
        """No more faults: only plain delays from now on."""
        self.healed = True
        self._cuts.clear()

    def _random(self, source: str, target: str) -> random_module.Random:
        key = (source, target)
        found = self._links.get(key)
        if found is None:
            found = self._links[key] = self._random_for(f"link {source}>{target}")
        return found

    def faults_of(self, source: str, target: str) -> LinkFaults:
        """Current faults of a link; none after healing."""
        if self.healed:
            return LinkFaults()
        return self._faults.get((source, target), self._default)

    def _delay_s(self, source: str, target: str, faults: LinkFaults) -> float:
        random = self._random(source, target)
        delay_s = random.uniform(faults.delay_min_s, faults.delay_max_s)
        if faults.slow and random.random() < faults.slow:
            self._on_fault("delay", f"{source}>{target}")
            delay_s += random.uniform(0.1, 1.0) * faults.slow_s
        return delay_s

    async def connect(self, source: Node, host: str, port: int) -> SimStream:
        """Open a connection.

        Raises:
            ConnectionRefusedError: nobody listens there, or its node is dead.
        """
        await trio.lowlevel.checkpoint()
        await source.wait_running()
        found = self._listeners.get((host, port))
        target = found[0].name if found else host
        if (source.name, target) in self._cuts or (target, source.name) in self._cuts:
            # A partition answers nothing; the caller's own time-out ends this.
            await trio.sleep_forever()
        await trio.sleep(2 * self._delay_s(source.name, target, self.faults_of(source.name, target)))
        found = self._listeners.get((host, port))
        if found is None or not found[0].alive:
            raise ConnectionRefusedError(f"{host}:{port} refused the connection")
        if not source.alive:
            raise OSError(f"node {source.name} is dead")
        return self._join(source, found, (host, port))

    def _join(
        self, source: Node, found: tuple[Node, Handler, trio.Nursery], address: tuple[str, int]
    ) -> SimStream:
        node, handler, nursery = found
        there, back = _Pipe(self._timetable), _Pipe(self._timetable)
        near = SimStream(self, source, node, sends=there, receives=back, to_server=True)
        far = SimStream(self, node, source, sends=back, receives=there, to_server=False)
        near.server = address
        nursery.start_soon(self._serve, handler, far)
        return near

    @staticmethod
    async def _serve(handler: Handler, stream: SimStream) -> None:
        try:
            await handler(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the peer is gone; nobody is left to tell
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
                await stream.aclose()

    def announce_reset(self, stream: SimStream, pipe: _Pipe) -> None:
        """The other end learns of a reset, unless the link is cut."""
        link = (stream.node.name, stream.peer.name)
        if link not in self._cuts:
            pipe.reset(trio.current_time() + self._delay_s(*link, self.faults_of(*link)))

    def transmit(self, stream: SimStream, data: bytes | None, pipe: _Pipe, *, to_server: bool) -> None:
        """Put one chunk on its way, or let a fault have it."""
        source, target = stream.node.name, stream.peer.name
        faults = self.faults_of(source, target)
        if (source, target) in self._cuts:
            pipe.swallow = True
        if pipe.swallow:
            return
        random = self._random(source, target)
        if data is not None and self._lose(stream, pipe, faults, random, to_server=to_server):
            return
        at_s = trio.current_time() + self._delay_s(source, target, faults)
        pipe.put(at_s, data)
        if data is not None and to_server and faults.duplicate and random.random() < faults.duplicate:
            self._duplicate(stream, data, random.uniform(0.0, faults.duplicate_after_s))

    def _lose(
        self,
        stream: SimStream,
        pipe: _Pipe,
        faults: LinkFaults,
        random: random_module.Random,
        *,
        to_server: bool,
    ) -> bool:
        """Whether a fault took this chunk."""
        lost = faults.lost_request if to_server else faults.lost_reply
        what = f"{stream.node.name}>{stream.peer.name}"
        if lost and random.random() < lost:
            self._on_fault("lost_request" if to_server else "lost_reply", what)
            pipe.swallow = True
            return True
        if faults.reset and random.random() < faults.reset:
            self._on_fault("reset", what)
            now_s = trio.current_time()
            pipe.reset(now_s)
            stream._receives.reset(now_s)
            return True
        return False

    def _duplicate(self, stream: SimStream, data: bytes, after_s: float) -> None:
        """The same bytes once more, later, on a connection of their own whose answers nobody reads."""
        assert stream.server is not None, "only requests are duplicated"
        found = self._listeners.get(stream.server)
        if found is None:
            return
        self._on_fault("duplicate", f"{stream.node.name}>{stream.peer.name}")
        ghost = Node(f"ghost of {stream.node.name}")

        async def replay() -> None:
            await trio.sleep(after_s)
            again = self._listeners.get(stream.server or ("", 0))
            if again is not None and again[0].alive and not self.healed:
                near = self._join(ghost, again, stream.server or ("", 0))
                near._sends.put(trio.current_time(), data)
                self._on_ghost()
                near._sends.put(trio.current_time() + 1.0, None)

        found[2].start_soon(replay)
