"""A channel on grpcio: the one place where gRPC meets trio, and therefore threads.

grpcio has no interface for trio, and its core runs threads of its own whatever is done. They are kept from the job's
path: a unary call costs none (``.future()`` wakes its task through trio's own door from the channel's one completion
thread), a stream that is being read costs one, under a limiter of this channel; one thread per open channel watches
whether the peer is connected. No thread touches state of ours; each only calls ``run_sync_soon``.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, Final, cast

import grpc
import outcome
import trio

from protocols.base import Endpoint
from protocols.grpc_channel import CallEnded, ChannelSettings, Code, MessageStream, Metadata

#: First pause after a failed attempt to connect, milliseconds; it grows up to the channel's ``reconnect_s``.
RECONNECT_FIRST_MS = 100
#: How long closing may take, seconds, and how often it is looked whether grpcio's watching thread has gone.
CLOSE_TIMEOUT_S = 2.0
LOOK_S = 0.02

_READY = grpc.ChannelConnectivity.READY
_FAILING = grpc.ChannelConnectivity.TRANSIENT_FAILURE
_END: Final = object()
_CODES = {status: Code(status.value[0]) for status in grpc.StatusCode}


class GrpcioChannel:
    """See ``protocols.grpc_channel.Channel``. Opens itself with the first call; belongs to one trio run."""

    def __init__(self, endpoint: Endpoint, settings: ChannelSettings) -> None:
        self._endpoint = endpoint
        self._settings = settings
        self._state = grpc.ChannelConnectivity.IDLE
        self._changed = trio.Event()
        self._opened: grpc.Channel | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._closed = False
        #: Twice the streams: threads of streams given up linger for the moment until their call is cancelled.
        self._threads = trio.CapacityLimiter(settings.streams_max * 2)
        self._unary: dict[str, Any] = {}
        self._streams: dict[str, Any] = {}

    async def connect(self) -> None:
        if self._closed:
            raise ConnectionError("the channel is closed")
        self._channel()
        # A fresh failure speaks for itself. An old one may be about to pass: one more attempt is awaited.
        patience_s = self._settings.reconnect_s + 0.1 if self._state is _FAILING else 0.0
        until_s = trio.current_time() + patience_s
        while self._state is not _READY:
            if self._closed:
                raise ConnectionError("the channel is closed")
            if self._state is not _FAILING:
                await self._changed.wait()
                continue
            with trio.move_on_at(until_s):
                await self._changed.wait()
            if self._state is _FAILING:
                raise ConnectionError(f"{self._endpoint} cannot be reached")

    async def unary(self, path: str, request: bytes, *, metadata: Metadata, timeout_s: float) -> bytes:
        channel = self._channel()
        if path not in self._unary:
            self._unary[path] = channel.unary_unary(path)
        try:
            call = self._unary[path].future(request, timeout=timeout_s, metadata=tuple(metadata))
        except ValueError as error:
            raise self._refused(error) from error
        await _ended(call)
        if call.code() is not grpc.StatusCode.OK:
            raise _call_ended(call)
        return cast("bytes", call.result())

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, request: bytes, *, metadata: Metadata, timeout_s: float
    ) -> AsyncIterator[MessageStream]:
        channel = self._channel()
        if path not in self._streams:
            self._streams[path] = channel.unary_stream(path)
        try:
            call = self._streams[path](request, timeout=timeout_s, metadata=tuple(metadata))
        except ValueError as error:
            raise self._refused(error) from error
        try:
            yield _Stream(call, self._threads)
        finally:
            call.cancel()

    async def aclose(self) -> None:
        self._closed = True
        self._notice()
        opened, self._opened = self._opened, None
        if opened is None:
            return
        opened.unsubscribe(self._saw_elsewhere)
        with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            # The watching thread looks up every 0.2 s whether anybody still listens. A channel closed under it makes
            # it fail with a traceback on standard error.
            for _look in range(int(CLOSE_TIMEOUT_S / LOOK_S)):
                if not _watched(opened):
                    break
                await trio.sleep(LOOK_S)
        opened.close()

    def _channel(self) -> grpc.Channel:
        if self._closed:
            raise CallEnded(Code.CANCELLED, "the channel is closed")
        if self._opened is None:
            self._token = trio.lowlevel.current_trio_token()
            self._opened = _open(self._endpoint, self._settings)
            self._opened.subscribe(self._saw_elsewhere, try_to_connect=True)
        return self._opened

    def _refused(self, error: ValueError) -> CallEnded:
        """The library starts no call on a channel that is being closed."""
        if not self._closed:
            raise error
        return CallEnded(Code.CANCELLED, "the channel is closed")

    def _saw_elsewhere(self, state: grpc.ChannelConnectivity) -> None:
        """The watching thread saw the connection change; the trio run may be over by now."""
        token = self._token
        assert token is not None, "set before the subscription"
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(self._saw, state)

    def _saw(self, state: grpc.ChannelConnectivity) -> None:
        self._state = state
        if state is grpc.ChannelConnectivity.IDLE and self._opened is not None:
            # The connection was lost. Left alone it would come back with the next call only, and until then nobody
            # would know whether the peer can be reached.
            self._opened.subscribe(_ignore, try_to_connect=True)
            self._opened.unsubscribe(_ignore)
        self._notice()

    def _notice(self) -> None:
        self._changed.set()
        self._changed = trio.Event()


class _Stream:
    """A stream's reader: each message is awaited in a thread, since the library offers no other way."""

    def __init__(self, call: Any, threads: trio.CapacityLimiter) -> None:
        self._call = call
        self._threads = threads

    async def receive(self) -> bytes | None:
        try:
            message = await trio.to_thread.run_sync(
                next, self._call, _END, abandon_on_cancel=True, limiter=self._threads
            )
        except grpc.RpcError:
            raise _call_ended(self._call) from None
        except trio.Cancelled:
            self._call.cancel()  # which also ends the thread that was left behind
            raise
        return None if message is _END else cast("bytes", message)


async def _ended(call: Any) -> None:
    """Wait for the end of a call; a cancellation cancels the call and is raised once the call has ended by it."""
    token, task = trio.lowlevel.current_trio_token(), trio.lowlevel.current_task()
    cancelled: list[Callable[[], Any]] = []

    def wake() -> None:
        if cancelled and call.cancelled():
            trio.lowlevel.reschedule(task, outcome.capture(cancelled[0]))
        else:
            trio.lowlevel.reschedule(
                task
            )  # it ended by itself: its result counts, the cancellation comes later

    def done(_call: Any) -> None:
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(wake)

    def abort(raise_cancel: Callable[[], Any]) -> trio.lowlevel.Abort:
        cancelled.append(raise_cancel)
        call.cancel()
        return trio.lowlevel.Abort.FAILED

    call.add_done_callback(done)
    await trio.lowlevel.wait_task_rescheduled(abort)


def _call_ended(call: Any) -> CallEnded:
    metadata = dict(call.trailing_metadata() or ())
    return CallEnded(_CODES[call.code()], call.details() or "", metadata)


def _open(endpoint: Endpoint, settings: ChannelSettings) -> grpc.Channel:
    longest_ms = max(int(settings.reconnect_s * 1000), RECONNECT_FIRST_MS)
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", settings.response_bytes_max),
        # What we send is measured before it is sent, by the adapter.
        ("grpc.max_send_message_length", -1),
        # The adapter never repeats a call, and neither may the library.
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
        ("grpc.service_config_disable_resolution", 1),
        # A connection of this channel alone: closing the channel closes it.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", RECONNECT_FIRST_MS),
        # Also how long one attempt to connect may take.
        ("grpc.min_reconnect_backoff_ms", longest_ms),
        ("grpc.max_reconnect_backoff_ms", longest_ms),
    ]
    if not endpoint.secure:
        return grpc.insecure_channel(endpoint.authority, options)
    tls = settings.tls
    if tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    credentials = grpc.ssl_channel_credentials(tls.ca, tls.key, tls.certificate)
    return grpc.secure_channel(endpoint.authority, credentials, options)


def _watched(channel: grpc.Channel) -> bool:
    """Whether grpcio's watching thread still runs; should another version not tell, it may."""
    return bool(getattr(getattr(channel, "_connectivity_state", None), "polling", True))


def _ignore(_state: grpc.ChannelConnectivity) -> None:
    """A subscriber that only asks for an attempt to connect."""
