"""Servers for the tests of the protocol adapters: real sockets on loopback, any port."""

from __future__ import annotations

import functools
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

import pytest
import trio

from protocols.grpc_server import GRPCServerHandle, GRPCServerLimits, ServerTLS, serve_grpc
from protocols.grpc_service import CallHandler
from protocols.http_responder import Responder, ServerRequest
from protocols.http_server import ServerHandle, ServerLimits, serve_http

Handler = Callable[[ServerRequest, Responder], Awaitable[None]]


class Serve(Protocol):
    """Starts a server for the rest of the test."""

    async def __call__(self, handler: Handler, *, limits: ServerLimits | None = None) -> ServerHandle: ...


@pytest.fixture
def serve(nursery: trio.Nursery) -> Serve:
    async def start(handler: Handler, *, limits: ServerLimits | None = None) -> ServerHandle:
        handle = await nursery.start(functools.partial(serve_http, handler, limits=limits))
        assert isinstance(handle, ServerHandle)
        return handle

    return start


@pytest.fixture
def localhost_tls(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """A server's context for ``localhost``, and the certificate a client has to trust."""
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    )
    extra = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    try:
        subprocess.run([*command.split(), *extra], stderr=subprocess.DEVNULL, check=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("needs the openssl command to make a certificate")
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context, certificate


class ServeCalls(Protocol):
    """Starts a gRPC server for the rest of the test."""

    async def __call__(
        self, handler: CallHandler, *, limits: GRPCServerLimits | None = None, tls: ServerTLS | None = None
    ) -> GRPCServerHandle: ...


@pytest.fixture
def serve_calls(nursery: trio.Nursery) -> ServeCalls:
    async def start(
        handler: CallHandler, *, limits: GRPCServerLimits | None = None, tls: ServerTLS | None = None
    ) -> GRPCServerHandle:
        handle = await nursery.start(functools.partial(serve_grpc, handler, limits=limits, tls=tls))
        assert isinstance(handle, GRPCServerHandle)
        return handle

    return start
