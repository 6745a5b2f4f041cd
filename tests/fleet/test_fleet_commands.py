"""The commands on simulated fleets, as processes: their JSON, files and exit codes."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import msgspec

from gateway.models import TERMINAL_STATES, JobState
from simulator.explore import RUN_LIMIT_S, SeedResult, Size, explore
from simulator.plan import FleetPlan
from simulator.report import page
from simulator.scenarios import SCENARIOS

ROOT = Path(__file__).resolve().parents[2]
KEYS = {
    *("seeds", "simulated_seconds", "simulated_seconds_per_second", "jobs", "faults_injected", "violations"),
    *("lost", "undurable", "failures", "never_reached", "verdict", "exit_code"),
}


def call(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simulator.cli", *arguments], capture_output=True, text=True, timeout=80,
        check=False, cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "120", "NO_COLOR": "1"},
    )  # fmt: skip


def test_explore_reports_all_seeds_as_json() -> None:
    """Two processes share the seeds; the sum has every key and says that all promises held."""
    done = call(
        *("explore", "--seeds", "3", "--start", "900", "--jobs", "4", "--gateways", "2", "--services", "1"),
        *("--processes", "2", "--json"),
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert set(report) >= KEYS
    assert (report["seeds"], report["jobs"], report["violations"], report["lost"]) == (3, 12, 0, 0)
    assert report["simulated_seconds"] > 30
    assert report["faults_injected"] > 0


def test_a_terminated_exploration_says_what_it_found() -> None:
    """A supervisor's SIGTERM ends it like Ctrl-C: the report is whole, and the exit code says that it was stopped."""
    command = [sys.executable, "-m", "simulator.cli", "explore", "--seeds", "1000000", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "exploring 1,000,000 seeds from 0 on\n"
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert set(json.loads(out)) >= KEYS


def test_fresh_seeds_are_the_time() -> None:
    """Nobody chose them, the first line names the first one, and choosing one as well is refused."""
    before = int(time.time())
    done = call("explore", "--fresh", "--seeds", "1", "--jobs", "1", "--gateways", "1", "--json")
    assert done.returncode == 0, done.stderr
    words = done.stderr.splitlines()[0].split()
    assert words[:4] == ["exploring", "1", "seeds", "from"]
    assert before <= int(words[4]) <= time.time()
    refused = call("explore", "--fresh", "--start", "7")
    assert refused.returncode == 2
    assert refused.stderr.startswith("simulator: --fresh chooses")


def test_explore_fails_on_unreached_states_when_told_to_judge() -> None:
    """One quiet seed cannot reach everything: the exit code is the one of coverage, and the report names the gaps."""
    done = call(
        *("explore", "--seeds", "1", "--jobs", "1", "--gateways", "1", "--services", "1"),
        *("--processes", "1", "--require-coverage", "--json"),
    )
    assert done.returncode == 6, done.stderr
    assert "event requeued" in json.loads(done.stdout)["never_reached"]


def test_a_run_that_hangs_is_killed_and_counted() -> None:
    """A run beyond its wall-clock limit becomes a crash with its seed, and the next seeds are still run."""
    results: list[SeedResult] = []

    def take(result: SeedResult) -> bool:
        results.append(result)
        return len(results) < 2

    explore(Size(jobs=1), iter([5, 6]), processes=1, on_result=take, run_limit_s=0.01)
    assert [(result.seed, result.kind) for result in results] == [(5, "crash"), (6, "crash")]
    assert "no end within 0.01 s" in results[0].findings[0]
    assert RUN_LIMIT_S > 60


def test_a_budget_of_no_time_begins_nothing() -> None:
    """When the time is over, no further seed is begun."""
    results: list[SeedResult] = []

    def take(result: SeedResult) -> bool:
        results.append(result)
        return True

    explore(Size(), iter(range(5)), processes=1, on_result=take, budget_s=0.0)
    assert results == []


def test_replay_writes_timeline_page_and_spans(tmp_path: Path) -> None:
    """A plan from a file is told as JSON, as a page without outside references, and as OTLP spans."""
    scenario = SCENARIOS["paused-owner"]
    plan = tmp_path / "plan.json"
    plan.write_bytes(scenario.plan.encoded())
    done = call(
        *("replay", "--plan", "plan.json", "--json", "--html", "run.html", "--spans", "run.jsonl"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["verdict"] == "ok"
    moments = [line["at_s"] for line in told["timeline"]]
    assert moments == sorted(moments)
    assert any("pause gateway-0" in line["what"] for line in told["timeline"])
    html = (tmp_path / "run.html").read_text()
    assert not re.search(r"(?:src|href)=|url\(|@import|<script", html)
    for drawing in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ElementTree.fromstring(drawing)
    for name in ("gateway-0", "gateway-1", "service-0", "redis", "job-0"):
        assert f">{name}</div>" in html
    spans = [
        json.loads(line)["resourceSpans"][0]["scopeSpans"][0]["spans"][0]
        for line in (tmp_path / "run.jsonl").read_text().splitlines()
    ]
    names = {span["name"] for span in spans}
    assert names >= {
        "simulation.run",
        "node.life",
        "node.fault",
        "job",
        "job.running",
        "gateway.owns",
        "service.execution",
    }
    ids = {span["spanId"] for span in spans}
    assert len(ids) == len(spans)
    assert all(not span["parentSpanId"] or span["parentSpanId"] in ids for span in spans)
    assert all(int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"]) for span in spans)


def test_replay_and_shrink_refuse_nonsense(tmp_path: Path) -> None:
    """A bad file and a plan that does not fail are one line on standard error and exit code 2."""
    (tmp_path / "bad.json").write_text('{"seed": "x"}')
    (tmp_path / "good.json").write_bytes(FleetPlan(seed=1, gateways=1, services=1, safety_s=1.0).encoded())
    for arguments in (
        ("replay", "--plan", "bad.json"),
        ("shrink", "--plan", "good.json"),
    ):
        done = call(*arguments, cwd=tmp_path)
        assert done.returncode == 2, (arguments, done.stdout)
        assert done.stderr.startswith("simulator: ")
        assert done.stderr.count("\n") == 1


def test_scenarios_are_listed_and_run() -> None:
    """The list names topology and promise of each story; a chosen one is run and shown."""
    listed = json.loads(call("scenarios", "--json").stdout)
    assert [row["name"] for row in listed] == list(SCENARIOS)
    assert all(row["topology"] and row["shows"] for row in listed)
    done = call("scenarios", "--run", "--name", "graceful-stop", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)[0]["unmet"] == []
    assert call("scenarios", "--name", "nothing").returncode == 2


def test_a_plan_survives_its_json() -> None:
    """Every scenario's plan is the same after a trip through JSON: files and printed tests lose nothing."""
    for scenario in SCENARIOS.values():
        assert msgspec.json.decode(scenario.plan.encoded(), type=FleetPlan) == scenario.plan


def test_every_state_that_a_job_stays_in_has_a_look() -> None:
    """No lane is drawn in the browser's own black: each state but running, which shows its owner, has a style."""
    styles = (Path(page.__file__).parent / "page.css").read_text("utf-8")
    for state in set(JobState) - TERMINAL_STATES - {JobState.RUNNING}:
        assert f"svg .{state.value} {{" in styles
