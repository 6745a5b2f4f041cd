"""``simulator contract``: the suite for people and scripts who do not use pytest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from simulator.contract import CASES

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "press"
LIMIT_S = 60.0
DEAF = """
from dataclasses import replace

from gateway.connectors.simulation.http import SimulationHTTPConnector
from simulator.dialects.catalogue import dialect

DEAF = replace(dialect("simulation-http"), options={"stall_s": 10_000.0})
NOTHING = 1
"""


def call(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simulator.cli", "contract", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1", "TERM": "dumb"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def test_all_cases_of_one_connector_for_scripts() -> None:
    """One JSON value has every case with its promise, its verdict, and for what is left out the need and the reason."""
    done = call("--connector", "simulation-http", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = json.loads(done.stdout)
    assert [line["case"] for line in lines] == list(CASES)
    left = {line["case"]: line["detail"] for line in lines if line["verdict"] == "left out"}
    assert left == {
        "no_secret_in_errors": "needs credentials: the simulated service asks for no credentials",
    }


def test_a_broken_promise_is_exit_code_1(tmp_path: Path) -> None:
    """A dialect from a file of the user's own folder; what is broken is told with its promise."""
    (tmp_path / "deaf.py").write_text(DEAF, "utf-8")
    words = ("--dialect", "deaf:DEAF", "--case", "success", "--case", "half_open", "--seed", "3")
    done = call(*words, folder=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    broken, conclusion = done.stdout.splitlines()
    assert broken.startswith("broken: simulation-http: half_open: AssertionError: nothing was noticed within")
    assert CASES["half_open"].promise in broken
    assert conclusion == "simulation-http: 1 holds, 1 broken, 0 left out"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--connector", "nobody-http"), "no connector 'nobody-http' in the contract: known are "),
        (("--case", "succes"), "no case 'succes' in the contract: known are "),
        (("--dialect", "nowhere:X"), "nowhere:X: No module named 'nowhere'"),
        (("--dialect", "simulator"), "simulator: "),
        (("--dialect", "simulator.cli:EXIT_USAGE"), "not a Dialect; written as module:NAME"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(words: tuple[str, ...], said: str) -> None:
    """Whatever cannot be found is said in one line, and nothing is run."""
    done = call(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert said in done.stderr


def test_help_teaches_by_example() -> None:
    """Help shows commands to copy and the exit codes."""
    shown = call("--help").stdout
    assert "simulator contract --dialect press_twin:PRESS" in shown
    assert "Exit codes" in shown
