"""The lifecycle table: what it allows, what it refuses, and that the documentation shows the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.audit import Invariant
from gateway.lifecycle import REMARKS, TRANSITIONS, EventType, IllegalTransition, is_terminal, mermaid, step
from gateway.models import TERMINAL_STATES, JobState

ROOT = Path(__file__).resolve().parents[2]
STATES: list[JobState | None] = [None, *JobState]


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("event", EventType)
def test_every_pair_is_either_in_the_table_or_refused(state: JobState | None, event: EventType) -> None:
    """No pair of state and event is silently ignored; a remark moves nothing."""
    if event in REMARKS:
        assert step(state, event) is state
    elif event in TRANSITIONS[state]:
        assert step(state, event) is TRANSITIONS[state][event]
    else:
        with pytest.raises(IllegalTransition) as refused:
            step(state, event)
        assert (refused.value.state, refused.value.event) == (state, event)


def test_only_a_requeue_leaves_an_ended_state() -> None:
    """Terminal states absorb, but an operator may give a dead job a new life."""
    ways_out = {(state, event) for state in JobState if is_terminal(state) for event in TRANSITIONS[state]}
    assert ways_out == {(JobState.DEAD, EventType.REQUEUED)}
    assert {state for state in JobState if is_terminal(state)} == TERMINAL_STATES
    assert not is_terminal(None)


def test_every_state_is_reachable_and_can_end() -> None:
    """No dead ends before an ended state, and no state that nothing leads to."""
    reached: set[JobState] = set()
    frontier = set(TRANSITIONS[None].values())
    while frontier:
        reached |= frontier
        frontier = {target for state in frontier for target in TRANSITIONS[state].values()} - reached
    assert reached == set(JobState)
    for state in JobState:
        ends: set[JobState] = {state}
        for _ in JobState:
            ends |= {target for found in ends for target in TRANSITIONS[found].values()}
        assert ends & TERMINAL_STATES


def test_an_event_leads_to_one_state_wherever_it_happens() -> None:
    """The auditor relies on it when a stream's start was trimmed."""
    targets: dict[EventType, set[JobState]] = {}
    for events in TRANSITIONS.values():
        for event, target in events.items():
            targets.setdefault(event, set()).add(target)
    assert all(len(found) == 1 for found in targets.values())
    assert set(targets) | REMARKS == set(EventType)


def test_the_page_shows_the_table() -> None:
    """docs/lifecycle.md holds the diagram that the table draws, to the letter."""
    page = (ROOT / "docs" / "lifecycle.md").read_text(encoding="utf-8")
    found = re.search(r"```mermaid\n(.*?)```", page, re.DOTALL)
    assert found
    assert found[1] == mermaid()


def test_the_page_names_every_invariant_of_the_auditor() -> None:
    """The table of invariants is complete."""
    page = (ROOT / "docs" / "lifecycle.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)) == {found.value for found in Invariant}


def test_the_scripts_emit_only_events_of_the_table() -> None:
    """Every name that a script writes into the event stream is known, and every known one is written."""
    folder = ROOT / "gateway" / "store" / "lua"
    text = "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.lua")))
    known = {event.value for event in EventType}
    named = set(re.findall(r"'(\w+)'", text))
    given_back = {"retried", "snoozed", "released"}
    # Settlement kinds double as event names, and a delay adds its suffix to them.
    composed = given_back | {f"{name}_later" for name in given_back}
    assert set(re.findall(r"events\[#events \+ 1\] = \{ '(\w+)'", text)) <= known
    assert known <= named | composed
