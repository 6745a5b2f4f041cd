"""PUT and DELETE on /services/ID: the call by which a service's own sidecar registers, renews and signs off.

It writes to the registry that every gateway of the queue follows, and asks for no password: ``api.registration`` is
off unless somebody who trusts the network of ``api.host`` turns it on.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from gateway.errors import InvalidRegistration, StoreError, StoreUnavailable
from gateway.registration import (
    DESCRIPTION_BYTES_MAX,
    SERVICES_MAX,
    TTL_S_DEFAULT,
    ServiceEntry,
    check_registration,
    check_service_id,
)
from gateway.store.fleet_scripts import RegisterStatus, Registration
from protocols.http_responder import Responder, ServerRequest

SERVICES_PREFIX = "/services/"
_METHODS = {"allow": "PUT, DELETE"}
#: An entry of the largest size, and room for white space, escapes and other orders of its keys.
BODY_BYTES_MAX = 2 * DESCRIPTION_BYTES_MAX


class ServicesStore(Protocol):
    """What the pages need of the store."""

    async def register(self, registrations: Sequence[Registration]) -> list[RegisterStatus]:
        """Register, renew or sign off services."""
        ...


class _Body(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of ``gateway register``; a misspelt one is refused rather than left out."""

    service: str
    url: str
    protocol: str = "http"
    instance: str = ""
    machine: str = ""
    healthy: bool = True
    capabilities: dict[str, Any] = {}
    ttl_s: float = TTL_S_DEFAULT


_decode = msgspec.json.Decoder(_Body).decode


class ServicePages:
    """Registers services for whoever may reach the port.

    Args:
        store: where registrations go; None refuses every call, in words.
    """

    def __init__(self, store: ServicesStore | None) -> None:
        self._store = store

    async def handle(self, request: ServerRequest, responder: Responder) -> None:
        """Answer one request below ``SERVICES_PREFIX``: 200 or 201, else one line in ``error``."""
        if self._store is None:
            error = "registration over HTTP is off: set api.registration = true, or use gateway register"
            await responder.send_json(403, {"error": error})
        elif request.method not in ("PUT", "DELETE"):
            await responder.send_json(405, {"error": "only PUT and DELETE"}, _METHODS)
        elif "origin" in request.headers:
            # Sidecars are no browsers. A page that a browser of this network has open must not register for it.
            await responder.send_json(403, {"error": "not from a web page: leave the header Origin out"})
        else:
            status, answer = await _answer(self._store, request)
            await responder.send_json(status, answer)


async def _answer(store: ServicesStore, request: ServerRequest) -> tuple[int, dict[str, Any]]:
    """Status and body; whatever can go wrong is a line."""
    try:
        registration = _registration(request)
        told = (await store.register([registration]))[0]
    except InvalidRegistration as error:
        return 400, {"error": str(error)}
    except StoreUnavailable as error:
        return 503, {"error": f"{error}; try again, it is safe to repeat"}
    except StoreError as error:
        return 500, {"error": str(error)}
    if told is RegisterStatus.FULL:
        return 507, {
            "error": f"{SERVICES_MAX} services are registered already: sign one off, or let it lapse"
        }
    name = "signed off" if told is RegisterStatus.GONE else told.value
    status = 201 if told is RegisterStatus.REGISTERED else 200
    return status, {"service": registration.service_id, "status": name}


def _registration(request: ServerRequest) -> Registration:
    """What the request asks for.

    Raises:
        InvalidRegistration: names the field.
    """
    service_id = urllib.parse.unquote(request.path.removeprefix(SERVICES_PREFIX))
    if request.method == "DELETE":
        check_service_id(service_id)
        return Registration(service_id, None)
    try:
        body = _decode(request.body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRegistration(
            f"body: {error} (a JSON object: {', '.join(_Body.__struct_fields__)})"
        ) from None
    fields = {name: getattr(body, name) for name in ServiceEntry.__struct_fields__}
    entry = ServiceEntry(**fields)
    check_registration(service_id, entry, body.ttl_s)
    return Registration(service_id, entry, body.ttl_s)
