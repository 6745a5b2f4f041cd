"""Where a worker's service is: configuration, then the registry, then a template (pure; the watcher is elsewhere).

Ids and names are labels: an entry is chosen by what it says of itself, never by what its id looks like.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gateway.config import WorkerConfig
from gateway.errors import ConfigError
from gateway.matching import unmet, validate_requires
from gateway.registration import RegisteredService
from protocols.base import Endpoint
from protocols.errors import EndpointError


class PlaceOrigin(enum.StrEnum):
    """Which step of the resolution found an endpoint."""

    CONFIG = "config"
    REGISTRY = "registry"
    TEMPLATE = "template"


@dataclass(frozen=True, slots=True)
class Place:
    """One endpoint of a worker.

    Attributes:
        url: base address, in one spelling, so that equal addresses compare equal.
        instance: own name that the instance must have; empty when nobody said.
        origin: which step found it.
        service_id: its id in the registry; empty elsewhere.
        capabilities: what the registry says it can do.
    """

    url: str
    instance: str = ""
    origin: PlaceOrigin = PlaceOrigin.CONFIG
    service_id: str = ""
    capabilities: Mapping[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> tuple[str, str]:
        """What makes it the same endpoint: an address, and who answers there."""
        return self.url, self.instance


@dataclass(frozen=True, slots=True)
class Resolution:
    """A worker's endpoints, and why there are none (or not those one might expect)."""

    places: tuple[Place, ...]
    problem: str = ""


def asks_registry(worker: WorkerConfig) -> bool:
    """Whether a worker's endpoints may come from the registry.

    A bare template is complete in itself: were it matched against every entry, the second service to register would
    make each worker's choice ambiguous.
    """
    if worker.endpoint or worker.endpoints:
        return False
    return bool(worker.discover is not None or worker.instance or not worker.base_url)


def configured(name: str, worker: WorkerConfig) -> tuple[Place, ...]:
    """The explicit endpoints of a worker; empty when it has none.

    Raises:
        ConfigError: one of them is no address, or stands there twice.
    """
    key = "endpoint" if worker.endpoint else "endpoints"
    texts = (worker.endpoint,) if worker.endpoint else worker.endpoints
    places = tuple(Place(_url(text, f"workers.{name}.{key}"), worker.instance) for text in texts)
    if len({place.url for place in places}) < len(places):
        raise ConfigError(f"workers.{name}.{key}: an address stands there twice")
    return places


def candidate_places(name: str, worker: WorkerConfig) -> tuple[Place, ...]:
    """Where a rollout's candidate is: its own addresses, else those that the configuration gives the worker.

    Raises:
        ConfigError: an address is none, or the worker's come from the registry and the candidate has none.
    """
    rollout = worker.rollout
    if rollout is None:
        return ()
    if rollout.addresses:
        return tuple(Place(_url(text, f"workers.{name}.rollout.endpoint")) for text in rollout.addresses)
    places = configured(name, worker) or template(name, worker)
    if not places:
        raise ConfigError(
            f"workers.{name}.rollout.endpoint: needed, since the worker's comes from the registry"
        )
    return places


def template(name: str, worker: WorkerConfig) -> tuple[Place, ...]:
    """The endpoint that ``base_url`` gives; empty when there is none.

    Raises:
        ConfigError: it is no address.
    """
    if worker.base_port is None:
        return ()
    text = worker.base_url.replace("{port}", str(worker.base_port + worker.index))
    return (Place(_url(text, f"workers.{name}.base_url"), worker.instance, PlaceOrigin.TEMPLATE),)


def _url(text: str, where: str) -> str:
    try:
        return Endpoint.parse(text).url
    except EndpointError as error:
        raise ConfigError(f"{where}: {error}") from None


def current(registry: Sequence[RegisteredService]) -> tuple[list[RegisteredService], dict[str, str]]:
    """The entries that hold, and by whom each other one was overtaken.

    An instance that moved registers anew, and so does the one that took its place; until the older entries lapse, the
    newest of those with one address, and of those with one instance's name, is right.
    """
    newest_first = sorted(registry, key=lambda service: (-service.since_ms, service.id))
    holding: list[RegisteredService] = []
    overtaken: dict[str, str] = {}
    addresses: dict[tuple[str, str, str], str] = {}
    names: dict[tuple[str, str, str, str], str] = {}
    for service in newest_first:
        entry = service.entry
        name = (entry.service, entry.protocol, entry.machine, entry.instance)
        # One address may serve several protocols, and speak like several services.
        address = (entry.service, entry.protocol, spelled(entry.url))
        taken = addresses.get(address) or (names.get(name) if entry.instance else None)
        if taken is not None:
            overtaken[service.id] = taken
            continue
        addresses[address] = service.id
        names[name] = service.id
        holding.append(service)
    return sorted(holding, key=lambda service: service.id), overtaken


def spelled(url: str) -> str:
    """An address in the one spelling by which addresses are compared; what is none stays as it is."""
    try:
        return Endpoint.parse(url).url
    except EndpointError:
        return url


def resolve(
    name: str, worker: WorkerConfig, connector_key: str, registry: Sequence[RegisteredService]
) -> Resolution:
    """A worker's endpoints now.

    Args:
        name: the worker's name, for messages.
        worker: what the operator asked for.
        connector_key: ``service-protocol``: only entries of that service and protocol can serve it.
        registry: the living entries.

    Raises:
        ConfigError: an address in the configuration is wrong; nothing in the registry raises.
    """
    explicit = configured(name, worker)
    if explicit:
        return Resolution(explicit)
    problem = ""
    if asks_registry(worker):
        found = _from_registry(worker, connector_key, registry)
        if found.places:
            return found
        problem = found.problem
    fallback = template(name, worker)
    return Resolution(fallback, "" if fallback else problem)


def _from_registry(
    worker: WorkerConfig, connector_key: str, registry: Sequence[RegisteredService]
) -> Resolution:
    service, _, protocol = connector_key.partition("-")
    wanted = dict(worker.discover.match) if worker.discover else {}
    if worker.instance:
        wanted["instance"] = worker.instance
    predicates = validate_requires(wanted)
    holding, _ = current(registry)
    kin = [one for one in holding if (one.entry.service, one.entry.protocol) == (service, protocol)]
    matching = [one for one in kin if not unmet(predicates, one.entry.facts())]
    healthy = [one for one in matching if one.entry.healthy]
    if not matching:
        asked = f" with {wanted}" if wanted else ""
        others = ", ".join(f"{one.id} at {one.entry.url}" for one in kin[:5]) or "none"
        return Resolution((), f"no {service} over {protocol}{asked} is registered (registered: {others})")
    if not healthy:
        return Resolution((), f"{', '.join(one.id for one in matching[:5])}: says that it is unhealthy")
    several = worker.discover is not None and worker.discover.all
    if len(healthy) > 1 and not several:
        found = ", ".join(f"{one.id} at {one.entry.url}" for one in healthy[:5])
        return Resolution(
            (),
            f"{len(healthy)} services match: {found}; narrow instance or discover.match, or set discover.all",
        )
    return Resolution(tuple(_place(one) for one in healthy))


def _place(service: RegisteredService) -> Place:
    entry = service.entry
    return Place(
        spelled(entry.url), entry.instance, PlaceOrigin.REGISTRY, service.id, dict(entry.capabilities)
    )
