"""Fault plans as TOML: what is read, drawn, repeated and refused."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.fleet import toml_text
from simulator.certify_tables import PlanError
from simulator.fault_plans import (
    KINDS,
    PRESETS,
    FleetFaults,
    choose_plan,
    draw_plan,
    load_plan,
    parse_plan,
    preset,
)

BAD = [
    ("kil = 3", "kil = 3: unknown key; did you mean kill?"),
    ("[[kill]]\nat_s = 'x'\ntarget = 'gateway-0'", "kill[0].at_s = 'x': allowed is a number from 0 to 10"),
    ("[[kill]]\nat_s = 1\n", "kill[0].target is missing: expected gateway-0 to gateway-2"),
    ("[[kill]]\nat_s = 1\ntarget = 'gateway-9'", "kill[0].target = 'gateway-9': allowed is gateway-0 to"),
    ("[[kill]]\nat_s = 99\ntarget = 'gateway-0'", "kill[0].at_s = 99: allowed is a number from 0 to 10"),
    ("[[kill]]\nat_s = 1\ntarget = 'gateway-0'\nwhen = 2", "kill[0].when = 2: unknown key"),
    (
        "[[pause]]\nat_s = 1\ntarget = 'redis'\nfor_s = 1",
        "pause[0].target = 'redis': allowed is gateway-0 to",
    ),
    ("[[redis]]\nat_s = 1\ndown_s = -1", "redis[0].down_s = -1: allowed is a number from 0"),
    ("redis = 3", "redis = 3: write [[redis]] for each one"),
    ("services = 2", "services = 2: expected a table"),
    ("[services]\nhang = 1", "services.hang = 1: allowed is one of the knobs hang_rate"),
    ("[services]\nhang_rate = 2", "services.hang_rate = 2: allowed is a number from 0 to 1"),
    ("[workload]\nduration_s = [3, 1]", "workload.duration_s = [3, 1]: allowed is seconds, or"),
    ("[workload]\njobs = true", "workload.jobs = True: allowed is a whole number"),
    (
        "[fleet]\ngateways = 1\n[[kill]]\nat_s = 1\ntarget = 'gateway-0'",
        "kill leaves none of 1 gateways alive",
    ),
    ("a = ", "not valid TOML"),
]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_survive_a_file(name: str, tmp_path: Path) -> None:
    """A preset written as TOML is read back as the same plan."""
    file = tmp_path / "plan.toml"
    file.write_text(toml_text(preset(name).to_mapping()), "utf-8")
    assert load_plan(file) == preset(name)


@given(st.integers(0, 2**63 - 1))
def test_drawn_plans_follow_from_their_seed(seed: int) -> None:
    """Every seed gives a plan that a file can hold, the same each time."""
    plan = draw_plan(seed)
    assert parse_plan(tomllib.loads(toml_text(plan.to_mapping())), "again") == plan == draw_plan(seed)


@pytest.mark.parametrize(("text", "expected"), BAD)
def test_mistakes_are_one_line_with_file_key_and_value(text: str, expected: str, tmp_path: Path) -> None:
    """Each mistake names the file, where in it, what stood there and what would be right."""
    file = tmp_path / "plan.toml"
    file.write_text(text, "utf-8")
    with pytest.raises(PlanError) as caught:
        load_plan(file)
    message = str(caught.value)
    assert message.startswith(f"{file}: {expected}")
    assert "\n" not in message


def test_neither_preset_nor_file_lists_the_presets(tmp_path: Path) -> None:
    """A misspelt preset is told apart from a file that cannot be read."""
    with pytest.raises(PlanError, match="is neither a file nor a preset; presets are quiet, "):
        choose_plan("brutall")
    with pytest.raises(PlanError, match="cannot be read"):
        load_plan(tmp_path / "none.toml")


def test_a_repeated_plan_repeats_faults_and_jobs() -> None:
    """Three times the plan: the faults come again after each length, with three times the jobs."""
    plan = preset("default")
    longer = plan.repeated(3)
    assert longer.duration_s == 3 * plan.duration_s
    assert longer.workload.jobs == 3 * plan.workload.jobs
    assert [fault.at_s for fault in longer.faults[-3:]] == [fault.at_s + 48 for fault in plan.faults]
    assert isinstance(longer, FleetFaults)


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**40), 2**40)
    | st.floats(allow_nan=False, allow_infinity=False)
)
WORDS = st.text(st.characters(exclude_categories=["Cs"]))
KEYS = st.text('aB-_ ."é', min_size=1)


@given(
    st.recursive(
        PLAIN | WORDS,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    )
)
def test_toml_is_read_back_as_written(value: object) -> None:
    """What the writer writes, Python's own reader understands; only None is left out."""
    values = {"key": value, "table": {"inner": value}}
    assert tomllib.loads(toml_text(values)) == _without_none(values)


def _without_none(value: object) -> object:
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_none(item) for item in value if item is not None]
    return value


def test_the_documented_plan_is_a_plan() -> None:
    """The plan of docs/certify.md is read, with every kind of fault in it."""
    text = (Path(__file__).parents[2] / "docs/certify.md").read_text("utf-8")
    plan = parse_plan(tomllib.loads(text.split("```toml\n")[1].split("```")[0]), "docs")
    assert {fault.kind for fault in plan.faults} == set(KINDS)
