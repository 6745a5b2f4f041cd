"""On which line of a TOML document each key stands (pure): the standard library's reader does not tell.

Call it for text that ``tomllib`` has accepted: it follows keys, tables and brackets, and checks nothing.
"""

from __future__ import annotations

import re
import tomllib

Path = tuple[str, ...]

_BARE = re.compile(r"[A-Za-z0-9_-]+")
#: What may hold brackets, commas and signs without meaning them: strings, longest delimiters first.
_STRING = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}' r"|'''.*?'{3,5}" r'|"(?:\\.|[^"\\\n])*"' r"|'[^'\n]*'", re.DOTALL
)
_STAR = re.compile(r"\*")
_BLANK = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_PLAIN = re.compile(r"[^\s,\]}#]+(?:[ ][0-9:.Zz+-]+)?")


class _Reader:
    """One pass over a document; ``lines`` maps each key's path to the line it stands on, counted from 1."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.lines: dict[Path, int] = {}
        self.table: Path = ()
        self._tables: dict[Path, int] = {}

    def document(self) -> None:
        """Read to the end."""
        self._skip(_BLANK)
        while self.at < len(self.text):
            if self.text[self.at] == "[":
                self._header()
            else:
                self._pair(self.table)
            self._skip(_BLANK)

    def _skip(self, pattern: re.Pattern[str]) -> str:
        match = pattern.match(self.text, self.at)
        if match is None:
            return ""
        self.at = match.end()
        return match.group()

    def _line(self) -> int:
        return self.text.count("\n", 0, self.at) + 1

    def _note(self, path: Path, line: int) -> None:
        """A key's own line wins over that of the table it implies."""
        self.lines[path] = line
        for length in range(1, len(path)):
            self.lines.setdefault(path[:length], line)

    def _key(self) -> Path:
        """A dotted key; stands behind it and the white space after it."""
        parts: list[str] = []
        while True:
            self._skip(_SPACE)
            quoted = self._skip(_STRING)
            parts.append(tomllib.loads(f"k = {quoted}")["k"] if quoted else self._skip(_BARE))
            self._skip(_SPACE)
            if self.text[self.at : self.at + 1] != ".":
                return tuple(parts)
            self.at += 1

    def _header(self) -> None:
        line, listed = self._line(), self.text.startswith("[[", self.at)
        self.at += 2 if listed else 1
        path = self._key()
        self.at += 2 if listed else 1
        # A path below an array of tables means its last element; that one's number is part of the path.
        full: Path = ()
        for length, part in enumerate(path, 1):
            full = (*full, part)
            if listed and length == len(path):
                self._tables[full] = self._tables.get(full, -1) + 1
            if full in self._tables:
                full = (*full, str(self._tables[full]))
        self._note(full, line)
        self.table = full

    def _pair(self, table: Path) -> None:
        line = self._line()
        path = (*table, *self._key())
        self.at += 1  # the sign =
        self._note(path, line)
        self._value(path)

    def _value(self, path: Path) -> None:
        self._skip(_BLANK)
        opening = self.text[self.at : self.at + 1]
        if opening == "[":
            self._items(path)
        elif opening == "{":
            self._inline_table(path)
        elif not self._skip(_STRING):
            self._skip(_PLAIN)

    def _items(self, path: Path) -> None:
        self.at += 1
        number = 0
        while self._more("]"):
            item = (*path, str(number))
            self._note(item, self._line())
            self._value(item)
            number += 1

    def _inline_table(self, path: Path) -> None:
        self.at += 1
        while self._more("}"):
            self._pair(path)

    def _more(self, closing: str) -> bool:
        """Whether another item follows; stands before it, or behind the closing bracket."""
        self._skip(_BLANK)
        while self.text[self.at : self.at + 1] == ",":
            self.at += 1
            self._skip(_BLANK)
        if self.at >= len(self.text) or self.text[self.at] == closing:
            self.at += 1
            return False
        return True


def line_numbers(text: str) -> dict[Path, int]:
    """The line of each key, table and list item.

    Args:
        text: a valid TOML document.

    Returns:
        Lines counted from 1, by path; items of lists are named by their position. A table that several headers
        imply stands where it is named first.
    """
    reader = _Reader(text.replace("\r\n", "\n"))
    reader.document()
    return reader.lines


def read_key(text: str) -> Path:
    """The parts of a dotted key such as ``workers."a.b".slots``; a part may be ``*``; empty if it is no key."""
    parts, at = [], 0
    while True:
        match = _STRING.match(text, at) or _BARE.match(text, at) or _STAR.match(text, at)
        if match is None:
            return ()
        found = match.group()
        try:
            parts.append(tomllib.loads(f"k = {found}")["k"] if found[0] in "\"'" else found)
        except tomllib.TOMLDecodeError:
            return ()
        at = match.end()
        if at == len(text):
            return tuple(parts)
        if text[at] != ".":
            return ()
        at += 1
