"""Reading the replaced system's queue, and taking its jobs over: nothing there is changed or deleted."""

from __future__ import annotations

import random as random_module
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, Self, TypeVar

from gateway.client.blocking import finish
from gateway.client.requests import SubmitOutcome, build_submission
from gateway.client.sync_link import SyncLink
from gateway.client.synchronous import Client
from gateway.errors import InvalidSubmission
from gateway.legacy import LegacyFate, LegacyJob, LegacyRules, translate
from gateway.models import SubmitStatus
from gateway.store.calls import StoreLimits

PENDING_KEY = "jobs:pending"
ACTIVE_PATTERN = "jobs:active:*"
HISTORY_KEYS = {"completed": "jobs:completed", "failed": "jobs:failed"}
#: Ids per page: a page of records is at most so many payloads in memory twice.
PAGE_JOBS = 200
#: Keys that one SCAN step looks at.
SCAN_KEYS = 1000
CONNECT_TIMEOUT_S = 5.0
COMMAND_TIMEOUT_S = 30.0

ItemT = TypeVar("ItemT")


class LegacyQueue:
    """The replaced system's Redis, read only.

    Args:
        url: ``redis://…``, ``rediss://…`` or ``unix:///path``.

    Raises:
        ConfigError: the URL has another form.
        StoreUnavailable, StoreRejected: on use, when its Redis cannot be read.
    """

    def __init__(self, url: str) -> None:
        self._link = SyncLink(url, command_timeout_s=COMMAND_TIMEOUT_S, connect_timeout_s=CONNECT_TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._link.close()

    def _command(self, *parts: str | bytes | int) -> Any:
        return finish(self._link.command(*parts))

    def pending_ids(self) -> list[str]:
        """Ids that wait, each once, the first to run first."""
        ids: dict[str, None] = {}
        start = 0
        while page := self._command("ZREVRANGE", PENDING_KEY, start, start + SCAN_KEYS - 1):
            ids.update((item.decode(), None) for item in page)
            start += SCAN_KEYS
        return list(ids)

    def held_ids(self) -> list[str]:
        """Ids that some worker holds."""
        ids: dict[str, None] = {}
        cursor = b"0"
        while True:
            cursor, keys = self._command("SCAN", cursor, "MATCH", ACTIVE_PATTERN, "COUNT", SCAN_KEYS)
            for key in keys:
                ids.update((item.decode(), None) for item in self._command("HKEYS", key))
            if int(cursor) == 0:
                return list(ids)

    def records(self, job_ids: Iterable[str]) -> Iterator[tuple[str, Mapping[str, str]]]:
        """The hash of each job; empty for one that has none."""
        for job_id in job_ids:
            found = self._command("HGETALL", f"job:{job_id}")
            yield (
                job_id,
                {
                    name.decode("utf-8", "replace"): value.decode("utf-8", "replace")
                    for name, value in found.items()
                },
            )

    def history(self) -> dict[str, int]:
        """How many ended jobs its hashes still hold."""
        return {name: int(self._command("HLEN", key)) for name, key in HISTORY_KEYS.items()}


@dataclass(frozen=True, slots=True)
class LegacySurvey:
    """What an import would do, found without changing anything.

    Attributes:
        jobs: every id that waits or is held there, with its fate.
        here: ids among the ready ones that are in our queue already.
        history: ended jobs there, which stay there.
    """

    jobs: tuple[LegacyJob, ...]
    here: frozenset[str]
    history: Mapping[str, int]

    def count(self, fate: LegacyFate) -> int:
        """How many jobs have a fate."""
        return Counter(job.fate for job in self.jobs)[fate]

    @property
    def ready(self) -> list[LegacyJob]:
        """Jobs to submit, in the order in which the replaced system meant to run them."""
        return sorted(
            (job for job in self.jobs if job.fate is LegacyFate.READY and job.job_id not in self.here),
            key=lambda job: job.order,
        )


def survey(
    old: LegacyQueue,
    client: Client,
    rules: LegacyRules,
    *,
    limits: StoreLimits,
    known_services: Collection[str] | None,
) -> LegacySurvey:
    """Look at every job there and decide about it.

    Args:
        old: the replaced system.
        client: our queue, asked which ids it knows.
        rules: how to translate.
        limits: bounds of our queue.
        known_services: a job for another service is refused; None takes any.

    Raises:
        StoreUnavailable, StoreRejected: one of the two cannot be read.
    """
    # The held ones first: a job that a worker gives back meanwhile is then seen at least once.
    ids = list(dict.fromkeys([*old.held_ids(), *old.pending_ids()]))
    jobs = [
        _checked(translate(job_id, record, rules), limits, known_services)
        for job_id, record in old.records(ids)
    ]
    ready = [job.job_id for job in jobs if job.fate is LegacyFate.READY]
    here: set[str] = set()
    for page in _pages(ready):
        views = client.get_many(page)
        here.update(job_id for job_id, view in zip(page, views, strict=True) if view is not None)
    return LegacySurvey(tuple(jobs), frozenset(here), old.history())


def take_over(client: Client, found: LegacySurvey) -> list[SubmitOutcome]:
    """Submit the ready jobs under their old ids; submitting again finds them and changes nothing.

    Raises:
        BatchInterrupted, StoreUnavailable: our Redis was lost midway; run the import again.
    """
    outcomes: list[SubmitOutcome] = []
    for page in _pages(found.ready):
        requests = [job.request for job in page if job.request is not None]
        outcomes += client.submit_many(requests, allow_unknown_service=True).outcomes
    return outcomes


def tally(outcomes: Iterable[SubmitOutcome]) -> tuple[int, int, int]:
    """How many were taken over, were here already, and were refused by the store (a full queue)."""
    counts = Counter(outcome.status for outcome in outcomes)
    accepted, known = counts[SubmitStatus.ACCEPTED], counts[SubmitStatus.DUPLICATE]
    return accepted, known, counts.total() - accepted - known


def _checked(job: LegacyJob, limits: StoreLimits, known_services: Collection[str] | None) -> LegacyJob:
    """Refuse now what the submission would refuse later."""
    if job.request is None:
        return job
    try:
        # The id is given, so the random source is not used.
        build_submission(job.request, limits, random=random_module.Random(0), now_ms=0)
    except InvalidSubmission as error:
        return replace(job, fate=LegacyFate.REFUSED, reason=str(error), request=None)
    service = job.request.service
    if known_services is not None and service not in known_services:
        known = ", ".join(sorted(known_services))
        reason = f"service {service!r} is unknown here (known are {known}): name ours with --service OLD=NEW"
        return replace(job, fate=LegacyFate.REFUSED, reason=reason, request=None)
    return job


def _pages(items: Sequence[ItemT]) -> Iterator[Sequence[ItemT]]:
    for start in range(0, len(items), PAGE_JOBS):
        yield items[start : start + PAGE_JOBS]
