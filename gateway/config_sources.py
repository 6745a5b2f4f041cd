"""Where settings come from: file, environment, Redis, command line; merged, each value and mistake with its source."""

from __future__ import annotations

import enum
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import pydantic
from pydantic import SecretStr

from gateway.config import GatewayConfig, public_values
from gateway.config_environment import read_environment
from gateway.config_fleet import hash_key, read_fleet
from gateway.config_paths import annotation_of, below, holds, leaves, merge, suggestion, text_of, value_at
from gateway.config_secrets import HOW, SECRET_KEY, SecretProblem, inline_secrets, is_reference, resolve
from gateway.config_toml import Path, line_numbers
from gateway.errors import ConfigError


class Kind(enum.StrEnum):
    """Kinds of sources, from weak to strong."""

    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    REDIS = "redis"
    COMMAND_LINE = "command line"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where one value came from.

    Attributes:
        kind: the source.
        place: file and line, variable, Redis key and field, or option; empty for a default.
    """

    kind: Kind
    place: str = ""

    def __str__(self) -> str:
        return f"{self.kind.value} {self.place}".rstrip()


@dataclass(frozen=True, slots=True)
class Layer:
    """One source as read.

    Attributes:
        label: what errors call it when no place is known.
        values: its nested settings.
        places: file and line, variable, … of each path.
        prefix: what errors put before a place.
    """

    kind: Kind
    label: str
    values: Mapping[str, Any]
    places: Mapping[Path, str] = field(default_factory=dict)
    prefix: str = ""

    def place(self, path: Sequence[str]) -> str:
        """The place of a path, of the nearest table around it, or of what lies below it; else empty."""
        for length in range(len(path), 0, -1):
            if found := self.places.get(tuple(path[:length])):
                return found
        inside = [name for key, name in self.places.items() if key[: len(path)] == tuple(path)]
        return ", ".join(dict.fromkeys(inside))

    def name(self, path: Sequence[str]) -> str:
        """What errors call the source of a path."""
        place = self.place(path) if path else ""
        return f"{self.prefix}{place}" if place else self.label


@dataclass(frozen=True, slots=True)
class Loaded:
    """A validated configuration and where each of its values came from."""

    config: GatewayConfig
    layers: tuple[Layer, ...]

    def origin(self, path: Sequence[str]) -> Origin:
        """Where the value at a path came from."""
        for layer in reversed(self.layers):
            if holds(layer.values, path):
                return Origin(layer.kind, layer.place(path))
        return Origin(Kind.DEFAULT)

    def entries(self) -> Iterator[tuple[Path, Any, Origin]]:
        """Each single value as people may see it, with its path and origin."""
        for path, value in leaves(public_values(self.config)):
            yield path, value, self.origin(path)


class Sources:
    """The sources of one process; the file is read again, the environment and the command line stay.

    Args:
        path: TOML file; None for none.
        overrides: nested values of the command line, strongest.
        options: the option that set a path, for errors and provenance.
        environment: variables; the process's own if None.
    """

    def __init__(
        self,
        path: FilePath | None = None,
        overrides: Mapping[str, Any] | None = None,
        *,
        options: Mapping[Path, str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self._overrides = dict(overrides or {})
        self._options = dict(options or {})
        self._environment = dict(os.environ if environment is None else environment)

    def load(self, fleet: Mapping[str, str] | None = None) -> Loaded:
        """Read and merge all sources.

        Args:
            fleet: the queue's overrides in Redis, JSON by key; None when Redis was not asked.

        Raises:
            ConfigError: a source cannot be read, a key is unknown, a value or a combination is impossible.
        """
        layers = [] if self.path is None else [_read_file(self.path)]
        values, variables = read_environment(self._environment)
        layers.append(
            Layer(Kind.ENVIRONMENT, "environment variable", values, variables, prefix="environment variable ")
        )
        command_line = Layer(
            Kind.COMMAND_LINE, "command line", self._overrides, self._options, prefix="command line "
        )
        if fleet:
            layers.append(_read_fleet([*layers, command_line], fleet))
        layers.append(command_line)
        for layer in layers:
            _refuse_inline_secrets(layer)
        merged: dict[str, Any] = {}
        for layer in layers:
            merged = merge(merged, layer.values)
        try:
            resolved = _resolve_secrets(merged, layers, self._environment)
            return Loaded(GatewayConfig.model_validate(resolved), tuple(layers))
        except pydantic.ValidationError as error:
            raise _explain(error, layers) from None


def _read_file(path: FilePath) -> Layer:
    try:
        text = path.read_text("utf-8")
        values = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    places = {key: f"{path}:{line}" for key, line in line_numbers(text).items()}
    return Layer(Kind.FILE, str(path), values, places)


def _read_fleet(weaker: Sequence[Layer], fleet: Mapping[str, str]) -> Layer:
    """The layer of Redis; which queue and which workers there are is decided by the other sources."""
    queue, workers = GatewayConfig().queue, dict[str, None]()
    for layer in weaker:
        found = layer.values.get("queue", queue)
        queue = found if isinstance(found, str) else queue
        named = layer.values.get("workers")
        workers |= dict.fromkeys(named) if isinstance(named, Mapping) else {}
    values, places = read_fleet(fleet, list(workers), queue)
    return Layer(Kind.REDIS, f"Redis {hash_key(queue)}", values, places, prefix="Redis ")


def _refuse_inline_secrets(layer: Layer) -> None:
    """Environment variables may hold a secret, all else names the place of one."""
    if layer.kind is Kind.ENVIRONMENT:
        return
    for path in inline_secrets(layer.values):
        raise ConfigError(
            f"{layer.name(path)}: {text_of(path)}: credentials in plain text (value not shown); {HOW}"
        )


def _resolve_secrets(
    merged: Mapping[str, Any], layers: Sequence[Layer], environment: Mapping[str, str]
) -> dict[str, Any]:
    """The merged values with the secrets of our own schema looked up.

    Those in a connector's options stay references, so that no copy of the configuration holds them; that they can be
    followed is checked all the same.
    """
    resolved = dict(merged)
    for path, value in leaves(merged):
        if not is_reference(value):
            continue
        own = annotation_of(path) is SecretStr
        if not own and "options" not in path:
            raise ConfigError(
                f"{_blame(path, layers)}: {text_of(path)}: takes no reference to a secret (value {value!r})"
            )
        try:
            secret = resolve(value, environment)
        except SecretProblem as problem:
            raise ConfigError(f"{_blame(path, layers)}: {text_of(path)}: {problem}") from None
        if own:
            (name,) = path
            resolved[name] = secret
    return resolved


def _explain(error: pydantic.ValidationError, layers: Sequence[Layer]) -> ConfigError:
    """One part per mistake: where it stands, its name, what is wrong and, unless secret, the value."""
    parts = []
    for item in error.errors():
        path = [str(part) for part in item["loc"]]
        message = item["msg"].removeprefix("Value error, ")
        shown = item.get("input")
        if item["type"] == "extra_forbidden":
            annotation: Any = GatewayConfig
            for part in path[:-1]:
                annotation = below(annotation, part)
            message = f"unknown key{suggestion(annotation, path[-1])}"
            shown = None
        secret = any(SECRET_KEY.search(part) or part == "options" for part in path)
        plain = isinstance(shown, str | int | float | bool) and not secret
        suffix = f" (value {str(shown)[:80]!r})" if plain else ""
        parts.append(f"{_blame(path, layers)}: {text_of(path) or 'combination'}: {message}{suffix}")
    return ConfigError("; ".join(parts))


def _blame(path: Sequence[str], layers: Sequence[Layer]) -> str:
    """The sources that an error at this path comes from, strongest first."""
    for length in range(len(path), 0, -1):
        prefix = path[:length]
        holding = [layer for layer in reversed(layers) if holds(layer.values, prefix)]
        if holding:
            # A value has one source; a combination of a section's values may come from several.
            section = holding[:1] if not isinstance(value_at(holding[0].values, prefix), dict) else holding
            return " and ".join(layer.name(prefix) for layer in section)
    used = [layer for layer in reversed(layers) if layer.values]
    return " and ".join(layer.label for layer in used) or "defaults"
