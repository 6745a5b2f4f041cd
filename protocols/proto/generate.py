"""Writes the code of every ``.proto`` file: ``python -m protocols.proto.generate [FOLDER]`` (needs grpcio-tools)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def generate(out: Path) -> list[Path]:
    """Generate modules and their types below ``out``, in the folders of their package.

    Args:
        out: a folder; the checkout itself to renew what is committed.

    Returns:
        The files written, relative to ``out``.

    Raises:
        subprocess.CalledProcessError: the compiler refused a file; its words are on standard error.
    """
    sources = sorted(path.relative_to(ROOT).as_posix() for path in HERE.glob("*.proto"))
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--python_out={out}", f"--pyi_out={out}"]
    subprocess.run([*command, *sources], cwd=ROOT, check=True)
    return [
        Path(source).with_name(Path(source).stem + ending)
        for source in sources
        for ending in ("_pb2.py", "_pb2.pyi")
    ]


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
