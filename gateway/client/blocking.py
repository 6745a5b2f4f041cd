"""Drive a coroutine whose runner blocks: what makes the shared verbs synchronous."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


def finish(coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a coroutine that never suspends.

    Raises:
        RuntimeError: it suspended after all.
    """
    try:
        coroutine.send(None)
    except StopIteration as stop:
        result: ResultT = stop.value
        return result
    coroutine.close()
    raise RuntimeError("a blocking runner suspended")
