"""Limits of a queue's services and tenants: what they are, how Redis keeps them, and what they hold back (pure).

The one truth is in Redis, where the claim script reads it: no gateway can claim past a limit, whatever its own
configuration says. Names of limits are ``service NAME``, ``tenant NAME`` and ``tenant *`` for every named tenant
without a limit of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import msgspec

from gateway.errors import ConfigError
from gateway.models import AGING_S_DEFAULT

#: Most starts of a rate in one burst, and its longest period: the meter stays below 2**53 microseconds.
BURST_MAX = 1_000_000
RATE_PERIOD_MAX_S = 7 * 24 * 3600.0
RUNNING_MAX = 1_000_000
#: A level of priority weighs at most this much waiting (104 days), so that an order stays below 2**53.
AGING_MAX_S = 9_000_000.0
AGING_FIELD = "aging_ms"
_NAME = re.compile(r"service [A-Za-z0-9][A-Za-z0-9_.-]{0,63}|tenant (\*|[A-Za-z0-9][A-Za-z0-9_.:@-]{0,63})")


class Limit(msgspec.Struct, frozen=True, kw_only=True):
    """How much of one service or tenant may happen, fleet-wide.

    Attributes:
        running_max: jobs that run at once; None for any number, 0 for none at all.
        rate: starts per ``rate_s`` seconds in the long run; None for any rate. A start that is released, retried or
            recovered counts again when the job is claimed again.
        rate_s: the period of ``rate``, seconds.
        burst: starts that may come at once after a quiet time; never more than ``burst`` + elapsed time / (``rate_s`` /
            ``rate``) in any stretch of time.
    """

    running_max: int | None = None
    rate: int | None = None
    rate_s: float = 1.0
    burst: int = 1

    @property
    def interval_us(self) -> int:
        """Microseconds between two starts at the full rate; 0 without a rate. Rounded up: never faster."""
        return 0 if self.rate is None else math.ceil(self.rate_s * 1_000_000 / self.rate)


def check_name(name: str) -> str:
    """Check a limit's name.

    Raises:
        ConfigError: neither a service nor a tenant.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"limit {name!r}: use 'service NAME', 'tenant NAME', or 'tenant *' for all other tenants"
        )
    return name


def check_limit(name: str, limit: Limit) -> Limit:
    """Check one limit's numbers.

    Raises:
        ConfigError: names the limit, the value and its range.
    """
    if limit.running_max is None and limit.rate is None:
        raise ConfigError(f"limit {name!r}: give running_max, rate or both")
    if limit.running_max is not None and not 0 <= limit.running_max <= RUNNING_MAX:
        raise ConfigError(f"limit {name!r}: running_max = {limit.running_max}: 0 to {RUNNING_MAX}")
    if not 1 <= limit.burst <= BURST_MAX:
        raise ConfigError(f"limit {name!r}: burst = {limit.burst}: 1 to {BURST_MAX}")
    if not 0 < limit.rate_s <= RATE_PERIOD_MAX_S:
        raise ConfigError(
            f"limit {name!r}: rate_s = {limit.rate_s:g}: more than 0, at most {RATE_PERIOD_MAX_S:g}"
        )
    if limit.rate is not None and not 1 <= limit.rate <= limit.rate_s * 1_000_000:
        raise ConfigError(f"limit {name!r}: rate = {limit.rate}: at least 1, at most one per microsecond")
    if limit.burst * limit.interval_us > 1000 * RATE_PERIOD_MAX_S * 1_000_000:
        raise ConfigError(f"limit {name!r}: burst = {limit.burst} at this rate lasts longer than 19 years")
    return limit


def encode_limit(limit: Limit) -> str:
    """As ``claim.lua`` reads it."""
    running = -1 if limit.running_max is None else limit.running_max
    return f"{running} {limit.interval_us} {limit.burst}"


def encode_limits(limits: Mapping[str, Limit | None]) -> list[tuple[str, str]]:
    """Names and texts as ``limit.lua`` takes them; None removes a limit.

    Raises:
        ConfigError: a name or a number is impossible.
    """
    return [
        (check_name(name), "" if limit is None else encode_limit(check_limit(name, limit)))
        for name, limit in limits.items()
    ]


def aging_ms(aging_s: float) -> str:
    """Seconds of waiting per level of priority, as ``submit.lua`` and ``claim.lua`` read it.

    Raises:
        ConfigError: out of range.
    """
    if not 0.001 <= aging_s <= AGING_MAX_S:
        raise ConfigError(
            f"aging_s = {aging_s:g}: 0.001 to {AGING_MAX_S:g} seconds (the largest: hardly ever)"
        )
    return str(round(aging_s * 1000))


class LimitView(msgspec.Struct, frozen=True, kw_only=True):
    """One limit as the store holds it, or a mere count where nothing is limited.

    Attributes:
        running: jobs of this service or tenant that run now.
        running_max: None for any number.
        starts_per_s: None for any rate.
        wait_s: seconds until the rate lets the next start through; 0 when it would now.
    """

    name: str
    running: int
    running_max: int | None
    starts_per_s: float | None
    burst: int
    wait_s: float

    @property
    def reason(self) -> str:
        """Why a job waits for this limit; empty when it need not."""
        if self.running_max is not None and self.running >= self.running_max:
            return f"{self.name}: {self.running} of at most {self.running_max} jobs run"
        if self.wait_s > 0:
            return f"{self.name}: at most {self.starts_per_s or 0.0:.6g} starts/s, the next in {self.wait_s:.1f} s"
        return ""


class QueueLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Everything the store knows of limits at one moment.

    Attributes:
        aging_s: seconds of waiting that weigh as much as one level of priority.
        limits: text of each defined limit by name.
        running: running jobs by name.
        meters_us: where the rates' meters stand, Redis time in microseconds.
    """

    now_us: int
    aging_s: float = AGING_S_DEFAULT
    limits: Mapping[str, str]
    running: Mapping[str, int]
    meters_us: Mapping[str, int]

    def view(self, name: str) -> LimitView:
        """The limit that holds for a service or tenant, its default included."""
        text = self.limits.get(name) or (self.limits.get("tenant *") if name.startswith("tenant ") else None)
        running_max, interval_us, burst = map(int, (text or "-1 0 1").split())
        ahead_us = max(self.meters_us.get(name, 0) - self.now_us, 0)
        wait_us = max(ahead_us + interval_us - burst * interval_us, 0) if interval_us else 0
        return LimitView(
            name=name,
            running=self.running.get(name, 0),
            running_max=None if running_max < 0 else running_max,
            starts_per_s=1_000_000 / interval_us if interval_us else None,
            burst=burst,
            wait_s=wait_us / 1_000_000,
        )

    def views(self) -> tuple[LimitView, ...]:
        """All defined limits and all running counts, by name."""
        return tuple(self.view(name) for name in sorted({*self.limits, *self.running}))

    def reasons(self, service: str, tenant: str) -> list[str]:
        """What holds back the next job of a service and tenant."""
        names: Sequence[str] = [f"service {service}", *([f"tenant {tenant}"] if tenant else [])]
        return [reason for name in names if (reason := self.view(name).reason)]
