"""Server-sent events out of lines (WHATWG HTML §9.2.6), bounded (pure)."""

from __future__ import annotations

from dataclasses import dataclass

from protocols.errors import BodyTooLarge

#: The data by which OpenAI-compatible servers may end a stream.
DONE = b"[DONE]"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event: its ``name`` (empty when the server gives none) and its data."""

    data: bytes
    name: bytes = b""


class EventParser:
    """Collects lines until they make an event.

    Args:
        data_bytes_max: largest data of one event, bytes: an event may have any number of lines.
    """

    def __init__(self, *, data_bytes_max: int) -> None:
        self._data_bytes_max = data_bytes_max
        self._data: list[bytes] = []
        self._data_bytes = 0
        self._name = b""
        self._begun = False

    def feed(self, line: bytes) -> ServerEvent | None:
        """Take one line without its ending; returns the event that it completes, if any.

        Comments (keep-alives) and the fields ``id`` and ``retry`` say nothing here: nobody reconnects to a completion.

        Raises:
            BodyTooLarge: the event's data exceeds its bound.
        """
        if not self._begun:
            self._begun = True
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            return self.flush()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data_bytes += len(value) + 1
            if self._data_bytes > self._data_bytes_max:
                raise BodyTooLarge(
                    f"a server-sent event exceeds {self._data_bytes_max} bytes",
                    limit_bytes=self._data_bytes_max,
                )
            self._data.append(value)
        elif field == b"event":
            self._name = value
        return None

    def flush(self) -> ServerEvent | None:
        """The event begun so far: at a blank line, or at the end of a body that lacks its last blank line."""
        data, name = self._data, self._name
        self._data, self._data_bytes, self._name = [], 0, b""
        return ServerEvent(b"\n".join(data), name) if data else None
