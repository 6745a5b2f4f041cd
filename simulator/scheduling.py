"""The order of trio's tasks, from a seed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def deterministic_scheduler(seed: int) -> Iterator[None]:
    """Let trio shuffle its run queue from our seed: the one place that touches its private switch.

    trio has no public interface for it (python-trio/trio#239, #2675); the version is pinned, and a missing name fails
    loudly.
    """
    from trio._core import _run

    previous = _run._ALLOW_DETERMINISTIC_SCHEDULING
    state = _run._r.getstate()
    _run._ALLOW_DETERMINISTIC_SCHEDULING = True  # type: ignore[misc]
    _run._r.seed(f"scheduler/{seed}")
    try:
        yield
    finally:
        _run._ALLOW_DETERMINISTIC_SCHEDULING = previous  # type: ignore[misc]
        _run._r.setstate(state)
