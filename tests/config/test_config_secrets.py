"""Secrets: only by reference or in the environment, followed when loaded, shown by nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gateway.config import public_values
from gateway.config_secrets import reveal
from gateway.config_sources import Sources
from gateway.errors import ConfigError

WORKER = {"connector": "simulation-http", "endpoint": "http://127.0.0.1:1"}
SECRET = "hunter2"


def test_references_are_followed(tmp_path: Path) -> None:
    """A variable or a file gives the secret; what is shown is the reference, or the address without its login."""
    secret = tmp_path / "redis-url"
    secret.write_text(f"redis://:{SECRET}@redis.example/1\n")
    path = tmp_path / "gateway.toml"
    path.write_text(
        f"redis_url = {{ file = '{secret}' }}\n[workers.a]\nconnector = 'simulation-http'\n"
        "endpoint = 'http://127.0.0.1:1'\noptions = { api_key = { env = 'KEY_OF_A' }, api_key_env = 'KEY_OF_A' }\n"
    )
    environment = {"KEY_OF_A": SECRET}
    loaded = Sources(path, environment=environment).load()
    assert loaded.config.redis_url.get_secret_value() == f"redis://:{SECRET}@redis.example/1"
    assert reveal(loaded.config.workers["a"].options, environment)["api_key"] == SECRET
    shown = public_values(loaded.config)
    assert shown["redis_url"] == "redis://(hidden)@redis.example/1"
    assert shown["workers"]["a"]["options"] == {"api_key": {"env": "KEY_OF_A"}, "api_key_env": "KEY_OF_A"}
    assert SECRET not in json.dumps(shown) + repr(loaded.config) + loaded.config.model_dump_json()
    assert str(loaded.origin(("redis_url",))) == f"file {path}:1"


@pytest.mark.parametrize(
    ("toml", "key"),
    [
        (f"redis_url = 'redis://user:{SECRET}@h/0'", "gateway.toml:1: redis_url"),
        (f"redis_url = 'redis://{SECRET}@h/0'", "gateway.toml:1: redis_url"),
        (f"[telemetry]\notlp_endpoint = 'https://{SECRET}@h'", "gateway.toml:2: telemetry.otlp_endpoint"),
        (f"[workers.a.options]\nx = 1\napi_key = '{SECRET}'", "gateway.toml:3: workers.a.options.api_key"),
        (f"[workers.a.options.headers]\nAuthorization = '{SECRET}'", "gateway.toml:2: workers.a.options"),
        (f"[workers.a.options]\ntokens = ['{SECRET}']", "gateway.toml:2: workers.a.options.tokens"),
        (f"[workers.a]\nendpoint = 'http://u:{SECRET}@h:1'", "gateway.toml:2: workers.a.endpoint"),
    ],
)
def test_plain_secrets_in_a_file_are_refused(tmp_path: Path, toml: str, key: str) -> None:
    """A secret written into a file is an error that names its line and what to do, not the secret."""
    path = tmp_path / "gateway.toml"
    path.write_text(toml)
    with pytest.raises(ConfigError) as caught:
        Sources(path, environment={}).load()
    assert key in str(caught.value)
    assert '{ env = "VARIABLE" }' in str(caught.value)
    assert SECRET not in str(caught.value)


def test_plain_secrets_on_a_command_line_are_refused() -> None:
    """Anybody on the machine can list command lines."""
    sources = Sources(
        overrides={"redis_url": f"redis://:{SECRET}@h/0"},
        options={("redis_url",): "--redis-url"},
        environment={},
    )
    with pytest.raises(ConfigError, match="command line --redis-url: redis_url: credentials") as caught:
        sources.load()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["max_tokens", "tokenizer", "token_count_by", "api_key_env", "token_file"])
def test_harmless_names_are_accepted(name: str) -> None:
    """Numbers, and names that only sound like a secret or name the place of one, are ordinary settings."""
    value = 5 if name == "max_tokens" else "x"
    if name == "token_count_by":
        value = 7
    sources = Sources(overrides={"workers": {"a": {**WORKER, "options": {name: value}}}}, environment={})
    assert sources.load().config.workers["a"].options == {name: value}


@pytest.mark.parametrize(
    ("reference", "fragments"),
    [
        ({"env": "NOT_SET"}, ["redis_url", "'NOT_SET' is not set"]),
        ({"env": ""}, ["redis_url", "is not set"]),
        ({"file": "relative"}, ["redis_url", "'relative'", "absolute"]),
        ({"file": "/no/such/file"}, ["redis_url", "/no/such/file", "cannot be read"]),
        ({"vault": "x"}, ["redis_url", "valid string"]),
        ({"env": "A", "file": "/b"}, ["redis_url", "valid string"]),
    ],
)
def test_references_that_lead_nowhere(tmp_path: Path, reference: Any, fragments: list[str]) -> None:
    """Each names the key and the place that was looked at."""
    with pytest.raises(ConfigError) as caught:
        Sources(overrides={"redis_url": reference}, environment={}).load()
    assert [fragment for fragment in fragments if fragment not in str(caught.value)] == []


def test_empty_or_binary_secret_files(tmp_path: Path) -> None:
    """An empty secret is none."""
    for content, fragment in ((b"\n", "is empty"), (b"\xff", "not UTF-8"), (b"x" * 70_000, "more than")):
        (tmp_path / "secret").write_bytes(content)
        with pytest.raises(ConfigError, match=fragment):
            Sources(overrides={"redis_url": {"file": str(tmp_path / "secret")}}, environment={}).load()


def test_references_stand_only_where_a_secret_belongs() -> None:
    """Elsewhere a reference is a mistake: it would be read as text."""
    with pytest.raises(ConfigError, match=r"queue: takes no reference"):
        Sources(overrides={"queue": {"env": "QUEUE"}}, environment={"QUEUE": "x"}).load()
