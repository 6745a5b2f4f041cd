"""Options that every gRPC connector takes: how a peer proves who it is, how we do, and how many calls there may be."""

from __future__ import annotations

from pathlib import Path

import msgspec

from gateway.connector import ConnectorSetup
from gateway.errors import ConfigError
from protocols.grpc import GRPCAdapter, GRPCLimits
from protocols.grpc_channel import TLSSettings
from protocols.grpc_status import STATUS_DETAILS

MIB = 1024 * 1024
#: A certificate chain is a few KiB.
PEM_BYTES_MAX = 1 * MIB


class GRPCOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options in ``[workers.X.options]``.

    Attributes:
        tls_ca_file: PEM file of the certificates to trust, for ``grpcs://``; empty for those of the gRPC library.
        tls_certificate_file, tls_key_file: our own, where the service wants clients to prove themselves.
        tls_server_name: name expected in the service's certificate, when it is not the endpoint's host.
        token: sent as ``authorization: Bearer …`` with every call, over ``grpcs://`` only.
        calls_max: calls at once; a job holds one.
        message_bytes_max: largest message in either direction, bytes.
        connect_timeout_s: longest time for a connection to come about, seconds.
        request_timeout_s: longest single request, seconds.
        stall_s: longest silence before a service that can be asked is asked, seconds.
    """

    tls_ca_file: str = ""
    tls_certificate_file: str = ""
    tls_key_file: str = ""
    tls_server_name: str = ""
    token: str = ""
    calls_max: int = 64
    message_bytes_max: int = 64 * MIB
    connect_timeout_s: float = 5.0
    request_timeout_s: float = 10.0
    stall_s: float = 1.0

    def __post_init__(self) -> None:
        bounds = {
            "calls_max": self.calls_max,
            "message_bytes_max": self.message_bytes_max,
            "connect_timeout_s": self.connect_timeout_s,
            "request_timeout_s": self.request_timeout_s,
            "stall_s": self.stall_s,
        }
        for name, value in bounds.items():
            if value <= 0:
                raise ValueError(f"{name} must be positive, not {value}")


def open_adapter(
    setup: ConnectorSetup, options: GRPCOptions, *, key: str, detail_name: str = STATUS_DETAILS
) -> GRPCAdapter:
    """The adapter that these options describe; nothing connects before the first call.

    Args:
        setup: the connector's.
        options: the validated options.
        key: the connector's, for messages.
        detail_name: see ``GRPCAdapter``.

    Raises:
        ConfigError: a file cannot be read, an endpoint is not one for gRPC, or a secret would travel in clear text.
    """
    try:
        return GRPCAdapter(
            setup.endpoint,
            open_channel=setup.open_channel,
            open_stream=setup.open_stream,
            limits=GRPCLimits(
                # A second call of the same job asks or cancels while the first one runs.
                calls_max=2 * options.calls_max,
                streams_max=options.calls_max,
                connect_timeout_s=options.connect_timeout_s,
                call_timeout_s=options.request_timeout_s,
                request_bytes_max=options.message_bytes_max,
                response_bytes_max=options.message_bytes_max,
            ),
            auth_metadata={"authorization": f"Bearer {options.token}"} if options.token else None,
            tls=_tls(options),
            detail_name=detail_name,
        )
    except ValueError as error:
        raise ConfigError(f"options of {key}: {error}") from None


def _tls(options: GRPCOptions) -> TLSSettings | None:
    """The TLS settings; None when the options name none."""
    if not (
        options.tls_ca_file or options.tls_certificate_file or options.tls_key_file or options.tls_server_name
    ):
        return None
    return TLSSettings(
        ca=_pem("tls_ca_file", options.tls_ca_file),
        certificate=_pem("tls_certificate_file", options.tls_certificate_file),
        key=_pem("tls_key_file", options.tls_key_file),
        server_name=options.tls_server_name,
    )


def _pem(option: str, name: str) -> bytes | None:
    if not name:
        return None
    try:
        with Path(name).open("rb") as file:
            content = file.read(PEM_BYTES_MAX + 1)
    except OSError as error:
        raise ValueError(f"{option} {name!r} cannot be read: {error.strerror}") from None
    if len(content) > PEM_BYTES_MAX or b"-----BEGIN" not in content:
        raise ValueError(f"{option} {name!r} is not a PEM file")
    return content
