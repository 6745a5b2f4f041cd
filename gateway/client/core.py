"""Everything the two clients have in common, written once over a small runner.

The coroutines here wait only for their runner and their pace. Under the asynchronous client these suspend; under the
synchronous one they block and never suspend, so that client drives each coroutine to its end in one step.
"""

from __future__ import annotations

import random as random_module
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar

import msgspec

from gateway.client.durability import ServerFacts, confirm, server_facts
from gateway.client.permissions import Denied, denied
from gateway.client.repeating import Link, Pace, Repeater
from gateway.client.requests import (
    BatchInterrupted,
    BatchResult,
    JobHandle,
    JobRequest,
    SubmitOutcome,
    build_submission,
    handle_of,
    outcome_of,
)
from gateway.client.tracing import submit_span
from gateway.errors import (
    ConfigError,
    DurabilityUnconfirmed,
    InvalidRegistration,
    InvalidSubmission,
    JobNotFound,
    StoreUnavailable,
    UnknownService,
)
from gateway.events import Event, decode_entry
from gateway.explain import Explanation, WorkerView, decode_worker, explain
from gateway.limits import AGING_FIELD, Limit, QueueLimits, aging_ms, encode_limits
from gateway.models import Epoch, JobState, JobView, QueueStats, RequeueStatus, Submission
from gateway.registration import SERVICES_MAX, ServiceEntry, check_registration
from gateway.store.calls import BATCH_MAX, StoreLimits
from gateway.store.fleet_scripts import ConfigureStatus, Overrides, RegisterStatus, Registration
from gateway.store.keys import QueueKeys
from gateway.store.operations import QueueOperations, Runner
from gateway.store.scripts import encode_spec

#: JSON in one script call: Redis serves nobody else while it reads and runs it (4 MiB take a few milliseconds).
CALL_BYTES_MAX = 4 * 1024 * 1024
#: How often a durable submit starts over because its connection was lost between the write and the confirmation.
DURABLE_TRIES_MAX = 5
DURABLE_TIMEOUT_S = 5.0
#: How often a change of the overrides starts over because somebody else changed them meanwhile.
CONFIGURE_TRIES_MAX = 5
PAGE = 500
#: After a job ended, late writes under old leases may still be refused; its story is read this much longer.
STORY_TAIL_MS = 60_000
OLDEST = "0-0"

AnswerT = TypeVar("AnswerT")
_decode = msgspec.json.Decoder().decode


class WallClock(Protocol):
    """Milliseconds since the epoch, for ids and for information only."""

    def __call__(self) -> int: ...


class StreamItem(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a job's own stream.

    Attributes:
        id: resume after it.
        kind: ``progress`` or ``chunk``.
        epoch: the lease that wrote it; chunks of an older epoch belong to an attempt that was started over.
        number: 1, 2, 3… within the lease.
        value: fraction done, 0 to 1.
        data: a progress entry's message, a chunk's data.
    """

    id: str
    kind: str
    epoch: Epoch
    number: int
    value: float
    data: Any


def split_cursor(cursor: str) -> tuple[str, str, int]:
    """Where to read from to resume after a cursor: the entry id before its entry, its entry, its index there.

    Args:
        cursor: ``<entry>/<index>`` of an event, or a plain entry id (which then is read completely).

    Raises:
        InvalidSubmission: neither of the two.
    """
    entry, slash, index = cursor.partition("/")
    milliseconds, _, sequence = entry.partition("-")
    sequence = sequence or "0"
    if not (milliseconds.isdigit() and sequence.isdigit() and (index.isdigit() or not slash)):
        raise InvalidSubmission(f"cursor {cursor!r}: use an event's cursor such as 1700000000000-0/3")
    if not slash:
        return f"{milliseconds}-{sequence}", "", -1
    if int(sequence) > 0:
        return f"{milliseconds}-{int(sequence) - 1}", entry, int(index)
    return f"{max(int(milliseconds) - 1, 0)}-{2**64 - 1}", entry, int(index)


class ClientCore:
    """The verbs of a client.

    Args:
        keys: names of the queue's keys.
        limits: bounds of the queue.
        work: runs commands that answer at once.
        reader: runs commands that wait at the server.
        exclusive: lends one connection to one caller.
        pace: clock and sleep.
        wall_ms: wall clock.
        random: source of ids and jitter.
        timeout_s: longest time for one call with its repetitions, seconds.
    """

    def __init__(
        self,
        keys: QueueKeys,
        limits: StoreLimits,
        *,
        work: Runner,
        reader: Runner,
        exclusive: Callable[[], AbstractAsyncContextManager[Link]],
        pace: Pace,
        wall_ms: WallClock,
        random: random_module.Random,
        timeout_s: float,
    ) -> None:
        self.keys = keys
        self.limits = limits
        self.ops = QueueOperations(work, keys, limits)
        self.readers = QueueOperations(reader, keys, limits)
        self._work = work
        self._exclusive = exclusive
        self._pace = pace
        self.wall_ms = wall_ms
        self.random = random
        self._timeout_s = timeout_s
        self._known_services: set[str] = set()

    async def submit(
        self, request: JobRequest, *, durable: bool, durable_timeout_s: float, allow_unknown_service: bool
    ) -> JobHandle:
        """Submit one job; see ``Client.submit``."""
        result = await self.submit_many(
            [request],
            durable=durable,
            durable_timeout_s=durable_timeout_s,
            allow_unknown_service=allow_unknown_service,
            single=True,
        )
        return handle_of(result.outcomes[0], self.keys.queue, self.limits)

    async def submit_many(
        self,
        requests: Iterable[JobRequest],
        *,
        durable: bool,
        durable_timeout_s: float,
        allow_unknown_service: bool,
        single: bool = False,
    ) -> BatchResult:
        """Submit many jobs; see ``Client.submit_many``. ``single`` words errors for one job."""
        wanted = list(requests)
        with submit_span(self.keys.queue, len(wanted)) as traceparent:
            submissions = self._build(wanted, traceparent, single=single)
            if not allow_unknown_service:
                await self.check_services({item.spec.service for item in submissions})
            if not durable:
                return await self._send(self.ops, wanted, submissions, single=single)
            return await self._durably(
                lambda operations: self._send(operations, wanted, submissions, single=single),
                durable_timeout_s,
            )

    def _build(self, requests: Sequence[JobRequest], traceparent: str, *, single: bool) -> list[Submission]:
        submissions = []
        for number, request in enumerate(requests, start=1):
            try:
                submission = build_submission(
                    request,
                    self.limits,
                    random=self.random,
                    now_ms=self.wall_ms(),
                    traceparent=traceparent,
                )
            except InvalidSubmission as error:
                if single:
                    raise
                raise InvalidSubmission(f"job {number} of {len(requests)}: {error}") from error
            submissions.append(submission)
        return submissions

    async def _send(
        self,
        operations: QueueOperations,
        requests: Sequence[JobRequest],
        submissions: Sequence[Submission],
        *,
        single: bool,
    ) -> BatchResult:
        outcomes: list[SubmitOutcome] = []
        for first, last in _portions(submissions):
            try:
                verdicts = await operations.submit_many(submissions[first:last])
            except StoreUnavailable as error:
                if single:
                    raise
                left = zip(requests[first:], submissions[first:], strict=True)
                unconfirmed = [
                    msgspec.structs.replace(request, job_id=submission.job_id) for request, submission in left
                ]
                result = BatchResult(self.keys.queue, tuple(outcomes))
                raise BatchInterrupted(error, result, unconfirmed) from error
            portion = zip(requests[first:last], submissions[first:last], verdicts, strict=True)
            outcomes += [outcome_of(request, submission, verdict) for request, submission, verdict in portion]
        return BatchResult(self.keys.queue, tuple(outcomes))

    async def _durably(
        self, write: Callable[[QueueOperations], Awaitable[BatchResult]], timeout_s: float
    ) -> BatchResult:
        """Write and have the same connection confirm it. A write on a lost connection is repeated on the new one:
        a submit always writes, so that the confirmation then covers the first one too.
        """
        first: BatchResult | None = None
        async with self._exclusive() as link:
            runner = Repeater(link, self._pace, self.random, self._timeout_s)
            operations = QueueOperations(runner, self.keys, self.limits)
            facts = await server_facts(runner)
            for _ in range(DURABLE_TRIES_MAX):
                made = link.connections_made
                result = await write(operations)
                first = first or result
                if not first.accepted:
                    return first
                try:
                    await confirm(link, facts, timeout_s)
                except StoreUnavailable:
                    continue
                except DurabilityUnconfirmed as error:
                    raise DurabilityUnconfirmed(_with_ids(str(error), first)) from error
                if link.connections_made == made:
                    return first
        lost = f"the job is stored, but the connection to Redis broke {DURABLE_TRIES_MAX} times before the confirmation"
        raise DurabilityUnconfirmed(_with_ids(lost, first))

    async def check_services(self, services: set[str]) -> None:
        """Refuse services that nobody serves. Live workers are asked first, because listing the installed connectors
        imports all of them; a service once known stays known to this client.
        """
        if services <= self._known_services:
            return
        now_ms = await self.now_ms()
        ttl_ms = self.limits.worker_ttl_s * 1000
        self._known_services |= {
            worker.service for worker in await self.workers() if worker.seen_ms + ttl_ms >= now_ms
        }
        if not services <= self._known_services:
            from gateway.connectors.registry import known_services

            self._known_services |= set(known_services())
        for service in sorted(services - self._known_services):
            raise UnknownService(service, sorted(self._known_services - {""}))

    async def now_ms(self) -> int:
        """Redis time, milliseconds."""
        seconds, micros = await self._work.command(b"TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    async def get(self, job_id: str) -> JobView:
        """One job. Raises JobNotFound."""
        view = (await self.ops.inspect([job_id]))[0]
        if view is None:
            raise JobNotFound(job_id)
        return view

    async def workers(self) -> list[WorkerView]:
        """All registered workers, by id."""
        found = await self.ops.workers()
        return [decode_worker(worker_id, found[worker_id]) for worker_id in sorted(found)]

    async def stats(self) -> QueueStats:
        """Counts of the queue."""
        return await self.ops.stats()

    async def set_limits(self, limits: Mapping[str, Limit | None]) -> QueueLimits:
        """Set or remove limits; see ``Client.set_limits``."""
        await self.ops.define_limits(encode_limits(limits), only_new=False)
        return await self.ops.limits_now()

    async def set_aging(self, aging_s: float | None) -> QueueLimits:
        """Set how fast waiting makes up for priority; see ``Client.set_aging``."""
        text = "" if aging_s is None else aging_ms(aging_s)
        await self.ops.define_limits([(AGING_FIELD, text)], only_new=False)
        return await self.ops.limits_now()

    async def configure(self, changes: Mapping[str, Any]) -> Overrides:
        """Change the fleet's overrides; see ``Client.configure``."""
        from gateway.config_fleet import check_overrides, encode_overrides  # it needs the whole schema

        encoded = encode_overrides(changes)
        for _ in range(CONFIGURE_TRIES_MAX):
            present = await self.ops.overrides()
            wanted = {key: text for key, text in {**present.values, **encoded}.items() if text}
            check_overrides(wanted, self.keys.queue)
            status, revision = await self.ops.configure(present.revision, encoded)
            if status is not ConfigureStatus.CONFLICT:
                return Overrides(revision, wanted)
        raise ConfigError(
            f"the overrides of queue {self.keys.queue!r} keep changing; nothing was stored, try again"
        )

    async def register(self, service_id: str, entry: ServiceEntry, ttl_s: float) -> RegisterStatus:
        """Register or renew one service; see ``Client.register``."""
        check_registration(service_id, entry, ttl_s)
        status = (await self.ops.register([Registration(service_id, entry, ttl_s)]))[0]
        if status is RegisterStatus.FULL:
            raise InvalidRegistration(
                f"queue {self.keys.queue!r} already has {SERVICES_MAX} services registered"
            )
        return status

    async def requeue_all(self) -> list[tuple[str, RequeueStatus]]:
        """Give every job that is a dead letter now a new life."""
        count = await self._work.command(b"ZCARD", self.keys.dead)
        raw = await self._work.command(b"ZRANGE", self.keys.dead, 0, int(count) - 1) if count else []
        job_ids = [job_id.decode() for job_id in raw]
        return list(zip(job_ids, await self.ops.requeue(job_ids), strict=True))

    async def last_cursor(self) -> str:
        """Where the event stream ends now."""
        return await self.ops.last_event_id()

    async def events_page(
        self, cursor: str, *, block_s: float = 0.0, count: int = PAGE
    ) -> tuple[list[Event], str]:
        """The next events after a cursor or entry id, and where to go on; waits up to ``block_s`` for the first."""
        after, skip_entry, skip_index = split_cursor(cursor)
        operations = self.readers if block_s > 0 else self.ops
        events, position = await operations.events(after, count=count, block_s=block_s)
        if skip_entry and events:
            marker = f"{skip_entry}/"
            events = [
                event
                for event in events
                if not (event.cursor.startswith(marker) and int(event.cursor[len(marker) :]) <= skip_index)
            ]
        return events, position if position != after else cursor

    async def stream_page(
        self, job_id: str, after: str, *, block_s: float = 0.0
    ) -> tuple[list[StreamItem], bool]:
        """The next entries of a job's own stream, and whether that was the end. Raises JobNotFound."""
        entries = await self.ops.job_stream(job_id, after, count=PAGE)
        ended = False
        if not entries:
            ended = (await self.get(job_id)).terminal
            if ended:  # what was written between the two reads
                entries = await self.ops.job_stream(job_id, after, count=PAGE)
                ended = not entries
            elif block_s > 0:
                entries = await self.readers.job_stream(job_id, after, count=PAGE, block_s=block_s)
        return [_stream_item(entry_id, fields) for entry_id, fields in entries], ended

    async def history(self, view: JobView) -> list[Event]:
        """The job's own events as far as the stream reaches back, oldest first."""
        start = f"{max(view.submitted_ms - 1000, 0)}-0"
        end = f"{view.ended_ms + STORY_TAIL_MS}" if view.ended_ms else "+"
        needle = msgspec.json.encode(view.job_id)
        events: list[Event] = []
        while True:
            raw = await self._work.command(b"XRANGE", self.keys.events, start, end, b"COUNT", PAGE)
            for entry_id, fields in raw:
                values = dict(zip(fields[::2], fields[1::2], strict=True))
                if needle in values[b"e"]:
                    entry = decode_entry(entry_id.decode(), values[b"at"], values[b"e"])
                    events += [event for event in entry if event.job_id == view.job_id]
            if len(raw) < PAGE:
                return events
            start = f"({raw[-1][0].decode()}"

    async def explain(self, job_id: str) -> Explanation:
        """Why a job is where it is. Raises JobNotFound."""
        view = await self.get(job_id)
        stats = await self.stats()
        ahead = None
        held_back: list[str] = []
        if view.state is JobState.PENDING:
            limits = await self.ops.limits_now()
            held_back = limits.reasons(view.spec.service, view.spec.tenant)
            rank = await self._work.command(b"ZRANK", self.keys.pending(view.class_id), view.job_id)
            ahead = None if rank is None else int(rank)
        parents: dict[str, JobState | None] = {}
        if view.state is JobState.WAITING:
            found = await self.ops.inspect(view.spec.after)
            parents = {
                name: None if one is None else one.state
                for name, one in zip(view.spec.after, found, strict=True)
            }
        return explain(
            view,
            await self.workers(),
            await self.history(view),
            now_ms=stats.now_ms,
            paused=stats.paused,
            ahead=ahead,
            held_back=held_back,
            worker_ttl_s=self.limits.worker_ttl_s,
            parents=parents,
        )

    async def events_complete(self) -> bool:
        """Whether the event stream still has its first entry; False where the server cannot tell (before Redis 7)."""
        if await self.last_cursor() == OLDEST:
            return True
        raw = await self._work.command(b"XINFO", b"STREAM", self.keys.events)
        told = raw if isinstance(raw, dict) else dict(zip(raw[::2], raw[1::2], strict=True))
        return b"entries-added" in told and int(told[b"entries-added"]) == int(told[b"length"])

    async def denied(self) -> list[Denied]:
        """What the server refuses to our user; see ``Client.denied``."""
        async with self._exclusive() as link:
            return await denied(link, self.keys)

    async def server_facts(self) -> ServerFacts:
        """What the Redis says about itself."""
        return await server_facts(self._work)


def _portions(submissions: Sequence[Submission]) -> list[tuple[int, int]]:
    """Cut a batch into script calls that are bounded in number and bytes."""
    cuts = []
    first = size_bytes = 0
    for index, submission in enumerate(submissions):
        item_bytes = len(encode_spec(submission.spec))
        if index > first and (index - first >= BATCH_MAX or size_bytes + item_bytes > CALL_BYTES_MAX):
            cuts.append((first, index))
            first, size_bytes = index, 0
        size_bytes += item_bytes
    return [*cuts, (first, len(submissions))] if submissions else []


def _with_ids(message: str, result: BatchResult | None) -> str:
    job_ids = [outcome.job_id for outcome in result.accepted] if result else []
    shown = ", ".join(job_ids[:3]) + (", …" if len(job_ids) > 3 else "")
    return f"{message} (stored: {shown})"


def _stream_item(entry_id: str, fields: dict[str, str]) -> StreamItem:
    body = fields.get("body", "")
    try:
        data = _decode(body) if body else None
    except msgspec.DecodeError:
        data = body
    return StreamItem(
        id=entry_id,
        kind=fields["kind"],
        epoch=Epoch(int(fields["epoch"])),
        number=int(fields["number"]),
        value=float(fields["value"]),
        data=data,
    )
