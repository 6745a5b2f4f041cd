"""What ``gateway top`` shows: one queue, its workers and services at one moment, with rates (pure)."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from gateway.discovery import current
from gateway.events import Event
from gateway.explain import WorkerView
from gateway.lifecycle import EventType
from gateway.models import QueueStats
from gateway.registration import RegisteredService

#: Span over which rates are averaged: long enough to be read, short enough to follow a change.
RATE_WINDOW_MS = 10_000

#: Which events count for which rate; everything else is left out.
_RATES: Mapping[EventType, str] = {
    EventType.SUBMITTED: "submitted",
    EventType.DEFERRED: "submitted",
    EventType.BLOCKED: "submitted",
    EventType.CLAIMED: "claimed",
    EventType.COMPLETED: "completed",
    EventType.RETRIED: "retried",
    EventType.RETRIED_LATER: "retried",
    EventType.RECOVERED: "recovered",
    EventType.DEAD: "dead",
    EventType.EXPIRED: "dead",
}


class Rates(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs per second, averaged over ``window_s`` seconds; all zero while nothing has been measured (0 s)."""

    window_s: float
    submitted: float = 0.0
    claimed: float = 0.0
    completed: float = 0.0
    retried: float = 0.0
    recovered: float = 0.0
    dead: float = 0.0


class RateMeter:
    """Counts events of a sliding window, by Redis time.

    Args:
        since_ms: the moment from which on every event is fed, milliseconds.
        window_ms: longest span to average over, milliseconds.
    """

    def __init__(self, since_ms: int, window_ms: int = RATE_WINDOW_MS) -> None:
        self._since_ms = since_ms
        self._window_ms = window_ms
        self._counts: deque[tuple[int, Counter[str]]] = deque()

    def feed(self, events: Iterable[Event]) -> None:
        """Count the next events, oldest first."""
        for event in events:
            name = _RATES.get(event.type)
            if name is None or event.at_ms < self._since_ms:
                continue
            if not self._counts or self._counts[-1][0] != event.at_ms:
                self._counts.append((event.at_ms, Counter()))
            self._counts[-1][1][name] += 1

    def restart(self, now_ms: int) -> None:
        """Forget everything: what happened before this moment was not read."""
        self._since_ms = now_ms
        self._counts.clear()

    def rates(self, now_ms: int) -> Rates:
        """The averages over the window that ends now, or over the part of it that was watched."""
        start_ms = max(self._since_ms, now_ms - self._window_ms)
        while self._counts and self._counts[0][0] < start_ms:
            self._counts.popleft()
        span_s = (now_ms - start_ms) / 1000
        if span_s <= 0:
            return Rates(window_s=0.0)
        total: Counter[str] = Counter()
        for _, counts in self._counts:
            total.update(counts)
        return Rates(
            window_s=span_s, **{name: round(total[name] / span_s, 2) for name in sorted(set(_RATES.values()))}
        )


class WorkerRow(msgspec.Struct, frozen=True, kw_only=True):
    """One worker.

    Attributes:
        running: jobs that it runs; None when it did not say.
        state: why it claims nothing, in its own words; ``claims`` when it does, ``silent`` when it is not heard of.
        breakers: endpoints by the state of their breaker.
        seen_s: since its last sign of life, seconds.
    """

    worker: str
    connector: str
    endpoints: tuple[str, ...]
    running: int | None
    slots: int
    state: str
    breakers: dict[str, int]
    seen_s: float

    @property
    def well(self) -> bool:
        """Whether it claims, or only has all slots busy."""
        return self.state in (CLAIMS, BUSY)


CLAIMS = "claims"
BUSY = "all slots busy"


class ServiceRow(msgspec.Struct, frozen=True, kw_only=True):
    """One registered service.

    Attributes:
        ends_in_s: how long its entry is still believed, seconds.
        since_s: how long it has said the same, seconds.
        overtaken_by: the newer entry that holds in its place; empty when it holds itself.
        workers: ids of the workers that are bound to its address.
    """

    id: str
    service: str
    url: str
    protocol: str
    instance: str
    machine: str
    healthy: bool
    capabilities: dict[str, Any]
    ends_in_s: float
    since_s: float
    overtaken_by: str
    workers: tuple[str, ...]

    @property
    def state(self) -> str:
        """In words."""
        if self.overtaken_by:
            return f"overtaken by {self.overtaken_by}"
        return "healthy" if self.healthy else "unhealthy"


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """A queue at one moment.

    Attributes:
        at_ms: Redis time, milliseconds since the epoch.
        pending: claimable jobs, of all classes; ``classes`` has those of each class that has any, most first.
        finished: completed and cancelled jobs that are still kept.
        oldest_wait_s: age of the longest waiting claimable job, seconds.
        slots, slots_busy: of the workers that are heard of.
        breakers: endpoints of all workers by the state of their breaker.
    """

    queue: str
    at_ms: int
    paused: bool
    pending: int
    scheduled: int
    waiting: int
    running: int
    finished: int
    dead: int
    oldest_wait_s: float
    classes: dict[str, int]
    rates: Rates
    slots: int
    slots_busy: int
    breakers: dict[str, int]
    workers: tuple[WorkerRow, ...]
    services: tuple[ServiceRow, ...]


def _endpoints(worker: WorkerView) -> list[dict[str, Any]]:
    told = worker.description.get("endpoints")
    return [one for one in told if isinstance(one, dict)] if isinstance(told, list) else []


def _state(worker: WorkerView, seen_s: float, ttl_s: float) -> str:
    if seen_s > ttl_s:
        return f"silent for {seen_s:.0f} s"
    if worker.refusal:
        return worker.refusal
    if worker.healthy is False:
        return "unhealthy"
    if worker.running is not None and worker.slots and worker.running >= worker.slots:
        return BUSY
    return CLAIMS


def worker_rows(workers: Sequence[WorkerView], *, now_ms: int, ttl_s: float) -> tuple[WorkerRow, ...]:
    """The workers, those that do not claim first.

    Args:
        now_ms: Redis time, milliseconds.
        ttl_s: silence after which a worker is taken for gone, seconds.
    """
    rows = []
    for worker in workers:
        endpoints = _endpoints(worker)
        seen_s = max(now_ms - worker.seen_ms, 0) / 1000
        urls = [str(endpoint.get("url", "")) for endpoint in endpoints] or [worker.endpoint]
        rows.append(
            WorkerRow(
                worker=worker.worker_id,
                connector=worker.connector,
                endpoints=tuple(url for url in urls if url),
                running=worker.running,
                slots=worker.slots,
                state=_state(worker, seen_s, ttl_s),
                breakers=dict(
                    Counter(str(endpoint["breaker"]) for endpoint in endpoints if "breaker" in endpoint)
                ),
                seen_s=seen_s,
            )
        )
    return tuple(sorted(rows, key=lambda row: (row.well, row.worker)))


def service_rows(
    services: Sequence[RegisteredService], workers: Sequence[WorkerView], *, now_ms: int
) -> tuple[ServiceRow, ...]:
    """The registered services, with the workers that use each.

    Args:
        now_ms: Redis time, milliseconds.
    """
    users: dict[str, list[str]] = {}
    for worker in workers:
        for endpoint in _endpoints(worker):
            users.setdefault(str(endpoint.get("url", "")), []).append(worker.worker_id)
    _, overtaken = current(services)
    return tuple(
        ServiceRow(
            id=one.id,
            service=one.entry.service,
            url=one.entry.url,
            protocol=one.entry.protocol,
            instance=one.entry.instance,
            machine=one.entry.machine,
            healthy=one.entry.healthy,
            capabilities=one.entry.capabilities,
            ends_in_s=round((one.ends_ms - now_ms) / 1000, 1),
            since_s=round((now_ms - one.since_ms) / 1000, 1),
            overtaken_by=overtaken.get(one.id, ""),
            workers=tuple(users.get(one.entry.url.rstrip("/"), ())),
        )
        for one in services
    )


def assemble(
    queue: str,
    stats: QueueStats,
    workers: Sequence[WorkerView],
    services: Sequence[RegisteredService],
    rates: Rates,
    *,
    worker_ttl_s: float,
) -> Overview:
    """Put one view together.

    Args:
        queue: name of the queue.
        stats: its counts; their moment is the view's.
        workers: all registered workers.
        services: all registered services.
        rates: jobs per second.
        worker_ttl_s: silence after which a worker is taken for gone, seconds.
    """
    rows = worker_rows(workers, now_ms=stats.now_ms, ttl_s=worker_ttl_s)
    heard = [row for row in rows if row.seen_s <= worker_ttl_s]
    breakers: Counter[str] = Counter()
    for row in heard:
        breakers.update(row.breakers)
    waiting = sorted(stats.pending.items(), key=lambda item: (-item[1], item[0]))
    return Overview(
        queue=queue,
        at_ms=stats.now_ms,
        paused=stats.paused,
        pending=stats.pending_total,
        scheduled=stats.scheduled,
        waiting=stats.waiting,
        running=stats.running,
        finished=stats.finished - stats.dead,
        dead=stats.dead,
        oldest_wait_s=stats.oldest_pending_ms / 1000,
        classes={class_id: count for class_id, count in waiting if count},
        rates=rates,
        slots=sum(row.slots for row in heard),
        slots_busy=sum(row.running or 0 for row in heard),
        breakers=dict(breakers),
        workers=rows,
        services=service_rows(services, workers, now_ms=stats.now_ms),
    )
