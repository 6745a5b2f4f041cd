"""The machine's own chromium, headless, driven from a thread of its own, which never asks anything outside 127.0.0.1.

Playwright's synchronous interface runs an event loop of asyncio in the thread that calls it, for as long as the browser
lives. In the tests' main thread, later tests that start asyncio themselves would be refused; hence the thread.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Self, TypeVar

import trio
from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, Request, sync_playwright

#: Names of the browser on Debian and of Google's own package; another one that follows may serve as well.
NAMES = ("chromium", "google-chrome")
ARGUMENTS = (
    # Its sandbox needs a user other than root; only pages of our own are opened.
    "--no-sandbox",
    *("--disable-gpu", "--disable-quic", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
HEIGHT_PX = 900
#: For one action of a page, for the start of the browser, and for a whole visit.
ACTION_LIMIT_S = 20.0
START_LIMIT_S = 30.0
VISIT_LIMIT_S = 60.0

Found = TypeVar("Found")


@dataclass(frozen=True, slots=True)
class Look:
    """How a person looks at a page: the preferred colours and the width of the window."""

    scheme: str
    width_px: int

    def __str__(self) -> str:
        return f"{self.scheme}-{self.width_px}"


WIDE, DARK = Look("light", 1280), Look("dark", 1280)
NARROW, NARROW_DARK = Look("light", 390), Look("dark", 390)
LOOKS = (WIDE, DARK, NARROW, NARROW_DARK)


@dataclass(frozen=True, slots=True)
class Visit(Generic[Found]):
    """What a visit brought: the task's own answer, all requests, and all that the page complained of."""

    found: Found
    requests: tuple[str, ...]
    complaints: tuple[str, ...]


def find_chromium() -> str | None:
    """Path of the browser, None without one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """One browser; use it as a context manager."""

    def __init__(self, executable: str | Path) -> None:
        self._executable = executable
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="chromium")
        self._playwright: Playwright | None = None
        self._browser: Browser | None = None

    def __enter__(self) -> Self:
        try:
            self._thread.submit(self._start).result(START_LIMIT_S)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.submit(self._stop).result(START_LIMIT_S)
        self._thread.shutdown()

    def _start(self) -> None:
        self._playwright = sync_playwright().start()
        self._browser = self._playwright.chromium.launch(
            executable_path=self._executable, args=ARGUMENTS, timeout=START_LIMIT_S * 1000
        )

    def _stop(self) -> None:
        if self._browser is not None:
            self._browser.close()
        if self._playwright is not None:
            self._playwright.stop()

    def visit(self, url: str, look: Look, task: Callable[[Page], Found]) -> Visit[Found]:
        """Open a page in a window without a past and run a task on it, in the browser's thread.

        Raises:
            playwright.sync_api.Error: the page cannot be opened, or the task waited too long.
            TimeoutError: the browser hangs.
        """
        return self._thread.submit(self._visit, url, look, task).result(VISIT_LIMIT_S)

    async def visit_from_trio(self, url: str, look: Look, task: Callable[[Page], Found]) -> Visit[Found]:
        """The same where the page is served by the trio run that asks; without a thread of trio's own, which would
        live on for a while and be counted by other tests.

        Raises:
            playwright.sync_api.Error: the page cannot be opened, or the task waited too long.
            trio.TooSlowError: the browser hangs.
        """
        done, token = trio.Event(), trio.lowlevel.current_trio_token()
        future = self._thread.submit(self._visit, url, look, task)
        future.add_done_callback(lambda _: token.run_sync_soon(done.set))
        with trio.fail_after(VISIT_LIMIT_S):
            await done.wait()
        return future.result()

    def _visit(self, url: str, look: Look, task: Callable[[Page], Found]) -> Visit[Found]:
        assert self._browser is not None, "not started"
        requests: list[str] = []
        complaints: list[str] = []

        def asked(request: Request) -> None:
            requests.append(request.url)

        def said(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning"):
                complaints.append(f"console: {message.text}")

        context = self._browser.new_context(
            color_scheme="dark" if look.scheme == "dark" else "light",
            viewport={"width": look.width_px, "height": HEIGHT_PX},
        )
        try:
            context.set_default_timeout(ACTION_LIMIT_S * 1000)
            page = context.new_page()
            page.on("request", asked)
            page.on("console", said)
            page.on("pageerror", lambda error: complaints.append(f"script: {error}"))
            page.goto(url)
            found = task(page)
        finally:
            context.close()
        return Visit(found, tuple(requests), tuple(complaints))
