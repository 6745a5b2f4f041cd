"""What all adapters share: where a peer is, how a byte stream to it opens, what a health probe says."""

from __future__ import annotations

import abc
import math
import urllib.parse
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Protocol, Self

import trio

from protocols.errors import EndpointError, FaultKind

#: Schemes and their default ports; None: the port must be given. The registered ones are 80 and 443 (RFC
#: 9110, RFC 6455).
DEFAULT_PORTS: MappingProxyType[str, int | None] = MappingProxyType(
    {"http": 80, "https": 443, "ws": 80, "wss": 443, "grpc": None, "grpcs": None}
)
SECURE_SCHEMES = frozenset({"https", "wss", "grpcs"})

#: How long the default opener tries, seconds: long enough for two lost SYN packets (retransmitted after 1 and
#: 3 s).
CONNECT_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """The address of one instance of a service.

    Attributes:
        scheme: one of ``DEFAULT_PORTS``.
        host: name or address; an IPv6 address without brackets.
        port: 1..65535.
        path: prefix of every path below it, ``""`` or ``/v1`` without a slash at its end.
        name: label for people and logs; never parsed.
    """

    scheme: str
    host: str
    port: int
    path: str = ""
    name: str = ""

    def __post_init__(self) -> None:
        """Refuse what could not be dialled.

        Raises:
            EndpointError: a field is wrong.
        """
        if self.scheme not in DEFAULT_PORTS:
            raise EndpointError(f"unknown scheme {self.scheme!r}: known are {', '.join(DEFAULT_PORTS)}")
        if not self.host or any(c.isspace() or c in "/?#@[]" for c in self.host):
            raise EndpointError(f"not a host: {self.host!r}")
        if not 1 <= self.port <= 65535:
            raise EndpointError(f"port {self.port} is not within 1..65535")
        if self.path and (not self.path.startswith("/") or self.path.endswith("/")):
            raise EndpointError(f"path {self.path!r} must begin with a slash and not end with one")

    @classmethod
    def parse(cls, text: str, *, name: str = "") -> Self:
        """Read ``scheme://host[:port][/path]``.

        Args:
            text: the address. Credentials, query and fragment are refused: secrets do not belong into an
                address that appears in logs.
            name: label for people.

        Raises:
            EndpointError: with what is wrong; the text itself is not repeated where it may hold a secret.
        """
        try:
            parts = urllib.parse.urlsplit(text.strip())
            port = parts.port
        except ValueError as exc:
            raise EndpointError(f"not an address (scheme://host:port): {exc}") from None
        if not parts.scheme or not parts.netloc:
            raise EndpointError(f"not an address (scheme://host:port): {text!r}")
        if "@" in parts.netloc:
            raise EndpointError("an address must not carry credentials; configure them as headers")
        if parts.query or parts.fragment:
            raise EndpointError("an address must not carry a query or a fragment")
        if port is None:
            port = DEFAULT_PORTS.get(parts.scheme)
        if port is None and parts.scheme in DEFAULT_PORTS:
            raise EndpointError(
                f"{parts.scheme} has no default port: give one, as in {parts.scheme}://host:8001"
            )
        return cls(
            scheme=parts.scheme,
            host=parts.hostname or "",
            port=0 if port is None else port,
            path=parts.path.rstrip("/"),
            name=name,
        )

    @property
    def secure(self) -> bool:
        """Whether TLS is spoken."""
        return self.scheme in SECURE_SCHEMES

    @property
    def authority(self) -> str:
        """``host:port``, an IPv6 address in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The whole address, without a slash at its end."""
        return f"{self.scheme}://{self.authority}{self.path}"

    def __str__(self) -> str:
        return f"{self.name} ({self.url})" if self.name else self.url


class OpenStream(Protocol):
    """The seam at which byte streams to services open: real TCP, or a simulated network.

    Raises ``ConnectionRefusedError`` when nobody listens, any other ``OSError`` or
    ``trio.BrokenResourceError`` when the peer cannot be reached, ``trio.TooSlowError`` when it takes too
    long. A stream that can tell without waiting whether a read would return at once offers ``is_readable() ->
    bool``; one that cannot is not kept alive between requests.
    """

    async def __call__(self, host: str, port: int, /) -> trio.abc.Stream:
        """Open a stream to ``host``, ``port``."""


@dataclass(frozen=True, slots=True)
class TCPOpener:
    """The default ``OpenStream``: real TCP, IPv6 and IPv4 raced (RFC 8305), bounded.

    Attributes:
        connect_timeout_s: seconds for name resolution and all attempts together.
    """

    connect_timeout_s: float = CONNECT_TIMEOUT_S

    async def __call__(self, host: str, port: int) -> trio.abc.Stream:
        """Connect.

        Raises:
            ConnectionRefusedError: every address refused.
            OSError: the name is unknown or no address can be reached.
            trio.TooSlowError: not connected in time.
        """
        with trio.fail_after(self.connect_timeout_s):
            try:
                return await trio.open_tcp_stream(host, port)
            except OSError as exc:
                causes = exc.__cause__
                if isinstance(causes, BaseExceptionGroup) and causes.split(ConnectionRefusedError)[1] is None:
                    raise ConnectionRefusedError(f"{host}:{port} refused the connection") from exc
                raise


open_tcp = TCPOpener()


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthReport:
    """What one probe found.

    Attributes:
        healthy: the peer answered as a healthy one does.
        detail: for people, one line.
        latency_s: seconds the probe took.
        fault: kind of trouble, None when healthy.
        body: what a healthy peer answered, where its protocol has an answer.
    """

    healthy: bool
    detail: str
    latency_s: float
    fault: FaultKind | None = None
    body: bytes = b""


class ProtocolAdapter(abc.ABC):
    """A transport to one endpoint. It knows no service; it closes everything it opened."""

    @property
    @abc.abstractmethod
    def endpoint(self) -> Endpoint:
        """The only peer this adapter ever talks to."""

    @abc.abstractmethod
    async def health(self, target: str) -> HealthReport:
        """Probe once; a fault is reported, never raised.

        Args:
            target: what to ask, in the protocol's own terms: a path, or a service name.
        """

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Close all connections. Idempotent; a cancelled caller closes them too."""

    async def __aenter__(self) -> Self:
        """Use as ``async with``: closed at its end."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        await self.aclose()


def require_positive(**seconds_or_counts: float) -> None:
    """Refuse limits that cannot work.

    Raises:
        ValueError: a limit is not a positive finite number; the message names it.
    """
    for name, value in seconds_or_counts.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} must be positive and finite, not {value!r}")
