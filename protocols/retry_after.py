"""The header ``Retry-After`` (RFC 9110 §10.2.3) as seconds (pure)."""

from __future__ import annotations

import email.utils
from datetime import UTC, datetime

#: Longest wait that is believed, seconds (a day): beyond that the value is more likely a mistake than a wish.
RETRY_AFTER_MAX_S = 86_400.0


def parse_retry_after(value: str | None, *, date: str | None = None) -> float | None:
    """Read ``Retry-After`` in either form, as seconds from now.

    The date form is measured against the answer's own ``Date`` header, so neither our clock nor its offset
    from the peer's matters. Without ``Date`` it cannot be read.

    Args:
        value: the header's value, None when absent.
        date: value of the ``Date`` header of the same answer.

    Returns:
        Seconds within 0..``RETRY_AFTER_MAX_S``, or None when absent or unusable.
    """
    if value is None:
        return None
    text = value.strip()
    # The length bound keeps a hostile header from becoming a huge integer.
    if text.isascii() and text.isdigit() and len(text) <= 10:
        return min(float(text), RETRY_AFTER_MAX_S)
    until, now = _http_date(text), _http_date(date)
    if until is None or now is None:
        return None
    return min(max((until - now).total_seconds(), 0.0), RETRY_AFTER_MAX_S)


def _http_date(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
