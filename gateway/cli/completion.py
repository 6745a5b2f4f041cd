"""Shell completion: ``--show-completion SHELL`` and ``--install-completion SHELL``."""

from __future__ import annotations

import enum
from typing import Annotated

import typer
from typer.completion import get_completion_inspect_parameters, install_callback, show_callback


class Shell(enum.StrEnum):
    """Shells that completion exists for."""

    BASH = "bash"
    ZSH = "zsh"
    FISH = "fish"
    POWERSHELL = "powershell"


def register(app: typer.Typer) -> None:
    """Add the options. Typer's own guess the shell from the process above, which fails in images and scripts."""
    get_completion_inspect_parameters()  # what makes the shells' questions (_GATEWAY_COMPLETE) be answered
    app.callback()(options)


def options(
    show_completion: Annotated[
        Shell | None,
        typer.Option(
            "--show-completion", metavar="SHELL", is_eager=True, expose_value=False, callback=show_callback,
            help="Print the completion script for bash, zsh, fish or powershell.",
        ),
    ] = None,
    install_completion: Annotated[
        Shell | None,
        typer.Option(
            "--install-completion", metavar="SHELL", is_eager=True, expose_value=False,
            callback=install_callback, help="Add the completion to that shell's own start-up file.",
        ),
    ] = None,
) -> None:  # fmt: skip
    """Runs jobs from a Redis queue on GPU services, and operates such queues."""
