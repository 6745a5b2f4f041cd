"""Where a worker's service is: the order of the steps, what is ambiguous, and who was overtaken."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import WorkerConfig
from gateway.discovery import Place, PlaceOrigin, current, resolve
from gateway.errors import ConfigError
from gateway.registration import RegisteredService, ServiceEntry

KEY = "simulation-http"


def entry(id_: str, url: str = "", *, since_ms: int = 1, **fields: Any) -> RegisteredService:
    fields = {"service": "simulation", "protocol": "http", "url": url or f"http://{id_}:1", **fields}
    return RegisteredService(id_, ServiceEntry(**fields), 1000, since_ms)


def worker(**fields: Any) -> WorkerConfig:
    return WorkerConfig(connector=KEY, **fields)


TEMPLATE: dict[str, Any] = {"base_url": "http://h:{port}", "base_port": 8299, "index": 2}


@pytest.mark.parametrize(
    ("config", "registry", "expected"),
    [
        ({"endpoint": "http://h:1"}, [entry("a")], [("http://h:1", PlaceOrigin.CONFIG)]),
        ({"endpoint": "http://h:1", **TEMPLATE, "instance": "a"}, [], [("http://h:1", PlaceOrigin.CONFIG)]),
        ({"endpoints": ["http://h:1", "http://g:2"]}, [], [("http://h:1", "config"), ("http://g:2", "config")]),
        ({}, [entry("a")], [("http://a:1", PlaceOrigin.REGISTRY)]),
        ({"instance": "x", **TEMPLATE}, [entry("a", instance="x")], [("http://a:1", PlaceOrigin.REGISTRY)]),
        ({"instance": "x", **TEMPLATE}, [entry("a", instance="y")], [("http://h:8301", PlaceOrigin.TEMPLATE)]),
        (TEMPLATE, [entry("a"), entry("b")], [("http://h:8301", PlaceOrigin.TEMPLATE)]),
        ({"instance": "x"}, [entry("a", instance="x"), entry("b")], [("http://a:1", PlaceOrigin.REGISTRY)]),
        (
            {"discover": {"match": {"vram_gb": {">=": 24}, "machine": "m1"}}},
            [entry(name, machine="m1", capabilities={"vram_gb": size}) for name, size in (("a", 8), ("b", 24))],
            [("http://b:1", PlaceOrigin.REGISTRY)],
        ),
        (
            {"discover": {"all": True}},
            [entry("b"), entry("a"), entry("c", healthy=False), entry("d", service="comfyui")],
            [("http://a:1", PlaceOrigin.REGISTRY), ("http://b:1", PlaceOrigin.REGISTRY)],
        ),
        ({}, [entry("a", protocol="websocket"), entry("b", "http://B:1/")], [("http://b:1", PlaceOrigin.REGISTRY)]),
    ],
)  # fmt: skip
def test_the_first_step_that_knows_an_address_decides(
    config: dict[str, Any], registry: list[RegisteredService], expected: list[tuple[str, str]]
) -> None:
    """Explicit addresses, then living entries of the right service and protocol, then the template."""
    found = resolve("w", worker(**config), KEY, registry)
    assert [(place.url, place.origin) for place in found.places] == expected
    assert found.problem == ""


@pytest.mark.parametrize(
    ("config", "registry", "fragments"),
    [
        ({}, [], ["no simulation over http is registered", "registered: none"]),
        ({"instance": "x"}, [entry("a")], ["'instance': 'x'", "registered: a at http://a:1"]),
        ({}, [entry("a"), entry("b")], ["2 services match", "a at http://a:1", "discover.all"]),
        ({}, [entry("a", healthy=False)], ["a: says that it is unhealthy"]),
        ({}, [entry("a", service="comfyui")], ["no simulation over http"]),
    ],
)
def test_what_cannot_be_resolved_says_why(
    config: dict[str, Any], registry: list[RegisteredService], fragments: list[str]
) -> None:
    """No endpoint rather than a guess, and the reason with what there is."""
    found = resolve("w", worker(**config), KEY, registry)
    assert found.places == ()
    assert [fragment for fragment in fragments if fragment not in found.problem] == []


def test_wrong_addresses_in_the_configuration_are_errors() -> None:
    """They name the worker's key; nothing is looked up instead."""
    for config, key in (
        ({"endpoint": "nowhere"}, "workers.w.endpoint"),
        ({"endpoints": ["http://h:1", "http://H:1/"]}, "stands there twice"),
        ({"base_url": "{port}", "base_port": 1}, "workers.w.base_url"),
    ):
        with pytest.raises(ConfigError, match=key):
            resolve("w", worker(**config), KEY, [])


def test_the_newest_of_one_address_and_of_one_name_holds() -> None:
    """Two that swapped ports, before their old entries lapse: each is where it said so last."""
    before = [
        entry("a", "http://h:1", instance="x", since_ms=1),
        entry("b", "http://h:2", instance="y", since_ms=1),
    ]
    half = [*before, entry("a2", "http://h:2", instance="x", since_ms=5)]
    holding, overtaken = current(half)
    assert [one.id for one in holding] == ["a2"]
    assert overtaken == {"a": "a2", "b": "a2"}
    full = [*half, entry("b2", "http://h:1", instance="y", since_ms=6)]
    for name, url in (("x", "http://h:2"), ("y", "http://h:1")):
        found = resolve("w", worker(instance=name), KEY, full)
        assert found.places == (Place(url, name, PlaceOrigin.REGISTRY, found.places[0].service_id),)


ENTRIES = st.lists(
    st.builds(
        entry,
        st.sampled_from("abcdef"),
        st.sampled_from(["http://h:1", "http://h:2", "http://h:3"]),
        since_ms=st.integers(0, 3),
        instance=st.sampled_from(["", "x", "y"]),
        healthy=st.booleans(),
    ),
    max_size=6,
    unique_by=lambda one: one.id,
)


@given(ENTRIES, st.randoms(use_true_random=False), st.booleans())
def test_resolution_does_not_depend_on_order(
    registry: list[RegisteredService], random: Any, pool: bool
) -> None:
    """Every gateway that reads the same entries resolves alike, no two places share an address, and a worker without
    a pool has at most one."""
    config = worker(discover={"all": pool})
    first = resolve("w", config, KEY, registry)
    shuffled = list(registry)
    random.shuffle(shuffled)
    assert resolve("w", config, KEY, shuffled) == first
    urls = [place.url for place in first.places]
    assert len(set(urls)) == len(urls)
    assert pool or len(urls) <= 1
    assert bool(first.places) != bool(first.problem)
