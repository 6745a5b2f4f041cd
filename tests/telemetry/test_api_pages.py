"""The gateway's pages, asked over real sockets."""

from __future__ import annotations

import functools
import re
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
import trio

from gateway.api import serve_api
from gateway.config import ApiConfig, TelemetryConfig
from gateway.errors import ConfigError
from gateway.models import Settlement, Verdict
from gateway.telemetry import Telemetry, build_telemetry
from protocols.http_server import ServerHandle
from tests.telemetry.facts import make_grant


class Site:
    """A served gateway whose status the test sets."""

    def __init__(self) -> None:
        self.telemetry: Telemetry = build_telemetry(TelemetryConfig())
        self.status: dict[str, Any] = {
            "queue": "<default>",
            "draining": False,
            "store_available": True,
            "workers": [{"worker": "m/sim", "endpoint": "http://127.0.0.1:9", "healthy": True}],
        }
        self.port = 0

    async def get(self, path: str, method: str = "GET", **headers: str) -> httpx.Response:
        with trio.fail_after(10):
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}") as client:
                return await client.request(method, path, headers=headers)


@pytest.fixture
async def site(nursery: trio.Nursery) -> AsyncIterator[Site]:
    found = Site()
    serve = functools.partial(serve_api, ApiConfig(port=0), found.telemetry, lambda: found.status)
    handle: ServerHandle = await nursery.start(serve)
    found.port = handle.port
    assert handle.host == "127.0.0.1"
    yield found
    nursery.cancel_scope.cancel()


async def test_metrics_page(site: Site) -> None:
    """A scraper gets the published names as Prometheus text."""
    grant = make_grant()
    with site.telemetry.attempt(grant, worker_id="w", connector_key="c", endpoint="e") as attempt:
        attempt.settled(Settlement.completed(grant, body="1"), Verdict.ACCEPTED)
    site.telemetry.health("m/sim", "simulation", "http://127.0.0.1:9", healthy=True, detail="")
    page = await site.get("/metrics")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/plain; version=")
    lines = page.text.splitlines()
    assert 'jobs_total{service="simulation",status="completed"} 1.0' in lines
    assert 'job_duration_seconds_count{service="simulation",success="true"} 1.0' in lines
    assert "# TYPE job_duration_seconds histogram" in lines
    assert "# TYPE jobs_total counter" in lines
    assert "# TYPE service_health gauge" in lines


async def test_liveness_follows_the_loop(site: Site) -> None:
    """A process is alive until its loop lags more than five seconds, and again once it caught up."""
    site.telemetry.loop_lag(5.0)
    assert (await site.get("/livez")).status_code == 200
    site.telemetry.loop_lag(5.1)
    page = await site.get("/livez")
    assert page.status_code == 503
    assert page.json() == {"alive": False, "event_loop_lag_s": 5.1, "limit_s": 5.0}
    site.telemetry.loop_lag(0.0)
    assert (await site.get("/livez")).status_code == 200


async def test_readiness_tells_its_reasons(site: Site) -> None:
    """Ready means connected, not draining and at least one healthy worker; otherwise each reason is named."""
    page = await site.get("/readyz")
    assert page.status_code == 200
    assert page.json() == {"ready": True, "reasons": []}
    site.status |= {"draining": True, "store_available": False}
    site.status["workers"] = [{"worker": "a", "healthy": False}, {"worker": "b", "healthy": False}]
    page = await site.get("/readyz")
    assert page.status_code == 503
    assert [reason.split(":")[0] for reason in page.json()["reasons"]] == ["draining", "store", "workers"]
    site.status |= {"draining": False, "store_available": True}
    site.status["workers"][1]["healthy"] = True
    assert (await site.get("/readyz")).status_code == 200
    site.status["workers"] = []
    assert (await site.get("/readyz")).status_code == 503


async def test_status_page(site: Site) -> None:
    """The status is JSON for programs and an escaped page for browsers."""
    page = await site.get("/")
    assert page.json()["queue"] == "<default>"
    assert page.json()["ready"] is True
    site.status["workers"][0]["endpoint"] = "<script>"
    page = await site.get("/", accept="text/html,*/*;q=0.8")
    assert page.headers["content-type"].startswith("text/html")
    assert "&lt;script&gt;" in page.text
    assert "<script>" not in page.text


async def test_status_page_is_read_by_people(site: Site) -> None:
    """A browser gets words instead of keys, fits a small screen, and sees at once which worker does not claim."""
    site.status |= {"loop_lag_s": 0.0012, "restart_needed": ""}
    well = {"worker": "m/a", "endpoint": "http://127.0.0.1:9", "healthy": True, "refusal": ""}
    site.status["workers"] = [well, {**well, "worker": "m/b", "refusal": "breaker open"}]
    page = (await site.get("/", accept="text/html")).text
    assert "<dt>event loop lag, s</dt><dd>0.001</dd>" in page
    assert "<dt>restart needed for</dt><dd>nothing</dd>" in page
    assert "_" not in re.sub(r"<style>.*</style>", "", page)
    assert 'name="viewport"' in page
    assert re.findall(r"<tr( class=\"bad\")?><td>(m/.)", page) == [("", "m/a"), (' class="bad"', "m/b")]
    assert "<td>claims</td>" in page
    site.status["workers"] = []
    empty = (await site.get("/", accept="text/html")).text
    assert "<table" not in empty
    assert "workers: none is configured" in empty


async def test_other_paths_and_methods_are_refused(site: Site) -> None:
    """Unknown paths are 404 and name the known ones; nothing can be written; HEAD has no body."""
    page = await site.get("/nothing")
    assert page.status_code == 404
    assert page.json()["known"] == ["/", "/metrics", "/livez", "/readyz"]
    page = await site.get("/metrics", method="POST")
    assert page.status_code == 405
    assert page.headers["allow"] == "GET, HEAD"
    page = await site.get("/metrics", method="HEAD")
    assert page.status_code == 200
    assert page.content == b""


async def test_a_port_in_use_is_one_clear_line(site: Site) -> None:
    """A busy port, a foreign address and a missing port are errors of the configuration, named by key."""
    cases = [
        (ApiConfig(port=site.port), f"api.port: {site.port} on 127.0.0.1 is in use"),
        (ApiConfig(host="192.0.2.1", port=0), "cannot listen on 192.0.2.1"),
        (ApiConfig(), "api.port: not set"),
    ]
    with trio.fail_after(10):
        for config, text in cases:
            with pytest.raises(ConfigError) as caught:
                await serve_api(config, site.telemetry, lambda: site.status)
            assert text in str(caught.value)
            assert "\n" not in str(caught.value)
