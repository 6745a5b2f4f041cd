"""The claimer that the audited system had, on our records: a lock per worker, a busy flag, and find-then-mark.

``SET worker:<id>:claiming <uuid> NX PX 5000``, then look at ``worker:<id>:busy``, find the best job, mark it, set the
flag, and release the lock by GET and DEL. The lock keeps a worker from itself only; between finding and marking
everybody else finds the same job, and a crash in between leaves flags that nobody clears.
"""

from __future__ import annotations

from typing import Any

import msgspec
import trio

from gateway.errors import StoreUnavailable
from gateway.models import ClaimReply, ClaimRequest, Epoch, Grant, JobId, JobSpec
from gateway.store.redis import RedisStore

LOCK_MS = 5_000
EVENTS_MAX = 10_000_000
# Places in a job's record, counted from 0.
STATE, EPOCH, CLASS, ATTEMPTS, RECOVERIES, WORKER, REFERENCE, CANCEL = 0, 1, 3, 5, 6, 8, 9, 10
NUMBER, SUBMITTED, ENQUEUED = 12, 13, 14
_decode_spec = msgspec.json.Decoder(JobSpec).decode


async def claim_under_lock(store: RedisStore, request: ClaimRequest) -> ClaimReply:
    """``RedisStore.claim`` as the audited system did it, one job at a time."""
    link, keys = store._work, store.keys
    prefix = keys.jobs.removesuffix("jobs") + f"worker:{request.worker_id}:"
    lock, busy = prefix + "claiming", prefix + "busy"
    class_count = int(await link.command(b"HLEN", keys.classes))
    nothing = ClaimReply((), class_count, False)
    if request.count <= 0:
        return nothing
    if await link.command(b"SET", lock, request.request_id, b"NX", b"PX", LOCK_MS) is None:
        return nothing
    try:
        if await link.command(b"GET", busy) == request.request_id.encode():
            return nothing
        grant = await _find_and_claim(store, request)
        if grant is None:
            return nothing
        await link.command(b"SET", busy, request.request_id)
        return ClaimReply((grant,), class_count, False)
    finally:
        with trio.move_on_after(LOCK_MS / 1000, shield=True):
            await _unlock(store, lock, request.request_id)


async def _unlock(store: RedisStore, lock: str, token: str) -> None:
    try:
        if await store._work.command(b"GET", lock) == token.encode():
            await store._work.command(b"DEL", lock)
    except StoreUnavailable:
        return  # it expires by itself


async def _find_and_claim(store: RedisStore, request: ClaimRequest) -> Grant | None:
    """Find the best waiting job, then mark it: two steps, and nothing keeps others out in between."""
    link, keys = store._work, store.keys
    for class_id in request.class_ids:
        found = await link.command(b"ZRANGE", keys.pending(class_id), 0, 0)
        if not found:
            continue
        job_id = found[0]
        raw = await link.command(b"HGET", keys.jobs, job_id)
        spec = await link.command(b"HGET", keys.specs, job_id)
        if raw is not None and spec is not None:
            return await _mark(store, request, job_id.decode(), msgspec.json.decode(raw), spec)
    return None


async def _mark(
    store: RedisStore, request: ClaimRequest, job_id: str, record: list[Any], spec: bytes
) -> Grant:
    link, keys = store._work, store.keys
    seconds, micros = await link.command(b"TIME")
    now_us = int(seconds) * 1_000_000 + int(micros)
    now_ms = now_us // 1000
    epoch = max(int(record[EPOCH]) + 1, now_us)
    record[STATE], record[EPOCH] = "running", str(epoch)
    record[WORKER], record[NUMBER] = request.worker_id, "0"
    await link.command(b"HSET", keys.jobs, job_id, msgspec.json.encode(record))
    await link.command(b"ZREM", keys.pending(record[CLASS]), job_id)
    await link.command(b"ZADD", keys.leases, now_ms + round(store._lease_s * 1000), job_id)
    rows = [["claimed", job_id, str(epoch), request.worker_id, str(request.slots)]]
    entry = ["at", str(now_ms), "e", msgspec.json.encode(rows).decode()]
    await link.command(b"XADD", keys.events, b"MAXLEN", b"~", EVENTS_MAX, b"*", *entry)
    return Grant(
        job_id=JobId(job_id),
        epoch=Epoch(epoch),
        class_id=record[CLASS],
        spec=_decode_spec(spec),
        attempts=int(record[ATTEMPTS]),
        recoveries=int(record[RECOVERIES]),
        reference=record[REFERENCE],
        cancel_requested=record[CANCEL] == "1",
        submitted_ms=int(record[SUBMITTED]),
        enqueued_ms=int(record[ENQUEUED]),
        claimed_ms=now_ms,
    )
