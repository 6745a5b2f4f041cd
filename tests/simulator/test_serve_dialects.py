"""``simulator serve`` for every dialect of the catalogue, as a process of its own."""

from __future__ import annotations

import json
import random
import signal
import socket
import urllib.error
from pathlib import Path
from typing import Any

import pytest
import trio

from gateway.connector import ConnectorSetup, JobResult
from gateway.connectors.registry import default_registry
from gateway.connectors.simulation.wire import WorkPayload
from gateway.models import JobSpec
from protocols.base import Endpoint, open_tcp
from simulator.contract import RecordingJob
from simulator.dialects.catalogue import DIALECTS, Dialect
from simulator.faults import FaultPlan
from simulator.model import ServiceConfig
from simulator.seeding import streams
from simulator.services.control import serve_control
from simulator.services.shell import ServiceShell
from simulator.serving import Fleet, StartError, places
from tests.simulator.test_simulator_cli import LIMIT_S, ask, call, serving


async def run_one(one: Dialect, url: str) -> JobResult:
    """One job through a connector of the dialect, over a real socket."""
    setup = ConnectorSetup(
        endpoint=Endpoint.parse(url),
        open_stream=open_tcp,
        random=random.Random(0),
        now_s=trio.current_time,
        options=dict(one.options),
    )
    key = one.connectors[0]
    connector = default_registry().load(key)(setup)
    payload = one.payload_for(WorkPayload(duration_s=0.05, result="mark-1"))
    job = RecordingJob(JobSpec(service=connector.service, payload=payload))
    with trio.fail_after(LIMIT_S):
        try:
            assert (await connector.health()).healthy
            return await connector.run(job)
        finally:
            await connector.aclose()


@pytest.mark.parametrize("one", DIALECTS, ids=lambda one: one.name)
def test_every_dialect_is_served_and_steered(one: Dialect, tmp_path: Path) -> None:
    """A connector runs a job there; faults, journal and restart are at its control address; the journal has it."""
    journal = tmp_path / "journal.ndjson"
    options = ("--dialect", one.name, "--json", "--no-faults", "--journal", str(journal))
    with serving(*options) as (process, line):
        (ready,) = [found for found in json.loads(line)["instances"] if found["dialect"] == one.name]
        assert ready["protocol"] == one.scheme
        assert ready["instance"] == f"{one.instance_name}-0"
        trio.run(run_one, one, ready["url"])
        control = ready["control_url"]
        assert ask(f"{control}/journal/summary")["completed"] == 1
        assert ask(f"{control}/control/faults", "PUT", b'{"hang_rate": 0.5}')["hang_rate"] == 0.5
        assert ask(f"{control}/control/restart", "POST")["instance"] == ready["instance"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0
    entries = [json.loads(text) for text in journal.read_text().splitlines()]
    assert "finished" in {entry["event"] for entry in entries}


def test_several_dialects_each_by_so_many_instances() -> None:
    """Every one of them has its own name and port, and repeating a wish changes nothing."""
    names = list(dict.fromkeys(["simulation-http", *(one.name for one in DIALECTS)]))[:2]
    wishes = [word for name in names for word in ("--dialect", name)]
    with serving(*wishes, "--instances", "2", "--json", "--name", "twin") as (_process, line):
        ready = json.loads(line)["instances"]
    assert [one["instance"] for one in ready] == [f"twin-{number}" for number in range(2 * len(names))]
    assert len({one["port"] for one in ready}) == len(ready)
    assert [one["dialect"] for one in ready] == [name for name in names for _ in range(2)]


def test_port_is_base_port() -> None:
    """The port can be named either way."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = call("serve", "--dialect", "simulation-http", "--port", str(port))
    assert done.returncode == 2
    assert f"port {port} on 127.0.0.1 is taken" in done.stderr


def test_an_unknown_dialect_is_one_line_that_lists_the_known_ones() -> None:
    """Nothing is served, and the line says what could be."""
    done = call("serve", "--dialect", "comfy-ui")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("simulator: unknown dialect 'comfy-ui': known are ")
    assert all(one.name in done.stderr for one in DIALECTS)


def fleet(*dialects: Dialect, **changes: Any) -> Fleet:
    plain: dict[str, Any] = {
        "instances": 1, "base_port": None, "host": "127.0.0.1", "name": "", "seed": 0, "slots": 1, "duration_s": 0.1,
    }  # fmt: skip
    return Fleet(dialects=dialects, plan=FaultPlan.none(), **{**plain, **changes})


def test_ports_are_those_where_such_services_listen() -> None:
    """Without a wish each dialect begins at its own port; two that want one port are refused at the start."""
    one = Dialect(name="one", twin="nowhere:Nobody", scheme="http", port=9000, connectors=())
    two = Dialect(name="two", twin="nowhere:Nobody", scheme="http", port=9001, connectors=())
    assert [place.port for place in places(fleet(one, two))] == [9000, 9001]
    assert [place.instance for place in places(fleet(one, two, name="x"))] == ["x-0", "x-1"]
    assert [place.port for place in places(fleet(one, two, base_port=0))] == [0, 0]
    assert [place.port for place in places(fleet(one, two, base_port=7000, instances=2))] == [
        *(7000, 7001, 7002, 7003),
    ]
    with pytest.raises(StartError, match="port 9001 is wanted by one-1 and by two-0"):
        places(fleet(one, two, instances=2))
    with pytest.raises(StartError, match="leaves no ports"):
        places(fleet(one, base_port=65_535, instances=2))


def status_of(url: str) -> int:
    """The status of an answer that is no success."""
    try:
        ask(url)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    return 200


async def test_a_service_without_http_is_steered_beside() -> None:
    """Its journal and its control verbs have a listener of their own; nothing else is answered there."""
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            config = ServiceConfig(instance="twin-0")
            shell = ServiceShell(config, FaultPlan.none(), random_for=streams(0, "twin-0"))
            handle = await nursery.start(lambda **named: serve_control(shell, host="127.0.0.1", **named))
            told = await trio.to_thread.run_sync(ask, f"{handle.url}/journal/summary")
            assert told["instance"] == "twin-0"
            await trio.to_thread.run_sync(ask, f"{handle.url}/control/faults", "PUT", b'{"hang_rate": 1}')
            assert shell.service.faults.hang_rate == 1
            assert await trio.to_thread.run_sync(status_of, f"{handle.url}/v1/jobs") == 404
            nursery.cancel_scope.cancel()
