"""The fault knobs: what they accept, how they are written, and that their dice are independent."""

from __future__ import annotations

from random import Random

import pytest

from simulator.faults import KNOBS, RATE_NAMES, FaultDice, FaultError, FaultPlan, parse_assignment

BAD_VALUES = [
    ("hang_rate", 1.01),
    ("hang_rate", -0.01),
    ("hang_rate", float("nan")),
    ("hang_rate", True),
    ("hang_rate", "often"),
    ("hang_rate", None),
    ("hang_rate", []),
    ("hang_rate", [[0]]),
    ("hang_rate", [[0, 2]]),
    ("hang_rate", [[5, 0.1], [5, 0.2]]),
    ("hang_rate", [[-1, 0.1]]),
    ("hang_rate", [[float("inf"), 0.1]]),
    ("hang_rate", [[n, 0.1] for n in range(1001)]),
    ("slow_factor", 0.5),
    ("slow_factor", 1e9),
    ("slow_factor", [[0, 2]]),
    ("retry_after_s", -1),
    ("oversize_bytes", 0),
    ("oversize_bytes", 10.5),
    ("dedupe", 1),
    ("dedupe", "yes"),
    ("restart_forgets_at_s", 3),
    ("restart_forgets_at_s", [3, 2]),
    ("restart_forgets_at_s", [-1]),
]


@pytest.mark.parametrize(("knob", "value"), BAD_VALUES)
def test_a_bad_value_names_knob_value_and_what_is_allowed(knob: str, value: object) -> None:
    """A value out of range is refused with everything needed to correct it."""
    with pytest.raises(FaultError) as caught:
        FaultPlan.from_mapping({knob: value})
    assert caught.value.knob == knob
    assert caught.value.value is value
    assert caught.value.allowed == KNOBS[knob].allowed
    assert "\n" not in str(caught.value)


def test_an_unknown_knob_is_refused_with_the_nearest_ones() -> None:
    """A typo is answered with the knob that was probably meant."""
    with pytest.raises(FaultError) as caught:
        FaultPlan.from_mapping({"helth_failure_rate": 0.1})
    assert "health_failure_rate" in caught.value.allowed
    with pytest.raises(FaultError) as caught:
        FaultPlan.from_mapping({"zzz": 0.1})
    assert all(name in caught.value.allowed for name in KNOBS)


def test_defaults_are_four_percent_of_lost_completions_and_health_failures_and_nothing_else() -> None:
    """Only the two flakes of the system this one replaces are on without being asked for."""
    on = {name: value for name, value in FaultPlan().to_mapping().items() if name in RATE_NAMES and value}
    assert on == {"health_failure_rate": 0.04, "lost_completion_rate": 0.04}
    assert not any(FaultPlan.none().rate(name, 0.0) for name in RATE_NAMES)


def test_every_knob_is_described_once() -> None:
    """Each knob has a meaning, a range and a default that it accepts itself."""
    assert len(RATE_NAMES) == 23
    for knob in KNOBS.values():
        assert knob.meaning
        assert knob.allowed
        assert FaultPlan.from_mapping({knob.name: knob.default}) == FaultPlan()


def test_a_plan_survives_being_written_and_read() -> None:
    """The JSON form of a plan gives the same plan again."""
    plan = FaultPlan.from_mapping(
        {
            "hang_rate": [[0, 0.5], [3, 0]],
            "dedupe": False,
            "restart_forgets_at_s": [1, 2.5],
            "oversize_bytes": 7,
        }
    )
    assert FaultPlan.from_mapping(plan.to_mapping()) == plan
    assert plan.updated({}) == plan


def test_a_schedule_steps_and_is_zero_before_its_first_step() -> None:
    """A scheduled rate takes effect at its moment and stays until the next."""
    plan = FaultPlan.from_mapping({"hang_rate": [[1, 0.5], [3, 0.25]]})
    assert [plan.rate("hang_rate", at_s) for at_s in (0, 0.99, 1, 2.9, 3, 1e9)] == [
        0,
        0,
        0.5,
        0.5,
        0.25,
        0.25,
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("hang_rate=0.5", ("hang_rate", 0.5)),
        (" hang_rate = 0:0.5,30:0 ", ("hang_rate", [[0.0, 0.5], [30.0, 0.0]])),
        ("dedupe=False", ("dedupe", False)),
        ("oversize_bytes=10", ("oversize_bytes", 10)),
        ("restart_forgets_at_s=1,2", ("restart_forgets_at_s", [1.0, 2.0])),
    ],
)
def test_an_assignment_of_the_command_line_is_read(text: str, expected: tuple[str, object]) -> None:
    """``name=value`` gives the knob and a value that the plan accepts."""
    assert parse_assignment(text) == expected
    FaultPlan.from_mapping(dict([expected]))


@pytest.mark.parametrize(
    "text", ["hang_rate", "=1", "hang_rate=", "hang_rate=often", "hang_rate=0:x", "oversize_bytes=1.5"]
)
def test_an_unreadable_assignment_is_refused(text: str) -> None:
    """What is not ``name=value`` never reaches the plan."""
    with pytest.raises(FaultError):
        parse_assignment(text)


def test_turning_one_knob_leaves_the_decisions_of_all_others() -> None:
    """Knobs draw from streams of their own, one number per decision whatever the rate."""

    def decisions(plan: FaultPlan) -> dict[str, list[bool]]:
        dice = FaultDice(plan, lambda name: Random(f"7/{name}"))
        return {name: [dice.roll(name, 0.0) for _ in range(50)] for name in RATE_NAMES}

    before = FaultPlan.from_mapping(dict.fromkeys(RATE_NAMES, 0.5))
    after = before.updated({"hang_rate": 0.0})
    changed = {name for name in RATE_NAMES if decisions(before)[name] != decisions(after)[name]}
    assert changed == {"hang_rate"}


def test_the_default_four_percent_is_four_percent() -> None:
    """With a fixed seed, 10 000 draws stay within four standard deviations (4 % ± 0.8 %)."""
    dice = FaultDice(FaultPlan(), lambda name: Random(f"1/{name}"))
    for knob in ("health_failure_rate", "lost_completion_rate"):
        share = sum(dice.roll(knob, 0.0) for _ in range(10_000)) / 10_000
        assert 0.032 <= share <= 0.048
