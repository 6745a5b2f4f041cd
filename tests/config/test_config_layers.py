"""Every precedence step, every kind of mistake, and what is never shown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gateway.config import GatewayConfig, load_config, public_values
from gateway.config_secrets import HIDDEN
from gateway.errors import ConfigError

WORKER = {"connector": "simulation-http", "endpoint": "http://127.0.0.1:1"}


def load(
    tmp_path: Path,
    *,
    toml: str | None = None,
    env: Mapping[str, str] | None = None,
    cli: Mapping[str, Any] | None = None,
) -> GatewayConfig:
    path = None
    if toml is not None:
        path = tmp_path / "gateway.toml"
        path.write_text(toml, "utf-8")
    return load_config(path, overrides=cli, environment=env or {})


@pytest.mark.parametrize(
    ("toml", "env", "cli", "expected"),
    [
        (None, {}, {}, "default"),
        ('queue = "file"', {}, {}, "file"),
        ('queue = "file"', {"GATEWAY_QUEUE": "env"}, {}, "env"),
        ('queue = "file"', {"GATEWAY_QUEUE": "env"}, {"queue": "cli"}, "cli"),
        (None, {"GATEWAY_QUEUE": "env"}, {}, "env"),
        (None, {"GATEWAY_QUEUE": "env"}, {"queue": "cli"}, "cli"),
        ('queue = "file"', {}, {"queue": "cli"}, "cli"),
    ],
)
def test_stronger_source_wins(
    tmp_path: Path, toml: str | None, env: dict[str, str], cli: dict[str, Any], expected: str
) -> None:
    """Command line over environment over file over defaults."""
    assert load(tmp_path, toml=toml, env=env, cli=cli).queue == expected


def test_sections_merge_key_by_key(tmp_path: Path) -> None:
    """A stronger source replaces single keys of a section, not the section."""
    config = load(
        tmp_path,
        toml="[lease]\nlength_s = 30.0\nmargin_s = 3.0\n",
        env={"GATEWAY_LEASE__MARGIN_S": "4"},
        cli={"lease": {"renew_s": 6.0}},
    )
    lease = config.lease
    assert (lease.length_s, lease.margin_s, lease.renew_s, lease.sweep_s) == (30.0, 4.0, 6.0, 1.0)


@pytest.mark.parametrize(
    "env",
    [
        {"GATEWAY_WORKERS": json.dumps({"a": {**WORKER, "slots": 3, "capabilities": {"vram_gb": 24}}})},
        {
            "GATEWAY_WORKERS__A__CONNECTOR": WORKER["connector"],
            "GATEWAY_WORKERS__A__ENDPOINT": WORKER["endpoint"],
            "GATEWAY_WORKERS__A__SLOTS": "3",
            "GATEWAY_WORKERS__A__CAPABILITIES": '{"vram_gb": 24}',
        },
        {
            "GATEWAY_WORKERS": json.dumps({"a": {**WORKER, "capabilities": {"vram_gb": 24}}}),
            "GATEWAY_WORKERS__A__SLOTS": "3",
        },
    ],
)
def test_workers_from_the_environment(tmp_path: Path, env: dict[str, str]) -> None:
    """Structured values come as JSON, as nested variables, or both, with their types."""
    worker = load(tmp_path, env=env).workers["a"]
    assert (worker.connector, worker.slots, worker.capabilities) == ("simulation-http", 3, {"vram_gb": 24})


def test_data_directory_of_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    """GATEWAY_DATA_DIR is an ordinary setting; empty means unset, as for the embedded Redis."""
    toml = 'data_dir = "/file"'
    assert load(tmp_path, toml=toml, env={"GATEWAY_DATA_DIR": "/env"}).data_dir == Path("/env")
    assert load(tmp_path, toml=toml, env={"GATEWAY_DATA_DIR": ""}).data_dir == Path("/file")


def test_other_variables_are_left_alone(tmp_path: Path) -> None:
    """The file's own variable and variables of other programs are no settings."""
    env = {"GATEWAY_CONFIG": "elsewhere.toml", "PATH": "/bin", "SIMULATOR_QUEUE": "x"}
    assert load(tmp_path, env=env) == GatewayConfig()


@pytest.mark.parametrize(
    ("toml", "env", "cli", "fragments"),
    [
        (None, {"GATEWAY_QUEUES": "a"}, {}, ["variable GATEWAY_QUEUES", "unknown key", "did you mean 'queue'"]),
        (None, {"GATEWAY_LEASE__LENGHT_S": "9"}, {}, ["GATEWAY_LEASE__LENGHT_S", "did you mean 'length_s'"]),
        (None, {"GATEWAY_LEASE_LENGTH_S": "9"}, {}, ["GATEWAY_LEASE_LENGTH_S", "GATEWAY_LEASE__LENGTH_S"]),
        (None, {"GATEWAY_LEASE__LENGTH_S__X": "9"}, {}, ["lease.length_s.x", "unknown key"]),
        (None, {"GATEWAY_LEASE__LENGTH_S": "soon"}, {}, ["GATEWAY_LEASE__LENGTH_S", "number", "'soon'"]),
        (None, {"GATEWAY_LEASE__LENGTH_S": "-1"}, {}, ["GATEWAY_LEASE__LENGTH_S", "greater than 0", "'-1'"]),
        (None, {"GATEWAY_SEED": ""}, {}, ["GATEWAY_SEED", "integer"]),
        (None, {"GATEWAY_WORKERS": '{"a": }'}, {}, ["GATEWAY_WORKERS", "line 1 column 7"]),
        (None, {"GATEWAY_WORKERS": "[]"}, {}, ["GATEWAY_WORKERS", "expected a JSON object"]),
        (None, {"GATEWAY_WORKERS__A__OPTIONS__KEY": "1"}, {}, ["set GATEWAY_WORKERS__A__OPTIONS as one JSON"]),
        (None, {"GATEWAY_WORKERS__A__ENDPOINT": "x"}, {}, ["GATEWAY_WORKERS__A__ENDPOINT", "workers.a.connector"]),
        (None, {"GATEWAY_QUEUE": "a", "GATEWAY_queue": "b"}, {}, ["GATEWAY_QUEUE and GATEWAY_queue"]),
        ("queue = 'x'\nbogus = 1", {}, {}, ["gateway.toml:2: bogus: unknown key"]),
        ("[lease]\nlenght_s = 1", {}, {}, ["gateway.toml:2: lease.lenght_s", "did you mean 'length_s'"]),
        ("[lease\nlength_s = 1", {}, {}, ["gateway.toml: not valid TOML", "line 1"]),
        ("[telemetry]\nlog_level = 'loud'", {}, {}, ["gateway.toml:2: telemetry.log_level", "'loud' is none of"]),
        ("[workers.'a b']\nconnector = 'x'\nendpoint = 'y'", {}, {}, ["gateway.toml:1: workers", "'a b'"]),
        ("[api]\nport = 70000", {}, {}, ["gateway.toml:2: api.port", "65535", "70000"]),
        (None, {}, {"queue": "a b"}, ["command line: queue", "'a b'"]),
        (None, {}, {"workers": {"a": {**WORKER, "slots": 0}}}, ["command line: workers.a.slots", "'0'"]),
    ],
)  # fmt: skip
def test_mistakes_name_source_key_and_value(
    tmp_path: Path, toml: str | None, env: dict[str, str], cli: dict[str, Any], fragments: list[str]
) -> None:
    """Each mistake is one clear text that says where it stands."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, toml=toml, env=env, cli=cli)
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []


def test_every_mistake_is_told(tmp_path: Path) -> None:
    """Two mistakes in two sources are both named, each with its own source."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, toml="[intake]\npoll_s = 0", env={"GATEWAY_SHUTDOWN__GRACE_S": "-1"})
    assert "gateway.toml:2: intake.poll_s" in str(caught.value)
    assert "GATEWAY_SHUTDOWN__GRACE_S: shutdown.grace_s" in str(caught.value)


@pytest.mark.parametrize(
    ("values", "fragments"),
    [
        ({"lease": {"margin_s": 1.0}}, ["margin_s = 1", "length_s = 15"]),
        ({"lease": {"length_s": 10.0, "margin_s": 10.0}}, ["margin_s = 10", "below length_s"]),
        ({"lease": {"renew_s": 7.0}}, ["renew_s = 7", "no second try"]),
        ({"redis": {"command_timeout_s": 6.0}}, ["command_timeout_s = 6", "three times"]),
        ({"limits": {"worker_ttl_s": 10.0}}, ["worker_ttl_s = 10", "renew_s = 5"]),
        ({"retry": {"base_s": 90.0}}, ["base_s = 90", "delay_max_s = 60"]),
        ({"retry": {"snooze_default_s": 7200.0}}, ["snooze_default_s = 7200", "snooze_max_s"]),
        (
            {"workers": {"a": {**WORKER, "endpoints": ["http://h:2"]}}},
            ["workers.a", "endpoint and endpoints"],
        ),
        ({"workers": {"a": {"connector": "x", "base_url": "http://h:{port}"}}}, ["base_url and base_port"]),
        ({"workers": {"a": {"connector": "x", "base_url": "http://h", "base_port": 1}}}, ["contain {port}"]),
        (
            {
                "workers": {
                    "a": {"connector": "x", "base_url": "http://h:{port}", "base_port": 65535, "index": 1}
                }
            },
            ["base_port + index = 65536"],
        ),
        ({"workers": {"a": {"connector": "x", "instance": "i", "endpoints": ["a", "b"]}}}, ["one name"]),
        (
            {"workers": {"a": {"connector": "x", "discover": {"match": {"x": {"~": 1}}}}}},
            ["discover", "operator"],
        ),
        ({"health": {"breaker_open_s": 90.0}}, ["breaker_open_s = 90", "breaker_open_max_s = 60"]),
    ],
)
def test_impossible_combinations(tmp_path: Path, values: dict[str, Any], fragments: list[str]) -> None:
    """Values that cannot work together are refused with both values named."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, cli=values)
    assert [fragment for fragment in ["command line", *fragments] if fragment not in str(caught.value)] == []


def test_exact_margin_is_enough(tmp_path: Path) -> None:
    """A margin of just the least share is accepted whatever its binary rounding."""
    for length_s in (11.0, 13.0, 14.3, 17.1, 60.3):
        lease = {"length_s": length_s, "margin_s": length_s / 10, "renew_s": 1.0}
        assert load(tmp_path, cli={"lease": lease}).lease.length_s == length_s


def test_combination_names_both_sources(tmp_path: Path) -> None:
    """When two sources only clash together, both are named."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, toml="[lease]\nmargin_s = 1.6", env={"GATEWAY_LEASE__LENGTH_S": "20"})
    assert "GATEWAY_LEASE__LENGTH_S" in str(caught.value)
    assert "gateway.toml" in str(caught.value)


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    """A missing file is an error, never silently no file."""
    with pytest.raises(ConfigError, match=r"missing\.toml: cannot be read"):
        load_config(tmp_path / "missing.toml", environment={})
    (tmp_path / "latin.toml").write_bytes(b'machine = "\xe4"')
    with pytest.raises(ConfigError, match=r"latin\.toml: not valid TOML"):
        load_config(tmp_path / "latin.toml", environment={})


@pytest.mark.parametrize(
    ("env", "cli"),
    [
        ({"GATEWAY_REDIS_URL": "http://user:hunter2@host"}, {}),
        ({}, {"redis_url": ["hunter2"]}),
        ({}, {"workers": {"a": {**WORKER, "options": "hunter2"}}}),
        ({}, {"telemetry": {"otlp_endpoint": {"x": "hunter2"}}}),
    ],
)
def test_errors_never_show_secrets(tmp_path: Path, env: dict[str, str], cli: dict[str, Any]) -> None:
    """A wrong secret is named by its key only."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, env=env, cli=cli)
    assert "hunter2" not in str(caught.value)


def test_shown_values_hide_secrets(tmp_path: Path) -> None:
    """What people see of the configuration has no password, token or key in it."""
    options = {"api_key": "hunter2", "model": "sd", "tokens": ["hunter2"]}
    config = load(
        tmp_path,
        env={
            "GATEWAY_REDIS_URL": "redis://user:hunter2@redis.example:6379/2",
            "GATEWAY_TELEMETRY__OTLP_ENDPOINT": "https://hunter2@collector.example",
            "GATEWAY_WORKERS": json.dumps({"a": {**WORKER, "options": options}}),
        },
    )
    shown = public_values(config)
    assert "hunter2" not in json.dumps(shown)
    assert "hunter2" not in repr(config.redis_url)
    assert shown["redis_url"] == f"redis://{HIDDEN}@redis.example:6379/2"
    assert shown["workers"]["a"]["options"]["model"] == "sd"
    assert public_values(GatewayConfig())["redis_url"] == ""
