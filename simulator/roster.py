"""Services of a simulated fleet in the gateways' registry: they register, renew, fall silent and move.

In a fleet with a registry no gateway knows an address: its workers name an instance, and follow where it says it is.
"""

from __future__ import annotations

import trio

from gateway.errors import StoreError
from gateway.registration import TTL_S_DEFAULT, ServiceEntry
from gateway.store.fleet_scripts import Registration
from simulator.cluster import Cluster

#: Pause after a registration without an answer, seconds.
RETRY_S = 1.0


async def announce(cluster: Cluster, name: str) -> None:
    """Keep one service registered where it is, as a sidecar on its machine does; silent while the service is down."""
    ttl_s = TTL_S_DEFAULT * cluster.plan.lease_s / 15.0
    async with cluster.operations(cluster.service_nodes[name]) as operations:
        while True:
            pause_s = ttl_s / 3
            if cluster.serving[name]:
                protocol = cluster.plan.protocol(int(name.rpartition("-")[2]))
                entry = ServiceEntry(
                    service="simulation",
                    protocol=protocol.value,
                    url=cluster.url(name),
                    instance=name,
                    machine=name,
                )
                try:
                    await operations.register([Registration(name, entry, ttl_s)])
                except StoreError:
                    pause_s = RETRY_S
            with trio.move_on_after(pause_s):
                await cluster.moved[name].wait()
