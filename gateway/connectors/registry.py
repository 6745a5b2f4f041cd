"""Which connectors exist: one literal list of our own, third parties through the entry-point group, no magic.

The naming law: key ``comfyui-websocket`` ⇔ module ``gateway.connectors.comfyui.websocket`` ⇔ class
``ComfyUIWebSocketConnector``. Everything is resolved before the first job is claimed; a duplicate or unknown key fails
then, listing what is known.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points

from gateway.connector import Connector
from gateway.errors import ConnectorError

ENTRY_POINT_GROUP = "gateway.connectors"

#: How the parts of a key are spelled in a class name: acronyms in capitals, product names as their makers write them.
SPELLINGS = {
    "a1111": "A1111",
    "comfyui": "ComfyUI",
    "grpc": "GRPC",
    "http": "HTTP",
    "openai": "OpenAI",
    "openinference": "OpenInference",
    "simulation": "Simulation",
    "websocket": "WebSocket",
}

#: Connectors of this package.
BUILTIN_KEYS = (
    "a1111-http",
    "comfyui-http",
    "comfyui-websocket",
    "openai-http",
    "openinference-grpc",
    "simulation-grpc",
    "simulation-http",
    "simulation-websocket",
)


@dataclass(frozen=True, slots=True)
class ConnectorSpec:
    """Where a connector's class is found: ``module`` and ``class_name``, loaded on first use."""

    key: str
    module: str
    class_name: str

    def load(self) -> type[Connector]:
        """Import the class and check that it is what its key says.

        Raises:
            ConnectorError: it cannot be imported, is no connector, or has another key.
        """
        try:
            found = getattr(importlib.import_module(self.module), self.class_name)
        except (ImportError, AttributeError) as error:
            raise ConnectorError(
                f"connector {self.key!r}: {self.module}:{self.class_name}: {error}"
            ) from error
        if not (isinstance(found, type) and issubclass(found, Connector)):
            raise ConnectorError(
                f"connector {self.key!r}: {self.module}:{self.class_name} is no Connector class"
            )
        if found.key != self.key:
            raise ConnectorError(f"connector {self.key!r}: its class says key {found.key!r}")
        return found


def builtin_spec(key: str) -> ConnectorSpec:
    """Module and class that the naming law prescribes for a key of ours."""
    service, protocol = key.split("-")
    class_name = f"{SPELLINGS[service]}{SPELLINGS[protocol]}Connector"
    return ConnectorSpec(key, f"gateway.connectors.{service}.{protocol}", class_name)


class Registry:
    """The known connectors of one process."""

    def __init__(self) -> None:
        self._specs: dict[str, ConnectorSpec] = {}

    def add(self, spec: ConnectorSpec) -> None:
        """Make one connector known.

        Raises:
            ConnectorError: the key is taken.
        """
        taken = self._specs.get(spec.key)
        if taken is not None:
            raise ConnectorError(
                f"connector key {spec.key!r} is claimed by {taken.module}:{taken.class_name} "
                f"and by {spec.module}:{spec.class_name}"
            )
        self._specs[spec.key] = spec

    @property
    def keys(self) -> list[str]:
        return sorted(self._specs)

    def load(self, key: str) -> type[Connector]:
        """The class behind a key.

        Raises:
            ConnectorError: unknown key, or the class cannot be loaded.
        """
        spec = self._specs.get(key)
        if spec is None:
            raise ConnectorError(f"unknown connector {key!r}: known are {', '.join(self.keys)}")
        return spec.load()

    def services(self) -> dict[str, list[str]]:
        """Connector keys by the service they speak to."""
        services: dict[str, list[str]] = {}
        for key in self.keys:
            services.setdefault(self.load(key).service, []).append(key)
        return services


def third_party_specs() -> Iterable[ConnectorSpec]:
    """Connectors that installed packages offer through the entry-point group."""
    for point in entry_points(group=ENTRY_POINT_GROUP):
        module, _, class_name = point.value.partition(":")
        yield ConnectorSpec(point.name, module, class_name)


def default_registry() -> Registry:
    """Our own connectors and those of installed packages.

    Raises:
        ConnectorError: two packages claim one key.
    """
    registry = Registry()
    for key in BUILTIN_KEYS:
        registry.add(builtin_spec(key))
    for spec in third_party_specs():
        registry.add(spec)
    return registry


def known_services() -> list[str]:
    """Services that some installed connector speaks to."""
    return sorted(default_registry().services())
