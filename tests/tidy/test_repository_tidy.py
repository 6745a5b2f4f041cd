"""Rules of the repository as a whole: its top level, its one command, its documents' links."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from tests.tidy.sources import EVERYTHING, PACKAGES, ROOT, files, tracked

TOP_LEVEL = {
    *("pyproject.toml", "gateway", "simulator", "protocols", "tests", "benchmarks", "tox.ini"),
    *("README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "docs", ".ci", ".gitignore"),
}
ONE_COMMAND = "python3 -m venv .venv-tox"
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
DECISION = re.compile(r"docs/decisions/[\w.-]*\w")
EXTERNAL = ("https://", "http://", "mailto:", "#")


def top_level_problems(paths: list[str]) -> list[str]:
    """What is too much, and what is missing."""
    tops = {path.split("/")[0] for path in paths}
    return [f"{top}: not foreseen" for top in sorted(tops - TOP_LEVEL)] + [
        f"{top}: missing" for top in sorted(TOP_LEVEL - tops)
    ]


def shell_blocks(text: str) -> list[list[str]]:
    """The lines of each ``sh`` block of a Markdown text."""
    return [block.splitlines() for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]


def check_command(readme: str) -> str | None:
    """The command of the second block that checks everything."""
    blocks = shell_blocks(readme)
    lines = blocks[1] if len(blocks) > 1 else []
    return next((line for line in lines if line.startswith(ONE_COMMAND)), None)


def broken_links(path: Path, text: str) -> list[str]:
    """Relative links of a document that lead nowhere."""
    targets = [target.split("#")[0] for target in LINK.findall(text) if not target.startswith(EXTERNAL)]
    return [f"{path.name}: {target}" for target in targets if not (path.parent / target).exists()]


def unknown_decisions(name: str, text: str) -> list[str]:
    """Decisions that a text names and that nobody wrote."""
    return [f"{name}: {found}" for found in DECISION.findall(text) if not (ROOT / found).exists()]


def documents() -> list[Path]:
    return [*sorted(ROOT.glob("*.md")), *files("docs", "*.md")]


def test_top_level_is_fixed() -> None:
    """Exactly the agreed names stand at the top."""
    paths = tracked()
    if paths is None:
        pytest.skip("not a checkout")
    assert top_level_problems(paths) == []
    assert top_level_problems(["notes.txt", *TOP_LEVEL]) == ["notes.txt: not foreseen"]
    assert top_level_problems(sorted(TOP_LEVEL - {"LICENSE"})) == ["LICENSE: missing"]


def test_readme_and_ci_run_the_same_command() -> None:
    """What the README tells people to run is what is run for them."""
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("no README.md; the test of the top level reports it")
    command = check_command(readme.read_text(encoding="utf-8"))
    assert command is not None
    assert command in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()


def test_the_command_is_looked_for_in_the_second_block() -> None:
    """A command in another block, or in none, does not count."""
    block = f"```sh\n{ONE_COMMAND} && true\n```\n"
    assert check_command("```sh\npip install .\n```\ntext\n" + block) == f"{ONE_COMMAND} && true"
    assert check_command(block) is None
    assert check_command("```sh\npip install .\n```\n```sh\ntox\n```\n") is None


def test_ci_script_is_executable() -> None:
    """The script can be started as it is."""
    assert (ROOT / ".ci/run").stat().st_mode & 0o111


def test_links_lead_somewhere(tmp_path: Path) -> None:
    """No document links to a file that is not there."""
    assert [bad for path in documents() for bad in broken_links(path, path.read_text(encoding="utf-8"))] == []
    assert broken_links(tmp_path / "a.md", "[x](b.md#part) [y](https://example.org) [z](#z)") == [
        "a.md: b.md"
    ]


def test_decisions_exist_and_are_numbered_once() -> None:
    """Every decision that a text names exists; each number is given once, from 0001 without a gap."""
    texts = [*documents(), ROOT / "pyproject.toml", ROOT / "tox.ini"]
    texts += [path for top in (*PACKAGES, "benchmarks") for path in files(top, "*.py") + files(top, "*.lua")]
    named = [(path.name, path.read_text(encoding="utf-8")) for path in texts]
    assert [bad for name, text in named for bad in unknown_decisions(name, text)] == []
    missing = "docs/decisions/9999" + "-nothing.md"
    assert unknown_decisions("a.py", f"see {missing}.") == [f"a.py: {missing}"]
    numbers = [int(path.name.split("-")[0]) for path in files("docs/decisions", "*.md")]
    assert numbers == list(range(1, len(numbers) + 1))


def test_test_files_have_unique_names() -> None:
    """Two test modules of one name would be told apart by their directory only."""
    names = [path.name for path in files("tests", "test_*.py")]
    assert sorted(names) == sorted(set(names))
    assert files("tests", "__init__.py") == []


def test_packages_are_typed_and_shipped() -> None:
    """Each package says that it is typed, and the wheel holds these packages only."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == list(PACKAGES)
    assert [name for name in PACKAGES if not (ROOT / name / "py.typed").exists()] == []
    assert set(PACKAGES) < set(EVERYTHING)
