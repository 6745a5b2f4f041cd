"""One gateway as a process of its own, for tests: ``python -m tests.chaos.gateway_process CONFIG.json``.

The configuration is the overrides of ``load_config`` as JSON. Every fact that the observer hears goes to standard
output as one JSON line, written at once, so that nothing is missing after a ``kill -9``.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from gateway.breaker import BreakerState
from gateway.config import load_config
from gateway.errors import FaultClass
from gateway.models import Grant, LeaseRef, Settlement, Verdict
from gateway.observer import AttemptObserver, SilentObserver
from gateway.process import run_process


def tell(fact: str, **fields: object) -> None:
    """Write one line in one system call."""
    os.write(1, json.dumps({"fact": fact, **fields}).encode() + b"\n")


class _ToldAttempt:
    def __init__(self, job_id: str) -> None:
        self.headers: dict[str, str] = {}
        self._job_id = job_id

    @contextmanager
    def service_call(self, operation: str) -> Iterator[None]:
        tell("call", job=self._job_id, operation=operation)
        try:
            yield
        finally:
            tell("call_ended", job=self._job_id, operation=operation)

    def faulted(self, fault_class: FaultClass, message: str) -> None:
        tell("faulted", job=self._job_id, fault=fault_class.value, message=message)

    def consumed(self, amounts: Mapping[str, int]) -> None:
        tell("consumed", job=self._job_id, **amounts)

    def settled(self, settlement: Settlement, verdict: Verdict | None) -> None:
        tell(
            "settled",
            job=self._job_id,
            kind=settlement.kind.value,
            verdict=verdict.value if verdict else None,
        )


class TellingObserver(SilentObserver):
    """Tells what the tests ask about."""

    @contextmanager
    def attempt(
        self, grant: Grant, *, worker_id: str, connector_key: str, endpoint: str
    ) -> Iterator[AttemptObserver]:
        tell("attempt", job=grant.job_id, epoch=grant.epoch, worker=worker_id)
        yield _ToldAttempt(grant.job_id)

    def claimed(self, worker_id: str, grants: Sequence[Grant], round_trip_s: float) -> None:
        tell("claimed", worker=worker_id, jobs=[grant.job_id for grant in grants])

    def disowned(self, lease: LeaseRef, worker_id: str, reason: str) -> None:
        tell("disowned", job=lease.job_id, epoch=lease.epoch, reason=reason)

    def health(self, worker_id: str, service: str, endpoint: str, *, healthy: bool, detail: str) -> None:
        tell("health", worker=worker_id, healthy=healthy, detail=detail)

    def breaker(self, worker_id: str, service: str, endpoint: str, state: BreakerState) -> None:
        tell("breaker", worker=worker_id, state=state.value)

    def spool(self, size: int) -> None:
        tell("spool", size=size)


def main(path: str) -> None:
    """Run until a signal stops it."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    overrides = json.loads(Path(path).read_text("utf-8"))
    config = load_config(overrides=overrides, environment={})
    run_process(config, TellingObserver(), on_ready=lambda gateway: tell("ready"))
    tell("ended")


if __name__ == "__main__":
    main(sys.argv[1])
