"""The spool keeps what Redis could not take: over crashes, over damage, within its bound, and fsynced."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway import spool as spool_module
from gateway.models import ClassId, Epoch, JobId, Settlement, SettlementKind
from gateway.spool import FileSpool, MemorySpool, SpoolFull
from tests.chaos.fleet import ROOT

NEIGHBOURS, ROUNDS = 6, 20
KEEPER = """
import sys
from pathlib import Path
from gateway.spool import FileSpool
from tests.runtime.test_spool import settlement
spool = FileSpool(Path(sys.argv[1]), sys.argv[2])
for number in range(int(sys.argv[3])):
    spool.put(settlement(f"{sys.argv[2]}-{number}"))
print("ready", flush=True)
sys.stdin.read()
spool.close()
"""


def settlement(job_id: str, epoch: int = 1, body: str = '"é/ü"') -> Settlement:
    return Settlement(
        job_id=JobId(job_id),
        epoch=Epoch(epoch),
        class_id=ClassId("c"),
        kind=SettlementKind.COMPLETED,
        body=body,
    )


def keeper(root: Path, instance: str, entries: int) -> subprocess.Popen[bytes]:
    """A process that holds a spool with entries until its input ends."""
    return subprocess.Popen(
        [sys.executable, "-c", KEEPER, root, instance, str(entries)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )


def said_ready(process: subprocess.Popen[bytes]) -> bool:
    assert process.stdout is not None
    return process.stdout.readline() == b"ready\n"


def test_entries_come_back_in_order_until_they_are_removed(tmp_path: Path) -> None:
    """What was put is pending, oldest first, once per lease, and gone after its removal."""
    spool = FileSpool(tmp_path, "one")
    kept = [settlement("slash/and space"), settlement("b", 2), settlement("b", 3)]
    for item in kept:
        spool.put(item)
    spool.put(kept[0])
    assert spool.pending() == kept
    assert len(spool) == 3
    spool.remove(kept[1])
    spool.remove(kept[1])
    assert spool.pending() == [kept[0], kept[2]]
    spool.close()


def test_a_clean_end_leaves_no_folder(tmp_path: Path) -> None:
    """An emptied spool removes its folder; one with entries keeps it for the next process."""
    spool = FileSpool(tmp_path, "one")
    spool.put(settlement("a"))
    spool.remove(settlement("a"))
    spool.close()
    assert list(tmp_path.iterdir()) == []
    spool = FileSpool(tmp_path, "one")
    spool.put(settlement("a"))
    spool.close()
    assert FileSpool(tmp_path, "other").pending() == [settlement("a")]


@pytest.mark.chaos
def test_entries_of_a_killed_process_are_adopted_those_of_a_living_one_are_not(tmp_path: Path) -> None:
    """The kernel frees the lock of a killed process; a living one keeps what is its own."""
    dead, living = keeper(tmp_path, "dead", 2), keeper(tmp_path, "living", 1)
    try:
        assert said_ready(dead)
        assert said_ready(living)
        dead.kill()
        dead.communicate(timeout=10)
        spool = FileSpool(tmp_path, "new")
        assert [item.job_id for item in spool.pending()] == ["dead-0", "dead-1"]
        assert sorted(folder.name for folder in tmp_path.iterdir()) == ["living", "new"]
        spool.close()
    finally:
        for process in (dead, living):
            process.kill()
            process.communicate(timeout=10)


def test_the_same_instance_cannot_run_twice(tmp_path: Path) -> None:
    """Two processes under one name would answer for each other's entries."""
    spool = FileSpool(tmp_path, "one")
    with pytest.raises(SpoolFull):
        FileSpool(tmp_path, "one")
    spool.close()


def test_neighbours_may_start_and_end_at_the_same_moment(tmp_path: Path) -> None:
    """Spools opened together over those of dead processes are all usable, and no entry is lost or doubled.

    Threads stand for processes: the locks belong to open files, so they exclude each other just the same.
    """
    together = threading.Barrier(NEIGHBOURS)

    def start_and_end(number: int, kept: int) -> None:
        together.wait(10)
        spool = FileSpool(tmp_path, f"{kept}-{number}")
        spool.put(settlement(f"job-{number}", epoch=kept))
        spool.close()

    with ThreadPoolExecutor(NEIGHBOURS) as pool:
        for kept in range(1, ROUNDS + 1):
            list(pool.map(start_and_end, range(NEIGHBOURS), [kept] * NEIGHBOURS))
    last = FileSpool(tmp_path, "last")
    expected = {(f"job-{number}", kept) for number in range(NEIGHBOURS) for kept in range(1, ROUNDS + 1)}
    assert {(item.job_id, item.epoch) for item in last.pending()} == expected
    assert len(last) == len(expected)
    last.close()


def test_a_damaged_entry_is_set_aside_and_never_deleted(tmp_path: Path) -> None:
    """An unreadable entry stops nobody, and stays on disk through adoption and clean ends."""
    spool = FileSpool(tmp_path, "one")
    spool.put(settlement("good"))
    spool.put(settlement("bad"))
    entry = next((tmp_path / "one").glob("bad*.json"))
    entry.write_bytes(b'{"job_id": "bad", "epo')
    assert spool.pending() == [settlement("good")]
    assert len(spool) == 1
    spool.remove(settlement("good"))
    spool.close()
    (tmp_path / "one" / "half.tmp").write_bytes(b"{")
    for name in ("two", "three"):
        FileSpool(tmp_path, name).close()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"] == [
        "bad.1.damaged"
    ]


def test_a_full_spool_refuses_new_entries_only(tmp_path: Path) -> None:
    """At the bound a new entry is refused; one that is already kept may be written again."""
    for spool in (MemorySpool(entries_max=3), FileSpool(tmp_path, "one", entries_max=3)):
        for number in range(3):
            spool.put(settlement(f"job-{number}"))
        with pytest.raises(SpoolFull):
            spool.put(settlement("one too many"))
        spool.put(settlement("job-1", body="2"))
        assert [item.body for item in spool.pending()].count("2") == 1
        assert len(spool) == 3


def test_a_disk_that_refuses_is_a_full_spool(tmp_path: Path) -> None:
    """A folder that is gone refuses the entry with a typed error, so that the caller insists at the store."""
    spool = FileSpool(tmp_path, "one")
    (tmp_path / "one" / "lock").unlink()
    (tmp_path / "one").rmdir()
    with pytest.raises(SpoolFull):
        spool.put(settlement("a"))
    assert len(spool) == 0


PUT = """
import sys
from pathlib import Path
from gateway.spool import FileSpool
from tests.runtime.test_spool import settlement
FileSpool(Path(sys.argv[1]), "one").put(settlement("a"))
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="system calls are watched with strace")
def test_an_entry_is_complete_on_disk_before_it_has_its_name(tmp_path: Path) -> None:
    """Written aside, synced, renamed, and the folder synced: a crash leaves the whole entry or none."""
    trace = tmp_path / "trace"
    watch = ["strace", "-f", "-e", "trace=openat,rename,fsync", "-o", str(trace)]
    done = subprocess.run([*watch, sys.executable, "-c", PUT, tmp_path / "spool"], cwd=ROOT, check=False)
    if done.returncode:
        pytest.skip("this system lets nobody trace")
    lines = trace.read_text("utf-8", "replace").splitlines()
    begin = next(i for i, line in enumerate(lines) if "a.1.tmp" in line)
    calls = [line.split("(")[0].split()[-1] for line in lines[begin : begin + 5]]
    assert calls == ["openat", "fsync", "rename", "openat", "fsync"]


def test_entries_are_private_to_the_user(tmp_path: Path) -> None:
    """Results may be confidential: no other user can enter the spool's folders."""
    spool = FileSpool(tmp_path / "root", "one")
    assert os.stat(tmp_path / "root").st_mode & 0o077 == 0
    assert os.stat(tmp_path / "root" / "one").st_mode & 0o077 == 0
    assert spool_module.LOCK in os.listdir(tmp_path / "root" / "one")
    spool.close()
