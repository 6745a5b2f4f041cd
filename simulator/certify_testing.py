"""What tests hold in their hands: a simulated service in a thread, and a fleet of real gateway processes.

Behind the fixtures of ``simulator.pytest_plugin``; usable without pytest as context managers.
"""

from __future__ import annotations

import functools
import importlib
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import trio

from gateway.audit import AuditReport
from gateway.client import JobRequest
from gateway.config import load_config
from gateway.connector import Connector
from gateway.connectors.registry import default_registry
from gateway.connectors.simulation.wire import FailureWish, WorkPayload
from gateway.errors import ConnectorError
from gateway.fleet import FleetFailed
from gateway.models import JobView
from protocols.http_server import ServerHandle
from simulator.certify import Conductor, SilentWatcher, TimedJob
from simulator.certify_config import DIALECT_DEFAULT, FleetSetup, simulated_keys
from simulator.certify_fleet import Rig, ServiceHandle
from simulator.fault_plans import FleetFaults
from simulator.faults import FaultPlan
from simulator.model import ServiceConfig
from simulator.plan import PlannedJob
from simulator.seeding import streams
from simulator.services.http import SimulationHTTPService

SERVICE_SLOTS = 64
START_TIMEOUT_S = 10.0
WAIT_TIMEOUT_S = 30.0
#: Longest wait at a test's end for jobs that it did not wait for itself.
DRAIN_TIMEOUT_S = 30.0
POLL_S = 0.02
STORIES_MAX = 5
#: A tenth of the default times, so that a test sees a recovery after 3 s instead of 15 s; same proportions.
SHORT_TIMES: dict[str, Any] = {
    "lease": {"length_s": 3.0, "margin_s": 0.5, "renew_s": 0.8, "sweep_s": 0.2},
    "redis": {"command_timeout_s": 0.8, "connect_timeout_s": 0.8},
    "health": {"probe_s": 0.5},
}


class FleetTimeout(AssertionError):
    """Jobs had not ended in time; the message has their stories."""


@contextmanager
def serve_in_thread(
    knobs: FaultPlan, *, seed: int = 0, slots: int = SERVICE_SLOTS, instance: str = "service-0"
) -> Iterator[ServiceHandle]:
    """A simulated service on a real socket, in a trio run of its own in a thread: the caller may block or not.

    Args:
        knobs: its faults.
        seed: repeats its decisions.
        slots: executions at once.
        instance: its own name.

    Raises:
        FleetFailed: it did not start within 10 s.
    """
    ready: queue.SimpleQueue[ServerHandle] = queue.SimpleQueue()
    stop: queue.SimpleQueue[tuple[trio.lowlevel.TrioToken, trio.CancelScope]] = queue.SimpleQueue()

    class Told:
        """Hands the server's address to the other thread."""

        def started(self, handle: ServerHandle) -> None:
            ready.put(handle)

    async def main() -> None:
        with trio.CancelScope() as scope:
            stop.put((trio.lowlevel.current_trio_token(), scope))
            config = ServiceConfig(instance=instance, slots=slots)
            service = SimulationHTTPService(config, knobs, random_for=streams(seed, instance))
            told: Any = Told()
            await service.run(host="127.0.0.1", port=0, task_status=told)

    thread = threading.Thread(target=functools.partial(trio.run, main), name=instance, daemon=True)
    thread.start()
    try:
        token, scope = stop.get(timeout=START_TIMEOUT_S)
        try:
            yield ServiceHandle(ready.get(timeout=START_TIMEOUT_S).url, instance)
        finally:
            token.run_sync_soon(scope.cancel)
            thread.join(START_TIMEOUT_S)
    except queue.Empty:
        raise FleetFailed(f"{instance} did not start within {START_TIMEOUT_S:g} s") from None


@dataclass(frozen=True, slots=True)
class FoundConnector:
    """A connector as the gateway processes will find it: key, class, and folders to import it from."""

    kind: type[Connector]
    import_path: tuple[str, ...] = ()


def find_connector(wanted: str | type[Connector], folder: Path) -> FoundConnector:
    """Resolve a key, a class path ``module:Class``, or a class.

    A class that no installed package offers is offered to the gateway processes as an installed package would: by an
    entry point in the group ``gateway.connectors``, from a package description in ``folder``.

    Args:
        wanted: which connector.
        folder: for that description.

    Raises:
        ConnectorError: there is no such connector, or other processes could not import it.
    """
    registry = default_registry()
    if isinstance(wanted, str):
        if ":" not in wanted:
            return FoundConnector(registry.load(wanted))
        module_name, _, class_name = wanted.partition(":")
        try:
            wanted = getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError) as error:
            raise ConnectorError(f"connector {module_name}:{class_name}: {error}") from error
    if not (isinstance(wanted, type) and issubclass(wanted, Connector)):
        raise ConnectorError(f"connector {wanted!r}: neither a key, nor module:Class, nor a Connector class")
    if wanted.key in registry.keys and registry.load(wanted.key) is wanted:
        return FoundConnector(wanted)
    module = sys.modules[wanted.__module__]
    file = getattr(module, "__file__", None)
    if file is None or "." in wanted.__qualname__ or module.__name__ == "__main__":
        raise ConnectorError(
            f"connector {wanted.__module__}.{wanted.__qualname__}: put the class at the top of a module file, "
            "so that a gateway process can import it"
        )
    info = folder / "fleet_connector-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fleet-connector\nVersion: 0\n", "utf-8")
    point = f"[gateway.connectors]\n{wanted.key} = {module.__name__}:{wanted.__qualname__}\n"
    (info / "entry_points.txt").write_text(point, "utf-8")
    home = Path(file).resolve().parents[module.__name__.count(".") + (Path(file).name == "__init__.py")]
    return FoundConnector(wanted, (str(folder), str(home)))


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetWish:
    """What a test asks of its fleet.

    Attributes:
        connector: a key, ``module:Class``, or the class itself.
        gateways, services: processes and simulated instances; every gateway has one worker per instance.
        slots: jobs at once of each worker.
        endpoint: address of the test's own service, instead of the simulated ones.
        options: the connector's own.
        settings: further configuration, over the short times of ``SHORT_TIMES``.
        unfinished_ok: jobs may be left unfinished at the end.
    """

    connector: str | type[Connector] = "simulation-http"
    gateways: int = 2
    services: int = 1
    slots: int = 4
    endpoint: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    unfinished_ok: bool = False


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        old = merged.get(key)
        merged[key] = (
            _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
        )
    return merged


def _setup(wish: FleetWish, kind: type[Connector]) -> FleetSetup:
    names = [f"worker-{number}" for number in range(1 if wish.endpoint else wish.services)]
    workers = {
        name: {
            "connector": kind.key,
            "endpoint": wish.endpoint or "http://127.0.0.1:1",
            "slots": wish.slots,
            "options": dict(wish.options),
        }
        for name in names
    }
    overrides = _merged({**SHORT_TIMES, "queue": "fleet", "workers": workers}, wish.settings)
    config = load_config(overrides=overrides, environment={})
    places = {} if wish.endpoint else {name: number for number, name in enumerate(names)}
    spoken = simulated_keys().get(kind.key, DIALECT_DEFAULT)
    return FleetSetup(
        config=config,
        source="test",
        places=places,
        left=(),
        kinds=((kind.service, spoken),),
        dialects=(spoken,) * len(places),
        asked=kind.capabilities.query,
    )


class FleetHandle:
    """A running fleet in a test's hands. Calls block; in an async test hand the long ones to a thread.

    Args:
        rig: the running processes.
        plan: whose timed faults :meth:`run` lets happen.
        unfinished_ok: jobs may be left unfinished at the end.
    """

    def __init__(self, rig: Rig, plan: FleetFaults, *, unfinished_ok: bool) -> None:
        self._rig = rig
        self._unfinished_ok = unfinished_ok
        self.plan = plan

    @property
    def redis_url(self) -> str:
        """The fleet's own Redis."""
        return self._rig.redis.url

    @property
    def queue(self) -> str:
        """Name of its queue."""
        return self._rig.setup.config.queue

    @property
    def services(self) -> list[ServiceHandle]:
        """The simulated instances."""
        return self._rig.services

    @property
    def gateways(self) -> list[str]:
        """Names of the gateway processes that run."""
        return [name for name, process in self._rig.gateways.items() if not process.ended]

    def submit(self, payload: Any = None, **options: Any) -> str:
        """Put one job into the queue.

        Args:
            payload: the service's own request, any JSON value.
            options: further arguments of ``gateway.client.JobRequest``.

        Returns:
            Its id.
        """
        return self._rig.submit([JobRequest(self._rig.setup.service, payload, **options)])[0]

    def wait(self, *job_ids: str, timeout_s: float = WAIT_TIMEOUT_S) -> list[JobView]:
        """Wait until jobs have ended; all that were submitted, when none is named.

        Raises:
            FleetTimeout: one had not ended in time.
        """
        wanted = list(job_ids or self._rig.accepted)
        if not self._rig.wait(wanted, timeout_s):
            late = [job_id for job_id in wanted if job_id not in self._rig.ended]
            raise FleetTimeout(f"not ended within {timeout_s:g} s: {', '.join(late)}\n{self.timeline(late)}")
        return [view for view in self._rig.client.get_many(wanted) if view is not None]

    def run(
        self, jobs: Sequence[PlannedJob | JobRequest | Mapping[str, Any]], *, timeout_s: float = 60.0
    ) -> list[JobView]:
        """Submit jobs, let the plan's kills, pauses, outages and restarts happen, and wait for every end.

        Args:
            jobs: what ``simulator.strategies.workloads()`` draws, requests, or plain payloads.
            timeout_s: longest time after the last fault, seconds.

        Raises:
            FleetTimeout: a job had not ended in time.
        """
        timed = sorted((self._timed(job) for job in jobs), key=lambda job: job.at_s)
        known = set(self._rig.accepted)
        Conductor(self._rig, self.plan.faults, SilentWatcher()).run(timed, settle_s=timeout_s)
        fresh = [job_id for job_id in self._rig.accepted if job_id not in known]
        return self.wait(*fresh, timeout_s=0.0) if fresh else []

    def _timed(self, job: PlannedJob | JobRequest | Mapping[str, Any]) -> TimedJob:
        if isinstance(job, JobRequest):
            return TimedJob(0.0, job)
        service = self._rig.setup.service
        if not isinstance(job, PlannedJob):
            return TimedJob(0.0, JobRequest(service, dict(job)))
        fail = None if job.fail is None else msgspec.convert(job.fail, FailureWish)
        work = WorkPayload(duration_s=job.duration_s, chunks=job.chunks, fail=fail)
        payload = self._rig.setup.payload(service, work)
        request = JobRequest(
            service,
            payload,
            priority=job.priority,
            timeout_s=job.timeout_s,
            max_attempts=job.max_attempts,
            delay_s=job.delay_s,
            job_id=job.job_id,
        )
        return TimedJob(job.at_s, request)

    def owner(self, job_id: str, *, timeout_s: float = WAIT_TIMEOUT_S) -> str:
        """Name of the gateway that runs a job, as soon as one does.

        Raises:
            FleetTimeout: nobody claimed it in time.
        """
        deadline_s = time.monotonic() + timeout_s
        while True:
            self._rig.follow()
            name = self._rig.owner_of(job_id)
            if name is not None:
                return name
            if time.monotonic() > deadline_s:
                raise FleetTimeout(f"nobody runs {job_id} after {timeout_s:g} s\n{self.timeline([job_id])}")
            time.sleep(POLL_S)

    def kill(self, name: str) -> None:
        """End a gateway by SIGKILL."""
        self._rig.kill(name)

    def restart(self, name: str) -> None:
        """Start a gateway again, killing it first if it runs; returns when it claims jobs."""
        self._rig.kill(name)
        self._rig.launch(name)
        self._rig.gateways[name].first_line()

    def pause(self, name: str) -> None:
        """Stop a gateway by SIGSTOP, as a machine that hangs."""
        self._rig.gateways[name].pause()

    def resume(self, name: str) -> None:
        """Let a paused gateway go on."""
        self._rig.gateways[name].resume()

    def kill_redis(self) -> None:
        """End Redis by SIGKILL; it stays down until :meth:`start_redis`."""
        self._rig.redis.kill()

    def start_redis(self) -> None:
        """Start Redis again on its data."""
        self._rig.redis.start()

    def executions(self, job_id: str) -> int:
        """How often the simulated services started a job."""
        return sum(
            count
            for service in self.services
            for name, count in service.summary().executions_by_job.items()
            if name == job_id or name.startswith(f"{job_id}.")
        )

    def story(self, job_id: str) -> list[str]:
        """Types of a job's events, in order."""
        self._rig.follow()
        return [event.type.value for event in self._rig.story(job_id)]

    def timeline(self, job_ids: Sequence[str]) -> str:
        """What happened to jobs, one line per event; the first few jobs."""
        lines = []
        for job_id in job_ids[:STORIES_MAX]:
            events = self._rig.story(job_id)
            lines.append(f"{job_id}:" if events else f"{job_id}: no event")
            lines += [
                f"  {(event.at_ms - events[0].at_ms) / 1000:8.3f} s  {event.type.value:<14} "
                f"{event.worker_id:<22} epoch {event.epoch} {event.detail[:80]}".rstrip()
                for event in events
            ]
        if len(job_ids) > STORIES_MAX:
            lines.append(f"and {len(job_ids) - STORIES_MAX} further jobs")
        return "\n".join(lines)

    def audit(self) -> AuditReport:
        """The auditor's verdict on everything so far, ends not asked for."""
        return self._rig.report(all_terminal=False)

    def judge(self, *, at_end: bool = True) -> list[str]:
        """The final verdict: empty when every promise held, else what was broken with the jobs' timelines.

        Args:
            at_end: every job must have ended. Waits for those that nobody waited for, as long as a gateway lives
                that could finish them.
        """
        at_end = at_end and not self._unfinished_ok
        self._rig.redis.start()
        self._rig.follow()
        open_jobs = [job_id for job_id in self._rig.accepted if job_id not in self._rig.ended]
        if open_jobs and self.gateways and at_end:
            self._rig.wait(open_jobs, DRAIN_TIMEOUT_S)
        report = self._rig.report(all_terminal=at_end)
        broken = [f"{one.invariant.value}: {one.job_id}: {one.message}" for one in report.violations]
        broken += [
            f"misrouted: {page.summary.misrouted} requests at {instance}"
            for instance, page in self._rig.journals().items()
            if page.summary.misrouted
        ]
        broken += [
            f"{name} ended by itself: {self._rig.gateways[name].log_tail()}" for name in self._rig.crashed()
        ]
        if broken:
            jobs = list(dict.fromkeys(str(one.job_id) for one in report.violations))
            broken.append(self.timeline(jobs))
        return broken


@contextmanager
def open_fleet(folder: Path, wish: FleetWish, plan: FleetFaults) -> Iterator[FleetHandle]:
    """A running fleet: Redis, simulated services and gateways as processes; all end with the block.

    Args:
        folder: for data, settings and logs.
        wish: what the gateways run.
        plan: faults and seed; its sizes and workload do not matter here.

    Raises:
        ConfigError, ConnectorError: the wish cannot be fulfilled.
        FleetFailed: a part did not start.
    """
    found = find_connector(wish.connector, folder / "import")
    setup = _setup(wish, found.kind)
    rig = Rig(
        folder,
        setup,
        knobs=plan.knobs,
        seed=plan.seed,
        gateways=wish.gateways,
        import_path=found.import_path,
    )
    with rig:
        yield FleetHandle(rig, plan, unfinished_ok=wish.unfinished_ok)
