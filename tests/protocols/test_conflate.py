"""The buffer between a reader that never waits and a slow consumer."""

from __future__ import annotations

from collections.abc import Hashable

from hypothesis import given
from hypothesis import strategies as st

from protocols.conflate import BufferFullError, ConflatingBuffer, Frame

ARRIVALS = st.lists(
    st.one_of(
        st.none(),
        st.tuples(st.sampled_from([None, "progress", "preview", 1, (1, None)]), st.binary(max_size=6)),
    ),
    max_size=60,
)


@given(ARRIVALS, st.integers(1, 6), st.integers(1, 20))
def test_the_buffer_keeps_order_and_bounds_and_loses_only_what_may_be_lost(
    arrivals: list[tuple[Hashable | None, bytes] | None], frames_max: int, bytes_max: int
) -> None:
    """What comes out is in order of arrival, within the bounds; an unreplaceable frame is delivered or refused."""
    buffer = ConflatingBuffer(frames_max, bytes_max)
    must: list[int] = []
    kept: dict[int, tuple[Hashable | None, Frame]] = {}
    out: list[int] = []

    def take() -> None:
        frame = buffer.get()
        number = next(
            n for n in sorted(kept) if n not in out and n > (out[-1] if out else -1) and kept[n][1] is frame
        )
        out.append(number)

    for number, arrival in enumerate(arrivals):
        if arrival is None:
            if len(buffer):
                take()
            continue
        key, raw = arrival
        # Its number at the end tells each frame from all others.
        frame = raw + bytes([number])
        kept[number] = (key, frame)
        try:
            buffer.put(frame, key)
        except BufferFullError:
            assert len(buffer) >= frames_max or buffer.size_bytes + len(frame) > bytes_max
            assert all(kept[n][0] is None for n in must if n not in out)
            continue
        if key is None:
            must.append(number)
        assert len(buffer) <= frames_max
        assert buffer.size_bytes <= max(bytes_max, len(frame))
    while len(buffer):
        take()
    assert out == sorted(out)
    assert set(must) <= set(out)
    assert buffer.size_bytes == 0


def test_only_the_newest_of_one_key_is_kept() -> None:
    """A newer frame takes the older one's place, at its own moment of arrival."""
    buffer = ConflatingBuffer(8, 1000)
    for frame, key in (("p1", "p"), ("a", None), ("p2", "p"), ("b", None), ("q", "q")):
        buffer.put(frame, key)
    assert [buffer.get() for _ in range(len(buffer))] == ["a", "p2", "b", "q"]
    assert buffer.conflated == 1
