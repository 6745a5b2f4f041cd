"""Serving one simulated instance over HTTP (and WebSocket): the part that is the same whatever it says."""

from __future__ import annotations

import abc
import functools
from typing import Generic, TypeVar

import trio

from protocols.http_responder import Responder, ServerRequest
from protocols.http_server import ServerHandle, serve_http, serve_stream
from simulator.behaviour import SimulatedService
from simulator.services.shell import SERVER_LIMITS, ServiceShell

ShellT = TypeVar("ShellT", bound=ServiceShell)


class HTTPServed(abc.ABC, Generic[ShellT]):
    """Base of the instances that live on the small HTTP server; a subclass answers requests of the service itself.

    Attributes:
        shell: everything but the protocol.
    """

    shell: ShellT

    @property
    def service(self) -> SimulatedService:
        """The behaviour behind the wire, for tests that share a process with it."""
        return self.shell.service

    async def run(
        self, *, host: str, port: int, task_status: trio.TaskStatus[ServerHandle] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve on a TCP port until cancelled; starts with the server's handle (its port and URL).

        Args:
            host: address to listen on.
            port: port, or 0 for a free one.

        Raises:
            OSError: the port is taken, or the address is not ours.
        """
        async with trio.open_nursery() as nursery:
            listen = functools.partial(serve_http, self.handle, host=host, port=port, limits=SERVER_LIMITS)
            handle: ServerHandle = await nursery.start(listen)
            self.service.listening_on(host, handle.port)
            if self.shell.ticking:
                nursery.start_soon(self.shell.tick)
            task_status.started(handle)

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        """Serve one connection until it ends; closes the stream."""
        await serve_stream(self.handle, stream, limits=SERVER_LIMITS)

    async def handle(self, request: ServerRequest, responder: Responder) -> None:
        """Answer one request: journal and control at any time, all else unless the instance is paused."""
        steered = self.shell.control(request)
        if steered is not None:
            await self.shell.send(steered, responder)
            return
        await self.shell.not_paused()
        await self.answer(request, responder)

    @abc.abstractmethod
    async def answer(self, request: ServerRequest, responder: Responder) -> None:
        """Answer one request of the service itself; faults apply."""
