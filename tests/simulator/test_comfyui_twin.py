"""ComfyUI's twin says what a real server (v0.3.64) was recorded to say, in that order, misleading or not."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
import trio
from trio.testing import MockClock as Clock
from trio.testing import lockstep_stream_pair

from gateway.connectors.simulation.wire import JournalEvent
from protocols.errors import (
    AuthRejected,
    NotFound,
    ProtocolError,
    RateLimited,
    Rejected,
    ServerFailure,
    Unavailable,
)
from tests.support.comfyui_stage import heard, kinds, open_comfyui

INVALID = "prompt_outputs_failed_validation"
START = ["status", "execution_start", "execution_cached", "progress_state", "executing"]
STEP = ["progress_state", "progress"]


def of(frames: list[Any], kind: str) -> dict[str, Any]:
    """The data of the only frame of a kind."""
    (found,) = [frame["data"] for frame in frames if not isinstance(frame, bytes) and frame["type"] == kind]
    assert isinstance(found, dict)
    return found


# ── one job, from its submission to its record ──


async def test_a_job_is_told_in_the_recorded_order_and_recorded_in_the_history(autojump_clock: Clock) -> None:
    """Submit, frames in order, history, picture: the happy path as a real server shows it."""
    async with open_comfyui() as stage, stage.socket("me") as link:
        accepted = await stage.submit("j", "me", steps=2, result="mark")
        assert accepted == {"prompt_id": "j", "number": 0, "node_errors": {}}
        assert await stage.ask("GET", "/history/j") == {}
        assert await stage.queue() == (["j"], [])
        frames = await heard(link, 2.0)
        assert kinds(frames) == [*START, *STEP, "executed", "execution_success", "status", "executing null"]
        assert of(frames, "execution_success")["prompt_id"] == "j"
        record = await stage.history("j")
        assert record["status"]["status_str"] == "success"
        assert record["status"]["completed"] is True
        assert [kind for kind, _data in record["status"]["messages"]][-1] == "execution_success"
        assert of(frames, "executed")["output"] == record["outputs"]["1"]
        assert record["outputs"]["1"]["simulation"][0]["echo"] == "mark"
        assert record["prompt"][:2] == [0, "j"]
        assert await stage.queue() == ([], [])
        (image,) = record["outputs"]["1"]["images"]
        picture = await stage.raw("GET", f"/view?filename={image['filename']}&type=output&subfolder=")
        assert picture.body.startswith(b"\x89PNG")
        assert picture.headers["content-type"] == "image/png"
        assert picture.headers["etag"]


async def test_every_route_exists_below_api_too(autojump_clock: Clock) -> None:
    """The prefix changes nothing; the newer interface for jobs is not there."""
    async with open_comfyui() as stage:
        assert "devices" in await stage.ask("GET", "/api/system_stats")
        assert await stage.ask("GET", "/api/prompt") == {"exec_info": {"queue_remaining": 0}}
        assert await stage.ask("GET", "/api/history/j") == {}
        with pytest.raises(NotFound):
            await stage.ask("GET", "/api/jobs?limit=1")
        async with stage.web.connect("/api/ws?clientId=me") as link:
            assert kinds(await heard(link)) == ["status"]


async def test_a_workflow_of_real_nodes_takes_the_default_time(autojump_clock: Clock) -> None:
    """Any workflow runs, so that a fleet's own can be tried."""
    async with open_comfyui(duration_s=3.0) as stage:
        body = {"prompt": {"3": {"class_type": "KSampler", "inputs": {}}}, "prompt_id": "j"}
        await stage.ask("POST", "/prompt", body)
        await trio.sleep(2.9)
        assert await stage.history("j") is None
        await trio.sleep(0.2)
        assert "images" in (await stage.history("j"))["outputs"]["3"]


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({}, "no_prompt"),
        ({"prompt": {}}, "prompt_no_outputs"),
        ({"prompt": {"3": {"inputs": {}}}}, "invalid_prompt"),
        (
            {"prompt": {"1": {"class_type": "SimulationWork", "inputs": {"steps": "x"}}}},
            "prompt_outputs_failed_validation",
        ),
        (
            {"prompt": {"1": {"class_type": "SimulationWork", "inputs": {"steps": 0}}}},
            "prompt_outputs_failed_validation",
        ),
    ],
)
async def test_a_bad_workflow_is_refused_in_the_servers_words(
    autojump_clock: Clock, body: dict[str, Any], kind: str
) -> None:
    """400 with the type of the error; a wrong input is named beside its node."""
    async with open_comfyui() as stage:
        with pytest.raises(Rejected) as caught:
            await stage.ask("POST", "/prompt", body)
        said = msgspec.json.decode(caught.value.body)
        assert said["error"]["type"] == kind
        if said["node_errors"]:
            assert said["node_errors"]["1"]["errors"][0]["extra_info"]["input_name"] == "steps"
        assert not stage.done()


async def test_malformed_json_is_trouble_and_a_strangers_page_is_forbidden(autojump_clock: Clock) -> None:
    """The server answers 500 in plain text to what is not JSON, and 403 to a foreign Origin."""
    async with open_comfyui() as stage:
        with pytest.raises(ServerFailure) as trouble:
            await stage.raw("POST", "/prompt", b"{")
        assert b"Server got itself in trouble" in trouble.value.body
        with pytest.raises(AuthRejected) as forbidden:
            await stage.raw("GET", "/queue", Origin="http://evil.example")
        assert (forbidden.value.status, forbidden.value.body) == (403, b"")
        assert (await stage.raw("GET", "/queue", Origin="http://127.0.0.1:8188")).status == 200


async def test_view_answers_errors_without_a_body(autojump_clock: Clock) -> None:
    """Unknown is 404, a path out of the folder 400, both empty."""
    async with open_comfyui() as stage:
        for query, status in (("filename=gone.png", 404), ("filename=../x", 400), ("", 400)):
            with pytest.raises((NotFound, Rejected)) as caught:
                await stage.raw("GET", f"/view?{query}")
            assert isinstance(caught.value, NotFound | Rejected)
            assert (caught.value.status, caught.value.body) == (status, b"")


# ── oddities of submissions ──


async def test_the_same_id_twice_runs_twice_and_the_history_keeps_the_last(autojump_clock: Clock) -> None:
    """Nothing is deduplicated, also when the knob of the simulated service says otherwise."""
    async with open_comfyui(dedupe=True) as stage:
        await stage.submit("j", result="first")
        await stage.submit("j", result="second")
        await trio.sleep(2)
        assert stage.executions("j") == 2
        assert (await stage.history("j"))["outputs"]["1"]["simulation"][0]["echo"] == "second"


async def test_the_same_id_and_number_is_answered_500_and_runs_all_the_same(autojump_clock: Clock) -> None:
    """A 500 can have been accepted."""
    async with open_comfyui() as stage:
        await stage.submit("j", also={"number": 5})
        with pytest.raises(ServerFailure):
            await stage.submit("j", also={"number": 5})
        await trio.sleep(2)
        assert stage.executions("j") == 2


async def test_an_accepted_submission_can_skip_outputs_and_end_as_success(autojump_clock: Clock) -> None:
    """200 with node_errors: the good output is made, and the record knows nothing of the other."""
    async with open_comfyui(partial_accept_rate=1.0) as stage:
        accepted = await stage.submit("j")
        assert accepted["node_errors"]["99"]["errors"][0]["type"] == "value_not_in_list"
        await trio.sleep(2)
        assert (await stage.history("j"))["status"]["status_str"] == "success"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("auth", AuthRejected),
        ("rate_limited", RateLimited),
        ("unavailable", Unavailable),
        ("validation", Rejected),
    ],
)
async def test_what_comfyui_has_no_words_for_is_said_at_the_door(
    autojump_clock: Clock, kind: str, expected: type[ProtocolError]
) -> None:
    """A payload that asks so is turned away as often as it says, and is accepted then."""
    async with open_comfyui() as stage:
        wish = {"kind": kind, "message": "as asked", "times": 1, "retry_after_s": 3.0}
        with pytest.raises(expected) as caught:
            await stage.submit("j", fail=msgspec.convert(wish, Any))
        if expected is RateLimited:
            assert caught.value.retry_after_s == 3.0
        assert not stage.done()
        await stage.submit("j", fail=msgspec.convert(wish, Any))
        await trio.sleep(2)
        assert (await stage.history("j"))["status"]["status_str"] == "success"


# ── oddities of ends ──


async def test_a_failure_is_an_error_and_executing_null_follows_it(autojump_clock: Clock) -> None:
    """The frame that ends every job never means success."""
    async with open_comfyui(out_of_memory_rate=1.0) as stage, stage.socket("me") as link:
        await stage.submit("j", "me")
        frames = await heard(link, 2.0)
        assert kinds(frames)[-3:] == ["execution_error", "status", "executing null"]
        assert of(frames, "execution_error")["exception_type"] == "torch.OutOfMemoryError"
        record = await stage.history("j")
        assert (record["status"]["status_str"], record["status"]["completed"]) == ("error", False)
        assert record["outputs"] == {}


async def test_the_end_can_be_announced_before_the_record_is_there(autojump_clock: Clock) -> None:
    """Until then the history is empty and the job still runs; executing null never comes before the record."""
    async with open_comfyui(late_record_rate=1.0, late_record_s=0.5) as stage, stage.socket("me") as link:
        await stage.submit("j", "me")
        frames = await heard(link, 0.4)
        assert kinds(frames)[-1] == "execution_success"
        assert await stage.ask("GET", "/history/j") == {}
        assert await stage.queue() == (["j"], [])
        assert kinds(await heard(link, 1.0)) == ["status", "executing null"]
        assert await stage.history("j") is not None


async def test_a_completion_can_go_untold(autojump_clock: Clock) -> None:
    """The socket stays open and says nothing; the history tells the truth."""
    async with open_comfyui(lost_completion_rate=1.0) as stage, stage.socket("me") as link:
        await stage.submit("j", "me")
        assert not {"execution_success", "executing null"} & set(kinds(await heard(link, 5.0)))
        assert (await stage.history("j"))["status"]["completed"] is True


async def test_an_empty_output_is_marked_as_success(autojump_clock: Clock) -> None:
    """Success with no outputs at all."""
    async with open_comfyui(empty_output_rate=1.0) as stage:
        await stage.submit("j")
        await trio.sleep(2)
        record = await stage.history("j")
        assert (record["outputs"], record["status"]["status_str"]) == ({}, "success")


async def test_a_restart_forgets_queue_and_history_and_cuts_sockets(autojump_clock: Clock) -> None:
    """Nothing survives, and numbers begin anew."""
    async with open_comfyui(slots=1) as stage, stage.socket("me") as link:
        await stage.submit("done", duration_s=0)
        await stage.submit("runs", "me", duration_s=60)
        await stage.submit("waits", duration_s=60)
        await trio.sleep(1)
        await stage.raw("POST", "/control/restart")
        with pytest.raises(ProtocolError):
            await heard(link, 5.0)
        assert await stage.queue() == ([], [])
        assert [await stage.history(name) for name in ("done", "runs", "waits")] == [None] * 3
        assert (await stage.submit("next"))["number"] == 0


# ── oddities of interrupts ──


async def test_an_interrupt_with_an_id_stops_that_job_if_it_runs(autojump_clock: Clock) -> None:
    """Its record is an error with an execution_interrupted message, and every socket hears of it."""
    async with open_comfyui() as stage, stage.socket("bystander") as link:
        await stage.submit("j", "me", duration_s=60)
        await stage.submit("other", "me", duration_s=60)
        assert (await stage.raw("POST", "/interrupt", b'{"prompt_id": "j"}')).body == b""
        assert "execution_interrupted" in kinds(await heard(link))
        record = await stage.history("j")
        assert record["status"]["status_str"] == "error"
        assert [kind for kind, _data in record["status"]["messages"]][-1] == "execution_interrupted"
        assert await stage.queue() == (["other"], [])


async def test_an_interrupt_of_a_waiting_job_is_ignored_and_a_deleted_one_leaves_no_record(
    autojump_clock: Clock,
) -> None:
    """200 and empty in any case, also when nothing matched."""
    async with open_comfyui(slots=1) as stage:
        await stage.submit("runs", duration_s=60)
        await stage.submit("waits", duration_s=60)
        await stage.raw("POST", "/interrupt", b'{"prompt_id": "waits"}')
        assert await stage.queue() == (["runs"], ["waits"])
        await stage.raw("POST", "/queue", b'{"delete": ["runs", "waits", "unknown"]}')
        assert await stage.queue() == (["runs"], [])
        assert await stage.history("waits") is None
        await stage.submit("again", duration_s=60)
        await stage.raw("POST", "/queue", b'{"clear": true}')
        assert await stage.queue() == (["runs"], [])


async def test_an_interrupt_without_an_id_kills_a_strangers_job(autojump_clock: Clock) -> None:
    """Whoever runs is hit; a body that is a list is trouble."""
    async with open_comfyui(slots=1) as stage:
        await stage.submit("stranger", "somebody", duration_s=60)
        with pytest.raises(ServerFailure):
            await stage.raw("POST", "/interrupt", b"[]")
        await stage.raw("POST", "/interrupt")
        assert stage.done(JournalEvent.CANCELLED) == [("cancelled", "stranger")]


# ── oddities of sockets ──


async def test_a_bystander_hears_only_status_of_a_prompt_with_a_client(autojump_clock: Clock) -> None:
    """Events follow the client id that was given with the prompt."""
    async with open_comfyui() as stage, stage.socket("bystander") as link:
        await stage.submit("j", "me", chunks=2)
        assert set(kinds(await heard(link, 2.0))) == {"status"}


async def test_a_prompt_without_a_client_is_everybodys_progress_and_nobodys_end(
    autojump_clock: Clock,
) -> None:
    """Its progress and previews are broadcast, its execution events go nowhere."""
    async with open_comfyui() as stage, stage.socket("bystander") as link:
        await stage.submit("j", chunks=1)
        assert set(kinds(await heard(link, 2.0))) == {"status", "progress_state", "progress", "binary 4"}


@pytest.mark.parametrize(("hello", "event"), [(True, 4), (False, 1)])
async def test_previews_name_their_job_only_after_a_hello(
    autojump_clock: Clock, hello: bool, event: int
) -> None:
    """Type 4 has to be asked for with the very first frame; type 1 names nobody."""
    async with open_comfyui() as stage, stage.socket("me", hello=hello) as link:
        if not hello:
            await link.send("something else")
            await link.send('{"type":"feature_flags","data":{"supports_preview_metadata":true}}')
        await stage.submit("j", "me", chunks=1)
        (preview,) = [frame for frame in await heard(link, 2.0) if isinstance(frame, bytes)]
        assert int.from_bytes(preview[:4], "big") == event
        assert (b'"prompt_id":"j"' in preview) is hello


async def test_a_second_socket_steals_the_client_and_leaves_the_first_deaf(autojump_clock: Clock) -> None:
    """The newest socket of an id gets the events; when it closes, the older one stays open and hears nothing."""
    async with open_comfyui() as stage, stage.socket("me") as first:
        async with stage.socket("me") as second:
            await stage.submit("a", "me")
            assert "execution_success" in kinds(await heard(second, 2.0))
            assert kinds(await heard(first)) == []
        await trio.sleep(1)
        await stage.submit("b", "me")
        assert kinds(await heard(first, 5.0)) == []
        await first.ping()


async def test_who_comes_back_is_told_the_running_node_only(autojump_clock: Clock) -> None:
    """Status and executing, without the job's name; what was missed stays missed, what follows is told."""
    async with open_comfyui() as stage:
        async with stage.socket("me"):
            await stage.submit("j", "me", duration_s=4)
        await trio.sleep(2)
        async with stage.web.connect("/ws?clientId=me") as link:
            frames = await heard(link, 0.5)
            assert kinds(frames) == ["status", "executing"]
            assert frames[1]["data"] == {"node": "1"}
            assert frames[0]["data"]["sid"] == "me"
            assert "execution_success" in kinds(await heard(link, 3.0))


async def test_one_slow_reader_keeps_everybody_waiting(autojump_clock: Clock) -> None:
    """A socket that stops reading blocks the only publish loop, though the job is done in the history."""
    async with open_comfyui() as stage, trio.open_nursery() as nursery:
        slow, theirs = lockstep_stream_pair()
        nursery.start_soon(stage.twin.serve_stream, theirs)
        await slow.send_all(
            b"GET /ws?clientId=slow HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        assert b"101" in await slow.receive_some()
        async with stage.web.connect("/ws?clientId=me") as link:
            await stage.submit("j", "me")
            assert kinds(await heard(link, 5.0)) == []
            assert await stage.history("j") is not None
            await slow.aclose()
            assert "execution_success" in kinds(await heard(link, 5.0))
        nursery.cancel_scope.cancel()


async def test_the_newer_interface_tells_all_in_one_look(autojump_clock: Clock) -> None:
    """Where it is switched on, a job is waiting, running, ended or not found."""
    async with open_comfyui(slots=1, jobs_api=True) as stage:
        assert (await stage.ask("GET", "/api/jobs?limit=1"))["jobs"] == []
        with pytest.raises(NotFound):
            await stage.ask("GET", "/api/jobs/a")
        await stage.submit("a")
        await stage.submit("b")
        seen = [(await stage.ask("GET", f"/api/jobs/{name}"))["status"] for name in ("a", "b")]
        await trio.sleep(1.5)
        seen.append((await stage.ask("GET", "/api/jobs/a"))["status"])
        assert seen == ["in_progress", "pending", "completed"]


async def test_health_fails_as_often_as_the_knob_says(autojump_clock: Clock) -> None:
    """Both probes answer 503 at rate one, and nothing else does."""
    async with open_comfyui(health_failure_rate=1.0) as stage:
        for path in ("/system_stats", "/prompt"):
            with pytest.raises(Unavailable):
                await stage.ask("GET", path)
        assert await stage.queue() == ([], [])


async def test_journal_and_control_are_those_of_every_twin(autojump_clock: Clock) -> None:
    """A test sees what was done and steers the faults, whatever the dialect."""
    async with open_comfyui() as stage:
        await stage.submit("j", duration_s=0)
        summary = await stage.ask("GET", "/journal/summary")
        assert summary["executions_by_job"] == {"j": 1}
        await stage.ask("PUT", "/control/faults", {"error_5xx_rate": 1})
        with pytest.raises(ServerFailure):
            await stage.queue()
