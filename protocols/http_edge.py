"""The edge of the HTTP adapter: the libraries' exceptions become ours, and a body becomes lines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping

import httpcore
import httpx
import trio

from protocols.errors import (
    BodyTooLarge,
    ConnectFailed,
    ConnectRefused,
    ConnectTimeout,
    InvalidRequest,
    LocalOverload,
    NetworkFault,
    PeerClosed,
    ProtocolError,
    ProtocolViolation,
    RequestTimeout,
)
from protocols.http_backend import Exchange, Refused, ResponseBody, Stage


@contextlib.contextmanager
def map_exceptions(exchange: Exchange, what: str) -> Iterator[None]:
    """Turn the libraries' exceptions into ours, by their type and by how far the request came.

    Args:
        exchange: the request's own record.
        what: the request in words, for the message.
    """
    try:
        yield
    except (httpcore.PoolTimeout, trio.TooSlowError, httpcore.TimeoutException) as exc:
        raise _timeout(exc, exchange, what) from exc
    except Refused as exc:
        raise ConnectRefused(f"{what}: {exc}") from exc
    except httpcore.ConnectError as exc:
        raise ConnectFailed(f"{what}: {exc}") from exc
    except (httpcore.ReadError, httpcore.WriteError) as exc:
        raise PeerClosed(f"{what}: connection lost: {exc}", outcome_unknown=exchange.sent) from exc
    except httpcore.NetworkError as exc:
        raise NetworkFault(f"{what}: {exc}", outcome_unknown=exchange.sent) from exc
    except (httpcore.RemoteProtocolError, httpx.RemoteProtocolError) as exc:
        if exchange.peer_closed:
            raise PeerClosed(f"{what}: {exc}", outcome_unknown=exchange.sent) from exc
        raise ProtocolViolation(f"{what}: {exc}", outcome_unknown=exchange.sent) from exc
    except (httpcore.LocalProtocolError, httpx.InvalidURL) as exc:
        raise InvalidRequest(f"{what}: {exc}", outcome_unknown=exchange.sent) from exc


def _timeout(exc: Exception, exchange: Exchange, what: str) -> ProtocolError:
    """The same silence means different things before and after the first byte left."""
    if exchange.stage is Stage.QUEUED:
        return LocalOverload(f"{what}: no free connection in time")
    if exchange.stage is Stage.CONNECTING:
        return ConnectTimeout(f"{what}: not connected in time")
    return RequestTimeout(f"{what}: {str(exc) or 'no complete answer in time'}", outcome_unknown=True)


class LineStream:
    """The lines of a body, as bytes without their ending (``\\n`` or ``\\r\\n``); an async iterator.

    A last line without an ending is a line when the body ended properly; when the connection broke,
    ``PeerClosed`` is raised instead.
    """

    def __init__(
        self,
        body: ResponseBody,
        exchange: Exchange,
        what: str,
        *,
        status: int,
        headers: Mapping[str, str],
        line_bytes_max: int,
        counted: Callable[[], contextlib.AbstractContextManager[None]],
    ) -> None:
        self.status = status
        self.headers = headers
        self._body = body
        self._exchange = exchange
        self._what = what
        self._line_bytes_max = line_bytes_max
        self._counted = counted
        self._lines: Iterator[bytes] = iter(())
        self._rest = b""
        self._ended = False

    def __aiter__(self) -> LineStream:
        return self

    async def __anext__(self) -> bytes:
        """Return the next line.

        Raises:
            BodyTooLarge: the line is longer than ``line_bytes_max``.
            RequestTimeout: no byte came for ``idle_timeout_s``.
            PeerClosed, ProtocolViolation: the body did not end properly.
        """
        with self._counted():
            while True:
                for line in self._lines:
                    self._check(len(line))
                    return line.removesuffix(b"\r")
                if self._ended:
                    raise StopAsyncIteration
                await self._fill()

    async def _fill(self) -> None:
        parts = [self._rest]
        pending_bytes = len(self._rest)
        while True:
            try:
                with map_exceptions(self._exchange, self._what):
                    chunk = await anext(self._body)
            except StopAsyncIteration:
                self._ended = True
                self._rest, last = b"", b"".join(parts)
                self._lines = iter((last,) if last else ())
                return
            parts.append(chunk)
            if b"\n" in chunk:
                *lines, self._rest = b"".join(parts).split(b"\n")
                self._lines = iter(lines)
                return
            pending_bytes += len(chunk)
            self._check(pending_bytes)

    def _check(self, line_bytes: int) -> None:
        if line_bytes > self._line_bytes_max:
            raise BodyTooLarge(
                f"{self._what}: a line exceeds {self._line_bytes_max} bytes", limit_bytes=self._line_bytes_max
            )
