"""The asynchronous client's verbs that concern the fleet: the registry of services, and overrides of settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.client.core import ClientCore
from gateway.limits import Limit, QueueLimits
from gateway.registration import TTL_S_DEFAULT, RegisteredService, ServiceEntry
from gateway.store.fleet_scripts import Overrides, RegisterStatus, Registration


class AsyncFleetVerbs:
    """Mixed into ``AsyncClient``."""

    @property
    def core(self) -> ClientCore:
        """The verbs; ``AsyncClient`` has them while it is open."""
        raise NotImplementedError

    async def services(self) -> list[RegisteredService]:
        """Services that are registered and whose time is not over, by id."""
        return (await self.core.ops.services())[1]

    async def register(
        self, service_id: str, entry: ServiceEntry, ttl_s: float = TTL_S_DEFAULT
    ) -> RegisterStatus:
        """Tell the gateways of this queue where an instance of a service is; repeat it within ``ttl_s``.

        Raises:
            InvalidRegistration: no worker could use the entry, or the registry is full.
        """
        return await self.core.register(service_id, entry, ttl_s)

    async def deregister(self, service_id: str) -> bool:
        """Sign a service off; gateways leave it at once. True whether or not it was registered."""
        statuses = await self.core.ops.register([Registration(service_id, None)])
        return statuses == [RegisterStatus.GONE]

    async def limits(self) -> QueueLimits:
        """All limits of the queue with what they let through now."""
        return await self.core.ops.limits_now()

    async def set_limits(self, limits: Mapping[str, Limit | None]) -> QueueLimits:
        """Set or remove (None) limits; as ``Client.set_limits``.

        Raises:
            ConfigError: a name or a number is impossible; nothing was stored.
        """
        return await self.core.set_limits(limits)

    async def set_aging(self, aging_s: float | None) -> QueueLimits:
        """Set how many seconds of waiting weigh as much as one level of priority; as ``Client.set_aging``.

        Raises:
            ConfigError: out of range; nothing was stored.
        """
        return await self.core.set_aging(aging_s)

    async def overrides(self) -> Overrides:
        """The fleet's overrides of settings, JSON text by key."""
        return await self.core.ops.overrides()

    async def configure(self, changes: Mapping[str, Any]) -> Overrides:
        """Set or remove (None) overrides of settings for every gateway of this queue.

        Args:
            changes: JSON values by key, such as ``{"limits.unfinished_max": 1000}``.

        Returns:
            All overrides afterwards.

        Raises:
            ConfigError: a key or a value is impossible; nothing was stored.
        """
        return await self.core.configure(changes)
