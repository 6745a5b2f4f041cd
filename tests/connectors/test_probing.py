"""Which models an instance tells when it is probed: each connector against its twin, and servers that cannot say."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock as Clock

from gateway.connectors.comfyui.wire import CHECKPOINTS_PATH, LOADER_PATH, read_loader
from gateway.connectors.model_lists import LIST_BYTES_MAX, names_in
from gateway.connectors.openinference.grpc import MODELS_MAX, REPOSITORY_INDEX
from gateway.errors import FaultClass, JobFault
from protocols.grpc_channel import CallEnded, Code
from protocols.grpc_service import IncomingCall
from protocols.http_responder import Responder, ServerRequest
from protocols.proto import inference_pb2 as pb
from simulator.dialects.a1111 import A1111Service
from simulator.dialects.a1111_words import Oddities as WebUIOddities
from simulator.dialects.openai import OpenAIService
from simulator.dialects.openai_words import Oddities as OpenAIOddities
from simulator.dialects.openinference import MODEL, OpenInferenceService
from simulator.dialects.web import WebTwin
from simulator.faults import FaultPlan
from simulator.model import ServiceConfig
from simulator.seeding import streams
from tests.connectors.served import bytes_answer, make_connector, scripted, served
from tests.connectors.test_openinference_connector import against, virtual
from tests.support.comfyui_stage import CONNECTORS, open_comfyui

MODELS = ("sdxl", "flux")
OVER_HTTP = ("a1111-http", "comfyui-http", "comfyui-websocket", "openai-http")
COMFYUI = pytest.mark.parametrize("key", sorted(CONNECTORS))


async def told_by(url: str, key: str, **options: Any) -> dict[str, Any]:
    connector = make_connector(key, url, **options)
    try:
        return dict(await connector.probe_capabilities())
    finally:
        await connector.aclose()


async def fault_by(url: str, key: str, **options: Any) -> JobFault:
    with pytest.raises(JobFault) as caught:
        await told_by(url, key, **options)
    return caught.value


# ── over HTTP ──


@COMFYUI
@pytest.mark.parametrize("models_api", [True, False])
async def test_comfyui_tells_its_checkpoints(autojump_clock: Clock, key: str, *, models_api: bool) -> None:
    """The checkpoints are told by file name, by servers with the list and by older ones with the node alone."""
    async with open_comfyui(models=MODELS, models_api=models_api) as stage:
        connector = stage.connector(key)
        assert await connector.probe_capabilities() == {"models": list(MODELS)}
        wanted = [CHECKPOINTS_PATH] if models_api else [CHECKPOINTS_PATH, LOADER_PATH]
        assert [path for _method, path in stage.requests] == wanted
        await connector.aclose()


@pytest.mark.parametrize(
    ("key", "twin", "oddities", "options", "own"),
    [
        (
            "openai-http",
            OpenAIService,
            OpenAIOddities(key="k-12345678"),
            {"api_key": "k-12345678"},
            ["simulated"],
        ),
        (
            "a1111-http",
            A1111Service,
            WebUIOddities(credentials="u:p-345678"),
            {"credentials": "u:p-345678"},
            [],
        ),
    ],
)
async def test_a_server_behind_a_login_tells_its_models(
    key: str, twin: type[WebTwin[Any]], oddities: Any, options: dict[str, Any], own: list[str]
) -> None:
    """The question carries the login; without it the refusal is a fault, and no secret is in it."""
    async with served(twin, oddities, models=MODELS) as running:
        assert await told_by(running.url, key, **options) == {"models": [*own, *MODELS]}
        assert (await fault_by(running.url, key)).fault_class is FaultClass.AUTH
        wrong = {name: f"{value}-wrong" for name, value in options.items()}
        fault = await fault_by(running.url, key, **wrong)
        assert fault.fault_class is FaultClass.AUTH
        assert "345678-wrong" not in str(fault)
        assert fault.__cause__ is None


@pytest.mark.parametrize("key", OVER_HTTP)
async def test_a_server_without_a_list_tells_nothing(key: str) -> None:
    """A list that does not exist is no fault: nothing is known, and nothing gates."""
    async with scripted(bytes_answer(b"404: Not Found", 404, "text/plain")) as script:
        assert await told_by(script.url, key) == {}


@pytest.mark.parametrize("key", OVER_HTTP)
@pytest.mark.parametrize(
    ("body", "status", "wanted"),
    [
        (b"<html>", 200, FaultClass.PROTOCOL),
        (b"[" * 100_000, 200, FaultClass.PROTOCOL),
        (b'"models"', 200, FaultClass.PROTOCOL),
        (b"", 200, FaultClass.PROTOCOL),
        (b"[" + b" " * LIST_BYTES_MAX + b"]", 200, FaultClass.VALIDATION),
        (b"Internal Server Error", 500, FaultClass.SERVICE_ERROR),
        (b"", 503, FaultClass.UNAVAILABLE),
    ],
    ids=["page", "nested", "text", "empty", "endless", "500", "503"],
)
async def test_an_answer_that_is_no_list_is_a_fault(
    key: str, body: bytes, status: int, wanted: FaultClass
) -> None:
    """Whatever comes instead of a bounded list is a typed fault, so that what was told before holds on."""
    async with scripted(bytes_answer(body, status)) as script:
        assert (await fault_by(script.url, key)).fault_class is wanted


async def test_the_list_of_models_lies_below_the_base_url() -> None:
    """The models are asked for where requests go, whatever is asked for health."""
    body = b'{"data": [{"id": "a"}, {"id": 7}, "b", {"id": "a"}, {"id": ""}, {}, {"id": "c"}]}'
    async with scripted(bytes_answer(body)) as script:
        url = f"{script.url}/api/v4"
        assert await told_by(url, "openai-http", health_path="/health") == {"models": ["a", "c"]}
        assert [request.path for request in script.requests] == ["/api/v4/models"]


async def test_the_login_is_in_no_name() -> None:
    """A server that repeats the login in its list does not get it into the capabilities."""
    login = "user:pass-phrase-9c1"

    async def repeat(request: ServerRequest, responder: Responder) -> None:
        coded = request.headers["authorization"].removeprefix("Basic ")
        given = base64.b64decode(coded).decode()
        await responder.send_json(200, [{"model_name": given}, {"model_name": coded}])

    async with scripted(repeat) as script:
        told = await told_by(script.url, "a1111-http", credentials=login)
        assert "pass-phrase-9c1" not in str(told)
        assert base64.b64encode(login.encode()).decode() not in str(told)


@given(names=st.lists(st.text(min_size=1), unique=True), form=st.sampled_from(["old", "new"]))
def test_either_form_of_the_loading_node_is_read(names: list[str], form: str) -> None:
    """Both ways of writing a node's choices give the same names; whatever else stands among them is left out."""
    mixed = [*names, None, 3, "", {"a": 1}, *names]
    choices = [mixed, {}] if form == "old" else ["COMBO", {"options": mixed}]
    info = {"CheckpointLoaderSimple": {"input": {"required": {"ckpt_name": choices}}}}
    assert read_loader(info) == names
    assert read_loader({}) == []


@given(
    value=st.recursive(
        st.none() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(["CheckpointLoaderSimple", "input", "required", "ckpt_name", "options"]),
                inner,
            )
        ),
    )
)
def test_no_value_breaks_the_readers(value: Any) -> None:
    """Any JSON value is a list of texts to the readers, or none."""
    for names in (read_loader(value), names_in(value), names_in(value, "id")):
        assert names is None or {type(name) for name in names} <= {str}


# ── over gRPC ──


def server(**oddities: Any) -> OpenInferenceService:
    config = ServiceConfig(instance="twin-0", models=MODELS)
    made = OpenInferenceService(config, FaultPlan.none(), random_for=streams(0, "twin-0"))
    made.set_oddities(oddities)
    return made


@virtual
async def test_a_repository_tells_what_is_ready() -> None:
    """Every ready model of the repository is told, whatever model the worker is for; unready ones are not."""
    for model in ("", MODEL):
        async with against(server().handle, model=model) as connector:
            assert await connector.probe_capabilities() == {"models": [MODEL, *MODELS]}
        for oddity in ({"model_ready": False}, {"model_loaded": False}):
            async with against(server(**oddity).handle, model=model) as connector:
                assert await connector.probe_capabilities() == {"models": []}


@virtual
async def test_without_a_repository_the_worker_s_own_model_is_told() -> None:
    """A server that lists nothing is asked for the configured model; with none configured nothing is known."""
    kserve = {"repository": False, "unknown_model": "NOT_FOUND"}
    for model, oddities, wanted in (
        ("flux", kserve, {"models": ["flux"]}),
        ("nobody", kserve, {"models": []}),
        ("flux", {**kserve, "model_ready": False}, {"models": []}),
        ("", kserve, {}),
    ):
        async with against(server(**oddities).handle, model=model) as connector:
            assert await connector.probe_capabilities() == wanted


@virtual
async def test_a_server_that_ignores_the_wish_for_ready_models() -> None:
    """States decide where a server lists all; several versions are one name, and an endless list is a fault."""
    index = pb.RepositoryIndexResponse()
    for name, version, state in (
        ("a", "1", "READY"),
        ("a", "2", "READY"),
        ("b", "1", "LOADING"),
        ("d", "1", "State.READY"),
        ("e", "1", "State.UNKNOWN"),
        ("c", "", ""),
    ):
        index.models.add(name=name, version=version, state=state)

    async def answer(call: IncomingCall) -> None:
        assert call.path == REPOSITORY_INDEX.path
        await call.send(index.SerializeToString())

    async with against(answer) as connector:
        assert await connector.probe_capabilities() == {"models": ["a", "d", "c"]}
        for number in range(MODELS_MAX):
            index.models.add(name=f"model-{number}")
        with pytest.raises(JobFault) as caught:
            await connector.probe_capabilities()
        assert caught.value.fault_class is FaultClass.PROTOCOL


@virtual
async def test_a_server_that_cannot_be_asked_over_grpc_is_a_fault() -> None:
    """A call that fails says nothing of the models, so that what was told before holds on."""

    async def refuse(_call: IncomingCall) -> None:
        raise CallEnded(Code.UNAUTHENTICATED, "who are you")

    async with against(refuse) as connector:
        with pytest.raises(JobFault) as caught:
            await connector.probe_capabilities()
        assert caught.value.fault_class is FaultClass.AUTH
