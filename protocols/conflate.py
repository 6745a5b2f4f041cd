"""A bounded buffer between a reader that must never wait and a consumer that may (pure: no I/O, no waiting)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field

Frame = str | bytes


class BufferFullError(Exception):
    """A frame that nothing may replace found no room."""


@dataclass(slots=True)
class ConflatingBuffer:
    """Frames in order of arrival; of those with one key only the newest.

    A newer frame with the same key takes the older one's place at the end, so the order of what is delivered is
    always the order of arrival. When there is no room, the oldest replaceable frame is dropped; when there is none
    of that kind, ``BufferFullError`` is raised.

    Attributes:
        frames_max: frames held at most.
        bytes_max: their sizes together at most (characters count as bytes); a single frame always fits.
        conflated: frames dropped so far because a newer one made them worthless.
    """

    frames_max: int
    bytes_max: int
    conflated: int = 0
    _frames: OrderedDict[Hashable, Frame] = field(default_factory=OrderedDict)
    #: Keys of the replaceable frames held, oldest first.
    _replaceable: OrderedDict[Hashable, None] = field(default_factory=OrderedDict)
    _bytes: int = 0
    _arrivals: int = 0

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def size_bytes(self) -> int:
        """Size of all frames held."""
        return self._bytes

    def put(self, frame: Frame, key: Hashable | None = None) -> None:
        """Add a frame.

        Args:
            frame: a message.
            key: frames with the same key replace each other; None: nothing may replace this one.

        Raises:
            BufferFullError: no room, and nothing that may be dropped; the frame was not added.
        """
        self._arrivals += 1
        # A tuple with the arrival's number equals no caller's key wrapped in one.
        slot: Hashable = (self._arrivals, None) if key is None else (key,)
        if key is not None and slot in self._frames:
            self._drop(slot)
        while self._frames and (
            len(self._frames) >= self.frames_max or self._bytes + len(frame) > self.bytes_max
        ):
            if not self._replaceable:
                raise BufferFullError
            self._drop(next(iter(self._replaceable)))
        self._frames[slot] = frame
        self._bytes += len(frame)
        if key is not None:
            self._replaceable[slot] = None

    def get(self) -> Frame:
        """Take the oldest frame.

        Raises:
            LookupError: there is none.
        """
        if not self._frames:
            raise LookupError("empty")
        slot, frame = self._frames.popitem(last=False)
        self._replaceable.pop(slot, None)
        self._bytes -= len(frame)
        return frame

    def _drop(self, slot: Hashable) -> None:
        self._bytes -= len(self._frames.pop(slot))
        del self._replaceable[slot]
        self.conflated += 1
