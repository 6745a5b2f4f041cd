"""The press connector keeps the contract that every connector of the gateway is held to."""

import pytest
from press_twin import PRESS


@pytest.mark.gateway_contract(PRESS)
def test_contract(contract_case):
    """One test per case; what the press cannot show is skipped, with the reason."""
    contract_case()
