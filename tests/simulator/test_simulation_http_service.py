"""The simulated HTTP service on real sockets: the contract, and each fault as a client sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from gateway.connectors.simulation import wire
from gateway.connectors.simulation.wire import RunState
from simulator.faults import RATE_NAMES, FaultPlan
from simulator.model import ServiceConfig
from simulator.seeding import streams
from simulator.services.http import SimulationHTTPService

QUIET = FaultPlan.none()
#: Silence that a test takes for "nothing comes any more", in seconds.
SILENCE_S = 0.5


@asynccontextmanager
async def running(plan: FaultPlan = QUIET, **config: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of one service on a free port, with an absolute limit around all of it."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            config.setdefault("duration_s", 0.02)
            service = SimulationHTTPService(
                ServiceConfig(instance="sim-a", **config), plan, random_for=streams(3, "sim-a")
            )
            handle = await nursery.start(partial(service.run, host="127.0.0.1", port=0))
            async with httpx.AsyncClient(base_url=handle.url, timeout=5.0) as client:
                yield client
            nursery.cancel_scope.cancel()


async def submit(
    client: httpx.AsyncClient, job_id: str = "j", payload: Any = None, **options: Any
) -> httpx.Response:
    body = wire.encode(wire.SubmitRequest(id=job_id, payload=payload))
    return await client.post(wire.JOBS_PATH, content=body, **options)


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Poll until a condition holds, for five seconds at most."""
    for _attempt in range(1_000):
        if await condition():
            return
        await trio.sleep(0.005)
    pytest.fail("the condition never held")


async def status(client: httpx.AsyncClient, job_id: str = "j") -> wire.JobStatus:
    return wire.decode_status((await client.get(wire.job_path(job_id))).content)


async def ended(client: httpx.AsyncClient, job_id: str = "j") -> wire.JobStatus:
    """The status once it is terminal."""

    async def over() -> bool:
        return (await status(client, job_id)).state in wire.TERMINAL_RUN_STATES

    await eventually(over)
    return await status(client, job_id)


async def lines(client: httpx.AsyncClient, job_id: str = "j", after: int = 0) -> tuple[list[bytes], str]:
    """All lines of a stream, and how it ended: in order, cut or silent."""
    got: list[bytes] = []
    try:
        path, limit = wire.events_path(job_id, after), httpx.Timeout(5.0, read=SILENCE_S)
        async with client.stream("GET", path, timeout=limit) as response:
            assert response.headers["content-type"] == wire.EVENTS_TYPE
            async for text in response.aiter_lines():
                got.append(text.encode())  # noqa: PERF401 - lines before a cut are kept
    except httpx.ReadTimeout:
        return got, "silent"
    except (httpx.ReadError, httpx.RemoteProtocolError):
        return got, "cut"
    return got, "end"


async def summary(client: httpx.AsyncClient) -> wire.JournalSummary:
    return wire.decode((await client.get(wire.JOURNAL_SUMMARY_PATH)).content, wire.JournalSummary)


async def test_a_job_is_submitted_watched_and_queried() -> None:
    """The happy path of the contract, with the instance named in every answer."""
    async with running() as client:
        accepted = await submit(client, "a/b c", {"result": [1], "chunks": 2, "duration_s": 0.05})
        assert accepted.status_code == 202
        assert accepted.headers[wire.HEADER_INSTANCE] == "sim-a"
        assert wire.decode_submit(accepted.content).state is RunState.RUNNING
        got, how = await lines(client, "a/b c")
        events = [wire.decode_event(line) for line in got]
        assert how == "end"
        assert [event.seq for event in events] == list(range(1, 8))
        assert events[-1].result == {"echo": [1], "instance": "sim-a", "execution": 1}
        assert [event.data["index"] for event in events if event.type == "chunk"] == [1, 2]
        assert (await lines(client, "a/b c", after=5))[0] == got[5:]
        assert (await status(client, "a/b c")).result == events[-1].result
        health = await client.get(wire.HEALTH_PATH)
        assert wire.decode(health.content, wire.HealthReply) == wire.HealthReply(
            status="ok", instance="sim-a"
        )


@pytest.mark.parametrize(
    ("method", "path", "body", "code"),
    [
        ("GET", "/v1/jobs/unknown", b"", 404),
        ("DELETE", "/v1/jobs/unknown", b"", 404),
        ("GET", "/v1/jobs/unknown/events", b"", 404),
        ("GET", "/v1/jobs/unknown/events?after=-1", b"", 400),
        ("GET", "/v1/jobs/", b"", 404),
        ("PATCH", "/v1/jobs", b"", 404),
        ("POST", "/v1/jobs", b"{", 400),
        ("POST", "/v1/jobs", b'{"payload": {}}', 400),
        ("POST", "/v1/jobs", b'{"id": "j", "payload": {"steps": "many"}}', 400),
        ("GET", "/journal?after=x", b"", 400),
        ("GET", "/journal?limit=10001", b"", 400),
        ("POST", "/control/explode", b"", 404),
        ("PUT", "/control/faults", b"[]", 400),
        ("PUT", "/control/faults", b'{"hang_rate": 2}', 400),
        ("PUT", "/control/faults", b'{"hang_rat": 1}', 400),
    ],
)
async def test_a_bad_request_is_answered_with_one_clear_line(
    method: str, path: str, body: bytes, code: int
) -> None:
    """Whatever is wrong, the answer has a status, a kind and one line."""
    async with running() as client:
        response = await client.request(method, path, content=body)
        assert response.status_code == code
        failure = wire.decode_failure(response.content)
        assert failure is not None
        assert wire.STATUS_BY_KIND[failure.kind] == code
        assert failure.message
        assert "\n" not in failure.message
        assert response.headers[wire.HEADER_INSTANCE] == "sim-a"


async def saw_health_failure(client: httpx.AsyncClient) -> bool:
    return (await client.get(wire.HEALTH_PATH)).status_code == 503


async def saw_lost_completion(client: httpx.AsyncClient) -> bool:
    await submit(client)
    got, how = await lines(client)
    lost = how == "silent" and not any(wire.decode_event(line).terminal for line in got)
    return lost and (await status(client)).state is RunState.COMPLETED


async def saw_answer(client: httpx.AsyncClient, code: int, accepted: bool) -> bool:
    reply = await submit(client)
    if code in (429, 503) and reply.status_code == code:
        assert reply.headers["retry-after"] == "1"
    return reply.status_code == code and bool((await summary(client)).last_seq) is accepted


async def saw_hang(client: httpx.AsyncClient) -> bool:
    try:
        await submit(client, timeout=SILENCE_S)
    except httpx.ReadTimeout:
        return (await summary(client)).last_seq == 0
    return False


async def saw_slow(client: httpx.AsyncClient) -> bool:
    await submit(client)
    await ended(client)
    page = wire.decode((await client.get(wire.journal_path())).content, wire.JournalPage)
    return page.entries[-1].at_s - page.entries[1].at_s >= 0.2


async def saw_stream(client: httpx.AsyncClient, expected: str) -> bool:
    await submit(client)
    got, how = await lines(client)
    return how == expected and not any(wire.decode_event(line).terminal for line in got)


async def saw_reply_lost(client: httpx.AsyncClient) -> bool:
    try:
        await submit(client)
    except (httpx.ReadError, httpx.RemoteProtocolError):
        return (await ended(client)).state is RunState.COMPLETED
    return False


async def saw_lines(client: httpx.AsyncClient, unlike: Callable[[list[wire.StreamEvent]], bool]) -> bool:
    await submit(client)
    got, how = await lines(client)
    assert how == "end"
    return unlike([wire.decode_event(line) for line in got])


async def saw_instant(client: httpx.AsyncClient) -> bool:
    return wire.decode_submit((await submit(client)).content).state is RunState.COMPLETED


async def saw_garbage(client: httpx.AsyncClient) -> bool:
    bodies = [(await submit(client)).content, (await lines(client))[0][0]]
    bodies.append((await client.get(wire.job_path("j"))).content)
    unreadable = 0
    readers: list[Callable[[bytes], object]] = [wire.decode_submit, wire.decode_event, wire.decode_status]
    for body, read in zip(bodies, readers, strict=True):
        try:
            read(body)
        except wire.WireFormatError:
            unreadable += 1
    assert unreadable in (0, 3)
    return unreadable == 3


async def saw_cancel_ignored(client: httpx.AsyncClient) -> bool:
    await submit(client, payload={"duration_s": 0.3})
    reply = await client.delete(wire.job_path("j"))
    assert wire.decode(reply.content, wire.CancelReply).state is RunState.CANCELLED
    return (await ended(client)).state is RunState.COMPLETED


async def saw_empty_output(client: httpx.AsyncClient) -> bool:
    await submit(client, payload={"result": 1})
    return (await ended(client)).result is None


async def saw_out_of_memory(client: httpx.AsyncClient) -> bool:
    await submit(client)
    error = (await ended(client)).error
    return error is not None and error.kind is wire.ErrorKind.OUT_OF_MEMORY


async def saw_oversize(client: httpx.AsyncClient) -> bool:
    await submit(client)
    await ended(client)
    return len((await client.get(wire.job_path("j"))).content) > 100_000


def repeated(events: list[wire.StreamEvent]) -> bool:
    return len({event.seq for event in events}) < len(events)


def disordered(events: list[wire.StreamEvent]) -> bool:
    return [event.seq for event in events] != sorted(event.seq for event in events)


def after_terminal(events: list[wire.StreamEvent]) -> bool:
    return not events[-1].terminal


async def saw_late_record(client: httpx.AsyncClient) -> bool:
    """The stream tells the end while a query still denies it; the query follows."""
    await submit(client)
    await lines(client)
    late = (await status(client)).state is RunState.RUNNING
    assert (await ended(client)).state is RunState.COMPLETED
    return late


SYMPTOMS: dict[str, Callable[[httpx.AsyncClient], Awaitable[bool]]] = {
    "health_failure_rate": saw_health_failure,
    "lost_completion_rate": saw_lost_completion,
    "error_4xx_rate": partial(saw_answer, code=400, accepted=False),
    "error_5xx_rate": partial(saw_answer, code=500, accepted=False),
    "rate_limit_rate": partial(saw_answer, code=429, accepted=False),
    "unavailable_rate": partial(saw_answer, code=503, accepted=False),
    "hang_rate": saw_hang,
    "slow_rate": saw_slow,
    "disconnect_rate": partial(saw_stream, expected="cut"),
    "half_open_rate": partial(saw_stream, expected="silent"),
    "submit_reply_lost_rate": saw_reply_lost,
    "submit_500_after_accept_rate": partial(saw_answer, code=500, accepted=True),
    "duplicate_event_rate": partial(saw_lines, unlike=repeated),
    "out_of_order_rate": partial(saw_lines, unlike=disordered),
    "event_after_terminal_rate": partial(saw_lines, unlike=after_terminal),
    "finished_before_listening_rate": saw_instant,
    "garbage_rate": saw_garbage,
    "cancel_ignored_rate": saw_cancel_ignored,
    "empty_output_rate": saw_empty_output,
    "out_of_memory_rate": saw_out_of_memory,
    "oversize_rate": saw_oversize,
    "late_record_rate": saw_late_record,
}
#: Knobs that this dialect has no words for; the tests of the one that has show them.
OTHER_DIALECTS = {"partial_accept_rate": "comfyui"}


@pytest.mark.parametrize("knob", [name for name in RATE_NAMES if name not in OTHER_DIALECTS])
async def test_each_fault_is_seen_at_rate_one_and_never_at_rate_zero(knob: str) -> None:
    """Every knob does over the wire what it says, and nothing when it is off."""
    for rate, expected in ((1.0, True), (0.0, False)):
        plan = QUIET.updated({knob: rate, "slow_factor": 12, "oversize_bytes": 100_000})
        async with running(plan) as client:
            assert await SYMPTOMS[knob](client) is expected


async def test_faults_are_changed_while_the_service_runs() -> None:
    """A partial update holds from the next request on; a bad one changes nothing."""
    async with running() as client:
        assert not await saw_health_failure(client)
        changed = await client.put(wire.CONTROL_FAULTS_PATH, json={"health_failure_rate": 1})
        assert changed.json()["health_failure_rate"] == 1
        assert await saw_health_failure(client)
        bad = await client.put(wire.CONTROL_FAULTS_PATH, json={"health_failure_rate": 0, "slow_factor": 0})
        assert bad.status_code == 400
        assert (await client.get(wire.CONTROL_FAULTS_PATH)).json() == changed.json()


@pytest.mark.parametrize(("dedupe", "executions"), [(True, 1), (False, 2)])
async def test_a_repeated_submit_runs_once_or_twice_as_told(dedupe: bool, executions: int) -> None:
    """The knob decides whether our id protects from double work; the journal counts it."""
    async with running(QUIET.updated({"dedupe": dedupe})) as client:
        await submit(client)
        again = wire.decode_submit((await submit(client)).content)
        assert again.deduplicated is dedupe
        assert (await ended(client)).executions == executions

        async def both_finished() -> bool:
            return (await summary(client)).duplicates == executions - 1

        await eventually(both_finished)
        assert (await summary(client)).executions_by_job == {"j": executions}


async def test_a_restart_cuts_listeners_and_forgets_jobs_but_not_the_journal() -> None:
    """What a crash of a service without a disk looks like from outside."""
    async with running(duration_s=30.0) as client, trio.open_nursery() as nursery:
        await submit(client)
        cut = trio.Event()

        async def listen() -> None:
            path = wire.events_path("j")
            try:
                async with client.stream("GET", path) as response:
                    async for _line in response.aiter_lines():
                        listening.set()
            except (httpx.ReadError, httpx.RemoteProtocolError):
                cut.set()

        listening = trio.Event()
        nursery.start_soon(listen)
        await listening.wait()
        reply = wire.decode((await client.post(wire.CONTROL_RESTART_PATH)).content, wire.ControlReply)
        assert reply == wire.ControlReply(done="restart", instance="sim-a", jobs=1)
        assert (await client.get(wire.job_path("j"))).status_code == 404
        assert (await summary(client)).executions_by_job == {"j": 1}
        await cut.wait()


@pytest.mark.parametrize("planned", [True, False])
async def test_a_restart_also_ends_what_hung(planned: bool) -> None:
    """A silent stream and a hung request are reset by a restart, planned or asked for, as by a real one."""
    moments = {"restart_forgets_at_s": [0.7] if planned else []}
    async with running(QUIET.updated({"lost_completion_rate": 1, **moments})) as client:
        await submit(client)
        ends: list[str] = []

        async def hung(path: str) -> None:
            try:
                async with client.stream("GET", path) as response:
                    async for _line in response.aiter_lines():
                        continue
            except (httpx.ReadError, httpx.RemoteProtocolError):
                ends.append(path)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hung, wire.events_path("j"))
            await ended(client)
            await client.put(wire.CONTROL_FAULTS_PATH, json={"hang_rate": 1.0})
            nursery.start_soon(hung, wire.job_path("j"))
            await trio.testing.wait_all_tasks_blocked(0.05)
            if not planned:
                await client.post(wire.CONTROL_RESTART_PATH)
        assert sorted(ends) == [wire.job_path("j"), wire.events_path("j")]


async def test_a_pause_hangs_everything_but_the_controls() -> None:
    """While paused nothing answers and nothing works; afterwards everything goes on."""
    async with running(duration_s=0.3) as client, trio.open_nursery() as nursery:
        await submit(client)
        heard, got = trio.Event(), []

        async def listen() -> None:
            async with client.stream("GET", wire.events_path("j")) as response:
                got.extend([line.encode() async for line in response.aiter_lines()])
            heard.set()

        nursery.start_soon(listen)
        await client.post(wire.CONTROL_PAUSE_PATH)
        with pytest.raises(httpx.ReadTimeout):
            await client.get(wire.HEALTH_PATH, timeout=SILENCE_S)
        assert (await summary(client)).completed == 0
        await client.post(wire.CONTROL_RESUME_PATH)
        assert (await ended(client)).state is RunState.COMPLETED
        await heard.wait()
        assert wire.decode_event(got[-1]).terminal


async def test_a_listener_hears_of_a_cancel_at_once() -> None:
    """News reaches an open stream when it happens, not when the job's next step is due."""
    async with running(duration_s=100.0) as client, trio.open_nursery() as nursery:
        await submit(client)
        listening, heard = trio.Event(), []

        async def listen() -> None:
            async with client.stream("GET", wire.events_path("j")) as response:
                async for line in response.aiter_lines():
                    heard.append(wire.decode_event(line.encode()).type)
                    listening.set()

        nursery.start_soon(listen)
        await listening.wait()
        with trio.fail_after(2):
            await client.delete(wire.job_path("j"))
            await eventually(lambda: _is(heard, [wire.EventType.PROGRESS, wire.EventType.CANCELLED]))


async def _is(value: object, expected: object) -> bool:
    return value == expected


async def test_cancel_really_stops_the_work() -> None:
    """The journal proves that a cancelled job never finished and its slot went to the next."""
    async with running(slots=1, duration_s=0.3) as client:
        for job_id in ("a", "b"):
            await submit(client, job_id)
        await client.delete(wire.job_path("a"))
        assert (await ended(client, "b")).state is RunState.COMPLETED
        page = wire.decode((await client.get(wire.journal_path(limit=100))).content, wire.JournalPage)
        assert {(entry.event, entry.id) for entry in page.entries if entry.id == "a"} == {
            ("submitted", "a"),
            ("started", "a"),
            ("cancelled", "a"),
        }


async def test_the_journal_knows_the_caller_and_misrouted_calls() -> None:
    """Worker, epoch and trace of a call are journalled; a call meant for another port is counted."""
    async with running() as client:
        own = str(client.base_url)
        headers = wire.caller_headers(
            worker="m/sim-gpu0", epoch=7, endpoint=own, instance="sim-a", traceparent="00-1"
        )
        await submit(client, headers=headers)
        await submit(client, "k", headers=wire.caller_headers(endpoint="http://127.0.0.1:1"))
        page = wire.decode((await client.get(wire.journal_path())).content, wire.JournalPage)
        first = page.entries[0]
        assert (first.worker, first.epoch, first.traceparent) == ("m/sim-gpu0", "7", "00-1")
        assert page.summary.misrouted == 1
        assert [entry.detail for entry in page.entries if entry.event == "misrouted"] == [
            "http://127.0.0.1:1"
        ]


async def test_the_default_four_percent_over_real_sockets() -> None:
    """Of 300 health probes under a fixed seed, 4 % fail, give or take three standard deviations."""
    async with running(FaultPlan()) as client:
        failed = [await saw_health_failure(client) for _ in range(300)]
        assert 2 <= sum(failed) <= 22


async def test_a_job_runs_over_memory_in_virtual_time(autojump_clock: trio.testing.MockClock) -> None:
    """The same service on a stream without sockets, a day of work in no time at all."""
    with trio.fail_after(100_000):
        async with trio.open_nursery() as nursery:
            service = SimulationHTTPService(
                ServiceConfig(instance="sim-a", duration_s=86_400.1), QUIET, random_for=streams(3, "sim-a")
            )
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(service.serve_stream, theirs)
            body = wire.encode(wire.SubmitRequest(id="j"))
            head = f"POST {wire.JOBS_PATH} HTTP/1.1\r\nhost: sim\r\ncontent-length: {len(body)}\r\n\r\n"
            await ours.send_all(head.encode() + body)
            await ours.receive_some()
            await ours.send_all(f"GET {wire.events_path('j')} HTTP/1.1\r\nhost: sim\r\n\r\n".encode())
            got = b""
            while b'"completed"' not in got:
                got += await ours.receive_some()
            assert got.count(b'"seq"') == 5
            assert trio.current_time() >= 86_400
            nursery.cancel_scope.cancel()
