"""Options of commands that describe a job, and how their values are read."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from gateway.errors import InvalidSubmission

Requires = Annotated[
    str | None, typer.Option(help="What a worker must offer, as a JSON object of predicates.")
]
Priority = Annotated[int, typer.Option(help="0 (last) to 100 (first).")]
MaxAttempts = Annotated[int, typer.Option(help="Charged tries before the dead letter.")]
TimeoutS = Annotated[float, typer.Option(help="Longest run of one attempt, seconds.")]
Tenant = Annotated[str, typer.Option(help="Whose job it is, for fair shares and limits.")]
AnyService = Annotated[
    bool, typer.Option("--allow-unknown-service", help="Also accept a service that nobody serves yet.")
]
ExpiresIn = Annotated[
    float | None,
    typer.Option("--expires-in", help="Deadline, seconds from now: not claimed by then, it ends dead."),
]
ExpiresAt = Annotated[
    str | None,
    typer.Option("--expires-at", help="Deadline as 2030-01-31T18:00:00+01:00 or seconds since the epoch."),
]
Unique = Annotated[
    str | None,
    typer.Option("--unique", help="One unfinished job at a time has this key; prints that job's id."),
]
UniqueFor = Annotated[
    float, typer.Option("--unique-for", help="Hold the key so long after the job's end, seconds.")
]
After = Annotated[
    list[str] | None,
    typer.Option("--after", help="Id of a job that must have completed first; may be repeated."),
]
OnParentFailure = Annotated[
    str, typer.Option(help="When such a job ends dead or cancelled: cancel this one, or release it.")
]


def parse_moment(text: str | None, where: str) -> float | None:
    """A moment as seconds since the epoch.

    Args:
        text: ISO 8601 with an offset from UTC, or a number; None for none.
        where: names the option in errors.

    Raises:
        InvalidSubmission: neither of the two.
    """
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        pass
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None:
        raise InvalidSubmission(
            f"{where} {text!r}: write a moment with its offset, such as 2030-01-31T18:00:00+01:00, or seconds since "
            "the epoch"
        )
    return moment.timestamp()
