"""Settings from environment variables: ``GATEWAY_LEASE__LENGTH_S=20``, ``GATEWAY_WORKERS={"a": {…}}``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, get_origin

from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from gateway.config import ENV_DELIMITER, ENV_PREFIX, GatewayConfig
from gateway.config_paths import below, is_section, suggestion
from gateway.config_toml import Path
from gateway.errors import ConfigError

#: Named by the command line tool itself: the configuration file to read.
CONFIG_VARIABLE = "GATEWAY_CONFIG"
_OTHER_VARIABLES = frozenset({CONFIG_VARIABLE})


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


def _check_variable(name: str, value: str) -> Path:
    """The path that a variable sets.

    Raises:
        ConfigError: no such key, or its value should be JSON and is not.
    """
    path = tuple(name.removeprefix(ENV_PREFIX).lower().split(ENV_DELIMITER))
    annotation: Any = GatewayConfig
    for position, part in enumerate(path):
        deeper = below(annotation, part)
        if deeper is None:
            if get_origin(annotation) is dict:
                whole = ENV_PREFIX + ENV_DELIMITER.join(path[:position]).upper()
                raise ConfigError(f"environment variable {name}: set {whole} as one JSON object instead")
            where = ".".join(path[: position + 1])
            raise ConfigError(
                f"environment variable {name}: {where}: unknown key{suggestion(annotation, part)}"
            )
        annotation = deeper
    if is_section(annotation):
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


def read_environment(environment: Mapping[str, str]) -> tuple[dict[str, Any], dict[Path, str]]:
    """The settings in ``GATEWAY_…`` variables.

    Returns:
        Nested values, and the variable that sets each path.

    Raises:
        ConfigError: a variable names no key, two set the same one, or JSON was expected.
    """
    variables = {
        name: value
        for name, value in sorted(environment.items())
        if name.startswith(ENV_PREFIX)
        and name not in _OTHER_VARIABLES
        # An empty data directory means the platform's own, as everywhere else.
        and not (name == f"{ENV_PREFIX}DATA_DIR" and not value)
    }
    paths: dict[Path, str] = {}
    for name, value in variables.items():
        path = _check_variable(name, value)
        if path in paths:
            raise ConfigError(f"environment variables {paths[path]} and {name} set the same key")
        paths[path] = name
    return _EnvironmentSource(variables)(), paths
