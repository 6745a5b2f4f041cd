"""Entries of a queue's event stream: one Redis stream entry holds all transitions of one script call (pure)."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from gateway.lifecycle import EventType
from gateway.models import Epoch, JobId


class Event(msgspec.Struct, frozen=True):
    """One transition (or remark) of one job.

    Attributes:
        cursor: ``<stream entry id>/<index>``: resume reading after it.
        at_ms: Redis time of the transition, milliseconds since the epoch.
        detail: JSON text or a plain word, depending on the type; empty for none.
    """

    cursor: str
    at_ms: int
    type: EventType
    job_id: JobId
    epoch: Epoch
    worker_id: str
    detail: str


_ROWS = msgspec.json.Decoder(list[tuple[str, str, str, str, str]])


def decode_entry(entry_id: str, at: str | bytes, encoded: str | bytes) -> list[Event]:
    """Unpack one stream entry.

    Args:
        entry_id: the Redis stream id.
        at: field ``at``, milliseconds.
        encoded: field ``e``, a JSON array of [type, job, epoch, worker, detail].
    """
    at_ms = int(at)
    return [
        Event(
            cursor=f"{entry_id}/{index}",
            at_ms=at_ms,
            type=EventType(kind),
            job_id=JobId(job_id),
            epoch=Epoch(int(epoch)),
            worker_id=worker_id,
            detail=detail,
        )
        for index, (kind, job_id, epoch, worker_id, detail) in enumerate(_ROWS.decode(encoded))
    ]


def decode_entries(entries: Iterable[tuple[str, dict[str, str]]]) -> list[Event]:
    """Unpack a reply of XRANGE or XREAD, decoded to text."""
    return [
        event for entry_id, fields in entries for event in decode_entry(entry_id, fields["at"], fields["e"])
    ]
