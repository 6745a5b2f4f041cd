"""The browser that the tests of one process share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.pages.chromium import Chromium, find_chromium

#: Set where a browser must be there: without it the tests fail instead of being skipped.
REQUIRE = "TRIO_GATEWAY_REQUIRE_BROWSER"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Chromium]:
    """A running browser."""
    executable = find_chromium()
    if executable is None:
        reason = "no chromium on this machine (Debian: apt-get install chromium)"
        if os.environ.get(REQUIRE):
            pytest.fail(f"{REQUIRE} is set, but there is {reason}")
        pytest.skip(reason)
    with Chromium(executable) as browser:
        yield browser
