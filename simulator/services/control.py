"""Journal and control verbs on a listener of their own, for services whose protocol is not HTTP."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import msgspec
import trio

from gateway.connectors.simulation.wire import ErrorKind
from protocols.http_responder import Responder, ServerRequest
from protocols.http_server import ServerHandle, serve_http
from simulator.model import Reply, refusal
from simulator.services.shell import SERVER_LIMITS, ServiceShell

#: ``GET`` shows, ``PUT`` changes in what a dialect's twin differs from others of its kind, where it has oddities.
CONTROL_ODDITIES_PATH = "/control/oddities"


class Odd(Protocol):
    """A twin with oddities of its own."""

    @property
    def oddities(self) -> msgspec.Struct: ...

    def set_oddities(self, values: Mapping[str, Any]) -> None:
        """Change some of them, or raise ``msgspec.ValidationError`` and change nothing."""
        ...


def steer_oddities(odd: Odd, request: ServerRequest) -> Reply | dict[str, Any] | None:
    """Answer a request about oddities; None for every other one."""
    if request.path != CONTROL_ODDITIES_PATH or request.method not in ("GET", "PUT"):
        return None
    if request.method == "PUT":
        try:
            odd.set_oddities(msgspec.json.decode(request.body, type=dict[str, Any]))
        except msgspec.DecodeError as error:
            return refusal(ErrorKind.VALIDATION, f"oddities: {error}")
    shown: dict[str, Any] = msgspec.to_builtins(odd.oddities)
    return shown


async def serve_control(
    shell: ServiceShell,
    *,
    host: str,
    port: int = 0,
    odd: Odd | None = None,
    task_status: trio.TaskStatus[ServerHandle] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve ``/journal`` and ``/control/...`` of one instance until cancelled; starts with the server's handle.

    Args:
        shell: the instance.
        host: address to listen on.
        port: port, or 0 for a free one.
        odd: the twin itself, where it has oddities to steer.

    Raises:
        OSError: the port is taken, or the address is not ours.
    """

    async def handle(request: ServerRequest, responder: Responder) -> None:
        steered = None if odd is None else steer_oddities(odd, request)
        if steered is None:
            steered = shell.control(request)
        nothing = refusal(ErrorKind.NOT_FOUND, f"nothing at {request.method} {request.path}")
        await shell.send(nothing if steered is None else steered, responder)

    await serve_http(handle, host=host, port=port, limits=SERVER_LIMITS, task_status=task_status)
