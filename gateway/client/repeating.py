"""Repeats what is safe to repeat, up to one deadline; shared by both clients."""

from __future__ import annotations

import random as random_module
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from gateway.errors import StoreUnavailable
from gateway.store.calls import ScriptCall

DELAY_FIRST_S = 0.02
DELAY_MAX_S = 1.0


class Link(Protocol):
    """One connection to Redis that closes itself after an unknown outcome and opens again for the next command."""

    @property
    def connections_made(self) -> int:
        """How often it connected."""
        ...

    async def command(self, *parts: str | bytes | int, timeout_s: float | None = None) -> Any: ...

    async def script(self, call: ScriptCall, *, timeout_s: float | None = None) -> Any: ...


class Pace(Protocol):
    """How time passes for a client."""

    def now_s(self) -> float:
        """Monotonic clock, seconds."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class Repeater:
    """Runs commands and scripts until they are answered or ``timeout_s`` is over.

    Every script recognises its own repetition and every other command that the clients send only reads, so an unknown
    outcome is simply asked again.

    Args:
        link: sends one command.
        pace: clock and sleep.
        random: source of the jitter.
        timeout_s: longest time for one call with all its repetitions, seconds.
    """

    def __init__(self, link: Link, pace: Pace, random: random_module.Random, timeout_s: float) -> None:
        self._link = link
        self._pace = pace
        self._random = random
        self._timeout_s = timeout_s

    async def command(self, *parts: str | bytes | int, timeout_s: float | None = None) -> Any:
        """Like ``RedisLink.command``; ``timeout_s`` bounds one try.

        Raises:
            StoreUnavailable: no answer until the deadline.
            StoreRejected: Redis answered with an error.
        """
        return await self._repeat(lambda limit_s: self._link.command(*parts, timeout_s=limit_s), timeout_s)

    async def script(self, call: ScriptCall, *, timeout_s: float | None = None) -> Any:
        """Like ``RedisLink.script``; ``timeout_s`` bounds one try. Raises as ``command``."""
        return await self._repeat(lambda limit_s: self._link.script(call, timeout_s=limit_s), timeout_s)

    async def _repeat(self, send: Callable[[float | None], Awaitable[Any]], limit_s: float | None) -> Any:
        deadline_s = self._pace.now_s() + max(self._timeout_s, limit_s or 0.0)
        delay_s = DELAY_FIRST_S
        unknown = False
        while True:
            try:
                return await send(limit_s)
            except StoreUnavailable as error:
                unknown = unknown or error.outcome_unknown
                pause_s = delay_s * self._random.uniform(0.5, 1.0)
                if self._pace.now_s() + pause_s >= deadline_s:
                    raise StoreUnavailable(str(error), outcome_unknown=unknown) from error
            await self._pace.sleep(pause_s)
            delay_s = min(delay_s * 2, DELAY_MAX_S)
