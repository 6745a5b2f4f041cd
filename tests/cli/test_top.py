"""``gateway top``: one view, views for programs and for people, a narrow terminal, Ctrl-C, Redis that goes away."""

from __future__ import annotations

import fcntl
import io
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from gateway.cli.top import render
from gateway.client import Client
from gateway.overview import Overview, Rates, ServiceRow, WorkerRow
from tests.cli.test_cli_process import GATEWAY, call, environment, first_line, started
from tests.support.hand_worker import fresh_queue, hand_worker
from tests.support.redis_server import RedisServer

DEADLINE_S = 30.0


@pytest.fixture
def place(redis_url: str) -> dict[str, str]:
    """Redis and a queue of the test's own, by environment."""
    return {"GATEWAY_REDIS_URL": redis_url, "GATEWAY_QUEUE": fresh_queue()}


def row(name: str, state: str = "claims") -> WorkerRow:
    return WorkerRow(
        worker=name, connector="simulation-http", endpoints=("http://10.0.0.1:8188",), running=1, slots=2,
        state=state, breakers={"closed": 1}, seen_s=1.0,
    )  # fmt: skip


def service(name: str) -> ServiceRow:
    return ServiceRow(
        id=name, service="simulation", url="http://10.0.0.1:8188", protocol="http", instance="", machine="",
        healthy=True, capabilities={}, ends_in_s=20.0, since_s=5.0, overtaken_by="", workers=("m/a",),
    )  # fmt: skip


def view(workers: int, services: int = 0) -> Overview:
    return Overview(
        queue="renders", at_ms=1_700_000_000_000, paused=True, pending=7, scheduled=0, waiting=0, running=1,
        finished=3, dead=2, oldest_wait_s=4.0, classes={"x": 4, "y": 3}, rates=Rates(window_s=10.0, claimed=2.5),
        slots=2 * workers, slots_busy=workers, breakers={"closed": workers},
        workers=tuple(row(f"m/{number}") for number in range(workers)),
        services=tuple(service(f"s{number}") for number in range(services)),
    )  # fmt: skip


def drawn(shown: Overview, width: int, height: int | None = None) -> list[str]:
    out = Console(width=width, file=io.StringIO(), color_system=None)
    with out.capture() as captured:
        out.print(render(shown, width=width, height=height))
    return captured.get().splitlines()


@pytest.mark.parametrize("width", [38, 64, 80, 100, 200])
@pytest.mark.parametrize("workers", [0, 1, 100])
@pytest.mark.parametrize("services", [0, 1, 100])
def test_a_view_fits_its_terminal(width: int, workers: int, services: int) -> None:
    """Whatever the width and the fleet, no line is longer than the terminal, and no view higher than 30 lines."""
    lines = drawn(view(workers, services), width, height=30)
    assert max(len(line) for line in lines) <= width
    assert len(lines) <= 30
    text = "\n".join(lines)
    for part in (
        "queue renders   paused, nothing is claimed" if width > 40 else "queue renders\npaused, ",
        "pending 7",
        "dead 2",
        "oldest wait 4.0 s",
        "claimed 2.5/s",
    ):
        assert part in text
    assert ("no worker is registered" in text.replace("\n", " ")) is (workers == 0)
    assert ("more workers" in text) is (workers == 100)
    assert ("more services" in text) is (services == 100)


@pytest.mark.parametrize("width", [38, 64, 80, 120])
def test_a_long_reason_hides_no_name(width: int) -> None:
    """However long a worker's reason is, its name and its slots stay whole; without a terminal so does the reason."""
    reason = "unhealthy: GET http://10.0.0.1:8188/health: 10.0.0.1:8188 refused the connection"
    shown = msgspec.structs.replace(view(0), workers=(row("machine-1/comfyui-gpu0", reason),))
    line = next(line for line in drawn(shown, width) if line.startswith("machine-1"))
    assert line.startswith("machine-1/comfyui-gpu0")
    assert "1/2" in line
    assert len(line) <= width
    assert reason in "".join(drawn(shown, 1000))


def test_the_width_decides_the_columns() -> None:
    """What can be looked up elsewhere is left out on a narrow terminal; without a terminal everything is shown."""
    heads = [
        next(line.split() for line in drawn(view(1), width) if line.startswith("worker"))
        for width in (40, 80, 120)
    ]
    assert heads == [
        ["worker", "state", "slots"],
        ["worker", "state", "slots", "breaker", "seen"],
        ["worker", "state", "slots", "breaker", "seen", "connector", "endpoint"],
    ]
    assert len([line for line in drawn(view(200), 1000) if line.startswith("m/")]) == 200


def test_one_view(place: dict[str, str]) -> None:
    """`--once` shows jobs, rates of the last seconds and workers, for people and for programs, and ends."""
    url, queue = place["GATEWAY_REDIS_URL"], place["GATEWAY_QUEUE"]
    with Client(url, queue=queue) as client, hand_worker(url, queue) as worker:
        client.submit("simulation", job_id="a")
        client.submit("simulation", job_id="b")
        worker.complete()
        described = {"service": "simulation", "slots": 2, "running": 2, "endpoint": "http://h:1"}
        worker.register("m/w", described)
        told = json.loads(call("top", "--once", "--json", **place).stdout)
        text = call("top", "--once", **place).stdout
    assert (told["queue"], told["pending"], told["finished"], told["dead"]) == (queue, 1, 1, 0)
    assert told["rates"]["submitted"] == pytest.approx(2 / told["rates"]["window_s"], abs=0.01)
    assert told["rates"]["completed"] == pytest.approx(1 / told["rates"]["window_s"], abs=0.01)
    assert [(found["worker"], found["state"]) for found in told["workers"]] == [("m/w", "all slots busy")]
    assert (told["slots"], told["slots_busy"]) == (2, 2)
    assert "pending 1" in text
    assert re.search(r"^m/w +all slots busy +2/2", text, re.MULTILINE)
    assert not any(line != line.rstrip() for line in text.splitlines())


def test_views_follow_each_other_until_ctrl_c(place: dict[str, str]) -> None:
    """For programs one object per line, each newer than the last; Ctrl-C ends with 130 and says nothing."""
    with started(GATEWAY, "top", "--json", "--every-s", "0.2", **place) as top:
        first, second = first_line(top), first_line(top)
        assert first["at_ms"] < second["at_ms"]
        with Client(place["GATEWAY_REDIS_URL"], queue=place["GATEWAY_QUEUE"]) as client:
            client.submit("simulation")
        views = (first_line(top) for _ in range(100))
        assert next(shown for shown in views if shown["pending"])["rates"]["submitted"] > 0
        top.send_signal(signal.SIGINT)
        _, complaint = top.communicate(timeout=DEADLINE_S)
        assert (top.returncode, complaint) == (130, "")


def test_it_stays_while_redis_is_away(tmp_path: Path) -> None:
    """A watcher is not ended by a Redis that restarts: it says so in one line and goes on with views."""
    with RedisServer(tmp_path) as server:
        place = {"GATEWAY_REDIS_URL": server.url}
        with started(GATEWAY, "top", "--json", "--every-s", "0.2", **place) as top:
            before = first_line(top)
            server.kill9()
            assert top.stderr is not None
            assert top.stderr.readline().startswith("no view, trying again: ")
            server.start()
            views = (first_line(top) for _ in range(1000))
            assert next(shown for shown in views if shown["at_ms"] > before["at_ms"])["queue"] == "default"
            top.send_signal(signal.SIGINT)
            top.communicate(timeout=DEADLINE_S)
            assert top.returncode == 130


@contextmanager
def on_terminal(
    rows: int, columns: int, *arguments: str, **more: str
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The command on a pseudo terminal of this size, and our end of it."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = subprocess.Popen(
        [*GATEWAY, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True,
        env=environment(TERM="xterm-256color", **more),
    )  # fmt: skip
    os.close(theirs)
    with process:
        try:
            yield process, ours
        finally:
            if process.poll() is None:
                process.kill()
            os.close(ours)


def read_until(ours: int, wanted: str | None) -> str:
    """What appears on the terminal up to some text, or (None) to its end."""
    seen = b""
    deadline_s = time.monotonic() + DEADLINE_S
    while wanted is None or wanted.encode() not in seen:
        ready, _, _ = select.select([ours], [], [], max(deadline_s - time.monotonic(), 0))
        assert ready, seen.decode(errors="replace")
        try:
            piece = os.read(ours, 65_536)
        except OSError:  # the other end is closed
            piece = b""
        if not piece:
            assert wanted is None, seen.decode(errors="replace")
            break
        seen += piece
    return seen.decode()


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_on_a_terminal_it_redraws_and_leaves_no_trace(place: dict[str, str], ending: signal.Signals) -> None:
    """On a narrow terminal it draws in the other screen, and gives the first one and the cursor back at the end."""
    with on_terminal(24, 40, "top", "--every-s", "0.2", **place) as (top, ours):
        assert "\x1b[?1049h" in read_until(ours, "no worker is registered")
        read_until(ours, "no worker is registered")
        top.send_signal(ending)
        left = read_until(ours, None)
        assert top.wait(DEADLINE_S) == 130
        assert "\x1b[?1049l" in left
        assert "\x1b[?25h" in left
        assert "Traceback" not in left
