"""Fixtures every test directory may use; loaded by ``pytest_plugins`` in tests/conftest.py."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.redis_server import RedisServer


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis of this test alone, on a free loopback port: it may be killed, paused and restarted."""
    with tempfile.TemporaryDirectory(prefix="tg-redis-") as directory, RedisServer(Path(directory)) as server:
        yield server


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """URL of one Redis that all tests of the session share: use a queue name of your own, never FLUSH it."""
    with tempfile.TemporaryDirectory(prefix="tg-redis-") as directory, RedisServer(Path(directory)) as server:
        yield server.url
