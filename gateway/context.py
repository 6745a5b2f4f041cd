"""What a running job tells the store: its reference, its progress, its streamed chunks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import trio

from gateway.errors import FaultClass, JobFault, StoreError, StoreUnavailable
from gateway.leases import EndReason, Ownership
from gateway.models import Epoch, Grant, JobId, JobSpec, ProgressKind, ProgressNote, Verdict
from gateway.recovery import Reference
from gateway.store.base import JobStore

RETRY_S = 0.25
CHUNK_BYTES_MAX = 1024 * 1024
_encode = msgspec.json.Encoder().encode


class RunningJob:
    """The ``JobContext`` of one attempt.

    Args:
        ownership: the lease; a stale answer ends it.
        reference: where the job is being handed to; its ``name`` is what connectors see.
        headers: makes the headers of a request to the service; asked each time, as the trace span changes.
        pump: carries progress to the store at its own pace.
    """

    def __init__(
        self,
        store: JobStore,
        ownership: Ownership,
        reference: Reference,
        headers: Callable[[], Mapping[str, str]],
        pump: ProgressPump,
        *,
        now_s: float,
    ) -> None:
        self._store = store
        self._ownership = ownership
        self._reference = reference
        self._pump = pump
        self._number = 0
        self._value = 0.0
        self._latest: tuple[float, str] | None = None
        #: What the service said last, kept after the pump took ``_latest``.
        self._shown: tuple[float, str] | None = None
        #: Made with the first chunk: most jobs stream none.
        self._chunks: trio.Lock | None = None
        self._headers = headers
        #: Monotonic time at which the job last moved, for the progress watchdog.
        self.last_sign_s = now_s

    @property
    def grant(self) -> Grant:
        return self._ownership.grant

    @property
    def job_id(self) -> JobId:
        return self.grant.job_id

    @property
    def spec(self) -> JobSpec:
        return self.grant.spec

    @property
    def epoch(self) -> Epoch:
        return self.grant.epoch

    @property
    def headers(self) -> Mapping[str, str]:
        return self._headers()

    @property
    def reference(self) -> str:
        return self._reference.name

    async def attach(self, reference: str) -> None:
        """Store the name under which the service knows the job.

        Raises:
            JobFault: LEASE_LOST when the job is no longer ours.
            StoreRejected: it could not be stored.
        """
        self._reference = dataclasses.replace(self._reference, name=reference)
        await self.store_reference()

    async def store_reference(self) -> None:
        """Make the reference known to a later owner; see ``attach``.

        Repeated while the store does not answer, bounded by the lease: handing the job over without it, or giving
        it back for a moment's silence, would cost more.
        """
        stored = self._reference.stored()
        if self.grant.reference == stored:
            return
        while True:
            try:
                self._check(await self._store.attach(self._ownership.lease, stored))
                return
            except StoreUnavailable:
                await trio.sleep(RETRY_S)

    def progress(self, value: float, message: str = "") -> None:
        """See ``JobContext``; values never go backwards within an attempt."""
        if math.isfinite(value):
            self._value = max(self._value, min(1.0, value))
        self._latest = (self._value, message)
        if self._latest != self._shown:
            # A service that says the same again and again lives, but the job does not move.
            self._shown = self._latest
            self.last_sign_s = self._pump.now()
        self._pump.mark(self)

    async def chunk(self, data: Any) -> None:
        """See ``JobContext``; repeated until the store has answered, bounded by the lease and the job's deadline.

        Raises:
            JobFault: the job is no longer ours, or the chunk is too large.
        """
        body = _encode(data).decode()
        if len(body) > CHUNK_BYTES_MAX:
            raise JobFault(FaultClass.VALIDATION, f"a chunk of {len(body)} bytes exceeds {CHUNK_BYTES_MAX}")
        self.last_sign_s = self._pump.now()
        # One chunk at a time: a repeated chunk must not be overtaken by a later number, it would look replayed.
        if self._chunks is None:
            self._chunks = trio.Lock()
        async with self._chunks:
            note = self._note(ProgressKind.CHUNK, self._value, body)
            while True:
                try:
                    self._check(await self._store.progress(note))
                    return
                except StoreError:
                    await trio.sleep(RETRY_S)

    def _note(self, kind: ProgressKind, value: float, body: str) -> ProgressNote:
        self._number += 1
        return ProgressNote(
            job_id=self.job_id, epoch=self.epoch, number=self._number, kind=kind, value=value, body=body
        )

    def _check(self, verdict: Verdict) -> None:
        if verdict is Verdict.STALE:
            self._ownership.end(EndReason.LOST)
            raise JobFault(FaultClass.LEASE_LOST, "the store says that this job belongs to somebody else")

    def take_note(self) -> ProgressNote | None:
        """The latest unsent progress, for the pump; None while a chunk of this job is under way."""
        if self._latest is None or (self._chunks is not None and self._chunks.locked()):
            return None
        (value, message), self._latest = self._latest, None
        return self._note(ProgressKind.PROGRESS, value, _encode(message).decode() if message else "")

    def noted(self, verdict: Verdict) -> None:
        """The pump learned what became of a note."""
        if verdict is Verdict.STALE:
            self._ownership.end(EndReason.LOST)


class ProgressPump:
    """Sends the latest progress of every job of the process, at most once per ``every_s`` and job.

    Intermediate values are dropped (the buffer conflates), so a chatty service can neither block its job nor flood
    Redis. A note that Redis did not take is dropped too: the next one carries more.
    """

    def __init__(self, store: JobStore, *, every_s: float) -> None:
        self._store = store
        self._every_s = every_s
        self._marked: dict[RunningJob, None] = {}
        self._work = trio.Event()

    def now(self) -> float:
        """The monotonic clock of trio, seconds."""
        return trio.current_time()

    def mark(self, job: RunningJob) -> None:
        """This job has something to tell."""
        self._marked[job] = None
        self._work.set()

    def forget(self, job: RunningJob) -> None:
        """The job has ended; nothing of it may be sent any more."""
        self._marked.pop(job, None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Pump until cancelled."""
        task_status.started()
        while True:
            await self._work.wait()
            self._work = trio.Event()
            marked, self._marked = list(self._marked), {}
            async with trio.open_nursery() as nursery:
                for job in marked:
                    note = job.take_note()
                    if note is not None:
                        nursery.start_soon(self._send, job, note)
            await trio.sleep(self._every_s)

    async def _send(self, job: RunningJob, note: ProgressNote) -> None:
        try:
            job.noted(await self._store.progress(note))
        except StoreError:
            return
