"""Overrides for the whole fleet: kept in Redis as JSON by key, stronger than a machine's own file and environment.

They say how to work, never who or where a process is: those keys are refused here. An override of a worker applies
where a worker of that name exists, and adds none; ``workers.*.slots`` means every worker.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, get_args

import pydantic

from gateway.config import GatewayConfig
from gateway.config_paths import (
    ANY,
    annotation_of,
    below,
    leaves,
    matches,
    merge,
    nested,
    suggestion,
    text_of,
)
from gateway.config_secrets import inline_secrets, is_reference
from gateway.config_toml import Path, read_key
from gateway.errors import ConfigError
from gateway.store.keys import QueueKeys

#: Keys that belong to one process or machine, each with what to do instead.
LOCAL_KEYS: tuple[Path, ...] = (
    *((key,) for key in ("queue", "redis_url", "data_dir", "machine", "seed", "redis", "api")),
    ("telemetry", "otlp_endpoint"),
    *(
        ("workers", ANY, key)
        for key in (
            "connector", "endpoint", "endpoints", "instance", "base_url", "base_port", "index", "options", "discover"
        )
    ),
)  # fmt: skip

#: Settings that only define what the queue does not have: its own value is the fleet's already.
KEPT_BY_QUEUE: tuple[Path, ...] = (("limits", "aging_s"), ("limits", "services"), ("limits", "tenants"))


def hash_key(queue: str) -> str:
    """Name of the Redis hash that holds a queue's overrides."""
    return QueueKeys(queue).config


def fleet_path(key: str) -> Path:
    """The path of an override's key.

    Raises:
        ConfigError: not a key of the schema, or one of a single machine's own.
    """
    path = read_key(key)
    if not path:
        raise ConfigError(f"{key!r}: not a key; write one as in a TOML file, such as lease.length_s")
    annotation: Any = GatewayConfig
    for position, part in enumerate(path):
        deeper = below(annotation, part)
        if deeper is None and isinstance(annotation, type):
            raise ConfigError(f"{text_of(path[: position + 1])}: unknown key{suggestion(annotation, part)}")
        annotation = deeper
    if any(matches(path, local) for local in LOCAL_KEYS):
        raise ConfigError(
            f"{text_of(path)}: belongs to one machine; set it in that machine's file, environment or options"
        )
    if any(matches(path, kept) for kept in KEPT_BY_QUEUE):
        raise ConfigError(f"{text_of(path)}: the queue keeps this itself; use `gateway limits` instead")
    if path == ("workers",) or _is_table(annotation):
        raise ConfigError(f"{text_of(path)}: a table; set its keys one by one")
    return path


def _is_table(annotation: Any) -> bool:
    return any(
        isinstance(inner, type) and issubclass(inner, pydantic.BaseModel)
        for inner in (annotation, *get_args(annotation))
    )


def read_fleet(
    overrides: Mapping[str, str], workers: Collection[str], queue: str
) -> tuple[dict[str, Any], dict[Path, str]]:
    """The settings in a queue's overrides.

    Args:
        overrides: JSON text by key, as kept in Redis.
        workers: names of the workers that this process has.
        queue: for the place named in errors and in the provenance.

    Returns:
        Nested values, and the place of each path.

    Raises:
        ConfigError: a key or value is wrong; names the Redis key, the override's key and the value.
    """
    values: dict[str, Any] = {}
    places: dict[Path, str] = {}
    hash_name = hash_key(queue)
    # A name is stronger than the star: it comes later.
    for key in sorted(overrides, key=lambda key: (ANY not in key, key)):
        place = f"{hash_name} {key}"
        try:
            path = fleet_path(key)
            value = read_value(path, overrides[key])
        except ConfigError as error:
            raise ConfigError(f"Redis {hash_name}: {error}") from None
        names = list(workers) if path[:2] == ("workers", ANY) else [path[1] if len(path) > 1 else ""]
        for name in names:
            if path[0] == "workers" and name not in workers:
                continue
            here = ("workers", name, *path[2:]) if path[0] == "workers" else path
            values = merge(values, nested(here, value))
            places |= {leaf: place for leaf, _ in leaves(nested(here, value))}
    return values, places


def read_value(path: Path, text: str) -> Any:
    """The value of one override.

    Raises:
        ConfigError: not JSON, or it holds a secret or a reference to one.
    """
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{text_of(path)}: not valid JSON: {error.msg} (value {text[:80]!r})") from None
    whole = nested(path, value)
    if any(inline_secrets(whole)) or any(is_reference(leaf) for _, leaf in leaves(whole)):
        raise ConfigError(f"{text_of(path)}: secrets are never kept in Redis; set it on each machine")
    return value


def check_overrides(overrides: Mapping[str, str], queue: str) -> None:
    """Refuse overrides that no gateway could take: judged on top of the defaults, with workers of every name used.

    Raises:
        ConfigError: names the key and the value.
    """
    names = {path[1] for path in map(fleet_path, overrides) if path[0] == "workers" and len(path) > 1} or {
        "any"
    }
    values, _ = read_fleet(overrides, names, queue)
    stand_in = {"connector": "any", "endpoint": "http://127.0.0.1:1"}
    workers = {name: stand_in for name in names if name != ANY} or {"any": stand_in}
    merged = merge({"workers": workers}, values)
    try:
        GatewayConfig.model_validate(merged)
    except pydantic.ValidationError as error:
        found = error.errors()[0]
        path = [str(part) for part in found["loc"]]
        message = found["msg"].removeprefix("Value error, ")
        shown = found.get("input")
        suffix = f" (value {str(shown)[:80]!r})" if isinstance(shown, str | int | float | bool) else ""
        raise ConfigError(f"{text_of(path) or 'combination'}: {message}{suffix}") from None


def encode_overrides(changes: Mapping[str, Any]) -> dict[str, str]:
    """Changes as the store takes them: JSON by key, empty for a key to be removed.

    Raises:
        ConfigError: a key or value is wrong.
    """
    encoded = {}
    for key, value in changes.items():
        path = fleet_path(key)
        text = "" if value is None else json.dumps(value)
        if text:
            read_value(path, text)
        encoded[text_of(path)] = text
    return encoded


def parse_value(path: Path, text: str) -> Any:
    """A value from a command line: JSON, or plain text where the schema wants text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        if annotation_of(path) is str:
            return text
        raise ConfigError(
            f'{text_of(path)}: {text!r} is not JSON; write numbers and true/false as they are, lists as ["a"]'
        ) from None
