"""Workers and services as real processes on ports of their own: each call reaches the worker's own instance."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway.client import Client
from gateway.errors import InvalidRegistration
from gateway.registration import ServiceEntry
from tests.cli.test_cli_process import GATEWAY, SIMULATOR, call, first_line, started
from tests.support.hand_worker import fresh_queue

NAMES = ("a", "b", "c")
WAIT_S = 30.0


def free_ports(count: int) -> list[int]:
    """Ports nobody listens on just now; all different."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [int(one.getsockname()[1]) for one in sockets]


class Fleet:
    """Simulators by name, one gateway with a worker for each, and a client."""

    def __init__(self, redis_url: str, folder: Path, stack: ExitStack) -> None:
        self.place = {"GATEWAY_REDIS_URL": redis_url, "GATEWAY_QUEUE": fresh_queue()}
        self.redis_url = redis_url
        self.folder = folder
        self.stack = stack
        self.client = stack.enter_context(Client(redis_url, queue=self.place["GATEWAY_QUEUE"]))
        self.services: dict[str, subprocess.Popen[str]] = {}
        self.jobs = 0

    def serve(self, name: str, port: int) -> None:
        """Start an instance, registered."""
        command = [
            *("serve", "--http", "--no-faults", "--json", "--name", name, "--base-port", str(port), "--slots", "8"),
            *("--journal", str(self.folder / f"{name}.ndjson"), "--duration-s", "0.05"),
            *("--register", self.redis_url, "--queue", self.place["GATEWAY_QUEUE"]),
        ]  # fmt: skip
        process = self.stack.enter_context(started(SIMULATOR, *command))
        first_line(process)
        self.services[name] = process

    def end(self, name: str) -> None:
        """Stop an instance as an operator would."""
        process = self.services.pop(name)
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0

    def gateway(self) -> None:
        """Start a gateway whose workers know names and no address."""
        path = self.folder / "gateway.toml"
        path.write_text(
            'machine = "m"\n[health]\nprobe_s = 0.2\n[intake]\npoll_s = 0.2\n'
            + "".join(
                f'[workers.{name}]\nconnector = "simulation-http"\ninstance = "{name}-0"\nslots = 2\n'
                for name in NAMES
            )
        )
        options = ["run", "--config", str(path), "--json", "--data-dir", str(self.folder)]
        first_line(self.stack.enter_context(started(GATEWAY, *options, **self.place)))

    def run(self, count: int) -> None:
        """Jobs, each until its end."""
        ids = [f"job-{self.jobs + number}" for number in range(count)]
        self.jobs += count
        for job_id in ids:
            self.client.submit("simulation", {}, job_id=job_id)
        for job_id in ids:
            assert self.client.wait(job_id, WAIT_S).state == "completed"

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline_s, what
            time.sleep(0.05)

    def endpoints(self) -> dict[str, tuple[str, bool]]:
        """Where each worker sends jobs now, and whether it claims."""
        return {
            view.worker_id.partition("/")[2]: (view.endpoint, view.refusal == "")
            for view in self.client.workers()
        }

    def bound(self, ports: dict[str, int]) -> bool:
        wanted = {name: (f"http://127.0.0.1:{port}", True) for name, port in ports.items()}
        return {name: found for name, found in self.endpoints().items() if name in ports} == wanted

    def judge(self) -> dict[str, int]:
        """Calls by instance: each came from the worker of the same name, and none was meant for another."""
        calls: dict[str, int] = {}
        for name in NAMES:
            entries = [json.loads(line) for line in (self.folder / f"{name}.ndjson").read_text().splitlines()]
            assert {entry["worker"] for entry in entries if entry.get("worker")} <= {f"m/{name}"}
            assert [entry for entry in entries if entry["event"] == "misrouted"] == []
            calls[name] = sum(entry["event"] == "finished" for entry in entries)
        assert sum(calls.values()) == self.jobs
        return calls


@pytest.fixture
def fleet(redis_url: str, tmp_path: Path) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(redis_url, tmp_path, stack)


@pytest.mark.limit_s(180)
def test_every_call_reaches_the_workers_own_endpoint(fleet: Fleet) -> None:
    """At first, after one service moved, after one vanished and came back, and after two swapped ports."""
    ports = dict(zip((*NAMES, "new"), free_ports(4), strict=True))
    for name in NAMES:
        fleet.serve(name, ports[name])
    fleet.gateway()
    at = {name: ports[name] for name in NAMES}
    fleet.until(lambda: fleet.bound(at), "bound at first")
    fleet.run(30)

    fleet.end("c")
    fleet.serve("c", ports["new"])
    at["c"] = ports["new"]
    fleet.until(lambda: fleet.bound(at), "followed the one that moved")
    fleet.run(30)

    fleet.end("b")
    fleet.until(lambda: fleet.endpoints()["b"] == ("", False), "left the one that vanished")
    fleet.run(20)
    fleet.serve("b", ports["b"])

    fleet.end("a")
    fleet.end("b")
    fleet.serve("a", ports["b"])
    fleet.serve("b", ports["a"])
    at |= {"a": ports["b"], "b": ports["a"]}
    fleet.until(lambda: fleet.bound(at), "followed the two that swapped")
    fleet.run(30)
    calls = fleet.judge()
    assert min(calls.values()) >= 10

    shown = json.loads(call("services", "--json", **fleet.place).stdout)
    assert {one["instance"]: one["workers"] for one in shown} == {
        f"{name}-0": [f"m/{name}"] for name in NAMES
    }
    listed = json.loads(call("workers", "--json", **fleet.place).stdout)
    assert [one["worker_id"] for one in listed] == [f"m/{name}" for name in NAMES]
    assert "registry" in call("workers", **fleet.place).stdout


def test_a_sidecar_registers_and_signs_off(fleet: Fleet) -> None:
    """`gateway register` keeps its entry alive, and takes it away at its end; mistakes are one line."""
    options = [
        "register",
        "x",
        "http://127.0.0.1:9",
        "--service",
        "comfyui",
        "--protocol",
        "websocket",
        "--json",
    ]
    options += ["--capabilities", '{"models": ["sdxl"]}', "--ttl-s", "1"]
    with started(GATEWAY, *options, **fleet.place) as sidecar:
        assert first_line(sidecar) == {"service": "x", "status": "registered"}

        def old_enough() -> bool:
            (found,) = json.loads(call("services", "--json", **fleet.place).stdout)
            return bool(found["since_s"] > 1.5)

        fleet.until(old_enough, "it outlives its time because it is renewed")
        (found,) = json.loads(call("services", "--json", **fleet.place).stdout)
        assert (found["id"], found["capabilities"], found["overtaken_by"]) == ("x", {"models": ["sdxl"]}, "")
        sidecar.send_signal(signal.SIGTERM)
        assert sidecar.wait(15) == 0
    assert json.loads(call("services", "--json", **fleet.place).stdout) == []
    once = ["register", "y", "http://127.0.0.1:9", "--service", "comfyui", "--once"]
    assert call(*once, **fleet.place).stdout == "y registered\n"
    assert call(*once, "--unhealthy", **fleet.place).stdout == "y registered\n"
    assert "unhealthy" in call("services", **fleet.place).stdout
    assert call("register", "y", "--remove", **fleet.place).stdout == "y signed off\n"
    assert call("services", **fleet.place).stdout.startswith("no service is registered")


@pytest.mark.parametrize(
    ("service_id", "fields", "fragment"),
    [
        ("y y", {}, "service id 'y y'"),
        ("y", {"url": "nowhere"}, "url: not an address"),
        ("y", {"service": "S"}, "service 'S'"),
        ("y", {"protocol": "smoke"}, "protocol 'smoke'"),
        ("y", {"ttl_s": 0}, "ttl_s = 0"),
        ("y", {"capabilities": {"a": {}}}, "capability 'a'"),
        ("y", {"capabilities": {"a": "x" * 70_000}}, "at most 65536"),
    ],
)
def test_entries_that_no_worker_could_use_are_refused(
    redis_url: str, service_id: str, fields: dict[str, Any], fragment: str
) -> None:
    """Nothing wrong enters the registry, and the field is named."""
    ttl_s = fields.pop("ttl_s", 30.0)
    entry = ServiceEntry(**{"service": "s", "protocol": "http", "url": "http://h:1", **fields})
    with Client(redis_url, queue=fresh_queue()) as client:
        with pytest.raises(InvalidRegistration) as caught:
            client.register(service_id, entry, ttl_s)
        assert fragment in str(caught.value)
        assert client.services() == []
