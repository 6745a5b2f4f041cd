"""The small protocol below the gRPC adapter: what a channel does, in bytes (no I/O, no gRPC library).

``protocols.grpc_core`` implements it on grpcio, whose core owns threads and sockets. Whatever decides (deadlines,
bounds, classification, the connectors) stands above it, so that a simulation may put another channel below.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from protocols.base import Endpoint

#: Values of names that end with ``-bin`` are bytes, all others text.
Metadata = Sequence[tuple[str, str | bytes]]


class Code(enum.IntEnum):
    """The status codes of gRPC, numbered as on the wire."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class CallEnded(Exception):
    """A call ended with a status other than OK.

    Attributes:
        code: the status.
        details: its text, for people.
        metadata: trailing metadata; the last value of a repeated name.
    """

    def __init__(
        self, code: Code, details: str = "", metadata: Mapping[str, str | bytes] | None = None
    ) -> None:
        super().__init__(f"{code.name}: {details}" if details else code.name)
        self.code = code
        self.details = details
        self.metadata: Mapping[str, str | bytes] = metadata or {}


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSSettings:
    """How a peer proves who it is, and we to it; PEM in all.

    Attributes:
        ca: certificates to trust; None for those of the gRPC library.
        certificate, key: our own, both or neither.
        server_name: name expected in the peer's certificate; empty for the endpoint's host.
    """

    ca: bytes | None = None
    certificate: bytes | None = None
    key: bytes | None = field(default=None, repr=False)
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a client certificate needs its key, and a key its certificate")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelSettings:
    """What a channel is opened with.

    Attributes:
        response_bytes_max: largest message taken in.
        streams_max: streams that are read at once.
        reconnect_s: longest pause between two attempts to connect, seconds.
        tls: for ``grpcs``.
    """

    response_bytes_max: int
    streams_max: int
    reconnect_s: float
    tls: TLSSettings = field(default_factory=TLSSettings)


class MessageStream(Protocol):
    """The answers of one streaming call."""

    async def receive(self) -> bytes | None:
        """The next message, or None when the stream ended well. One reader; cancelled, the call is over.

        Raises:
            CallEnded: the stream ended badly.
        """
        ...


class Channel(Protocol):
    """Calls to one endpoint. A cancelled caller cancels the call, and the peer learns of it."""

    async def connect(self) -> None:
        """Return once the peer can be called; until then nothing is sent. Waits without a bound of its own.

        Raises:
            ConnectionError: the peer cannot be reached now, or the channel is closed.
        """
        ...

    async def unary(self, path: str, request: bytes, *, metadata: Metadata, timeout_s: float) -> bytes:
        """Call, and receive one message.

        Args:
            path: ``/package.Service/Method``.
            request: the message.
            metadata: names in lower case.
            timeout_s: the deadline that the peer is told, seconds from now.

        Raises:
            CallEnded: any status but OK.
        """
        ...

    def stream(
        self, path: str, request: bytes, *, metadata: Metadata, timeout_s: float
    ) -> AbstractAsyncContextManager[MessageStream]:
        """Call, and receive many messages; leaving the block cancels the call. Arguments as in ``unary``."""
        ...

    async def aclose(self) -> None:
        """End all calls with CANCELLED and close. Idempotent, bounded, also for a cancelled caller."""
        ...


class OpenChannel(Protocol):
    """The seam at which channels open: grpcio, or a simulated one. Nothing connects before the first call."""

    def __call__(self, endpoint: Endpoint, settings: ChannelSettings, /) -> Channel:
        """Prepare a channel."""


def open_grpcio(endpoint: Endpoint, settings: ChannelSettings) -> Channel:
    """The default: grpcio, loaded with the first channel so that nobody else pays for its threads."""
    from protocols.grpc_core import GrpcioChannel

    return GrpcioChannel(endpoint, settings)
