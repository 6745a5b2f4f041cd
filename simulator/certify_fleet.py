"""A real fleet under test: Redis, simulated services and gateways as processes, and what their queue tells.

Blocking throughout; the processes do the work. Used by ``simulator certify`` and the pytest plugin.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from gateway.audit import Auditor, AuditReport
from gateway.client import Client, JobRequest
from gateway.connectors.simulation import wire
from gateway.events import Event
from gateway.fleet import ChildProcess, FleetFailed, read_journal, request, toml_text
from gateway.lifecycle import ENDS, EventType
from gateway.models import JobId
from simulator.certify_config import FleetSetup, ServiceAddress, child_environment
from simulator.certify_redis import PrivateRedis
from simulator.faults import FaultPlan

#: Events kept for timelines and plots; the auditor itself needs none of them.
EVENTS_KEPT_MAX = 400_000
#: Longest time for one call of ours, with repetitions: an outage of Redis is part of the test.
CLIENT_TIMEOUT_S = 20.0
#: A gateway that has nothing to do ends at once; after this time it counts as stuck.
STOP_TIMEOUT_S = 15.0
_KEEPS_LEASE = frozenset({EventType.CANCEL_REQUESTED, EventType.REFUSED, EventType.PROMOTED})


class ServiceHandle:
    """One simulated service instance: its address, what it did, and its controls. All calls block shortly.

    Args:
        url: its base URL.
        instance: its own name.
        control_url: where its journal and its controls are; by default its base URL.
    """

    def __init__(self, url: str, instance: str, control_url: str = "") -> None:
        self.url = url
        self.instance = instance
        self.control_url = control_url or url

    def journal(self) -> list[wire.JournalEntry]:
        """Everything it did, in order: submitted, started, finished, misrouted, ..."""
        return list(read_journal(self.control_url).entries)

    def summary(self) -> wire.JournalSummary:
        """Its journal in numbers."""
        return wire.decode(request(self.control_url, "GET", wire.JOURNAL_SUMMARY_PATH), wire.JournalSummary)

    def set_faults(self, **knobs: Any) -> None:
        """Change some knobs from now on; see ``simulator faults``.

        Raises:
            FleetFailed: an unknown knob, or a value out of range.
        """
        request(self.control_url, "PUT", wire.CONTROL_FAULTS_PATH, knobs)

    def restart(self) -> None:
        """Let it forget all its jobs; the journal survives."""
        request(self.control_url, "POST", wire.CONTROL_RESTART_PATH)

    def pause(self) -> None:
        """Let it answer nothing until ``resume``."""
        request(self.control_url, "POST", wire.CONTROL_PAUSE_PATH)

    def resume(self) -> None:
        """Let it go on."""
        request(self.control_url, "POST", wire.CONTROL_RESUME_PATH)


class Rig:
    """The processes of one fleet, from enter to exit.

    Args:
        folder: for data, configurations and logs.
        setup: what the gateways run.
        knobs: faults of the services.
        seed: of the services' dice.
        gateways: processes to start, named ``gateway-0`` and so on.
        import_path: folders that the gateways import from first.
        check: called while it waits for a start; may raise to give up.

    Raises:
        FleetFailed: on entering: a part did not start.
        StoreError: on entering: Redis cannot be had.
    """

    def __init__(
        self,
        folder: Path,
        setup: FleetSetup,
        *,
        knobs: FaultPlan,
        seed: int,
        gateways: int,
        import_path: Sequence[str] = (),
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        self.setup = setup
        self.redis = PrivateRedis(folder / "redis")
        self.services: list[ServiceHandle] = []
        self.gateways: dict[str, ChildProcess] = {}
        self.worker_ids: dict[str, frozenset[str]] = {}
        self.auditor = Auditor()
        self.events: deque[Event] = deque(maxlen=EVENTS_KEPT_MAX)
        self.accepted: list[str] = []
        self.ended: set[str] = set()
        self._knobs = knobs
        self._check = check
        self._seed = seed
        self._names = [f"gateway-{number}" for number in range(gateways)]
        self._environment = child_environment(import_path)
        self._stack = ExitStack()
        self._client: Client | None = None
        self._cursor = "0-0"
        self._owners: dict[str, str] = {}
        self._expected_dead: set[str] = set()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.redis)
            self._start_services(stack)
            self._client = stack.enter_context(
                Client(
                    self.redis.url,
                    queue=self.setup.config.queue,
                    limits=self.setup.config.limits.store_limits(),
                    timeout_s=CLIENT_TIMEOUT_S,
                )
            )
            stack.callback(self._end_gateways)
            for name in self._names:
                self.launch(name)
            for name in self._names:
                self.gateways[name].first_line(check=self._check)
                self._learn_workers(name)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @property
    def client(self) -> Client:
        """A client of the fleet's queue.

        Raises:
            FleetFailed: the fleet does not run.
        """
        if self._client is None:
            raise FleetFailed("the fleet does not run")
        return self._client

    def _start_services(self, stack: ExitStack) -> None:
        """Start the simulated instances, a process per dialect, and list them by number."""
        dialects = self.setup.dialects
        if not dialects:
            return
        knobs = self.folder / "faults.toml"
        knobs.write_text(toml_text(self._knobs.to_mapping()), "utf-8")
        started: dict[str, Iterator[ServiceHandle]] = {}
        for spoken in dict.fromkeys(dialects):
            name = "service" if len(set(dialects)) == 1 else f"service-{spoken}"
            command = [sys.executable, "-P", "-m", "simulator.cli", "serve", "--json", "--base-port", "0"]
            command += ["--dialect", spoken, "--instances", str(dialects.count(spoken)), "--name", name]
            command += ["--seed", str(self._seed), "--slots", str(self.setup.slots(len(self._names) or 1))]
            process = stack.enter_context(
                self._spawn([*command, "--faults", str(knobs)], self.folder / f"{name}.log")
            )
            ready = process.first_line(check=self._check)["instances"]
            started[spoken] = iter(
                [ServiceHandle(one["url"], one["instance"], one["control_url"]) for one in ready]
            )
        self.services = [next(started[spoken]) for spoken in dialects]

    def _learn_workers(self, name: str) -> None:
        self.worker_ids[name] = frozenset(
            worker.worker_id for worker in self.client.workers() if worker.capabilities.get("machine") == name
        )

    def _spawn(self, command: Sequence[str], log: Path) -> ChildProcess:
        return ChildProcess(command, log, environment=self._environment, own_group=True)

    def launch(self, name: str) -> None:
        """Start a gateway process of this name, without waiting until it claims."""
        addresses = [ServiceAddress(service.url, service.instance) for service in self.services]
        values = self.setup.values(name, self.redis.url, self.folder / f"{name}.data", addresses)
        config = self.folder / f"{name}.toml"
        config.write_text(toml_text(values), "utf-8")
        command = [sys.executable, "-P", "-m", "gateway.cli", "run", "--json", "--config", str(config)]
        log = self.folder / f"{name}.log"
        self._expected_dead.discard(name)
        self.gateways[name] = self._spawn(command, log)

    def kill(self, name: str) -> None:
        """End a gateway by SIGKILL."""
        self._expected_dead.add(name)
        self.gateways[name].kill()

    def starting(self) -> bool:
        """Whether a gateway has been launched that does not claim yet."""
        return any(not process.ended and not process.ready for process in self.gateways.values())

    def crashed(self) -> list[str]:
        """Gateways that ended though nobody ended them."""
        return [
            name
            for name, process in self.gateways.items()
            if process.ended and name not in self._expected_dead
        ]

    def stop_gateways(self) -> dict[str, int | None]:
        """End all gateways gently; exit codes by name, None for one that had to be killed."""
        running = [name for name, process in self.gateways.items() if not process.ended]
        codes = {name: self.gateways[name].stop(STOP_TIMEOUT_S) for name in running}
        self._expected_dead |= set(running)
        return codes

    def _end_gateways(self) -> None:
        for process in self.gateways.values():
            process.kill()

    def submit(self, requests: Iterable[JobRequest]) -> list[str]:
        """Put jobs into the queue; returns the ids that were accepted."""
        result = self.client.submit_many(requests, allow_unknown_service=True)
        result.raise_for_refused()
        accepted: list[str] = [outcome.handle.job_id for outcome in result.accepted]
        self.accepted += accepted
        return accepted

    def follow(self) -> None:
        """Read what is new in the queue's events."""
        for event in self.client.events(self._cursor, follow=False):
            self._cursor = event.cursor
            self.auditor.feed([event])
            self.events.append(event)
            if event.type in ENDS:
                self.ended.add(event.job_id)
            elif event.type is EventType.REQUEUED:
                self.ended.discard(event.job_id)
            if event.type is EventType.CLAIMED:
                self._owners[event.job_id] = event.worker_id
            elif event.type not in _KEEPS_LEASE:
                self._owners.pop(event.job_id, None)

    def running_at(self, name: str) -> int:
        """How many jobs a gateway holds right now, as far as the events tell."""
        ours = self.worker_ids.get(name, frozenset())
        return sum(worker_id in ours for worker_id in self._owners.values())

    def owner_of(self, job_id: str) -> str | None:
        """Name of the gateway that holds a job, as far as the events tell; None for nobody."""
        worker_id = self._owners.get(job_id)
        return next((name for name, ours in self.worker_ids.items() if worker_id in ours), None)

    def wait(self, job_ids: Collection[str], timeout_s: float, poll_s: float = 0.02) -> bool:
        """Follow the events until these jobs have ended; False when they had not in time."""
        deadline_s = time.monotonic() + timeout_s
        while True:
            self.follow()
            if self.ended.issuperset(job_ids):
                return True
            if time.monotonic() > deadline_s:
                return False
            time.sleep(poll_s)

    def report(self, *, all_terminal: bool) -> AuditReport:
        """The auditor's verdict on everything so far."""
        self.follow()
        return self.auditor.finish(
            expect_all_terminal=all_terminal, acknowledged=self.accepted if all_terminal else ()
        )

    def story(self, job_id: str) -> list[Event]:
        """What the events tell of one job."""
        return [event for event in self.events if event.job_id == JobId(job_id)]

    def journals(self) -> Mapping[str, wire.JournalPage]:
        """Every service's journal, by instance."""
        return {service.instance: read_journal(service.control_url) for service in self.services}
