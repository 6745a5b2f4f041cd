"""A service's own sidecar registers over HTTP, at the gateway's own port."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from gateway.api import serve_api
from gateway.config import ApiConfig, TelemetryConfig
from gateway.registration import DESCRIPTION_BYTES_MAX, SERVICES_MAX, ServiceEntry
from gateway.store.fleet_scripts import RegisterStatus, Registration
from gateway.store.redis import RedisStore
from gateway.telemetry import build_telemetry
from protocols.http_server import ServerHandle
from tests.chaos.fleet import make_store, until
from tests.cli.test_cli_process import GATEWAY, SIMULATOR, call, first_line, started
from tests.runtime.live import LiveService, open_stage
from tests.support.hand_worker import fresh_queue
from tests.support.redis_server import RedisServer

ENTRY: dict[str, Any] = {"service": "simulation", "url": "http://127.0.0.1:8299"}
STATUS: dict[str, Any] = {"queue": "q", "draining": False, "store_available": True, "workers": []}


class Port:
    """The served pages of a gateway on a store."""

    def __init__(self, handle: ServerHandle) -> None:
        self._url = handle.url

    async def call(
        self, method: str, name: str, body: object = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Status and body; ``body`` is sent as it is, or as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        with trio.fail_after(20):
            async with httpx.AsyncClient(base_url=self._url, timeout=15.0, trust_env=False) as client:
                page = await client.request(method, f"/services/{name}", content=data, headers=headers)
        return page.status_code, page.json() if page.content else {}


async def open_port(nursery: trio.Nursery, store: RedisStore, **settings: Any) -> Port:
    config = ApiConfig(port=0, **{"registration": True, **settings})
    telemetry = build_telemetry(TelemetryConfig())
    serve = functools.partial(serve_api, config, telemetry, lambda: STATUS, services=store)
    handle: ServerHandle = await nursery.start(serve)
    return Port(handle)


def told(service: LiveService) -> dict[str, Any]:
    """What the sidecar of a simulated instance says."""
    return {"service": "simulation", "url": service.url, "instance": service.name, "ttl_s": 20}


async def test_a_worker_follows_what_a_sidecar_says(redis_url: str) -> None:
    """A worker goes where the sidecar registers its service, follows it when it moves, and leaves at the sign-off."""
    async with open_stage(redis_url, "sidecar") as stage:
        settings = {
            "workers": {"a": {"connector": "simulation-http", "instance": "a", "slots": 2}},
            "discovery": {"start_wait_s": 0.0, "required": False},
        }
        live = await stage.gateway({}, settings)
        port = await open_port(stage.nursery, live.gateway.store)
        old, new = await stage.service("a"), await stage.service("a")
        for service in (old, new):
            assert await port.call("PUT", "side", told(service)) == (
                201,
                {"service": "side", "status": "registered"},
            )
            await until(lambda at=service.url: live.worker("a").url == at, 5, "followed")  # type: ignore[misc]
            job = await stage.watch.submit(f"at-{service.port}", {"duration_s": 0.01})
            await stage.watch.wait_terminal([job], 15)
            assert len(service.shell.service.journal.summary().executions_by_job) == 1
        assert await port.call("PUT", "side", told(new)) == (200, {"service": "side", "status": "renewed"})
        assert await port.call("DELETE", "side") == (200, {"service": "side", "status": "signed off"})
        await until(lambda: not live.worker("a").endpoints, 5, "left at the sign-off")
        await stage.watch.audited()


@pytest.fixture
async def store(redis_url: str, nursery: trio.Nursery, request: pytest.FixtureRequest) -> RedisStore:
    store = make_store(redis_url, f"api-{request.node.name}", "tester")
    await store.start(nursery)
    return store


async def test_a_refusal_is_one_line_and_changes_nothing(store: RedisStore, nursery: trio.Nursery) -> None:
    """What no worker could use is answered 400 with the field at fault, and the registry stays as it was."""
    port = await open_port(nursery, store)
    cases: list[tuple[str, object, str]] = [
        ("x", b"", "body: "),
        ("x", b"{", "body: "),
        ("x", b'{"service": "\xff"}', "body: "),
        ("x", [], "body: "),
        ("x", {"service": "simulation"}, "`url`"),
        ("x", {**ENTRY, "ttl": 3}, "`ttl`"),
        ("x", {**ENTRY, "ttl_s": 0}, "ttl_s = 0"),
        ("x", {**ENTRY, "ttl_s": 1e9}, "ttl_s = 1e+09"),
        ("x", {**ENTRY, "ttl_s": "3"}, "$.ttl_s"),
        ("x", {**ENTRY, "url": "nowhere"}, "url: "),
        ("x", {**ENTRY, "protocol": "smtp"}, "protocol 'smtp'"),
        ("x", {**ENTRY, "service": "No Service"}, "service 'No Service'"),
        ("x", {**ENTRY, "capabilities": {"a": {}}}, "capability 'a'"),
        ("x", {**ENTRY, "capabilities": {"a": "b" * DESCRIPTION_BYTES_MAX}}, "capabilities: "),
        ("a%20b", ENTRY, "service id 'a b'"),
        ("", ENTRY, "service id ''"),
        ("n" * 129, ENTRY, "service id"),
    ]
    for name, body, text in cases:
        status, answer = await port.call("PUT", name, body)
        assert status == 400, body
        assert text in answer["error"]
        assert "\n" not in answer["error"]
    assert (await port.call("DELETE", "a%20b"))[0] == 400
    assert (await port.call("PUT", "x", b" " * (3 * DESCRIPTION_BYTES_MAX)))[0] == 413
    assert (await port.call("PUT", "x", ENTRY, {"origin": "http://elsewhere.example"}))[0] == 403
    for method in ("GET", "POST", "OPTIONS"):
        assert await port.call(method, "x", ENTRY) == (405, {"error": "only PUT and DELETE"})
    assert (await store.services())[1] == []


async def test_all_fields_reach_the_registry(store: RedisStore, nursery: trio.Nursery) -> None:
    """The entry holds what the sidecar said, under the id as it was meant, for as long as it asked."""
    port = await open_port(nursery, store)
    body = {
        **ENTRY,
        "protocol": "websocket",
        "instance": "i",
        "machine": "m",
        "healthy": False,
        "capabilities": {"models": ["a", "b"], "vram_gb": 24},
    }
    assert (await port.call("PUT", "rack%3A1/gpu", {**body, "ttl_s": 100}))[0] == 201
    now_ms, [found] = await store.services()
    assert (found.id, found.entry) == ("rack:1/gpu", ServiceEntry(**body))
    assert 80_000 < found.ends_ms - now_ms <= 100_000
    for _ in range(2):  # to sign off is safe to repeat
        assert await port.call("DELETE", "rack:1/gpu") == (
            200,
            {"service": "rack:1/gpu", "status": "signed off"},
        )
    assert (await store.services())[1] == []


async def test_off_unless_configured(store: RedisStore, nursery: trio.Nursery) -> None:
    """Without ``api.registration`` every call is refused with what to set, and nothing is stored or forgotten."""
    assert ApiConfig().registration is False
    await store.register([Registration("there", ServiceEntry(protocol="http", **ENTRY), 60.0)])
    port = await open_port(nursery, store, registration=False)
    for method in ("PUT", "DELETE", "GET"):
        status, answer = await port.call(method, "there", ENTRY)
        assert status == 403
        assert "api.registration = true" in answer["error"]
    assert [service.id for service in (await store.services())[1]] == ["there"]


async def test_a_full_registry_says_so(store: RedisStore, nursery: trio.Nursery) -> None:
    """One service more than the registry takes is 507 in words; those in it go on renewing."""
    entry = ServiceEntry(protocol="http", **ENTRY)
    statuses = await store.register(
        [Registration(str(number), entry, 600.0) for number in range(SERVICES_MAX)]
    )
    assert set(statuses) == {RegisterStatus.REGISTERED}
    port = await open_port(nursery, store)
    status, answer = await port.call("PUT", "more", ENTRY)
    assert (status, answer["error"].split(":")[0]) == (507, f"{SERVICES_MAX} services are registered already")
    assert (await port.call("PUT", "0", ENTRY))[0] == 200
    assert (await port.call("DELETE", "1"))[0] == 200
    assert (await port.call("PUT", "more", ENTRY))[0] == 201


async def test_redis_away_is_try_again(redis_server: RedisServer, nursery: trio.Nursery) -> None:
    """While Redis does not answer the sidecar learns it as 503, and once it is back the next call works."""
    store = make_store(redis_server.url, "away", "tester")
    await store.start(nursery)
    port = await open_port(nursery, store)
    redis_server.kill9()
    status, answer = await port.call("PUT", "x", ENTRY)
    assert status == 503
    assert answer["error"].endswith("try again, it is safe to repeat")
    redis_server.restart()
    with trio.fail_after(20):
        while status == 503:
            status, _ = await port.call("PUT", "x", ENTRY)
    assert status == 201
    assert [service.id for service in (await store.services())[1]] == ["x"]


def test_a_gateway_process_takes_registrations(redis_url: str, tmp_path: Path) -> None:
    """A process so configured starts without its service, and serves its jobs once a sidecar told where it is."""
    place = {"GATEWAY_REDIS_URL": redis_url, "GATEWAY_QUEUE": fresh_queue()}
    config = tmp_path / "gateway.toml"
    config.write_text(
        "[api]\nport = 0\nregistration = true\n"
        "[discovery]\nstart_wait_s = 0.0\nrequired = false\n"
        '[workers.a]\nconnector = "simulation-http"\ndiscover = {}\n'
    )
    serve = ("serve", "--http", "--no-faults", "--json", "--instances", "1", "--base-port", "0")
    options = ("run", "--config", str(config), "--json", "--data-dir", str(tmp_path))
    with started(SIMULATOR, *serve) as simulator, started(GATEWAY, *options, **place) as gateway:
        endpoint = first_line(simulator)["instances"][0]["url"]
        page = f"{first_line(gateway)['api']}/services/side"
        body = {"service": "simulation", "url": endpoint}
        assert httpx.put(page, json=body, timeout=15.0, trust_env=False).status_code == 201
        done = call("submit", "simulation", "{}", "--wait", "--wait-timeout-s", "20", "--json", **place)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["state"] == "completed"
