"""Journal and control verbs on a listener of their own, for services whose protocol is not HTTP."""

from __future__ import annotations

import trio

from gateway.connectors.simulation.wire import ErrorKind
from protocols.http_responder import Responder, ServerRequest
from protocols.http_server import ServerHandle, serve_http
from simulator.model import refusal
from simulator.services.shell import SERVER_LIMITS, ServiceShell


async def serve_control(
    shell: ServiceShell,
    *,
    host: str,
    port: int = 0,
    task_status: trio.TaskStatus[ServerHandle] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``/journal`` and ``/control/...`` of one instance until cancelled; starts with the server's handle.

    Args:
        shell: the instance.
        host: address to listen on.
        port: port, or 0 for a free one.

    Raises:
        OSError: the port is taken, or the address is not ours.
    """

    async def handle(request: ServerRequest, responder: Responder) -> None:
        steered = shell.control(request)
        nothing = refusal(ErrorKind.NOT_FOUND, f"nothing at {request.method} {request.path}")
        await shell.send(nothing if steered is None else steered, responder)

    await serve_http(handle, host=host, port=port, limits=SERVER_LIMITS, task_status=task_status)
