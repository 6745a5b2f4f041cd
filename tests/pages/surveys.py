"""What must hold for every page of the product, judged from what a browser made of it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from playwright.sync_api import Page

from tests.pages.chromium import Chromium, Look, Visit

SCRIPT = Path(__file__).with_name("survey.js").read_text(encoding="utf-8")


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What ``survey.js`` found.

    Attributes:
        heading: the text of a visible ``h1``, else empty.
        sideways_px: by how much the page is wider than the window.
        texts: how many visible texts were looked at.
        faint: those of them whose contrast with what lies behind is below 4.5 to 1.
        black: marks of drawings that nobody gave a colour, so that they are black, or cannot be seen at all.
        flat: drawings without a size.
    """

    title: str
    heading: str
    sideways_px: float
    texts: int
    faint: list[str]
    black: list[str]
    flat: list[str]


def look_around(page: Page) -> Survey:
    """Survey an open page."""
    return msgspec.convert(page.evaluate(SCRIPT), Survey)


def survey(chromium: Chromium, url: str, look: Look) -> tuple[Survey, list[str]]:
    """Open a page and survey it: what was found, and what is wrong with it, in words."""
    visit = chromium.visit(url, look, look_around)
    return visit.found, troubles(visit, url)


def troubles(visit: Visit[Survey], url: str) -> list[str]:
    """All that no page may show; empty is good."""
    seen = visit.found
    wrong = [f"asks for {request}" for request in foreign(visit.requests, url)]
    wrong += visit.complaints
    wrong += [f"no {name}" for name, text in (("title", seen.title), ("heading", seen.heading)) if not text]
    if seen.sideways_px > 0:
        wrong.append(f"{seen.sideways_px:g} px wider than the window")
    wrong += [f"hard to read: {text}" for text in seen.faint]
    wrong += [f"no colour: {mark}" for mark in seen.black]
    wrong += [f"no size: {drawing}" for drawing in seen.flat]
    return wrong


def foreign(requests: tuple[str, ...], url: str) -> list[str]:
    """Requests for anything but the document itself; a served page may ask its own origin."""
    own = urlsplit(url)
    if own.scheme == "file":
        return [request for request in requests if request != url]
    return [request for request in requests if urlsplit(request)[:2] != own[:2]]
