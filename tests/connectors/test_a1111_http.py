"""``a1111-http`` against its twin and against servers of a few lines, on real sockets."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from gateway.connectors.a1111.wire import Progress, State, fault_of, read_call, read_progress
from gateway.connectors.simulation.wire import ErrorKind, JournalEvent
from gateway.errors import ConfigError, FaultClass, JobFault
from protocols.errors import ProtocolViolation, status_failure
from protocols.http_responder import Responder, ServerRequest
from simulator.contract.recorder import RecordingJob
from simulator.dialects.a1111 import A1111Service
from simulator.dialects.a1111_words import Oddities
from tests.connectors.served import (
    Served,
    make_connector,
    make_job,
    scripted,
    served,
    work,
)
from tests.connectors.served import (
    fault_of as failed,
)

LOGIN = "operator:pass phrase-8d21f0c4"


def wish(operation: str = "txt2img", *, body: dict[str, Any] | None = None, **members: Any) -> dict[str, Any]:
    """A payload whose work is as told."""
    start = {"init_images": ["aGVsbG8="]} if operation == "img2img" else {}
    asked = {"prompt": "a cat", **start, **(body or {}), "simulation": work(**members)}
    return {"operation": operation, "body": asked}


async def interrupt(twin: Served[A1111Service]) -> None:
    """Interrupt whatever runs, as anybody who knows the address can."""
    async with httpx.AsyncClient(base_url=twin.url) as client:
        assert (await client.post("/sdapi/v1/interrupt", json={})).status_code == 200


@pytest.mark.parametrize("operation", ["txt2img", "img2img"])
async def test_each_operation_brings_its_images(operation: str) -> None:
    """An operation runs once, under the job's own name, and brings images, parameters and the parsed info."""
    async with served(A1111Service) as twin:
        job = make_job(wish(operation, body={"n_iter": 2}, result="mark"), reference="a/b.1")
        value = (await twin.connector("a1111-http").run(job)).value
        assert len(value["images"]) == 2
        assert value["info"]["simulation"]["echo"] == "mark"
        assert value["parameters"]["prompt"] == "a cat"
        assert [entry.id for entry in twin.journal(JournalEvent.FINISHED)] == ["a/b.1"]


async def test_progress_is_told_within_bounds_and_previews_as_chunks() -> None:
    """The progress told lies within 0 and 1 although the server's is negative at first; previews come once each."""
    async with served(A1111Service) as twin:
        job = make_job(wish(duration_s=0.8, steps=8, chunks=2))
        await twin.connector("a1111-http", preview=True, stall_s=0.02).run(job)
        assert job.values == sorted(job.values)
        assert all(0.0 <= value <= 1.0 for value in job.values)
        assert any(0.3 < value < 1.0 for value in job.values)
        assert len(job.chunks) == 2
        assert "step" in " ".join(job.messages)


async def test_only_our_own_task_s_progress_is_told() -> None:
    """While a stranger's task runs, the job's own progress stands still, and its preview is not told."""
    async with served(A1111Service) as twin:
        stranger, ours = (
            make_job(wish(duration_s=0.6, chunks=3), reference="s.1"),
            make_job(wish(), reference="o.1"),
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(twin.connector("a1111-http").run, stranger)
            await twin.seen(JournalEvent.STARTED)
            await twin.connector("a1111-http", preview=True, stall_s=0.02).run(ours)
        assert "waiting for another task of the server" in ours.messages
        assert set(ours.values[: ours.messages.count("waiting for another task of the server")]) == {0.0}
        assert ours.chunks == []


async def _cancelled(twin: Served[A1111Service], job: RecordingJob, **options: Any) -> None:
    """Stop a running job as the runner does: its scope, then its work at the service."""
    connector, earlier = twin.connector("a1111-http", **options), len(twin.journal(JournalEvent.STARTED))
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connector.run, job)
            await twin.seen(JournalEvent.STARTED, earlier + 1)
            scope.cancel()
    await connector.cancel(job.reference)


async def test_a_cancel_interrupts_our_own_task() -> None:
    """The web UI works on when its client leaves; the interrupt is what stops it."""
    async with served(A1111Service) as twin:
        await _cancelled(twin, make_job(wish(duration_s=30.0)))
        await twin.seen(JournalEvent.CANCELLED)
        assert not twin.journal(JournalEvent.FINISHED)


async def test_a_cancel_never_hits_a_stranger_s_task() -> None:
    """The interrupt is global, so it is sent only while our own task runs; else the cancel waits a moment and ends."""
    async with served(A1111Service) as twin:
        stranger = make_job(wish(duration_s=1.0, result="mark"), reference="s.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(twin.connector("a1111-http").run, stranger)
            await twin.seen(JournalEvent.STARTED)
            await twin.connector("a1111-http").cancel("o.1")
        assert [entry.id for entry in twin.journal(JournalEvent.FINISHED)] == ["s.1"]
        assert not twin.journal(JournalEvent.CANCELLED)


async def test_a_cancel_of_a_waiting_task_interrupts_it_when_its_turn_comes() -> None:
    """A task that waits in the server's line cannot be stopped there; it is stopped as it begins."""
    async with served(A1111Service) as twin:
        stranger, ours = (
            make_job(wish(duration_s=0.5), reference="s.1"),
            make_job(wish(duration_s=30.0), reference="o.1"),
        )
        connector = twin.connector("a1111-http")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(twin.connector("a1111-http").run, stranger)
            await twin.seen(JournalEvent.STARTED)
            async with trio.open_nursery() as inner:
                inner.start_soon(connector.run, ours)
                await twin.seen(JournalEvent.SUBMITTED, 2)
                inner.cancel_scope.cancel()
            await connector.cancel(ours.reference)
        assert [entry.id for entry in twin.journal(JournalEvent.FINISHED)] == ["s.1"]
        assert [entry.id for entry in twin.journal(JournalEvent.CANCELLED)] == ["o.1"]


async def test_jobs_wait_here_and_not_in_the_server_s_line() -> None:
    """Of several jobs one is handed over at a time: a waiting one that is cancelled never reaches the server."""
    async with served(A1111Service) as twin:
        connector = twin.connector("a1111-http")
        first, second = make_job(wish(duration_s=0.3), reference="a.1"), make_job(wish(), reference="b.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connector.run, first)
            await twin.seen(JournalEvent.STARTED)
            with trio.move_on_after(0.1):
                await connector.run(second)
        assert [entry.id for entry in twin.journal(JournalEvent.SUBMITTED)] == ["a.1"]


@pytest.mark.parametrize("asked_by_us", [True, False])
async def test_a_partial_image_is_no_success(asked_by_us: bool) -> None:
    """After an interrupt the server answers 200 with an image; whoever asked for it, the job has failed."""
    async with served(A1111Service) as twin:
        connector, job = twin.connector("a1111-http"), make_job(wish(duration_s=30.0))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(failed, connector, job, FaultClass.SERVICE_ERROR)
            await twin.seen(JournalEvent.STARTED)
            await (connector.cancel(job.reference) if asked_by_us else interrupt(twin))


async def test_too_few_images_are_a_partial_answer_too() -> None:
    """When the next task has already begun, the flag is gone; that images are missing still tells."""
    async with served(A1111Service, Oddities(unmarked=False)) as twin:
        ours = make_job(wish(body={"batch_size": 2}, duration_s=30.0), reference="o.1")
        next_one = make_job(wish(duration_s=0.3), reference="s.1")
        # It looks at the progress so rarely that it sees nothing of the interrupt.
        connector, other = twin.connector("a1111-http", stall_s=20.0), twin.connector("a1111-http")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(failed, connector, ours, FaultClass.SERVICE_ERROR)
            await twin.seen(JournalEvent.STARTED)
            nursery.start_soon(other.run, next_one)
            await twin.seen(JournalEvent.SUBMITTED, 2)
            await interrupt(twin)
        assert [entry.id for entry in twin.journal(JournalEvent.FINISHED)] == ["s.1"]


async def test_our_own_interrupt_is_remembered() -> None:
    """When the next task has already begun and no image is missing, nothing else tells that this one is partial."""
    async with served(A1111Service) as twin:
        ours, next_one = (
            make_job(wish(duration_s=30.0), reference="o.1"),
            make_job(wish(duration_s=0.3), reference="s.1"),
        )
        connector, other = twin.connector("a1111-http", stall_s=20.0), twin.connector("a1111-http")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(failed, connector, ours, FaultClass.SERVICE_ERROR)
            await twin.seen(JournalEvent.STARTED)
            nursery.start_soon(other.run, next_one)
            await twin.seen(JournalEvent.SUBMITTED, 2)
            await connector.cancel(ours.reference)


async def test_a_server_that_does_not_name_tasks_is_not_interrupted_unless_it_is_ours_alone() -> None:
    """Older servers don't say whose task runs: then nothing is interrupted, unless the options say that all is ours."""
    async with served(A1111Service, Oddities(tells_task=False)) as twin:
        with pytest.raises(JobFault, match="nothing was interrupted"):
            await _cancelled(twin, make_job(wish(duration_s=0.3)))
        await twin.seen(JournalEvent.FINISHED)
        job = make_job(wish(duration_s=0.5, steps=8), reference="b.1")
        await twin.connector("a1111-http", exclusive=True, stall_s=0.02).run(job)
        assert any(0.0 < value < 1.0 for value in job.values)
        await _cancelled(twin, make_job(wish(duration_s=30.0), reference="c.1"), exclusive=True)
        await twin.seen(JournalEvent.CANCELLED)


async def test_a_server_that_refuses_the_task_s_name_gets_none() -> None:
    """A validation that forbids the name costs one refused request, not the job."""
    async with served(A1111Service, Oddities(forbids_task_id=True)) as twin:
        connector = twin.connector("a1111-http")
        for number in range(2):
            await connector.run(make_job(wish(), reference=f"j.{number}"))
        ids = [entry.id for entry in twin.journal(JournalEvent.FINISHED)]
        assert ids == ["task(1)", "task(2)"]


CLASSES = {
    ErrorKind.VALIDATION: FaultClass.VALIDATION,
    ErrorKind.AUTH: FaultClass.AUTH,
    ErrorKind.NOT_FOUND: FaultClass.VALIDATION,
    ErrorKind.RATE_LIMITED: FaultClass.RATE_LIMITED,
    ErrorKind.SERVICE_ERROR: FaultClass.SERVICE_ERROR,
    ErrorKind.OUT_OF_MEMORY: FaultClass.OUT_OF_MEMORY,
    ErrorKind.UNAVAILABLE: FaultClass.UNAVAILABLE,
}


@pytest.mark.parametrize("kind", list(CLASSES))
async def test_each_failure_has_its_class(kind: ErrorKind) -> None:
    """Status and the class name in the error decide."""
    async with served(A1111Service) as twin:
        job = make_job(wish(fail={"kind": kind, "message": "as asked"}))
        await failed(twin.connector("a1111-http"), job, CLASSES[kind])


@pytest.mark.parametrize(
    ("status", "body", "wanted"),
    [
        (404, {"error": "HTTPException", "detail": "Sampler not found"}, FaultClass.VALIDATION),
        (404, {"detail": "Not Found"}, FaultClass.UNSUPPORTED),
        (422, {"detail": [{"loc": ["body", "steps"], "msg": "m"}]}, FaultClass.VALIDATION),
        (500, {"error": "OutOfMemoryError", "errors": "CUDA out of memory"}, FaultClass.OUT_OF_MEMORY),
        (500, {"error": "RuntimeError", "errors": "OutOfMemoryError: not really"}, FaultClass.SERVICE_ERROR),
        (500, {"error": ["OutOfMemoryError"]}, FaultClass.SERVICE_ERROR),
        (500, None, FaultClass.SERVICE_ERROR),
        (502, "bad gateway", FaultClass.SERVICE_ERROR),
        (401, {"detail": "Incorrect username or password"}, FaultClass.AUTH),
    ],
)
def test_an_error_is_classified_by_status_and_class_name(status: int, body: Any, wanted: FaultClass) -> None:
    """Never by what its message says."""
    fault = fault_of(status_failure(status, "POST", body=msgspec.json.encode(body)))
    assert fault.fault_class is wanted
    assert "\n" not in str(fault)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (None, "payload: expected an object"),
        ({"operation": "txt2img"}, "payload.body: expected an object"),
        (
            {"operation": "upscale", "body": {"prompt": "a"}},
            "payload.operation: expected one of txt2img, img2img",
        ),
        ({"operation": "img2img", "body": {"prompt": "a"}}, "payload.body.init_images"),
        ({"body": {"steps": 3}}, "neither prompt nor init_images"),
        ({"body": {"prompt": "a"}, "steps": 3}, "unknown member 'steps'"),
        ({"prompt": "a", "force_task_id": "mine"}, "payload.body.force_task_id: the gateway names the task"),
    ],
)
def test_a_bad_payload_is_refused_with_one_clear_line(payload: Any, message: str) -> None:
    """What is wrong with a payload is said before anything is sent."""
    with pytest.raises(JobFault, match=message) as caught:
        read_call(payload)
    assert caught.value.fault_class is FaultClass.VALIDATION


def test_the_body_tells_the_operation() -> None:
    """With images to start from it is an img2img, else a txt2img; the body may be the whole payload."""
    assert read_call({"prompt": "a"}).path == "/sdapi/v1/txt2img"
    assert read_call({"body": {"prompt": "a", "init_images": ["b"]}}).path == "/sdapi/v1/img2img"


@given(progress=st.floats(), count=st.integers(-2, 3))
def test_a_fraction_lies_within_its_bounds(progress: float, count: int) -> None:
    """Whatever the server sums up, the fraction told is one."""
    assert 0.0 <= Progress(progress=progress, state=State(job_count=count)).fraction <= 1.0


@pytest.mark.parametrize("body", [b"", b"[]", b'{"progress": "half"}', b'{"state": null}', b"\xff"])
def test_an_unreadable_progress_is_no_progress(body: bytes) -> None:
    """Garbage is a violation of the protocol, which the looks step over."""
    with pytest.raises(ProtocolViolation):
        read_progress(body)


async def test_an_empty_answer_is_no_success() -> None:
    """Status 200 without an image is tried again, unless none was to be sent."""
    async with served(A1111Service, empty_output_rate=1.0) as twin:
        await failed(twin.connector("a1111-http"), make_job(wish()), FaultClass.SERVICE_ERROR)
        job = make_job(wish(body={"send_images": False}), reference="b.1")
        assert (await twin.connector("a1111-http").run(job)).value["images"] == []


async def test_a_job_runs_as_long_as_it_may() -> None:
    """A generation is silent to its end; the job's own deadline bounds it, not a time-out of requests."""
    async with served(A1111Service) as twin:
        connector = twin.connector("a1111-http", request_timeout_s=0.2)
        await connector.run(make_job(wish(duration_s=0.6)))
        fault = await failed(connector, make_job(wish(duration_s=30.0), timeout_s=0.3), FaultClass.TIMEOUT)
        assert fault.outcome_unknown


@pytest.mark.parametrize("knob", ["lost_completion_rate", "half_open_rate"])
async def test_an_answer_that_will_not_come_is_noticed(knob: str) -> None:
    """When the server no longer runs the task and still has not answered, the answer is lost, and known to be."""
    knobs: dict[str, Any] = {knob: 1.0}
    async with served(A1111Service, **knobs) as twin:
        fault = await failed(
            twin.connector("a1111-http", answer_grace_s=0.3), make_job(wish()), FaultClass.TIMEOUT
        )
        assert fault.outcome_unknown


async def test_waiting_in_line_is_no_lost_answer() -> None:
    """While another task runs, the answer is not overdue, however long that takes."""
    async with served(A1111Service) as twin:
        stranger, ours = make_job(wish(duration_s=0.8), reference="s.1"), make_job(wish(), reference="o.1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(twin.connector("a1111-http").run, stranger)
            await twin.seen(JournalEvent.STARTED)
            await twin.connector("a1111-http", answer_grace_s=0.2).run(ours)


async def test_a_finished_image_does_not_wait_for_a_silent_progress() -> None:
    """The look after the answer is bounded; when it fails, the answer counts."""

    async def answer(request: ServerRequest, responder: Responder) -> None:
        if request.method == "GET":
            await responder.hang()
        await responder.send_json(200, {"images": ["aGk="], "parameters": {}, "info": "no json"})

    async with scripted(answer) as server:
        connector = make_connector("a1111-http", server.url, request_timeout_s=25.0, stall_s=25.0)
        began = trio.current_time()
        value = (await connector.run(make_job({"prompt": "a"}))).value
        assert trio.current_time() - began < 15.0
        assert value == {"images": ["aGk="], "parameters": {}, "info": "no json"}
        await connector.aclose()


async def test_an_answer_has_a_bound() -> None:
    """More than the options allow is refused for good."""
    async with served(A1111Service, oversize_rate=1.0, oversize_bytes=200_000) as twin:
        connector = twin.connector("a1111-http", reply_bytes_max=100_000)
        await failed(connector, make_job(wish()), FaultClass.VALIDATION)


async def test_a_job_that_is_lost_meanwhile_ends_at_once() -> None:
    """A preview that the store refuses ends the run: somebody else owns the job."""
    async with served(A1111Service) as twin:
        job = make_job(wish(duration_s=30.0, chunks=100))
        job.lost = True
        await failed(twin.connector("a1111-http", preview=True), job, FaultClass.LEASE_LOST)


def _texts(error: BaseException | None) -> list[str]:
    found: list[str] = []
    while error is not None:
        found += [str(error), repr(error), repr(vars(error))]
        error = error.__cause__ or error.__context__
    return found


async def test_a_login_is_sent_and_shown_nowhere(caplog: pytest.LogCaptureFixture) -> None:
    """User and password reach the server; no log line, error, report, repr or journal shows them, though servers do."""
    caplog.set_level(logging.DEBUG)
    async with served(A1111Service, Oddities(credentials=LOGIN)) as twin:
        connector = twin.connector("a1111-http", credentials=LOGIN)
        value = (await connector.run(make_job(wish(result=LOGIN)))).value
        assert (await connector.health()).healthy
        shown = [msgspec.json.encode(value).decode()]
        twin.twin.set_oddities({"credentials": "another:one"})
        fault = await failed(connector, make_job(wish(), reference="b.1"), FaultClass.AUTH)
        assert "Incorrect login" in str(fault)
        shown += _texts(fault)
        with pytest.raises(JobFault) as caught:
            await connector.cancel("b.1")
        shown += _texts(caught.value)
        report = await connector.health()
        assert not report.healthy
        shown += [repr(report), repr(connector), repr(vars(connector)), repr(twin.journal())]
    shown += [record.getMessage() for record in caplog.records]
    assert not [text for text in shown if LOGIN in text or "b3BlcmF0b3I6" in text]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"login": LOGIN}, "unknown field `login`"),
        ({"credentials": {"env": LOGIN}}, r"at `\$.credentials`"),
        ({"credentials": "secretwithoutauser"}, "expected user:password"),
        ({"stall_s": 0}, "must be positive"),
        ({"connections_max": 1}, "at least 2"),
        ({"parallel": 0}, "at least 1"),
        ({"health_path": "x"}, "health_path must begin"),
    ],
)
async def test_a_wrong_option_fails_at_the_start(options: dict[str, Any], message: str) -> None:
    """Credentials that cannot be some, or an impossible option, are one clear line without the secret."""
    with pytest.raises(ConfigError, match=message) as caught:
        make_connector("a1111-http", "http://127.0.0.1:1", **options)
    assert LOGIN not in str(caught.value)
    assert "secretwithoutauser" not in str(caught.value)
