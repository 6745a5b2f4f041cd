"""Whose configuration a certified fleet runs: the user's own, with the endpoints that we can play replaced."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.config import GatewayConfig, WorkerConfig, load_config
from gateway.connectors.registry import default_registry
from gateway.connectors.simulation.wire import WorkPayload
from gateway.errors import ConfigError
from protocols.base import Endpoint
from simulator.dialects.catalogue import DIALECTS, dialect

SLOTS_DEFAULT = 4
#: What plays a service that the catalogue does not know: a connector under test against the simulated service.
DIALECT_DEFAULT = "simulation-http"


def simulated_keys() -> dict[str, str]:
    """Connectors whose service the simulator has, each with its dialect."""
    return {key: dialect.name for dialect in DIALECTS for key in dialect.connectors}


@dataclass(frozen=True, slots=True)
class ServiceAddress:
    """One simulated instance as the gateways are told of it."""

    url: str
    instance: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSetup:
    """What every gateway process of a fleet runs.

    Attributes:
        config: the merged configuration.
        source: where it came from, for people.
        places: simulated instance, by number, of each worker that is simulated.
        left: workers that keep their endpoint, because the simulator has no such service.
        kinds: what jobs are submitted for, in turns: kinds of service, each with the dialect that makes the payloads.
        dialects: what each simulated instance speaks, by number.
        asked: every simulated connector asks a service before it runs a job again, so nothing is done twice.
    """

    config: GatewayConfig
    source: str
    places: Mapping[str, int]
    left: tuple[str, ...]
    kinds: tuple[tuple[str, str], ...]
    dialects: tuple[str, ...]
    asked: bool = True

    @property
    def service(self) -> str:
        """The first kind of service that jobs are submitted for."""
        return self.kinds[0][0]

    def payload(self, service: str, work: WorkPayload) -> Any:
        """The payload of a job for a kind of service that is to be this work."""
        return dialect(dict(self.kinds)[service]).payload_for(work)

    @property
    def instances(self) -> int:
        """How many simulated instances it needs."""
        return len(self.dialects)

    def slots(self, gateways: int) -> int:
        """Executions at once that each instance must take, so that no claim ever waits for a slot there."""
        needed = [0] * self.instances
        for name, place in self.places.items():
            needed[place] += self.config.workers[name].slots
        return max([1, *needed]) * gateways

    def values(
        self, machine: str, redis_url: str, data_dir: Path, services: Sequence[ServiceAddress]
    ) -> dict[str, Any]:
        """The configuration of one gateway process, as written into its file."""
        values = self.config.model_dump(mode="json")
        values |= {"machine": machine, "redis_url": redis_url, "data_dir": str(data_dir)}
        # A rehearsal does not belong into anybody's traces, and a fixed port serves one process only.
        values["telemetry"] |= {"otlp_endpoint": "", "console": False}
        values["api"] |= {"port": None}
        for name, place in self.places.items():
            # The path belongs to the interface (``/v1``), not to the machine that is replaced.
            endpoint = self.config.workers[name].endpoint
            path = Endpoint.parse(endpoint).path if endpoint else ""
            values["workers"][name] |= {
                "endpoint": services[place].url + path,
                "instance": services[place].instance,
                "endpoints": [],
                "base_url": "",
                "base_port": None,
                "discover": None,
                # A candidate has an address of its own, or speaks otherwise than what is simulated here.
                "rollout": None,
            }
        return values


def builtin_setup(
    services: int, *, slots: int = SLOTS_DEFAULT, connector: str = "simulation-http"
) -> FleetSetup:
    """Default settings with one worker per simulated instance, in the connector's dialect.

    Args:
        services: instances.
        slots: jobs at once of each worker.
        connector: its key.

    Raises:
        ConnectorError: unknown key.
    """
    workers = {
        f"{connector.partition('-')[0]}-gpu{number}": {
            "connector": connector,
            # A placeholder of its own for each, replaced by the address of a simulated instance.
            "endpoint": f"http://127.0.0.1:{number + 1}",
            "slots": slots,
        }
        for number in range(services)
    }
    config = load_config(overrides={"queue": "certify", "workers": workers}, environment={})
    return setup_of(config, "built in", simulated={connector: DIALECT_DEFAULT, **simulated_keys()})


def file_setup(path: Path) -> FleetSetup:
    """The user's configuration: this file and the ``GATEWAY_…`` variables.

    Raises:
        ConfigError: it is wrong, or has no worker whose service can be simulated.
        ConnectorError: a worker's connector is unknown.
    """
    return setup_of(load_config(path), str(path), simulated=simulated_keys())


def setup_of(config: GatewayConfig, source: str, *, simulated: Mapping[str, str]) -> FleetSetup:
    """Divide the workers of a configuration: workers of one endpoint and dialect share one simulated instance.

    Args:
        config: the merged configuration.
        source: where it came from.
        simulated: connector keys whose endpoints are replaced, each with the dialect spoken there.

    Raises:
        ConfigError: no worker can be simulated.
        ConnectorError: a worker's connector is unknown.
    """
    registry = default_registry()
    instances: dict[tuple[str, str], int] = {}
    places: dict[str, int] = {}
    kinds: dict[str, str] = {}
    asked = True
    for name, worker in config.workers.items():
        connector = registry.load(worker.connector)
        spoken = simulated.get(worker.connector)
        if spoken is not None:
            places[name] = instances.setdefault((_own_place(name, worker), spoken), len(instances))
            kinds.setdefault(connector.service, spoken)
            asked = asked and connector.capabilities.query
    if not places:
        raise ConfigError(_nothing(source, config.workers, simulated))
    return FleetSetup(
        config=config,
        source=source,
        places=places,
        left=tuple(name for name in config.workers if name not in places),
        kinds=tuple(kinds.items()),
        dialects=tuple(spoken for _, spoken in instances),
        asked=asked,
    )


def _own_place(name: str, worker: WorkerConfig) -> str:
    """What tells one worker's service from another's: its address, or the worker's name where it is discovered."""
    return worker.endpoint or f"of {name}"


def _nothing(source: str, workers: Mapping[str, WorkerConfig], simulated: Mapping[str, str]) -> str:
    found = (
        ", ".join(f"{name} has {worker.connector}" for name, worker in workers.items()) or "there are none"
    )
    return (
        f"{source}: workers: no connector with a simulated service ({', '.join(sorted(simulated))}); {found}"
    )


def child_environment(
    extra_path: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Variables of the fleet's processes: our import path, and none of the user's ``GATEWAY_…`` settings, which
    are in their files already (and would lead them to another Redis).

    Args:
        extra_path: folders to import from first.
        environment: our own variables; the process's if None.
    """
    ours = os.environ if environment is None else environment
    kept = {name: value for name, value in ours.items() if not name.startswith("GATEWAY_")}
    path = [*extra_path, *(entry or str(Path.cwd()) for entry in sys.path)]
    return kept | {"PYTHONPATH": os.pathsep.join(path)}
