"""The example project of the documentation, run as it stands."""

from __future__ import annotations

import pytest

from tests.plugin.conftest import Run, blocks


@pytest.mark.chaos
def test_the_documented_project_passes(run_pytest: Run) -> None:
    """Connector and tests of docs/testing-your-connector.md run green for a given seed, warnings being errors."""
    files = blocks("testing-your-connector.md")
    assert set(files) == {"render_farm.py", "test_render_farm.py"}
    done = run_pytest(files, "-q", "--gateway-seeds", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
