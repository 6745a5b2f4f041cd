"""One run as lines for a terminal (pure)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from simulator.report.lanes import Story, story_of

if TYPE_CHECKING:
    from simulator.run import Run


def timeline(story: Story) -> Iterator[str]:
    """Who did what when, one line each; faults stand out by a mark."""
    for line in story.lines:
        mark = "!" if line.actor == "fault" else " "
        yield f"{line.at_s:10.3f} {mark} {line.actor:<14} {line.what}"


def summary(run: Run) -> Iterator[str]:
    """What became of it all."""
    outcome = run.outcome
    yield (
        f"seed {outcome.plan.seed}: {outcome.jobs} jobs, {outcome.completed} completed, {outcome.dead} dead, "
        f"{outcome.cancelled} cancelled, {outcome.lost} lost, in {outcome.simulated_s:g} simulated seconds"
    )
    yield f"faults   {_counts(outcome.faults)}"
    yield f"events   {_counts(outcome.transitions)}"
    yield f"reached  {_counts(outcome.marks)}"
    yield f"digest   {outcome.history_digest}"
    for finding in outcome.undurable:
        yield f"undurable (Redis lost acknowledged writes, no promise covers this): {finding}"
    for finding in outcome.findings:
        yield f"BROKEN   {outcome.kind}: {finding}"
    if outcome.ok:
        yield "every promise held"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items()) or "none"


def as_data(run: Run) -> dict[str, Any]:
    """The run for programs."""
    outcome = run.outcome
    return {
        "seed": outcome.plan.seed,
        "verdict": outcome.kind,
        "findings": list(outcome.findings),
        "undurable": list(outcome.undurable),
        "durable": outcome.plan.durable,
        "simulated_seconds": outcome.simulated_s,
        "jobs": outcome.jobs,
        "completed": outcome.completed,
        "dead": outcome.dead,
        "cancelled": outcome.cancelled,
        "lost": outcome.lost,
        "faults": outcome.faults,
        "transitions": outcome.transitions,
        "states": outcome.marks,
        "history_digest": outcome.history_digest,
        "timeline": [
            {"at_s": line.at_s, "who": line.actor, "what": line.what} for line in story_of(run).lines
        ],
    }
