"""Simulated instances in a gateway's registry: ``simulator serve --register``."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from gateway.client import AsyncClient
from gateway.errors import StoreError
from gateway.registration import TTL_S_DEFAULT, ServiceEntry

log = logging.getLogger(__name__)

#: Longest farewell to the registry: entries that stay lapse by themselves.
SIGN_OFF_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Registry:
    """Which registry: a queue on a Redis."""

    redis_url: str
    queue: str
    ttl_s: float = TTL_S_DEFAULT


@dataclass(frozen=True, slots=True)
class Announcement:
    """One instance as one connector would look for it."""

    service_id: str
    entry: ServiceEntry


def announcements(instance: str, url: str, machine: str, connectors: Sequence[str]) -> list[Announcement]:
    """What an instance registers as: one entry per service and protocol that it speaks."""
    found = []
    for key in connectors:
        service, _, protocol = key.partition("-")
        service_id = instance if len(connectors) == 1 else f"{instance}/{protocol}"
        entry = ServiceEntry(service=service, protocol=protocol, url=url, instance=instance, machine=machine)
        found.append(Announcement(service_id, entry))
    return found


class Registrations:
    """The announcements of one process, renewed while it lives."""

    def __init__(self, registry: Registry, announced: Sequence[Announcement]) -> None:
        self._registry = registry
        self._announced = announced
        self._leaving = trio.Event()
        self._gone = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Register, renew until ``sign_off`` or cancelled; ready after the first registration.

        Raises:
            StoreError: the registry cannot be reached at the start; later losses are waited out.
        """
        try:
            async with AsyncClient(self._registry.redis_url, queue=self._registry.queue) as client:
                await self._register(client)
                task_status.started()
                while not self._leaving.is_set():
                    with trio.move_on_after(self._registry.ttl_s / 3):
                        await self._leaving.wait()
                        break
                    try:
                        await self._register(client)
                    except StoreError as error:
                        log.warning("the registry is away: %s", error)
                with trio.move_on_after(SIGN_OFF_TIMEOUT_S):
                    for one in self._announced:
                        await client.deregister(one.service_id)
        finally:
            self._gone.set()

    async def _register(self, client: AsyncClient) -> None:
        for one in self._announced:
            await client.register(one.service_id, one.entry, self._registry.ttl_s)

    async def sign_off(self) -> None:
        """Leave the registry, bounded: gateways stop sending jobs before the instances close."""
        self._leaving.set()
        with trio.move_on_after(SIGN_OFF_TIMEOUT_S + 1.0):
            await self._gone.wait()
