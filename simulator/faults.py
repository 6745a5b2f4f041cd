"""The faults a simulated service can show: knobs, their limits, and the dice that draw them (pure).

Every knob is independent of the others: each has its own random stream and each decision takes exactly one
number from it, whatever the rate is. So turning one knob leaves the decisions of all others as they were.
Randomness and time come in as arguments.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

if TYPE_CHECKING:
    from random import Random

#: A rate that changes: steps of (seconds since the start, rate from then on); 0 before the first step.
Schedule = tuple[tuple[float, float], ...]
Rate = float | Schedule

#: "1 in 25", the share of jobs whose completion signal got lost in the system this one replaces.
DEFAULT_FLAKE_RATE = 0.04
SLOW_FACTOR_DEFAULT = 15.0
SLOW_FACTOR_MAX = 10_000.0
RETRY_AFTER_S_DEFAULT = 1.0
RETRY_AFTER_S_MAX = 86_400.0
#: Longer than a client that asks right away waits, shorter than one that polls in vain for long.
LATE_RECORD_S_DEFAULT = 0.25
LATE_RECORD_S_MAX = 3_600.0
OVERSIZE_BYTES_DEFAULT = 2 * 1024 * 1024
OVERSIZE_BYTES_MAX = 256 * 1024 * 1024
SCHEDULE_STEPS_MAX = 1_000

_RATE_ALLOWED = "a number from 0 to 1, or a schedule [[from_s, rate], ...] with growing from_s"


class FaultError(ValueError):
    """A knob that does not exist, or a value it cannot take.

    Attributes:
        knob: its name, as given.
        value: the value, as given.
        allowed: what would have been accepted.
    """

    def __init__(self, knob: str, value: object, allowed: str) -> None:
        super().__init__(f"fault {knob} = {value!r}: allowed is {allowed}")
        self.knob = knob
        self.value = value
        self.allowed = allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlan:
    """All knobs of one simulated service; names in ``_rate`` are chances per decision, 0..1 or a schedule.

    Build it with :meth:`from_mapping`, :meth:`updated` or :meth:`none`; the constructor checks as well.

    Raises:
        FaultError: a value out of range.
    """

    health_failure_rate: Annotated[Rate, "GET /health answers 503"] = DEFAULT_FLAKE_RATE
    lost_completion_rate: Annotated[
        Rate, "a job ends, but its events stream never says so and stays open; a query tells the truth"
    ] = DEFAULT_FLAKE_RATE
    error_4xx_rate: Annotated[Rate, "a submit is answered 400, nothing is accepted"] = 0.0
    error_5xx_rate: Annotated[Rate, "a request is answered 500, nothing is done"] = 0.0
    rate_limit_rate: Annotated[Rate, "a submit is answered 429 with Retry-After"] = 0.0
    unavailable_rate: Annotated[Rate, "a request is answered 503, nothing is done"] = 0.0
    hang_rate: Annotated[Rate, "a request is never answered, nothing is done"] = 0.0
    slow_rate: Annotated[Rate, "an execution takes slow_factor times as long"] = 0.0
    disconnect_rate: Annotated[Rate, "an events stream is reset in the middle"] = 0.0
    half_open_rate: Annotated[Rate, "an events stream goes silent in the middle and stays open"] = 0.0
    submit_reply_lost_rate: Annotated[
        Rate, "a submit is accepted, then the connection is reset unanswered"
    ] = 0.0
    submit_500_after_accept_rate: Annotated[Rate, "a submit is accepted, but answered 500"] = 0.0
    duplicate_event_rate: Annotated[Rate, "a line of the events stream is sent twice"] = 0.0
    out_of_order_rate: Annotated[Rate, "a line of the events stream is sent after the next one"] = 0.0
    event_after_terminal_rate: Annotated[Rate, "a progress line follows the terminal line"] = 0.0
    finished_before_listening_rate: Annotated[Rate, "an execution takes no time at all"] = 0.0
    garbage_rate: Annotated[Rate, "an answer, or one more line of the events stream, is not JSON"] = 0.0
    cancel_ignored_rate: Annotated[Rate, "a cancel is acknowledged, but the work goes on and completes"] = 0.0
    empty_output_rate: Annotated[Rate, "an execution completes with no result at all"] = 0.0
    out_of_memory_rate: Annotated[Rate, "an execution fails half-way with out_of_memory"] = 0.0
    oversize_rate: Annotated[Rate, "a result is padded to oversize_bytes"] = 0.0
    late_record_rate: Annotated[
        Rate, "a job's end is announced late_record_s before a query or a record shows it"
    ] = 0.0
    partial_accept_rate: Annotated[
        Rate, "a submit is accepted although one of its outputs is invalid and will be missing (ComfyUI)"
    ] = 0.0
    slow_factor: Annotated[
        float, "how many times longer a slow execution takes", f"a number from 1 to {SLOW_FACTOR_MAX:g}"
    ] = SLOW_FACTOR_DEFAULT
    retry_after_s: Annotated[
        float,
        "Retry-After of the simulated 429 and 503, in seconds",
        f"a number from 0 to {RETRY_AFTER_S_MAX:g}",
    ] = RETRY_AFTER_S_DEFAULT
    oversize_bytes: Annotated[
        int, "size of an oversize result, in bytes", f"a whole number from 1 to {OVERSIZE_BYTES_MAX}"
    ] = OVERSIZE_BYTES_DEFAULT
    late_record_s: Annotated[
        float,
        "how long the record of an announced end is missing, in seconds",
        f"a number from 0 to {LATE_RECORD_S_MAX:g}",
    ] = LATE_RECORD_S_DEFAULT
    dedupe: Annotated[
        bool, "a repeated submit of a live or completed job runs nothing again", "true or false"
    ] = True
    restart_forgets_at_s: Annotated[
        tuple[float, ...],
        "moments, in seconds since the start, when the service restarts and forgets all jobs",
        "a list of growing numbers from 0",
    ] = ()

    def __post_init__(self) -> None:
        for knob in dataclasses.fields(self):
            object.__setattr__(self, knob.name, _checked(knob.name, getattr(self, knob.name)))

    @classmethod
    def none(cls) -> FaultPlan:
        """A service without faults: all rates 0."""
        return cls().updated(dict.fromkeys(RATE_NAMES, 0.0))

    @classmethod
    def from_mapping(cls, values: Mapping[str, object]) -> FaultPlan:
        """The defaults with these knobs changed (as read from TOML, JSON or the command line)."""
        return cls().updated(values)

    def updated(self, values: Mapping[str, object]) -> FaultPlan:
        """This plan with these knobs changed.

        Raises:
            FaultError: an unknown knob or a value out of range; this plan stays as it is.
        """
        for name, value in values.items():
            if name not in KNOBS:
                near = difflib.get_close_matches(name, KNOBS, n=3) or list(KNOBS)
                raise FaultError(name, value, f"one of the knobs {', '.join(near)}")
        changes: dict[str, Any] = dict(values)
        return dataclasses.replace(self, **changes)

    def to_mapping(self) -> dict[str, Any]:
        """All knobs as plain JSON values; :meth:`from_mapping` reads them back."""
        plain: dict[str, Any] = {}
        for name in KNOBS:
            value = getattr(self, name)
            plain[name] = (
                [list(item) if isinstance(item, tuple) else item for item in value]
                if isinstance(value, tuple)
                else value
            )
        return plain

    def rate(self, name: str, elapsed_s: float) -> float:
        """The chance of one knob at a moment, in seconds since the service started."""
        value: Rate = getattr(self, name)
        if not isinstance(value, tuple):
            return value
        current = 0.0
        for from_s, step in value:
            if from_s > elapsed_s:
                break
            current = step
        return current


@dataclass(frozen=True, slots=True)
class Knob:
    """One line of ``simulator faults``: what a knob is called, does, takes and is without being set."""

    name: str
    meaning: str
    allowed: str
    default: Any


def _number(value: object) -> float | None:
    """A finite number, or None; a bool is not a number here."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def _pairs(value: object) -> Schedule | None:
    """A well-formed schedule, or None."""
    if not isinstance(value, (list, tuple)) or not 0 < len(value) <= SCHEDULE_STEPS_MAX:
        return None
    steps: list[tuple[float, float]] = []
    for item in value:
        if not isinstance(item, (list, tuple)) or len(item) != 2:
            return None
        from_s, rate = _number(item[0]), _number(item[1])
        if from_s is None or rate is None or not 0 <= rate <= 1 or from_s < 0:
            return None
        if steps and from_s <= steps[-1][0]:
            return None
        steps.append((from_s, rate))
    return tuple(steps)


def _moments(value: object) -> tuple[float, ...] | None:
    """Growing moments, or None."""
    if not isinstance(value, (list, tuple)) or len(value) > SCHEDULE_STEPS_MAX:
        return None
    moments: list[float] = []
    for item in value:
        number = _number(item)
        if number is None or number < 0 or (moments and number <= moments[-1]):
            return None
        moments.append(number)
    return tuple(moments)


_RANGES: dict[str, tuple[float, float]] = {
    "slow_factor": (1.0, SLOW_FACTOR_MAX),
    "retry_after_s": (0.0, RETRY_AFTER_S_MAX),
    "late_record_s": (0.0, LATE_RECORD_S_MAX),
    "oversize_bytes": (1.0, float(OVERSIZE_BYTES_MAX)),
}


def _checked(name: str, value: object) -> object:
    """The value in its canonical type, or a FaultError."""
    accepted: object = None
    if name == "dedupe":
        accepted = value if isinstance(value, bool) else None
    elif name == "restart_forgets_at_s":
        accepted = _moments(value)
    else:
        number = _number(value)
        low, high = _RANGES.get(name, (0.0, 1.0))
        if number is None and name not in _RANGES:
            accepted = _pairs(value)
        elif number is not None and low <= number <= high:
            accepted = number
        if name == "oversize_bytes":
            accepted = value if accepted is not None and isinstance(value, int) else None
    if accepted is None:
        raise FaultError(name, value, KNOBS[name].allowed)
    return accepted


def _knobs() -> dict[str, Knob]:
    """Read the table of knobs off the class, so that no knob is described twice."""
    hints = get_type_hints(FaultPlan, include_extras=True)
    knobs: dict[str, Knob] = {}
    for item in dataclasses.fields(FaultPlan):
        meaning, *rest = hints[item.name].__metadata__
        knobs[item.name] = Knob(item.name, meaning, rest[0] if rest else _RATE_ALLOWED, item.default)
    return knobs


#: Every knob by name, in the order of the class.
KNOBS: dict[str, Knob] = _knobs()
RATE_NAMES: tuple[str, ...] = tuple(name for name in KNOBS if name.endswith("_rate"))


def parse_assignment(text: str) -> tuple[str, object]:
    """Read ``name=value`` of the command line; a schedule is written ``0:0.5,30:0``, moments ``10,20``.

    Raises:
        FaultError: no ``=``, or not readable as a value at all (ranges are checked by the plan).
    """
    name, separator, value = (part.strip() for part in text.partition("="))
    if not separator or not name or not value:
        raise FaultError(name or text, value, "written as name=value, for example health_failure_rate=0.1")
    known = KNOBS.get(name)
    allowed = known.allowed if known else "a number, true, false or a schedule 0:0.5,30:0"
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    try:
        if ":" in value:
            return name, [[float(number) for number in step.split(":")] for step in value.split(",")]
        if name == "restart_forgets_at_s":
            return name, [float(number) for number in value.split(",")]
        return name, int(value) if name == "oversize_bytes" else float(value)
    except ValueError:
        raise FaultError(name, value, allowed) from None


class FaultDice:
    """Draws the faults of one service: one random stream per knob.

    Args:
        plan: the knobs; may be exchanged while the service runs (:attr:`plan`).
        random_for: gives the random stream of a knob name; called once per knob that is ever drawn.
    """

    def __init__(self, plan: FaultPlan, random_for: Callable[[str], Random]) -> None:
        self.plan = plan
        self._random_for = random_for
        self._streams: dict[str, Random] = {}

    def stream(self, name: str) -> Random:
        """The random stream of one knob."""
        found = self._streams.get(name)
        if found is None:
            found = self._streams[name] = self._random_for(name)
        return found

    def roll(self, name: str, elapsed_s: float) -> bool:
        """Whether the fault happens now; takes exactly one number, also at rate 0."""
        return self.stream(name).random() < self.plan.rate(name, elapsed_s)
