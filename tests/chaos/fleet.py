"""A real fleet for tests: Redis, simulated services and gateways, each a process that may be killed or paused.

Everything listens on free loopback ports. What happened is read from three witnesses: the queue's event stream, the
services' journals, and what each gateway process told on its standard output.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
import trio

from gateway.audit import Auditor, AuditReport
from gateway.connectors.simulation import wire
from gateway.events import Event
from gateway.models import JobId, JobSpec, JobState, JobView, Submission, SubmitStatus
from gateway.store.calls import StoreLimits
from gateway.store.connection import redis_connect
from gateway.store.keys import QueueKeys
from gateway.store.redis import RedisStore
from tests.support.redis_server import RedisServer

ROOT = Path(__file__).parents[2]
POLL_S = 0.02
START_TIMEOUT_S = 30.0
#: Short times for tests that wait for leases to expire; the proportions are those of the defaults.
SHORT_LEASE: dict[str, Any] = {
    "lease": {"length_s": 3.0, "margin_s": 0.5, "renew_s": 0.8, "sweep_s": 0.2},
    "redis": {"command_timeout_s": 0.8, "connect_timeout_s": 0.8},
}
#: Shorter still, for tests that outlive several leases.
TINY_LEASE: dict[str, Any] = {
    "lease": {"length_s": 2.0, "margin_s": 0.5, "renew_s": 0.5, "sweep_s": 0.2},
    "redis": {"command_timeout_s": 0.5, "connect_timeout_s": 0.5},
}


async def until(condition: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait for a condition, bounded.

    Raises:
        AssertionError: it did not come true in time; ``what`` says what was waited for.
    """
    with trio.move_on_after(timeout_s):
        while not condition():  # noqa: ASYNC110 - another process changes it
            await trio.sleep(POLL_S)
        return
    raise AssertionError(f"not within {timeout_s:g} s: {what}")


def merged(*parts: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, the later ones over the earlier ones."""
    result: dict[str, Any] = {}
    for part in parts:
        for key, value in part.items():
            old = result.get(key)
            result[key] = merged(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return result


class Service:
    """One simulated instance: its address, its journal and its controls."""

    def __init__(self, url: str, name: str) -> None:
        self.url = url
        self.name = name

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    async def _ask(self, method: str, path: str, body: Any = None) -> bytes:
        async with httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=10.0) as client:
            reply = await client.request(method, path, json=body)
            reply.raise_for_status()
            return reply.content

    async def journal(self) -> list[wire.JournalEntry]:
        """All entries kept."""
        body = await self._ask("GET", wire.journal_path(0, 10_000))
        return list(wire.decode(body, wire.JournalPage).entries)

    async def summary(self) -> wire.JournalSummary:
        return wire.decode(await self._ask("GET", wire.JOURNAL_SUMMARY_PATH), wire.JournalSummary)

    async def set_faults(self, **knobs: Any) -> None:
        await self._ask("PUT", wire.CONTROL_FAULTS_PATH, knobs)

    async def control(self, path: str) -> None:
        await self._ask("POST", path)

    async def happened(self, event: wire.JournalEvent, job_id: str) -> int:
        """How often an event stands in the journal for a job of ours (whatever its name there adds)."""
        return sum(entry.event is event and _is_of(entry.id, job_id) for entry in await self.journal())

    async def seen(self, event: wire.JournalEvent, job_id: str, timeout_s: float = 5.0) -> None:
        """Wait until the journal tells an event of a job of ours.

        Raises:
            trio.TooSlowError: it did not in time.
        """
        with trio.fail_after(timeout_s):
            while not await self.happened(event, job_id):  # noqa: ASYNC110 - another process changes it
                await trio.sleep(POLL_S)


def _is_of(name: str, job_id: str) -> bool:
    return name == job_id or name.startswith(job_id + ".")


class GatewayProcess:
    """A gateway process and what it told so far."""

    def __init__(self, folder: Path, machine: str, config: Mapping[str, Any]) -> None:
        self.machine = machine
        self._told = folder / f"{machine}.told"
        self.log = folder / f"{machine}.log"
        path = folder / f"{machine}.json"
        path.write_text(json.dumps(config), "utf-8")
        with self._told.open("wb") as told, self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.chaos.gateway_process", path],
                stdin=subprocess.DEVNULL,
                stdout=told,
                stderr=log,
                cwd=ROOT,
            )

    @property
    def facts(self) -> list[dict[str, Any]]:
        """Everything told, oldest first; a line cut by a kill is left out."""
        lines = self._told.read_bytes().split(b"\n")[:-1]
        return [msgspec.json.decode(line) for line in lines]

    def told(self, fact: str, **fields: object) -> list[dict[str, Any]]:
        """The facts of one kind with these fields."""
        return [
            one
            for one in self.facts
            if one["fact"] == fact and all(one.get(name) == value for name, value in fields.items())
        ]

    async def ready(self) -> None:
        await until(lambda: bool(self.told("ready")) or self.ended, START_TIMEOUT_S, "gateway ready")
        assert not self.ended, self.log.read_text("utf-8")

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def worker_prefix(self) -> str:
        return f"{self.machine}/"

    def kill9(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def exited(self, timeout_s: float) -> int:
        """Exit status, once there is one."""
        await until(lambda: self.ended, timeout_s, f"end of {self.machine}")
        return int(self.process.returncode)

    def connections_to(self, port: int) -> int:
        """Established TCP connections of this process to a loopback port (Linux)."""
        links = [_link(entry) for entry in Path(f"/proc/{self.process.pid}/fd").iterdir()]
        inodes = {link.removeprefix("socket:[").removesuffix("]") for link in links if "socket:" in link}
        rows = [line.split() for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]]
        remote, established = f":{port:04X}", "01"
        return sum(row[2].endswith(remote) and row[3] == established and row[9] in inodes for row in rows)

    def close(self) -> None:
        """End it whatever its state."""
        if not self.ended:
            self.send(signal.SIGCONT)
            self.kill9()


def _link(entry: Path) -> str:
    try:
        return os.readlink(entry)
    except FileNotFoundError:
        return ""


@dataclass
class SimulatorProcess:
    """``simulator serve`` as a process."""

    process: subprocess.Popen[bytes]
    services: list[Service]

    def kill9(self) -> None:
        self.process.kill()
        self.process.wait(10)


def _spawn_simulator(
    folder: Path, name: str, instances: int, slots: int, faults: Sequence[str]
) -> subprocess.Popen[bytes]:
    words = ["serve", "--json", "--base-port", "0", "--instances", str(instances), "--slots", str(slots)]
    words += ["--name", name, "--no-faults", *(word for fault in faults for word in ("--fault", fault))]
    with (folder / f"{name}.out").open("wb") as stdout, (folder / f"{name}.log").open("wb") as stderr:
        return subprocess.Popen(
            [sys.executable, "-m", "simulator.cli", *words], stdout=stdout, stderr=stderr, cwd=ROOT
        )


async def start_simulator(
    folder: Path, *, instances: int = 1, slots: int = 64, faults: Sequence[str] = (), name: str = "sim"
) -> SimulatorProcess:
    """Start ``simulator serve`` without faults but the given ones, on free ports."""
    out = folder / f"{name}.out"
    process = _spawn_simulator(folder, name, instances, slots, faults)
    try:
        await until(lambda: out.read_bytes().endswith(b"\n"), START_TIMEOUT_S, "simulator ready")
    except BaseException:
        process.kill()
        process.wait(10)
        raise
    ready = json.loads(out.read_bytes())
    return SimulatorProcess(process, [Service(one["url"], one["instance"]) for one in ready["instances"]])


class QueueWatch:
    """Submits to one queue, follows its events and has them audited."""

    def __init__(self, store: RedisStore) -> None:
        self.store = store
        self.events: list[Event] = []
        self.auditor = Auditor()
        self.accepted: list[str] = []
        self._after = "0-0"

    async def submit(self, job_id: str, payload: Any = None, **spec: Any) -> str:
        """Put one job into the queue; returns its id."""
        body = JobSpec(**{"service": "simulation", **spec}, payload=payload or {})
        verdict = await self.store.submit(Submission(job_id=JobId(job_id), spec=body))
        assert verdict.status is SubmitStatus.ACCEPTED
        self.accepted.append(job_id)
        return job_id

    async def refresh(self) -> None:
        """Read what is new in the event stream."""
        while True:
            events, self._after = await self.store.events(self._after, count=500)
            if not events:
                return
            self.events += events
            self.auditor.feed(events)

    def of(self, job_id: str) -> list[str]:
        """Event types of one job, in order."""
        return [event.type.value for event in self.events if event.job_id == job_id]

    def count(self, kind: str, job_id: str | None = None) -> int:
        return sum(
            event.type.value == kind and (job_id is None or event.job_id == job_id) for event in self.events
        )

    async def wait_for(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Wait for something to be seen in the events, bounded."""
        with trio.move_on_after(timeout_s):
            while True:
                await self.refresh()
                if condition():
                    return
                await trio.sleep(POLL_S)
        stories = {job_id: self.of(job_id) for job_id in self.accepted[:20]}
        raise AssertionError(f"not within {timeout_s:g} s: {what}; {stories}")

    async def wait_event(self, kind: str, job_id: str, timeout_s: float, *, times: int = 1) -> Event:
        """The ``times``-th event of a kind for a job, as soon as it is there."""
        await self.wait_for(
            lambda: self.count(kind, job_id) >= times, timeout_s, f"{kind} number {times} of {job_id}"
        )
        found = [event for event in self.events if event.type.value == kind and event.job_id == job_id]
        return found[times - 1]

    async def wait_terminal(self, job_ids: Sequence[str], timeout_s: float) -> None:
        """Wait until each of these jobs has ended."""

        def all_ended() -> bool:
            states = [self.auditor.state_of(JobId(job_id)) for job_id in job_ids]
            return all(state in (JobState.COMPLETED, JobState.DEAD, JobState.CANCELLED) for state in states)

        await self.wait_for(all_ended, timeout_s, "all jobs ended")

    async def view(self, job_id: str) -> JobView:
        found = (await self.store.inspect([job_id]))[0]
        assert found is not None
        return found

    async def audited(self, *, all_terminal: bool = True) -> AuditReport:
        """The auditor's verdict on everything so far; fails on any violation."""
        await self.refresh()
        report = self.auditor.finish(
            expect_all_terminal=all_terminal, acknowledged=self.accepted if all_terminal else ()
        )
        assert report.ok, report.violations
        return report


def make_store(url: str, queue: str, instance: str, *, lease_s: float = 15.0) -> RedisStore:
    """A store of the tests' own, beside those of the gateways."""
    return RedisStore(
        redis_connect(url, connect_timeout_s=3.0, command_timeout_s=3.0),
        QueueKeys(queue),
        StoreLimits(),
        lease_s=lease_s,
        instance=instance,
        random=random.Random(instance),
    )


@dataclass
class Fleet:
    """Redis, services and gateways of one test."""

    folder: Path
    redis: RedisServer
    simulator: SimulatorProcess
    watch: QueueWatch
    queue: str
    gateways: dict[str, GatewayProcess] = field(default_factory=dict)

    @property
    def services(self) -> list[Service]:
        return self.simulator.services

    def launch(
        self, machine: str, *settings: Mapping[str, Any], service: int | str = 0, slots: int = 8
    ) -> GatewayProcess:
        """Start a gateway with one worker named ``w`` and return without waiting for it."""
        endpoint = service if isinstance(service, str) else self.services[service].url
        base = {
            "queue": self.queue,
            "redis_url": self.redis.url,
            "data_dir": str(self.folder / "data"),
            "machine": machine,
            "health": {"probe_s": 0.5},
            "workers": {
                "w": {"connector": "simulation-http", "endpoint": endpoint, "slots": slots},
            },
        }
        gateway = GatewayProcess(self.folder, machine, merged(base, *settings))
        self.gateways[machine] = gateway
        return gateway

    async def gateway(self, machine: str, *settings: Mapping[str, Any], **options: Any) -> GatewayProcess:
        """Start a gateway and wait until it claims."""
        gateway = self.launch(machine, *settings, **options)
        await gateway.ready()
        return gateway

    def tails(self) -> str:
        """The end of every gateway's log, for a failed test."""
        return "\n".join(
            f"--- {machine}\n" + "\n".join(gateway.log.read_text("utf-8").splitlines()[-25:])
            for machine, gateway in self.gateways.items()
        )

    async def executions(self) -> dict[str, int]:
        """Starts per name over all services."""
        total: dict[str, int] = {}
        for service in self.services:
            for name, count in (await service.summary()).executions_by_job.items():
                total[name] = total.get(name, 0) + count
        return total


@asynccontextmanager
async def open_fleet(
    *, queue: str = "chaos", instances: int = 1, slots: int = 64, faults: Sequence[str] = ()
) -> AsyncIterator[Fleet]:
    """Redis and services, ready; gateways are started by the test. Everything is ended at the end."""
    with tempfile.TemporaryDirectory(prefix="tg-chaos-") as name:
        folder = Path(name)
        (folder / "redis").mkdir()
        with RedisServer(folder / "redis") as redis:
            simulator = await start_simulator(folder, instances=instances, slots=slots, faults=faults)
            try:
                async with trio.open_nursery() as nursery:
                    store = make_store(redis.url, queue, "tester")
                    await store.start(nursery)
                    fleet = Fleet(folder, redis, simulator, QueueWatch(store), queue)
                    try:
                        yield fleet
                    except Exception as error:
                        error.add_note(fleet.tails())
                        raise
                    finally:
                        for gateway in fleet.gateways.values():
                            gateway.close()
                    nursery.cancel_scope.cancel()
            finally:
                simulator.kill9()
