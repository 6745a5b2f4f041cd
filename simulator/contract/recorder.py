"""A job that only remembers what its connector told it: the ``JobContext`` of tests.

It keeps the same promises as the gateway's own (``gateway.context.RunningJob``); a test runs both through one script.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec
import trio

from gateway.connectors.simulation.wire import HEADER_TRACEPARENT
from gateway.context import CHUNK_BYTES_MAX
from gateway.errors import FaultClass, JobFault
from gateway.headers import HEADER_EPOCH, HEADER_EXPECTED_ENDPOINT, HEADER_WORKER
from gateway.models import Epoch, JobId, JobSpec

_encode = msgspec.json.Encoder().encode


class RecordingJob:
    """One attempt at a job, its story kept in memory.

    Args:
        spec: the job.
        job_id: its id.
        epoch: of the lease that it pretends to run under.
        reference: name at the service; made from the id when not given.
        headers: of requests to the service.

    Attributes:
        values: fractions done, in the order they were told; they never go backwards.
        messages: what was told with each of them.
        chunks: partial results, as JSON gives them back.
        references: every name the connector attached, the newest last.
        lost: the job is somebody else's now: attaching and chunks are refused.
    """

    def __init__(
        self,
        spec: JobSpec,
        *,
        job_id: str = "job",
        epoch: int = 1,
        reference: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self._spec = spec
        self._job_id = JobId(job_id)
        self._epoch = Epoch(epoch)
        self._reference = reference or f"{job_id}.1"
        self._headers = dict(headers or {})
        self.values: list[float] = []
        self.messages: list[str] = []
        self.chunks: list[Any] = []
        self.references: list[str] = []
        self.lost = False

    @property
    def job_id(self) -> JobId:
        return self._job_id

    @property
    def spec(self) -> JobSpec:
        return self._spec

    @property
    def epoch(self) -> Epoch:
        return self._epoch

    @property
    def reference(self) -> str:
        return self._reference

    @property
    def headers(self) -> Mapping[str, str]:
        return dict(self._headers)

    def rename_endpoint(self, url: str) -> None:
        """Pretend that this job was meant for another instance."""
        self._headers[HEADER_EXPECTED_ENDPOINT] = url

    async def attach(self, reference: str) -> None:
        """See ``JobContext``."""
        await trio.lowlevel.checkpoint()
        self._reference = reference
        self._check()
        self.references.append(reference)

    def progress(self, value: float, message: str = "") -> None:
        """See ``JobContext``; a value that is no number repeats the one before."""
        before = self.values[-1] if self.values else 0.0
        self.values.append(max(before, min(1.0, value)) if math.isfinite(value) else before)
        self.messages.append(message)

    async def chunk(self, data: Any) -> None:
        """See ``JobContext``.

        Raises:
            JobFault: VALIDATION for a chunk that is too large, LEASE_LOST when ``lost``.
            TypeError: the data is no JSON.
        """
        body = _encode(data)
        if len(body) > CHUNK_BYTES_MAX:
            raise JobFault(FaultClass.VALIDATION, f"a chunk of {len(body)} bytes exceeds {CHUNK_BYTES_MAX}")
        await trio.lowlevel.checkpoint()
        self._check()
        self.chunks.append(msgspec.json.decode(body))

    def _check(self) -> None:
        if self.lost:
            raise JobFault(FaultClass.LEASE_LOST, "this job belongs to somebody else")


def routing_headers(*, worker: str, epoch: int, endpoint: str, traceparent: str) -> dict[str, str]:
    """The headers that the runner gives to a connector with each job."""
    return {
        HEADER_WORKER: worker,
        HEADER_EPOCH: str(epoch),
        HEADER_EXPECTED_ENDPOINT: endpoint,
        HEADER_TRACEPARENT: traceparent,
    }
