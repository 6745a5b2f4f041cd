"""Typed façade over the Lua operations that concern the fleet: the registry of services, and overrides of settings."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.registration import SERVICES_MAX, RegisteredService, ServiceEntry, decode_entry, encode_entry
from gateway.store.calls import ScriptCall, milliseconds, script
from gateway.store.keys import QueueKeys

Raw = Sequence[bytes]
_REVISION = "_revision"


class ConfigureStatus(enum.StrEnum):
    """What became of a change of the overrides."""

    STORED = "stored"
    UNCHANGED = "unchanged"
    CONFLICT = "conflict"


class RegisterStatus(enum.StrEnum):
    """What became of one service's registration."""

    REGISTERED = "registered"
    RENEWED = "renewed"
    GONE = "gone"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Overrides:
    """The fleet's overrides of settings: JSON text by key, and the revision they were read at."""

    revision: int
    values: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Registration:
    """One service's sign of life; ``entry`` None signs it off."""

    service_id: str
    entry: ServiceEntry | None
    ttl_s: float = 0.0


def overrides_reply(raw: Mapping[bytes, bytes]) -> Overrides:
    """Read the queue's hash of overrides."""
    values = {key.decode(): value.decode("utf-8", "replace") for key, value in raw.items()}
    return Overrides(int(values.pop(_REVISION, "0")), values)


def configure_call(
    keys: QueueKeys, revision: int, changes: Mapping[str, str], *, events_max: int
) -> ScriptCall:
    """See ``configure.lua``. An empty value removes its key."""
    args: list[str | bytes | int] = [revision, len(changes), events_max]
    for key, value in changes.items():
        args += (key, value)
    return ScriptCall(script("configure"), [keys.config, keys.events, keys.wake], args)


def configure_reply(raw: Raw) -> tuple[ConfigureStatus, int]:
    """Status and the revision afterwards."""
    return ConfigureStatus(raw[0].decode()), int(raw[1])


def register_call(keys: QueueKeys, registrations: Sequence[Registration]) -> ScriptCall:
    """See ``register.lua``. Entries must be checked before."""
    args: list[str | bytes | int] = [SERVICES_MAX, len(registrations)]
    for item in registrations:
        description = b"" if item.entry is None else encode_entry(item.entry)
        args += (item.service_id, milliseconds(item.ttl_s), description)
    return ScriptCall(script("register"), [keys.services, keys.wake], args)


def register_reply(raw: Raw) -> list[RegisterStatus]:
    """Statuses in the order of the registrations."""
    return [RegisterStatus(status.decode()) for status in raw[1:]]


def discover_call(keys: QueueKeys) -> ScriptCall:
    """See ``discover.lua``."""
    return ScriptCall(script("discover"), [keys.services], [])


def discover_reply(raw: Raw) -> tuple[int, list[RegisteredService]]:
    """Redis time in milliseconds, and the living services by id; unreadable entries are left out."""
    found = []
    for at in range(1, len(raw), 4):
        entry = decode_entry(raw[at + 3])
        if entry is not None:
            found.append(RegisteredService(raw[at].decode(), entry, int(raw[at + 1]), int(raw[at + 2])))
    return int(raw[0]), sorted(found, key=lambda service: service.id)
