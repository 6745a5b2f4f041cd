"""Ask before running again: what became of a job that an earlier lease had handed to a service?

The stored reference names the connector, the endpoint and the service's own reference, because the next owner may be
bound to another instance than the one that holds the work.
"""

from __future__ import annotations

import enum
import logging
from dataclasses import dataclass
from urllib.parse import quote, unquote

from gateway.connector import Connector, JobResult, ServicePhase
from gateway.errors import FaultClass, JobFault
from gateway.models import Epoch, Grant
from gateway.retry import ACTIONS, Action

log = logging.getLogger(__name__)

#: Separates the parts of a stored reference; none of them may contain it (keys and URLs don't).
_SEPARATOR = " "
_UNCHARGED = frozenset({Action.SNOOZE, Action.RELEASE})


@dataclass(frozen=True, slots=True)
class Reference:
    """Where a job was handed to a service.

    Attributes:
        connector_key: which connector speaks to the endpoint.
        endpoint: base URL of the instance that holds the work.
        name: the job's name at the service.
        service_id: the instance's id in the registry, by which it is found again when it has moved; empty when its
            address comes from elsewhere.
    """

    connector_key: str
    endpoint: str
    name: str
    service_id: str = ""

    def stored(self) -> str:
        """The text kept in the store by ``attach``; the id stands where a URL has its fragment."""
        known_as = f"#{quote(self.service_id, safe='')}" if self.service_id else ""
        return _SEPARATOR.join((self.connector_key, self.endpoint + known_as, self.name))

    @classmethod
    def read(cls, stored: str) -> Reference | None:
        """Read back a stored reference; None for none."""
        connector_key, _, rest = stored.partition(_SEPARATOR)
        address, _, name = rest.partition(_SEPARATOR)
        endpoint, _, known_as = address.partition("#")
        return cls(connector_key, endpoint, name, unquote(known_as)) if name else None

    def same_work(self, other: Reference | None) -> bool:
        """Whether both name one piece of work, wherever its instance was when each was written."""
        if other is None or (self.connector_key, self.name) != (other.connector_key, other.name):
            return False
        if self.service_id and other.service_id:
            return self.service_id == other.service_id
        return self.endpoint == other.endpoint


def reference_name(grant: Grant, *, fresh: bool = False) -> str:
    """Name to give a job at a service.

    The same for all leases of one attempt, so that a service which deduplicates runs it once even when a lost
    submission arrives late; ``fresh`` adds the epoch where the old name is spent (cancelled or failed there).
    """
    name = f"{grant.job_id}.{grant.attempts + 1}"
    return f"{name}.{fresh_suffix(grant.epoch)}" if fresh else name


def fresh_suffix(epoch: Epoch) -> str:
    """Short, unique per lease of a job."""
    return f"{epoch:x}"


class Finding(enum.Enum):
    """What the service says about earlier work."""

    COLLECT = "collect"
    FOLLOW = "follow"
    RUN = "run"
    RUN_FRESH = "run_fresh"


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """What to do now; ``result`` comes with COLLECT."""

    finding: Finding
    result: JobResult | None = None


async def reconcile(connector: Connector, name: str) -> Reconciliation:
    """Ask the service what became of a job.

    Args:
        connector: bound to the endpoint that holds the work.
        name: the job's name there.

    Raises:
        JobFault: the work failed there (its own class), or the service could not be asked (UNAVAILABLE, so that
            the job goes back uncharged and is asked about again).
    """
    if not connector.capabilities.query:
        return Reconciliation(Finding.RUN)
    try:
        status = await connector.query(name)
    except JobFault as fault:
        raise JobFault(FaultClass.UNAVAILABLE, f"cannot ask for {name}: {fault}") from fault
    if status.phase is ServicePhase.COMPLETED:
        assert status.result is not None, f"{connector.key}: completed without a result"
        return Reconciliation(Finding.COLLECT, status.result)
    if status.phase is ServicePhase.FAILED:
        assert status.fault is not None, f"{connector.key}: failed without a fault"
        if ACTIONS[status.fault.fault_class] in _UNCHARGED:
            # Nothing was charged, so the name did not change: the old refusal would be found again for ever.
            return Reconciliation(Finding.RUN_FRESH)
        raise status.fault
    if status.phase is ServicePhase.CANCELLED:
        return Reconciliation(Finding.RUN_FRESH)
    if status.phase is ServicePhase.UNKNOWN:
        return Reconciliation(Finding.RUN)
    if connector.capabilities.reattach:
        return Reconciliation(Finding.FOLLOW)
    if connector.capabilities.cancel:
        log.info("%s runs at %s but cannot be followed: cancelling it", name, connector.setup.endpoint)
        await connector.cancel(name)
    return Reconciliation(Finding.RUN_FRESH)
