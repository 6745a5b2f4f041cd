"""Operations on the registry of services and on the fleet's overrides, over any script runner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from gateway.registration import RegisteredService
from gateway.store import fleet_scripts
from gateway.store.calls import BATCH_MAX, ScriptCall, StoreLimits
from gateway.store.fleet_scripts import ConfigureStatus, Overrides, RegisterStatus, Registration
from gateway.store.keys import QueueKeys


class Runner(Protocol):
    """What ``RedisLink`` offers."""

    async def command(self, *parts: str | bytes | int, timeout_s: float | None = None) -> Any: ...

    async def script(self, call: ScriptCall, *, timeout_s: float | None = None) -> Any: ...


class FleetOperations:
    """The verbs that concern no job; mixed into ``QueueOperations``."""

    _runner: Runner
    keys: QueueKeys
    limits: StoreLimits

    async def overrides(self) -> Overrides:
        """The fleet's overrides of settings."""
        return fleet_scripts.overrides_reply(await self._runner.command(b"HGETALL", self.keys.config))

    async def configure(self, revision: int, changes: Mapping[str, str]) -> tuple[ConfigureStatus, int]:
        """Set overrides (an empty value removes one), provided that they are still at that revision."""
        call = fleet_scripts.configure_call(self.keys, revision, changes, events_max=self.limits.events_max)
        return fleet_scripts.configure_reply(await self._runner.script(call))

    async def register(self, registrations: Sequence[Registration]) -> list[RegisterStatus]:
        """Register, renew or sign off services."""
        statuses: list[RegisterStatus] = []
        for start in range(0, len(registrations), BATCH_MAX):
            call = fleet_scripts.register_call(self.keys, registrations[start : start + BATCH_MAX])
            statuses += fleet_scripts.register_reply(await self._runner.script(call))
        return statuses

    async def services(self) -> tuple[int, list[RegisteredService]]:
        """Redis time in milliseconds, and the living services by id."""
        raw = await self._runner.script(fleet_scripts.discover_call(self.keys))
        return fleet_scripts.discover_reply(raw)
