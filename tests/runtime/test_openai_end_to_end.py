"""A gateway with real telemetry runs jobs at OpenAI-compatible and web UI twins: tokens counted, no secret told."""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import pytest
import trio
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gateway.config import TelemetryConfig, load_config
from gateway.connectors.simulation.wire import ErrorKind, JournalEvent
from gateway.models import CancelStatus, JobState, JobView
from gateway.spool import MemorySpool
from gateway.store.connection import redis_connect
from gateway.supervisor import Gateway, Seams, StopSwitch
from gateway.telemetry import Telemetry, build_telemetry
from simulator.dialects.a1111 import A1111Service
from simulator.dialects.a1111_words import Oddities as WebUIOddities
from simulator.dialects.openai import OpenAIService
from simulator.dialects.openai_words import Oddities
from tests.chaos.fleet import merged
from tests.connectors.served import Served, served, work
from tests.runtime.live import QUICK, LiveGateway, Notes, Stage, open_stage

KEY = "sk-runtime-55e0b1d7a93c4f28"
LOGIN = "operator:runtime-3c1d90fe"
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def chat(*, stream: bool = True, **members: Any) -> dict[str, Any]:
    body = {"model": "m", "messages": [], "stream": stream, "simulation": work(**members)}
    return {"operation": "chat", "body": body}


async def run_gateway(stage: Stage, telemetry: Telemetry, worker: Mapping[str, Any]) -> LiveGateway:
    """A gateway of one worker whose event sink is the real one."""
    settings = {"queue": stage.queue, "machine": "m", "workers": {"w": worker}}
    config = load_config(overrides=merged(settings, QUICK))
    connect = redis_connect(
        stage.redis_url,
        connect_timeout_s=config.redis.connect_timeout_s,
        command_timeout_s=config.redis.command_timeout_s,
    )
    seams = Seams(
        connect_redis=connect,
        instance=f"{stage.queue}-m",
        machine="m",
        random=lambda label: random.Random(f"{stage.queue}/{label}"),
        observer=telemetry,
        spool=MemorySpool(),
    )
    live = LiveGateway(Gateway(config, seams), StopSwitch(), Notes())
    await stage.nursery.start(_run, live)
    stage.gateways.append(live)
    return live


async def _run(live: LiveGateway, *, task_status: trio.TaskStatus[None]) -> None:
    with live.scope:
        await live.gateway.run(live.stop, task_status=task_status)
    live.stopped.set()


def told(
    telemetry: Telemetry,
    spans: InMemorySpanExporter,
    caplog: pytest.LogCaptureFixture,
    twin: Served[Any],
    views: Sequence[JobView],
) -> dict[str, str]:
    """Everything that was told about the jobs, by where; the payload is the submitter's own."""
    assert telemetry.shutdown()
    finished = spans.get_finished_spans()
    assert finished, "nothing was traced"
    known = [{**msgspec.to_builtins(view), "spec": None} for view in views]
    return {
        "queue": msgspec.json.encode(known).decode(),
        "spans": "\n".join(span.to_json() for span in finished),
        "journal": repr(twin.journal()),
        "logs": "\n".join(f"{record.getMessage()} {record.exc_info}" for record in caplog.records),
        "metrics": telemetry.exposition()[0].decode(),
    }


async def test_a_key_is_told_nowhere_and_tokens_are_counted(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Over success, failures and a wrong key: no log line, span, metric, event, result or journal shows the key."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("RUNTIME_API_KEY", KEY)
    spans = InMemorySpanExporter()
    telemetry = build_telemetry(TelemetryConfig(), span_exporter=spans)
    async with (
        served(OpenAIService, Oddities(key=KEY)) as twin,
        open_stage(redis_url, "openai-secret") as stage,
    ):
        worker = {
            "connector": "openai-http",
            "endpoint": twin.url,
            "options": {"api_key": {"env": "RUNTIME_API_KEY"}},
        }
        await run_gateway(stage, telemetry, worker)
        watch = stage.watch
        good = [
            await watch.submit(
                f"good-{stream}", chat(stream=stream, chunks=3, result=f"it is {KEY}"), service="openai"
            )
            for stream in (True, False)
        ]
        fails = {"kind": ErrorKind.VALIDATION, "message": f"bad key {KEY}?"}
        bad = await watch.submit("bad", chat(fail=fails), service="openai")
        await watch.wait_terminal([*good, bad], 10)
        twin.twin.set_oddities({"key": "another"})
        wrong = await watch.submit("wrong", chat(), service="openai")
        await watch.wait_terminal([wrong], 10)
        views = [await watch.view(job) for job in (*good, bad, wrong)]
        assert [view.state for view in views] == [JobState.COMPLETED] * 2 + [JobState.DEAD] * 2
        await watch.audited()
        counted = telemetry.snapshot()
        assert counted['consumed_total{service="openai",kind="output_tokens"}'] == 6
        assert counted['consumed_total{service="openai",kind="input_tokens"}'] == 6
    found = told(telemetry, spans, caplog, twin, views)
    assert [where for where, text in found.items() if KEY in text] == []
    assert "[redacted]" in found["queue"]


async def test_a_login_is_told_nowhere(
    redis_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same of the user and password for a web UI, plain and as HTTP Basic sends them."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("RUNTIME_LOGIN", LOGIN)
    spans = InMemorySpanExporter()
    telemetry = build_telemetry(TelemetryConfig(), span_exporter=spans)
    oddities = WebUIOddities(credentials=LOGIN)
    async with served(A1111Service, oddities) as twin, open_stage(redis_url, "a1111-secret") as stage:
        options = {"credentials": {"env": "RUNTIME_LOGIN"}}
        worker = {"connector": "a1111-http", "endpoint": twin.url, "options": options}
        await run_gateway(stage, telemetry, worker)
        watch = stage.watch
        good = await watch.submit("good", {"prompt": LOGIN, "simulation": work()}, service="a1111")
        await watch.wait_terminal([good], 10)
        twin.twin.set_oddities({"credentials": "another:one"})
        wrong = await watch.submit("wrong", {"prompt": "a", "simulation": work()}, service="a1111")
        await watch.wait_terminal([wrong], 10)
        views = [await watch.view(job) for job in (good, wrong)]
        assert [view.state for view in views] == [JobState.COMPLETED, JobState.DEAD]
        assert views[1].error is not None
        assert views[1].error["kind"] == "auth"
    found = told(telemetry, spans, caplog, twin, views)
    assert [where for where, text in found.items() if LOGIN in text or "b3BlcmF0b3I6" in text] == []


async def test_a_cancel_reaches_each_peer(redis_url: str) -> None:
    """An operator's cancel ends the work at both services: by the connection's end, and by the interrupt."""
    telemetry = build_telemetry(TelemetryConfig())
    async with (
        served(OpenAIService) as chats,
        served(A1111Service) as pictures,
        open_stage(redis_url, "cancel-web") as stage,
    ):
        cases: list[tuple[Served[Any], str, Any]] = [
            (chats, "openai", chat(duration_s=30.0)),
            (pictures, "a1111", {"prompt": "a", "simulation": work(duration_s=30.0)}),
        ]
        for twin, service, payload in cases:
            live = await run_gateway(stage, telemetry, {"connector": f"{service}-http", "endpoint": twin.url})
            job = await stage.watch.submit(service, payload, service=service)
            await twin.seen(JournalEvent.STARTED)
            assert await stage.watch.store.cancel([job]) == [CancelStatus.REQUESTED]
            await stage.watch.wait_event("cancelled", job, 10)
            await twin.seen(JournalEvent.CANCELLED)
            assert not twin.journal(JournalEvent.FINISHED)
            live.stop.drain()
            await live.stopped.wait()
        await stage.watch.audited()
