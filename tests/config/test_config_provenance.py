"""Where each value came from, and the line of each key of a file."""

from __future__ import annotations

import itertools
import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.config import GatewayConfig, json_schema, public_values
from gateway.config_paths import leaves, text_of
from gateway.config_sources import Kind, Origin, Sources
from gateway.config_toml import line_numbers, read_key
from gateway.fleet import toml_text

FILE = """\
queue = "renders"

[lease]
length_s = 30.0
margin_s = 3.0  # a comment

[workers."gpu.0"]
connector = "simulation-http"
endpoint = "http://127.0.0.1:1"
slots = 2
capabilities = { vram_gb = 24, models = ["sdxl",
  "flux"] }
"""
#: From weak to strong; each sets the same key to its own value.
STEPS: list[tuple[Kind, float]] = [
    (Kind.FILE, 2.0), (Kind.ENVIRONMENT, 3.0), (Kind.REDIS, 4.0), (Kind.COMMAND_LINE, 4.5)
]  # fmt: skip


def places(path: Path) -> dict[Kind, str]:
    return {
        Kind.DEFAULT: "",
        Kind.FILE: f"{path}:2",
        Kind.ENVIRONMENT: "GATEWAY_LEASE__RENEW_S",
        Kind.REDIS: "tg:{default}:config lease.renew_s",
        Kind.COMMAND_LINE: "--renew",
    }


@pytest.mark.parametrize(
    "present", [chosen for size in range(5) for chosen in itertools.combinations(STEPS, size)], ids=str
)
def test_the_strongest_source_wins_and_is_named(
    tmp_path: Path, present: tuple[tuple[Kind, float], ...]
) -> None:
    """For every subset of the sources the strongest one's value holds, and the provenance names its very place."""
    given = dict(present)
    path = tmp_path / "gateway.toml"
    path.write_text(f"[lease]\nrenew_s = {given[Kind.FILE]}\n" if Kind.FILE in given else "")
    environment = (
        {"GATEWAY_LEASE__RENEW_S": str(given[Kind.ENVIRONMENT])} if Kind.ENVIRONMENT in given else {}
    )
    sources = Sources(
        path,
        {"lease": {"renew_s": given[Kind.COMMAND_LINE]}} if Kind.COMMAND_LINE in given else None,
        options={("lease", "renew_s"): "--renew"},
        environment=environment,
    )
    loaded = sources.load({"lease.renew_s": str(given[Kind.REDIS])} if Kind.REDIS in given else {})
    kind, value = present[-1] if present else (Kind.DEFAULT, 5.0)
    assert loaded.config.lease.renew_s == value
    assert loaded.origin(("lease", "renew_s")) == Origin(kind, places(path)[kind])


def test_every_value_has_its_origin(tmp_path: Path) -> None:
    """What is shown lists each value once, with the line, the variable, the override or the option that set it."""
    path = tmp_path / "gateway.toml"
    path.write_text(FILE)
    loaded = Sources(
        path,
        {"api": {"port": 0}},
        options={("api", "port"): "--api-port"},
        environment={"GATEWAY_RETRY__BASE_S": "2", "GATEWAY_HEALTH": '{"probe_s": 1}'},
    ).load({'workers."gpu.0".slots': "3", "workers.*.capabilities.nvlink": "true"})
    shown = {text_of(key): (value, str(origin)) for key, value, origin in loaded.entries()}
    assert len(shown) == len(list(leaves(public_values(loaded.config))))
    expected = {
        "queue": ("renders", f"file {path}:1"),
        "lease.margin_s": (3.0, f"file {path}:5"),
        "lease.renew_s": (5.0, "default"),
        "retry.base_s": (2.0, "environment GATEWAY_RETRY__BASE_S"),
        "health.probe_s": (1.0, "environment GATEWAY_HEALTH"),
        "api.port": (0, "command line --api-port"),
        'workers."gpu.0".endpoint': ("http://127.0.0.1:1", f"file {path}:9"),
        'workers."gpu.0".slots': (3, 'redis tg:{renders}:config workers."gpu.0".slots'),
        'workers."gpu.0".capabilities.models': (["sdxl", "flux"], f"file {path}:11"),
        'workers."gpu.0".capabilities.nvlink': (
            True,
            "redis tg:{renders}:config workers.*.capabilities.nvlink",
        ),
    }
    assert {key: shown[key] for key in expected} == expected


KEYS = st.text(st.sampled_from("ab_-9 .\"'é#=[]"), max_size=4)
SCALARS = st.one_of(
    st.integers(-5, 5), st.booleans(), st.text(st.sampled_from("a\"'\\[]{}#=,\n\t é"), max_size=6), st.just(1.5)
)  # fmt: skip
DOCUMENTS = st.recursive(
    st.dictionaries(KEYS, SCALARS | st.lists(SCALARS, max_size=3), max_size=4),
    lambda inner: st.dictionaries(KEYS, inner | SCALARS, max_size=4),
    max_leaves=12,
)


@given(DOCUMENTS, st.lists(st.sampled_from(["", "# [no] = 1", "   "]), max_size=3))
def test_every_key_of_a_file_has_its_line(document: dict[str, Any], blank: list[str]) -> None:
    """Whatever the keys and values look like, each one is found, on the line that sets it."""
    text = "".join(f"{line}\n" for line in blank) + toml_text(document)
    lines = line_numbers(text)
    content = text.split("\n")
    for path, value in leaves(tomllib.loads(text)):
        assert path in lines, (path, text)
        line = content[lines[path] - 1]
        if value != {}:
            found = (
                tomllib.loads(f"{line.partition('=')[0]} = 1") if '"' not in line and "'" not in line else {}
            )
            assert not found or next(iter(found)) == path[-1]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('a = """\n[x]\nb = 1\n"""\nc = 1', {("a",): 1, ("c",): 5}),
        ("a = '''\nb = ']'\n''''\nc = 1", {("a",): 1, ("c",): 4}),
        ("a = [\n  { b = 1 },\n  { b = 2 } ]\nc = 1", {("a", "1", "b"): 3, ("c",): 4}),
        ("[[t]]\na = 1\n[[t]]\na = 2\n[t.s]\nb = 1", {("t", "1", "a"): 4, ("t", "1", "s", "b"): 6}),
        ("a.b.c = 1\r\nd = 1979-05-27 07:32:00\r\ne = 1", {("a", "b", "c"): 1, ("d",): 2, ("e",): 3}),
        ('"a.b" = 1\n[x . "y z"]\nq = 1', {("a.b",): 1, ("x", "y z", "q"): 3}),
    ],
)
def test_lines_of_unusual_forms(text: str, expected: dict[tuple[str, ...], int]) -> None:
    """Long strings, nested arrays, arrays of tables, dotted and quoted keys."""
    tomllib.loads(text)
    lines = line_numbers(text)
    assert {path: lines[path] for path in expected} == expected


@given(st.lists(st.text(st.characters(codec="utf-8"), max_size=5), min_size=1, max_size=4))
def test_keys_are_read_as_they_are_written(path: list[str]) -> None:
    """A key shown to a person can be given back, and means the same place."""
    assert read_key(text_of(path)) == tuple(path)


@pytest.mark.parametrize("text", ["", ".", "a.", ".a", "a b", "a..b", '"a', "a=1", r'"\q"'])
def test_what_is_no_key(text: str) -> None:
    """Anything but a dotted key is refused as a whole."""
    assert read_key(text) == ()


def test_schema_describes_every_section() -> None:
    """The JSON Schema names all keys, and lets a secret be named by reference."""
    schema = json_schema()
    assert set(schema["properties"]) == set(GatewayConfig.model_fields)
    assert {"type": "string"} in schema["properties"]["redis_url"]["anyOf"]
    assert [kind["required"] for kind in schema["properties"]["redis_url"]["anyOf"][1:]] == [
        ["env"],
        ["file"],
    ]
    assert "hidden" not in json.dumps(schema)
