"""Clients for programs that submit jobs: ``Client`` (synchronous) and ``AsyncClient`` (trio and asyncio).

Both speak to Redis only and never to a gateway process, so jobs may be submitted while no gateway runs. The names
below are loaded on first use: a synchronous program does not import the asynchronous machinery, and vice versa.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.client.asynchronous import AsyncClient
    from gateway.client.core import StreamItem
    from gateway.client.requests import (
        BatchInterrupted,
        BatchRefused,
        BatchResult,
        JobHandle,
        JobRequest,
        SubmitOutcome,
    )
    from gateway.client.synchronous import Client

__all__ = [
    "AsyncClient",
    "BatchInterrupted",
    "BatchRefused",
    "BatchResult",
    "Client",
    "JobHandle",
    "JobRequest",
    "StreamItem",
    "SubmitOutcome",
]

_MODULES = {"AsyncClient": "asynchronous", "Client": "synchronous", "StreamItem": "core"}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES.get(name, 'requests')}")
    return getattr(module, name)
