"""Running pytest in a process of its own, as a user of the plugin would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIMIT_S = 80.0
Run = Callable[..., subprocess.CompletedProcess[str]]


def blocks(page: str) -> dict[str, str]:
    """The files that a page of the documentation holds, by name."""
    text = (ROOT / "docs" / page).read_text("utf-8")
    found = re.findall(r"^```\w+\n# file: (\S+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    return dict(found)


@pytest.fixture
def run_pytest(tmp_path: Path) -> Run:
    """Write files into an empty project and run pytest there, warnings being errors."""

    def run(
        files: dict[str, str],
        *arguments: str,
        plugins: tuple[str, ...] = ("simulator.pytest_plugin",),
        installed: Path | None = None,
        packages: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        project = tmp_path / "project"
        project.mkdir(exist_ok=True)
        for name, text in files.items():
            (project / name).write_text(text, "utf-8")
        command = [sys.executable, "-W", "error", "-m", "pytest", "-p", "no:cacheprovider", "-W", "error"]
        # By name, as the entry point would: so the tests say the same of a checkout and of an installed package.
        command += [word for name in plugins for word in ("-p", name)]
        environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
        if installed is None:
            folders = [str(folder) for folder in (packages, ROOT) if folder is not None]
            environment |= {"PYTHONPATH": os.pathsep.join(folders), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        else:  # as an installed package, found by its entry point
            environment |= {"PYTHONPATH": os.pathsep.join([str(installed), str(ROOT)])}
        return subprocess.run(
            [*command, "--strict-markers", *arguments],
            cwd=project,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )

    return run
