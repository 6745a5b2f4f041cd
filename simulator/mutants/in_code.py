"""Mutants of the gateway's Python: who believes what when, what is sent when, and over which connection."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import trio
from coredis.connection._request import BaseRequest

from gateway.binding import Binder
from gateway.breaker import HealthGate
from gateway.connector import Connector
from gateway.endpoints import BoundEndpoint
from gateway.errors import StoreError
from gateway.leases import EndReason, LeaseKeeper, Ownership
from gateway.models import Grant, JobState, LeaseStatus, Settlement, SettlementKind, Verdict
from gateway.registration import RegisteredService
from gateway.settling import Settler
from gateway.store import scripts
from gateway.store.calls import ScriptCall
from gateway.store.connection import RedisLink
from gateway.store.redis import RedisStore
from gateway.supervisor import Gateway
from gateway.worker import Worker
from simulator.cluster import current_node
from simulator.mutants.lock_claimer import claim_under_lock
from simulator.mutants.model import (
    EVERY_SCRIPT,
    Edit,
    Favour,
    Judge,
    Mutant,
    both,
    edits,
    replacements,
)
from simulator.plan import FaultKind, LinkLevels
from simulator.redis_twin import EPOCH_S

#: How far the clocks of two gateways may be apart where scripts believe them, seconds.
CLIENT_SKEW_S = 30.0

_settle = Settler.settle
_own = LeaseKeeper.own
_renew = LeaseKeeper._renew
_script = RedisLink.script
_connector = Gateway._connector
_apply = Binder._apply


async def _settle_then_disown(self: Settler, settlement: Settlement, ownership: Ownership) -> Verdict | None:
    if settlement.kind is not SettlementKind.RELEASED:
        return await _settle(self, settlement, ownership)
    verdict = await self._release(settlement)
    self._keeper.disown(ownership, "released")
    return verdict


def _believe_while_sending(self: Settler, settlement: Settlement, ownership: Ownership) -> None:
    """Instead of ``Settler._before_sending``."""


async def _drop(self: Settler, settlement: Settlement, ownership: Ownership) -> Verdict | None:
    """Instead of ``Settler._keep``: what Redis did not take is forgotten."""
    return None


def _own_from_reply(self: LeaseKeeper, grant: Grant, worker_id: str, *, left_s: float) -> Ownership | None:
    return _own(self, grant, worker_id, left_s=self._now_s())


async def _renew_from_reply(self: LeaseKeeper) -> None:
    """``LeaseKeeper._renew``, but the moment it counts from is that of the answer."""
    due = [ownership for ownership in self._owned.values() if self._now_s() < ownership.renew_until_s]
    statuses = await self._store.renew([ownership.lease for ownership in due]) if due else []
    for ownership, status in zip(due, statuses, strict=True):
        if ownership.lease not in self._owned:
            continue
        if status is LeaseStatus.LOST:
            ownership.end(EndReason.LOST)
            continue
        ownership.believe_until(self._now_s() + self._belief_s)
        self._observer.owned(ownership.lease, ownership.worker_id, ownership.until_s)
        if status is LeaseStatus.CANCEL and ownership.reason is None:
            ownership.end(EndReason.CANCEL_REQUESTED)


async def _believe_the_best(self: LeaseKeeper) -> None:
    try:
        await _renew(self)
    except StoreError:
        for ownership in list(self._owned.values()):
            ownership.believe_until(self._now_s() + self._belief_s)
            self._observer.owned(ownership.lease, ownership.worker_id, ownership.until_s)
        raise


def _forget_but_keep(self: BaseRequest, reason: str) -> None:
    """Instead of closing the connection of a request that was given up: its reply goes to the next one."""
    waiting = self._connection._requests
    kept = [request for request in waiting if request is not self]
    waiting.clear()
    waiting.extend(kept)


def _bind_once(self: Binder, services: Sequence[RegisteredService], *, strict: bool) -> None:
    if strict:
        _apply(self, services, strict=strict)


def _record_now(self: HealthGate, ok: bool) -> bool:
    changed = ok != self._healthy
    self._healthy = ok
    return changed


async def _script_with_our_time(self: RedisLink, call: ScriptCall, *, timeout_s: float | None = None) -> Any:
    node = current_node.get()
    skew_s = Random(f"clock of {node.name}").uniform(0.0, CLIENT_SKEW_S) if node else 0.0
    now_us = round((EPOCH_S + trio.current_time() + skew_s) * 1e6)
    return await _script(self, ScriptCall(call.script, call.keys, [*call.args, now_us]), timeout_s=timeout_s)


def _start_uncounted(self: BoundEndpoint) -> None:
    self.breaker.started(self._now_s())


def _end_uncounted(self: BoundEndpoint) -> None:
    """Instead of ``BoundEndpoint.job_ended``: nothing was counted."""


def _one_connector_per_key(
    self: Gateway, key: str, url: str, worker: Worker, where: str, instance: str = ""
) -> Connector:
    shared: dict[str, Connector] = self.__dict__.setdefault("_shared", {})
    if key not in shared:
        shared[key] = _connector(self, key, url, worker, where, instance)
    return shared[key]


async def _settle_in_two_steps(
    self: RedisStore, settlements: Sequence[Settlement]
) -> list[tuple[Verdict, JobState | None]]:
    raw = await self._work.script(scripts.settle_call(self.keys, self.limits, settlements))
    replies = 2 * len(settlements) + 1
    if len(raw) > replies:
        await self._work.command(b"HSET", self.keys.jobs, *raw[replies:])
    return scripts.settle_reply(raw[:replies])


CODE_MUTANTS: tuple[Mutant, ...] = (
    Mutant(
        name="lock-and-busy-flag",
        breaks="Jobs are claimed as in the audited system: a lock per worker, a busy flag, find-then-mark.",
        promise="At most one live owner per job: two workers find the same job and both mark it.",
        judges=frozenset({Judge.AUDITOR, Judge.BELIEFS, Judge.LIVENESS}),
        put_in=replacements((RedisStore, "claim", claim_under_lock)),
    ),
    Mutant(
        name="settlement-in-two-steps",
        breaks="The event and the lease are written first, the job's record in a round trip of its own.",
        promise="Exactly one accepted completion: a failure in between leaves a job that ended and still runs.",
        judges=frozenset({Judge.AUDITOR, Judge.LIVENESS, Judge.PROMISES}),
        put_in=both(
            edits(
                Edit("settle", "redis.call('HSET', jobs_key, unpack(fields))", ""),
                Edit(
                    "settle",
                    "reply[#reply + 1] = int(unblocked)\n",
                    "reply[#reply + 1] = int(unblocked)\n"
                    "for _, id in ipairs(changed) do\n"
                    "  reply[#reply + 1] = id\n"
                    "  reply[#reply + 1] = cjson.encode(latest[id])\n"
                    "end\n",
                ),
            ),
            replacements((RedisStore, "_settle_batch", _settle_in_two_steps)),
        ),
    ),
    Mutant(
        name="settlement-dropped",
        breaks="A settlement that Redis did not take is forgotten instead of kept in the spool.",
        promise="A finished job's result is kept until the store has answered.",
        judges=frozenset({Judge.PROMISES}),
        put_in=replacements((Settler, "_keep", _drop)),
    ),
    Mutant(
        name="release-before-disowning",
        breaks="A gateway goes on believing in a lease while its release is on the way.",
        promise="At most one live owner per job: the next one may start before the answer is back.",
        judges=frozenset({Judge.BELIEFS}),
        put_in=replacements(
            (Settler, "settle", _settle_then_disown), (Settler, "_before_sending", _believe_while_sending)
        ),
        favour=Favour(
            only=frozenset({FaultKind.TERMINATE, FaultKind.SERVICE_DOWN, FaultKind.SERVICE_FAULTS}),
            links=LinkLevels(slow=0.1, lost_reply=0.05),
            why="jobs must be given back often, and the answers come late",
        ),
    ),
    Mutant(
        name="lease-from-reply",
        breaks="A lease is counted from the moment its claim or renewal was answered, not from before it left.",
        promise="An owner stops before Redis gives its job away, however late it heard of it.",
        judges=frozenset({Judge.BELIEFS}),
        put_in=replacements(
            (LeaseKeeper, "own", _own_from_reply), (LeaseKeeper, "_renew", _renew_from_reply)
        ),
        favour=Favour(
            only=frozenset({FaultKind.PARTITION, FaultKind.PAUSE}),
            links=LinkLevels(slow=0.12),
            gateways=4,
            jobs=20,
            job_leases=1.5,
            redis_rate=1.04,
            cut_off=2,
            why="the last answer before a partition must be slow, and somebody else claim at once afterwards",
        ),
    ),
    Mutant(
        name="unknown-renewal-believed",
        breaks="A renewal without an answer counts as granted.",
        promise="Only a confirmed renewal extends the belief: at most one live owner per job.",
        judges=frozenset({Judge.BELIEFS}),
        put_in=replacements((LeaseKeeper, "_renew", _believe_the_best)),
    ),
    Mutant(
        name="connection-kept-after-timeout",
        breaks="A connection on which a command timed out is used again, so replies meet the wrong commands.",
        promise="Every answer belongs to its own question.",
        judges=frozenset(Judge),
        put_in=replacements((BaseRequest, "_handle_response_cancellation", _forget_but_keep)),
    ),
    Mutant(
        name="time-from-clients",
        breaks="Scripts take the time that their callers' clocks show.",
        promise="Clocks of gateways do not matter: one that is ahead ends its neighbours' leases early.",
        judges=frozenset({Judge.BELIEFS, Judge.AUDITOR}),
        put_in=both(
            edits(
                Edit(
                    EVERY_SCRIPT,
                    "local now_us = tonumber(time[1]) * 1000000 + tonumber(time[2])",
                    "local now_us = tonumber(table.remove(ARGV))",
                )
            ),
            replacements((RedisLink, "script", _script_with_our_time)),
        ),
    ),
    Mutant(
        name="health-without-hysteresis",
        breaks="One failed probe makes a service unhealthy, one good one healthy.",
        promise="A flaky probe changes nothing: three failures in a row close the gate, two successes open it.",
        judges=frozenset({Judge.PROMISES}),
        put_in=replacements((HealthGate, "record", _record_now)),
    ),
    Mutant(
        name="slots-not-counted",
        breaks="A worker does not count the jobs it runs.",
        promise="Slots are never exceeded.",
        judges=frozenset({Judge.AUDITOR}),
        put_in=replacements(
            (BoundEndpoint, "job_started", _start_uncounted), (BoundEndpoint, "job_ended", _end_uncounted)
        ),
    ),
    Mutant(
        name="one-connector-per-key",
        breaks="Workers with the same connector share one instance of it, bound to the first one's endpoint.",
        promise="Every call reaches the worker's own endpoint.",
        judges=frozenset({Judge.JOURNALS}),
        put_in=replacements((Gateway, "_connector", _one_connector_per_key)),
    ),
    Mutant(
        name="moves-not-followed",
        breaks="A worker keeps the endpoints that it found at its start, whatever the registry says later.",
        promise="Every accepted job ends: a service that moved away is found where it is now.",
        judges=frozenset({Judge.LIVENESS}),
        put_in=replacements((Binder, "_apply", _bind_once)),
        favour=Favour(only=frozenset(), moves=True, why="in most swarms no service moves"),
    ),
)
