"""What a service says of itself in the registry: its address, and by what a worker may choose it (pure)."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from gateway.errors import InvalidRegistration
from protocols.base import DEFAULT_PORTS, Endpoint
from protocols.errors import EndpointError

_ID = re.compile(r"[A-Za-z0-9_.:/-]{1,128}")
_WORD = re.compile(r"[a-z0-9_.]{1,64}")
PROTOCOLS = ("http", "websocket", "grpc")
#: An entry is read by every gateway at every change: an address and a list of models, not a catalogue.
DESCRIPTION_BYTES_MAX = 64 * 1024
#: Services of one queue.
SERVICES_MAX = 10_000
TTL_S_DEFAULT = 30.0
TTL_S_MAX = 24 * 3600.0


class ServiceEntry(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One instance of a service.

    Attributes:
        service: kind of backend, for example ``comfyui``.
        url: base address.
        protocol: transport spoken there, as in a connector's key: http, websocket or grpc.
        instance: the instance's own name, as it tells it to clients; a label.
        machine: the host it runs on; a label.
        healthy: what the instance, or who registered it, says of its health; an unhealthy one is not chosen.
        capabilities: what jobs may require of it, beside what the worker's configuration says.
    """

    service: str
    url: str
    protocol: str
    instance: str = ""
    machine: str = ""
    healthy: bool = True
    capabilities: dict[str, Any] = {}

    def facts(self) -> dict[str, Any]:
        """What predicates are judged by: the capabilities and the labels."""
        labels = {"service": self.service, "protocol": self.protocol, "instance": self.instance}
        return {**self.capabilities, **labels, "machine": self.machine, "url": self.url}


class RegisteredService(msgspec.Struct, frozen=True):
    """An entry that is alive.

    Attributes:
        id: its name in the registry; a label, nothing is parsed from it.
        ends_ms: Redis time at which it lapses unless it is renewed.
        since_ms: Redis time since which it says the same.
    """

    id: str
    entry: ServiceEntry
    ends_ms: int
    since_ms: int


_decode = msgspec.json.Decoder(ServiceEntry).decode
_encode = msgspec.json.Encoder(order="deterministic").encode


def encode_entry(entry: ServiceEntry) -> bytes:
    """An entry as the registry keeps it: equal entries give equal bytes."""
    return _encode(entry)


def decode_entry(data: bytes) -> ServiceEntry | None:
    """Read an entry back; None for one that a newer version wrote in a form unknown here."""
    try:
        return _decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def check_service_id(service_id: str) -> None:
    """Refuse what is no name of an entry.

    Raises:
        InvalidRegistration: says what a name is made of.
    """
    if not _ID.fullmatch(service_id):
        raise InvalidRegistration(
            f"service id {service_id!r}: use 1 to 128 letters, digits, '.', ':', '/', '-' or '_'"
        )


def check_registration(service_id: str, entry: ServiceEntry, ttl_s: float) -> None:
    """Refuse an entry that no worker could use.

    Args:
        service_id: its name in the registry.
        ttl_s: how long it is to be believed, seconds.

    Raises:
        InvalidRegistration: names the field and the value.
    """
    check_service_id(service_id)
    if not _WORD.fullmatch(entry.service):
        raise InvalidRegistration(f"service {entry.service!r}: use lower case letters, digits, '.' or '_'")
    if entry.protocol not in PROTOCOLS:
        raise InvalidRegistration(f"protocol {entry.protocol!r}: known are {', '.join(PROTOCOLS)}")
    try:
        Endpoint.parse(entry.url)
    except EndpointError as error:
        raise InvalidRegistration(f"url: {error} (schemes: {', '.join(DEFAULT_PORTS)})") from None
    if not 0.1 <= ttl_s <= TTL_S_MAX:
        raise InvalidRegistration(f"ttl_s = {ttl_s:g}: use 0.1 to {TTL_S_MAX:g} seconds")
    for name, value in entry.capabilities.items():
        items = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str | int | float | bool) for item in items):
            raise InvalidRegistration(f"capability {name!r}: use text, number, true/false or a list of these")
    size = len(encode_entry(entry))
    if size > DESCRIPTION_BYTES_MAX:
        raise InvalidRegistration(f"capabilities: {size} bytes of JSON, at most {DESCRIPTION_BYTES_MAX}")
