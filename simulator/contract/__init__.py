"""The contract that every connector is held to: one suite of cases over every pair of connector and simulated twin.

A case is a small coroutine with one sentence that must hold (``simulator.contract.case``), run on a bench: a fresh
connector against a fresh twin, in virtual time where the twin can be served in memory. A case names the capabilities
it needs; one that a pair declares not to have leaves the case out, and nothing else does.

With pytest: ``docs/connectors.md``. Without::

    for run in contract_runs(MY_DIALECT):
        if run.skip() is None:
            run()
"""

from simulator.contract.case import CASES, ContractCase
from simulator.contract.recorder import RecordingJob
from simulator.contract.runs import ContractRun, Skip, contract_runs
from simulator.dialects.catalogue import Dialect

__all__ = ["CASES", "ContractCase", "ContractRun", "Dialect", "RecordingJob", "Skip", "contract_runs"]
