"""Every command on a real Redis: output for people, JSON for programs, exit codes, one line per error."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.cli.app import run
from gateway.client import Client
from gateway.models import Settlement
from tests.support.hand_worker import HandWorker, hand_worker

_numbers = itertools.count(1)


@dataclass(frozen=True)
class Answer:
    """What one command line did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON value and nothing else."""
        return json.loads(self.out)

    @property
    def error(self) -> dict[str, str]:
        """The error told in JSON on standard error, one line."""
        (line,) = self.err.splitlines()
        error: dict[str, str] = json.loads(line)["error"]
        return error


Gateway = Callable[..., Answer]


@pytest.fixture
def queue() -> str:
    return f"cli-{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def gateway(redis_url: str, queue: str, capsys: pytest.CaptureFixture[str]) -> Gateway:
    """Runs one command line in this process, on the test's own queue."""

    def gateway(*arguments: str) -> Answer:
        code = run([*arguments, "--redis-url", redis_url, "--queue", queue])
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return gateway


@pytest.fixture
def client(redis_url: str, queue: str) -> Iterator[Client]:
    with Client(redis_url, queue=queue) as client:
        yield client


@pytest.fixture
def worker(redis_url: str, queue: str) -> Iterator[HandWorker]:
    with hand_worker(redis_url, queue) as worker:
        yield worker


def test_submit_prints_the_id(gateway: Gateway, client: Client) -> None:
    """For people the id alone, for programs an object; every option reaches the job."""
    plain = gateway("submit", "simulation", '{"steps": 4}')
    assert (plain.code, plain.err) == (0, "")
    assert client.get(plain.out.strip()).spec.payload == {"steps": 4}
    options = ["--priority", "80", "--max-attempts", "2", "--timeout-s", "9", "--delay-s", "60"]
    requires = ["--requires", '{"vram_gb": {">=": 24}}', "--job-id", "mine", "--idempotency-key", "k"]
    requires += ["--tenant", "acme"]
    chosen = gateway("submit", "simulation", *options, *requires, "--json")
    assert chosen.json == {"job_id": "mine", "deduplicated": False}
    view = client.get("mine")
    assert (view.spec.priority, view.spec.max_attempts, view.spec.timeout_s, view.state) == (
        80,
        2,
        9.0,
        "scheduled",
    )
    assert (view.spec.requires, view.spec.tenant) == ({"vram_gb": {">=": 24}}, "acme")
    assert "acme" in gateway("status", "mine").out
    assert "tenant acme)" in gateway("explain", "mine").out
    assert '"acme"' in gateway("events", "--job", "mine", "--json").out.replace("\\", "")
    again = gateway("submit", "simulation", "--idempotency-key", "k")
    assert (again.out, again.code) == ("mine\n", 0)
    assert "earlier job" in again.err


def test_submit_reads_files_and_counts(gateway: Gateway, client: Client, tmp_path: Path) -> None:
    """A payload from a file, also with a byte order mark; --count submits equal jobs."""
    path = tmp_path / "payload.json"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "\xc3\xa4"}')
    many = gateway("submit", "simulation", "--file", str(path), "--count", "3", "--json")
    assert [client.get(handle["job_id"]).spec.payload for handle in many.json] == [{"prompt": "ä"}] * 3


@pytest.mark.parametrize(
    ("arguments", "kind", "fragments"),
    [
        (["submit"], "UsageError", ["service", "gateway submit --help"]),
        (["submit", "simulation", "{"], "InvalidSubmission", ["argument PAYLOAD", "line 1 column 2"]),
        (["submit", "simulation", "[1,\n 2,]"], "InvalidSubmission", ["argument PAYLOAD", "line 2 column"]),
        (["submit", "simulation", "[NaN]"], "InvalidSubmission", ["payload[0]", "nan"]),
        (["submit", "simulation", "--file", "/no/such"], "InvalidSubmission", ["/no/such: cannot be read"]),
        (["submit", "simulation", "1", "--file", "x"], "InvalidSubmission", ["PAYLOAD and --file"]),
        (["submit", "simulation", "--requires", "{'a'"], "InvalidSubmission", ["option --requires", "column 2"]),
        (["submit", "simulation", "--requires", "[1]"], "InvalidSubmission", ["requires must be an object"]),
        (["submit", "simulation", "--priority", "high"], "UsageError", ["--priority", "integer"]),
        (["submit", "simulation", "--priority", "101"], "InvalidSubmission", ["priority", "101"]),
        (["submit", "simulation", "--count", "0"], "InvalidSubmission", ["--count 0"]),
        (["submit", "simulation", "--count", "2", "--job-id", "x"], "InvalidSubmission", ["--count"]),
        (["submit", "simulatoin"], "UnknownService", ["'simulatoin'", "known are ", " simulation"]),
        (["dead", "requeue"], "InvalidSubmission", ["--all"]),
        (["events", "--after", "x"], "InvalidSubmission", ["cursor 'x'"]),
        (["events", "--limit", "0"], "UsageError", ["--limit"]),
        (["nonsense"], "UsageError", ["nonsense", "gateway --help"]),
        (["status", "--config", "/no/such.toml"], "ConfigError", ["/no/such.toml: cannot be read"]),
        (["run"], "ConfigError", ["no workers configured", "--worker"]),
        (["run", "--worker", "a"], "ConfigError", ["--worker 'a'", "NAME=CONNECTOR@ENDPOINT"]),
        (["run", "--worker", "a=x@http://h:1", "--worker", "a=x@http://h:2"], "ConfigError", ["once"]),
        (["run", "--worker", "a=x@http://h:1", "--slots", "0"], "ConfigError", ["workers.a.slots"]),
        (["run", "--worker", "a=nobody-http@http://h:1"], "ConnectorError", ["nobody-http", "simulation-http"]),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_stores_nothing(
    gateway: Gateway, client: Client, arguments: list[str], kind: str, fragments: list[str]
) -> None:
    """Exit code 2, what and where in one line for people and programs, and an untouched queue."""
    told = gateway(*arguments, "--json")
    assert (told.code, told.out, told.error["kind"]) == (2, "", kind)
    assert [fragment for fragment in fragments if fragment not in told.error["message"]] == []
    plain = gateway(*arguments)
    assert (plain.code, plain.out, plain.err.count("\n")) == (2, "", 1)
    assert plain.err.startswith("error: ")
    assert client.stats().jobs == 0


def test_bad_bytes_in_a_file(gateway: Gateway, tmp_path: Path) -> None:
    """A file that is no text, or not JSON, is named with the place."""
    path = tmp_path / "payload.json"
    path.write_bytes(b'{"a": "\xff"}')
    assert f"{path}: not UTF-8 text (byte 7)" in gateway("submit", "simulation", "-f", str(path)).err
    path.write_text('{\n "a": }')
    assert f"{path}: not valid JSON" in (told := gateway("submit", "simulation", "-f", str(path)).err)
    assert "(line 2 column 7)" in told


def test_submit_can_wait(gateway: Gateway, worker: HandWorker, client: Client) -> None:
    """--wait ends with the job: 0 with its result, 1 when it died, 5 when it takes too long."""
    client.submit("simulation", job_id="done", idempotency_key="done")
    worker.complete({"image": "cat"})
    done = gateway("submit", "simulation", "--idempotency-key", "done", "--wait")
    assert (done.code, done.out.splitlines()[0]) == (0, "done")
    assert json.loads(done.out.partition("\n")[2]) == {"image": "cat"}
    told = gateway("submit", "simulation", "--idempotency-key", "done", "--wait", "--json")
    assert (told.code, told.json["state"], told.json["result"]) == (0, "completed", {"image": "cat"})
    client.submit("simulation", job_id="dead", idempotency_key="dead")
    worker.bury()
    assert gateway("submit", "simulation", "--idempotency-key", "dead", "--wait", "--json").code == 1
    late = gateway("submit", "simulation", "--wait", "--wait-timeout-s", "0.1", "--json")
    assert (late.code, late.out, late.error["kind"]) == (5, "", "WaitTimeout")


def test_full_queue_is_exit_code_4(gateway: Gateway, tmp_path: Path) -> None:
    """A full queue has a code of its own; a batch tells how many were refused."""
    path = tmp_path / "gateway.toml"
    path.write_text("[limits]\nunfinished_max = 2\n")
    batch = gateway("submit", "simulation", "--count", "3", "--config", str(path), "--json")
    assert (batch.code, batch.error["kind"]) == (4, "BatchRefused")
    assert "refused 1 of 3" in batch.error["message"]
    one = gateway("submit", "simulation", "--config", str(path), "--json")
    assert (one.code, one.error["kind"]) == (4, "QueueFull")


def test_status_of_queue_and_job(gateway: Gateway, client: Client, worker: HandWorker) -> None:
    """Counts and workers of the queue, and everything about one job."""
    worker.register(
        "m/a", {"service": "simulation", "connector": "simulation-http", "slots": 2, "running": 1}
    )
    client.submit("simulation", "[red]markup[/red] \x1b[31m", job_id="a")
    told = gateway("status", "--json").json
    assert (told["pending_total"], told["running"], told["workers"][0]["worker_id"]) == (1, 0, "m/a")
    plain = gateway("status")
    assert "m/a" in plain.out
    assert "1/2" in plain.out
    assert gateway("status", "a", "--json").json["spec"]["payload"].startswith("[red]markup[/red]")
    grant = worker.claim()
    worker.note(grant, 1, value=0.5)
    worker.settle(Settlement.completed(grant, body='"[bold]x\\u001b[31m"'))
    job = gateway("status", "a")
    assert "completed" in job.out
    assert "[bold]x" in job.out
    assert "\x1b" not in job.out
    missing = gateway("status", "nobody", "--json")
    assert (missing.code, missing.error["kind"]) == (3, "JobNotFound")


def test_watch_follows_a_job_to_its_end(gateway: Gateway, client: Client, worker: HandWorker) -> None:
    """Progress and chunks in order, resumable by id, then the end; the exit code tells how it ended."""
    client.submit("simulation", job_id="a")
    grant = worker.claim()
    worker.note(grant, 1, value=0.25)
    worker.note(grant, 2, chunk={"token": "x"})
    worker.settle(Settlement.completed(grant, body='"done"'))
    told = gateway("watch", "a", "--json")
    lines = [json.loads(line) for line in told.out.splitlines()]
    assert (told.code, [line.get("kind", line.get("state")) for line in lines]) == (
        0,
        ["progress", "chunk", "completed"],
    )
    assert len(gateway("watch", "a", "--json", "--after", lines[0]["id"]).out.splitlines()) == 2
    plain = gateway("watch", "a")
    assert plain.out.splitlines() == [" 25% working", 'chunk 2: {"token":"x"}', '"done"']
    client.submit("simulation", job_id="b")
    client.cancel(["b"])
    assert gateway("watch", "b").code == 1
    assert gateway("watch", "nobody").code == 3


def test_cancel_answers_for_each_job(gateway: Gateway, client: Client, worker: HandWorker) -> None:
    """Waiting, running, ended and unknown jobs each have their own answer; unknown ones give code 3."""
    for job_id in ("running", "waiting"):
        client.submit("simulation", job_id=job_id)
    worker.claim()
    told = gateway("cancel", "waiting", "running", "--json")
    assert (told.code, [item["status"] for item in told.json]) == (0, ["cancelled", "requested"])
    again = gateway("cancel", "waiting", "nobody")
    assert (again.code, again.out.splitlines()) == (3, ["waiting had ended already", "nobody unknown"])


def test_dead_letters_are_listed_and_requeued(gateway: Gateway, client: Client, worker: HandWorker) -> None:
    """The reason is shown, requeue gives a new life, and --all means all."""
    assert gateway("dead", "list").out == "no dead letters\n"
    for job_id in ("d1", "d2", "d3"):
        client.submit("simulation", job_id=job_id)
        worker.bury("no such model")
    assert "validation: no such model" in gateway("dead", "list").out
    assert [view["job_id"] for view in gateway("dead", "list", "--count", "2", "--json").json] == ["d3", "d2"]
    assert gateway("dead", "requeue", "d1").out == "d1 requeued\n"
    assert gateway("dead", "requeue", "d1").code == 1
    assert gateway("dead", "requeue", "nobody").code == 3
    rest = gateway("dead", "requeue", "--all", "--json")
    assert (rest.code, sorted(item["job_id"] for item in rest.json)) == (0, ["d2", "d3"])
    assert gateway("dead", "requeue", "--all", "--json").json == []


def test_pause_and_resume(gateway: Gateway, queue: str) -> None:
    """Both say whether they changed anything."""
    assert gateway("pause").out == f"queue {queue} is paused\n"
    assert gateway("pause", "--json").json == {"queue": queue, "paused": True, "changed": False}
    assert "(paused)" in gateway("status").out
    assert gateway("resume", "--json").json == {"queue": queue, "paused": False, "changed": True}
    assert gateway("resume").out == f"queue {queue} was not paused\n"


def test_explain_says_who_could_run_it(gateway: Gateway, client: Client, worker: HandWorker) -> None:
    """Unmet predicates per worker, what stands in the way, and the story so far."""
    worker.register("m/small", {"service": "simulation", "slots": 1, "capabilities": {"vram_gb": 8}})
    client.submit("simulation", job_id="a", requires={"vram_gb": {">=": 24}})
    told = gateway("explain", "a", "--json").json
    assert told["summary"] == ["None of 1 registered workers can run it: its requirements match nobody."]
    assert told["workers"][0]["reasons"] == ["vram_gb >= 24 (worker has 8)"]
    assert [line["event"] for line in told["story"]] == ["submitted"]
    assert told["story_complete"]
    plain = gateway("explain", "a").out
    assert "vram_gb >= 24 (worker has 8)" in plain
    assert "submitted" in plain
    client.submit("simulation", job_id="b")
    client.submit("simulation", job_id="c")
    assert gateway("explain", "c", "--json").json["ahead"] == 1
    worker.bury()
    assert "attempt 1" in gateway("explain", "b").out
    assert gateway("explain", "nobody").code == 3


def test_events_can_be_paged(gateway: Gateway, client: Client) -> None:
    """All events, of one job, and page by page with the cursor that the page names."""
    for job_id in ("a", "b", "c"):
        client.submit("simulation", job_id=job_id)
    client.cancel(["a"])
    assert [event["job_id"] for event in gateway("events", "--json").json] == ["a", "b", "c", "a"]
    assert [event["type"] for event in gateway("events", "--job", "a", "--json").json] == [
        "submitted",
        "cancelled",
    ]
    page = gateway("events", "--limit", "2", "--json")
    assert len(page.json) == 2
    cursor = re.search(r"--after (\S+)", page.err)
    assert cursor is not None
    assert [event["job_id"] for event in gateway("events", "--after", cursor[1], "--json").json] == ["c", "a"]
    assert gateway("events").out.count("\n") == 4


def test_audit_judges_the_event_stream(
    gateway: Gateway, client: Client, worker: HandWorker, redis_url: str
) -> None:
    """A sound queue is 0, an unfinished one with --finished and a forged second completion are 1."""
    client.submit("simulation", job_id="a")
    grant = worker.complete()
    sound = gateway("audit", "--json")
    assert (sound.code, sound.json["ok"], sound.json["completed"]) == (0, True, 1)
    client.submit("simulation", job_id="b")
    assert gateway("audit").code == 0
    assert "all_finished" in (unfinished := gateway("audit", "--finished")).out
    assert unfinished.code == 1
    forged = json.dumps([["completed", "a", str(grant.epoch), "m/w", ""]])
    import redis

    with redis.Redis.from_url(redis_url) as raw:
        raw.xadd(client.core.keys.events, {"at": str(client.now_ms()), "e": forged})
    broken = gateway("audit", "--json")
    assert (broken.code, broken.json["ok"]) == (1, False)
    assert broken.json["violations"][0]["invariant"] == "one_completion"


def test_connectors_and_config(
    gateway: Gateway, tmp_path: Path, queue: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is installed, and the merged values without secrets."""
    (found,) = [entry for entry in gateway("connectors", "--json").json if entry["key"] == "simulation-http"]
    assert (found["service"], found["capabilities"]["query"]) == ("simulation", True)
    assert "SimulationHTTPConnector" in gateway("connectors").out
    path = tmp_path / "gateway.toml"
    path.write_text(
        '[lease]\nrenew_s = 4.0\n[workers.a]\nconnector = "simulation-http"\nendpoint = "http://h:1"\n'
        'options = { api_key = { env = "SECRET_OF_A_TEST" } }\n'
    )
    assert gateway("config", "check", "--config", str(path)).code == 2
    monkeypatch.setenv("SECRET_OF_A_TEST", "hunter2")
    shown = gateway("config", "show", "--config", str(path), "--json")
    found = {
        entry["key"]: (entry["value"], entry["source"], entry["place"]) for entry in shown.json["values"]
    }
    assert found["queue"] == (queue, "command line", "--queue")
    assert found["lease.renew_s"] == (4.0, "file", f"{path}:2")
    assert found["lease.sweep_s"] == (1.0, "default", "")
    assert found["workers.a.options.api_key"][0] == {"env": "SECRET_OF_A_TEST"}
    assert "hunter2" not in shown.out + gateway("config", "show", "--config", str(path)).out
    assert gateway("config", "check", "--config", str(path), "--json").json == {"ok": True, "workers": ["a"]}
    assert "1 worker(s)" in gateway("config", "check", "--config", str(path)).out
    path.write_text("[lease]\nrenew = 4.0\n")
    assert gateway("config", "check", "--config", str(path)).code == 2


def test_overrides_for_the_fleet(gateway: Gateway) -> None:
    """Set, shown with its place, refused when impossible, removed; each as JSON too."""
    done = gateway("config", "set", "limits.unfinished_max", "7", "--json")
    assert (done.code, done.json["overrides"]) == (0, {"limits.unfinished_max": 7})
    assert "telemetry.log_level" in gateway("config", "set", "telemetry.log_level", "debug").out
    shown = {entry["key"]: entry for entry in gateway("config", "show", "--json").json["values"]}
    assert (shown["limits.unfinished_max"]["value"], shown["limits.unfinished_max"]["source"]) == (7, "redis")
    assert shown["telemetry.log_level"]["place"].endswith(":config telemetry.log_level")
    local = {entry["key"]: entry for entry in gateway("config", "show", "--json", "--local").json["values"]}
    assert local["telemetry.log_level"]["source"] == "default"
    for key, value in (("limits.unfinished_max", "0"), ("queue", "x"), ("retry.base_s", "soon")):
        assert gateway("config", "set", key, value).code == 2
    gone = gateway("config", "unset", "limits.unfinished_max", "telemetry.log_level", "--json")
    assert gone.json["overrides"] == {}
    assert "type" in gateway("config", "schema", "--json").json
    assert "endpoint" in gateway("config", "import", "--workers", "comfyui:1").out
    assert gateway("config", "import", "--workers", "comfyui:auto").code == 2


def test_unreachable_redis_is_exit_code_6(capsys: pytest.CaptureFixture[str]) -> None:
    """No traceback, no long wait: one line that says where and what to look at."""
    assert run(["status", "--redis-url", "redis://127.0.0.1:1/0", "--json"]) == 6
    error = json.loads(capsys.readouterr().err)["error"]
    assert error["kind"] == "StoreUnavailable"
    assert "127.0.0.1:1" in error["message"]


def test_help_names_commands_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    """The top help lists every exit code that errors use."""
    assert run(["--help"]) == 0
    text = capsys.readouterr().out
    assert [
        code
        for code in ("0 ", "1 ", "2 ", "3 ", "4 ", "5 ", "6 ", "130", "141")
        if f"\n    {code}" not in text
    ] == []
