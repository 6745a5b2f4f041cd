"""A gateway as a real process: real Redis, real sockets, real clock, signals. Not part of any simulation."""

from __future__ import annotations

import gc
import logging
import os
import platform
import random as random_module
import secrets
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from gateway.config import GatewayConfig
from gateway.errors import ConfigError
from gateway.observer import Observer
from gateway.reloading import Reread
from gateway.spool import FileSpool, SpoolFull
from gateway.store.connection import redis_connect
from gateway.store.embedded import EmbeddedRedisLease, acquire_embedded_redis, default_data_dir
from gateway.supervisor import Gateway, Seams, StopSwitch

log = logging.getLogger(__name__)

#: New container objects between two young collections: about what a thousand jobs in flight hold.
YOUNG_OBJECTS_MAX = 20_000

#: Builds further service tasks (the HTTP page) for a gateway.
ExtraServices = Callable[[Gateway], tuple[Callable[..., Any], ...]]


def machine_name(config: GatewayConfig) -> str:
    """Label of this host: as configured, else the host's name."""
    return config.machine or platform.node() or "local"


def random_factory(seed: int | None) -> Callable[[str], random_module.Random]:
    """One independent source per component, so that a change in one does not reshuffle the others."""
    root = secrets.randbits(64) if seed is None else seed
    return lambda label: random_module.Random(f"{root}/{label}")


def calm_garbage_collection() -> None:
    """Let the cyclic collector look less often, and never again at what was imported.

    Jobs live through many young collections, each of which walks every job in flight: with the interpreter's default
    of 700 objects that is a fifth of the time per job (``docs/benchmarks.md``). Reference counts free what ended.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS_MAX, 20, 50)


async def _watch_signals(
    stop: StopSwitch,
    reload: Callable[[], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """First SIGTERM or SIGINT drains, the second stops at once; SIGHUP reads the configuration again."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            log.info("received %s", signal.Signals(number).name)
            if number == signal.SIGHUP:
                reload()
            else:
                stop.drain()


def run_process(
    config: GatewayConfig,
    observer: Observer,
    *,
    extra_services: ExtraServices | None = None,
    on_ready: Callable[[Gateway], None] | None = None,
    reread: Reread | None = None,
    on_log_level: Callable[[str], None] | None = None,
) -> None:
    """Run a gateway until a signal stops it.

    Args:
        config: validated configuration with at least one worker.
        observer: the event sink, usually telemetry.
        extra_services: further tasks beside the gateway's own.
        on_ready: called once the gateway claims jobs.
        reread: reads the configuration again, for SIGHUP and for changes of the fleet's overrides.
        on_log_level: takes up a changed ``telemetry.log_level``.

    Raises:
        ConfigError: no worker configured, or the spool's folder cannot be used.
        GatewayError: whatever keeps it from starting.
    """
    calm_garbage_collection()
    if not config.workers:
        raise ConfigError(
            "no workers configured: add [workers.NAME] to the file or --worker NAME=CONNECTOR@URL"
        )
    embedded: EmbeddedRedisLease | None = None
    url = config.redis_url.get_secret_value()
    if not url:
        embedded = acquire_embedded_redis(config.data_dir)
        url = embedded.url
    instance = f"{machine_name(config)}-{os.getpid()}-{secrets.token_hex(4)}"
    spool_root = (config.data_dir or default_data_dir()) / "spool" / config.queue
    try:
        spool = _open_spool(spool_root, instance)
        try:
            gateway = Gateway(config, _seams(config, observer, url, instance, spool, reread))
            if on_log_level is not None:
                set_level = on_log_level
                gateway.reloader.on(
                    ("telemetry", "log_level"), lambda new, _changes: set_level(new.telemetry.log_level)
                )
            trio.run(_main, gateway, extra_services, on_ready)
        finally:
            spool.close()
    finally:
        if embedded is not None:
            embedded.close()


def _open_spool(root: Path, instance: str) -> FileSpool:
    try:
        return FileSpool(root, instance)
    except (OSError, SpoolFull) as error:
        raise ConfigError(f"data_dir: the spool {root} cannot be used: {error}") from None


def _seams(
    config: GatewayConfig,
    observer: Observer,
    url: str,
    instance: str,
    spool: FileSpool,
    reread: Reread | None,
) -> Seams:
    return Seams(
        connect_redis=redis_connect(
            url,
            connect_timeout_s=config.redis.connect_timeout_s,
            command_timeout_s=config.redis.command_timeout_s,
        ),
        instance=instance,
        machine=machine_name(config),
        random=random_factory(config.seed),
        observer=observer,
        spool=spool,
        reread=reread,
    )


async def _main(
    gateway: Gateway,
    extra_services: ExtraServices | None,
    on_ready: Callable[[Gateway], None] | None,
) -> None:
    stop = StopSwitch()

    async def ready(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        if on_ready is not None:
            on_ready(gateway)

    async def watch(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await _watch_signals(stop, gateway.reload, task_status=task_status)

    further = extra_services(gateway) if extra_services is not None else ()
    await gateway.run(stop, extra_services=(watch, *further, ready))
