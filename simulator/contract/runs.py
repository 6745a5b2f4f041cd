"""Every case against every pair of connector and twin: what is run, what is left out, and for which reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import trio
import trio.testing

from gateway.connector import Connector
from gateway.connectors.registry import default_registry
from simulator.contract import control, outcomes, trouble
from simulator.contract.bench import open_bench
from simulator.contract.case import CAPABILITIES, CASES, ContractCase
from simulator.dialects.catalogue import DIALECTS, Dialect
from simulator.scheduling import deterministic_scheduler

SEED = 0
#: The modules that hold the cases; importing them fills ``CASES``.
MODULES = (outcomes, trouble, control)


@dataclass(frozen=True, slots=True)
class Skip:
    """Why a case says nothing about a pair: the first need that is not met, and who says so."""

    need: str
    reason: str

    def __str__(self) -> str:
        return f"needs {self.need}: {self.reason}"


@dataclass(frozen=True, slots=True)
class ContractRun:
    """One case against one pair; call it to run it.

    Attributes:
        dialect: what is spoken.
        key: the connector's key.
        case: what must hold.
        make: the connector's class; by default the one installed under the key.
    """

    dialect: Dialect
    key: str
    case: ContractCase
    make: type[Connector] | None = None

    def __str__(self) -> str:
        return f"{self.key}-{self.case.name}"

    def connector(self) -> type[Connector]:
        """The connector's class.

        Raises:
            ConnectorError: nothing is installed under the key.
        """
        return self.make or default_registry().load(self.key)

    def skip(self) -> Skip | None:
        """Why this run is left out; None when it is not."""
        lacks = lacking(self.dialect, self.key, self.connector())
        return next((Skip(need, lacks[need]) for need in self.case.needs if need in lacks), None)

    def __call__(self, seed: int = SEED) -> None:
        """Run the case on a fresh twin, in virtual time where the twin allows it; blocks.

        Raises:
            AssertionError: the promise does not hold.
            ConnectorError: nothing is installed under the key.
        """
        clock = trio.testing.MockClock(autojump_threshold=0) if self.dialect.streams else None
        with deterministic_scheduler(seed):
            failure = trio.run(_show, self, seed, clock=clock)
        if failure is not None:
            failure.add_note(f"contract: {self.case.promise}")
            raise failure


async def _show(run: ContractRun, seed: int) -> Exception | None:
    """Run the case; what it raises is handed over instead of being wrapped on its way out of the bench's nursery."""
    failure: Exception | None = None
    async with open_bench(run.dialect, run.connector(), seed=seed) as bench:
        try:
            await run.case.check(bench)
        except Exception as error:
            failure = error
    return failure


def lacking(dialect: Dialect, key: str, make: type[Connector]) -> dict[str, str]:
    """What a pair cannot do, with the reasons: what the connector does not declare, and what the dialect cannot."""
    declared = {
        name: f"{key} does not declare it" for name in CAPABILITIES if not getattr(make.capabilities, name)
    }
    return {**declared, **dialect.cannot, **dialect.cannot_by_connector.get(key, {})}


def contract_runs(
    *dialects: Dialect, keys: Sequence[str] = (), make: type[Connector] | None = None
) -> list[ContractRun]:
    """Every case against every connector of some dialects.

    Args:
        dialects: by default all of the catalogue.
        keys: only these connectors.
        make: class of the connector, for one that is not installed.
    """
    return [
        ContractRun(dialect, key, case, make)
        for dialect in dialects or DIALECTS
        for key in dialect.connectors
        if not keys or key in keys
        for case in CASES.values()
    ]
