"""Backends of the store's tests: the simulated Redis and a real one, both under the virtual clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import redis

from tests.store.bench import Backend
from tests.support.twin_redis import twin_client


@pytest.fixture
def fake_client() -> Iterator[redis.Redis]:
    """A fresh simulated Redis."""
    client = twin_client()
    yield client
    client.close()


@pytest.fixture(scope="session")
def fake_factory() -> Callable[[], redis.Redis]:
    """Makes fresh simulated Redis servers, as many as a property needs."""
    return twin_client


@pytest.fixture
def real_redis(redis_url: str) -> Iterator[redis.Redis]:
    """A client of the session's Redis."""
    client = redis.Redis.from_url(redis_url)
    yield client
    client.close()


@pytest.fixture
def fake_backend(fake_client: redis.Redis) -> Backend:
    return Backend(fake_client)


@pytest.fixture
def real_backend(real_redis: redis.Redis) -> Backend:
    return Backend(real_redis)
