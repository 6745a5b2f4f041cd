"""The command ``simulator mutants``: what programs read, and how it ends."""

from __future__ import annotations

import json

from typer.testing import CliRunner

from simulator.cli import app
from simulator.mutants.catalogue import MUTANTS


def test_a_caught_mutant_is_reported_to_programs() -> None:
    """One JSON value with the promised keys, and success when none survived."""
    options = ["--only", "health-without-hysteresis", "--seeds", "3", "--processes", "1", "--json"]
    result = CliRunner().invoke(app, ["mutants", *options])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["mutants"], report["killed"], report["survived"]) == (1, 1, [])
    assert report["seeds_to_kill"] == {"health-without-hysteresis": 1}
    assert report["judges"] == {"health-without-hysteresis": "promises"}


def test_a_survivor_fails_the_command() -> None:
    """A mutant that all given seeds miss is named, and the exit code says so."""
    result = CliRunner().invoke(app, ["mutants", "--only", "lease-from-reply", "--seeds", "1"])
    assert result.exit_code == 1, result.output
    assert "SURVIVED" in result.output
    assert "0 of 1 mutants caught" in result.output


def test_an_unknown_mutant_is_a_usage_error() -> None:
    """The known ones are listed, and nothing is hunted."""
    result = CliRunner().invoke(app, ["mutants", "--only", "no-such-mutant"])
    assert result.exit_code == 2
    assert all(name in result.output for name in MUTANTS)
