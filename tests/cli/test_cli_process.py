"""The command as a process: standard input, signals, pipes, environment, start-up cost, and a run to the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.client import Client
from tests.support.hand_worker import fresh_queue

ROOT = Path(__file__).resolve().parents[2]
GATEWAY = (sys.executable, "-m", "gateway.cli")
SIMULATOR = (sys.executable, "-m", "simulator.cli")


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GATEWAY_")}
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error", **more}


def call(*arguments: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*GATEWAY, *arguments], input=stdin, capture_output=True, text=True, timeout=30, check=False,
        env=environment(**more),
    )  # fmt: skip


@contextmanager
def started(command: Sequence[str], *arguments: str, **more: str) -> Iterator[subprocess.Popen[str]]:
    """A process that ends with the block, by force if need be."""
    process = subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**more),
    )
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def first_line(process: subprocess.Popen[str]) -> Any:
    """The first line of its output, JSON; its complaint if there is none."""
    assert process.stdout is not None
    assert process.stderr is not None
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return json.loads(line)


@pytest.fixture
def place(redis_url: str) -> dict[str, str]:
    """Redis and a queue of the test's own, by environment."""
    return {"GATEWAY_REDIS_URL": redis_url, "GATEWAY_QUEUE": fresh_queue()}


def test_payload_from_standard_input(place: dict[str, str], tmp_path: Path) -> None:
    """`-` reads JSON from standard input; the configuration file comes from GATEWAY_CONFIG."""
    config = tmp_path / "gateway.toml"
    config.write_text("[limits]\npayload_bytes_max = 100\n")
    done = call("submit", "simulation", "-", stdin='{"prompt": "ä"}', **place, GATEWAY_CONFIG=str(config))
    assert (done.returncode, done.stderr) == (0, "")
    with Client(place["GATEWAY_REDIS_URL"], queue=place["GATEWAY_QUEUE"]) as client:
        assert client.get(done.stdout.strip()).spec.payload == {"prompt": "ä"}
    bad = call("submit", "simulation", "--file", "-", stdin="{\n1}", **place)
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr.startswith("error: standard input: not valid JSON")
    assert "(line 2 column 1)" in bad.stderr
    large = call("submit", "simulation", json.dumps("x" * 200), "--json", **place, GATEWAY_CONFIG=str(config))
    assert large.returncode == 2
    assert "at most 100" in json.loads(large.stderr)["error"]["message"]


def test_wrong_environment_is_one_line(place: dict[str, str]) -> None:
    """A misspelt variable is told, not ignored."""
    done = call("status", **place, GATEWAY_LEASE_LENGTH_S="9")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "GATEWAY_LEASE__LENGTH_S" in done.stderr


def test_ctrl_c_is_quiet(place: dict[str, str]) -> None:
    """Ctrl-C while following ends with 130 and says nothing."""
    with started(GATEWAY, "events", "--follow", "--json", **place) as follower:
        with Client(place["GATEWAY_REDIS_URL"], queue=place["GATEWAY_QUEUE"]) as client:
            client.submit("simulation", job_id="a")
        assert first_line(follower)["job_id"] == "a"
        follower.send_signal(signal.SIGINT)
        _, complaint = follower.communicate(timeout=10)
        assert (follower.returncode, complaint) == (130, "")


def test_closed_pipe_is_quiet(place: dict[str, str]) -> None:
    """When the reader goes away, as `head` does, we end without a traceback."""
    with Client(place["GATEWAY_REDIS_URL"], queue=place["GATEWAY_QUEUE"]) as client:
        client.submit("simulation", job_id="a")
        with started(GATEWAY, "events", "--follow", "--json", **place) as follower:
            assert first_line(follower)["job_id"] == "a"
            assert follower.stdout is not None
            assert follower.stderr is not None
            follower.stdout.close()
            client.submit("simulation", job_id="b")
            assert follower.wait(10) == 141
            assert follower.stderr.read() == ""


def test_help_imports_nothing_heavy() -> None:
    """`gateway --help` and `submit --help` load neither Redis clients nor event loops nor services."""
    code = (
        "import sys; from gateway.cli.app import run; run(['--help']); run(['submit', '--help']);"
        "heavy = {'gateway.config', 'redis', 'coredis', 'trio', 'anyio', 'grpc', 'httpx', 'opentelemetry'};"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=environment(),
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_run_serves_jobs_until_it_is_told_to_stop(place: dict[str, str], tmp_path: Path) -> None:
    """A gateway against a simulated service: ready line, a job with its result, its pages, exit 0 on SIGTERM."""
    with started(SIMULATOR, "serve", "--http", "--json", "--instances", "1", "--base-port", "0") as simulator:
        endpoint = first_line(simulator)["instances"][0]["url"]
        worker = f"a=simulation-http@{endpoint}"
        options = ["run", "--worker", worker, "--slots", "2", "--api-port", "0", "--json"]
        with started(GATEWAY, *options, "--data-dir", str(tmp_path), **place) as gateway:
            ready = first_line(gateway)
            assert (ready["event"], ready["workers"]) == ("ready", ["a"])
            assert ready["api"].startswith("http://127.0.0.1:")
            done = call("submit", "simulation", "{}", "--wait", "--wait-timeout-s", "20", "--json", **place)
            assert done.returncode == 0, done.stderr
            job = json.loads(done.stdout)
            assert job["state"] == "completed"
            status = json.loads(call("status", "--json", **place).stdout)
            assert [found["connector"] for found in status["workers"]] == ["simulation-http"]
            started_s = time.monotonic()
            gateway.send_signal(signal.SIGTERM)
            gateway.communicate(timeout=20)
            assert gateway.returncode == 0
            assert time.monotonic() - started_s < 10
        assert json.loads(call("status", "--json", **place).stdout)["workers"] == []
