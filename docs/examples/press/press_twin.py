"""The press, simulated: how it speaks, over the simulator's own behaviour, faults and journal."""

from functools import partial

import trio

from gateway.connectors.simulation.wire import ErrorKind, SubmitRequest
from protocols.http_server import serve_http, serve_stream
from simulator.contract import Dialect
from simulator.model import refusal
from simulator.services.shell import SERVER_LIMITS, ServiceShell, caller_of


class PressTwin:
    """One simulated press."""

    def __init__(self, config, plan, *, random_for, sink=None):
        self.shell = ServiceShell(config, plan, random_for=random_for, sink=sink)

    async def run(self, *, host, port, task_status=trio.TASK_STATUS_IGNORED):
        """Serve on a port; for tests over real sockets."""
        async with trio.open_nursery() as nursery:
            listen = partial(serve_http, self.handle, host=host, port=port, limits=SERVER_LIMITS)
            handle = await nursery.start(listen)
            self.shell.service.listening_on(host, handle.port)
            if self.shell.ticking:
                nursery.start_soon(self.shell.tick)
            task_status.started(handle)

    async def serve_stream(self, stream):
        """Serve one connection; for tests in memory, under virtual time."""
        await serve_stream(self.handle, stream, limits=SERVER_LIMITS)

    async def handle(self, request, responder):
        """Answer one request, faults included."""
        answer = self.shell.control(request)  # journal and control verbs
        if answer is None:
            await self.shell.not_paused()
            answer = self.answer(request)
            self.shell.wake()
        await self.shell.send(answer, responder)

    def answer(self, request):
        """What the press says; the behaviour behind it decides, and draws the faults."""
        service, now_s, caller = self.shell.service, trio.current_time(), caller_of(request.headers)
        page = request.path.removeprefix("/pages/")
        match request.method, page:
            case "GET", "/ready":
                return service.health(now_s, caller)
            case "PUT", _:
                return service.submit(now_s, SubmitRequest(id=page, payload=request.json()), caller)
            case "GET", _:
                return service.status(now_s, page, caller)
            case "DELETE", _:
                return service.cancel(now_s, page, caller)
        return refusal(ErrorKind.NOT_FOUND, f"nothing at {request.method} {request.path}")


NO_EVENTS = "a press sends no events, it is asked"
PRESS = Dialect(
    name="press",
    twin=PressTwin,
    scheme="http",
    port=8500,
    connectors=("press-http",),
    cannot={
        "credentials": "a press asks for no credentials",
        "progress": "a press does not tell how far a page has come",
        "disconnect_rate": NO_EVENTS,
        "half_open_rate": NO_EVENTS,
        "lost_completion_rate": NO_EVENTS,
        "duplicate_event_rate": NO_EVENTS,
        "out_of_order_rate": NO_EVENTS,
        "event_after_terminal_rate": NO_EVENTS,
    },
)
