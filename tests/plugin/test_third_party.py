"""The example package: installed as a stranger's would be, found by name, and held to the same contract as ours."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from gateway.connectors.registry import BUILTIN_KEYS, ENTRY_POINT_GROUP
from simulator.contract import CASES
from tests.plugin.conftest import LIMIT_S, ROOT, Run, blocks

EXAMPLE = ROOT / "docs" / "examples" / "press"
#: What the press declares that it lacks, apart from what its connector does not declare.
EXCUSES = {
    "stream", "progress", "credentials", "disconnect_rate", "half_open_rate", "lost_completion_rate",
    "duplicate_event_rate", "out_of_order_rate", "event_after_terminal_rate",
}  # fmt: skip


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with the example as an installer leaves it: its modules, and the metadata with its entry points."""
    target = tmp_path / "site"
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text("utf-8"))
    name, version = project["project"]["name"], project["project"]["version"]
    metadata = target / f"{name.replace('-', '_')}-{version}.dist-info"
    metadata.mkdir(parents=True)
    for module in project["tool"]["hatch"]["build"]["targets"]["wheel"]["include"]:
        shutil.copy(EXAMPLE / module, target)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", "utf-8")
    points = project["project"]["entry-points"]
    lines = [
        line for group in points for line in (f"[{group}]", *(f"{k} = {v}" for k, v in points[group].items()))
    ]
    assert f"[{ENTRY_POINT_GROUP}]" in lines
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n", "utf-8")
    return target


def connectors(path: Path | None) -> list[dict[str, object]]:
    """What ``gateway connectors --json`` tells, with a folder of installed packages."""
    folders = [str(path)] if path is not None else []
    done = subprocess.run(
        [sys.executable, "-m", "gateway.cli", "connectors", "--json"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*folders, str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
    )
    listed: list[dict[str, object]] = json.loads(done.stdout)
    return listed


def test_an_installed_connector_is_found_by_its_key(installed: Path) -> None:
    """It stands beside ours with its service and what it can do; without the package it does not."""
    (press,) = [entry for entry in connectors(installed) if entry["key"] == "press-http"]
    assert (press["service"], press["class"]) == ("press", "press.PressHTTPConnector")
    can = press["capabilities"]
    assert can == {"query": True, "cancel": True, "stream": False, "reattach": True, "dedupe": True}
    assert [entry["key"] for entry in connectors(None)] == sorted(BUILTIN_KEYS)


def test_the_example_keeps_the_contract(installed: Path, run_pytest: Run) -> None:
    """The documented test passes for the installed package, and skips exactly what the press declares."""
    test = (EXAMPLE / "test_press.py").read_text("utf-8")
    done = run_pytest({"test_press.py": test}, "-q", "-rs", packages=installed)
    assert done.returncode == 0, done.stdout + done.stderr
    passed, skipped = (int(re.search(rf"(\d+) {word}", done.stdout)[1]) for word in ("passed", "skipped"))  # type: ignore[index]
    assert passed + skipped == len(CASES)
    assert set(re.findall(r"needs (\w+):", done.stdout)) == EXCUSES
    assert skipped == sum(bool(EXCUSES & set(case.needs)) for case in CASES.values())


def test_a_broken_connector_fails_with_the_promise(installed: Path, run_pytest: Run) -> None:
    """A connector class of the test's own is held to the contract too; the failure names what does not hold."""
    test = """
import pytest
from press import PressHTTPConnector
from press_twin import PRESS


class Deaf(PressHTTPConnector):
    async def cancel(self, reference):
        pass


@pytest.mark.gateway_contract(PRESS, connector=Deaf)
def test_contract(contract_case):
    contract_case()
"""
    done = run_pytest({"test_deaf.py": test}, "-q", "-k", "timeout_ends_the_work", packages=installed)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "A job that runs out of time is stopped at the service as well." in done.stdout


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ("", "contract_case needs the marker gateway_contract with dialects"),
        (
            "@pytest.mark.gateway_contract('press')",
            "contract_case needs the marker gateway_contract with dialects",
        ),
        ("@pytest.mark.gateway_contract(PRESS)", "unknown connector 'press-http': known are "),
    ],
)
def test_a_wrong_use_is_one_clear_line(marker: str, said: str, run_pytest: Run) -> None:
    """Without dialects, or with a connector that is not installed, collection says what to do."""
    test = f"import pytest\nfrom press_twin import PRESS\n\n\n{marker}\ndef test_contract(contract_case):\n    pass\n"
    twin = (EXAMPLE / "press_twin.py").read_text("utf-8")
    done = run_pytest({"test_press.py": test, "press_twin.py": twin}, "-q")
    assert done.returncode != 0
    assert said in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["press.py", "press_twin.py", "test_press.py", "pyproject.toml"])
def test_the_page_shows_the_package(name: str) -> None:
    """What docs/connectors.md prints is the package that the tests above install."""
    assert blocks("connectors.md")[name] == (EXAMPLE / name).read_text("utf-8")


def test_forty_lines() -> None:
    """The connector of the page that promises forty lines has no more."""
    text = (EXAMPLE / "press.py").read_text("utf-8")
    assert len(text[text.index("class ") :].splitlines()) <= 40


def test_the_page_lists_every_case() -> None:
    """Every promise of the contract stands in docs/connectors.md, with what it needs, and no other does."""
    page = (ROOT / "docs" / "connectors.md").read_text("utf-8")
    rows = [
        f"| `{case.name}` | {case.promise} | {', '.join(f'`{need}`' for need in case.needs)} |"
        for case in CASES.values()
    ]
    start = page.index("|---|---|---|\n", page.index("## What the contract asks")) + len("|---|---|---|\n")
    assert page[start:].splitlines() == rows
