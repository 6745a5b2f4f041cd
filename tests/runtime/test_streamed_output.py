"""Streamed output, end to end: a reader that goes away and comes back misses nothing and reads nothing twice."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from contextlib import aclosing
from typing import Any

import msgspec
import pytest
import trio

from gateway.cli.app import run as gateway_command
from gateway.cli.output import EXIT_INTERRUPTED
from gateway.client import AsyncClient, Client
from gateway.client.core import StreamItem
from gateway.connectors.simulation.wire import CONTROL_PAUSE_PATH, CONTROL_RESUME_PATH, JournalEvent
from gateway.models import JobId
from tests.runtime.live import open_stage
from tests.support.hand_worker import fresh_queue

CHUNKS = 24
#: The command as in a terminal: a process started from a background job inherits that interrupts are ignored.
INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from gateway.cli import main
main()
"""
WORK = {"duration_s": 1.5, "steps": 3, "chunks": CHUNKS}


def numbers(items: list[StreamItem]) -> list[int]:
    """The numbers that the service gave to the chunks."""
    return [item.data["index"] for item in items if item.kind == "chunk"]


async def test_a_reader_that_comes_back_resumes_by_id(redis_url: str) -> None:
    """Three clients read one job's stream in turns, each after the last id of the one before: all chunks, each once."""
    queue = fresh_queue()
    with trio.fail_after(30):
        async with open_stage(redis_url, queue) as stage:
            await stage.gateway({"w": await stage.service()})
            await stage.watch.submit("job", payload=WORK)
            read: list[StreamItem] = []
            for turn in range(3):
                async with AsyncClient(redis_url, queue=queue) as client:
                    seen: list[StreamItem] = []
                    async with aclosing(client.job_stream("job", read[-1].id if read else "0-0")) as items:
                        async for item in items:
                            seen.append(item)
                            if turn < 2 and len(seen) == 5:
                                break  # the reader goes away in the middle
                    read += seen
            assert numbers(read) == list(range(1, CHUNKS + 1))
            assert len({item.id for item in read}) == len(read)


async def test_the_commands_reader_resumes_by_id(redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`gateway watch --after ID` goes on where an earlier reader stopped, through the synchronous client as well."""
    queue = fresh_queue()
    with trio.fail_after(30):
        async with open_stage(redis_url, queue) as stage:
            await stage.gateway({"w": await stage.service()})
            await stage.watch.submit("job", payload=WORK)
            first = await trio.to_thread.run_sync(_some, redis_url, queue, 4)
            command = [
                "watch",
                "job",
                "--json",
                "--after",
                first[-1].id,
                "-q",
                queue,
                "--redis-url",
                redis_url,
            ]
            assert await trio.to_thread.run_sync(gateway_command, command) == 0
    lines: list[dict[str, Any]] = [msgspec.json.decode(line) for line in capsys.readouterr().out.splitlines()]
    rest = [line["data"]["index"] for line in lines if line.get("kind") == "chunk"]
    assert numbers(first) + rest == list(range(1, CHUNKS + 1))
    assert lines[-1]["state"] == "completed"


async def test_an_interrupted_watch_tells_how_to_go_on(redis_url: str) -> None:
    """Ctrl-C ends `gateway watch` with the command that goes on; both show every chunk, one of them at most twice."""
    queue = fresh_queue()
    with trio.fail_after(80):
        async with open_stage(redis_url, queue) as stage:
            service = await stage.service()
            await stage.gateway({"w": service})
            await stage.watch.submit("job", payload={**WORK, "duration_s": 6.0})
            await trio.to_thread.run_sync(_some, redis_url, queue, 5)
            # The job stands still meanwhile: however slow this machine is, it does not end before the interrupt.
            await service.control(CONTROL_PAUSE_PATH)
            where = ("-q", queue, "--redis-url", redis_url)
            out, err = await trio.to_thread.run_sync(_interrupted_watch, where)
            await service.control(CONTROL_RESUME_PATH)
            hint = err.strip().splitlines()[-1]
            assert hint.startswith("to go on from here: gateway watch job --after ")
            command = [sys.executable, "-m", "gateway.cli", *hint.split("gateway ", 1)[1].split(), *where]
            done = await trio.run_process(command, capture_stdout=True)
    lines = out + done.stdout.decode()
    chunks = [int(text) for text in re.findall(r'^chunk \d+: .*"index":(\d+)', lines, re.MULTILINE)]
    assert sorted(set(chunks)) == list(range(1, CHUNKS + 1))
    assert len(chunks) <= CHUNKS + 1


def _interrupted_watch(where: tuple[str, ...]) -> tuple[str, str]:
    """Watch until some chunks were shown, then interrupt as Ctrl-C does; what was written."""
    command = [sys.executable, "-c", INTERRUPTIBLE, "watch", "job", *where]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        head = "".join(process.stdout.readline() for _ in range(4))
        process.send_signal(signal.SIGINT)
        # Not communicate(): it would leave out what readline() has read ahead.
        tail, err = process.stdout.read(), process.stderr.read()
    assert process.returncode == EXIT_INTERRUPTED
    return head + tail, err


def _some(redis_url: str, queue: str, count: int) -> list[StreamItem]:
    """The first entries of the job's stream; the reader leaves while the job runs."""
    seen: list[StreamItem] = []
    with Client(redis_url, queue=queue) as client:
        for item in client.job_stream("job"):
            seen.append(item)
            if len(seen) == count:
                break
        assert not client.get("job").terminal, "the job ended before the reader left"
    return seen


async def test_a_retried_attempt_is_told_apart(redis_url: str) -> None:
    """Chunks of an attempt that was started over carry its older epoch; those of the newest are complete."""
    queue = fresh_queue()
    with trio.fail_after(30):
        async with open_stage(redis_url, queue) as stage:
            service = await stage.service(out_of_memory_rate=1.0)
            await stage.gateway({"w": service})
            await stage.watch.submit("job", payload={**WORK, "duration_s": 0.3}, max_attempts=3)
            await service.seen(JournalEvent.STARTED, "job")
            await service.set_faults(out_of_memory_rate=0.0)
            async with AsyncClient(redis_url, queue=queue) as client:
                read = [item async for item in client.job_stream("job")]
                assert (await client.get(JobId("job"))).state == "completed"
    newest = max(item.epoch for item in read)
    assert numbers([item for item in read if item.epoch == newest]) == list(range(1, CHUNKS + 1))
    older = numbers([item for item in read if item.epoch < newest])
    assert older == list(range(1, len(older) + 1))
    assert 0 < len(older) < CHUNKS
