"""Serves /metrics, /livez, /readyz and a small status page, on the loopback address unless told otherwise.

The pages have no authentication and change nothing, unless ``api.registration`` lets sidecars register services; what
they show (names of queues, workers and endpoints) is for the operator's own network.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import html
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol

import trio

from gateway.api.services import BODY_BYTES_MAX, SERVICES_PREFIX, ServicePages, ServicesStore
from gateway.config import ApiConfig
from gateway.errors import ConfigError
from protocols.http_responder import Responder, ServerRequest
from protocols.http_server import ServerHandle, ServerLimits, serve_http

#: A loop this far behind can no longer renew leases of the default length (15 s) in time: restart the process.
LAG_MAX_S = 5.0
#: The pages take no input: scrapers, probes and a browser need no more.
_LIMITS = ServerLimits(
    connections_max=64,
    header_bytes_max=16 * 1024,
    body_bytes_max=1024,
    idle_timeout_s=60.0,
    write_timeout_s=10.0,
    backlog=64,
)
_NO_STORE = {"cache-control": "no-store"}

#: What the process says of itself; see ``serve_api`` for the keys.
Status = Callable[[], Mapping[str, Any]]


class Measured(Protocol):
    """What the pages need of the telemetry."""

    lag_s: float

    def exposition(self) -> tuple[bytes, str]:
        """The metrics as a Prometheus page: body and content type."""
        ...


def unready(status: Mapping[str, Any]) -> list[str]:
    """Why no work should be expected of this process now; empty when it is ready."""
    reasons = []
    if status["draining"]:
        reasons.append("draining: the process is shutting down")
    if not status["store_available"]:
        reasons.append("store: Redis does not answer")
    workers = status["workers"]
    if not workers:
        reasons.append("workers: none is configured")
    elif not any(worker["healthy"] for worker in workers):
        reasons.append(f"workers: none of {len(workers)} is healthy")
    return reasons


class _Pages:
    """The handlers, by path."""

    def __init__(self, telemetry: Measured, status: Status, services: ServicesStore | None) -> None:
        self._telemetry = telemetry
        self._status = status
        self._paths: dict[str, Callable[[ServerRequest, Responder], Awaitable[None]]] = {
            "/": self._index,
            "/metrics": self._metrics,
            "/livez": self._live,
            "/readyz": self._ready,
        }
        self._services = ServicePages(services)
        self._known = [*self._paths, *([] if services is None else [f"{SERVICES_PREFIX}ID"])]

    async def handle(self, request: ServerRequest, responder: Responder) -> None:
        page = self._paths.get(request.path)
        if request.path.startswith(SERVICES_PREFIX):
            await self._services.handle(request, responder)
        elif page is None:
            await responder.send_json(404, {"error": "not found", "known": self._known})
        elif request.method not in ("GET", "HEAD"):
            await responder.send_json(405, {"error": "only GET and HEAD"}, {"allow": "GET, HEAD"})
        else:
            await page(request, responder)

    async def _metrics(self, _request: ServerRequest, responder: Responder) -> None:
        body, content_type = self._telemetry.exposition()
        await responder.send_bytes(200, body, content_type)

    async def _live(self, _request: ServerRequest, responder: Responder) -> None:
        lag_s = self._telemetry.lag_s
        alive = lag_s <= LAG_MAX_S
        answer = {"alive": alive, "event_loop_lag_s": lag_s, "limit_s": LAG_MAX_S}
        await responder.send_json(200 if alive else 503, answer, _NO_STORE)

    async def _ready(self, _request: ServerRequest, responder: Responder) -> None:
        reasons = unready(self._status())
        answer = {"ready": not reasons, "reasons": reasons}
        await responder.send_json(503 if reasons else 200, answer, _NO_STORE)

    async def _index(self, request: ServerRequest, responder: Responder) -> None:
        status = self._status()
        reasons = unready(status)
        if "text/html" not in request.headers.get("accept", ""):
            answer = {**status, "ready": not reasons, "reasons": reasons}
            await responder.send_json(200, answer, _NO_STORE)
            return
        body = _page(status, reasons).encode()
        await responder.send_bytes(200, body, "text/html; charset=utf-8", _NO_STORE)


_STYLE = (
    ":root{color-scheme:light dark;--dim:#5b6b7b;--line:#d5dde5;--good:#0a7a3d;--bad:#b3261e}"
    "@media(prefers-color-scheme:dark){:root{--dim:#9aa9b8;--line:#3a4652;--good:#5fd08f;--bad:#ff8a80}}"
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem}"
    "h1{font-size:1.3rem}.good{color:var(--good)}.bad{color:var(--bad)}.verdict{font-weight:600}"
    "dl{display:grid;grid-template-columns:max-content 1fr;gap:.2rem 1.5rem}"
    "dt{color:var(--dim)}dd{margin:0;overflow-wrap:anywhere}"
    ".wide{overflow-x:auto}table{border-collapse:collapse;margin:1rem 0}"
    "th,td{text-align:left;padding:.3rem 1.2rem .3rem 0;border-bottom:1px solid var(--line);white-space:nowrap}"
    "td:last-child{white-space:normal;min-width:16rem}"
    "th{color:var(--dim);font-weight:400}a{color:inherit;margin-right:1rem}"
)
#: Words for keys of the status; other keys are shown with spaces for underscores.
_WORDS = {
    "store_available": "Redis answers",
    "loop_lag_s": "event loop lag, s",
    "jobs": "jobs running here",
    "spooled": "results waiting on disk",
    "restart_needed": "restart needed for",
    "refusal": "state",
}
#: What an empty value means where it says something.
_EMPTY = {"refusal": "claims", "restart_needed": "nothing"}


def _page(status: Mapping[str, Any], reasons: list[str]) -> str:
    """The status for a browser: no script, no style from elsewhere, every value escaped."""
    ready = f"not ready: {'; '.join(reasons)}" if reasons else "ready"
    facts = "".join(
        f"<dt>{_word(key)}</dt><dd>{_value(key, value)}</dd>"
        for key, value in status.items()
        if key != "workers"
    )
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="5">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>gateway: {_text(ready)}</title><style>{_STYLE}</style>"
        f'<h1>gateway</h1><p class="verdict {"bad" if reasons else "good"}">{_text(ready)}</p>'
        f"<dl>{facts}</dl>{_table(status['workers'])}"
        '<p><a href="/metrics">metrics</a> <a href="/livez">livez</a> <a href="/readyz">readyz</a></p></html>'
    )


def _table(workers: list[Mapping[str, Any]]) -> str:
    """The workers, one that does not claim in another colour."""
    if not workers:
        return ""
    columns = list(workers[0])
    head = "".join(f"<th>{_word(column)}</th>" for column in columns)
    rows = "".join(
        ('<tr class="bad">' if worker.get("refusal") or not worker["healthy"] else "<tr>")
        + "".join(f"<td>{_value(column, worker.get(column, ''))}</td>" for column in columns)
        + "</tr>"
        for worker in workers
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _word(key: str) -> str:
    return _text(_WORDS.get(key, key.replace("_", " ")))


def _value(key: str, value: object) -> str:
    return _text(_EMPTY.get(key, "") if value == "" else value)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return html.escape(f"{value:.3f}" if isinstance(value, float) else str(value))


async def serve_api(
    config: ApiConfig,
    telemetry: Measured,
    status: Status,
    *,
    services: ServicesStore | None = None,
    task_status: trio.TaskStatus[ServerHandle] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the pages until cancelled; start it with ``nursery.start``, which returns a handle with ``port``.

    Args:
        config: address; call it only when ``config.port`` is set.
        telemetry: source of the metrics and of the event loop's lag.
        status: called for each page. Keys: ``draining`` and ``store_available`` (true or false), ``workers`` (a list
            of flat mappings with at least ``healthy``); whatever else is there is shown on the status page.
        services: the store for services that register here; used only with ``config.registration``.
        task_status: receives the handle once connections are accepted.

    Raises:
        ConfigError: the address cannot be bound.
    """
    if config.port is None:
        raise ConfigError("api.port: not set, so there is nothing to serve")
    allowed = services if config.registration else None
    limits = _LIMITS if allowed is None else dataclasses.replace(_LIMITS, body_bytes_max=BODY_BYTES_MAX)
    serve = functools.partial(serve_http, host=config.host, port=config.port, limits=limits)
    try:
        await serve(_Pages(telemetry, status, allowed).handle, task_status=task_status)
    except OSError as error:
        raise _refused(config, error) from None


def _refused(config: ApiConfig, error: OSError) -> ConfigError:
    """The one line for an address that cannot be bound."""
    if error.errno == errno.EADDRINUSE:
        return ConfigError(f"api.port: {config.port} on {config.host} is in use by another process")
    reason = error.strerror or str(error)
    return ConfigError(f"api.host, api.port: cannot listen on {config.host} port {config.port}: {reason}")
