"""What the tests of both clients share: queues of their own, a worker played by hand, runs under both event loops."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from gateway.client.blocking import finish
from gateway.client.sync_link import SyncLink
from gateway.models import (
    ClaimRequest,
    ClassId,
    Grant,
    ProgressKind,
    ProgressNote,
    Settlement,
    Verdict,
    WorkerId,
)
from gateway.store import scripts
from gateway.store.calls import StoreLimits
from gateway.store.keys import QueueKeys

_numbers = itertools.count(1)


def fresh_queue() -> str:
    """A queue that no other test uses."""
    return f"client-{os.getpid()}-{next(_numbers)}"


class HandWorker:
    """Claims and settles as a gateway does, one step at a time."""

    def __init__(self, link: SyncLink, queue: str, limits: StoreLimits) -> None:
        self._link = link
        self._keys = QueueKeys(queue)
        self._limits = limits
        self._requests = itertools.count(1)

    def claim(self, *, class_id: str = "simulation", worker: str = "m/w", lease_s: float = 30.0) -> Grant:
        """The next job of a class; there must be one."""
        request = ClaimRequest(str(next(self._requests)), WorkerId(worker), 1, 1, (ClassId(class_id),))
        call = scripts.claim_call(self._keys, self._limits, lease_s, "hand", [request])
        (reply,) = scripts.claim_reply(finish(self._link.script(call)), 1)
        (grant,) = reply.grants
        return grant

    def settle(self, settlement: Settlement) -> None:
        """End a lease; the fence must accept it."""
        call = scripts.settle_call(self._keys, self._limits, [settlement])
        ((verdict, _),) = scripts.settle_reply(finish(self._link.script(call)))
        assert verdict is Verdict.ACCEPTED

    def note(self, grant: Grant, number: int, *, chunk: object = None, value: float = 0.0) -> None:
        """Report progress, or a chunk."""
        kind = ProgressKind.CHUNK if chunk is not None else ProgressKind.PROGRESS
        body = msgspec.json.encode(chunk if chunk is not None else "working").decode()
        note = ProgressNote(
            job_id=grant.job_id, epoch=grant.epoch, number=number, kind=kind, value=value, body=body
        )
        finish(self._link.script(scripts.progress_call(self._keys, self._limits, [note])))

    def register(self, worker: str, description: dict[str, object]) -> None:
        """Register a worker as a gateway does."""
        entry = (worker, msgspec.json.encode(description))
        finish(self._link.script(scripts.heartbeat_call(self._keys, self._limits, [entry])))

    def sweep(self) -> None:
        """What a gateway's sweeper does, for one class."""
        finish(self._link.script(scripts.sweep_call(self._keys, self._limits, ["simulation"])))

    def complete(self, result: object = None) -> Grant:
        """Claim the next job and complete it."""
        grant = self.claim()
        self.settle(Settlement.completed(grant, body=msgspec.json.encode(result).decode()))
        return grant

    def bury(self, message: str = "no such model") -> Grant:
        """Claim the next job and let it fail for good."""
        grant = self.claim()
        body = msgspec.json.encode({"kind": "validation", "message": message}).decode()
        self.settle(Settlement.failed_for_good(grant, body=body, detail=body))
        return grant


@contextmanager
def hand_worker(url: str, queue: str, limits: StoreLimits | None = None) -> Iterator[HandWorker]:
    """A worker by hand on a queue."""
    link = SyncLink(url, command_timeout_s=3.0, connect_timeout_s=3.0)
    try:
        yield HandWorker(link, queue, limits or StoreLimits())
    finally:
        link.close()
