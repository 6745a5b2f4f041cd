"""Both programs' help, command by command, as an operator meets it; and the completion of shells."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import gateway.cli.app
import simulator.cli
from tests.cli.test_cli_process import call, environment

ROOT = Path(__file__).resolve().parents[2]
GATEWAY_APP, SIMULATOR_APP = gateway.cli.app.app, simulator.cli.app
COMMON = {"--queue", "--redis-url", "--config", "--data-dir", "--json"}


def walk(group: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every group and command below a group, with the words that lead there."""
    for name, command in group.commands.items():
        yield (*path, name), command
        if hasattr(command, "commands"):
            yield from walk(command, (*path, name))


EVERYTHING = [
    (path, command)
    for app, name in ((GATEWAY_APP, "gateway"), (SIMULATOR_APP, "simulator"))
    for path, command in walk(typer.main.get_command(app), (name,))
]
COMMANDS = [(path, command) for path, command in EVERYTHING if not hasattr(command, "commands")]
each_command = pytest.mark.parametrize(
    ("path", "command"), COMMANDS, ids=[" ".join(path) for path, _ in COMMANDS]
)


def told(command: Any) -> str:
    return f"{command.help or ''}\n{command.epilog or ''}"


def options(command: Any) -> dict[str, Any]:
    """Parameters by their longest spelling."""
    return {max(parameter.opts, key=len): parameter for parameter in command.params}


@each_command
def test_a_command_says_what_it_does_and_shows_how(path: tuple[str, ...], command: Any) -> None:
    """Each help has a sentence, an example that begins with the command itself, and JSON for programs."""
    assert command.help
    assert "Example" in told(command)
    assert f"{' '.join(path)}" in told(command)
    assert "--json" in options(command)
    if path[0] == "gateway":
        assert set(options(command)) >= COMMON


@each_command
def test_every_option_is_explained(path: tuple[str, ...], command: Any) -> None:
    """Each option and argument has help, and a span of time says its unit."""
    assert [name for name, parameter in options(command).items() if not parameter.help] == []
    spans = {name: one.help for name, one in options(command).items() if name.endswith("-s")}
    assert [name for name, text in spans.items() if "econds" not in text] == []


@pytest.mark.parametrize(("path", "command"), EVERYTHING, ids=[" ".join(path) for path, _ in EVERYTHING])
def test_the_list_of_commands_cuts_no_sentence(path: tuple[str, ...], command: Any) -> None:
    """In the list of its group a command is told by a whole sentence."""
    if path[0] == "gateway":
        assert not command.get_short_help_str(62).endswith("...")


def test_documentation_lists_every_command() -> None:
    """docs/cli.md names each command of `gateway` and each exit code; the documentation names each of `simulator`."""
    text = (ROOT / "docs" / "cli.md").read_text("utf-8")
    assert [path for path, _ in COMMANDS if path[0] == "gateway" and f"`{' '.join(path)}" not in text] == []
    assert [code for code in (0, 1, 2, 3, 4, 5, 6, 130, 141) if f"\n| {code} |" not in text] == []
    all_text = "".join(page.read_text("utf-8") for page in (ROOT / "docs").glob("*.md"))
    assert [path for path, _ in COMMANDS if f"{' '.join(path)}" not in all_text] == []


@pytest.mark.parametrize("group", ["", "dead", "schedules", "config", "rollout"])
def test_a_group_alone_shows_its_help(group: str) -> None:
    """Without a command the help comes, in lines, on standard error, with exit code 2."""
    done = call(*group.split())
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"Usage: {' '.join(['gateway', group]).strip()} ")
    assert "\nCommands:\n" in done.stderr


@pytest.mark.parametrize(
    ("words", "offered", "hidden"),
    [
        ("gateway ", {"submit", "top", "doctor", "rollout"}, {"show"}),
        ("gateway s", {"submit", "status", "services", "schedules"}, {"top"}),
        ("gateway rollout ", {"show", "set", "abort"}, {"submit"}),
        ("gateway top --", {"--every-s", "--once", "--json", "--queue"}, {"--percent"}),
    ],
)
def test_completion_offers_commands_and_options(words: str, offered: set[str], hidden: set[str]) -> None:
    """What bash asks when the tab key is pressed is answered from the tree of commands."""
    asked = {
        "_GATEWAY_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1)
    }  # fmt: skip
    found = set(call(**asked).stdout.split())
    assert found >= offered
    assert not found & hidden


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_completion_is_printed_for_the_shell_that_is_named(shell: str) -> None:
    """Whatever shell runs the command, the script is the named one's; an unknown one is a line of complaint."""
    done = call("--show-completion", shell)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"complete_{shell}" in done.stdout.replace("complete_pwsh", "complete_powershell")
    wrong = call("--show-completion", "tcsh")
    assert (wrong.returncode, wrong.stdout, wrong.stderr.count("\n")) == (2, "", 1)
    assert "'bash', 'zsh', 'fish', 'powershell'" in wrong.stderr


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_with_the_printed_script(tmp_path: Path) -> None:
    """A real bash that has read the script completes a subcommand of the program on its PATH."""
    program = tmp_path / "gateway"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m gateway.cli "$@"\n')
    program.chmod(0o755)
    script = (
        'eval "$(gateway --show-completion bash)"\n'
        "COMP_WORDS=(gateway roll); COMP_CWORD=1\n"
        '_gateway_completion gateway; echo "${COMPREPLY[@]}"\n'
    )
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False,
        env=environment(PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}"),
    )  # fmt: skip
    assert (done.stdout.strip(), done.stderr) == ("rollout", "")
