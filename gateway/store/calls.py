"""Building blocks of script calls: the loaded Lua sources and the limits that every call carries (pure)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

#: Most items in one script call: Lua's unpack holds about 8000 values, and one call must not block Redis for long.
BATCH_MAX = 256
#: Operations that end jobs; their first keys are those of ``QueueKeys.ending``.
ENDING = frozenset({"settle", "sweep", "cancel"})


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua operation: shared prelude plus its own file, addressed by the SHA-1 that EVALSHA wants."""

    name: str
    source: str
    sha: str


@dataclass(frozen=True, slots=True)
class ScriptCall:
    """A script with its declared keys and arguments, ready for any Redis client."""

    script: Script
    keys: Sequence[str]
    args: Sequence[str | bytes | int]


def parts(name: str) -> tuple[str, ...]:
    """Files that make up one operation, in order: what is shared, then its own."""
    if name.startswith("_"):
        return ("_prelude", name) if name != "_prelude" else (name,)
    return ("_prelude", "_prelude_ending", name) if name in ENDING else ("_prelude", name)


@cache
def script(name: str) -> Script:
    """Load ``lua/<name>.lua`` behind the shared prelude, and behind the shared part about endings where it ends jobs.

    Content addressing lets gateways of different versions share one Redis.
    """
    folder = files("gateway.store") / "lua"
    source = "".join((folder / f"{part}.lua").read_text("utf-8") for part in parts(name))
    return Script(name, source, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """Bounds that the scripts enforce.

    Attributes:
        unfinished_max: jobs that have not ended, per queue.
        classes_max: different (service, requires) classes, per queue.
        events_max: entries kept in the event stream (approximately).
        stream_max: entries kept in one job's own stream (approximately).
        stream_ttl_s: seconds a job's own stream outlives its last entry.
        retention_s: seconds a completed or cancelled job is kept.
        dead_retention_s: seconds a dead letter is kept.
        yields_max: uncharged returns (snooze, release) of one job before it is dead after all.
        recoveries_max: expired leases without progress before the job is a poison pill.
        sweep_max: jobs moved per index in one sweep call.
        payload_bytes_max: JSON size of one job's specification.
        result_bytes_max: JSON size of one result.
        worker_ttl_s: seconds after which a silent worker leaves the registry.
        parents_max: jobs that one job may wait for.
        children_max: jobs that may wait for one job.
        told_max: children told of their parents' ends in one call (a whole family at least); a sweep tells the rest.
        schedules_max: schedules per queue.
    """

    unfinished_max: int = 1_000_000
    classes_max: int = 1000
    events_max: int = 100_000
    stream_max: int = 10_000
    stream_ttl_s: float = 3600.0
    retention_s: float = 24 * 3600.0
    dead_retention_s: float = 14 * 24 * 3600.0
    yields_max: int = 1000
    recoveries_max: int = 3
    sweep_max: int = 200
    payload_bytes_max: int = 1024 * 1024
    result_bytes_max: int = 16 * 1024 * 1024
    worker_ttl_s: float = 30.0
    parents_max: int = 64
    children_max: int = 1000
    told_max: int = 500
    schedules_max: int = 500


def milliseconds(seconds: float) -> str:
    """Whole milliseconds as text, the form the scripts take times in."""
    return str(round(seconds * 1000))
