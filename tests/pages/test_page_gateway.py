"""The gateway's own page, served to a browser over a real socket."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx
import pytest
import trio
from playwright.sync_api import Page

from gateway.api import serve_api
from gateway.config import ApiConfig, TelemetryConfig
from gateway.telemetry import build_telemetry
from tests.pages.chromium import DARK, LOOKS, WIDE, Chromium, Look
from tests.pages.surveys import Survey, look_around, troubles

#: As names come from outside: from configuration, from a registry, from a host.
EVIL = "gpu<script>document.title = 'owned'</script><img src=x onerror=alert(1)>"
LONG = "gateway-" + "0123456789" * 5


def worker(name: str, **more: Any) -> dict[str, Any]:
    return {
        "worker": name,
        "service": "comfyui",
        "endpoint": "http://127.0.0.1:8188",
        "healthy": True,
        "running": 1,
        "slots": 2,
        "refusal": "",
        **more,
    }


class Site:
    """A served page whose status the test sets."""

    def __init__(self) -> None:
        self.status: dict[str, Any] = {
            "queue": "renders",
            "instance": LONG,
            "store_available": True,
            "draining": False,
            "loop_lag_s": 0.0012,
            "jobs": 3,
            "spooled": 0,
            "restart_needed": "",
            "workers": [worker("m/comfyui-gpu0"), worker(f"m/{EVIL}", refusal="breaker open for 12 s")],
        }
        self.url = ""


@pytest.fixture
async def site(nursery: trio.Nursery) -> AsyncIterator[Site]:
    found = Site()
    telemetry = build_telemetry(TelemetryConfig())
    handle = await nursery.start(
        functools.partial(serve_api, ApiConfig(port=0), telemetry, lambda: found.status)
    )
    found.url = f"http://127.0.0.1:{handle.port}/"
    yield found
    nursery.cancel_scope.cancel()


@pytest.mark.parametrize("look", LOOKS, ids=str)
@pytest.mark.parametrize("ready", [True, False])
async def test_it_stands_alone_and_can_be_read(
    chromium: Chromium, site: Site, ready: bool, look: Look
) -> None:
    """Nothing foreign is fetched, no name runs as a script, every text is readable, and only the table scrolls."""
    site.status["store_available"] = ready
    visit = await chromium.visit_from_trio(site.url, look, look_around)
    assert troubles(visit, site.url) == []
    assert visit.found.heading == "gateway"
    assert visit.found.title == (
        "gateway: ready" if ready else "gateway: not ready: store: Redis does not answer"
    )
    assert visit.found.texts > 20


def _words(page: Page) -> tuple[Survey, str, list[list[str]], list[str], str]:
    """All in one look, as the page asks for itself again every few seconds."""
    words, rows, colours, verdict = page.evaluate("""() => {
        const colour = element => getComputedStyle(element).color;
        const rows = [...document.querySelectorAll("tbody tr")];
        return [
            document.body.innerText,
            rows.map(row => [...row.cells].map(cell => cell.innerText)),
            rows.map(row => colour(row.cells[0])),
            colour(document.querySelector(".verdict")),
        ];
    }""")
    return look_around(page), words, rows, colours, verdict


@pytest.mark.parametrize("look", [WIDE, DARK], ids=str)
async def test_an_operator_sees_whose_page_it_is_and_how_it_is(
    chromium: Chromium, site: Site, look: Look
) -> None:
    """Queue, instance and state are there; a worker that claims looks different from one that does not."""
    visit = await chromium.visit_from_trio(site.url, look, _words)
    _, words, rows, colours, good = visit.found
    for fact in ("renders", LONG, "ready", "Redis answers", "jobs running here"):
        assert fact in words
    assert [row[0] for row in rows] == ["m/comfyui-gpu0", f"m/{EVIL}"]
    assert [row[-1] for row in rows] == ["claims", "breaker open for 12 s"]
    assert colours[0] != colours[1]
    site.status["draining"] = True
    visit = await chromium.visit_from_trio(site.url, look, _words)
    seen, words, _, _, bad = visit.found
    assert "not ready: draining" in words
    assert "not ready" in seen.title
    assert good != bad


async def test_names_from_outside_are_text(chromium: Chromium, site: Site) -> None:
    """Whatever a worker, a queue or a reason is called, it is shown as it is written and makes no element."""
    site.status |= {"queue": EVIL, "instance": EVIL, "restart_needed": EVIL}
    site.status["workers"] = [worker(EVIL, service=EVIL, endpoint=EVIL, healthy=False, refusal=EVIL)]

    def task(page: Page) -> tuple[Survey, str, int]:
        words, elements = page.evaluate(
            "[document.body.innerText, document.querySelectorAll('script, img').length]"
        )
        return look_around(page), words, elements

    visit = await chromium.visit_from_trio(site.url, WIDE, task)
    seen, words, elements = visit.found
    assert words.count(EVIL) == 7
    assert elements == 0
    assert "owned" not in seen.title
    assert visit.complaints == ()


async def test_its_links_work(chromium: Chromium, site: Site) -> None:
    """Every link of the page leads to the gateway itself, which answers it."""
    script = "[...document.querySelectorAll('a')].map(link => link.getAttribute('href') ?? '')"
    visit = await chromium.visit_from_trio(site.url, WIDE, lambda page: page.evaluate(script))
    assert len(visit.found) == 3
    async with httpx.AsyncClient() as client:
        for href in visit.found:
            address = urljoin(site.url, href)
            assert urlsplit(address).netloc == urlsplit(site.url).netloc
            with trio.fail_after(10):
                assert (await client.get(address)).status_code < 400, href
