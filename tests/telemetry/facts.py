"""Facts for the telemetry tests: a grant as a claim would give it, and a clock that is set by hand."""

from __future__ import annotations

from dataclasses import dataclass

from gateway.models import ClassId, Epoch, Grant, JobId, JobSpec

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
CLAIMED_MS = 1_700_000_000_500


def make_grant(
    *,
    job_id: str = "job-1",
    epoch: int = 7,
    attempts: int = 0,
    service: str = "simulation",
    traceparent: str = "",
    waited_ms: int = 500,
    max_attempts: int = 3,
) -> Grant:
    """A job just claimed, after ``waited_ms`` in the queue."""
    return Grant(
        job_id=JobId(job_id),
        epoch=Epoch(epoch),
        class_id=ClassId(service),
        spec=JobSpec(service=service, traceparent=traceparent, max_attempts=max_attempts),
        attempts=attempts,
        recoveries=0,
        reference="",
        cancel_requested=False,
        submitted_ms=CLAIMED_MS - waited_ms,
        enqueued_ms=CLAIMED_MS - waited_ms,
        claimed_ms=CLAIMED_MS,
    )


@dataclass
class HandClock:
    """Monotonic and wall clock in one, moved by the test."""

    now_s: float = 100.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_ns(self) -> int:
        return CLAIMED_MS * 1_000_000 + round(self.now_s * 1e9)
