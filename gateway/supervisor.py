"""The nursery tree of a gateway process, the only place where long-lived nurseries open.

::

    services   store · lease keeper · settler · sweeper · probes · registry · pump · lag monitor · API   (stops last)
    └ jobs     one task per job
      └ intake one claim loop per worker                                                             (stops first)

Draining: the intake stops at once, jobs get ``grace_s``, what is left is released uncharged, the services stop.
"""

from __future__ import annotations

import logging
import os
import random as random_module
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from gateway.binding import Binder
from gateway.config import GatewayConfig, WorkerConfig
from gateway.config_paths import text_of
from gateway.config_secrets import SecretProblem, reveal
from gateway.connector import Connector, ConnectorSetup
from gateway.connectors.registry import Registry, default_registry
from gateway.context import ProgressPump
from gateway.discovery import Place, candidate_places
from gateway.endpoints import BoundEndpoint
from gateway.errors import ConfigError
from gateway.health import HealthProbe, LagMonitor
from gateway.intake import Intake
from gateway.leases import LeaseKeeper, Ownership
from gateway.models import Grant, WorkerId
from gateway.observer import Observer, SilentObserver
from gateway.reload import ROLLOUT_KEYS, Change, Reloader
from gateway.reloading import ConfigWatch, Reread
from gateway.rolling import Rollouts
from gateway.runner import JobRunner
from gateway.settling import Settler
from gateway.spool import MemorySpool, Spool
from gateway.store.connection import RedisConnect
from gateway.store.keys import QueueKeys
from gateway.store.redis import RedisStore
from gateway.sweeper import Registrar, observe_regularly, sign_off, sweep_regularly
from gateway.worker import Worker
from protocols.base import Endpoint, OpenStream, open_tcp
from protocols.errors import EndpointError
from protocols.grpc_channel import OpenChannel, open_grpcio

log = logging.getLogger(__name__)

#: A service task of the outermost nursery, started with ``nursery.start``.
ServiceTask = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Seams:
    """Everything that a simulation exchanges; nothing else of the gateway touches the world.

    Attributes:
        connect_redis: makes one fresh connection to Redis.
        instance: unique name of this process.
        machine: label of the host, first part of the worker ids.
        open_stream: opens byte streams to services.
        open_channel: opens gRPC channels to services.
        now_s: monotonic clock, seconds.
        random: makes the seeded random source of one component from its label.
        observer: the event sink.
        spool: where settlements wait while Redis is away.
        registry: the known connectors.
        reread: reads the configuration again for a live reload; None where it never changes.
    """

    connect_redis: RedisConnect
    instance: str
    machine: str = "local"
    open_stream: OpenStream = open_tcp
    open_channel: OpenChannel = open_grpcio
    now_s: Callable[[], float] = trio.current_time
    random: Callable[[str], random_module.Random]
    observer: Observer = field(default_factory=SilentObserver)
    spool: Spool = field(default_factory=MemorySpool)
    registry: Registry = field(default_factory=default_registry)
    reread: Reread | None = None


class StopSwitch:
    """How a gateway is asked to stop: first gently, then at once."""

    def __init__(self) -> None:
        self.draining = trio.Event()
        self.immediately = trio.Event()

    def drain(self) -> None:
        """Claim nothing any more; finish or release what runs. A second call stops at once."""
        if self.draining.is_set():
            self.immediately.set()
        self.draining.set()


class Gateway:
    """One gateway process: all workers of one configuration on one queue.

    Args:
        config: validated configuration.
        seams: the world.

    Raises:
        ConfigError, ConnectorError: a worker cannot work as configured; found before anything is claimed.
    """

    def __init__(self, config: GatewayConfig, seams: Seams) -> None:
        self.config = config
        self.seams = seams
        self.store = RedisStore(
            seams.connect_redis,
            QueueKeys(config.queue),
            config.limits.store_limits(),
            lease_s=config.lease.length_s,
            instance=seams.instance,
            random=seams.random("store"),
            command_timeout_s=config.redis.command_timeout_s,
            connect_timeout_s=config.redis.connect_timeout_s,
        )
        #: The connectors' own settings, secrets in them looked up.
        self._options: dict[str, dict[str, Any]] = {}
        self.workers = [self._worker(name, worker) for name, worker in config.workers.items()]
        self.keeper = LeaseKeeper(
            self.store,
            lease_s=config.lease.length_s,
            margin_s=config.lease.margin_s,
            renew_s=config.lease.renew_s,
            now_s=seams.now_s,
            observer=seams.observer,
        )
        self.settler = Settler(self.store, seams.spool, self.keeper, seams.observer)
        self.pump = ProgressPump(self.store, every_s=config.runner.progress_s)
        self.lag = LagMonitor(
            every_s=config.intake.lag_check_s,
            limit_s=config.lease.length_s / 10,
            now_s=seams.now_s,
            observer=seams.observer,
        )
        self.rollouts = self._rollouts()
        self.registrar = Registrar(
            self.store,
            self.workers,
            self.rollouts,
            instance=seams.instance,
            every_s=config.limits.worker_ttl_s / 3,
        )
        self.intake = self._intake()
        self.binder = Binder(
            self.workers,
            self.store,
            config.discovery,
            make=self._endpoint,
            probe=HealthProbe(
                config.health,
                now_s=seams.now_s,
                random=seams.random,
                on_change=self._health_changed,
                on_capabilities=self._endpoints_changed,
            ),
            on_change=self._endpoints_changed,
        )
        self.runner = self._runner()
        self.reloader = Reloader(config)
        self.reloader.on(("workers", "*", "slots"), self._take_slots)
        self.reloader.on(("limits",), self._take_limits)
        for path in ROLLOUT_KEYS:
            self.reloader.on(path, self.rollouts.reload)
        self.config_watch = (
            None if seams.reread is None else ConfigWatch(self.store, self.reloader, seams.reread)
        )
        self._jobs: trio.Nursery | None = None

    def _worker(self, name: str, config: WorkerConfig) -> Worker:
        try:
            self._options[name] = reveal(config.options, os.environ)
        except SecretProblem as problem:
            raise ConfigError(f"workers.{name}.options: {problem}") from None
        return Worker(
            WorkerId(f"{self.seams.machine}/{name}"),
            name,
            config,
            connector_key=config.connector,
            service=self.seams.registry.load(config.connector).service,
            machine=self.seams.machine,
        )

    def _rollouts(self) -> Rollouts:
        """Bind the candidates; what the configuration leaves out is as the worker's own."""
        policies = {}
        for worker in self.workers:
            settings = worker.config.rollout
            if settings is None:
                continue
            where = f"workers.{worker.name}.rollout"
            key = settings.connector or worker.connector_key
            service = self.seams.registry.load(key).service
            if service != worker.service:
                raise ConfigError(
                    f"{where}.connector = {key!r}: serves {service}, but the worker {worker.service}"
                )
            try:
                options = None if settings.options is None else reveal(settings.options, os.environ)
            except SecretProblem as problem:
                raise ConfigError(f"{where}.options: {problem}") from None
            policies[worker.name] = settings.policy()
            worker.candidates = [
                self._bound(worker, place, self._connector(key, place.url, worker, where, options=options))
                for place in candidate_places(worker.name, worker.config)
            ]
        return Rollouts(
            self.workers,
            policies,
            self.store,
            self.seams.observer,
            now_s=self.seams.now_s,
            on_change=lambda: self.registrar.look(),
        )

    def _endpoint(self, worker: Worker, place: Place) -> BoundEndpoint:
        connector = self._connector(
            worker.connector_key, place.url, worker, f"workers.{worker.name}", place.instance
        )
        return self._bound(worker, place, connector)

    def _bound(self, worker: Worker, place: Place, connector: Connector) -> BoundEndpoint:
        return BoundEndpoint(
            worker,
            place,
            connector,
            health=self.config.health,
            now_s=self.seams.now_s,
            observer=self.seams.observer,
        )

    def _connector(
        self,
        key: str,
        url: str,
        worker: Worker,
        where: str,
        instance: str = "",
        *,
        options: Mapping[str, Any] | None = None,
    ) -> Connector:
        """A connector of the worker's for any endpoint."""
        try:
            address = Endpoint.parse(url)
        except EndpointError as error:
            raise ConfigError(f"{where}.endpoint: {error}") from None
        setup = ConnectorSetup(
            endpoint=address,
            open_stream=self.seams.open_stream,
            open_channel=self.seams.open_channel,
            random=self.seams.random(f"connector {where}"),
            now_s=self.seams.now_s,
            options={
                "stall_s": self.config.runner.stall_s,
                **(self._options[worker.name] if options is None else options),
            },
            instance=instance,
        )
        return self.seams.registry.load(key)(setup)

    def _intake(self) -> Intake:
        return Intake(
            self.store,
            self.workers,
            self.keeper,
            self.seams.observer,
            self.lag,
            spawn=self._spawn,
            poll_s=self.config.intake.poll_s,
            instance=self.seams.instance,
            now_s=self.seams.now_s,
            random=self.seams.random("intake"),
            seat=self.rollouts.seat,
        )

    def _runner(self) -> JobRunner:
        return JobRunner(
            self.store,
            self.settler,
            self.keeper,
            self.pump,
            self.seams.observer,
            make_connector=lambda key, url, worker: self._connector(key, url, worker, worker.worker_id),
            address_of=self.binder.address_of,
            retry=self.config.retry.policy(),
            config=self.config.runner,
            result_bytes_max=self.config.limits.result_bytes_max,
            random=self.seams.random("runner"),
            now_s=self.seams.now_s,
            slot_freed=self._slot_freed,
            attempt_ended=self.rollouts.ended,
        )

    def _spawn(self, grant: Grant, ownership: Ownership, endpoint: BoundEndpoint) -> None:
        assert self._jobs is not None, "jobs are spawned only while the jobs nursery is open"
        self._jobs.start_soon(self.runner.run, grant, ownership, endpoint)

    def _slot_freed(self, worker: Worker) -> None:
        self.intake.slot_freed(worker)
        if worker.leaving:
            self.binder.look()

    def _endpoints_changed(self) -> None:
        self.intake.endpoints_changed()
        self.registrar.look()

    def _take_slots(self, config: GatewayConfig, _changes: Sequence[Change]) -> None:
        """Fewer slots end no job: nothing is claimed until enough have ended."""
        for worker in self.workers:
            worker.slots_each = config.workers[worker.name].slots
        self.intake.look()
        self.registrar.look()

    def _take_limits(self, config: GatewayConfig, _changes: Sequence[Change]) -> None:
        self.store.limits = config.limits.store_limits()
        self.runner.result_bytes_max = config.limits.result_bytes_max
        self.registrar.every_s = config.limits.worker_ttl_s / 3
        self.registrar.look()

    def reload(self) -> None:
        """Read the configuration again and take up what may change without a restart."""
        if self.config_watch is not None:
            self.config_watch.reload()

    def _health_changed(self) -> None:
        self.intake.look()
        self.registrar.look()

    def status(self) -> dict[str, Any]:
        """What the process is doing now, for its own HTTP page."""
        return {
            "queue": self.config.queue,
            "instance": self.seams.instance,
            "store_available": self.store.available,
            "draining": self.intake.stopped(),
            "loop_lag_s": self.lag.lag_s,
            "jobs": len(self.keeper),
            "spooled": self.settler.spooled,
            "restart_needed": ", ".join(text_of(change.path) for change in self.reloader.waiting),
            "workers": [worker.status() for worker in self.workers],
        }

    async def run(
        self,
        stop: StopSwitch,
        *,
        extra_services: tuple[ServiceTask, ...] = (),
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Work until stopped.

        Args:
            stop: asks for the end.
            extra_services: further tasks for the outermost nursery (the HTTP page).

        Raises:
            StoreUnavailable: Redis cannot be reached at the start.
        """
        config, seams = self.config, self.seams
        async with trio.open_nursery() as services:
            await self.store.start(services)
            await self._define_limits()
            await self._start_services(services)
            for task in extra_services:
                await services.start(task)
            async with trio.open_nursery() as jobs:
                self._jobs = jobs
                async with trio.open_nursery() as intake:
                    for loop in self.intake.loops():
                        intake.start_soon(loop)
                    log.info(
                        "gateway %s works on queue %s with %d workers",
                        seams.instance, config.queue, len(self.workers),
                    )  # fmt: skip
                    task_status.started()
                    await stop.draining.wait()
                    self.intake.stop()
                    intake.cancel_scope.deadline = trio.current_time() + 2 * config.redis.command_timeout_s
                await self._drain(jobs, stop)
                self._jobs = None
            kept = await self.settler.drain(config.shutdown.release_s)
            if kept:
                log.warning("%d settlements wait on disk for the next start", kept)
            await sign_off(self.store, self.workers, timeout_s=config.shutdown.release_s)
            services.cancel_scope.cancel()
        # Only now: a probe that still runs must not meet a closed connector.
        for worker in self.workers:
            for endpoint in worker.bound:
                with trio.move_on_after(config.runner.cancel_timeout_s, shield=True):
                    await endpoint.connector.aclose()
        log.info("gateway %s has stopped", seams.instance)

    async def _define_limits(self) -> None:
        """Limits of the configuration that the queue does not have yet; before anything is claimed."""
        limits = self.config.limits.queue_limits()
        if not limits:
            return
        answers = await self.store.define_limits(limits, only_new=True)
        for (name, text), (_, kept) in zip(limits, answers, strict=True):
            if kept != text:
                log.warning(
                    "limit %r: the queue keeps its own value %r, not this configuration's %r; "
                    "`gateway limits apply` changes it",
                    name, kept, text,
                )  # fmt: skip

    async def _start_services(self, services: trio.Nursery) -> None:
        config, seams = self.config, self.seams
        for run in (self.keeper.run, self.settler.run, self.pump.run, self.lag.run):
            await services.start(run)
        if config.runner.silence_max_s > 0:
            await services.start(self.runner.watch_silence)

        await services.start(self.binder.run, services)
        periodic = (
            partial(sweep_regularly, every_s=config.lease.sweep_s, random=seams.random("sweeper")),
            partial(observe_regularly, every_s=config.telemetry.queue_look_s, on_return=self.intake.look),
        )
        for duty in periodic:
            await services.start(duty, self.store, seams.observer)
        await services.start(self.registrar.run)
        if self.rollouts:
            await services.start(self.rollouts.run)
        if self.config_watch is not None:
            await services.start(self.config_watch.run)

    async def _drain(self, jobs: trio.Nursery, stop: StopSwitch) -> None:
        """Wait for the running jobs, then interrupt what is left and give it time to be released."""
        grace_s, release_s = self.config.shutdown.grace_s, self.config.shutdown.release_s
        log.info("draining: %d jobs running, grace %g s", len(self.keeper), grace_s)
        with trio.move_on_after(grace_s):
            while jobs.child_tasks and not stop.immediately.is_set():
                with trio.move_on_after(0.05):
                    await stop.immediately.wait()
        self.keeper.interrupt_all()
        bound_s = release_s + self.config.runner.cancel_timeout_s
        jobs.cancel_scope.deadline = trio.current_time() + bound_s
