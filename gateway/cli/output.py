"""What commands write: JSON for programs, tables and lines for people, one line for an error."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

EXIT_INTERRUPTED = 130
EXIT_BROKEN_PIPE = 141
#: Tables that are not shown on a terminal are never cut: somebody may search in them.
WIDTH_UNBOUNDED = 1000


class ReaderGone(Exception):
    """Nobody reads our standard output any more, as after ``| head``."""


@contextmanager
def _to_stdout() -> Iterator[None]:
    """Each piece of output leaves at once, and a closed pipe is told apart from other broken ones."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise ReaderGone from error


def write_json(value: Any) -> None:
    """One JSON value as one line on standard output."""
    import msgspec

    with _to_stdout():
        sys.stdout.write(msgspec.json.encode(value).decode() + "\n")


def write_line(text: str = "") -> None:
    """One line for people on standard output."""
    with _to_stdout():
        sys.stdout.write(printable(text) + "\n")


def remark(text: str) -> None:
    """One line beside the result, on standard error."""
    sys.stderr.write(printable(text) + "\n")


def printable(text: str) -> str:
    """Text from elsewhere without what could steer a terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else f"\\x{ord(char):02x}" for char in text)


def console() -> Console:
    """Standard output as rich sees it."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else WIDTH_UNBOUNDED, highlight=False)


def write_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, title: str = "") -> None:
    """A table for people; cells are plain text, never markup."""
    from rich import box
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(
        *(
            Column(name, overflow="fold") for name in columns
        ),  # what does not fit goes on below: nothing is cut
        title=title or None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        show_header=any(columns),
    )
    for row in rows:
        table.add_row(*(Text(printable(str(cell))) for cell in row))
    write_rich(table)


def write_rich(value: RenderableType) -> None:
    """Something that rich can show; without trailing spaces where nobody looks at a terminal."""
    out = console()
    with out.capture() as captured:
        out.print(value)
    text = captured.get()
    if not out.is_terminal:
        text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
    with _to_stdout():
        sys.stdout.write(text)


def complain(kind: str, message: str, code: int, *, as_json: bool) -> int:
    """Tell an error in one line on standard error.

    Returns:
        ``code``.
    """
    if as_json:
        import msgspec

        text = msgspec.json.encode({"error": {"kind": kind, "message": message}}).decode()
    else:
        text = "error: " + printable(" ".join(message.split()))
    sys.stderr.write(text + "\n")
    return code


def count(number: int, thing: str) -> str:
    """A number of things for people."""
    return f"{number} {thing}{'' if number == 1 else 's'}"


def age(milliseconds: float) -> str:
    """A span of time for people."""
    seconds = max(milliseconds, 0) / 1000
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.0f} d"


def clock(at_ms: int) -> str:
    """A moment for people, local time."""
    from datetime import datetime

    return datetime.fromtimestamp(at_ms / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
