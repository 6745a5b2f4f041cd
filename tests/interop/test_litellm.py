"""``openai-http`` against litellm's proxy, a real server of many users, with models that need nobody behind them."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from gateway.connector import Connector
from gateway.errors import FaultClass
from tests.connectors.served import fault_of, make_connector, make_job
from tests.interop.real_servers import answers, free_port, server_environment, server_process

#: Recorded with this series; a newer one may say other things, which is to be looked at, not stumbled over.
REQUIREMENTS = ("litellm[proxy]==1.106.*",)
CONFIG = Path(__file__).with_name("litellm.yaml")
KEY = "sk-interop-0a4c7d19e2b85f36"
TEXT = "Hello from the mock."
#: Installing and starting it for the first test takes minutes on a slow line.
pytestmark = pytest.mark.limit_s(1_100)


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a running proxy."""
    programs, port = server_environment("litellm", REQUIREMENTS), free_port()
    command = (programs / "litellm", "--config", CONFIG, "--host", "127.0.0.1", "--port", str(port))
    url = f"http://127.0.0.1:{port}"
    # Without the network: neither prices nor statistics.
    environment = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    log = tmp_path_factory.mktemp("litellm") / "litellm.log"
    with server_process(command, log, lambda: answers(f"{url}/health/liveliness"), environment):
        yield url


@asynccontextmanager
async def connected(url: str, key: str = KEY, **options: Any) -> AsyncIterator[Connector]:
    """A connector with a key, closed at the end."""
    connector = make_connector("openai-http", url, api_key=key, **options)
    try:
        yield connector
    finally:
        await connector.aclose()


def chat(model: str = "mock", *, stream: bool = False) -> dict[str, Any]:
    body = {"model": model, "messages": [{"role": "user", "content": "hello"}]}
    return {"operation": "chat", "body": {**body, "stream": True} if stream else body}


async def test_a_chat_brings_its_completion(proxy: str) -> None:
    """A plain chat: text, reason and usage; base URL with and without its path."""
    for url in (proxy, f"{proxy}/v1"):
        async with connected(url) as connector:
            answer = (await connector.run(make_job(chat()))).value
            assert answer["choices"][0]["message"]["content"] == TEXT
            assert answer["choices"][0]["finish_reason"] == "stop"
            assert answer["usage"]["total_tokens"] > 0


async def test_it_tells_the_models_of_its_configuration(proxy: str) -> None:
    """Probed, it tells every model that a request may name, and none twice."""
    wanted = {line.split()[-1] for line in CONFIG.read_text("utf-8").splitlines() if "- model_name:" in line}
    async with connected(proxy) as connector:
        told = (await connector.probe_capabilities())["models"]
        assert (set(told), len(told)) == (wanted, len(wanted))


async def test_a_streamed_chat_tells_pieces_and_adds_up(proxy: str) -> None:
    """A streamed chat: several pieces on the way, the same completion at the end, usage counted."""
    async with connected(proxy) as connector:
        job = make_job(chat(stream=True))
        answer = (await connector.run(job)).value
        assert len(job.chunks) > 1
        assert "".join(one["delta"]["content"] for one in job.chunks) == TEXT
        assert answer["choices"] == [
            {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"}
        ]
        assert answer["object"] == "chat.completion"
        assert answer["usage"]["total_tokens"] > 0


async def test_the_other_operations_work_too(proxy: str) -> None:
    """Text completions (streamed and not), responses, embeddings and images have their answers."""
    prompt = {"model": "mock", "prompt": "hello"}
    async with connected(proxy) as connector:
        plain = (await connector.run(make_job({"operation": "completions", "body": prompt}))).value
        job = make_job({"operation": "completions", "body": {**prompt, "stream": True}})
        streamed = (await connector.run(job)).value
        assert plain["choices"][0]["text"] == streamed["choices"][0]["text"] == TEXT
        assert "".join(one["text"] for one in job.chunks) == TEXT
        payload: dict[str, Any] = {"operation": "responses", "body": {"model": "mock", "input": "hello"}}
        response = (await connector.run(make_job(payload))).value
        assert response["status"] == "completed"
        assert response["output"]
        payload = {"operation": "embeddings", "body": {"model": "mock-embedding", "input": "hello"}}
        assert (await connector.run(make_job(payload))).value["data"]
        payload = {"operation": "images", "body": {"model": "mock-image", "prompt": "hello"}}
        assert (await connector.run(make_job(payload))).value["data"][0]["url"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        ("mock-429", FaultClass.RATE_LIMITED),
        ("mock-500", FaultClass.SERVICE_ERROR),
        ("mock-context", FaultClass.VALIDATION),
        ("mock-timeout", FaultClass.TIMEOUT),
        ("nowhere", FaultClass.SERVICE_ERROR),
        ("no-such-model", FaultClass.VALIDATION),
    ],
)
async def test_each_error_has_its_class(proxy: str, model: str, wanted: FaultClass, stream: bool) -> None:
    """What the proxy answers for a limit, a failure, a long context, a time-out, a dead upstream, an unknown model."""
    async with connected(proxy) as connector:
        fault = await fault_of(connector, make_job(chat(model, stream=stream)), wanted)
        assert fault.retry_after_s is None, "litellm has not been seen to send Retry-After"
        assert "\n" not in str(fault)


async def test_a_wrong_key_is_an_auth_fault_and_shown_nowhere(proxy: str) -> None:
    """The proxy answers 400 for a key that it does not know; what kind of error it is tells the difference."""
    wrong = "sk-wrong-77b1c0a9d3e5f248"
    async with connected(proxy, key=wrong) as connector:
        fault = await fault_of(connector, make_job(chat()), FaultClass.AUTH)
        assert wrong not in str(fault)


async def test_health_is_cheap_and_true(proxy: str) -> None:
    """The list of models by default, or a path of the proxy's own; a port where nobody listens is unhealthy."""
    for options in ({}, {"health_path": "/health/liveliness"}):
        async with connected(proxy, **options) as connector:
            report = await connector.health()
            assert report.healthy, report.detail
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        async with connected(f"http://127.0.0.1:{closed.getsockname()[1]}") as connector:
            assert not (await connector.health()).healthy
