"""The fleet of the plugin plays whatever service its connector speaks to."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import Run

COMFY = """
import pytest

from gateway.connectors.simulation.wire import WorkPayload
from simulator.dialects.catalogue import dialect


@pytest.mark.gateway_fleet(connector="comfyui-websocket", gateways=2)
@pytest.mark.gateway_faults(lost_completion_rate=0.5)
def test_work_outlives_its_gateway(gateway_fleet):
    comfy = dialect("comfyui")
    short = [gateway_fleet.submit(comfy.payload_for(WorkPayload(duration_s=0.2))) for _ in range(4)]
    long_one = gateway_fleet.submit(comfy.payload_for(WorkPayload(duration_s=3.0, result="mark")))
    gateway_fleet.kill(gateway_fleet.owner(long_one))
    views = gateway_fleet.wait(*short, long_one)
    assert {view.state for view in views} == {"completed"}
    assert gateway_fleet.executions(long_one) == 1
"""


@pytest.mark.chaos
def test_a_fleet_of_comfyui(run_pytest: Run) -> None:
    """Real gateways on a simulated ComfyUI: one is killed, its work is followed and not done again."""
    done = run_pytest({"test_comfy.py": COMFY}, "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
