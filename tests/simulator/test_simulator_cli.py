"""The command ``simulator`` as a process of its own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from simulator.faults import KNOBS

COMMAND = [sys.executable, "-m", "simulator.cli"]
#: Plain text whatever terminal the tests run in.
ENVIRONMENT = {**os.environ, "NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "120"}
LIMIT_S = 20.0


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=LIMIT_S, env=ENVIRONMENT, check=False
    )


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A running ``simulator serve`` and its first line; killed in the end if it still runs."""
    process = subprocess.Popen(
        [*COMMAND, "serve", "--http", "--base-port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=ENVIRONMENT,
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline()
    finally:
        process.kill()
        process.communicate(timeout=LIMIT_S)


def ask(url: str, method: str = "GET", body: bytes | None = None) -> Any:
    request = urllib.request.Request(url, method=method, data=body)
    with urllib.request.urlopen(request, timeout=LIMIT_S) as response:
        return json.load(response)


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_serve_says_when_it_is_ready_and_stops_cleanly_on_a_signal(
    stop: signal.Signals, tmp_path: Path
) -> None:
    """Both instances answer under their own name, the journal reaches its file, the exit code is 0."""
    faults, journal = tmp_path / "faults.toml", tmp_path / "journal.ndjson"
    faults.write_text("[faults]\nhang_rate = 0.5\nhealth_failure_rate = [[0, 0.25]]\n")
    options = ("--faults", str(faults), "--fault", "hang_rate=0", "--no-faults", "--journal", str(journal))
    with serving("--instances", "2", "--json", "--name", "sim", *options) as (process, line):
        ready = json.loads(line)
        assert ready["ready"] is True
        assert ready["pid"] == process.pid
        assert [one["instance"] for one in ready["instances"]] == ["sim-0", "sim-1"]
        first, second = (one["url"] for one in ready["instances"])
        knobs = ask(f"{first}/control/faults")
        assert (knobs["hang_rate"], knobs["health_failure_rate"]) == (0, [[0, 0.25]])
        assert (
            ask(f"{first}/v1/jobs", "POST", b'{"id": "j", "payload": {"duration_s": 0}}')["instance"]
            == "sim-0"
        )
        assert ask(f"{first}/journal/summary")["completed"] == 1
        assert ask(f"{second}/journal/summary")["completed"] == 0
        process.send_signal(stop)
        out, err = process.communicate(timeout=LIMIT_S)
        assert (process.returncode, out, err) == (0, "", "")
    entries = [json.loads(text) for text in journal.read_text().splitlines()]
    assert [(one["instance"], one["event"]) for one in entries] == [
        ("sim-0", "submitted"),
        ("sim-0", "started"),
        ("sim-0", "finished"),
    ]


def test_serve_prints_one_line_per_instance_for_people() -> None:
    """Without --json the address can be read and copied."""
    with serving() as (process, line):
        name, _, url = line.strip().partition(" listening on ")
        assert name == "simulation-0"
        assert ask(f"{url}/journal/summary")["instance"] == name
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0


def test_a_busy_port_is_one_clear_line_and_exit_code_2() -> None:
    """A taken port is neither a traceback nor a silent other port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = call("serve", "--http", "--base-port", str(port))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"port {port} on 127.0.0.1 is taken" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--fault", "hang_rate=2"], "allowed is a number from 0 to 1"),
        (["--fault", "hangrate=1"], "hang_rate"),
        (["--faults", "/nonexistent.toml"], "cannot read the faults"),
        (["--journal", "/nonexistent/journal"], "cannot write the journal"),
        (["--base-port", "65535", "--instances", "2"], "leaves no ports"),
        (["--host", "192.0.2.1", "--base-port", "0"], "cannot listen on 192.0.2.1"),
        (["--duration-s", "1e9"], "duration_s"),
        (["--no-http"], "nothing to serve"),
    ],
)
def test_a_bad_option_is_one_clear_line_and_exit_code_2(arguments: list[str], said: str) -> None:
    """Whatever is wrong at the start is said in one line."""
    done = call("serve", "--http", *arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_faults_lists_every_knob() -> None:
    """The table for people and the one for scripts know the same knobs."""
    table = json.loads(call("faults", "--json").stdout)
    assert [row["name"] for row in table] == list(KNOBS)
    shown = call("faults")
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in KNOBS)


def test_help_teaches_by_example() -> None:
    """Help shows commands to copy and the exit codes."""
    assert "serve" in call("--help").stdout
    shown = call("serve", "--help").stdout
    assert "--fault lost_completion_rate=0.5" in shown
    assert "Exit codes" in shown
    assert "/control/restart" in shown
