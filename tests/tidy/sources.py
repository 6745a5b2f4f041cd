"""What the tidy tests look at: the repository's files, read once."""

from __future__ import annotations

import ast
import functools
import subprocess
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("gateway", "simulator", "protocols")
EVERYTHING = (*PACKAGES, "benchmarks", "tests")
#: Written by the protobuf compiler, checked by their own drift test.
GENERATED = ("_pb2.py", "_pb2_grpc.py")


@dataclass(frozen=True, slots=True)
class Module:
    """One Python file: its path from the root, its text and its syntax tree."""

    path: str
    text: str
    tree: ast.Module

    @classmethod
    def of(cls, path: str, text: str) -> Module:
        """Parse a text as if it stood at that path."""
        return cls(path, text, ast.parse(text, path))


@functools.cache
def modules(*tops: str) -> tuple[Module, ...]:
    """Every Python module below these top-level directories; those not written yet are simply absent."""
    found = (path for top in tops for path in sorted((ROOT / top).rglob("*.py")))
    return tuple(
        Module.of(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
        for path in found
        if not path.name.endswith(GENERATED)
    )


def files(top: str, pattern: str) -> list[Path]:
    """Files below a top-level directory that fit a pattern, in order."""
    return sorted((ROOT / top).rglob(pattern))


def tracked() -> list[str] | None:
    """Paths in the version control's index, or None where there is none (an unpacked source archive)."""
    if not (ROOT / ".git").exists():
        return None
    listing = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True, timeout=30
    )
    return [path for path in listing.stdout.split("\0") if path]
