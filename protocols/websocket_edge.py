"""The edge of the WebSocket adapter: how its streams open, and what the library's exceptions mean in our words."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from types import MappingProxyType

import h11
import trio

from protocols.base import Endpoint, OpenStream
from protocols.errors import (
    BodyTooLarge,
    ClosedWithCode,
    ConnectFailed,
    ConnectRefused,
    ConnectTimeout,
    FaultKind,
    PeerClosed,
    ProtocolError,
    ProtocolViolation,
    status_failure,
)
from protocols.retry_after import parse_retry_after

#: What a close code stands for (RFC 6455 §7.4.1 and IANA's registry); any other code is a closed connection.
CLOSE_FAULTS: MappingProxyType[int, FaultKind] = MappingProxyType(
    {
        1008: FaultKind.VALIDATION,
        1010: FaultKind.UNSUPPORTED,
        1011: FaultKind.SERVICE_ERROR,
        1012: FaultKind.UNAVAILABLE,
        1013: FaultKind.UNAVAILABLE,
        1014: FaultKind.UNAVAILABLE,
        3000: FaultKind.AUTH,
        3003: FaultKind.AUTH,
        3008: FaultKind.TIMEOUT,
    }
)
#: Codes by which a side says that it received what the protocol does not allow; wsproto uses them for what we received.
_VIOLATIONS = frozenset({1002, 1003, 1007})
_TOO_BIG = 1009
_SWITCHING = b"HTTP/1.1 101"


class WatchedStream(trio.abc.Stream):
    """A stream of which the adapter knows what the library does not tell.

    The library never returns from a handshake whose peer leaves or speaks garbage, and reads a refusal's body
    whatever its size. So this keeps how the answer began, stops it at a bound, and says when it is over.

    Args:
        stream: owned from here on.
        head_bytes_max: how much of a refusal is read, bytes.
    """

    def __init__(self, stream: trio.abc.Stream, *, head_bytes_max: int) -> None:
        self._stream = stream
        self._head_bytes_max = head_bytes_max
        self._recording = True
        #: The first bytes of the answer to the handshake.
        self.head = bytearray()
        #: When the peer was last heard, trio's clock.
        self.heard_at = trio.current_time()
        #: Called once nothing more can come.
        self.on_over: Callable[[], None] = lambda: None
        #: Called when a cancellation left half a frame behind, after which the peer understands nothing.
        self.on_torn: Callable[[], None] = lambda: None

    def stop_recording(self) -> None:
        """Forget the handshake."""
        self._recording = False
        self.head.clear()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive; ``b""`` at the end, and after too much of a refusal."""
        try:
            data = bytes(await self._stream.receive_some(max_bytes))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.on_over()
            raise
        self.heard_at = trio.current_time()
        if self._recording:
            self.head += data
            if len(self.head) > self._head_bytes_max and not self.head.startswith(_SWITCHING):
                data = b""
        if not data:
            self.on_over()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self.on_over()
            raise
        except BaseException:
            self.on_torn()
            raise

    async def wait_send_all_might_not_block(self) -> None:
        """Wait for room."""
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        """Close at once; WebSocket has its own goodbye, TLS need not say another."""
        self.on_over()
        await trio.aclose_forcefully(self._stream)


async def open_link(
    endpoint: Endpoint, open_stream: OpenStream, ssl_context: ssl.SSLContext | None, what: str
) -> trio.abc.Stream:
    """Open the byte stream for one WebSocket, TLS included; the caller bounds the time.

    Args:
        endpoint: the peer.
        open_stream: the seam.
        ssl_context: speaks TLS when given.
        what: the connection in words, for messages.

    Raises:
        ConnectFailed: or one of its leafs; nothing is left open.
    """
    try:
        stream = await open_stream(endpoint.host, endpoint.port)
    except trio.TooSlowError as exc:
        raise ConnectTimeout(f"{what}: no connection in time") from exc
    except ConnectionRefusedError as exc:
        raise ConnectRefused(f"{what}: {endpoint.authority} refused the connection") from exc
    except (OSError, trio.BrokenResourceError) as exc:
        raise ConnectFailed(f"{what}: cannot reach {endpoint.authority}: {exc}") from exc
    if ssl_context is None:
        return stream
    tls = trio.SSLStream(stream, ssl_context, server_hostname=endpoint.host, https_compatible=True)
    try:
        await tls.do_handshake()
    except (trio.BrokenResourceError, OSError, ssl.CertificateError) as exc:
        await trio.aclose_forcefully(tls)
        raise ConnectFailed(f"{what}: TLS handshake failed: {exc.__cause__ or exc}") from exc
    except BaseException:
        await trio.aclose_forcefully(tls)
        raise
    return tls


def handshake_fault(head: bytes, what: str, *, timed_out: bool) -> ProtocolError:
    """Why a handshake did not succeed, from the first bytes of its answer.

    A refusal is classified by its status, however its body looks, and never leaves the outcome unknown: what
    the caller wants done is sent only afterwards.

    Args:
        head: the first bytes of the answer.
        what: the connection in words, for the message.
        timed_out: the time was up.
    """
    answer, body = _parse(head)
    if isinstance(answer, h11.Response):
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in answer.headers}
        refused = status_failure(
            answer.status_code,
            what,
            body=body,
            retry_after_s=parse_retry_after(headers.get("retry-after"), date=headers.get("date")),
        )
        refused.outcome_unknown = False
        return refused
    if timed_out:
        return ConnectTimeout(f"{what}: no answer to the handshake in time")
    if head:
        return ProtocolViolation(f"{what}: the answer to the handshake is not a WebSocket's")
    return PeerClosed(f"{what}: the peer left during the handshake")


def _parse(head: bytes) -> tuple[object, bytes]:
    """The answer's head as h11 reads it, and what there is of its body."""
    parser = h11.Connection(h11.CLIENT)
    parser.send(h11.Request(method="GET", target="/", headers=[("host", "handshake")]))
    parser.send(h11.EndOfMessage())
    body = b""
    answer: object = None
    try:
        parser.receive_data(head)
        while (event := parser.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                break
            else:
                answer = event
    except h11.RemoteProtocolError:
        # What came before it still counts.
        return answer, body
    return answer, body


def end_fault(code: int, reason: str, what: str, *, sent: bool, limit_bytes: int) -> ProtocolError:
    """Why an established WebSocket ended, by its close code.

    Args:
        code: close code; 1006 when the connection broke.
        reason: the peer's words, for the message only.
        what: the connection in words, for the message.
        sent: a message of ours may have reached the peer.
        limit_bytes: our own bound of a message.
    """
    words = f"{what}: closed with code {code}" + (f": {reason[:200]}" if reason else "")
    if code in _VIOLATIONS:
        return ProtocolViolation(words, outcome_unknown=sent)
    if code == _TOO_BIG:
        return BodyTooLarge(
            f"{words}: a message exceeds {limit_bytes} bytes or the peer's bound", limit_bytes=limit_bytes
        )
    if (fault := CLOSE_FAULTS.get(code)) is not None:
        return ClosedWithCode(words, code=code, fault=fault, outcome_unknown=sent)
    return PeerClosed(words, outcome_unknown=sent)
