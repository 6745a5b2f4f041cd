"""The twins of OpenAI-compatible servers and of the web UI say what real servers were recorded to say."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec
import pytest
import trio

from gateway.connectors.simulation import wire
from gateway.connectors.simulation.wire import ErrorKind, JournalEvent, StreamEvent
from simulator.cursor import StreamAct, StreamStep
from simulator.dialects import a1111_words, openai_words
from simulator.dialects.a1111 import A1111Service
from simulator.dialects.openai import OpenAIService
from simulator.dialects.openai_words import Flavour
from simulator.dialects.web import in_order
from tests.connectors.served import Served, served, work

CHAT = "/v1/chat/completions"
DRAW = "/sdapi/v1/txt2img"
#: Silence that a test takes for "nothing comes any more", in seconds.
SILENCE_S = 0.4


@asynccontextmanager
async def openai(**oddities: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Served[OpenAIService]]]:
    async with (
        served(OpenAIService, openai_words.Oddities(**oddities)) as twin,
        httpx.AsyncClient(base_url=twin.url, timeout=5.0) as client,
    ):
        yield client, twin


@asynccontextmanager
async def webui(**oddities: Any) -> AsyncIterator[tuple[httpx.AsyncClient, Served[A1111Service]]]:
    async with (
        served(A1111Service, a1111_words.Oddities(**oddities)) as twin,
        httpx.AsyncClient(base_url=twin.url, timeout=5.0) as client,
    ):
        yield client, twin


def asking(kind: ErrorKind) -> dict[str, Any]:
    return {"simulation": work(fail={"kind": kind, "message": "as asked"})}


ERRORS = [
    (Flavour.OPENAI, ErrorKind.RATE_LIMITED, 429, {"type": "requests", "code": "rate_limit_exceeded"}),
    (Flavour.LITELLM, ErrorKind.RATE_LIMITED, 429, {"type": "throttling_error", "code": "429"}),
    (Flavour.LITELLM, ErrorKind.AUTH, 400, {"type": "no_db_connection", "code": "400"}),
    (Flavour.FAKELLM, ErrorKind.SERVICE_ERROR, 500, {"type": "mock_error", "code": None}),
]


@pytest.mark.parametrize(("flavour", "kind", "status", "names"), ERRORS)
async def test_errors_have_the_shape_of_their_server(
    flavour: Flavour, kind: ErrorKind, status: int, names: dict[str, Any]
) -> None:
    """Status, type and code are those that were recorded; the code is a string at litellm and null at fakellm."""
    async with openai(flavour=flavour) as (client, _twin):
        reply = await client.post(CHAT, json=asking(kind))
        error = reply.json()["error"]
        assert reply.status_code == status
        assert {name: error[name] for name in names} == names
        assert "retry-after" not in reply.headers


async def test_transformers_answer_in_the_detail_of_fastapi() -> None:
    """No ``error`` at all: a text, or a list for a request that is not valid."""
    async with openai(flavour=Flavour.TFSERVE) as (client, _twin):
        assert (await client.post(CHAT, json=asking(ErrorKind.SERVICE_ERROR))).json() == {
            "detail": "as asked"
        }
        refused = await client.post(CHAT, json=asking(ErrorKind.VALIDATION))
        assert refused.status_code == 422
        assert isinstance(refused.json()["detail"], list)


async def test_a_body_that_is_not_json_is_told_as_each_server_does() -> None:
    """fakellm fails at it in plain text, the others refuse it."""
    for flavour, status in ((Flavour.FAKELLM, 500), (Flavour.LITELLM, 400), (Flavour.TFSERVE, 422)):
        async with openai(flavour=flavour) as (client, _twin):
            assert (await client.post(CHAT, content=b"{")).status_code == status


@pytest.mark.parametrize(
    ("oddities", "done", "usages"),
    [
        ({}, True, [[]]),
        ({"flavour": Flavour.LITELLM}, True, [[{"delta": {}}]]),
        ({"flavour": Flavour.TFSERVE}, False, None),
        ({"usage": "null"}, True, [None]),
        ({"usage": "none", "done": False}, False, []),
    ],
)
async def test_a_stream_ends_in_the_manner_of_its_server(
    oddities: dict[str, Any], done: bool, usages: list[Any] | None
) -> None:
    """The end mark may be missing, and the usage comes in a chunk of any kind, in the last one, or not at all."""
    async with openai(**oddities) as (client, _twin):
        reply = await client.post(CHAT, json={"stream": True, "simulation": work(chunks=2)})
        assert reply.headers["content-type"].startswith("text/event-stream")
        data = [line.removeprefix("data: ") for line in reply.text.splitlines() if line.startswith("data: ")]
        assert (data[-1] == "[DONE]") is done
        chunks = [msgspec.json.decode(text) for text in data if text != "[DONE]"]
        finish = next(one for one in chunks if one["choices"] and one["choices"][0].get("finish_reason"))
        told = [one["choices"] for one in chunks if one["usage"]]
        assert told == ([finish["choices"]] if usages is None else usages)


async def test_a_repeat_runs_again() -> None:
    """Neither service recognises a name that it has seen before."""
    async with openai() as (client, twin):
        for _time in range(2):
            headers = {"x-client-request-id": "same"}
            assert (await client.post(CHAT, json={"simulation": work()}, headers=headers)).status_code == 200
        assert len(twin.journal(JournalEvent.FINISHED)) == 2
    async with webui() as (ui, other):
        for _time in range(2):
            body = {"force_task_id": "same", "simulation": work()}
            assert (await ui.post(DRAW, json=body)).status_code == 200
        assert len(other.journal(JournalEvent.FINISHED)) == 2


async def test_a_client_that_leaves_takes_only_its_own_generation_along() -> None:
    """A later run under the same name has a client of its own, which gets its answer."""
    async with openai() as (client, twin):
        headers = {"x-client-request-id": "same"}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_leave, client, headers)
            await twin.seen(JournalEvent.STARTED)
            again = await client.post(CHAT, json={"simulation": work(duration_s=0.6)}, headers=headers)
        assert again.status_code == 200
        assert not twin.journal(JournalEvent.CANCELLED)


async def _leave(client: httpx.AsyncClient, headers: dict[str, str]) -> None:
    with trio.move_on_after(0.3):
        await client.post(CHAT, json={"simulation": work(duration_s=5.0)}, headers=headers)


async def test_a_hung_model_looks_ready_until_a_restart() -> None:
    """The models are listed, the generation never answers, and a restart takes its connection down."""
    async with openai(hung=True) as (client, twin):
        assert (await client.get("/v1/models")).status_code == 200
        with pytest.raises(httpx.ReadTimeout):
            await client.post(CHAT, json={}, timeout=SILENCE_S)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_cut_off, client)
            await twin.seen(JournalEvent.SUBMITTED, 2)
            await client.post(wire.CONTROL_RESTART_PATH)


async def _cut_off(client: httpx.AsyncClient) -> None:
    with pytest.raises((httpx.ReadError, httpx.RemoteProtocolError)):
        await client.post(CHAT, json={})


async def test_journal_and_control_are_those_of_the_simulated_service() -> None:
    """The same paths steer and tell; a wrong oddity is one line, and changes nothing."""
    async with openai() as (client, _twin):
        await client.post(CHAT, json={"simulation": work()}, headers={"x-client-request-id": "a.1"})
        summary = (await client.get(wire.JOURNAL_SUMMARY_PATH)).json()
        assert summary["executions_by_job"] == {"a.1": 1}
        assert (await client.put(wire.CONTROL_FAULTS_PATH, json={"unavailable_rate": 1.0})).status_code == 200
        assert (await client.post(CHAT, json={})).status_code == 503
        changed = await client.put("/control/oddities", json={"flavour": "litellm"})
        assert changed.json()["flavour"] == "litellm"
        for wrong in ({"flavour": "cohere"}, {"flavor": "openai"}):
            refused = await client.put("/control/oddities", json={"truncated": True, **wrong})
            assert refused.status_code == 400
            failure = wire.decode_failure(refused.content)
            assert failure is not None
            assert "\n" not in failure.message
        assert (await client.get("/control/oddities")).json() == changed.json()


async def test_the_web_ui_runs_one_at_a_time_and_tells_of_whatever_runs() -> None:
    """However many slots are configured; the progress names the running task, and is below zero at first."""
    async with webui() as (client, twin):
        async with trio.open_nursery() as nursery:
            for name in ("a", "b"):
                nursery.start_soon(_draw, client, name)
                await twin.seen(JournalEvent.SUBMITTED, 1 if name == "a" else 2)
            assert len(twin.journal(JournalEvent.STARTED)) == 1
            looks = []
            while (look := (await client.get("/sdapi/v1/progress")).json())["current_task"]:
                looks.append(look)
                await trio.sleep(0.02)
        assert [one["current_task"] for one in looks] == sorted(one["current_task"] for one in looks)
        assert {one["current_task"] for one in looks} == {"a", "b"}
        assert any(one["progress"] < 0 and one["state"]["job_count"] == -1 for one in looks)
        assert look["progress"] == 0


async def _draw(client: httpx.AsyncClient, name: str) -> None:
    body = {"force_task_id": name, "simulation": work(duration_s=0.3, steps=10)}
    assert (await client.post(DRAW, json=body)).status_code == 200


async def test_an_interrupt_hits_whoever_runs_and_is_answered_with_an_image() -> None:
    """It names nobody; its victim gets status 200; the flag lasts until the next task begins."""
    async with webui() as (client, twin):
        replies: list[httpx.Response] = []

        async def draw() -> None:
            replies.append(await client.post(DRAW, json={"simulation": work(duration_s=30.0)}))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(draw)
            await twin.seen(JournalEvent.STARTED)
            assert (await client.post("/sdapi/v1/interrupt")).json() == {}
        assert replies[0].status_code == 200
        assert replies[0].json()["images"]
        assert (await client.get("/sdapi/v1/progress")).json()["state"]["interrupted"] is True
        await client.post(DRAW, json={"simulation": work()})
        assert (await client.get("/sdapi/v1/progress")).json()["state"]["interrupted"] is False


@pytest.mark.parametrize("stops", [False, True])
async def test_a_client_that_leaves_does_not_stop_the_web_ui(stops: bool) -> None:
    """The web UI works on; other servers of its interface stop."""
    async with webui(disconnect_stops=stops) as (client, twin):
        with trio.move_on_after(0.2):
            await client.post(DRAW, json={"simulation": work(duration_s=0.5)})
        await twin.seen(JournalEvent.CANCELLED if stops else JournalEvent.FINISHED)


async def test_the_web_ui_refuses_in_its_own_words() -> None:
    """Samplers, images to start from, validation and logins have their statuses and bodies."""
    async with webui(forbids_task_id=True) as (client, _twin):
        sampler = await client.post(DRAW, json={"sampler_name": "none"})
        assert (sampler.status_code, sampler.json()["detail"]) == (404, "Sampler not found")
        image = await client.post("/sdapi/v1/img2img", json={})
        assert (image.status_code, image.json()["detail"]) == (404, "Init image not found")
        named = await client.post(DRAW, json={"force_task_id": "a"})
        assert (named.status_code, named.json()["detail"][0]["loc"]) == (422, ["body", "force_task_id"])
        memory = await client.post(DRAW, json=asking(ErrorKind.OUT_OF_MEMORY))
        assert (memory.status_code, memory.json()["error"]) == (500, "OutOfMemoryError")
        assert (await client.post("/sdapi/v1/unknown")).json() == {"detail": "Not Found"}
    async with webui(credentials="a:b") as (client, _twin):
        refused = await client.get("/sdapi/v1/samplers")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Basic")
        assert (await client.get("/sdapi/v1/samplers", auth=("a", "b"))).status_code == 200
        assert (await client.get("/internal/ping")).json() == {}


def test_one_answer_tells_everything_once_and_in_order() -> None:
    """Whatever the cursor repeats or holds back, one connection cannot."""

    def line(seq: int) -> StreamStep:
        event = StreamEvent(seq=seq, type=wire.EventType.CHUNK, instance="i")
        return StreamStep(StreamAct.LINE, event)

    garbage, end = StreamStep(StreamAct.LINE), StreamStep(StreamAct.END)
    told = in_order([garbage, line(2), line(2), line(1), end])
    assert told == [garbage, line(1), line(2), end]
