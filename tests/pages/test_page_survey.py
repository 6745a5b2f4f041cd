"""The survey of pages itself: each rule sees the page that breaks it, and none is broken by a plain page."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pages.chromium import DARK, LOOKS, NARROW, WIDE, Chromium, Look
from tests.pages.surveys import foreign, survey

HEAD = '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>A page</title>'
PLAIN = HEAD + (
    "<style>:root { color-scheme: light dark } .wide { overflow-x: auto } p { margin: 0 }</style></head><body>"
    '<h1>A page</h1><p>words</p><div class="wide"><table><tr><td style="min-width: 900px">wide</td></tr></table></div>'
    '<svg width="40" height="20"><rect width="40" height="20" fill="navy"/><text y="15" fill="white">on</text></svg>'
)


def told(chromium: Chromium, directory: Path, text: str, look: Look) -> list[str]:
    page = directory / "page.html"
    page.write_text(text, encoding="utf-8")
    return survey(chromium, page.as_uri(), look)[1]


@pytest.mark.parametrize("look", LOOKS, ids=str)
def test_a_plain_page_has_no_troubles(chromium: Chromium, tmp_path: Path, look: Look) -> None:
    """A wide table in a container that scrolls, and white words on a dark bar, are all right."""
    assert told(chromium, tmp_path, PLAIN, look) == []


@pytest.mark.parametrize(
    ("ill", "look", "trouble"),
    [
        ('<img src="http://fonts.example/x.png">', WIDE, "asks for http://fonts.example/x.png"),
        ('<style>@import url("http://fonts.example/x.css");</style>', WIDE, "asks for http://fonts.example/x.css"),
        ("<script>nothing()</script>", WIDE, "script: nothing is not defined"),
        ("<script>console.error('oh')</script>", WIDE, "console: oh"),
        ("<style>h1 { display: none }</style>", WIDE, "no heading"),
        ("<style>.wide { overflow: visible }</style>", NARROW, "px wider than the window"),
        ("<style>p { color: #999 }</style>", WIDE, 'hard to read: p "words" 2.85'),
        ("<style>p { color: #333 }</style>", DARK, 'hard to read: p "words" 1.4'),
        ("<style>p { color: rgb(0 0 0 / 40%) }</style>", WIDE, 'hard to read: p "words" 2.8'),
        ("<style>svg text { fill: #555 }</style>", WIDE, 'hard to read: text "on"'),
        ("<style>svg text { transform: translateX(30px) }</style>", WIDE, 'hard to read: text "on" 1.00'),
        ('<svg><rect class="odd" width="9" height="9"/></svg>', WIDE, "no colour: rect odd"),
        ('<svg><line class="odd" x2="9" y2="9"/></svg>', WIDE, "no colour: line odd"),
        ('<svg aria-label="jobs" width="0"></svg>', WIDE, "no size: jobs"),
    ],
)  # fmt: skip
def test_each_trouble_is_seen(chromium: Chromium, tmp_path: Path, ill: str, look: Look, trouble: str) -> None:
    """One ill added to the plain page is what the survey tells."""
    assert [line for line in told(chromium, tmp_path, PLAIN + ill, look) if trouble in line]


def test_a_served_page_may_ask_its_own_origin_only() -> None:
    """Another port is another origin; a page from a file may ask for nothing at all."""
    own = "http://127.0.0.1:80/"
    assert foreign((own, f"{own}icon", "http://127.0.0.1:81/"), own) == ["http://127.0.0.1:81/"]
    assert foreign(("file:///a", "file:///b"), "file:///a") == ["file:///b"]
