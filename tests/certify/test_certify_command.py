"""``simulator certify`` as a process: real fleets, short plans, exit codes and files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest

from gateway.errors import ConfigError
from gateway.fleet import toml_text
from simulator.certify import workload
from simulator.certify_config import ServiceAddress, child_environment, file_setup, setup_of
from simulator.dialects.catalogue import DIALECTS
from simulator.fault_plans import draw_plan, parse_plan

ROOT = Path(__file__).parents[2]
LIMIT_S = 80.0
CONFIG = """
queue = "renders"
redis_url = "redis://production.invalid:6379/0"
machine = "gpu-7"
[lease]
length_s = 3.0
margin_s = 0.5
renew_s = 0.8
sweep_s = 0.2
[redis]
command_timeout_s = 0.8
connect_timeout_s = 0.8
[telemetry]
otlp_endpoint = "http://collector.invalid:4318"
[api]
port = 9100
[workers.left]
connector = "simulation-http"
endpoint = "http://gpu-1.invalid:8188"
instance = "comfy-1"
slots = 3
[workers.right]
connector = "simulation-http"
endpoint = "http://gpu-1.invalid:8188"
slots = 2
[workers.far]
connector = "simulation-http"
endpoint = "http://gpu-2.invalid:8188"
[workers.far.options]
stall_s = 0.5
"""
# Work enough that the killed gateway surely holds jobs: with shorter ones a loaded machine killed an idle one.
SHORT = """
duration_s = 5
[fleet]
gateways = 2
[workload]
jobs = 30
duration_s = [0.9, 1.8]
[[kill]]
at_s = 1.5
target = "gateway-0"
restart_s = 0.5
[[redis]]
at_s = 3
down_s = 0.5
[[pause]]
at_s = 4
for_s = 0.3
target = "service-1"
"""
# One kill; nothing that makes a service do work again.
EVERY = """
duration_s = 4
[fleet]
gateways = 2
[workload]
jobs = 28
duration_s = [0.4, 0.9]
[[kill]]
at_s = 1.5
target = "gateway-0"
restart_s = 0.5
"""
HOPELESS = """
duration_s = 1
[fleet]
gateways = 1
services = 1
[workload]
jobs = 10
duration_s = 0.05
[services]
error_4xx_rate = 0.5
"""


def certify(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simulator.cli", "certify", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "gateway.toml").write_text(CONFIG, "utf-8")
    (tmp_path / "short.toml").write_text(SHORT, "utf-8")
    (tmp_path / "hopeless.toml").write_text(HOPELESS, "utf-8")
    return tmp_path


@pytest.mark.chaos
def test_a_users_configuration_is_certified(project: Path) -> None:
    """The user's settings, with kill, outage and pause: certified, told as JSON, JUnit and page."""
    files = ["--junit", "out.xml", "--html", "out.html", "--keep", "kept"]
    done = certify(project, "--config", "gateway.toml", "--faults", "short.toml", "--json", *files)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["certified"]
    assert told["counts"]["submitted"] == told["counts"]["completed"] == 30
    # In which order: on a slow machine the outage waits for the gateway that is just starting again.
    assert sorted(fault["kind"] for fault in told["faults"]) == ["kill", "pause", "redis"]
    recovery = next(fact for fact in told["recoveries"] if fact["kind"] == "kill")
    assert 2.0 < max(recovery["seconds"]) < 8.0  # the user's own leases of 3 s, not ours
    assert told["simulated"] == ["left", "right", "far"]
    assert "worker far: simulated" in told["notes"]
    assert ElementTree.parse(project / "out.xml").getroot().attrib["failures"] == "0"
    assert "certified: every metric is met" in (project / "out.html").read_text("utf-8")
    assert (project / "kept/gateway-0.log").exists()
    assert not (project / "kept").stat().st_mode & 0o077


@pytest.mark.chaos
def test_every_dialect_is_played(tmp_path: Path) -> None:
    """A configuration with a worker for each kind of service: all are simulated, and a kill is survived."""
    head = CONFIG[: CONFIG.index("[workers.left]")]
    workers = {
        one.name: {
            "connector": one.connectors[-1],
            "endpoint": f"{one.scheme}://far.invalid:{one.port}",
            "options": dict(one.options),
        }
        for one in DIALECTS
    }
    (tmp_path / "gateway.toml").write_text(head + toml_text({"workers": workers}), "utf-8")
    (tmp_path / "every.toml").write_text(EVERY, "utf-8")
    done = certify(tmp_path, "--config", "gateway.toml", "--faults", "every.toml", "--json", "--keep", "kept")
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert told["simulated"] == [one.name for one in DIALECTS]
    assert told["left"] == []
    assert told["counts"]["completed"] == told["counts"]["submitted"] == 28
    assert {path.name for path in (tmp_path / "kept").glob("service-*.log")} == {
        f"service-{one.name}.log" for one in DIALECTS
    }


def test_jobs_go_to_each_kind_of_service_in_its_own_words(project: Path) -> None:
    """The jobs of a plan are submitted for every simulated kind in turns, with the payload that it understands."""
    config = file_setup(project / "gateway.toml").config
    setup = setup_of(config, "x", simulated={"simulation-http": "simulation-http"})
    assert setup.kinds == (("simulation", "simulation-http"),)
    assert setup.dialects == ("simulation-http", "simulation-http")
    jobs = workload(draw_plan(1), setup)
    assert {job.request.service for job in jobs} == {"simulation"}
    for job in jobs:
        payload = job.request.payload
        assert isinstance(payload, dict)
        assert set(payload) == {"duration_s", "result"}


@pytest.mark.chaos
def test_a_missed_metric_is_exit_code_1(project: Path) -> None:
    """Services that refuse half of all jobs: the table says what was missed; progress is on standard error."""
    done = certify(project, "--faults", "hopeless.toml")
    assert done.returncode == 1, done.stdout + done.stderr
    assert "not certified: missed job processing reliability" in done.stdout
    assert "starting Redis, 1 simulated services and 1 gateways" in done.stderr


def processes_of(folder: Path) -> list[str]:
    """Command lines of processes that have to do with a folder (Linux)."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(entry.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"))
        except OSError:  # it has ended meanwhile
            continue
    return [line for line in lines if str(folder) in line]


@pytest.mark.chaos
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_nothing_behind(project: Path, number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM end the whole fleet, also while it starts; the exit code says so."""
    kept = project / "kept"
    words = [sys.executable, "-m", "simulator.cli", "certify", "--faults", "quiet", "--keep", str(kept)]
    with subprocess.Popen(
        words, cwd=project, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline_s = time.monotonic() + 20
            while not (kept / "gateway-1.log").exists() and time.monotonic() < deadline_s:
                time.sleep(0.05)
            assert processes_of(kept)
            process.send_signal(number)
            assert process.wait(20) == 130
        finally:
            process.kill()
    assert processes_of(kept) == []


def test_wrong_use_is_exit_code_2_and_one_line(project: Path) -> None:
    """Options, plans and configurations that cannot be: one line, before anything is started."""
    (project / "bad.toml").write_text("queue = 3\n", "utf-8")
    (project / "none.toml").write_text("queue = 'x'\n", "utf-8")
    for words, expected in (
        (["--faults", "brutall"], "brutall: is neither a file nor a preset"),
        (["--faults", "lossy", "--fault-seed", "1"], "name either --faults or --fault-seed"),
        (["--config", "bad.toml"], "bad.toml:1: queue: "),
        (["--config", "none.toml"], "none.toml: workers: no connector with a simulated service"),
        (["--html", "no/where.html"], "cannot write no/where.html"),
        (["--keep", "."], "--keep .: File exists"),
    ):
        done = certify(project, *words)
        assert done.returncode == 2, (words, done.stdout, done.stderr)
        assert done.stderr.startswith(f"simulator: {expected}")
        assert done.stderr.count("\n") == 1


def test_a_plan_can_be_printed(project: Path) -> None:
    """The plan of a seed as TOML, to keep or to change; jobs and minutes are in it."""
    done = certify(project, "--fault-seed", "7", "--minutes", "1", "--jobs", "50", "--print-plan")
    plan = parse_plan(tomllib.loads(done.stdout), "printed")
    assert plan == draw_plan(7).repeated(3).with_jobs(50)


def test_workers_of_one_endpoint_share_one_instance(project: Path) -> None:
    """Endpoints are replaced; Redis, traces and ports of production are not touched; the rest stays."""
    setup = file_setup(project / "gateway.toml")
    assert setup.places == {"left": 0, "right": 0, "far": 1}
    assert setup.slots(gateways=2) == 10
    services = [
        ServiceAddress("http://127.0.0.1:1", "service-0"),
        ServiceAddress("http://127.0.0.1:2", "service-1"),
    ]
    values = setup.values("gateway-0", "unix:///x", project, services)
    assert "invalid" not in json.dumps(values)
    assert values["api"]["port"] is None
    assert values["machine"] == "gateway-0"
    assert values["lease"]["length_s"] == 3.0
    assert values["workers"]["far"]["options"] == {"stall_s": 0.5}
    assert values["workers"]["left"]["instance"] == "service-0"


def test_a_rehearsal_calls_no_candidate(project: Path) -> None:
    """A rollout's candidate keeps an address of production; no job of a rehearsal goes there."""
    candidate = '[workers.far.rollout]\nendpoint = "http://candidate.invalid:1"\npercent = 50\n'
    (project / "gateway.toml").write_text(CONFIG + candidate, "utf-8")
    setup = file_setup(project / "gateway.toml")
    services = [ServiceAddress(f"http://127.0.0.1:{port}", f"service-{port}") for port in (1, 2)]
    values = setup.values("gateway-0", "unix:///x", project, services)
    assert values["workers"]["far"]["rollout"] is None
    assert "invalid" not in json.dumps(values)


def test_workers_without_a_simulated_service_stay(project: Path) -> None:
    """With no worker whose service can be simulated there is nothing to do, and the error says what there is."""
    config = file_setup(project / "gateway.toml").config
    with pytest.raises(ConfigError, match="far has simulation-http"):
        setup_of(config, "x", simulated={"other-http": "simulation-http"})


def test_processes_inherit_no_settings() -> None:
    """Variables that would lead a rehearsing gateway to the production queue are not passed on."""
    passed_on = child_environment(
        environment={"GATEWAY_REDIS_URL": "redis://production.invalid", "HOME": "/"}
    )
    assert set(passed_on) == {"HOME", "PYTHONPATH"}
