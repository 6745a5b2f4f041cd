"""A listener's position in a job's events, and the faults of that one stream (pure)."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from gateway.connectors.simulation.wire import EventType, StreamEvent, encode
from simulator.faults import FaultDice
from simulator.model import Job

#: Not JSON, not even text: what a confused proxy or a half-written buffer looks like.
GARBAGE = b'\x00\xfe{"seq": <html>garbage'
#: A cut or silent stream shows fewer lines than this before it goes wrong (and never its terminal line).
LINES_BEFORE_CUT_MAX = 2


class StreamAct(enum.Enum):
    """What the shell does next with the stream."""

    LINE = enum.auto()
    #: Reset the connection.
    CUT = enum.auto()
    #: Send nothing any more, but stay open.
    SILENCE = enum.auto()
    #: Close the stream in order.
    END = enum.auto()


@dataclass(frozen=True, slots=True)
class StreamStep:
    """One act.

    Attributes:
        act: what to do.
        event: what a ``LINE`` says, for shells that say it in words of their own; None for garbage.
    """

    act: StreamAct
    event: StreamEvent | None = None

    @property
    def data(self) -> bytes:
        """A ``LINE`` in the simulation's own words, with its line end."""
        return GARBAGE + b"\n" if self.event is None else encode(self.event) + b"\n"


class EventCursor:
    """Shows one listener the events of one job after a number, with this stream's faults.

    Args:
        job: the job listened to.
        after: the last ``seq`` the listener has.
        dice: draws the faults.
        elapsed_s: seconds since the service started.
    """

    def __init__(self, job: Job, after: int, dice: FaultDice, elapsed_s: float) -> None:
        self.job = job
        self._after = after
        self._dice = dice
        self._held: StreamEvent | None = None
        self._lines = 0
        self._over = False
        self._breaks: list[tuple[int, StreamAct]] = []
        for knob, act in (("disconnect_rate", StreamAct.CUT), ("half_open_rate", StreamAct.SILENCE)):
            if dice.roll(knob, elapsed_s):
                # From a stream of its own, so that the decisions of later streams stay put.
                self._breaks.append((dice.stream(f"{knob}.lines").randint(0, LINES_BEFORE_CUT_MAX), act))
        self._breaks.sort(key=lambda item: item[0])

    def pull(self, elapsed_s: float) -> list[StreamStep]:
        """Everything to do now; empty when there is nothing yet. A stream never ends with a line."""
        steps: list[StreamStep] = []
        while not self._over:
            if self.job.forgotten:
                return [*steps, self._finish(StreamAct.CUT)]
            event = self._next()
            if event is None:
                break
            if self._breaks and (self._lines >= self._breaks[0][0] or event.terminal):
                return [*steps, self._finish(self._breaks[0][1])]
            if event.seq == self.job.muted_seq:
                return [*steps, self._finish(StreamAct.SILENCE)]
            self._after = event.seq
            steps.extend(StreamStep(StreamAct.LINE, shown) for shown in self._shown_for(event, elapsed_s))
            if event.terminal:
                steps.append(self._finish(StreamAct.END))
        return steps

    def _finish(self, act: StreamAct) -> StreamStep:
        self._over = True
        return StreamStep(act)

    def _next(self) -> StreamEvent | None:
        """The first event not yet shown; the events of a job have consecutive numbers."""
        events = self.job.events
        if not events:
            return None
        position = max(0, self._after - events[0].seq + 1)
        return events[position] if position < len(events) else None

    def _shown_for(self, event: StreamEvent, elapsed_s: float) -> list[StreamEvent | None]:
        """What one event becomes under the line faults; None stands for garbage."""
        roll = self._dice.roll
        garbage, twice = roll("garbage_rate", elapsed_s), roll("duplicate_event_rate", elapsed_s)
        late = roll("out_of_order_rate", elapsed_s)
        self._lines += 1
        shown: list[StreamEvent | None] = [None] if garbage else []
        shown += [event, event] if twice else [event]
        if self._held is not None:
            shown.append(self._held)
            self._held = None
        elif late and not event.terminal:
            self._held = shown.pop()
        if event.terminal and roll("event_after_terminal_rate", elapsed_s):
            stray = StreamEvent(
                seq=event.seq + 1,
                type=EventType.PROGRESS,
                instance=event.instance,
                progress=0.5,
                message="still working",
            )
            shown.append(stray)
        return shown
