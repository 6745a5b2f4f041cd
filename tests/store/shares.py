"""Limits, fair shares and aging in plain Python: the part of the store's model that decides who is next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

from gateway.models import AGING_S_DEFAULT, ClassId, JobSpec

#: An order is (tick + rank * aging) * RANKS + rank; a tick counts 32 microseconds since 2020.
RANKS = 128
TICK_US = 32
TICKS_FROM_US = 1_577_836_800_000_000
#: Levels' worth of waiting after which a class no longer pays for its tenant's other classes.
PATIENCE = 10
NO_LIMIT = "-1 0 1"


class Waiting(Protocol):
    """What is looked at of a job."""

    @property
    def spec(self) -> JobSpec: ...

    @property
    def class_id(self) -> ClassId: ...

    @property
    def order(self) -> int: ...


def names_of(job: Waiting) -> list[str]:
    """Names of the limits that a job falls under."""
    return [f"service {job.spec.service}", *([f"tenant {job.spec.tenant}"] if job.spec.tenant else [])]


def _stamps(job: Waiting) -> tuple[str, str]:
    return f"class {job.class_id}", f"tenant {job.spec.tenant}"


class Shares:
    """Who is next. The running jobs and the time come from the caller."""

    def __init__(self) -> None:
        #: Text of everything that was set, by name.
        self.texts: dict[str, str] = {}
        self.meters_us: dict[str, int] = {}
        #: When classes and tenants were last served, in ticks.
        self.served: dict[str, int] = {}
        self._clock = 0

    @property
    def aging_ticks(self) -> int:
        return int(self.texts.get("aging_ms", round(AGING_S_DEFAULT * 1000))) * 1000 // TICK_US

    def order(self, tick: int, rank: int) -> int:
        return (tick + rank * self.aging_ticks) * RANKS + rank

    @staticmethod
    def tick(now_us: int) -> int:
        return (now_us - TICKS_FROM_US) // TICK_US

    def define(self, limits: Sequence[tuple[str, str]], *, only_new: bool) -> list[tuple[bool, str]]:
        return [self._define(name, text, only_new=only_new) for name, text in limits]

    def _define(self, name: str, text: str, *, only_new: bool) -> tuple[bool, str]:
        before = self.texts.get(name, "")
        changed = before != text and not (only_new and before)
        if changed:
            self.texts[name] = text
        if not self.texts.get(name):
            self.texts.pop(name, None)
        return changed, self.texts.get(name, "")

    def _limit(self, name: str) -> tuple[int | None, int, int]:
        """Most running jobs (None: any number), microseconds between starts (0: any rate), burst."""
        default = self.texts.get("tenant *") if name.startswith("tenant ") else None
        running_max, interval_us, burst = map(int, (self.texts.get(name) or default or NO_LIMIT).split())
        return None if running_max < 0 else running_max, interval_us, burst

    def _meter_us(self, name: str, now_us: int) -> int:
        return max(self.meters_us.get(name, 0), now_us)

    def lets(self, name: str, now_us: int, running: Counter[str]) -> int | None:
        """How many more jobs a limit lets through now; None for any number."""
        running_max, interval_us, burst = self._limit(name)
        left = [running_max - running[name]] if running_max is not None else []
        if interval_us:
            left.append((now_us + burst * interval_us - self._meter_us(name, now_us)) // interval_us)
        return min(left, default=None)

    def wait_ms(self, heads: Iterable[Waiting], now_us: int, running: Counter[str]) -> int:
        """Until a rate lets another of these jobs through; 0 when none holds one back."""
        waits = []
        for name in {name for job in heads for name in names_of(job)}:
            running_max, interval_us, burst = self._limit(name)
            room = running_max is None or running[name] < running_max
            let = self.lets(name, now_us, running)
            if interval_us and room and let is not None and let < 1:
                due_us = self._meter_us(name, now_us) + (1 - burst) * interval_us - now_us
                waits.append(max(1, -(-due_us // 1000)))
        return min(waits, default=0)

    def started(self, job: Waiting, now_us: int) -> None:
        for name in names_of(job):
            if interval_us := self._limit(name)[1]:
                self.meters_us[name] = self._meter_us(name, now_us) + interval_us

    def begin(self, now_us: int) -> None:
        """A call begins: its stamps are not before now."""
        self._clock = self.tick(now_us)

    def compete(self, heads: Sequence[Waiting]) -> None:
        """Where something is to be decided, the next stamps are later than those it is decided by."""
        if len({job.spec.tenant for job in heads}) > 1 or set(self.texts) - {"aging_ms"}:
            stamps = (self.served.get(name, 0) for job in heads for name in _stamps(job))
            self._clock = max([self._clock, *stamps])

    def taken(self, job: Waiting) -> None:
        """The tenant had its turn, whatever comes of it."""
        self._clock += 1
        self.served |= dict.fromkeys(_stamps(job), self._clock)

    def turn(self, job: Waiting, now_us: int) -> int:
        """Since when a tenant waits, not counting before it was last served, plus the rank of its job."""
        lead = job.order % RANKS * self.aging_ticks
        arrived = min(job.order // RANKS - lead, self.tick(now_us))
        its_class, its_tenant = (self.served.get(name, 0) for name in _stamps(job))
        patience = max(its_class, arrived) + PATIENCE * self.aging_ticks
        return max(arrived, min(its_tenant, patience)) + lead
