"""Whether a stored job survives: what the server offers, and how to ask it for a confirmation."""

from __future__ import annotations

import enum
from typing import Any

import msgspec

from gateway.errors import DurabilityUnconfirmed, StoreRejected
from gateway.store.operations import Runner

#: The first Redis with WAITAOF.
WAITAOF_VERSION = (7, 2)


class Confirmation(enum.StrEnum):
    """How a server can confirm a write."""

    WAITAOF = "waitaof"
    WAIT = "wait"
    ALWAYS = "always"
    NONE = "none"


class ServerFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What a Redis says about itself.

    Attributes:
        version: of the Redis that it is or (Valkey) is compatible with.
        name: product and version for people.
        aof_enabled: it writes an append-only file.
        appendfsync: ``always``, ``everysec``, ``no``; empty when the server does not tell.
        replicas: connected replicas.
        role: ``master`` or ``slave``.
        eviction: ``maxmemory-policy``; empty when unknown.
        snapshots: it saves snapshots by itself; None when unknown.
        aof_last_write_ok: the last write to the append-only file worked.
        used_bytes, memory_bytes_max: memory in use, and its bound; 0 for none.
    """

    version: tuple[int, ...]
    name: str
    aof_enabled: bool
    appendfsync: str
    replicas: int
    role: str
    eviction: str
    snapshots: bool | None
    aof_last_write_ok: bool
    used_bytes: int = 0
    memory_bytes_max: int = 0


def parse_info(raw: Any) -> dict[str, str]:
    """Read the reply of INFO."""
    text = raw.decode() if isinstance(raw, bytes) else str(raw)
    lines = (line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith("#"))
    return {key: value.strip() for key, value in lines}


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:3] if part.isdigit())


async def _setting(runner: Runner, name: str) -> str | None:
    """One configuration value; None where CONFIG is not allowed (managed servers)."""
    try:
        raw = await runner.command(b"CONFIG", b"GET", name)
    except StoreRejected:
        return None
    values = list(raw.values()) if isinstance(raw, dict) else list(raw)[1::2]
    return values[0].decode() if values else None


async def server_facts(runner: Runner) -> ServerFacts:
    """Ask a server what it is.

    Raises:
        StoreError: it cannot be asked.
    """
    info = parse_info(await runner.command(b"INFO"))
    save = await _setting(runner, "save")
    product = (
        f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
    )
    return ServerFacts(
        version=_version(info["redis_version"]),
        name=product,
        aof_enabled=info.get("aof_enabled") == "1",
        appendfsync=await _setting(runner, "appendfsync") or "",
        replicas=int(info.get("connected_slaves", "0")),
        role=info.get("role", ""),
        eviction=info.get("maxmemory_policy", ""),
        snapshots=None if save is None else bool(save),
        aof_last_write_ok=info.get("aof_last_write_status", "ok") == "ok",
        used_bytes=int(info.get("used_memory", "0")),
        memory_bytes_max=int(info.get("maxmemory", "0")),
    )


def confirmation_of(facts: ServerFacts) -> Confirmation:
    """The best confirmation a server can give."""
    if facts.aof_enabled and facts.version >= WAITAOF_VERSION:
        return Confirmation.WAITAOF
    if facts.replicas > 0:
        return Confirmation.WAIT
    if facts.aof_enabled and facts.appendfsync == "always":
        return Confirmation.ALWAYS
    return Confirmation.NONE


async def confirm(runner: Runner, facts: ServerFacts, timeout_s: float) -> Confirmation:
    """Wait until the last write of this connection is durable.

    Args:
        runner: the very connection that wrote.
        facts: what its server offers.
        timeout_s: longest wait, seconds.

    Raises:
        DurabilityUnconfirmed: not confirmed in time, or the server has no means to confirm it.
        StoreUnavailable: the connection was lost meanwhile.
    """
    way = confirmation_of(facts)
    wait_ms = max(1, round(timeout_s * 1000))
    # The server ends the wait itself; the margin is for its reply.
    if way is Confirmation.WAITAOF:
        local, _ = await runner.command(b"WAITAOF", 1, 0, wait_ms, timeout_s=timeout_s + 2.0)
        if int(local) < 1:
            raise DurabilityUnconfirmed(
                f"the job is stored, but {facts.name} did not confirm its append-only file within {timeout_s:g} s: "
                "look at the server's disk, or set appendfsync to everysec or always"
            )
    elif way is Confirmation.WAIT:
        if int(await runner.command(b"WAIT", 1, wait_ms, timeout_s=timeout_s + 2.0)) < 1:
            raise DurabilityUnconfirmed(
                f"the job is stored, but none of {facts.replicas} replica(s) confirmed it within {timeout_s:g} s: "
                "look at the replication link"
            )
    elif way is Confirmation.NONE:
        raise DurabilityUnconfirmed(
            f"the job is stored, but {facts.name} cannot confirm durability: enable the append-only file on Redis 7.2 "
            "or later (appendonly yes), set appendfsync always, or attach a replica"
        )
    return way
