"""Taking over the replaced system's queue: its own key shapes in, counts that add up, nothing changed there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.app import run
from gateway.client import Client
from gateway.legacy import LegacyFate, LegacyRules, translate
from gateway.matching import validate_requires
from tests.support.redis_server import RedisServer

#: A submission by the replaced API: priority·10¹⁵ − seconds; a retry by its worker: priority·10⁶ + (2⁵³ − 1 − ms).
SUBMITTED_SCORE = 10**15
RETRIED_SCORE = 10**6


def record(number: int, **fields: Any) -> dict[Any, Any]:
    """A job's hash as its API writes it."""
    return {
        "id": f"job-{number}",
        "service_required": "simulation",
        "priority": "50",
        "payload": json.dumps({"duration_s": 0.1}),
        "requirements": "",
        "customer_id": "acme",
        "status": "pending",
        "created_at": f"2025-10-01T12:00:{number % 60:02d}.000Z",
        "retry_count": "0",
        "max_retries": "3",
        "job_trace_id": "temp-trace-id",
        **{name: str(value) for name, value in fields.items()},
    }


@pytest.fixture
def old(tmp_path: Path) -> Iterator[redis.Redis]:
    """The replaced system's Redis with one job of each kind."""
    with RedisServer(tmp_path) as server:
        client = redis.Redis.from_url(server.url)
        waiting = [
            record(1),
            record(2, priority=90, requirements=json.dumps({"hardware": {"gpu_memory_gb": 24}})),
            record(3, priority=90, retry_count=2, last_failed_worker="w"),
            record(4, requirements="{broken"),
            record(5, requirements=json.dumps({"customer_isolation": "strict"})),
            record(6, service_required="openai_text"),
            record(7, status="cancelled"),
            record(8, workflow_priority=95, workflow_datetime=1_759_300_000_000),
        ]
        for item in waiting:
            client.hset(f"job:{item['id']}", mapping=item)
            score = int(item["priority"]) * (RETRIED_SCORE if item["retry_count"] != "0" else SUBMITTED_SCORE)
            client.zadd("jobs:pending", {item["id"]: score})
        client.zadd("jobs:pending", {"job-ghost": 1})
        held = record(9, status="in_progress", worker_id="worker-1")
        client.hset("job:job-9", mapping=held)
        client.hset("jobs:active:worker-1", "job-9", json.dumps(held))
        client.hset("job:job-10", mapping=record(10, status="completed"))
        client.hset("jobs:completed", "job-10", "{}")
        client.hset("jobs:failed", mapping={"job-11": "{}", "job-12": "{}"})
        yield client
        client.close()


def snapshot(client: redis.Redis) -> dict[bytes, Any]:
    """Every key with its serialised value."""
    return {key: client.dump(key) for key in client.scan_iter()}


def import_legacy(
    capsys: pytest.CaptureFixture[str], old: redis.Redis, redis_url: str, queue: str, *words: str
) -> tuple[int, dict[str, Any]]:
    options = old.connection_pool.connection_kwargs
    source = f"redis://{options['host']}:{options['port']}"
    target = ["--redis-url", redis_url, "--queue", queue, "--json"]
    code = run(["import-legacy", "--from", source, *words, *target])
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return code, told


def test_a_dry_run_then_an_import_then_another(
    old: redis.Redis, redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A dry run changes nothing; an import takes each job once, in order, and nothing there is touched."""
    queue = f"legacy-{os.getpid()}-a"
    before = snapshot(old)
    code, told = import_legacy(capsys, old, redis_url, queue)
    assert code == 1  # some were refused, and each says why
    expected = {
        "found": 10,
        "ready": 4,
        "running_there": 1,
        "ended_there": 1,
        "without_record": 1,
        "refused": 3,
    }
    assert {name: told[name] for name in expected} == expected
    assert (told["applied"], told["taken_over"], told["reconciled"]) == (False, 0, True)
    assert told["history_there"] == {"completed": 1, "failed": 2}
    reasons = {left["job_id"]: left["reason"] for left in told["left"]}
    assert reasons["job-4"].startswith("requirements: is no JSON")
    assert reasons["job-5"].startswith("requirements.customer_isolation: has no counterpart")
    assert "service 'openai_text' is unknown here" in reasons["job-6"]
    assert reasons["job-9"] == "worker-1 holds it (in_progress)"
    with Client(redis_url, queue=queue) as client:
        assert client.stats().jobs == 0

    _code, told = import_legacy(capsys, old, redis_url, queue, "--apply")
    assert (told["taken_over"], told["already_here"], told["reconciled"]) == (4, 0, True)
    with Client(redis_url, queue=queue) as client:
        first_life = [event.job_id for event in client.events(follow=False)]
        assert first_life == ["job-8", "job-2", "job-3", "job-1"]
        view = client.get("job-2")
        assert view.spec.requires == {"vram_gb": {">=": 24}}
        assert (view.spec.priority, view.spec.tenant, view.spec.max_attempts) == (90, "acme", 3)
        assert client.get("job-3").spec.max_attempts == 1

    _code, told = import_legacy(
        capsys,
        old,
        redis_url,
        queue,
        "--apply",
        "--take-running",
        "--ignore-requirement",
        "customer_isolation",
    )
    assert (told["taken_over"], told["already_here"], told["refused"]) == (2, 4, 2)
    assert told["reconciled"]
    assert snapshot(old) == before


def test_bad_input_is_one_line_and_changes_nothing(
    redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A source that cannot be read and a malformed option: exit codes 6 and 2, one line each."""
    target = ["--redis-url", redis_url, "--queue", f"legacy-{os.getpid()}-b"]
    for words, code in (
        (["--from", "redis://127.0.0.1:1"], 6),
        (["--from", "http://127.0.0.1:1"], 2),
        (["--from", redis_url, "--service", "no-pair"], 2),
    ):
        assert run(["import-legacy", *words, *target]) == code
        assert capsys.readouterr().err.count("\n") == 1


_texts = st.sampled_from(
    ["", "x", "7", "-1", "1e9", "[]", "{}", '{"a":1}', "null", "true", "all", '{"hardware":3}']
)
_fields = st.sampled_from(
    ["service_required", "priority", "workflow_priority", "payload", "requirements", "status", "created_at",
     "retry_count", "max_retries", "workflow_datetime", "customer_id"]
)  # fmt: skip
_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(fields=st.dictionaries(_fields, _texts | _values.map(json.dumps)))
def test_any_record_is_translated_or_refused(fields: dict[str, str]) -> None:
    """Whatever stands in a hash, the job has exactly one fate, and one that is not ready says why."""
    job = translate("job-1", fields, LegacyRules())
    assert (job.request is not None) == (job.fate is LegacyFate.READY)
    assert bool(job.reason) == (job.fate is not LegacyFate.READY)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"models": ["sdxl", "flux"]}, {"models": {"has": ["sdxl", "flux"]}}),
        ({"models": "all", "hardware": {"gpu_memory_gb": "all", "ram_gb": 32}}, {"ram_gb": {">=": 32}}),
        ({"performance": {"tier": "gold", "score": 3}},
         {"performance.tier": {"==": "gold"}, "performance.score": {">=": 3}}),
        ({"positive_requirements": {"asset": True}, "negative_requirements": {"region": ["eu", "us"]}},
         {"asset": {"==": True}, "region": {"not": ["eu", "us"]}}),
        ({"negative_requirements": {"region": "eu"}}, {"region": {"not": "eu"}}),
        ({"timeout_minutes": 5}, {}),
    ],
)  # fmt: skip
def test_requirements_keep_their_meaning(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Lists must be contained, numbers reached, the rest equal; "all" asks for nothing; negatives exclude."""
    job = translate("j", record(1, requirements=json.dumps(theirs)), LegacyRules())
    assert job.request is not None
    assert validate_requires(dict(job.request.requires or {})) == ours
    assert job.request.timeout_s == (300.0 if "timeout_minutes" in theirs else 1800.0)
