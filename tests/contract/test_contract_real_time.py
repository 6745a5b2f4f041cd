"""The contract over the pairs that need real sockets and real time; a file of its own, since it mostly waits."""

from __future__ import annotations

import pytest

from simulator.contract import ContractRun, contract_runs


@pytest.mark.parametrize("run", [run for run in contract_runs() if not run.dialect.streams], ids=str)
def test_contract(run: ContractRun) -> None:
    """Every case holds for every pair that does not declare why it cannot."""
    skip = run.skip()
    if skip is not None:
        pytest.skip(str(skip))
    run()
