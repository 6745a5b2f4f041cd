"""Quiet gateways: a simulated fleet warns of injected faults by the thousand, and keeping every line costs time."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def quiet_gateways() -> Iterator[None]:
    """No log records of gateways and connectors during these tests."""
    loggers = [logging.getLogger(name) for name in ("gateway", "protocols", "coredis")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
