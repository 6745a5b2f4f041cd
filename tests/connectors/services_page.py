"""What docs/services.md must say of each connector, read off the connector itself."""

from __future__ import annotations

import random

import msgspec
import trio

from gateway.connector import Connector, ConnectorSetup
from gateway.connectors.registry import BUILTIN_KEYS, default_registry
from protocols.base import Endpoint, open_tcp
from simulator.contract.case import CAPABILITIES
from simulator.dialects.catalogue import dialect_of


def made(key: str) -> Connector:
    """A connector with default options, connected to nobody."""
    spoken = dialect_of(key)
    scheme = "http" if spoken is None else spoken.scheme
    setup = ConnectorSetup(
        endpoint=Endpoint(scheme=scheme, host="127.0.0.1", port=1),
        open_stream=open_tcp,
        random=random.Random(0),
        now_s=trio.current_time,
    )
    return default_registry().load(key)(setup)


def services() -> dict[str, list[str]]:
    """Our connectors by the service they speak to."""
    found: dict[str, list[str]] = {}
    for key in BUILTIN_KEYS:
        found.setdefault(default_registry().load(key).service, []).append(key)
    return found


def facts(key: str) -> dict[str, str]:
    """The rows of one connector: what it declares, and what follows from that."""
    connector = made(key)
    can = connector.capabilities
    # By convention, not by contract: the validated options are an attribute of their own type.
    options = dict.fromkeys(
        name
        for value in vars(connector).values()
        if isinstance(value, msgspec.Struct) and type(value).__name__.endswith("Options")
        for name in value.__struct_fields__
    )
    spoken = dialect_of(key)
    return {
        "declares": ", ".join(f"`{name}`" for name in CAPABILITIES if getattr(can, name)),
        "dispatch": "at-least-once; recorded exactly once",
        "after a crash of the gateway": "re-attached: followed while it runs, collected when it has ended"
        if can.reattach
        else ("asked about: collected when it has ended" if can.query else "run again: nobody can be asked"),
        "the same submission twice": "deduplicated by the service"
        if can.dedupe
        else ("never sent blindly: looked up first" if can.query else "may run twice"),
        "at a cancel, a time-out, a lost lease": "stopped by its name"
        if can.cancel
        else "its connection is closed",
        "output": "in pieces while it runs, and as a whole" if can.stream else "as a whole",
        "tells when probed": "its `models`"
        if type(connector).probe_capabilities is not Connector.probe_capabilities
        else "nothing",
        "options": ", ".join(f"`{name}`" for name in options),
        "simulated by": f"`simulator serve --dialect {spoken.name}`" if spoken is not None else "nobody",
    }


def table(service: str) -> str:
    """The table of one service, as the page holds it."""
    columns = {key: facts(key) for key in services()[service]}
    lines = ["| | " + " | ".join(f"`{key}`" for key in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    lines += [
        f"| {row} | " + " | ".join(column[row] for column in columns.values()) + " |"
        for row in next(iter(columns.values()))
    ]
    return "\n".join(lines) + "\n"
