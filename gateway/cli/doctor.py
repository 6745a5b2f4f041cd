"""What ``gateway doctor`` looks at. Judging facts is separate from gathering them."""

from __future__ import annotations

import enum
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import msgspec

from gateway.cli.common import Common
from gateway.client.durability import Confirmation, ServerFacts, confirmation_of
from gateway.errors import ConfigError, ConnectorError, GatewayError, StoreError, StoreRejected

if TYPE_CHECKING:
    from gateway.client import Client
    from gateway.client.permissions import Denied
    from gateway.config import GatewayConfig, WorkerConfig
    from gateway.discovery import Place
    from gateway.registration import RegisteredService

#: Streams, ZADD GT and the RESP3 handshake in the form used here need it.
REDIS_VERSION_MIN = (6, 2)
#: Redis time decides everything; a larger difference only makes logs hard to read together.
CLOCK_DIFFERENCE_MAX_S = 1.0
#: Of its memory bound: above, Redis soon refuses every write.
MEMORY_SHARE_MAX = 0.9
#: Results that cannot be recorded wait on this disk, and so does the embedded Redis.
FREE_BYTES_MIN = 256 * 1024 * 1024


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
    return [
        *(_version(facts), _role(facts), _persistence(facts)),
        *(_durability(facts), _eviction(facts), _memory(facts)),
    ]


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


def _memory(facts: ServerFacts) -> Finding:
    used = f"{facts.used_bytes / 2**20:.0f} MiB used"
    if not facts.memory_bytes_max:
        return Finding("memory", Level.OK, f"{used}, no bound (maxmemory 0)")
    share = facts.used_bytes / facts.memory_bytes_max
    detail = f"{used} of {facts.memory_bytes_max / 2**20:.0f} MiB (maxmemory)"
    if share <= MEMORY_SHARE_MAX:
        return Finding("memory", Level.OK, detail)
    remedy = (
        "raise maxmemory, or keep less (limits.retention_s, limits.result_bytes_max): full, it takes no jobs"
    )
    return Finding("memory", Level.BAD if share >= 1 else Level.WARN, detail, remedy)


def judge_permissions(denied: Sequence[Denied], queue: str) -> Finding:
    """A finding about what Redis refuses to our user (pure)."""
    if not denied:
        return Finding("redis permissions", Level.OK, "scripts, streams, pub/sub and all keys of the queue")
    by_purpose: dict[str, list[str]] = {}
    for one in denied:
        by_purpose.setdefault(one.purpose, []).append(one.command)
    detail = "; ".join(f"{purpose}: {', '.join(commands)}" for purpose, commands in by_purpose.items())
    rights = " ".join(f"+{one.command.lower()}" for one in denied)
    names = f"tg:{{{queue}}}:*"
    remedy = (
        f"give this user (ACL SETUSER) the commands {rights}, the keys ~{names} and the channels &{names}"
    )
    return Finding("redis permissions", Level.BAD, f"refused: {detail} ({denied[0].reason})", remedy)


def judge_clock(difference_s: float) -> Finding:
    """A finding about the difference between Redis time and ours, seconds (pure)."""
    detail = f"{difference_s:+.3f} s against Redis"
    if abs(difference_s) <= CLOCK_DIFFERENCE_MAX_S:
        return Finding("clock", Level.OK, detail)
    return Finding(
        "clock", Level.WARN, detail, "synchronise the clocks (leases use Redis time only; logs do not)"
    )


def examine(common: Common) -> list[Finding]:
    """Look at configuration, disk, Redis and every configured endpoint; bounded by their time-outs."""
    try:
        settings = common.settings()
    except ConfigError as error:
        return [Finding("configuration", Level.BAD, str(error), "correct it; nothing else was looked at")]
    source = common.config_path()
    findings = [Finding("configuration", Level.OK, str(source) if source else "no file")]
    findings += _examine_folders(settings)
    seen, registry, fleet = _examine_redis(common, settings)
    findings += seen
    if fleet:
        try:
            settings = common.sources().load(fleet).config
        except ConfigError as error:
            remedy = "`gateway config unset KEY` removes an override, `gateway config show` tells what holds"
            return [*findings, Finding("fleet overrides", Level.BAD, str(error), remedy)]
        findings.append(Finding("fleet overrides", Level.OK, ", ".join(sorted(fleet))))
    return findings + _examine_workers(settings, registry)


def _examine_folders(settings: GatewayConfig) -> list[Finding]:
    from gateway.store.embedded import default_data_dir

    data_dir = settings.data_dir or default_data_dir()
    spool = data_dir / "spool" / settings.queue
    return [_examine_folder("data folder", data_dir), _examine_folder("spool", spool)]


def _examine_folder(check: str, folder: Path) -> Finding:
    """Whether a file can be made in a folder, or the folder itself where it does not exist yet."""
    remedy = f"let {folder} be a folder that this user can write to, or set data_dir"
    place = folder
    while not os.path.lexists(place) and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            free_bytes = shutil.disk_usage(place).free
    except OSError as error:
        return Finding(check, Level.BAD, f"{place}: cannot be written to: {error.strerror}", remedy)
    detail = (
        f"{folder}{'' if place == folder else ' (is made when needed)'}, {free_bytes / 2**30:.1f} GiB free"
    )
    if free_bytes < FREE_BYTES_MIN:
        return Finding(check, Level.WARN, detail, "make room: results wait here while Redis is away")
    return Finding(check, Level.OK, detail)


def _place(settings: GatewayConfig) -> str:
    """Where Redis is, without credentials."""
    url = settings.redis_url.get_secret_value()
    if not url:
        return "the embedded one"
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _examine_redis(
    common: Common, settings: GatewayConfig
) -> tuple[list[Finding], list[RegisteredService], dict[str, Any]]:
    """Findings, the registered services and the fleet's overrides, as far as Redis lets us read them."""
    try:
        client = common.client(settings)
    except GatewayError as error:
        remedy = "start Redis, or correct redis_url, its credentials or the network between"
        return [Finding("redis", Level.BAD, str(error), remedy)], [], {}
    with client:
        findings = [Finding("redis", Level.OK, f"reachable: {_place(settings)}"), _permissions(client)]
        may_all = findings[-1].level is not Level.BAD
        try:
            findings += judge_server(client.server_facts())
        except StoreRejected as error:
            remedy = (
                "allow INFO to this user (+info), or check version, persistence and eviction policy by hand"
            )
            findings.append(Finding("redis server", Level.WARN, str(error), remedy))
        except GatewayError as error:
            return [*findings, _lost(error)], [], {}
        if not may_all:
            return findings, [], {}
        try:
            findings += [_clock(client), *_queue(client, settings)]
            return findings, client.services(), dict(client.overrides().values)
        except GatewayError as error:
            return [*findings, _lost(error)], [], {}


def _lost(error: GatewayError) -> Finding:
    return Finding("redis answers", Level.BAD, str(error), "look at the server's log and load")


def _permissions(client: Client) -> Finding:
    try:
        return judge_permissions(client.denied(), client.queue)
    except StoreError as error:
        remedy = "allow MULTI and DISCARD to this user, or compare its rights with docs/operations.md by hand"
        return Finding("redis permissions", Level.WARN, f"cannot be told: {error}", remedy)


def _clock(client: Client) -> Finding:
    before_s = time.time()
    now_s = client.now_ms() / 1000
    return judge_clock(now_s - (before_s + time.time()) / 2)


def _queue(client: Client, settings: GatewayConfig) -> Iterable[Finding]:
    """Whether the queue's jobs get claimed."""
    from gateway.overview import Rates, assemble

    view = assemble(
        settings.queue, client.stats(), client.workers(), [], Rates(window_s=0.0),
        worker_ttl_s=settings.limits.worker_ttl_s,
    )  # fmt: skip
    detail = f"{settings.queue}: {view.pending} pending, {view.running} running, {view.dead} dead"
    if view.paused:
        yield Finding("queue", Level.WARN, f"{detail}, paused", "`gateway resume` lets workers claim again")
    else:
        yield Finding("queue", Level.OK, detail)
    idle = [row for row in view.workers if not row.well]
    told = f"{len(view.workers) - len(idle)} of {len(view.workers)} claim"
    if idle:
        reasons = "; ".join(f"{row.worker}: {row.state}" for row in idle[:3])
        more = f"; and {len(idle) - 3} more" if len(idle) > 3 else ""
        yield Finding("live workers", Level.WARN, f"{told} ({reasons}{more})", "look at `gateway workers`")
    elif view.pending and not view.workers:
        yield Finding("live workers", Level.WARN, "none, and jobs wait", "`gateway run` starts some")
    else:
        yield Finding("live workers", Level.OK, told if view.workers else "none")


def _examine_workers(settings: GatewayConfig, registry: list[RegisteredService]) -> list[Finding]:
    if not settings.workers:
        remedy = "add [workers.NAME] to the file, or pass --worker to `gateway run`"
        return [Finding("workers", Level.WARN, "none configured", remedy)]
    import trio

    from gateway.discovery import candidate_places, resolve

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
        if (rollout := worker.rollout) is not None:
            options = worker.options if rollout.options is None else rollout.options
            changed = {"connector": rollout.connector or worker.connector, "options": options}
            try:
                candidates = candidate_places(name, worker)
            except ConfigError as error:
                finding = Finding(f"worker {name}.rollout", Level.BAD, str(error), f"correct workers.{name}")
                findings.append(finding)
                continue
            places += [(f"{name}.rollout", worker.model_copy(update=changed), place) for place in candidates]

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
                return Finding(check, Level.OK, f"{where}: healthy ({report.detail})")
            return Finding(
                check, Level.BAD, f"{where}: {report.detail}", "start the service or correct its address"
            )
    finally:
        with trio.move_on_after(settings.health.probe_timeout_s, shield=True):
            await connector.aclose()
    remedy = "the service hangs, or health.probe_timeout_s is too short for it"
    return Finding(check, Level.BAD, f"{where}: no answer in {settings.health.probe_timeout_s:g} s", remedy)
