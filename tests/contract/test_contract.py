"""The contract over every pair of connector and twin that can be served in memory: deterministic, in virtual time."""

from __future__ import annotations

import pytest

from simulator.contract import ContractRun, contract_runs


@pytest.mark.parametrize("run", [run for run in contract_runs() if run.dialect.streams], ids=str)
def test_contract(run: ContractRun) -> None:
    """Every case holds for every pair that does not declare why it cannot."""
    skip = run.skip()
    if skip is not None:
        pytest.skip(str(skip))
    run()
