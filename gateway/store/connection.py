"""One supervised connection to Redis, under trio or asyncio: reconnects for ever, never repeats a command by itself.

coredis' own pool retries connection errors and time-outs (twice by default) and so re-runs scripts silently; here a
command whose outcome is unknown closes its connection, so that a late reply can never be taken for another one's,
and the caller learns it as ``StoreUnavailable(outcome_unknown=True)``.
"""

from __future__ import annotations

import random as random_module
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Protocol, cast
from urllib.parse import parse_qs, unquote, urlsplit

import anyio
from anyio.abc import TaskStatus
from coredis.connection import BaseConnection, TCPConnection, UnixDomainSocketConnection
from coredis.connection._request import Request
from coredis.connection._tcp import TCPLocation
from coredis.connection._uds import UnixDomainSocketLocation
from coredis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ReplicationError,
    TryAgainError,
)
from coredis.exceptions import ConnectionError as RedisConnectionError

from gateway.errors import ConfigError, StoreForbidden, StoreRejected, StoreUnavailable
from gateway.store.calls import ScriptCall

#: How Redis is reached: makes one fresh, unconnected connection per call. The seam of the simulation.
RedisConnect = Callable[[], BaseConnection]

RECONNECT_FIRST_S = 0.02
RECONNECT_MAX_S = 1.0
#: What a connection's own streams and buffers raise while it ends.
_BROKEN = (anyio.ClosedResourceError, anyio.BrokenResourceError, anyio.EndOfStream, OSError)
_PASSING_ERRORS = (BusyLoadingError, ReadOnlyError, ClusterDownError, TryAgainError, ReplicationError)


class Ready(Protocol):
    """The part of a task status that ``RedisLink.run`` uses (trio's and anyio's both have it)."""

    def started(self, value: None = None) -> None: ...


def redis_connect(url: str, *, connect_timeout_s: float, command_timeout_s: float) -> RedisConnect:
    """Make the connection factory for a Redis URL.

    Args:
        url: ``redis://[user[:password]@]host[:port][/db]``, ``rediss://…`` for TLS, or ``unix:///path?db=0``.
        connect_timeout_s: longest wait for TCP or TLS, seconds.
        command_timeout_s: default longest wait for one reply, seconds.

    Raises:
        ConfigError: the URL has another form.
    """
    parts = urlsplit(url)
    options: dict[str, Any] = {
        "stream_timeout": command_timeout_s,
        "connect_timeout": connect_timeout_s,
        "decode_responses": False,
        "username": unquote(parts.username) if parts.username else None,
        "password": unquote(parts.password) if parts.password else None,
    }
    query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    database = (
        query.get("db", "0") if parts.scheme == "unix" else parts.path.strip("/") or query.get("db", "0")
    )
    if not database.isdigit():
        raise ConfigError(f"redis_url: {database!r} is not a database number")
    options["db"] = int(database)
    if parts.scheme == "unix" and parts.path:
        options["password"] = options["password"] or query.get("password")
        socket_path = unquote(parts.path)
        return lambda: UnixDomainSocketConnection(UnixDomainSocketLocation(socket_path), **options)
    if parts.scheme not in ("redis", "rediss") or not parts.hostname:
        raise ConfigError(f"redis_url: expected redis://, rediss:// or unix:///path, not {parts.scheme}://…")
    if parts.scheme == "rediss":
        options["ssl_context"] = ssl.create_default_context()
    host, port = parts.hostname, parts.port or 6379
    return lambda: TCPConnection(TCPLocation(host, port), **options)


def _translate(error: Exception) -> Exception:
    """Our error for one of coredis': classified by type only."""
    if isinstance(error, TimeoutError):
        return StoreUnavailable("Redis did not answer in time", outcome_unknown=True)
    if isinstance(error, _PASSING_ERRORS):
        return StoreUnavailable(f"Redis is not ready: {error}", outcome_unknown=False)
    if isinstance(error, (RedisConnectionError, *_BROKEN)):
        return StoreUnavailable(f"the connection to Redis broke: {error}", outcome_unknown=True)
    kind = StoreForbidden if isinstance(error, AuthorizationError) else StoreRejected
    return kind(f"Redis refused the command: {error}")


class RedisLink:
    """A connection that heals itself.

    Args:
        connect: makes a fresh connection.
        name: shown in errors and in ``CLIENT LIST``.
        command_timeout_s: longest wait for one command including the wait for a connection, seconds.
        connect_timeout_s: longest wait for one connection attempt, seconds.
        random: source of the reconnect jitter.
        subscribe: channel to listen to; the link then carries pub/sub only.
        on_message: called with each message, and with an empty one after every (re)subscription, because
            messages sent meanwhile are lost.
    """

    def __init__(
        self,
        connect: RedisConnect,
        *,
        name: str,
        command_timeout_s: float,
        connect_timeout_s: float,
        random: random_module.Random,
        subscribe: str | None = None,
        on_message: Callable[[str], None] | None = None,
    ) -> None:
        self._connect = connect
        self._name = name
        self._command_timeout_s = command_timeout_s
        self._connect_timeout_s = connect_timeout_s
        self._random = random
        self._subscribe = subscribe
        self._on_message = on_message
        self._connection: BaseConnection | None = None
        self._up = anyio.Event()
        self.connections_made = 0
        self.round_trips = 0

    @property
    def connected(self) -> bool:
        """Whether a command could be sent right now."""
        return self._connection is not None and self._connection.usable

    async def run(self, *, task_status: Ready | TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep one connection open until cancelled; ready once the first one stands.

        Raises:
            StoreUnavailable: the very first connection failed (later losses are healed instead).
            StoreRejected: wrong credentials, at any time.
        """
        delay_s = RECONNECT_FIRST_S
        first = True
        while True:
            made_before = self.connections_made
            try:
                await self._serve_one(task_status if first else None)
            except* (AuthenticationError, AuthorizationError) as refused:
                raise StoreRejected(f"Redis refused our credentials: {refused.exceptions[0]}") from None
            except* (RedisError, TimeoutError, *_BROKEN) as lost:
                if first and self.connections_made == made_before:
                    message = f"cannot connect to Redis: {_innermost(lost)}"
                    raise StoreUnavailable(message, outcome_unknown=False) from None
            if self.connections_made > made_before:
                first = False
                delay_s = RECONNECT_FIRST_S
            await anyio.sleep(delay_s * self._random.uniform(0.5, 1.0))
            delay_s = min(delay_s * 2, RECONNECT_MAX_S)

    async def _serve_one(self, task_status: Ready | TaskStatus[None] | None) -> None:
        """One connection from handshake to loss."""
        connection = self._connect()
        try:
            async with anyio.create_task_group() as group:
                with anyio.fail_after(self._connect_timeout_s):
                    await group.start(connection.run)
                self.connections_made += 1
                self._connection = connection
                self._up.set()
                if self._subscribe is not None:
                    group.start_soon(self._listen, connection, group.cancel_scope)
                if task_status is not None:
                    task_status.started()
        finally:
            self._connection = None
            if self._up.is_set():
                self._up = anyio.Event()
            _close_buffers(connection)

    async def _listen(self, connection: BaseConnection, scope: anyio.CancelScope) -> None:
        assert self._subscribe is not None
        assert self._on_message is not None
        try:
            connection.send_command(b"SUBSCRIBE", self._subscribe)
            messages = cast("AsyncIterator[list[Any]]", connection.push_messages)
            async with aclosing(cast("Any", messages)):
                async for message in messages:
                    if message[0] == b"message":
                        self._on_message(message[2].decode())
                    elif message[0] == b"subscribe":
                        self._on_message("")
        except (RedisConnectionError, *_BROKEN):
            scope.cancel()

    async def command(self, *parts: str | bytes | int, timeout_s: float | None = None) -> Any:
        """Send one command and wait for its reply (bytes, not decoded).

        Args:
            parts: command name and arguments.
            timeout_s: longest wait including the wait for a connection; the link's default if None.

        Raises:
            StoreUnavailable: no connection, or no reply in time; ``outcome_unknown`` says which.
            StoreRejected: Redis answered with an error.
        """
        limit_s = self._command_timeout_s if timeout_s is None else timeout_s
        name, *args = parts
        sent = False
        try:
            with anyio.fail_after(limit_s):
                while (request := self._request(name, args, limit_s)) is None:
                    await self._wait_connected()
                sent = True
                self.round_trips += 1
                return await request
        except TimeoutError as error:
            if sent:
                raise _translate(error) from None
            message = f"no connection to Redis ({self._name}) within {limit_s:g} s"
            raise StoreUnavailable(message, outcome_unknown=False) from None
        except NoScriptError:
            raise
        except (RedisError, *_BROKEN) as error:
            raise _translate(error) from None

    def _request(
        self, name: str | bytes | int, args: Sequence[str | bytes | int], timeout_s: float
    ) -> Request | None:
        """Put one command into the connection's buffer; None when there is no connection that takes it."""
        connection = self._connection
        if connection is None or not connection.usable:
            return None
        try:
            return connection.create_request(
                name.encode() if isinstance(name, str) else cast("bytes", name),
                *args,
                decode=False,
                timeout=timeout_s,
                disconnect_on_cancellation=True,
            )
        except _BROKEN:
            # The connection is ending: its buffers are closed, though it still calls itself usable. Nothing was sent.
            return None

    async def _wait_connected(self) -> None:
        if self._up.is_set():
            # The connection is dying but its task has not noticed yet: its successor will be announced.
            self._connection, self._up = None, anyio.Event()
        await self._up.wait()

    async def script(self, call: ScriptCall, *, timeout_s: float | None = None) -> Any:
        """Run a script by its hash; after a Redis restart, when the hash is unknown, once more with its source."""
        try:
            return await self.command(
                b"EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args, timeout_s=timeout_s
            )
        except NoScriptError:
            return await self.command(
                b"EVAL", call.script.source, len(call.keys), *call.keys, *call.args, timeout_s=timeout_s
            )


def _close_buffers(connection: BaseConnection) -> None:
    """Close what coredis leaves open when a connection attempt fails, which Python would report as leaked."""
    for kind in ("push_message", "streamed_message", "write"):
        for end in ("in", "out"):
            getattr(connection, f"_{kind}_buffer_{end}").close()


def _innermost(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first leaf of a group, without its wrappers: what a person wants to read."""
    error: BaseException = group
    for _ in range(16):
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            break
    return error
