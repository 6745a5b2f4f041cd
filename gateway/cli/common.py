"""Options that every command takes, input that several read, and how a command gets its client."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec

import typer

from gateway.errors import InvalidSubmission

if TYPE_CHECKING:
    from gateway.client import Client
    from gateway.config import GatewayConfig
    from gateway.config_sources import Sources

P = ParamSpec("P")

_PANEL = "Common options"
_OPTIONS: dict[str, tuple[Any, Any]] = {
    "queue": (
        Annotated[
            str | None, typer.Option("--queue", "-q", help="Name of the queue.", rich_help_panel=_PANEL)
        ],
        None,
    ),
    "redis_url": (
        Annotated[
            str | None,
            typer.Option(
                "--redis-url", help="redis://, rediss:// or unix:// address.", rich_help_panel=_PANEL
            ),
        ],
        None,
    ),
    "config": (
        Annotated[
            Path | None,
            typer.Option("--config", "-c", help="TOML file with settings.", rich_help_panel=_PANEL),
        ],
        None,
    ),
    "data_dir": (
        Annotated[
            Path | None,
            typer.Option("--data-dir", help="Folder of the gateway's own Redis.", rich_help_panel=_PANEL),
        ],
        None,
    ),
    "json": (
        Annotated[bool, typer.Option("--json", help="Write JSON for programs.", rich_help_panel=_PANEL)],
        False,
    ),
}


@dataclass(frozen=True, slots=True)
class Common:
    """The common options as given."""

    queue: str | None
    redis_url: str | None
    config: Path | None
    data_dir: Path | None
    json: bool

    def overrides(self) -> dict[str, Any]:
        """What the command line sets, as configuration values."""
        given = {"queue": self.queue, "redis_url": self.redis_url, "data_dir": self.data_dir}
        return {key: value for key, value in given.items() if value is not None}

    def sources(
        self, more: Mapping[str, Any] | None = None, options: Mapping[tuple[str, ...], str] | None = None
    ) -> Sources:
        """The sources of the configuration, not read yet.

        Args:
            more: further values from the command line.
            options: which option set which path of them.
        """
        from gateway.config_sources import Sources

        return Sources(
            self.config_path(),
            {**self.overrides(), **(more or {})},
            options={(name,): f"--{name.replace('_', '-')}" for name in _OPTIONS} | dict(options or {}),
        )

    def settings(self, more: Mapping[str, Any] | None = None) -> GatewayConfig:
        """The merged configuration of this machine, without the fleet's overrides.

        Args:
            more: further values from the command line.

        Raises:
            ConfigError: a source is wrong.
        """
        return self.sources(more).load().config

    def config_path(self) -> Path | None:
        """The file of ``--config``, else of ``GATEWAY_CONFIG``."""
        if self.config is not None:
            return self.config
        named = os.environ.get("GATEWAY_CONFIG")
        return Path(named) if named else None

    def client(self, settings: GatewayConfig | None = None) -> Client:
        """A client for the configured queue.

        Raises:
            ConfigError: a source is wrong.
            StoreUnavailable: the embedded Redis cannot be had.
        """
        from gateway.client import Client

        config = settings or self.settings()
        return Client(
            config.redis_url.get_secret_value() or None,
            queue=config.queue,
            data_dir=config.data_dir,
            limits=config.limits.store_limits(),
            command_timeout_s=config.redis.command_timeout_s,
            connect_timeout_s=config.redis.connect_timeout_s,
        )


def command(
    target: typer.Typer, name: str
) -> Callable[[Callable[Concatenate[Common, P], int | None]], Callable[Concatenate[Common, P], int | None]]:
    """Add a function as a command that also takes the common options, gathered in its first argument.

    Args:
        target: the group.
        name: the command's name.
    """

    def add(
        function: Callable[Concatenate[Common, P], int | None],
    ) -> Callable[Concatenate[Common, P], int | None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        shared = [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for option, (annotation, default) in _OPTIONS.items()
        ]
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own] + shared

        def wrapper(**values: Any) -> int | None:
            common = Common(**{option: values.pop(option) for option in _OPTIONS})
            call: Callable[..., int | None] = function
            return call(common, **values)

        wrapper.__name__ = function.__name__
        wrapper.__doc__ = function.__doc__
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        target.command(name)(wrapper)
        return function

    return add


def parse_json(text: str | bytes, where: str) -> Any:
    """Read JSON.

    Args:
        text: what was given.
        where: the argument or file, for the error.

    Raises:
        InvalidSubmission: names ``where``, line and column.
    """
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        return json.loads(decoded)
    except UnicodeDecodeError as error:
        raise InvalidSubmission(f"{where}: not UTF-8 text (byte {error.start})") from None
    except json.JSONDecodeError as error:
        message = f"{where}: not valid JSON: {error.msg} (line {error.lineno} column {error.colno})"
        raise InvalidSubmission(message) from None
    except RecursionError:
        raise InvalidSubmission(f"{where}: nested too deeply") from None


def read_payload(argument: str | None, file: Path | None) -> Any:
    """The payload from the argument, from a file, or (``-``) from standard input; null when there is none.

    Raises:
        InvalidSubmission: both were given, the file cannot be read, or it is not JSON.
    """
    if argument is not None and file is not None:
        raise InvalidSubmission("PAYLOAD and --file: give one of them")
    if argument == "-" or (file is not None and str(file) == "-"):
        return parse_json(sys.stdin.buffer.read(), "standard input")
    if argument is not None:
        return parse_json(argument, "argument PAYLOAD")
    if file is None:
        return None
    try:
        return parse_json(file.read_bytes(), str(file))
    except OSError as error:
        raise InvalidSubmission(f"{file}: cannot be read: {error.strerror}") from None
