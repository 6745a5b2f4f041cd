"""The one lifecycle table of a job: which event may happen in which state, and where it leads (pure).

Rules of this file, after h11's:
1. Everything that decides whether a transition is legal lives here; the Lua scripts implement it, the auditor
   checks it, the docs' diagram is generated from it.
2. This file does not know who causes an event or why.
3. A missing entry is an illegal transition: a bug of ours, never silently ignored.

WARNING, what is not in the table: epochs, slots and deadlines (see ``gateway.audit``).
"""

from __future__ import annotations

import enum
from types import MappingProxyType

from gateway.models import TERMINAL_STATES, JobState


class EventType(enum.StrEnum):
    """Every entry kind of a queue's event stream."""

    SUBMITTED = "submitted"
    DEFERRED = "deferred"
    BLOCKED = "blocked"
    UNBLOCKED = "unblocked"
    CLAIMED = "claimed"
    COMPLETED = "completed"
    DEAD = "dead"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    RETRIED = "retried"
    RETRIED_LATER = "retried_later"
    SNOOZED = "snoozed"
    SNOOZED_LATER = "snoozed_later"
    RELEASED = "released"
    RELEASED_LATER = "released_later"
    RECOVERED = "recovered"
    PROMOTED = "promoted"
    REQUEUED = "requeued"
    CANCEL_REQUESTED = "cancel_requested"
    REFUSED = "refused"
    CONFIGURED = "configured"


class IllegalTransition(Exception):
    """An event that the table does not allow in this state.

    Attributes:
        state: state before the event, None for a job that does not exist yet.
        event: what was tried.
    """

    def __init__(self, state: JobState | None, event: EventType) -> None:
        super().__init__(f"{event.value} is not allowed in state {state.value if state else 'nothing'}")
        self.state = state
        self.event = event


_RUNNING_ENDS = {
    EventType.COMPLETED: JobState.COMPLETED,
    EventType.DEAD: JobState.DEAD,
    EventType.EXPIRED: JobState.DEAD,
    EventType.CANCELLED: JobState.CANCELLED,
    EventType.RETRIED: JobState.PENDING,
    EventType.RETRIED_LATER: JobState.SCHEDULED,
    EventType.SNOOZED: JobState.PENDING,
    EventType.SNOOZED_LATER: JobState.SCHEDULED,
    EventType.RELEASED: JobState.PENDING,
    EventType.RELEASED_LATER: JobState.SCHEDULED,
    EventType.RECOVERED: JobState.PENDING,
    EventType.CANCEL_REQUESTED: JobState.RUNNING,
}

#: ``TRANSITIONS[state][event] -> state``; None is the state before the job exists.
TRANSITIONS: MappingProxyType[JobState | None, dict[EventType, JobState]] = MappingProxyType(
    {
        None: {
            EventType.SUBMITTED: JobState.PENDING,
            EventType.DEFERRED: JobState.SCHEDULED,
            EventType.BLOCKED: JobState.WAITING,
        },
        # COMPLETED in PENDING: the newest owner's result arrives after its lease ran out and before anyone else
        # claimed the job; refusing it would run finished work twice.
        JobState.PENDING: {
            EventType.CLAIMED: JobState.RUNNING,
            EventType.CANCELLED: JobState.CANCELLED,
            EventType.COMPLETED: JobState.COMPLETED,
            EventType.EXPIRED: JobState.DEAD,
        },
        JobState.SCHEDULED: {
            EventType.PROMOTED: JobState.PENDING,
            EventType.CANCELLED: JobState.CANCELLED,
            EventType.EXPIRED: JobState.DEAD,
        },
        # For its parents: the last one's end makes it due.
        JobState.WAITING: {
            EventType.UNBLOCKED: JobState.SCHEDULED,
            EventType.CANCELLED: JobState.CANCELLED,
            EventType.EXPIRED: JobState.DEAD,
        },
        JobState.RUNNING: _RUNNING_ENDS,
        JobState.COMPLETED: {},
        # An operator's requeue opens a new life of the job; it is the only way out of a terminal state.
        JobState.DEAD: {EventType.REQUEUED: JobState.PENDING},
        JobState.CANCELLED: {},
    }
)

#: Events with which a job begins, and those that lead to a terminal state.
BIRTHS = frozenset(TRANSITIONS[None])
ENDS = frozenset(
    event for events in TRANSITIONS.values() for event, target in events.items() if target in TERMINAL_STATES
)
#: Events that say something about a job without moving it.
REMARKS = frozenset({EventType.REFUSED, EventType.CONFIGURED})


def step(state: JobState | None, event: EventType) -> JobState | None:
    """Follow one event.

    Args:
        state: where the job is; None before it exists.
        event: what happened.

    Returns:
        The state afterwards (unchanged for a remark).

    Raises:
        IllegalTransition: the table has no such entry.
    """
    if event in REMARKS:
        return state
    try:
        return TRANSITIONS[state][event]
    except KeyError:
        raise IllegalTransition(state, event) from None


def is_terminal(state: JobState | None) -> bool:
    """Whether the job has ended (a dead job may still be requeued by an operator)."""
    return state in TERMINAL_STATES


def mermaid() -> str:
    """The table as a Mermaid state diagram; ``docs/lifecycle.md`` holds this text and a test compares it."""
    lines = ["stateDiagram-v2"]
    for state, events in TRANSITIONS.items():
        source = "[*]" if state is None else state.value
        lines += [f"    {source} --> {target.value}: {event.value}" for event, target in events.items()]
        if state is not None and state in TERMINAL_STATES:
            lines.append(f"    {source} --> [*]")
    return "\n".join(lines) + "\n"
