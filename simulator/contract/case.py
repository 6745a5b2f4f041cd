"""What a case of the contract is, and what it may ask for."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.connector import ConnectorCapabilities
from gateway.connectors.simulation.wire import ErrorKind
from simulator.faults import KNOBS

if TYPE_CHECKING:
    from simulator.contract.bench import Bench

#: What a connector declares itself.
CAPABILITIES = tuple(item.name for item in dataclasses.fields(ConnectorCapabilities))
#: What a dialect may declare that it lacks, beside knobs (their names) and failures (``fail:<kind>``).
TRAITS = {
    "progress": "the service tells how far a job has come",
    "routing": "the service is told by headers or metadata who calls, and the twin journals it",
    "credentials": "the connector takes a credential",
    "parallel": "the service runs several jobs at once",
}
NEEDS = frozenset({*CAPABILITIES, *TRAITS, *KNOBS, *(f"fail:{kind}" for kind in ErrorKind)})

Check = Callable[["Bench"], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ContractCase:
    """One thing that must hold for every connector.

    Attributes:
        name: short, unique.
        promise: the sentence that must hold.
        needs: capabilities without which the case says nothing.
        check: shows it on a bench; raises AssertionError when it does not hold.
    """

    name: str
    promise: str
    needs: tuple[str, ...]
    check: Check


#: All cases, in the order of their definition; filled by importing the modules that hold them.
CASES: dict[str, ContractCase] = {}


def case(*needs: str) -> Callable[[Check], Check]:
    """Enter a coroutine function into the contract; its docstring is the promise.

    Args:
        needs: capabilities of the connector, traits, knobs or failures of the service, see ``NEEDS``.

    Raises:
        ValueError: an unknown need, a missing sentence, or a name taken twice.
    """
    unknown = [need for need in needs if need not in NEEDS]
    if unknown:
        raise ValueError(f"unknown needs {', '.join(unknown)}")

    def enter(check: Check) -> Check:
        add(check.__name__, inspect.getdoc(check) or "", needs, check)
        return check

    return enter


def add(name: str, promise: str, needs: tuple[str, ...], check: Check) -> None:
    """Enter one case, see :func:`case`."""
    if name in CASES:
        raise ValueError(f"two cases are called {name}")
    if not promise:
        raise ValueError(f"case {name} does not say what must hold")
    CASES[name] = ContractCase(name, " ".join(promise.split()), needs, check)
