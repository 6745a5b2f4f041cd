"""The benchmarks run and report what they promise; their figures are nobody's business here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.catalogue import BENCHMARKS
from benchmarks.ceiling import MISSING

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 100


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


def test_the_list_names_every_benchmark() -> None:
    """What can be run is what is listed, each with a summary."""
    done = _run("list")
    assert done.returncode == 0, done.stderr
    names = [line.split(maxsplit=1)[0] for line in done.stdout.splitlines()]
    assert names == [benchmark.name for benchmark in BENCHMARKS]


@pytest.mark.limit_s(120)
def test_a_quick_claim_run_reports_every_figure(tmp_path: Path) -> None:
    """Every promised key is there, and the counts of one run agree with each other."""
    file = tmp_path / "claim.json"
    done = _run("run", "claim", "--quick", "--jobs", "600", "--json", str(file))
    assert done.returncode == 0, done.stderr
    assert "jobs_per_second" in done.stdout
    report = json.loads(file.read_text("utf-8"))
    for key in (
        "jobs_per_second", "drain_jobs_per_second", "latency_p50_ms", "latency_p99_ms", "redis_commands_per_job",
        "round_trips_per_job", "process_resident_bytes", "redis_used_bytes_per_pending_job",
        "redis_resident_bytes_per_pending_job", "pending_jobs",
    ):  # fmt: skip
        assert report[key] > 0, key
    assert report["machine"]["redis"]
    assert report["latency_p50_ms"] <= report["latency_p99_ms"] <= report["latency_max_ms"]
    if shutil.which("redis-benchmark"):
        ratio = report["jobs_per_second"] / report["ceiling_jobs_per_second"]
        assert report["ceiling_ratio"] == pytest.approx(ratio, abs=0.001)
        assert 0 <= report["ceiling_parts"]["settle_duplicate_share"] < 0.5
    else:
        assert report["ceiling_ratio"] is None
        assert report["ceiling_missing"] == MISSING


@pytest.mark.limit_s(120)
def test_a_quick_scaling_run_covers_the_three_series() -> None:
    """Backlog, workers and classes each have points, the first of which is the measure of the others."""
    done = _run("run", "scaling", "--quick", "--jobs", "300", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for series in ("backlog", "workers", "classes"):
        rows = report[series]
        assert len(rows) > 1
        assert rows[0]["ratio_to_first"] == 1
        assert all(row["cpu_us_per_job"] > 0 for row in rows)


@pytest.mark.limit_s(120)
def test_a_quick_simulation_run_covers_both_loads() -> None:
    """A crowded minute and a working hour, each with jobs that were done and the speed at which it was simulated."""
    done = _run("run", "simulation", "--quick", "--jobs", "4", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    for load in ("swarm", "hour"):
        figures = report[load]
        assert figures["runs"] == report["processes"]
        assert figures["completed"] > 0
        assert figures["simulated_seconds"] > 0
        assert figures["simulated_seconds_per_second"] > 0
    assert report["hour"]["completed"] == 4 * report["processes"]
    assert report["hour"]["simulated_seconds"] >= 600 * report["processes"]


def test_an_unknown_benchmark_is_refused() -> None:
    """A wrong name ends with the usage and a code of its own."""
    done = _run("run", "nothing")
    assert done.returncode == 2
    assert "claim" in done.stderr
