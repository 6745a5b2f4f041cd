"""Carry out a plan's incidents, each at its time, and undo those that last."""

from __future__ import annotations

import trio

from gateway.errors import StoreError
from simulator.cluster import Cluster
from simulator.network import Node
from simulator.plan import FaultKind, Incident
from simulator.redis_link import HOST, PORT


async def inflict(cluster: Cluster) -> None:
    """All incidents of the plan; each lasting one has a task of its own."""
    async with trio.open_nursery() as nursery:
        for incident in cluster.plan.incidents:
            await trio.sleep_until(incident.at_s)
            if cluster.network.healed:
                break
            cluster.injected(incident.kind.value, incident.target)
            nursery.start_soon(_inflict, cluster, incident)


async def _inflict(cluster: Cluster, incident: Incident) -> None:
    kind = incident.kind
    if kind in (FaultKind.KILL, FaultKind.KILL_AT_STEP, FaultKind.PAUSE, FaultKind.TERMINATE):
        await _hit_machine(cluster, incident)
    elif kind in (FaultKind.PARTITION, FaultKind.ONE_WAY_PARTITION):
        await _partition(cluster, incident)
    elif kind in (FaultKind.REDIS_RESTART, FaultKind.REDIS_ROLLBACK):
        await _hit_redis(cluster, incident)
    elif kind in (FaultKind.SERVICE_RESTART, FaultKind.SERVICE_DOWN, FaultKind.SERVICE_MOVE):
        await _hit_service(cluster, incident)
    else:
        await _operate(cluster, incident)


async def _hit_machine(cluster: Cluster, incident: Incident) -> None:
    machine = cluster.machines[incident.target]
    if incident.kind is FaultKind.KILL:
        cluster.kill(machine)
    elif incident.kind is FaultKind.KILL_AT_STEP:
        if machine.steps_left is None:
            cluster.killer.armed += 1
            machine.steps_left = incident.number
    elif incident.kind is FaultKind.TERMINATE:
        machine.stop.drain()
    else:
        node = machine.node
        node.pause()
        try:
            await _last(cluster, incident)
        finally:
            node.resume()
            cluster.history.tell(node.name, "thaws")


async def _last(cluster: Cluster, incident: Incident) -> None:
    """Wait out a lasting incident; healing ends it early."""
    end_s = min(trio.current_time() + incident.for_s, cluster.plan.safety_s)
    await trio.sleep_until(end_s)


async def _partition(cluster: Cluster, incident: Incident) -> None:
    source, _, target = incident.target.partition(">")
    pairs = [(source, target)]
    if incident.kind is FaultKind.PARTITION:
        pairs.append((target, source))
    for pair in pairs:
        cluster.network.cut(*pair)
    await _last(cluster, incident)
    for pair in pairs:
        cluster.network.mend(*pair)


async def _hit_redis(cluster: Cluster, incident: Incident) -> None:
    """Down for a while, then back with its data, or with that of a moment ago."""
    if incident.kind is FaultKind.REDIS_ROLLBACK:
        cluster.redis.snapshot()
        await trio.sleep(incident.for_s)
        cluster.redis.rollback()
        return
    cluster.network.unlisten(HOST, PORT)
    cluster.redis.restart()
    await _last(cluster, incident)
    cluster.network.listen(HOST, PORT, cluster.redis_node, cluster.redis.serve, cluster.nursery)


async def _hit_service(cluster: Cluster, incident: Incident) -> None:
    name = incident.target
    if incident.kind is FaultKind.SERVICE_RESTART:
        cluster.services[name].shell.restart()
        return
    cluster.service_away(name)
    await _last(cluster, incident)
    if incident.kind is FaultKind.SERVICE_MOVE and cluster.plan.discovered:
        cluster.service_moves(name)
    else:
        cluster.service_up(name)


async def _operate(cluster: Cluster, incident: Incident) -> None:
    """What a person or a nervous submitter does meanwhile; gives up when the world heals."""
    node = Node(f"operator {incident.at_s:g}")
    with trio.move_on_at(cluster.plan.safety_s):
        async with cluster.operations(node) as operations:
            try:
                if incident.kind is FaultKind.CANCEL:
                    said = (await operations.cancel([incident.target]))[0].value
                elif incident.kind is FaultKind.REQUEUE:
                    said = (await operations.requeue([incident.target]))[0].value
                else:
                    job = next(job for job in cluster.plan.jobs if job.job_id == incident.target)
                    await cluster.submit(operations, job)
                    said = "submitted again"
            except StoreError as error:
                said = f"no answer: {error}"
            cluster.history.tell("operator", f"{incident.kind.value} {incident.target}: {said}")
