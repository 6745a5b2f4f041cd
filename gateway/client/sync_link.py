"""One blocking connection to Redis for the synchronous client: closed after an unknown outcome, never repeating."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, parse_url
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterDownError,
    NoPermissionError,
    NoScriptError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.retry import Retry

from gateway.errors import ConfigError, StoreForbidden, StoreRejected, StoreUnavailable
from gateway.store.calls import ScriptCall

_PASSING_ERRORS = (BusyLoadingError, ReadOnlyError, ClusterDownError, TryAgainError)
#: Parts of a URL that both clients understand alike.
_URL_PARTS = ("host", "port", "db", "username", "password", "path", "connection_class")


def _url_options(url: str) -> dict[str, Any]:
    try:
        parts = urlsplit(url)
        options: dict[str, Any] = parse_url(url)  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise ConfigError(f"redis_url: {error}") from None
    if parts.scheme == "unix" and not options.get("path"):
        raise ConfigError("redis_url: unix:// needs the path of a socket, as in unix:///run/redis.sock")
    if parts.scheme != "unix" and not parts.hostname:
        raise ConfigError(f"redis_url: {parts.scheme}:// needs a host")
    database = parts.path.strip("/") if parts.scheme != "unix" else ""
    if database and not database.isdigit():
        raise ConfigError(f"redis_url: {database!r} is not a database number")
    return {name: options[name] for name in _URL_PARTS if name in options}


class SyncLink:
    """A connection that opens on first use and again after a loss.

    Args:
        url: ``redis://…``, ``rediss://…`` or ``unix:///path``.
        command_timeout_s: default longest wait for one reply, seconds.
        connect_timeout_s: longest wait for the connection, seconds.

    Raises:
        ConfigError: the URL has another form.
    """

    def __init__(self, url: str, *, command_timeout_s: float, connect_timeout_s: float) -> None:
        options = _url_options(url)
        make = options.pop("connection_class", Connection)
        self._connection: Any = make(
            **options,
            protocol=3,
            decode_responses=False,
            socket_timeout=command_timeout_s,
            socket_connect_timeout=connect_timeout_s,
            # redis-py repeats up to ten times by default, silently re-running scripts.
            retry=Retry(NoBackoff(), 0),
            retry_on_error=[],
            health_check_interval=0,
            client_name="trio-gateway-client",
        )
        self._command_timeout_s = command_timeout_s
        self._open = False
        self.connections_made = 0

    def _connect(self) -> None:
        try:
            self._connection.connect()
        except (AuthenticationError, AuthorizationError) as error:
            raise StoreRejected(f"Redis refused our credentials: {error}") from None
        except (RedisError, OSError) as error:
            message = f"cannot connect to Redis: {error} (does it run, and is redis_url right?)"
            raise StoreUnavailable(message, outcome_unknown=False) from None
        self._open = True
        self.connections_made += 1

    async def command(self, *parts: str | bytes | int, timeout_s: float | None = None) -> Any:
        """Send one command and block for its reply (bytes, not decoded); never suspends.

        Raises:
            StoreUnavailable: no connection, or no reply in time; ``outcome_unknown`` says which.
            StoreRejected: Redis answered with an error; StoreForbidden when our user has not the right.
        """
        if not self._open:
            self._connect()
        limit_s = self._command_timeout_s if timeout_s is None else timeout_s
        answered = False
        try:
            self._connection.send_command(*parts, check_health=False)
            reply = self._connection.read_response(timeout=limit_s)
            answered = True
        except NoScriptError:
            answered = True
            raise
        except _PASSING_ERRORS as error:
            answered = True
            raise StoreUnavailable(f"Redis is not ready: {error}", outcome_unknown=False) from None
        except NoPermissionError as error:
            answered = True
            raise StoreForbidden(f"Redis refused the command: {error}") from None
        except ResponseError as error:
            answered = True
            raise StoreRejected(f"Redis refused the command: {error}") from None
        except redis.TimeoutError:
            raise StoreUnavailable("Redis did not answer in time", outcome_unknown=True) from None
        except (RedisError, OSError) as error:
            message = f"the connection to Redis broke: {error}"
            raise StoreUnavailable(message, outcome_unknown=True) from None
        finally:
            if not answered:  # also after Ctrl-C: a late reply must not be taken for the next one's
                self.close()
        return reply

    async def script(self, call: ScriptCall, *, timeout_s: float | None = None) -> Any:
        """Run a script by its hash, or once more with its source when the server does not know it."""
        try:
            return await self.command(
                b"EVALSHA", call.script.sha, len(call.keys), *call.keys, *call.args, timeout_s=timeout_s
            )
        except NoScriptError:
            return await self.command(
                b"EVAL", call.script.source, len(call.keys), *call.keys, *call.args, timeout_s=timeout_s
            )

    def close(self) -> None:
        """Close the connection; the next command opens it again."""
        self._open = False
        self._connection.disconnect()
