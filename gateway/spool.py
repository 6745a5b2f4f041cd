"""Settlements that could not be recorded yet: a small, bounded, fsynced spool on disk.

Each process writes into a folder of its own, held by a file lock; a starting process adopts the folders of dead ones.
Replaying an entry twice, or years too late, is harmless: the fence decides.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import msgspec

from gateway.models import Settlement

log = logging.getLogger(__name__)

ENTRIES_MAX = 10_000
#: Begins the name of a folder that is being made; no quoted instance name holds a comma.
NEW = "new,"
LOCK = "lock"
DAMAGED = ".damaged"
#: Tries to get a folder of one's own: each is lost only to a neighbour that starts at the very same moment.
START_TRIES = 20
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Settlement).decode


class SpoolFull(Exception):
    """The spool holds as many entries as it may, or the disk refuses."""


class Spool(Protocol):
    """Where settlements wait while the store is away (a seam: the simulation keeps them in memory)."""

    def put(self, settlement: Settlement) -> None:
        """Keep one settlement so that it survives a crash of this process.

        Raises:
            SpoolFull: it could not be kept.
        """
        ...

    def remove(self, settlement: Settlement) -> None:
        """Forget a settlement that the store has answered."""
        ...

    def pending(self) -> list[Settlement]:
        """All kept settlements, oldest first, those of dead predecessors included."""
        ...

    def __len__(self) -> int: ...


class MemorySpool:
    """Keeps settlements as long as the process lives, at most ``entries_max``."""

    def __init__(self, *, entries_max: int = ENTRIES_MAX) -> None:
        self._entries_max = entries_max
        self._entries: dict[tuple[str, int], Settlement] = {}

    def put(self, settlement: Settlement) -> None:
        key = (settlement.job_id, settlement.epoch)
        if key not in self._entries and len(self._entries) >= self._entries_max:
            raise SpoolFull(f"{self._entries_max} settlements wait already")
        self._entries[key] = settlement

    def remove(self, settlement: Settlement) -> None:
        self._entries.pop((settlement.job_id, settlement.epoch), None)

    def pending(self) -> list[Settlement]:
        return list(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)


class FileSpool:
    """One file per settlement, written, fsynced and renamed into place.

    Args:
        root: folder of the queue's spools; created if missing, readable by this user only.
        instance: this process's own name; its folder is ``root/instance``.
        entries_max: most entries kept; adopted ones count, but are never refused.
    """

    def __init__(self, root: Path, instance: str, *, entries_max: int = ENTRIES_MAX) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._root = root
        self._entries_max = entries_max
        self._folder = root / quote(instance, safe="")
        self._lock: int | None = None
        for _ in range(START_TRIES):
            self._lock = _create_locked(self._folder)
            if self._lock is not None:
                break
        if self._lock is None:
            raise SpoolFull(f"{self._folder} is in use by another process")
        self._files: dict[tuple[str, int], Path] = {}
        self._adopt()

    def close(self) -> None:
        """Let go of the folder; entries stay for the next process."""
        if self._lock is not None:
            _remove_emptied(self._folder)
            os.close(self._lock)
            self._lock = None

    def put(self, settlement: Settlement) -> None:
        key = (settlement.job_id, settlement.epoch)
        if key not in self._files and len(self._files) >= self._entries_max:
            raise SpoolFull(f"{self._entries_max} settlements wait already in {self._folder}")
        path = self._folder / f"{quote(settlement.job_id, safe='')}.{settlement.epoch}.json"
        try:
            _write_durably(path, _encode(settlement))
        except OSError as error:
            raise SpoolFull(f"{path}: {error.strerror}") from None
        self._files[key] = path

    def remove(self, settlement: Settlement) -> None:
        path = self._files.pop((settlement.job_id, settlement.epoch), None)
        if path is not None:
            path.unlink(missing_ok=True)

    def pending(self) -> list[Settlement]:
        settlements = []
        for key, path in list(self._files.items()):
            settlement = _read(path)
            if settlement is None:
                del self._files[key]
            else:
                settlements.append(settlement)
        return settlements

    def __len__(self) -> int:
        return len(self._files)

    def _adopt(self) -> None:
        """Take over the entries of processes that are gone."""
        for folder in sorted(self._root.iterdir()):
            if folder == self._folder:
                self._index(folder)
                continue
            if folder.name.startswith(NEW):
                continue  # a neighbour is just starting
            lock = _lock_folder(folder) if folder.is_dir() else None
            if lock is None:
                continue
            try:
                for path in [*_entries(folder), *folder.glob("*" + DAMAGED)]:
                    path.rename(self._folder / path.name)
                _remove_emptied(folder)
            finally:
                os.close(lock)
        self._index(self._folder)

    def _index(self, folder: Path) -> None:
        for path in _entries(folder):
            settlement = _read(path)
            if settlement is not None:
                self._files[settlement.job_id, settlement.epoch] = path


def _entries(folder: Path) -> Iterator[Path]:
    return iter(sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns))


def _create_locked(folder: Path) -> int | None:
    """Hold a folder's lock, the folder made if it is missing.

    A new folder appears under its name only once it is locked: between the making and the locking a neighbour that
    starts now would take it for a dead one's and remove it.
    """
    if not folder.exists():
        fresh = folder.with_name(NEW + folder.name)
        fresh.mkdir(mode=0o700, exist_ok=True)
        lock = _lock_folder(fresh)
        if lock is not None:
            try:
                fresh.rename(folder)
            except OSError:
                os.close(lock)  # the name was taken meanwhile
            else:
                return lock
    return _lock_folder(folder)


def _lock_folder(folder: Path) -> int | None:
    """Hold the folder's lock; None when a living process holds it, or when the folder vanished under our hands.

    The kernel drops the lock with the process.
    """
    path = folder / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever adopted the folder meanwhile removed this very file: then we hold a lock of nothing.
        ours = os.fstat(descriptor).st_ino == path.stat().st_ino
    except OSError:
        ours = False
    if not ours:
        os.close(descriptor)
        return None
    return descriptor


def _remove_emptied(folder: Path) -> None:
    """Remove a locked folder that holds nothing worth keeping; damaged entries are for a person to look at."""
    for unfinished in folder.glob("*.tmp"):
        unfinished.unlink(missing_ok=True)
    if any(path.name != LOCK for path in folder.iterdir()):
        return
    (folder / LOCK).unlink(missing_ok=True)
    # A starting neighbour may look into the folder right now; then it stays and is adopted later.
    with suppress(OSError):
        folder.rmdir()


def _write_durably(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(path: Path) -> Settlement | None:
    """One entry; a damaged one is set aside, never silently dropped."""
    try:
        return _decode(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        aside = path.with_suffix(DAMAGED)
        path.rename(aside)
        log.error("spool entry %s is damaged (%s); kept as %s", path.name, error, aside)
        return None
