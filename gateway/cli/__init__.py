"""The command ``gateway``. Modules here import at their top only what ``gateway --help`` needs; everything else is
imported by the command that uses it, so that help and completion stay quick.
"""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line of this process and exit with its code."""
    from gateway.cli.app import run

    sys.exit(run(sys.argv[1:]))
