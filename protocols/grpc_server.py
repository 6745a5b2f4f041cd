"""A gRPC server inside trio, for services that must misbehave: grpcio's thread pool outside, handlers in trio.

grpcio's synchronous server holds one thread per call, for as long as the call lasts; here each only carries messages
from a queue, while the handler runs as a task. So the pool is as large as the number of calls the server admits and a
reserve: a pool that is smaller lets calls in that then wait for a thread, health checks included.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import queue
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import trio

from protocols.base import require_positive
from protocols.grpc_channel import CallEnded, Code
from protocols.grpc_service import CallHandler, IncomingCall

log = logging.getLogger(__name__)

#: Threads beyond the admitted calls: they turn further calls away.
THREADS_RESERVE = 8
#: Messages a handler may be ahead of what the library has taken.
UNSENT_MAX = 16
#: How long the end of a server may take, seconds.
STOP_TIMEOUT_S = 5.0

_STATUS = {status.value[0]: status for status in grpc.StatusCode}


@dataclass(frozen=True, slots=True, kw_only=True)
class GRPCServerLimits:
    """Bounds of a server.

    Attributes:
        calls_max: calls at once; one more is answered RESOURCE_EXHAUSTED.
        request_bytes_max: largest message taken in, bytes; gRPC's own default.
    """

    calls_max: int = 512
    request_bytes_max: int = 4 * 1024 * 1024

    def __post_init__(self) -> None:
        """Refuse limits that cannot work."""
        require_positive(calls_max=self.calls_max, request_bytes_max=self.request_bytes_max)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerTLS:
    """Certificate chain and key of a server, PEM; with ``client_ca`` clients must prove themselves too."""

    certificate: bytes
    key: bytes
    client_ca: bytes | None = None


@dataclass(slots=True)
class GRPCServerStatistics:
    """Counters of one server: handlers running now, calls so far, and handlers cancelled because the caller left."""

    active: int = 0
    calls: int = 0
    abandoned: int = 0


@dataclass(frozen=True, slots=True)
class GRPCServerHandle:
    """A listening server."""

    host: str
    port: int
    url: str
    statistics: GRPCServerStatistics


class _Bridge:
    """Between the pool's thread and the handler's task of one call."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token
        self.scope = trio.CancelScope()
        #: Towards the thread: messages, then the end. Bounded by ``send``, which waits.
        self.outgoing: queue.SimpleQueue[bytes | CallEnded | None] = queue.SimpleQueue()
        self._unsent = 0
        self._room = trio.Event()
        self.left = False

    async def send(self, message: bytes) -> None:
        """Hand one message to the thread; waits while it is too far behind."""
        await trio.lowlevel.checkpoint()
        while self._unsent >= UNSENT_MAX:
            self._room = trio.Event()
            await self._room.wait()
        self._unsent += 1
        self.outgoing.put(message)

    def soon(self, call: Callable[..., object], *args: Any) -> bool:
        """Run something in the trio run, from a thread; False when that is over."""
        try:
            self._token.run_sync_soon(call, *args)
        except trio.RunFinishedError:
            return False
        return True

    def taken(self) -> None:
        """The library has sent a message."""
        self._unsent -= 1
        self._room.set()

    def gone(self) -> None:
        """The call is over, whoever ended it: called in a thread of the library's."""
        self.outgoing.put(None)
        self.soon(self._leave)

    def _leave(self) -> None:
        self.left = True
        self.scope.cancel()


class _Door(grpc.GenericRpcHandler):
    """Takes in calls of every path, each as one message answered by many, which covers all kinds on the wire."""

    def __init__(self, handler: CallHandler, statistics: GRPCServerStatistics) -> None:
        self._handler = handler
        #: Where handlers run; None before the server starts and once it stops.
        self.nursery: trio.Nursery | None = None
        self._statistics = statistics
        self._token = trio.lowlevel.current_trio_token()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_stream_rpc_method_handler(
            functools.partial(self._serve, handler_call_details.method)
        )

    def _serve(self, path: str, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """In a thread of the pool: start the handler, then carry what it sends."""
        bridge = _Bridge(self._token)
        if not context.add_callback(bridge.gone):
            return  # it is over already, and nobody would tell the handler
        metadata = {
            name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)
        }
        call = IncomingCall(
            path=path,
            request=request,
            metadata=metadata,
            time_left_s=context.time_remaining(),
            send=bridge.send,
        )
        if not bridge.soon(self._begin, bridge, call):
            return
        while (item := bridge.outgoing.get()) is not None:
            if isinstance(item, CallEnded):
                context.set_trailing_metadata(tuple(item.metadata.items()))
                context.set_code(_STATUS[int(item.code)])
                context.set_details(item.details)
                return
            yield item
            bridge.soon(bridge.taken)

    def _begin(self, bridge: _Bridge, call: IncomingCall) -> None:
        if self.nursery is None:
            bridge.outgoing.put(CallEnded(Code.UNAVAILABLE, "the server has stopped"))
        else:
            self.nursery.start_soon(self._run, bridge, call)

    async def _run(self, bridge: _Bridge, call: IncomingCall) -> None:
        self._statistics.active += 1
        self._statistics.calls += 1
        ended: CallEnded | None = CallEnded(Code.UNAVAILABLE, "the server stops")
        try:
            with bridge.scope:
                await self._handler(call)
            ended = None
        except CallEnded as status:
            ended = status
        except Exception:
            log.exception("the handler of %s failed", call.path)
            ended = CallEnded(Code.INTERNAL, "the handler failed")
        finally:
            self._statistics.active -= 1
            self._statistics.abandoned += bridge.left
            bridge.outgoing.put(ended)


async def serve_grpc(
    handler: CallHandler,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    limits: GRPCServerLimits | None = None,
    tls: ServerTLS | None = None,
    task_status: trio.TaskStatus[GRPCServerHandle] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve until cancelled; calls still running end with UNAVAILABLE or CANCELLED.

    Args:
        handler: answers each call, whatever its path.
        host: address to listen on.
        port: port, or 0 for a free one.
        limits: bounds.
        tls: for ``grpcs``.

    Raises:
        OSError: the port is taken, or the address is not ours.
    """
    limits = limits or GRPCServerLimits()
    statistics = GRPCServerStatistics()
    pool = ThreadPoolExecutor(limits.calls_max + THREADS_RESERVE, "grpc-call")
    options = [
        ("grpc.max_receive_message_length", limits.request_bytes_max),
        ("grpc.max_send_message_length", -1),
        # Else a second server on the same port would start and take half of the connections.
        ("grpc.so_reuseport", 0),
    ]
    try:
        door = _Door(handler, statistics)
        server = grpc.server(pool, [door], options=options, maximum_concurrent_rpcs=limits.calls_max)
        bound = _bind(server, host, port, tls)
        shown = f"[{host}]" if ":" in host else host
        url = f"{'grpc' if tls is None else 'grpcs'}://{shown}:{bound}"
        async with trio.open_nursery() as door.nursery:
            server.start()
            try:
                task_status.started(GRPCServerHandle(host, bound, url, statistics))
                await trio.sleep_forever()
            finally:
                door.nursery = None
                stopped = server.stop(None)
                with trio.move_on_after(STOP_TIMEOUT_S, shield=True):
                    await trio.to_thread.run_sync(
                        stopped.wait, STOP_TIMEOUT_S, abandon_on_cancel=True, limiter=trio.CapacityLimiter(1)
                    )
    finally:
        pool.shutdown(wait=False)


def _bind(server: grpc.Server, host: str, port: int, tls: ServerTLS | None) -> int:
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if tls is None:
            bound = server.add_insecure_port(address)
        else:
            credentials = grpc.ssl_server_credentials(
                [(tls.key, tls.certificate)], tls.client_ca, tls.client_ca is not None
            )
            bound = server.add_secure_port(address, credentials)
    except RuntimeError:
        bound = 0
    if not bound:
        # The library tells why in text alone; the kernel is asked again.
        with contextlib.closing(socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)) as probe:
            probe.bind((host, port))
        raise OSError(f"cannot listen on {address}")
    return bound
