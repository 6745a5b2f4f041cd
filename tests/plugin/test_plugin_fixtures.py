"""The plugin's fixtures, markers and options, each in a pytest process of its own with warnings as errors."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from tests.plugin.conftest import ROOT, Run

SERVICE = """
import asyncio
import json
import urllib.request
import urllib.error

import pytest
import trio


def submit(service, name, **payload):
    body = json.dumps({"id": name, "payload": payload}).encode()
    with urllib.request.urlopen(service.url + "/v1/jobs", body) as reply:
        return json.load(reply)


def test_sync(simulated_service):
    assert submit(simulated_service, "a", duration_s=0.0)["id"] == "a"
    assert simulated_service.summary().executions_by_job == {"a": 1}
    assert simulated_service.journal()[0].id == "a"


def test_in_trio(simulated_service):
    async def main():
        await trio.to_thread.run_sync(submit, simulated_service, "b")
        simulated_service.set_faults(error_5xx_rate=1.0)
        with pytest.raises(urllib.error.HTTPError):
            submit(simulated_service, "c")

    trio.run(main)


def test_in_asyncio(simulated_service):
    async def main():
        await asyncio.to_thread(submit, simulated_service, "b")

    asyncio.run(main())


@pytest.mark.gateway_faults(error_5xx_rate=1.0)
def test_marker(simulated_service, fault_plan):
    assert fault_plan.knobs.error_5xx_rate == 1.0
    with pytest.raises(urllib.error.HTTPError):
        submit(simulated_service, "a")


@pytest.mark.gateway_faults("health-4pct", hang_rate=0.5)
def test_preset_and_knob(fault_plan):
    assert (fault_plan.knobs.health_failure_rate, fault_plan.knobs.hang_rate) == (0.04, 0.5)


def test_redis(embedded_redis):
    import redis

    with redis.Redis.from_url(embedded_redis) as client:
        assert client.set("a", 1) and client.info("persistence")["aof_enabled"] == 1
"""
TRIO = """
import trio


async def test_async(simulated_service):
    with trio.fail_after(5):
        stream = await trio.open_tcp_stream("127.0.0.1", int(simulated_service.url.rsplit(":", 1)[1]))
        async with stream:
            await stream.send_all(b"GET /health HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n")
            assert (await stream.receive_some()).startswith(b"HTTP/1.1 200")
"""
SEEDS = """
def test_uses_it(gateway_seed, fault_plan):
    assert fault_plan.seed == gateway_seed


def test_does_not():
    pass
"""
UNUSED = """
import sys


def test_nothing():
    heavy = {"trio", "hypothesis", "redis", "gateway", "pydantic", "simulator.faults"}
    loaded = heavy & set(sys.modules)
    assert not loaded
"""
BROKEN = """
import pytest


@pytest.mark.gateway_fleet(gateways=1)
def test_leaves_work_behind(gateway_fleet):
    job = gateway_fleet.submit({"duration_s": 30})
    gateway_fleet.kill(gateway_fleet.owner(job))


@pytest.mark.gateway_fleet(gateways=1, unfinished_ok=True)
def test_may_leave_work_behind(gateway_fleet):
    gateway_fleet.submit({"duration_s": 30})
    gateway_fleet.kill("gateway-0")
"""
RUN = """
import pytest


@pytest.mark.gateway_fleet(gateways=2, services=2)
@pytest.mark.gateway_faults("plan.toml")
def test_plays_the_plan(gateway_fleet):
    views = gateway_fleet.run([{"duration_s": 1.0, "result": n} for n in range(24)])
    assert [view.state.value for view in views] == ["completed"] * 24
    report = gateway_fleet.audit()
    assert report.ok and report.recoveries
    gateway_fleet.restart("gateway-0")
    gateway_fleet.pause("gateway-1")
    job = gateway_fleet.submit({"duration_s": 0.0})
    assert gateway_fleet.wait(job)[0].result["echo"] is None
    assert gateway_fleet.owner(gateway_fleet.submit({"duration_s": 0.5})) == "gateway-0"
    gateway_fleet.resume("gateway-1")
"""
PLAN = """
duration_s = 2
[services]
health_failure_rate = 0.0
[[kill]]
at_s = 0.5
target = "gateway-0"
[[redis]]
at_s = 1.0
down_s = 0.3
"""


def test_service_redis_and_markers_without_pytest_trio(run_pytest: Run) -> None:
    """Synchronous, trio and asyncio tests use the service; markers and presets turn its knobs; Redis is real."""
    done = run_pytest({"test_service.py": SERVICE}, "-q")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 passed" in done.stdout


def test_service_with_pytest_trio(run_pytest: Run) -> None:
    """An async test of pytest-trio uses the same fixture."""
    done = run_pytest(
        {"test_trio.py": TRIO},
        "-q",
        "-o",
        "trio_mode=true",
        plugins=("pytest_trio.plugin", "simulator.pytest_plugin"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_seeds_repeat_only_tests_that_use_them(run_pytest: Run) -> None:
    """One run per seed for tests with a seed, one for others; a malformed list is a usage error in one line."""
    done = run_pytest({"test_seeds.py": SEEDS}, "-v", "--gateway-seeds", "7,2-3")
    assert "test_uses_it[seed7]" in done.stdout
    assert "4 passed" in done.stdout
    wrong = run_pytest({}, "--gateway-seeds", "3-1")
    assert wrong.returncode == pytest.ExitCode.USAGE_ERROR
    assert "'3-1' is no seed or range" in wrong.stderr


def test_unused_it_imports_nothing_heavy(run_pytest: Run) -> None:
    """A suite that uses no fixture of ours pays for one small module."""
    done = run_pytest({"test_unused.py": UNUSED}, "-q")
    assert done.returncode == 0, done.stdout + done.stderr


def test_installed_it_is_found_by_its_entry_point(run_pytest: Run, tmp_path: Path) -> None:
    """The entry point of pyproject.toml loads the plugin into a plain pytest, without any warning."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    points = "".join(f"{name} = {value}\n" for name, value in project["entry-points"]["pytest11"].items())
    info = tmp_path / "site" / "trio_gateway-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: trio-gateway\nVersion: 0\n", "utf-8")
    (info / "entry_points.txt").write_text(f"[pytest11]\n{points}", "utf-8")
    sources = [path.relative_to(ROOT) for path in (ROOT / "simulator").rglob("*.py")]
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in sources), "utf-8")
    # The plugins of trio and hypothesis load those two by themselves.
    done = run_pytest(
        {"test_first.py": UNUSED.replace('"trio", "hypothesis", ', ""), "test_seeds.py": SEEDS},
        "-q",
        "--gateway-seeds",
        "1,2",
        plugins=(),
        installed=tmp_path / "site",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_wrong_plans_and_knobs_are_told(run_pytest: Run) -> None:
    """A misspelt preset or knob names itself and what is known."""
    text = "def test_x(fault_plan): ...\n"
    done = run_pytest({"test_x.py": text}, "-q", "--gateway-faults", "brutall")
    assert done.returncode != 0
    assert "brutall: is neither a file nor a preset; presets are quiet, " in done.stdout
    marked = f"import pytest\npytestmark = pytest.mark.gateway_faults(hang=1)\n{text}"
    assert "fault hang = 1" in run_pytest({"test_x.py": marked}, "-q").stdout


@pytest.mark.chaos
def test_a_broken_promise_fails_the_test(run_pytest: Run) -> None:
    """Unfinished work fails the test itself, with timeline, seed and replay command, unless it is allowed."""
    done = run_pytest({"test_broken.py": BROKEN}, "-q", "--gateway-seeds", "5")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert "1 failed, 1 passed" in done.stdout
    assert "nothing_lost" in done.stdout
    assert "claimed        gateway-0/worker-0" in done.stdout
    assert "replay: pytest 'test_broken.py::test_leaves_work_behind[seed5]' --gateway-seeds 5" in done.stdout


@pytest.mark.chaos
def test_a_fleet_plays_its_plan(run_pytest: Run) -> None:
    """Kills and outages of a plan file happen during ``run``; restart, pause and owner steer the processes."""
    done = run_pytest({"test_run.py": RUN, "plan.toml": PLAN}, "-q")
    assert done.returncode == 0, done.stdout + done.stderr
