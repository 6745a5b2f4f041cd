"""When schedules are due, and what they fire: pure."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidSchedule
from gateway.models import JobSpec
from gateway.schedules import (
    MISSED_AFTER_S,
    DueSchedule,
    MissedPolicy,
    Schedule,
    ScheduleView,
    fire,
    job_id_at,
    next_instant_ms,
)

BERLIN = ZoneInfo("Europe/Berlin")
CRONS = [
    "* * * * *",
    "*/5 * * * *",
    "0 3 * * *",
    "30 2 * * *",
    "15 */2 * * MON-FRI",
    "0 0 1 * *",
    "59 23 L * *",
]


def ms(*parts: int, zone: ZoneInfo | None = None) -> int:
    return round(datetime(*parts, tzinfo=zone or UTC).timestamp() * 1000)  # type: ignore[misc,arg-type]


def due(instant_ms: int, now_ms: int, **changes: object) -> DueSchedule:
    values = {"name": "s", "cron": "* * * * *", "spec": JobSpec(service="x"), **changes}
    view = ScheduleView(
        schedule=Schedule(**values),  # type: ignore[arg-type]
        revision="r",
        due_ms=instant_ms,
        last_ms=None,
        last_job_id="",
    )
    return DueSchedule(view, now_ms)


@pytest.mark.parametrize(
    ("cron", "zone", "after", "expected"),
    [
        ("0 3 * * *", "UTC", ms(2026, 11, 24, 3), ms(2026, 11, 25, 3)),
        ("0 3 * * *", "Europe/Berlin", ms(2026, 11, 24, 3), ms(2026, 11, 25, 2)),
        # The clock jumps over 2:30: the job of that night runs at the jump, none is lost.
        ("30 2 * * *", "Europe/Berlin", ms(2026, 3, 28, 12), ms(2026, 3, 29, 1)),
        # The clock shows 2:30 twice: the job runs once.
        ("30 2 * * *", "Europe/Berlin", ms(2026, 10, 25, 0, 30), ms(2026, 10, 26, 1, 30)),
        ("*/20 * * * *", "Asia/Kolkata", ms(2026, 1, 1, 0, 0), ms(2026, 1, 1, 0, 10)),
        ("0 0 29 2 *", "UTC", ms(2026, 1, 1), ms(2028, 2, 29)),
        ("*/10 * * * * *", "UTC", ms(2026, 1, 1), ms(2026, 1, 1) + 10_000),
    ],
)
def test_instants_are_those_of_the_zones_clock(cron: str, zone: str, after: int, expected: int) -> None:
    """Fields are read on the named zone's clock; changes of that clock neither lose nor double a daily job."""
    assert next_instant_ms(cron, zone, after) == expected


@given(
    st.sampled_from(CRONS),
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York"]),
    st.integers(10**12, 3 * 10**12),
)
def test_the_next_instant_is_later(cron: str, zone: str, after_ms: int) -> None:
    """Strictly later than the moment asked about, on a whole second: instants of a schedule never repeat."""
    found = next_instant_ms(cron, zone, after_ms)
    assert found > after_ms
    assert found % 1000 == 0


@pytest.mark.parametrize(
    ("cron", "zone", "fragment"),
    [
        ("", "UTC", "wrong number of fields"),
        ("* * *", "UTC", "wrong number of fields"),
        ("60 * * * *", "UTC", "bad minute"),
        ("* * * * FOO", "UTC", "bad day-of-week"),
        ("0 0 31 2 *", "UTC", "bad day-of-month"),
        ("* * */20 * 1L", "UTC", "no instant within 50 years"),
        ("* * * * *", "", "timezone ''"),
        ("* * * * *", "../etc/passwd", "timezone"),
        ("* * * * *", "Europe", "timezone 'Europe'"),
    ],
)
def test_an_impossible_schedule_is_refused_in_one_line(cron: str, zone: str, fragment: str) -> None:
    """The message says what is wrong."""
    with pytest.raises(InvalidSchedule) as caught:
        next_instant_ms(cron, zone, ms(2026, 1, 1))
    assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_missed_instants_are_one_job() -> None:
    """After an hour without gateways a minutely schedule fires once and goes on in the future."""
    instant_ms = ms(2026, 1, 1)
    submission, firing = fire(due(instant_ms, instant_ms + 3_600_500))
    assert submission is not None
    assert submission.job_id == job_id_at("s", instant_ms) == "schedule:s:20260101T000000Z"
    assert (firing.instant_ms, firing.next_ms) == (instant_ms, instant_ms + 3_660_000)


@pytest.mark.parametrize(
    ("late_s", "fires"), [(0.0, True), (MISSED_AFTER_S, True), (MISSED_AFTER_S + 1, False)]
)
def test_a_missed_instant_may_be_skipped(late_s: float, fires: bool) -> None:
    """What is a little late is not missed; what is missed is passed over where the schedule says so."""
    instant_ms = ms(2026, 1, 1)
    submission, firing = fire(due(instant_ms, instant_ms + round(late_s * 1000), missed=MissedPolicy.SKIP))
    assert (submission is not None) is fires
    assert firing.next_ms > instant_ms + late_s * 1000


def test_every_gateway_fires_the_same_job() -> None:
    """Id, key and deadline follow from definition and instant alone."""
    instant_ms = ms(2026, 1, 1)
    first, _ = fire(due(instant_ms, instant_ms + 10, unique=True, expires_in_s=60.0))
    second, _ = fire(due(instant_ms, instant_ms + 900, unique=True, expires_in_s=60.0))
    assert first == second
    assert first is not None
    assert (first.unique_key, first.expires_in_s) == ("schedule:s", 60.0)
