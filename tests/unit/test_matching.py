"""Requirements: refused at submit when malformed or impossible, canonical in their class, typed when evaluated."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import InvalidSubmission
from gateway.matching import (
    REQUIREMENTS_MAX,
    VALUES_MAX,
    class_of,
    decode_class,
    matches,
    unmet,
    validate_requires,
)

GPU = {"vram_gb": 24, "models": ["sdxl", "flux"], "region": "eu", "spot": False}

HOLDS: list[dict[str, Any]] = [
    {},
    {"vram_gb": {">=": 24}},
    {"vram_gb": {">=": 16, "<=": 24.0}},
    {"vram_gb": 24},
    {"region": {"in": ["us", "eu"]}},
    {"region": {"not": "us"}},
    {"region": {"not": ["us", "asia"]}},
    {"zone": {"not": "a"}},
    {"models": {"has": "sdxl"}},
    {"models": {"has": ["sdxl", "flux"]}},
    {"models": "flux"},
    {"models": {"in": ["sd15", "flux"]}},
    {"models": {"not": "sd15"}},
    {"spot": False},
]
FAILS: list[dict[str, Any]] = [
    {"vram_gb": {">=": 24.5}},
    {"vram_gb": {"<=": 23}},
    {"region": {">=": 1}},
    {"region": "us"},
    {"region": {"in": ["us"]}},
    {"region": {"not": ["us", "eu"]}},
    {"region": {"has": "eu"}},
    {"models": {"has": ["sdxl", "sd15"]}},
    {"models": {"not": "flux"}},
    {"zone": "a"},
    {"zone": {"in": ["a"]}},
    {"zone": {">=": 0}},
    {"spot": {">=": 0}},
]
REFUSED: list[Any] = [
    [],
    "gpu",
    {"": 1},
    {1: 1},
    {"vram_gb": {}},
    {"vram_gb": {"=>": 1}},
    {"vram_gb": {">=": "24"}},
    {"vram_gb": {">=": True}},
    {"vram_gb": {">=": float("nan")}},
    {"vram_gb": {">=": float("inf")}},
    {"vram_gb": None},
    {"vram_gb": {"==": None}},
    {"vram_gb": [1]},
    {"vram_gb": {">=": 24, "<=": 16}},
    {"vram_gb": {"==": 8, ">=": 16}},
    {"region": {"in": "eu"}},
    {"region": {"in": []}},
    {"region": {"in": [{}]}},
    {"region": {"in": ["eu"], "not": "eu"}},
    {"region": {"==": "eu", "in": ["us"]}},
    {"region": {"==": "eu", "not": ["eu"]}},
    {"models": {"has": []}},
    {"models": {"has": "a", "not": "a"}},
    {"models": {"has": list(range(VALUES_MAX + 1))}},
    {f"c{i}": 1 for i in range(REQUIREMENTS_MAX + 1)},
]

NAMES = st.sampled_from(["a", "b", "c"])
VALUES = st.sampled_from([1, 2, 3, "x", "y", True])
PREDICATES = st.one_of(
    VALUES,
    st.fixed_dictionaries({">=": st.integers(0, 3)}),
    st.fixed_dictionaries({"<=": st.integers(0, 3)}),
    st.fixed_dictionaries({"in": st.lists(VALUES, min_size=1, max_size=3)}),
    st.fixed_dictionaries({"has": VALUES}),
    st.fixed_dictionaries({"not": st.lists(VALUES, max_size=3)}),
)
REQUIRES = st.dictionaries(NAMES, PREDICATES, max_size=3)
CAPABILITIES = st.dictionaries(NAMES, VALUES | st.lists(VALUES, max_size=3), max_size=3)


@pytest.mark.parametrize("requires", HOLDS, ids=str)
def test_a_requirement_holds(requires: dict[str, Any]) -> None:
    """Each operator has cases where this worker fits."""
    assert unmet(validate_requires(requires), GPU) == []
    assert matches(validate_requires(requires), GPU)


@pytest.mark.parametrize("requires", FAILS, ids=str)
def test_a_requirement_fails_and_says_which(requires: dict[str, Any]) -> None:
    """Each operator has cases where this worker does not fit; the line names capability and what there is."""
    (line,) = unmet(validate_requires(requires), GPU)
    (name,) = requires
    assert line.startswith(name)
    assert str(GPU.get(name, "nothing")) in line


@pytest.mark.parametrize("requires", REFUSED, ids=lambda value: str(value)[:40])
def test_a_malformed_or_impossible_requirement_is_refused(requires: Any) -> None:
    """Such a job would wait for ever."""
    with pytest.raises(InvalidSubmission):
        validate_requires(requires)


def test_no_requirement_is_an_empty_object() -> None:
    """Absent and empty mean the same class."""
    assert validate_requires(None) == validate_requires({}) == {}
    assert class_of("image", {})[0].class_id == "image"


@given(REQUIRES, st.randoms(use_true_random=False))
def test_the_class_does_not_depend_on_the_writing(requires: dict[str, Any], shuffle: random.Random) -> None:
    """Order of names and the short form of equality make no other class; the class reads back as it was."""
    canonical = _validated(requires)
    if canonical is None:
        return
    names = list(canonical)
    shuffle.shuffle(names)
    job_class, encoded = class_of("image", canonical)
    assert class_of("image", {name: canonical[name] for name in names}) == (job_class, encoded)
    assert validate_requires(canonical) == canonical
    assert decode_class(job_class.class_id, encoded) == job_class
    assert class_of("text", canonical)[0].class_id != job_class.class_id


@given(REQUIRES)
def test_every_tenant_has_classes_of_its_own(requires: dict[str, Any]) -> None:
    """Jobs of two tenants never share an ordered set, and a class reads back with its tenant."""
    canonical = _validated(requires)
    if canonical is None:
        return
    found = [class_of("image", canonical, tenant) for tenant in ("", "acme", "zeta")]
    assert len({job_class.class_id for job_class, _ in found}) == 3
    assert [decode_class(one.class_id, encoded).tenant for one, encoded in found] == ["", "acme", "zeta"]


@given(REQUIRES, CAPABILITIES)
def test_more_predicates_never_match_more(requires: dict[str, Any], capabilities: dict[str, Any]) -> None:
    """All predicates must hold: every part of a requirement that matches, matches too."""
    canonical = _validated(requires)
    if canonical is None:
        return
    parts = [matches({name: predicate}, capabilities) for name, predicate in canonical.items()]
    assert matches(canonical, capabilities) == all(parts)
    assert len(unmet(canonical, capabilities)) >= parts.count(False)


@given(REQUIRES, CAPABILITIES)
def test_what_a_worker_matches_was_not_refused(
    requires: dict[str, Any], capabilities: dict[str, Any]
) -> None:
    """Refusing at submit is only right when no capability could ever fit."""
    if _validated(requires) is None:
        loose = {
            name: found if isinstance(found, dict) else {"==": found} for name, found in requires.items()
        }
        assert not matches(loose, capabilities)


def _validated(requires: dict[str, Any]) -> dict[str, Any] | None:
    try:
        return validate_requires(requires)
    except InvalidSubmission:
        return None
