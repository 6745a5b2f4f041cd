"""Both ComfyUI connectors against the twin: every recorded oddity, in virtual time, over the adapters that ship.

What every connector must do is in the shared contract; this is what only ComfyUI makes hard.
"""

from __future__ import annotations

import base64
from typing import Any

import pytest
import trio
from trio.testing import MockClock as Clock
from trio.testing import lockstep_stream_pair

from gateway.connector import JobResult, ServicePhase
from gateway.connectors.simulation.wire import JournalEvent
from gateway.errors import ConfigError, FaultClass, JobFault
from tests.support.comfyui_stage import CONNECTORS, ComfyUIStage, open_comfyui

BOTH = pytest.mark.parametrize("key", sorted(CONNECTORS))
SOCKET = "comfyui-websocket"


async def fault_of(stage: ComfyUIStage, key: str, *options: dict[str, Any], **work: Any) -> JobFault:
    """The fault of one job."""
    connector = stage.connector(key, **(options[0] if options else {}))
    with pytest.raises(JobFault) as caught:
        await connector.run(stage.job(**work))
    await connector.aclose()
    return caught.value


def count(stage: ComfyUIStage, *route: str) -> int:
    return stage.requests.count((route[0], route[1]))


# ── submitting ──


@BOTH
async def test_a_refused_workflow_is_one_clear_line(autojump_clock: Clock, key: str) -> None:
    """A 400 names node and input, and is for good."""
    async with open_comfyui() as stage:
        fault = await fault_of(stage, key, steps=0)
        assert fault.fault_class is FaultClass.VALIDATION
        assert "node 1 (SimulationWork), input steps" in str(fault)
        assert "\n" not in str(fault)


@BOTH
async def test_a_partly_accepted_workflow_is_a_failure_and_is_stopped(
    autojump_clock: Clock, key: str
) -> None:
    """Skipped outputs are not success; the work nobody wants is stopped at the server."""
    async with open_comfyui(partial_accept_rate=1.0) as stage:
        fault = await fault_of(stage, key, duration_s=60.0)
        assert fault.fault_class is FaultClass.VALIDATION
        assert "node 99" in str(fault)
        assert stage.done(JournalEvent.CANCELLED) == [("cancelled", "job.1")]
        assert await stage.queue() == ([], [])


@BOTH
async def test_a_partly_accepted_workflow_runs_where_that_is_declared(
    autojump_clock: Clock, key: str
) -> None:
    """An option accepts what the server skips."""
    async with open_comfyui(partial_accept_rate=1.0) as stage:
        result = await stage.connector(key, accept_partial=True).run(stage.job(result="mark"))
        assert result.value["outputs"]["1"]["simulation"][0]["echo"] == "mark"


@BOTH
@pytest.mark.parametrize("jobs_api", [False, True])
async def test_a_submission_is_repeated_only_after_two_looks_in_the_right_order(
    autojump_clock: Clock, key: str, jobs_api: bool
) -> None:
    """A 500 says nothing; absent from the queue and then from the history, twice, does."""
    async with open_comfyui(jobs_api=jobs_api, error_5xx_rate=[[0, 1], [0.05, 0]]) as stage:
        if jobs_api:
            await trio.sleep(0.01)
        await stage.connector(key).run(stage.job())
        posts = [at for at, route in enumerate(stage.requests) if route == ("POST", "/prompt")]
        assert len(posts) == 2
        between = [path for _method, path in stage.requests[posts[0] + 1 : posts[1]]]
        looks = [path for path in between if path in ("/queue", "/history/job.1", "/api/jobs/job.1")]
        wanted = ["/api/jobs/job.1"] if jobs_api else ["/queue", "/history/job.1"]
        assert looks[-2 * len(wanted) :] == wanted * 2
        assert stage.executions() == 1


@BOTH
async def test_nothing_is_submitted_under_a_number_or_without_a_client(
    autojump_clock: Clock, key: str
) -> None:
    """The server numbers the jobs; each has a client id of its own."""
    async with open_comfyui(slots=1) as stage:
        connector = stage.connector(key)
        async with trio.open_nursery() as nursery:
            for name in ("a.1", "b.1"):
                nursery.start_soon(connector.run, stage.job(name, duration_s=5.0))
            await trio.sleep(1)
            said = await stage.ask("GET", "/queue")
            items = [*said["queue_running"], *said["queue_pending"]]
        assert sorted(item[0] for item in items) == [0, 1]
        assert {item[3]["client_id"] for item in items} == {f"trio-gateway.{item[1]}" for item in items}


@BOTH
async def test_a_server_that_chooses_its_ids_is_asked_by_them(autojump_clock: Clock, key: str) -> None:
    """The id of the answer is stored for a later owner, and followed."""
    async with open_comfyui(own_ids=True) as stage:
        job = stage.job(result="mark")
        result = await stage.connector(key).run(job)
        assert result.value["prompt_id"] == job.reference == job.references[-1] != "job.1"
        assert (await stage.connector(key).query(job.reference)).phase is ServicePhase.COMPLETED


# ── the end ──


@BOTH
async def test_a_record_that_comes_late_is_waited_for(autojump_clock: Clock, key: str) -> None:
    """An announced success without a record yet is neither lost nor run again."""
    async with open_comfyui(late_record_rate=1.0, late_record_s=2.0) as stage:
        result = await stage.connector(key).run(stage.job(result="mark"))
        assert result.value["outputs"]["1"]["simulation"][0]["echo"] == "mark"
        assert stage.executions() == 1


@BOTH
async def test_an_empty_success_is_a_failure_unless_declared(autojump_clock: Clock, key: str) -> None:
    """Workflows that only send pictures over a socket have to say so."""
    async with open_comfyui(empty_output_rate=1.0) as stage:
        assert (await fault_of(stage, key)).fault_class is FaultClass.SERVICE_ERROR
        result = await stage.connector(key, empty_output_ok=True).run(stage.job("job.2"))
        assert (result.value["outputs"], result.value["files"]) == ({}, [])


@BOTH
async def test_outputs_are_referenced_or_brought_along(autojump_clock: Clock, key: str) -> None:
    """The address of a file leads to the bytes that the inline form holds."""
    async with open_comfyui() as stage:
        referenced = await stage.connector(key).run(stage.job())
        (file,) = referenced.value["files"]
        assert "data" not in file
        there = await stage.raw("GET", file["url"].removeprefix("http://127.0.0.1:8188"))
        inline = await stage.connector(key, outputs="inline").query("job.1")
        assert inline.phase is ServicePhase.COMPLETED
        assert isinstance(inline.result, JobResult)
        (brought,) = inline.result.value["files"]
        assert base64.b64decode(brought["data"]) == there.body
        assert brought["media_type"] == "image/png"


@BOTH
@pytest.mark.parametrize("options", [{"outputs": "inline", "output_bytes_max": 50}, {"record_bytes_max": 50}])
async def test_more_than_we_take_in_fails_the_job_for_good(
    autojump_clock: Clock, key: str, options: dict[str, Any]
) -> None:
    """Neither files nor a record beyond their bound are held in memory, and no retry is tried."""
    async with open_comfyui() as stage:
        assert (await fault_of(stage, key, options)).fault_class is FaultClass.VALIDATION


# ── stopping and asking ──


@BOTH
@pytest.mark.parametrize("jobs_api", [False, True])
async def test_cancelling_a_waiting_job_spares_the_one_that_runs(
    autojump_clock: Clock, key: str, jobs_api: bool
) -> None:
    """A waiting job is deleted; nothing is interrupted, since that could only hit a stranger."""
    async with open_comfyui(slots=1, jobs_api=jobs_api) as stage, trio.open_nursery() as nursery:
        await stage.submit("stranger", duration_s=60)
        connector = stage.connector(key)
        nursery.start_soon(connector.run, stage.job())
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True):
            await connector.cancel("job.1")
            assert count(stage, "POST", "/interrupt") == 0
            assert await stage.queue() == (["stranger"], [])
            assert stage.done(JournalEvent.CANCELLED) == [("cancelled", "job.1")]
            assert (await connector.query("job.1")).phase is ServicePhase.UNKNOWN


@BOTH
@pytest.mark.parametrize("jobs_api", [False, True])
async def test_cancelling_a_running_job_hits_that_one_only(
    autojump_clock: Clock, key: str, jobs_api: bool
) -> None:
    """An interrupt names the job, and the cancel ends only when the job has."""
    async with open_comfyui(jobs_api=jobs_api) as stage:
        await stage.submit("stranger", duration_s=60)
        await stage.submit("job.1", duration_s=60)
        connector = stage.connector(key)
        await connector.cancel("job.1")
        assert await stage.queue() == (["stranger"], [])
        assert (await connector.query("job.1")).phase is ServicePhase.CANCELLED
        assert (await connector.query("stranger")).phase is ServicePhase.RUNNING


@BOTH
@pytest.mark.parametrize("jobs_api", [False, True])
async def test_the_newer_interface_is_found_once_and_used(
    autojump_clock: Clock, key: str, jobs_api: bool
) -> None:
    """One probe per connector; then one look instead of two."""
    async with open_comfyui(jobs_api=jobs_api) as stage:
        connector = stage.connector(key)
        for name in ("a", "b", "a"):
            assert (await connector.query(name)).phase is ServicePhase.UNKNOWN
        await stage.submit("a", duration_s=1)
        await trio.sleep(2)
        assert (await connector.query("a")).phase is ServicePhase.COMPLETED
        assert count(stage, "GET", "/api/jobs") == 1
        assert (count(stage, "GET", "/queue") == 0) is jobs_api


@BOTH
@pytest.mark.parametrize("path", ["/system_stats", "/prompt"])
async def test_the_probe_asks_what_the_option_says(autojump_clock: Clock, key: str, path: str) -> None:
    """Memory and devices by default, or the cheaper queue length."""
    async with open_comfyui() as stage:
        assert (await stage.connector(key, health_path=path).health()).healthy
        assert stage.requests == [("GET", path)]


@BOTH
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stall_s": 0}, "stall_s must be positive"),
        ({"grace_s": -1}, "grace_s must not be negative"),
        ({"outputs": "maybe"}, "outputs"),
        ({"health_path": "/x"}, "health_path"),
        ({"pols_s": 1}, "pols_s"),
    ],
)
async def test_a_wrong_option_is_named(key: str, options: dict[str, Any], words: str) -> None:
    """Bad configuration fails at start, in one line."""
    async with open_comfyui() as stage:
        with pytest.raises(ConfigError, match=words):
            stage.connector(key, **options)


# ── over the socket ──


async def test_the_socket_is_open_before_the_job_is_submitted(autojump_clock: Clock) -> None:
    """Else a quick job's events would be told to nobody."""
    async with open_comfyui(finished_before_listening_rate=1.0) as stage:
        await stage.connector(SOCKET, stall_s=3600.0).run(stage.job())
        assert stage.requests[:2] == [("GET", "/ws"), ("POST", "/prompt")]
        assert trio.current_time() < 60


async def test_progress_rises_with_the_frames(autojump_clock: Clock) -> None:
    """Quarter by quarter, never back, whatever order the frames come in."""
    async with open_comfyui(duplicate_event_rate=0.5, out_of_order_rate=0.5) as stage:
        job = stage.job(steps=4, duration_s=4.0)
        await stage.connector(SOCKET).run(job)
        assert job.values == sorted(job.values)
        assert {0.25, 0.5, 0.75} & set(job.values)


async def test_previews_are_chunks_that_name_node_and_type(autojump_clock: Clock) -> None:
    """Each picture of ours, in base64; none of a stranger's who submitted without a client id."""
    async with open_comfyui() as stage:
        job = stage.job(chunks=2, duration_s=6.0)
        await stage.submit("stranger", chunks=5, duration_s=6.0)
        await stage.connector(SOCKET).run(job)
        assert [(chunk["node"], chunk["media_type"]) for chunk in job.chunks] == [("1", "image/png")] * 2
        pictures = [base64.b64decode(chunk["data"]) for chunk in job.chunks]
        assert all(picture.startswith(b"\x89PNG") for picture in pictures)
        assert b"chunk 1" in pictures[0]
        assert max(job.values) <= 1.0


@pytest.mark.parametrize(
    ("options", "most"),
    [({"previews": False}, 0), ({"preview_bytes_max": 20}, 0), ({"preview_every_s": 2.0}, 3), ({}, 9)],
)
async def test_previews_are_bounded(autojump_clock: Clock, options: dict[str, Any], most: int) -> None:
    """Off, too large, or too often: dropped, and the job goes on."""
    async with open_comfyui() as stage:
        job = stage.job(chunks=50, duration_s=4.0)
        await stage.connector(SOCKET, **options).run(job)
        assert len(job.chunks) <= most
        assert bool(job.chunks) is bool(most)


async def test_without_a_socket_a_job_is_polled(autojump_clock: Clock) -> None:
    """A proxy that lets no WebSocket through costs progress, not the job."""
    async with open_comfyui() as stage:
        stage.refuse_sockets = True
        result = await stage.connector(SOCKET).run(stage.job(result="mark"))
        assert result.value["outputs"]["1"]["simulation"][0]["echo"] == "mark"
        assert stage.executions() == 1


async def test_what_others_do_does_not_hide_that_a_job_is_silent(autojump_clock: Clock) -> None:
    """A socket that speaks all the time, but never of this job, is no reason to wait for it."""
    async with open_comfyui(slots=8) as stage, trio.open_nursery() as nursery:

        async def crowd() -> None:
            for number in range(1000):
                await stage.submit(f"stranger-{number}", duration_s=1.0, steps=5)
                await trio.sleep(0.2)

        nursery.start_soon(crowd)
        await stage.ask("PUT", "/control/faults", {"lost_completion_rate": 1.0})
        await stage.connector(SOCKET).run(stage.job(duration_s=3.0))
        assert trio.current_time() < 10
        nursery.cancel_scope.cancel()


@BOTH
async def test_outputs_that_cannot_be_fetched_now_are_asked_for_again(
    autojump_clock: Clock, key: str
) -> None:
    """The second witness of a job that is done never calls it failed because of a passing fault."""
    async with open_comfyui() as stage:
        await stage.submit("job.1", duration_s=0)
        stage.refuse_views = True
        with pytest.raises(JobFault) as caught:
            await stage.connector(key, outputs="inline").query("job.1")
        assert caught.value.fault_class is FaultClass.UNAVAILABLE
        stage.refuse_views = False
        assert (await stage.connector(key, outputs="inline").query("job.1")).phase is ServicePhase.COMPLETED


async def test_a_stolen_client_makes_a_job_deaf_but_not_lost(autojump_clock: Clock) -> None:
    """The record is found at the next silence; and a socket that stays silent is opened anew."""
    async with open_comfyui() as stage, trio.open_nursery() as nursery:
        job, done = stage.job(duration_s=60.0, steps=60), trio.Event()

        async def run() -> None:
            await stage.connector(SOCKET, deaf_s=10.0).run(job)
            done.set()

        nursery.start_soon(run)
        await trio.sleep(2)
        async with stage.socket("trio-gateway.job.1"):
            await trio.sleep(1)
        heard_before = max(job.values)
        await done.wait()
        assert count(stage, "GET", "/ws") == 3
        assert max(job.values) > heard_before
        assert trio.current_time() < 65
        assert stage.executions() == 1


async def test_a_slow_reader_elsewhere_does_not_hold_a_job_up(autojump_clock: Clock) -> None:
    """When no event is published any more, the history tells."""
    async with open_comfyui() as stage, trio.open_nursery() as nursery:
        slow, theirs = lockstep_stream_pair()
        nursery.start_soon(stage.twin.serve_stream, theirs)
        await slow.send_all(
            b"GET /ws?clientId=slow HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert b"101" in await slow.receive_some()
        await stage.connector(SOCKET).run(stage.job(duration_s=3.0))
        assert trio.current_time() < 10
        nursery.cancel_scope.cancel()


async def test_a_job_that_is_followed_again_is_heard_again(autojump_clock: Clock) -> None:
    """The client id stays the same over a restart, so that progress goes on after re-attaching."""
    async with open_comfyui() as stage:
        with trio.move_on_after(3):
            await stage.connector(SOCKET).run(stage.job(duration_s=20.0, steps=20))
        heir = stage.job(duration_s=20.0, steps=20)
        await stage.connector(SOCKET).resume(heir)
        assert any(0.3 < value < 0.9 for value in heir.values)
        assert stage.executions() == 1


async def test_what_the_socket_said_survives_a_server_that_dies_of_it(autojump_clock: Clock) -> None:
    """A server that ran out of memory and came back knows nothing; the job's fault is still out_of_memory."""
    async with open_comfyui(out_of_memory_rate=1.0, late_record_rate=1.0, late_record_s=60.0) as stage:
        async with trio.open_nursery() as nursery:

            async def restart() -> None:
                await trio.sleep(2)
                await stage.raw("POST", "/control/restart")

            nursery.start_soon(restart)
            fault = await fault_of(stage, SOCKET)
        assert fault.fault_class is FaultClass.OUT_OF_MEMORY


async def test_each_job_leaves_no_socket_behind(autojump_clock: Clock) -> None:
    """After its end the server has nobody left to tell."""
    async with open_comfyui() as stage:
        connector = stage.connector(SOCKET)
        for name in ("a.1", "b.1", "c.1"):
            await connector.run(stage.job(name))
        await trio.sleep(5)
        assert not stage.twin.shell.listeners
