"""The replaced system's settings as a TOML file of ours: its variable WORKERS and its service-mapping.json.

Only shapes that are known are taken; anything else is refused with file, key and value, because five components of
that system each read the file in a way of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gateway.errors import ConfigError

#: Worker types of the replaced system without a mapping: connector here, and the port of the first instance there.
TYPES: dict[str, tuple[str, int]] = {
    "a1111": ("a1111-http", 7860),
    "comfyui": ("comfyui-websocket", 8188),
    "simulation": ("simulation-http", 8299),
    "simulation-http": ("simulation-http", 8299),
    "simulation-websocket": ("simulation-websocket", 8399),
}
#: Its connector classes, under the several names that each had.
CLASSES: dict[str, str] = {
    "A1111Connector": "a1111-http",
    "ComfyUIConnector": "comfyui-websocket",
    "ComfyUIHttpConnector": "comfyui-http",
    "ComfyUIWebSocketConnector": "comfyui-websocket",
    "ComfyUIWebsocketConnector": "comfyui-websocket",
    "OpenAIConnector": "openai-http",
    "OpenAIImg2ImgConnector": "openai-http",
    "OpenAIResponsesConnector": "openai-http",
    "OpenAIText2ImgConnector": "openai-http",
    "OpenAITextConnector": "openai-http",
    "SimulationConnector": "simulation-http",
    "SimulationHttpConnector": "simulation-http",
    "SimulationWebSocketConnector": "simulation-websocket",
    "SimulationWebsocketConnector": "simulation-websocket",
}
_TOP_KEYS = {"workers", "services", "connectors", "machine_capabilities"}
_WORKER_KEYS = {
    *("services", "is_gpu_bound", "required_env", "type", "daemon_dependency", "scaling_strategy"),
    *("job_service_required_map", "description"),
}
_SERVICE_KEYS = {
    *("connector", "type", "installer", "ports", "port_increment", "service_instances_per_gpu"),
    *("service_instances_per_machine", "required_env", "installer_config", "api_config", "telemetry_logs"),
    *("description",),
}
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,48}")
_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
_SCHEMES = {"http": "http", "websocket": "http", "grpc": "grpc"}
COUNT_MAX = 256


@dataclass(frozen=True, slots=True)
class Imported:
    """The translated settings, and what a person should know or decide."""

    settings: dict[str, Any]
    remarks: list[str] = field(default_factory=list)

    def toml(self) -> str:
        """The settings as a file."""
        from gateway.fleet import toml_text

        return toml_text(self.settings)


@dataclass(frozen=True, slots=True)
class _Service:
    """One service of the mapping: a connector here, and where its instances listened."""

    connector: str
    base_port: int
    increment: int
    address: str
    options: dict[str, Any]


def import_settings(mapping: Path | None, workers: str | None) -> Imported:
    """Translate settings of the replaced system.

    Args:
        mapping: its service-mapping.json; None for the types known without one.
        workers: the value of its variable WORKERS; None for one worker of each type in the mapping.

    Raises:
        ConfigError: neither is given, or something in them is unknown or impossible; names file, key and value.
    """
    if mapping is None and workers is None:
        raise ConfigError('config import: give a service-mapping.json, or --workers "comfyui:2,simulation:4"')
    counts = None if workers is None else parse_workers(workers)
    remarks: list[str] = []
    settings: dict[str, Any] = {}
    if mapping is None:
        for kind, count in (counts or {}).items():
            if kind not in TYPES:
                raise ConfigError(f"WORKERS: type {kind!r}: unknown; known are {', '.join(sorted(TYPES))}")
            connector, port = TYPES[kind]
            _add(settings, kind, _Service(connector, port, 1, "", {}), count)
        remarks.append("the ports are those that the replaced system used by habit; check them")
        return Imported({"workers": settings}, remarks)
    reader = _Mapping(mapping, remarks)
    known = reader.workers()
    if counts is None:
        remarks.append("no WORKERS was given: one worker of each type in the mapping")
        counts = dict.fromkeys(known, 1)
    for kind, count in counts.items():
        if kind not in known:
            raise ConfigError(
                f"WORKERS: type {kind!r}: not among the workers of {mapping} ({', '.join(sorted(known))})"
            )
        for name in known[kind]:
            label = kind if len(known[kind]) == 1 else f"{kind}-{name}"
            service = reader.service(name)
            if count > 1 and not service.increment and not service.address:
                remarks.append(
                    f"services.{name}: port_increment is 0: consecutive ports are written; check them"
                )
            _add(settings, label, service, count)
    return Imported({"workers": settings}, remarks)


def _add(settings: dict[str, Any], label: str, service: _Service, count: int) -> None:
    scheme = _SCHEMES[service.connector.rpartition("-")[2]]
    for number in range(count):
        port = service.base_port + number * (service.increment or 1)
        if not service.address and port > 65535:
            raise ConfigError(f"{label}: instance {number} would listen on port {port}")
        settings[f"{label}-{number}"] = {
            "connector": service.connector,
            "endpoint": service.address or f"{scheme}://localhost:{port}",
            **({"options": service.options} if service.options else {}),
        }


def parse_workers(text: str) -> dict[str, int]:
    """Read ``type:count[,…]``.

    Raises:
        ConfigError: another form; names the part.
    """
    counts: dict[str, int] = {}
    for part in text.split(","):
        kind, colon, number = part.strip().partition(":")
        if not (colon and _NAME.fullmatch(kind)):
            raise ConfigError(f"WORKERS: {part.strip()!r}: expected TYPE:COUNT, as in comfyui:2")
        if kind in counts:
            raise ConfigError(f"WORKERS: type {kind!r} is given twice")
        if number == "auto":
            raise ConfigError(f"WORKERS: {kind}:auto: GPUs are not counted here; write how many")
        if not (number.isascii() and number.isdigit() and 1 <= int(number[:9]) <= COUNT_MAX):
            raise ConfigError(f"WORKERS: {part.strip()!r}: the count must be 1 to {COUNT_MAX}")
        counts[kind] = int(number)
    return counts


class _Mapping:
    """A service-mapping.json, read with suspicion."""

    def __init__(self, path: Path, remarks: list[str]) -> None:
        self._path = path
        self._remarks = remarks
        try:
            content = json.loads(path.read_text("utf-8"))
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
        except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ConfigError(f"{path}: not valid JSON: {error}") from None
        top = self._table("", content, _TOP_KEYS)
        self._workers = self._table("workers", top.get("workers"))
        self._services = self._table("services", top.get("services"))

    def _refuse(self, key: str, value: Any, why: str) -> ConfigError:
        shown = json.dumps(value)
        return ConfigError(f"{self._path}: {key or 'document'}: {why} (value {shown[:80]})")

    def _table(self, key: str, value: Any, known: set[str] | None = None) -> Mapping[str, Any]:
        if not isinstance(value, dict):
            raise self._refuse(key, value, "expected an object")
        for name in value:
            if known is not None and name not in known:
                raise self._refuse(
                    f"{key}.{name}".lstrip("."), value[name], f"unknown; known are {', '.join(sorted(known))}"
                )
        return value

    def workers(self) -> dict[str, Sequence[str]]:
        """The services of each worker type."""
        found: dict[str, Sequence[str]] = {}
        for kind, value in self._workers.items():
            key = f"workers.{kind}"
            if not _NAME.fullmatch(kind):
                raise self._refuse(key, value, "cannot be part of a worker's name")
            worker = self._table(key, value, _WORKER_KEYS)
            services = worker.get("services")
            if not (
                isinstance(services, list) and services and all(isinstance(name, str) for name in services)
            ):
                raise self._refuse(f"{key}.services", services, "expected a list of names")
            self._note_names(key, worker.get("job_service_required_map", []))
            found[kind] = services
        return found

    def _note_names(self, key: str, pairs: Any) -> None:
        """What jobs asked for there is another name than the service here: a person must know."""
        where = f"{key}.job_service_required_map"
        if not isinstance(pairs, list):
            raise self._refuse(where, pairs, "expected a list")
        for pair in pairs:
            names = self._table(where, pair, {"job_service_required", "worker_service"})
            asked, name = names.get("job_service_required"), names.get("worker_service")
            if not (isinstance(asked, str) and isinstance(name, str)):
                raise self._refuse(where, pair, "expected two names")
            service = self.service(name).connector.partition("-")[0]
            if asked != service:
                self._remarks.append(
                    f"jobs that asked for {asked!r} there are submitted for {service!r} here"
                )

    def service(self, name: str) -> _Service:
        """One service."""
        key = f"services.{name}"
        if name not in self._services:
            raise ConfigError(f"{self._path}: {key}: named by a worker, but there is none")
        service = self._table(key, self._services[name], _SERVICE_KEYS)
        connector = service.get("connector")
        if not isinstance(connector, str) or connector not in CLASSES:
            raise self._refuse(
                f"{key}.connector", connector, f"unknown; known are {', '.join(sorted(CLASSES))}"
            )
        options = self._options(key, CLASSES[connector], service.get("required_env", []))
        if service.get("type") == "external_api":
            api = self._table(f"{key}.api_config", service.get("api_config"))
            address = api.get("base_url")
            if not isinstance(address, str):
                raise self._refuse(f"{key}.api_config.base_url", address, "expected an address")
            return _Service(
                CLASSES[connector], 0, 0, self._text(f"{key}.api_config.base_url", address), options
            )
        ports = service.get("ports")
        first = ports[0] if isinstance(ports, list) and ports else ports
        return _Service(
            CLASSES[connector],
            self._number(f"{key}.ports", first, lowest=1),
            self._number(f"{key}.port_increment", service.get("port_increment", 0)),
            "",
            options,
        )

    def _options(self, key: str, connector: str, variables: Any) -> dict[str, Any]:
        if not (isinstance(variables, list) and all(isinstance(name, str) for name in variables)):
            raise self._refuse(f"{key}.required_env", variables, "expected a list of names")
        options: dict[str, Any] = {}
        for name in variables:
            if connector == "openai-http" and name.endswith("API_KEY"):
                options["api_key"] = {"env": name}
            else:
                self._note(f"{key}.required_env: {name} has no counterpart and is left out")
        return options

    def _note(self, text: str) -> None:
        if text not in self._remarks:
            self._remarks.append(text)

    def _text(self, key: str, text: str) -> str:
        """Text with ``${VAR:-default}`` replaced by its defaults, each one remarked on."""

        def default(match: re.Match[str]) -> str:
            if match[2] is None:
                raise self._refuse(key, text, f"{match[1]} has no default; write the value")
            self._note(
                f"{key}: the default {match[2]!r} of {match[1]} is written; that variable is not read here"
            )
            return match[2]

        return _VARIABLE.sub(default, text)

    def _number(self, key: str, value: Any, *, lowest: int = 0) -> int:
        text = self._text(key, value) if isinstance(value, str) else value
        if isinstance(text, str) and text.isascii() and text.isdigit():
            text = int(text[:9])
        if not isinstance(text, int) or isinstance(text, bool) or not lowest <= text <= 65535:
            raise self._refuse(key, value, f"expected a number from {lowest} to 65535")
        return text
