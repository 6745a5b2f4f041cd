"""Connectors are found by name, or the process says so before it claims anything."""

from __future__ import annotations

import importlib
import random

import pytest

from gateway.config import load_config
from gateway.connector import Connector, ConnectorCapabilities
from gateway.connectors.registry import (
    BUILTIN_KEYS,
    ConnectorSpec,
    Registry,
    builtin_spec,
    default_registry,
    known_services,
)
from gateway.errors import ConfigError, ConnectorError
from gateway.store.connection import redis_connect
from gateway.supervisor import Gateway, Seams
from simulator.dialects.catalogue import dialect_of


def gateway_of(connector: str, endpoint: str = "http://127.0.0.1:1", **options: object) -> Gateway:
    """A gateway with one worker, made but not run: everything is resolved before the first claim."""
    worker = {"connector": connector, "endpoint": endpoint, "options": options}
    config = load_config(overrides={"workers": {"gpu0": worker}}, environment={})
    connect = redis_connect("redis://127.0.0.1:1", connect_timeout_s=1, command_timeout_s=1)
    return Gateway(config, Seams(connect_redis=connect, instance="test", random=random.Random))


def test_the_connectors_of_this_package_are_these() -> None:
    """Eight keys, each loaded by its name with the capabilities that it declares; every one has a simulated twin."""
    assert set(BUILTIN_KEYS) == {
        *("simulation-http", "simulation-websocket", "simulation-grpc"),
        *("comfyui-http", "comfyui-websocket", "a1111-http", "openai-http", "openinference-grpc"),
    }
    registry = default_registry()
    for key in BUILTIN_KEYS:
        assert isinstance(registry.load(key).capabilities, ConnectorCapabilities)
        assert dialect_of(key) is not None


@pytest.mark.parametrize("key", BUILTIN_KEYS)
def test_key_module_class_and_configuration_agree(key: str) -> None:
    """The naming law: one key gives the module, the class and the configuration value."""
    service, protocol = key.split("-")
    spec = builtin_spec(key)
    assert spec.module == f"gateway.connectors.{service}.{protocol}"
    assert spec.class_name.lower() == f"{service}{protocol}connector"
    found = getattr(importlib.import_module(spec.module), spec.class_name)
    assert issubclass(found, Connector)
    assert (found.key, found.service) == (key, service)
    dialect = dialect_of(key)
    endpoint = f"{dialect.scheme if dialect else 'http'}://127.0.0.1:1"
    assert type(gateway_of(key, endpoint).workers[0].endpoints[0].connector) is found


def test_acronyms_are_capitals() -> None:
    """Class names are spelled as their makers and RFCs write them."""
    names = [
        builtin_spec(key).class_name for key in ("simulation-http", "comfyui-websocket", "openinference-grpc")
    ]
    assert names == ["SimulationHTTPConnector", "ComfyUIWebSocketConnector", "OpenInferenceGRPCConnector"]


def test_an_unknown_key_fails_at_start_and_lists_what_is_known() -> None:
    """A misspelled connector never reaches the claim loop."""
    with pytest.raises(
        ConnectorError, match=r"unknown connector .simulaton-http.: known are .*simulation-http"
    ):
        gateway_of("simulaton-http")


def test_a_key_claimed_twice_is_refused() -> None:
    """Two packages with one key: nobody wins silently."""
    registry = default_registry()
    with pytest.raises(
        ConnectorError, match=r"'simulation-http' is claimed by .* and by other\.module:Thing"
    ):
        registry.add(ConnectorSpec("simulation-http", "other.module", "Thing"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (ConnectorSpec("x-http", "gateway.no_such_module", "X"), "No module named"),
        (ConnectorSpec("x-http", "gateway.connectors.simulation.http", "Nothing"), "has no attribute"),
        (ConnectorSpec("x-http", "gateway.models", "JobSpec"), "is no Connector class"),
        (
            ConnectorSpec("x-http", "gateway.connectors.simulation.http", "SimulationHTTPConnector"),
            "says key 'simulation-http'",
        ),
    ],
)
def test_a_broken_entry_says_what_is_broken(spec: ConnectorSpec, message: str) -> None:
    """Missing module, missing class, no connector, another key: each has its own words."""
    registry = Registry()
    registry.add(spec)
    with pytest.raises(ConnectorError, match=message):
        registry.load("x-http")


def test_services_are_those_of_the_connectors() -> None:
    """What a submitter may ask for without a live worker."""
    assert "simulation" in known_services()


@pytest.mark.parametrize(
    ("endpoint", "options", "message"),
    [
        ("localhost:8299", {}, r"workers\.gpu0\.endpoint: "),
        ("http://user:secret@127.0.0.1:8299", {}, r"workers\.gpu0\.endpoint: credentials in plain text"),
        ("http://127.0.0.1:8299", {"stal_s": 1}, "stal_s"),
        ("http://127.0.0.1:8299", {"stall_s": 0}, "must be positive"),
    ],
)
def test_a_wrong_endpoint_or_option_fails_at_start(
    endpoint: str, options: dict[str, object], message: str
) -> None:
    """Bad input gets one clear line before anything is claimed."""
    with pytest.raises(ConfigError, match=message):
        gateway_of("simulation-http", endpoint, **options)
