"""``gateway doctor``: each bad state is injected for real, is found, and comes with a remedy that mends it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from gateway.cli.app import run
from gateway.cli.doctor import Level, judge_server
from gateway.client import Client
from gateway.client.durability import ServerFacts
from gateway.client.permissions import probes
from gateway.store.keys import QueueKeys
from tests.support.hand_worker import fresh_queue, hand_worker
from tests.support.redis_server import RedisServer

LUA = Path(__file__).resolve().parents[2] / "gateway" / "store" / "lua"
ALL = "on >secret +@all ~* &*"
Findings = dict[str, dict[str, Any]]
Doctor = Callable[..., Findings]


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Doctor:
    """Runs the command; its findings by check. Its exit code must say whether one is bad."""

    def doctor(*arguments: str) -> Findings:
        code = run(["doctor", "--json", *arguments])
        told = json.loads(capsys.readouterr().out)
        bad = any(finding["level"] == "bad" for finding in told["findings"])
        assert (code, told["ok"]) == (int(bad), not bad)
        assert [found for found in told["findings"] if found["level"] != "ok" and not found["remedy"]] == []
        return {finding["check"]: finding for finding in told["findings"]}

    return doctor


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis") as server:
        yield server


def as_user(server: RedisServer, folder: Path, password: str = "secret") -> tuple[str, ...]:
    """Options that reach the server as the user `limited`; a password may only be named, not given."""
    secret, config = folder / "redis_url", folder / "gateway.toml"
    secret.write_text(f"redis://limited:{password}@127.0.0.1:{server.port}/0")
    secret.chmod(0o600)
    config.write_text(f'redis_url = {{ file = "{secret}" }}\n')
    return ("--config", str(config), "--data-dir", str(folder))


def bad(findings: Findings) -> set[str]:
    return {check for check, finding in findings.items() if finding["level"] == "bad"}


def warned(findings: Findings) -> set[str]:
    return {check for check, finding in findings.items() if finding["level"] == "warn"}


def test_configuration_endpoints_and_server(tmp_path: Path, doctor: Doctor) -> None:
    """No persistence, an evicting policy, dead endpoints, unknown connectors and bad addresses are all told at once."""
    path = tmp_path / "gateway.toml"
    path.write_text(
        '[workers.gone]\nconnector = "simulation-http"\nendpoint = "http://127.0.0.1:1"\n'
        '[workers.odd]\nconnector = "nobody-http"\nendpoint = "http://127.0.0.1:1"\n'
        '[workers.worse]\nconnector = "simulation-http"\nendpoint = "nowhere"\n'
        '[workers.lost]\nconnector = "simulation-http"\ninstance = "m"\n'
        '[workers.gone.rollout]\nendpoint = "http://127.0.0.1:2"\n'
    )
    options = {"appendonly": "no", "maxmemory-policy": "allkeys-lru"}
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "redis", options=options) as server:
        place = ("--redis-url", server.url, "--data-dir", str(tmp_path))
        found = doctor(*place, "--config", str(path))
        workers = {"worker gone", "worker gone.rollout", "worker odd", "worker worse", "worker lost"}
        assert bad(found) == {"persistence", "eviction policy", *workers}
        assert warned(found) == {"durable submits"}
        assert "noeviction" in found["eviction policy"]["remedy"]
        assert "appendonly yes" in found["persistence"]["remedy"]
    gone = doctor(*place)
    assert bad(gone) == {"redis"}
    assert "start Redis" in gone["redis"]["remedy"]
    path.write_text("bogus = 1")
    assert bad(doctor(*place, "--config", str(path))) == {"configuration"}


def test_warnings_alone_do_not_fail(
    redis_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sound Redis without workers is no problem; the last line counts the warnings."""
    where = ["--redis-url", redis_url, "--queue", fresh_queue(), "--data-dir", str(tmp_path)]
    assert run(["doctor", *where]) == 0
    assert re.fullmatch(r"no problem, (1 warning|2 warnings)", capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize(
    ("rights", "purposes"),
    [
        ("resetchannels", {"pub/sub"}),
        ("-@pubsub", {"pub/sub"}),
        ("-@scripting", {"scripts"}),
        ("-@stream", {"streams"}),
        ("resetkeys ~other:*", {"scripts", "streams", "jobs"}),
        ("-zpopmin -time", {"jobs", "clock"}),
        ("-@write", {"streams", "jobs"}),
        ("", set()),
    ],
)  # fmt: skip
def test_missing_rights_are_found_and_the_remedy_mends_them(
    server: RedisServer, tmp_path: Path, doctor: Doctor, rights: str, purposes: set[str]
) -> None:
    """A user who lacks a command, the keys or the channels is told what for, and the rights named then suffice."""
    place = as_user(server, tmp_path)
    with redis.Redis(port=server.port) as admin:
        admin.execute_command("ACL", "SETUSER", "limited", *f"{ALL} {rights}".split())
        finding = doctor(*place)["redis permissions"]
        assert finding["level"] == ("bad" if purposes else "ok")
        told = re.findall(r"([a-z/]+): [A-Z]", finding["detail"].partition("(")[0])
        assert set(told) == purposes
        assert "secret" not in str(finding)
        if purposes:
            cure = re.findall(r"(?<= )[+~&][^ ,]+", finding["remedy"])
            admin.execute_command("ACL", "SETUSER", "limited", "resetkeys", "resetchannels", *cure)
        assert bad(doctor(*place)) == set()
        assert admin.dbsize() == 0


def test_the_documented_rights_suffice(server: RedisServer, tmp_path: Path, doctor: Doctor) -> None:
    """The user of docs/operations.md passes, and can submit a job and read it."""
    text = (LUA.parents[2] / "docs" / "operations.md").read_text("utf-8")
    line = next(line for line in text.splitlines() if line.startswith("ACL SETUSER gateway "))
    rights = line.removeprefix("ACL SETUSER gateway ").replace("PASSWORD", "secret").split()
    with redis.Redis(port=server.port) as admin:
        admin.execute_command("ACL", "SETUSER", "limited", *rights)
    found = doctor(*as_user(server, tmp_path))
    assert bad(found) == set()
    assert not {"redis server", "redis permissions"} & warned(found)
    with Client(f"redis://limited:secret@127.0.0.1:{server.port}/0") as client:
        assert client.get(client.submit("simulation").job_id).state == "pending"


def test_what_cannot_be_asked_is_a_warning(server: RedisServer, tmp_path: Path, doctor: Doctor) -> None:
    """Without INFO or transactions the rest is still looked at."""
    place = as_user(server, tmp_path)
    with redis.Redis(port=server.port) as admin:
        admin.execute_command("ACL", "SETUSER", "limited", *f"{ALL} -info -multi".split())
    found = doctor(*place)
    assert {"redis server", "redis permissions"} <= warned(found)
    assert found["queue"]["level"] == "ok"
    wrong = doctor(*as_user(server, tmp_path, "wrong"))
    assert bad(wrong) == {"redis"}
    assert "credentials" in wrong["redis"]["remedy"]


def test_every_command_of_the_scripts_is_asked_for() -> None:
    """No script calls a command that the question about rights leaves out."""
    used = {
        name for path in LUA.glob("*.lua") for name in re.findall(r"redis\.call\('([A-Z]+)'", path.read_text("utf-8"))
    }  # fmt: skip
    assert used - {str(parts[0]) for _, parts in probes(QueueKeys("q"))} == set()


def test_folders_that_cannot_be_written(redis_url: str, tmp_path: Path, doctor: Doctor) -> None:
    """A data folder below a file is found with and without a Redis of one's own; so is a spool that is a file."""
    file = tmp_path / "file"
    file.write_text("")
    below = doctor("--redis-url", redis_url, "--data-dir", str(file / "data"))
    assert bad(below) == {"data folder", "spool"}
    assert str(file) in below["data folder"]["detail"]
    assert "data_dir" in below["data folder"]["remedy"]
    assert bad(doctor("--data-dir", str(file / "data"))) == {"data folder", "spool", "redis"}
    (tmp_path / "spool").write_text("")
    assert bad(doctor("--redis-url", redis_url, "--data-dir", str(tmp_path))) == {"spool"}
    (tmp_path / "spool").unlink()
    sound = doctor("--redis-url", redis_url, "--data-dir", str(tmp_path / "fresh"))
    assert bad(sound) == set()
    assert not (tmp_path / "fresh").exists()


def test_a_full_memory_and_a_replica(tmp_path: Path, server: RedisServer, doctor: Doctor) -> None:
    """A Redis that takes no writes is found: its memory is used up, or it follows another one."""
    place = ("--redis-url", server.url, "--data-dir", str(tmp_path))
    with redis.Redis(port=server.port) as admin:
        admin.config_set("maxmemory", "1mb")
        full = doctor(*place)
        assert "memory" in bad(full)
        assert "redis permissions" not in bad(full)
        assert "maxmemory" in full["memory"]["remedy"]
        admin.config_set("maxmemory", "0")
        admin.replicaof("127.0.0.1", "1")
        replica = doctor(*place)
        assert "redis role" in bad(replica)
        assert "primary" in replica["redis role"]["remedy"]


def test_a_queue_whose_jobs_nobody_takes(redis_url: str, tmp_path: Path, doctor: Doctor) -> None:
    """Paused, without workers, or with workers that do not claim: each is a warning with the reason."""
    queue = fresh_queue()
    place = ("--redis-url", redis_url, "--queue", queue, "--data-dir", str(tmp_path))
    with Client(redis_url, queue=queue) as client, hand_worker(redis_url, queue) as worker:
        client.submit("simulation")
        client.pause()
        found = doctor(*place)
        assert {"queue", "live workers"} <= warned(found)
        client.resume()
        worker.register("m/w", {"service": "simulation", "slots": 1, "refusal": "breaker open"})
        found = doctor(*place)
        assert found["queue"]["level"] == "ok"
        assert "m/w: breaker open" in found["live workers"]["detail"]


def test_overrides_of_the_fleet_count(redis_url: str, tmp_path: Path, doctor: Doctor) -> None:
    """What the fleet overrides is part of the configuration that is looked at."""
    queue = fresh_queue()
    place = ("--redis-url", redis_url, "--queue", queue, "--data-dir", str(tmp_path))
    with Client(redis_url, queue=queue) as client:
        client.configure({"limits.unfinished_max": 1000})
        assert doctor(*place)["fleet overrides"]["detail"] == "limits.unfinished_max"


@pytest.mark.parametrize(
    ("changes", "check", "level"),
    [
        ({"version": (6, 0, 16)}, "redis version", Level.BAD),
        ({"version": (6, 2, 0)}, "redis version", Level.OK),
        ({"role": "slave"}, "redis role", Level.BAD),
        ({"aof_last_write_ok": False}, "persistence", Level.BAD),
        ({"appendfsync": "no"}, "persistence", Level.WARN),
        ({"aof_enabled": False, "snapshots": True}, "persistence", Level.WARN),
        ({"aof_enabled": False, "snapshots": False}, "persistence", Level.BAD),
        ({"aof_enabled": False, "snapshots": None}, "persistence", Level.BAD),
        ({"eviction": ""}, "eviction policy", Level.WARN),
        ({"eviction": "volatile-ttl"}, "eviction policy", Level.BAD),
        ({"used_bytes": 90, "memory_bytes_max": 100}, "memory", Level.OK),
        ({"used_bytes": 91, "memory_bytes_max": 100}, "memory", Level.WARN),
        ({"used_bytes": 100, "memory_bytes_max": 100}, "memory", Level.BAD),
    ],
)  # fmt: skip
def test_each_fact_is_judged(changes: dict[str, Any], check: str, level: Level) -> None:
    """One fact changed on a sound server changes one verdict (durable submits apart)."""
    sound: dict[str, Any] = {
        "version": (7, 4, 0), "name": "Redis", "aof_enabled": True, "appendfsync": "everysec", "replicas": 0,
        "role": "master", "eviction": "noeviction", "snapshots": True, "aof_last_write_ok": True,
    }  # fmt: skip
    found = {finding.check: finding.level for finding in judge_server(ServerFacts(**sound | changes))}
    others = {name: one for name, one in found.items() if name not in (check, "durable submits")}
    assert (found[check], set(others.values())) == (level, {Level.OK})
