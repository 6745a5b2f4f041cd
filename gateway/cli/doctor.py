"""What ``gateway doctor`` looks at. Judging facts is separate from gathering them."""

from __future__ import annotations

import enum
import os
import random
import time
from typing import TYPE_CHECKING

import msgspec

from gateway.cli.common import Common
from gateway.client.durability import Confirmation, ServerFacts, confirmation_of
from gateway.errors import ConfigError, ConnectorError, GatewayError

if TYPE_CHECKING:
    from gateway.config import GatewayConfig, WorkerConfig
    from gateway.discovery import Place
    from gateway.registration import RegisteredService

#: Streams, ZADD GT and the RESP3 handshake in the form used here need it.
REDIS_VERSION_MIN = (6, 2)
#: Redis time decides everything; a larger difference only makes logs hard to read together.
CLOCK_DIFFERENCE_MAX_S = 1.0


class Level(enum.StrEnum):
    """How a finding is meant."""

    OK = "ok"
    WARN = "warn"
    BAD = "bad"


class Finding(msgspec.Struct, frozen=True):
    """One thing looked at; ``remedy`` is empty when all is well."""

    check: str
    level: Level
    detail: str
    remedy: str = ""


def judge_server(facts: ServerFacts) -> list[Finding]:
    """Findings about a Redis from what it says about itself (pure)."""
    return [_version(facts), _role(facts), _persistence(facts), _durability(facts), _eviction(facts)]


def _version(facts: ServerFacts) -> Finding:
    if facts.version >= REDIS_VERSION_MIN:
        return Finding("redis version", Level.OK, facts.name)
    wanted = ".".join(map(str, REDIS_VERSION_MIN))
    return Finding("redis version", Level.BAD, facts.name, f"upgrade to Redis {wanted} or later")


def _role(facts: ServerFacts) -> Finding:
    if facts.role == "master":
        return Finding("redis role", Level.OK, f"primary with {facts.replicas} replica(s)")
    return Finding(
        "redis role", Level.BAD, facts.role, "point redis_url to the primary: a replica takes no jobs"
    )


def _persistence(facts: ServerFacts) -> Finding:
    if facts.aof_enabled and not facts.aof_last_write_ok:
        return Finding(
            "persistence", Level.BAD, "the last append-only write failed", "look at the server's disk"
        )
    if facts.aof_enabled:
        detail = f"append-only file, appendfsync {facts.appendfsync or 'unknown'}"
        if facts.appendfsync == "no":
            remedy = "set appendfsync everysec: now the operating system decides when jobs reach the disk"
            return Finding("persistence", Level.WARN, detail, remedy)
        return Finding("persistence", Level.OK, detail)
    if facts.snapshots:
        remedy = "set appendonly yes: a crash loses every job since the last snapshot"
        return Finding("persistence", Level.WARN, "snapshots only", remedy)
    detail = (
        "none"
        if facts.snapshots is False
        else "no append-only file; the server does not tell about snapshots"
    )
    return Finding("persistence", Level.BAD, detail, "set appendonly yes: a crash loses accepted jobs")


def _durability(facts: ServerFacts) -> Finding:
    way = confirmation_of(facts)
    if way is not Confirmation.NONE:
        return Finding("durable submits", Level.OK, f"confirmed by {way.value}")
    return Finding(
        "durable submits",
        Level.WARN,
        "cannot be confirmed",
        "needed only for --durable: Redis 7.2 or later with appendonly yes, or appendfsync always, or a replica",
    )


def _eviction(facts: ServerFacts) -> Finding:
    if facts.eviction == "noeviction":
        return Finding("eviction policy", Level.OK, facts.eviction)
    if not facts.eviction:
        remedy = "make sure that maxmemory-policy is noeviction"
        return Finding("eviction policy", Level.WARN, "the server does not tell", remedy)
    remedy = "set maxmemory-policy noeviction: this Redis may throw jobs away when memory is short"
    return Finding("eviction policy", Level.BAD, facts.eviction, remedy)


def judge_clock(difference_s: float) -> Finding:
    """A finding about the difference between Redis time and ours, seconds (pure)."""
    detail = f"{difference_s:+.3f} s against Redis"
    if abs(difference_s) <= CLOCK_DIFFERENCE_MAX_S:
        return Finding("clock", Level.OK, detail)
    return Finding(
        "clock", Level.WARN, detail, "synchronise the clocks (leases use Redis time only; logs do not)"
    )


def examine(common: Common) -> list[Finding]:
    """Look at configuration, Redis and every configured endpoint; bounded by their time-outs."""
    try:
        settings = common.settings()
    except ConfigError as error:
        return [Finding("configuration", Level.BAD, str(error), "correct it; nothing else was looked at")]
    source = common.config_path()
    findings = [Finding("configuration", Level.OK, str(source) if source else "no file")]
    seen, registry = _examine_redis(common, settings)
    return findings + seen + _examine_workers(settings, registry)


def _examine_redis(common: Common, settings: GatewayConfig) -> tuple[list[Finding], list[RegisteredService]]:
    try:
        with common.client(settings) as client:
            before_s = time.time()
            now_s = client.now_ms() / 1000
            middle_s = (before_s + time.time()) / 2
            facts = client.server_facts()
            queue = client.stats()
            registry = client.services()
    except GatewayError as error:
        remedy = "start Redis, or correct redis_url, its credentials or the network between"
        return [Finding("redis", Level.BAD, str(error), remedy)], []
    findings = [Finding("redis", Level.OK, "reachable"), *judge_server(facts), judge_clock(now_s - middle_s)]
    state = Level.WARN if queue.paused else Level.OK
    remedy = "`gateway resume` lets workers claim again" if queue.paused else ""
    detail = f"{settings.queue}: {queue.pending_total} pending, {queue.running} running"
    about_queue = Finding("queue", state, detail + (", paused" if queue.paused else ""), remedy)
    return [*findings, about_queue], registry


def _examine_workers(settings: GatewayConfig, registry: list[RegisteredService]) -> list[Finding]:
    if not settings.workers:
        remedy = "add [workers.NAME] to the file, or pass --worker to `gateway run`"
        return [Finding("workers", Level.WARN, "none configured", remedy)]
    import trio

    from gateway.discovery import resolve

    findings: list[Finding] = []
    places: list[tuple[str, WorkerConfig, Place]] = []
    for name, worker in settings.workers.items():
        try:
            found = resolve(name, worker, worker.connector, registry)
        except ConfigError as error:
            findings.append(Finding(f"worker {name}", Level.BAD, str(error), f"correct workers.{name}"))
            continue
        if found.problem:
            remedy = "register the service (`gateway register`), or say where it is"
            findings.append(Finding(f"worker {name}", Level.BAD, found.problem, remedy))
        places += [(name, worker, place) for place in found.places]

    async def probe() -> list[Finding]:
        return [await _examine_place(name, worker, place, settings) for name, worker, place in places]

    return findings + trio.run(probe)


async def _examine_place(name: str, worker: WorkerConfig, place: Place, settings: GatewayConfig) -> Finding:
    import trio

    from gateway.config_secrets import SecretProblem, reveal
    from gateway.connector import ConnectorSetup
    from gateway.connectors.registry import default_registry
    from protocols.base import Endpoint, open_tcp

    check = f"worker {name}"
    try:
        setup = ConnectorSetup(
            endpoint=Endpoint.parse(place.url),
            open_stream=open_tcp,
            random=random.Random(),
            now_s=trio.current_time,
            options={"stall_s": settings.runner.stall_s, **reveal(worker.options, os.environ)},
            instance=place.instance,
        )
        connector = default_registry().load(worker.connector)(setup)
    except (ConnectorError, ConfigError, SecretProblem) as error:
        return Finding(check, Level.BAD, str(error), f"correct workers.{name}")
    where = f"{worker.connector} at {place.url}"
    try:
        with trio.move_on_after(settings.health.probe_timeout_s):
            report = await connector.health()
            if report.healthy:
                return Finding(check, Level.OK, f"{where}: {report.detail}")
            return Finding(
                check, Level.BAD, f"{where}: {report.detail}", "start the service or correct its address"
            )
    finally:
        with trio.move_on_after(settings.health.probe_timeout_s, shield=True):
            await connector.aclose()
    remedy = "the service hangs, or health.probe_timeout_s is too short for it"
    return Finding(check, Level.BAD, f"{where}: no answer in {settings.health.probe_timeout_s:g} s", remedy)
