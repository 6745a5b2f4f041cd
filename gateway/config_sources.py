"""Where settings come from: file, environment and command line, merged, each mistake named with its source.

The schema is in ``gateway.config``; only ``gateway.config.load_config`` uses this module.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args, get_origin

import pydantic
from pydantic import BaseModel
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from gateway.config import ENV_DELIMITER, ENV_PREFIX, SECRET_KEY, GatewayConfig
from gateway.errors import ConfigError

#: Named by the command line tool itself: the configuration file to read.
CONFIG_VARIABLE = "GATEWAY_CONFIG"
_OTHER_VARIABLES = frozenset({CONFIG_VARIABLE})


@dataclass(frozen=True, slots=True)
class _Source:
    """One layer of settings.

    Attributes:
        label: what errors call it.
        values: its nested settings.
        variables: for the environment, which variable set which path.
    """

    label: str
    values: dict[str, Any]
    variables: dict[tuple[str, ...], str] = field(default_factory=dict)

    def holds(self, path: Sequence[str]) -> bool:
        values: Any = self.values
        for part in path:
            if not isinstance(values, dict) or part not in values:
                return False
            values = values[part]
        return True

    def name(self, path: Sequence[str]) -> str:
        """The label, or the very variable that holds the path (or lies below it)."""
        for length in range(len(path), 0, -1):
            if variable := self.variables.get(tuple(path[:length])):
                return f"{self.label} {variable}"
        below = [name for key, name in self.variables.items() if key[: len(path)] == tuple(path)]
        return f"{self.label} {', '.join(below)}" if below else self.label


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None


class _EnvironmentModel(GatewayConfig, BaseSettings):
    """The schema as the environment source wants it; never instantiated."""

    # Pydantic merges this with the schema's own; its type is a wider one.
    model_config = SettingsConfigDict(  # type: ignore[mutable-override]
        env_prefix=ENV_PREFIX, env_nested_delimiter=ENV_DELIMITER, case_sensitive=False, extra="forbid"
    )


class _EnvironmentSource(EnvSettingsSource):
    """Reads the given variables instead of the process's own."""

    def __init__(self, variables: Mapping[str, str]) -> None:
        self._variables = {name.lower(): value for name, value in variables.items()}
        super().__init__(_EnvironmentModel)

    def _load_env_vars(self) -> Mapping[str, str | None]:
        return {**self._variables}


def _below(annotation: Any, part: str) -> Any:
    """The type one level down; None when there is no such level."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        info = annotation.model_fields.get(part)
        return info.annotation if info else None
    if get_origin(annotation) is dict:
        value_type = get_args(annotation)[1]
        # Below a dictionary of anything there is no schema to turn text into numbers by: JSON only.
        return None if value_type is Any else value_type
    return None


def _is_section(annotation: Any) -> bool:
    return get_origin(annotation) is dict or (
        isinstance(annotation, type) and issubclass(annotation, BaseModel)
    )


def _suggestion(annotation: Any, part: str) -> str:
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return ""
    known = sorted(annotation.model_fields)
    for section in known:
        rest = part.removeprefix(f"{section}_")
        if rest != part and _below(annotation.model_fields[section].annotation, rest) is not None:
            variable = f"{ENV_PREFIX}{section}{ENV_DELIMITER}{rest}".upper()
            return f"; did you mean {section}.{rest} ({variable})?"
    close = difflib.get_close_matches(part, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def _check_variable(name: str, value: str) -> tuple[str, ...]:
    """The path that a variable sets.

    Raises:
        ConfigError: no such key, or its value should be JSON and is not.
    """
    path = tuple(name.removeprefix(ENV_PREFIX).lower().split(ENV_DELIMITER))
    annotation: Any = GatewayConfig
    for position, part in enumerate(path):
        deeper = _below(annotation, part)
        if deeper is None:
            if get_origin(annotation) is dict:
                whole = ENV_PREFIX + ENV_DELIMITER.join(path[:position]).upper()
                raise ConfigError(f"environment variable {name}: set {whole} as one JSON object instead")
            where = ".".join(path[: position + 1])
            raise ConfigError(
                f"environment variable {name}: {where}: unknown key{_suggestion(annotation, part)}"
            )
        annotation = deeper
    if _is_section(annotation):
        try:
            decoded = json.loads(value)
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"environment variable {name}: {'.'.join(path)}: not valid JSON: {error.msg} "
                f"(line {error.lineno} column {error.colno})"
            ) from None
        if not isinstance(decoded, dict):
            raise ConfigError(f"environment variable {name}: {'.'.join(path)}: expected a JSON object")
    return path


def _read_environment(environment: Mapping[str, str]) -> _Source:
    """Nested settings from variables such as ``GATEWAY_LEASE__LENGTH_S=20`` or ``GATEWAY_WORKERS={"a": {…}}``."""
    variables = {
        name: value
        for name, value in sorted(environment.items())
        if name.startswith(ENV_PREFIX)
        and name not in _OTHER_VARIABLES
        # An empty data directory means the platform's own, as everywhere else.
        and not (name == f"{ENV_PREFIX}DATA_DIR" and not value)
    }
    paths: dict[tuple[str, ...], str] = {}
    for name, value in variables.items():
        path = _check_variable(name, value)
        if path in paths:
            raise ConfigError(f"environment variables {paths[path]} and {name} set the same key")
        paths[path] = name
    return _Source("environment variable", _EnvironmentSource(variables)(), paths)


def _merge(low: dict[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """``high`` over ``low``, section by section."""
    merged = dict(low)
    for key, value in high.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def _explain(error: pydantic.ValidationError, sources: Sequence[_Source]) -> ConfigError:
    """One part per mistake: where it stands, its name, what is wrong and, unless secret, the value."""
    parts = []
    for item in error.errors():
        path = [str(part) for part in item["loc"]]
        message = item["msg"].removeprefix("Value error, ")
        shown = item.get("input")
        if item["type"] == "extra_forbidden":
            annotation: Any = GatewayConfig
            for part in path[:-1]:
                annotation = _below(annotation, part)
            message = f"unknown key{_suggestion(annotation, path[-1])}"
            shown = None
        secret = any(SECRET_KEY.search(part) or part == "options" for part in path)
        plain = isinstance(shown, str | int | float | bool) and not secret
        suffix = f" (value {str(shown)[:80]!r})" if plain else ""
        parts.append(f"{_blame(path, sources)}: {'.'.join(path) or 'combination'}: {message}{suffix}")
    return ConfigError("; ".join(parts))


def _blame(path: Sequence[str], sources: Sequence[_Source]) -> str:
    """The sources that an error at this path comes from, strongest first."""
    for length in range(len(path), 0, -1):
        prefix = path[:length]
        holding = [source for source in reversed(sources) if source.holds(prefix)]
        if holding:
            # A value has one source; a combination of a section's values may come from several.
            section = holding[:1] if not isinstance(_value(holding[0], prefix), dict) else holding
            return " and ".join(source.name(prefix) for source in section)
    used = [source for source in reversed(sources) if source.values]
    return " and ".join(source.label for source in used) or "defaults"


def _value(source: _Source, path: Sequence[str]) -> Any:
    value: Any = source.values
    for part in path:
        value = value[part]
    return value


def read_sources(
    path: Path | None, overrides: Mapping[str, Any], environment: Mapping[str, str] | None
) -> GatewayConfig:
    """See ``gateway.config.load_config``."""
    sources = [] if path is None else [_Source(str(path), _read_file(path))]
    sources.append(_read_environment(os.environ if environment is None else environment))
    sources.append(_Source("command line", dict(overrides)))
    merged: dict[str, Any] = {}
    for source in sources:
        merged = _merge(merged, source.values)
    try:
        return GatewayConfig.model_validate(merged)
    except pydantic.ValidationError as error:
        raise _explain(error, sources) from None
