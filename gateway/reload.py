"""Changing the configuration of a running gateway: what changed, what of it may be taken up at once, and by whom.

A pure core: two configurations give typed changes; each live key has an applier that a part of the gateway offers. What
no applier stands for needs a restart, and says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pydantic

from gateway.config import GatewayConfig
from gateway.config_paths import ANY, leaves, matches, text_of
from gateway.config_secrets import public
from gateway.config_toml import Path
from gateway.errors import ConfigError

#: What of a rollout may change without a restart: everything but who the candidate is.
ROLLOUT_KEYS: tuple[Path, ...] = tuple(
    ("workers", ANY, "rollout", key)
    for key in (
        *("percent", "salt", "stopped", "window_attempts", "window_s", "attempts_min"),
        *("failure_ratio_max", "latency_ratio_max"),
    )
)
#: The keys that may be taken up without a restart; documented in docs/configuration.md.
LIVE_KEYS: tuple[Path, ...] = (
    ("workers", ANY, "slots"),
    *ROLLOUT_KEYS,
    ("limits",),
    ("telemetry", "log_level"),
)


class _Absent:
    """Stands for a key that one of two configurations does not have."""

    def __repr__(self) -> str:
        return "absent"


ABSENT = _Absent()


@dataclass(frozen=True, slots=True)
class Change:
    """One value that differs; ``ABSENT`` where a key came or went."""

    path: Path
    old: Any
    new: Any

    def __str__(self) -> str:
        old, new = (public(self.path[-1], value) for value in (self.old, self.new))
        return f"{text_of(self.path)}: {old!r} → {new!r}"


#: Takes up the changes below one live key: ``apply(new, changes)``. It must not fail.
Apply = Callable[[GatewayConfig, Sequence[Change]], None]
#: Judges a configuration before anything is taken up; raises ConfigError to refuse the whole reload.
Check = Callable[[GatewayConfig, Sequence[Change]], None]


@dataclass(frozen=True, slots=True)
class Report:
    """What a reload did: taken up, and waiting for a restart."""

    applied: tuple[Change, ...] = ()
    restart: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class _Applier:
    pattern: Path
    apply: Apply
    check: Check | None = field(default=None)


def diff(old: GatewayConfig, new: GatewayConfig) -> tuple[Change, ...]:
    """Every single value that differs, in the order of the schema."""
    before, after = dict(leaves(old.model_dump())), dict(leaves(new.model_dump()))
    return tuple(
        Change(path, before.get(path, ABSENT), after.get(path, ABSENT))
        for path in dict.fromkeys([*before, *after])
        if before.get(path, ABSENT) != after.get(path, ABSENT)
    )


def mixed(old: GatewayConfig, changes: Iterable[Change]) -> GatewayConfig:
    """A configuration with some changes made.

    Raises:
        ConfigError: the values cannot work together.
    """
    values = old.model_dump()
    for change in sorted(changes, key=lambda change: change.new is not ABSENT):
        if change.new is ABSENT:
            _remove(values, change.path)
        else:
            table = values
            for part in change.path[:-1]:
                inner = table.get(part)
                if not isinstance(inner, dict):
                    inner = table[part] = {}
                table = inner
            table[change.path[-1]] = change.new
    try:
        return GatewayConfig.model_validate(values)
    except pydantic.ValidationError as error:
        found = error.errors()[0]
        message = found["msg"].removeprefix("Value error, ")
        path = text_of([str(part) for part in found["loc"]]) or "combination"
        raise ConfigError(
            f"{path}: {message} (with the values that need a restart left as they are)"
        ) from None


def _remove(table: dict[str, Any], path: Path) -> None:
    """Take a value out, and the tables that are empty without it: one that is meant to be empty is set again."""
    if len(path) == 1:
        table.pop(path[0], None)
        return
    inner = table.get(path[0])
    if isinstance(inner, dict):
        _remove(inner, path[1:])
        if not inner:
            del table[path[0]]


class Reloader:
    """The configuration that a gateway runs with, and who takes up changes of it.

    Args:
        config: what it started with.
    """

    def __init__(self, config: GatewayConfig) -> None:
        #: Started with, and what was taken up since.
        self.running = config
        #: Read but not taken up: a restart would.
        self.waiting: tuple[Change, ...] = ()
        self._appliers: list[_Applier] = []

    def on(self, pattern: Path, apply: Apply, *, check: Check | None = None) -> None:
        """Offer to take up changes at or below a live key.

        Args:
            pattern: one of ``LIVE_KEYS``, or a key below one; ``*`` fits any name.
            apply: called with all changes it fits, after everything was judged.
            check: called first, may refuse the whole reload.
        """
        assert any(matches(pattern, live) for live in LIVE_KEYS), f"{text_of(pattern)} is no live key"
        self._appliers.append(_Applier(pattern, apply, check))

    def apply(self, new: GatewayConfig) -> Report:
        """Take up what may be taken up; all or nothing.

        Raises:
            ConfigError: the reload was refused; nothing changed.
        """
        changes = diff(self.running, new)
        live = tuple(change for change in changes if self._is_live(change, new))
        restart = tuple(change for change in changes if change not in live)
        running = mixed(self.running, live)
        for applier, fitting in self._fitting(live):
            if applier.check is not None:
                applier.check(running, fitting)
        self.running, self.waiting = running, restart
        for applier, fitting in self._fitting(live):
            applier.apply(running, fitting)
        return Report(live, restart)

    def _is_live(self, change: Change, new: GatewayConfig) -> bool:
        if change.path[0] == "workers" and not (
            change.path[1] in self.running.workers and change.path[1] in new.workers
        ):
            return False
        return any(matches(change.path, applier.pattern) for applier in self._appliers)

    def _fitting(self, live: Sequence[Change]) -> Iterable[tuple[_Applier, tuple[Change, ...]]]:
        for applier in self._appliers:
            fitting = tuple(change for change in live if matches(change.path, applier.pattern))
            if fitting:
                yield applier, fitting
