"""What happens in a simulated world between two steps of its tasks, and the virtual clock that gets there.

A network in memory has thousands of arrivals for each simulated minute. With a trio deadline for each of them, most of
a run's processor time went into cancel scopes: three waits for each chunk of bytes. Here an arrival is a plain call
at its moment, made when no task can run and the clock is about to jump.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable

import trio
import trio.testing
from trio._core._run import GLOBAL_RUN_CONTEXT

_of_this_run: trio.lowlevel.RunVar[Timetable] = trio.lowlevel.RunVar("timetable")


def timetable() -> Timetable:
    """The timetable of the current run; the first call makes it.

    Raises:
        TypeError: the run is not on a mock clock that jumps, so that real time would pass between two arrivals.
    """
    try:
        return _of_this_run.get()
    except LookupError:
        made = Timetable(trio.lowlevel.current_clock())
        _of_this_run.set(made)
        return made


class Timetable:
    """Calls that are due at moments of virtual time; those of one moment happen in the order in which they were made.

    Args:
        clock: the run's clock, a mock clock with ``autojump_threshold=0``. This class takes over how it jumps, which is
            private to trio: its version is pinned, and ``tests/fleet/test_timetable.py`` holds it to what is used here.
    """

    def __init__(self, clock: trio.abc.Clock) -> None:
        if not isinstance(clock, trio.testing.MockClock) or clock.autojump_threshold != 0 or clock.rate != 0:
            raise TypeError("a simulated network needs trio.testing.MockClock(autojump_threshold=0)")
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._clock = clock
        # The original asks the real clock for each look at the virtual one, and multiplies what passed by zero.
        clock.current_time = lambda: clock._virtual_base  # type: ignore[method-assign]
        clock._autojump = self._jump  # type: ignore[method-assign]

    def call_at(self, at_s: float, call: Callable[[], None]) -> None:
        """Make a call at a moment; at a past one as soon as no task can run.

        Args:
            at_s: seconds of trio's time.
            call: must neither block nor raise: it runs outside of every task.
        """
        heapq.heappush(self._due, (at_s, next(self._order), call))

    def _jump(self) -> None:
        """Nobody can run: go to the next call, or to the next deadline if that comes first."""
        due = self._due
        deadline_s = _next_deadline_s()
        now_s = self._clock._virtual_base
        if due and due[0][0] <= deadline_s:
            now_s = self._clock._virtual_base = max(now_s, due[0][0])
            while due and due[0][0] <= now_s:
                heapq.heappop(due)[2]()
        elif deadline_s < math.inf:
            self._clock._virtual_base = max(now_s, deadline_s)


def _next_deadline_s() -> float:
    """When the next cancel scope expires; the public statistics would count all tasks each time."""
    return GLOBAL_RUN_CONTEXT.runner.deadlines.next_deadline()
