"""Reading a plan's tables with every mistake named: source, key, value, and what is allowed (pure)."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

#: Entries of one kind; a plan of a few faults, repeated for a week, stays below.
FAULTS_MAX = 100_000
_TARGET = re.compile(r"(gateway|service)-(\d{1,2})")
_MISSING: Any = object()
ValueT = TypeVar("ValueT")


class PlanError(ValueError):
    """A plan that cannot be read or carried out; the message is one line.

    Attributes:
        source: the file, or what else the plan came from.
        key: where in it, such as ``kill[0].at_s``; empty for the whole.
    """

    def __init__(self, source: str, key: str, problem: str) -> None:
        super().__init__(f"{source}: {key}{' ' if key else ''}{problem}")
        self.source = source
        self.key = key


class Table:
    """Reads one table and notes which of its keys are known."""

    def __init__(self, source: str, where: str, values: object) -> None:
        self._source = source
        self._where = where
        if not isinstance(values, Mapping):
            raise PlanError(source, where or "the plan", f"= {values!r}: expected a table")
        self.values: Mapping[str, Any] = values
        self._known: list[str] = []

    def refuse(self, key: str, value: object, allowed: str) -> PlanError:
        return PlanError(self._source, self._path(key), f"= {value!r}: allowed is {allowed}")

    def _path(self, key: str) -> str:
        return f"{self._where}.{key}" if self._where else key

    def _take(self, key: str, default: Any, allowed: str, check: Callable[[Any], ValueT | None]) -> ValueT:
        self._known.append(key)
        value = self.values.get(key, default)
        if value is _MISSING:
            raise PlanError(self._source, self._path(key), f"is missing: expected {allowed}")
        accepted = check(value)
        if accepted is None:
            raise self.refuse(key, value, allowed)
        return accepted

    def number(self, key: str, low: float, high: float, default: Any = _MISSING) -> float:
        return self._take(
            key, default, f"a number from {low:g} to {high:g}", lambda value: _number(value, low, high)
        )

    def whole(self, key: str, low: int, high: int, default: Any = _MISSING) -> int:
        return self._take(
            key,
            default,
            f"a whole number from {low} to {high}",
            lambda value: value if isinstance(value, int) and _number(value, low, high) is not None else None,
        )

    def text(self, key: str, default: Any = _MISSING) -> str:
        return self._take(key, default, "text", lambda value: value if isinstance(value, str) else None)

    def span(self, key: str, high: float, default: tuple[float, float]) -> tuple[float, float]:
        def check(value: Any) -> tuple[float, float] | None:
            pair = list(value) if isinstance(value, list | tuple) else [value, value]
            ends = [_number(item, 0.0, high) for item in pair]
            if len(ends) != 2 or ends[0] is None or ends[1] is None or ends[0] > ends[1]:
                return None
            return ends[0], ends[1]

        return self._take(key, default, f"seconds, or [shortest, longest] from 0 to {high:g}", check)

    def target(self, kinds: Mapping[str, int]) -> str:
        names = " or ".join(f"{kind}-0 to {kind}-{count - 1}" for kind, count in kinds.items())

        def check(value: Any) -> str | None:
            match = _TARGET.fullmatch(value) if isinstance(value, str) else None
            return value if match and int(match[2]) < kinds.get(match[1], 0) else None

        return self._take("target", _MISSING, names, check)

    def table(self, key: str) -> Table:
        self._known.append(key)
        return Table(self._source, self._path(key), self.values.get(key, {}))

    def tables(self, key: str) -> list[Table]:
        self._known.append(key)
        entries = self.values.get(key, [])
        if not isinstance(entries, list | tuple):
            raise PlanError(self._source, self._path(key), f"= {entries!r}: write [[{key}]] for each one")
        if len(entries) > FAULTS_MAX:
            raise PlanError(
                self._source, self._path(key), f"has {len(entries)} entries, at most {FAULTS_MAX}"
            )
        return [
            Table(self._source, f"{self._path(key)}[{number}]", one) for number, one in enumerate(entries)
        ]

    def done(self) -> None:
        """Refuse what nobody asked for."""
        for key, value in self.values.items():
            if key not in self._known:
                near = difflib.get_close_matches(key, self._known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(self._known)}"
                raise PlanError(self._source, self._path(key), f"= {value!r}: unknown key; {hint}")


def _number(value: object, low: float, high: float) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and low <= value <= high else None
