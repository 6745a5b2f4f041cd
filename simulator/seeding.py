"""The simulator's randomness: one stream per (seed, instance, knob), the same in every process."""

from __future__ import annotations

from collections.abc import Callable
from random import Random


def streams(seed: int, instance: str) -> Callable[[str], Random]:
    """Random streams of one instance, by name.

    Args:
        seed: repeats the whole simulation.
        instance: so that two instances under one seed do not fail in step.
    """

    def stream(name: str) -> Random:
        # A string seeds through SHA-512, not through hash(), so it does not depend on PYTHONHASHSEED.
        return Random(f"{seed}/{instance}/{name}")

    return stream
