"""``gateway demo``: a whole fleet on this machine, one gateway killed half-way, judged by the audit's five measures.

Real parts throughout: an embedded Redis, two simulated services in a process of their own, two gateway processes, of
which one dies by SIGKILL. The verdict comes from the event stream, folded by the auditor, and from the services'
journals.
"""

from __future__ import annotations

import random as random_module
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from gateway.audit import Auditor, AuditReport, Invariant
from gateway.client import Client, JobRequest
from gateway.connectors.simulation import wire
from gateway.fleet import START_TIMEOUT_S, ChildProcess, FleetFailed, read_journal, toml_text
from gateway.lifecycle import ENDS
from gateway.store.embedded import acquire_embedded_redis

JOBS_DEFAULT = 300
INSTANCES = 2
SLOTS_PER_WORKER = 4
#: Name of the gateway that is killed.
VICTIM = "gateway-a"
RUN_TIMEOUT_S = 60.0
#: The audit's success metrics; recovery is asked for below 30 s there, and we want less.
SUCCESS_RATE_MIN = 0.999
RECOVERY_S_MAX = 20.0


class DemoReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the demo measured; ``violations`` counts broken invariants."""

    submitted: int
    completed: int
    failed: int
    success_rate: float
    duplicate_completions: int
    duplicate_executions: int
    misrouted: int
    unfinished: int
    recovery_seconds_max: float
    jobs_per_second: float
    violations: int

    def measures(self) -> list[tuple[str, str, str, bool]]:
        """The audit's five success metrics: name, target, measured, met."""
        duplicates = self.duplicate_completions + self.duplicate_executions
        marked = (self.submitted - self.unfinished) / self.submitted if self.submitted else 0.0
        return [
            (
                "job processing reliability",
                f"≥ {SUCCESS_RATE_MIN:.1%} succeed",
                f"{self.success_rate:.1%}",
                self.success_rate >= SUCCESS_RATE_MIN,
            ),
            ("service discovery", "100 % routed right", f"{self.misrouted} misrouted", self.misrouted == 0),
            ("concurrency", "0 duplicates", f"{duplicates} duplicates", duplicates == 0),
            ("completion rate", "100 % marked complete", f"{marked:.1%}", self.unfinished == 0),
            (
                "error recovery",
                f"< {RECOVERY_S_MAX:g} s",
                f"{self.recovery_seconds_max:.1f} s worst",
                self.recovery_seconds_max < RECOVERY_S_MAX,
            ),
        ]

    @property
    def ok(self) -> bool:
        """Whether every measure is met and no invariant was broken."""
        return self.violations == 0 and all(met for *_, met in self.measures())


def _config_text(name: str, redis_url: str, queue: str, folder: Path, instances: list[dict[str, Any]]) -> str:
    """One gateway's configuration: a worker per service instance."""
    workers = {
        f"simulation-gpu{number}": {
            "connector": "simulation-http",
            "endpoint": instance["url"],
            "instance": instance["instance"],
            "slots": SLOTS_PER_WORKER,
        }
        for number, instance in enumerate(instances)
    }
    return toml_text(
        {
            "queue": queue,
            "redis_url": redis_url,
            "data_dir": str(folder / name),
            "machine": name,
            "workers": workers,
        }
    )


class _Demo:
    """One run of the demo; its parts are children of this process."""

    def __init__(self, console: Console, folder: Path, jobs: int, stack: ExitStack) -> None:
        self._console = console
        self._folder = folder
        self._jobs = jobs
        self._stack = stack
        self._queue = "demo"
        self._auditor = Auditor()
        self._acknowledged: list[str] = []
        self._killed_at_ms = 0
        self._killed_workers: list[str] = []

    def run(self) -> DemoReport:
        redis = self._stack.enter_context(acquire_embedded_redis(self._folder / "redis"))
        instances = self._start_services()
        client = self._stack.enter_context(Client(redis.url, queue=self._queue))
        gateways = [self._start_gateway(name, redis.url, instances) for name in (VICTIM, "gateway-b")]
        self._await_workers(client, gateways)
        first_ms, last_ms = self._work(client, gateways[0])
        report = self._auditor.finish(acknowledged=self._acknowledged)
        return self._judge(report, instances, (last_ms - first_ms) / 1000)

    def _start_services(self) -> list[dict[str, Any]]:
        log = self._folder / "services.log"
        command = [sys.executable, "-m", "simulator.cli", "serve", "--http", "--json"]
        command += ["--instances", str(INSTANCES), "--base-port", "0", "--slots", str(SLOTS_PER_WORKER * 2)]
        process = self._stack.enter_context(ChildProcess(command, log))
        instances: list[dict[str, Any]] = process.first_line()["instances"]
        self._console.print(
            f"[green]✓[/] {INSTANCES} simulated services, 4 % failing health checks, 4 % lost completions"
        )
        return instances

    def _start_gateway(self, name: str, redis_url: str, instances: list[dict[str, Any]]) -> ChildProcess:
        config = self._folder / f"{name}.toml"
        config.write_text(_config_text(name, redis_url, self._queue, self._folder, instances))
        command = [sys.executable, "-m", "gateway.cli", "run", "--config", str(config)]
        return self._stack.enter_context(ChildProcess(command, self._folder / f"{name}.log"))

    def _await_workers(self, client: Client, gateways: list[ChildProcess]) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        expected = INSTANCES * len(gateways)
        while len(client.workers()) < expected:
            dead = next((gateway for gateway in gateways if gateway.ended), None)
            if dead is not None or time.monotonic() > deadline_s:
                logs = sorted(self._folder.glob("gateway-*.log"))
                tail = "\n".join(line for log in logs for line in log.read_text().splitlines()[-3:])
                raise FleetFailed(f"the gateways did not start: {tail}")
            time.sleep(0.05)
        self._console.print(f"[green]✓[/] {len(gateways)} gateway processes, {expected} workers, one Redis")

    def _requests(self) -> Iterator[JobRequest]:
        random = random_module.Random(8299)
        for number in range(self._jobs):
            payload = {"duration_s": round(random.uniform(0.1, 0.3), 3), "result": number}
            yield JobRequest("simulation", payload, job_id=f"demo-{number:05d}")

    def _work(self, client: Client, victim: ChildProcess) -> tuple[int, int]:
        """Submit, follow the events, kill one gateway half-way; returns the first and last event's time."""
        accepted = client.submit_many(self._requests()).accepted
        self._acknowledged = [outcome.handle.job_id for outcome in accepted]
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        )  # fmt: skip
        deadline_s = time.monotonic() + RUN_TIMEOUT_S
        times_ms: list[int] = []
        cursor, ended, total = "0-0", 0, len(self._acknowledged)
        with Progress(*columns, console=self._console) as progress:
            task = progress.add_task("jobs", total=total)
            while ended < total and time.monotonic() < deadline_s:
                for event in client.events(cursor, follow=False):
                    self._auditor.feed([event])
                    cursor = event.cursor
                    times_ms.append(event.at_ms)
                    ended += event.type in ENDS
                progress.update(task, completed=ended)
                if not self._killed_at_ms and ended >= total // 2:
                    self._kill(client, victim)
                    progress.update(task, description="jobs (one gateway killed, its leases must lapse)")
                time.sleep(0.05)
        return times_ms[0], times_ms[-1]

    def _kill(self, client: Client, victim: ChildProcess) -> None:
        victim.kill()
        self._killed_at_ms = client.now_ms()
        self._killed_workers = [
            worker.worker_id for worker in client.workers() if worker.capabilities.get("machine") == VICTIM
        ]

    def _judge(self, report: AuditReport, instances: list[dict[str, Any]], seconds: float) -> DemoReport:
        finished: Counter[str] = Counter()
        misrouted = 0
        for instance in instances:
            page = read_journal(instance["url"])
            misrouted += page.summary.misrouted
            finished.update(
                entry.id.partition(".")[0]
                for entry in page.entries
                if entry.event is wire.JournalEvent.FINISHED
            )
        routing = sum(violation.invariant is Invariant.ROUTED_CORRECTLY for violation in report.violations)
        completions = sum(violation.invariant is Invariant.ONE_COMPLETION for violation in report.violations)
        recoveries = report.recoveries_after(self._killed_at_ms, self._killed_workers)
        return DemoReport(
            submitted=len(self._acknowledged),
            completed=report.completed,
            failed=report.dead,
            success_rate=report.completed / len(self._acknowledged) if self._acknowledged else 0.0,
            duplicate_completions=completions,
            duplicate_executions=sum(count - 1 for count in finished.values()),
            misrouted=misrouted + routing,
            unfinished=len(self._acknowledged) - report.completed - report.dead - report.cancelled,
            recovery_seconds_max=round(max(recoveries, default=0.0), 3),
            jobs_per_second=round(report.completed / seconds, 1) if seconds > 0 else 0.0,
            violations=report.violations_total,
        )


def _show(console: Console, report: DemoReport) -> None:
    table = Table(title="The audit's success metrics")
    for column in ("measure", "target", "measured", ""):
        table.add_column(column)
    for name, target, measured, met in report.measures():
        table.add_row(name, target, measured, "[green]met[/]" if met else "[red]missed[/]")
    console.print(table)
    console.print(
        f"{report.completed} of {report.submitted} jobs completed at {report.jobs_per_second:g} jobs/s, "
        f"invariants broken: {report.violations}"
    )


def run_demo(*, json_output: bool = False, jobs: int = JOBS_DEFAULT) -> int:
    """Run the demo and print its verdict.

    Args:
        json_output: print one JSON object on standard output instead of tables.
        jobs: how many jobs to run.

    Returns:
        Exit code: 0 when every measure is met, 1 otherwise.

    Raises:
        FleetFailed: a part did not start.
    """
    console = Console(stderr=json_output, quiet=json_output)
    with tempfile.TemporaryDirectory(prefix="trio-gateway-demo-") as folder, ExitStack() as stack:
        report = _Demo(console, Path(folder), jobs, stack).run()
        if json_output:
            sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
        else:
            _show(console, report)
    return 0 if report.ok else 1
