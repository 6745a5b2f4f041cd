"""Serving one simulated instance over gRPC: the part that is the same whatever it says."""

from __future__ import annotations

import abc
import functools
from typing import ClassVar

import trio

from protocols.grpc_server import GRPCServerHandle, GRPCServerLimits, serve_grpc
from protocols.grpc_service import IncomingCall
from simulator.behaviour import SimulatedService
from simulator.services.grpc_wire import serve_calls
from simulator.services.shell import ServiceShell


class GRPCServed(abc.ABC):
    """Base of the instances that live on a gRPC server; a subclass answers calls.

    Attributes:
        limits: bounds of its server.
        shell: everything but the protocol.
    """

    limits: ClassVar[GRPCServerLimits]
    shell: ServiceShell

    @property
    def service(self) -> SimulatedService:
        """The behaviour behind the wire, for tests that share a process with it."""
        return self.shell.service

    async def run(
        self,
        *,
        host: str,
        port: int,
        task_status: trio.TaskStatus[GRPCServerHandle] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve on a TCP port until cancelled; starts with the server's handle (its port and URL).

        Args:
            host: address to listen on.
            port: port, or 0 for a free one.

        Raises:
            OSError: the port is taken, or the address is not ours.
        """
        async with trio.open_nursery() as nursery:
            listen = functools.partial(serve_grpc, self.handle, host=host, port=port, limits=self.limits)
            handle: GRPCServerHandle = await nursery.start(listen)
            self.service.listening_on(host, handle.port)
            if self.shell.ticking:
                nursery.start_soon(self.shell.tick)
            task_status.started(handle)

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        """Serve one connection of a simulated network until it ends; closes the stream."""
        await serve_calls(self.handle, stream, request_bytes_max=self.limits.request_bytes_max)

    @abc.abstractmethod
    async def handle(self, call: IncomingCall) -> None:
        """Answer one call; for ``serve_grpc``, or any channel that leads here.

        Raises:
            CallEnded: the call ends with another status than OK.
        """
