"""What a store holds, read back and judged by itself."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from gateway.models import JobState
from gateway.store.keys import QueueKeys

_TERMINAL = {JobState.COMPLETED.value, JobState.DEAD.value, JobState.CANCELLED.value}
#: Place of the deadline in a record.
_EXPIRES = 22
#: A reason that a script gave, by its kind; what settlers wrote stays as it is.
_REASON = re.compile(r'^\{.*"kind":"(\w+)".*\}$')
_decode_row = msgspec.json.Decoder(list[str]).decode


class Mismatch(AssertionError):
    """Store and model, or two stores, disagree; or an index disagrees with the records."""


def as_text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def _scores(raw: Any) -> dict[str, int]:
    return {as_text(member): int(score) for member, score in raw}


def _hash(raw: Any) -> dict[str, str]:
    return {as_text(name): as_text(value) for name, value in raw.items()}


def _numbers(texts: Mapping[str, str]) -> dict[str, int]:
    return {name: int(text) for name, text in texts.items()}


def _stream(raw: Any) -> list[tuple[str, int, int, str, str]]:
    rows = []
    for _, fields in raw:
        entry = _hash(fields)
        number, epoch = int(entry["number"]), int(entry["epoch"])
        rows.append((entry["kind"], epoch, number, entry["value"], entry["body"]))
    return rows


def _family(raw: Any) -> list[Any]:
    """An end that was put off."""
    state, job_id, family = msgspec.json.decode(raw)
    return [state, job_id, family]


def contents(client: Any, keys: QueueKeys, classes: Sequence[str], jobs: Sequence[str]) -> dict[str, Any]:
    """What the store holds, decoded, in the form of ``tests.store.model_snapshot``; read in one round trip."""
    pipe = client.pipeline(transaction=False)
    hashes = (
        *(keys.jobs, keys.specs, keys.results, keys.idempotency, keys.classes, keys.unique, keys.children),
        *(keys.schedules, keys.schedule_runs, keys.usage, keys.served, keys.rates, keys.limits),
    )
    sets = (
        *(keys.leases, keys.scheduled, keys.finished, keys.dead, keys.deadlines, keys.waiting, keys.holds),
        keys.schedule_due,
    )
    for key in hashes:
        pipe.hgetall(key)
    for key in (*sets, *map(keys.pending, classes)):
        pipe.zrange(key, 0, -1, withscores=True)
    pipe.lrange(keys.untold, 0, -1)
    for job_id in jobs:
        pipe.xrange(keys.stream(job_id))
    raws = iter(pipe.execute())
    rows, specs, results, idempotency, known, unique, children, schedules, runs, *shares = (
        _hash(next(raws)) for _ in hashes
    )
    usage, served, rates, limits = shares
    leases, scheduled, finished, dead, deadlines, waiting, holds, schedule_due = (
        _scores(next(raws)) for _ in sets
    )
    pending = [_scores(next(raws)) for _ in classes]
    untold = [_family(raw) for raw in next(raws)]
    streams = map(_stream, raws)
    return {
        "jobs": {job_id: _decode_row(row) for job_id, row in rows.items()},
        "specs": set(specs),
        "pending": {name: list(jobs) for name, jobs in zip(classes, pending, strict=True) if jobs},
        "leases": leases,
        "scheduled": scheduled,
        "finished": finished,
        "dead": dead,
        "results": {job: _REASON.sub(r"\1", body) for job, body in results.items()},
        "idempotency": idempotency,
        "classes": set(known),
        "streams": {job_id: entries for job_id, entries in zip(jobs, streams, strict=True) if entries},
        "deadlines": deadlines,
        "waiting": waiting,
        "children": {job_id: msgspec.json.decode(family) for job_id, family in children.items()},
        "untold": untold,
        "unique": unique,
        "holds": holds,
        "schedules": schedules,
        "schedule_due": schedule_due,
        "schedule_runs": {name: _decode_row(row) for name, row in runs.items()},
        "usage": {name: count for name, count in _numbers(usage).items() if count},
        "served": _numbers(served),
        "rates": _numbers(rates),
        "limits": limits,
    }


def check_conservation(held: Mapping[str, Any], now_ms: int) -> None:
    """Each job is in exactly one place, and that place agrees with its record."""
    where: dict[str, list[str]] = {job_id: [] for job_id in held["jobs"]}
    places = {"pending": [job for members in held["pending"].values() for job in members]}
    places |= {index: list(held[index]) for index in ("scheduled", "leases", "finished", "waiting")}
    for place, members in places.items():
        for job_id in members:
            where.setdefault(job_id, []).append(place)
    for job_id, found in where.items():
        row = held["jobs"].get(job_id)
        state = row[0] if row else "nothing"
        expected = "finished" if state in _TERMINAL else "leases" if state == "running" else state
        if row and state == "pending" and 0 < int(row[_EXPIRES]) <= now_ms and not found:
            continue  # left the queue at its deadline; the sweep ends it
        if found != [expected]:
            raise Mismatch(f"job {job_id} is {state}, but indexed in {found}")
        unended = row is not None and state not in (*_TERMINAL, "running")
        if row and unended and int(row[_EXPIRES]) and job_id not in held["deadlines"]:
            raise Mismatch(f"nobody watches the deadline of job {job_id}")
        if state == "pending" and job_id not in held["pending"].get(row[3], []):
            raise Mismatch(f"job {job_id} of class {row[3]} waits in another class")
    if held["specs"] != set(held["jobs"]):
        raise Mismatch(f"specifications of {sorted(held['specs'])}, records of {sorted(held['jobs'])}")
    dead = {job_id for job_id, row in held["jobs"].items() if row[0] == "dead"}
    if dead != set(held["dead"]):
        raise Mismatch(f"dead letters {sorted(held['dead'])}, dead records {sorted(dead)}")
    if not set(held["results"]) <= set(held["jobs"]):
        raise Mismatch("a result without a job")


def _plain(text: str) -> Any:
    """Text as data: JSON inside JSON is decoded too, because the order of an object's keys means nothing."""
    if not text or text[0] not in "[{":
        return text
    try:
        return _plain_tree(msgspec.json.decode(text))
    except msgspec.DecodeError:
        return text


def _plain_tree(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain_tree(item) for item in value]
    if isinstance(value, dict):
        return {name: _plain_tree(item) for name, item in value.items()}
    return _plain(value) if isinstance(value, str) else value


def dump(client: Any, keys: QueueKeys) -> dict[str, Any]:
    """Every key of the queue, decoded, with whether it expires; only the ids of stream entries are left out."""
    found: dict[str, Any] = {}
    for raw in sorted(client.scan_iter(f"tg:{{{keys.queue}}}:*", count=10_000)):
        key, kind = as_text(raw), as_text(client.type(raw))
        value: Any
        if kind == "hash":
            value = {name: _plain(text) for name, text in _hash(client.hgetall(key)).items()}
        elif kind == "zset":
            value = list(_scores(client.zrange(key, 0, -1, withscores=True)).items())
        elif kind == "stream":
            value = [
                {as_text(name): _plain(as_text(text)) for name, text in fields.items()}
                for _, fields in client.xrange(key)
            ]
        else:
            value = _plain(as_text(client.get(key)))
        found[key] = (kind, client.ttl(raw) > 0, value)
    return found
