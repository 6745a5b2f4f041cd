"""What ComfyUI says, read from recorded bodies and frames: no I/O, no clock."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.connector import ServicePhase
from gateway.connectors.comfyui import frames, wire
from gateway.connectors.comfyui.wire import Place
from gateway.errors import FaultClass, JobFault
from protocols.errors import ProtocolViolation

NODE = {"class_type": "KSampler", "inputs": {"steps": 4}}
WORKFLOW = {"3": NODE}


def encoded(value: object) -> bytes:
    return msgspec.json.encode(value)


# ── payloads ──


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (None, "the payload is null, not an object"),
        ([], "the payload is a list, not an object"),
        ({}, "payload.prompt must be a workflow"),
        ({"prompt": {}}, "at least one node"),
        (WORKFLOW, "a bare workflow: wrap it"),
        ({"prompt": WORKFLOW, "number": 1}, "unknown key 'number'; known are prompt, extra_data"),
        ({"prompt": {"nodes": [], "links": []}}, "export the workflow in API format"),
        ({"prompt": {"3": {"inputs": {}}}}, "node 3 must be an object with a class_type"),
        ({"prompt": {"3": {"class_type": "A", "inputs": []}}}, r"inputs of node 3 \(A\) must be an object"),
        ({"prompt": WORKFLOW, "extra_data": 1}, "payload.extra_data is a int"),
    ],
)
def test_a_wrong_payload_is_refused_with_what_to_do(payload: object, words: str) -> None:
    """A payload that the server could not run never reaches it, and the one line says why."""
    with pytest.raises(JobFault, match=words) as caught:
        wire.read_payload(payload)
    assert caught.value.fault_class is FaultClass.VALIDATION
    assert "\n" not in str(caught.value)


def test_a_submission_names_job_and_client_and_never_a_number() -> None:
    """The body carries our id and a client id, and no number, which can make the server answer 500."""
    workflow = wire.read_payload({"prompt": WORKFLOW, "extra_data": {"a": 1}})
    body = msgspec.json.decode(wire.submit_body(workflow, reference="job.1", client_id="me"))
    assert body == {"prompt": WORKFLOW, "prompt_id": "job.1", "client_id": "me", "extra_data": {"a": 1}}


# ── answers to a submission ──


def problem(message: str, name: str = "") -> dict[str, Any]:
    return {"type": "t", "message": message, "details": "", "extra_info": {"input_name": name}}


def test_a_refusal_names_node_and_input_in_one_line() -> None:
    """Of a 400's body, what a person needs to mend the workflow is told, bounded."""
    errors = {str(n): {"errors": [problem("Value too\nsmall", "steps")], "class_type": "K"} for n in range(9)}
    body = {"error": {"type": "prompt_outputs_failed_validation", "message": "m"}, "node_errors": errors}
    fault = wire.refusal(encoded(body))
    assert fault is not None
    assert fault.fault_class is FaultClass.VALIDATION
    assert "prompt_outputs_failed_validation" in str(fault)
    assert "node 0 (K), input steps: Value too small" in str(fault)
    assert "and 4 more" in str(fault)
    assert "\n" not in str(fault)


def test_a_refusal_without_nodes_uses_the_servers_words() -> None:
    """An unknown node class comes with empty node_errors."""
    body = {
        "error": {"type": "invalid_prompt", "message": "no class", "details": "Node ID '#3'"},
        "node_errors": {},
    }
    fault = wire.refusal(encoded(body))
    assert str(fault) == "ComfyUI refuses the workflow (invalid_prompt): no class (Node ID '#3')"


@pytest.mark.parametrize("body", [b"", b"<html>", b"{}", b'{"error": 1}', b"\xff\xfe"])
def test_a_strangers_400_is_no_refusal_of_comfyui(body: bytes) -> None:
    """A proxy's body is not mistaken for the server's."""
    assert wire.refusal(body) is None


def test_node_errors_of_an_accepted_submission_are_told() -> None:
    """A 200 that skips outputs says which."""
    node = {"errors": [problem("Value not in list", "ckpt_name")], "class_type": "CheckpointLoaderSimple"}
    reply = wire.read_submit_reply(encoded({"prompt_id": "j", "number": 0, "node_errors": {"4": node}}))
    assert reply.problems == "node 4 (CheckpointLoaderSimple), input ckpt_name: Value not in list"
    assert not wire.read_submit_reply(b'{"prompt_id":"j","number":0,"node_errors":{}}').problems


# ── where a job stands ──


def queue(running: list[str], pending: list[str]) -> bytes:
    def items(ids: list[str]) -> list[Any]:
        return [[0, prompt_id, WORKFLOW, {}, ["3"]] for prompt_id in ids]

    return encoded({"queue_running": items(running), "queue_pending": items(pending)})


def test_the_queue_tells_running_from_waiting_from_absent() -> None:
    """Only the id of an entry counts, however the server escapes it."""
    body = queue(["a"], ["b", "ü/é"])
    found = [wire.place_in_queue(body, name) for name in ("a", "b", "c", "ü/é")]
    assert found == [Place.RUNNING, Place.PENDING, Place.ABSENT, Place.PENDING]
    assert wire.place_in_queue(body.replace("ü".encode(), b"\\u00fc"), "ü/é") is Place.PENDING


def record(status_str: str | None, *messages: list[Any], outputs: dict[str, Any] | None = None) -> bytes:
    status = {"status_str": status_str, "completed": status_str == "success", "messages": messages}
    return encoded({"j": {"prompt": [], "outputs": outputs or {}, "status": status, "meta": {}}})


def test_an_empty_history_says_nothing() -> None:
    """It is empty while a job waits, while it runs, and when nobody knows it."""
    assert wire.read_history(b"{}", "j") is None


def test_a_record_tells_success_failure_and_interruption_apart() -> None:
    """status_str alone does not: an interruption is called an error too."""
    outputs = {"9": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}}
    success = wire.read_history(record("success", outputs=outputs), "j")
    assert success is not None
    assert (success.phase, success.outputs) == (ServicePhase.COMPLETED, outputs)
    interrupted = wire.read_history(record("error", ["execution_interrupted", {"node_id": "3"}]), "j")
    assert interrupted is not None
    assert interrupted.phase is ServicePhase.CANCELLED
    silent = wire.read_history(record("error"), "j")
    assert silent is not None
    assert silent.fault is not None
    assert silent.fault.fault_class is FaultClass.SERVICE_ERROR


@pytest.mark.parametrize(
    ("exception_type", "message", "expected"),
    [
        ("torch.OutOfMemoryError", "Allocation on device", FaultClass.OUT_OF_MEMORY),
        ("torch.cuda.OutOfMemoryError", "", FaultClass.OUT_OF_MEMORY),
        ("MemoryError", "", FaultClass.OUT_OF_MEMORY),
        ("RuntimeError", "CUDA out of memory", FaultClass.SERVICE_ERROR),
        ("", "", FaultClass.SERVICE_ERROR),
    ],
)
def test_a_failure_is_classified_by_the_exceptions_type(
    exception_type: str, message: str, expected: FaultClass
) -> None:
    """What an exception says in words decides nothing."""
    data = {"exception_type": exception_type, "exception_message": message, "node_id": "3", "node_type": "K"}
    outcome = wire.read_history(record("error", ["execution_error", data]), "j")
    assert outcome is not None
    assert outcome.fault is not None
    assert outcome.fault.fault_class is expected
    assert "node 3 (K)" in str(outcome.fault)


@pytest.mark.parametrize(
    ("status", "place", "phase"),
    [
        ("pending", Place.PENDING, None),
        ("in_progress", Place.RUNNING, None),
        ("completed", Place.ENDED, ServicePhase.COMPLETED),
        ("failed", Place.ENDED, ServicePhase.FAILED),
        ("cancelled", Place.ENDED, ServicePhase.CANCELLED),
    ],
)
def test_the_newer_interface_tells_all_in_one_look(
    status: str, place: Place, phase: ServicePhase | None
) -> None:
    """Each status of GET /api/jobs/{id} has one meaning."""
    found = wire.read_job(encoded({"id": "j", "status": status}))
    assert found.place is place
    assert (found.outcome and found.outcome.phase) == phase


def test_an_interruption_in_the_newer_interface_is_no_failure_of_the_job() -> None:
    """Servers that call an interrupted job failed say so in its messages."""
    status = {"status_str": "error", "completed": False, "messages": [["execution_interrupted", {}]]}
    found = wire.read_job(encoded({"id": "j", "status": "failed", "execution_status": status}))
    assert found.outcome is not None
    assert found.outcome.phase is ServicePhase.CANCELLED


@given(body=st.binary(max_size=40) | st.sampled_from([b"[]", b"1", b'{"queue_running": {}}', b'{"j": []}']))
def test_whatever_is_not_comfyuis_is_a_violation_or_nothing(body: bytes) -> None:
    """No answer makes a reader fail in another way, and none makes it find a job that is not there."""
    readers: list[Callable[[], bool]] = [
        lambda: wire.place_in_queue(body, "j") is Place.ABSENT,
        lambda: wire.read_history(body, "j") is None,
        lambda: bool(wire.read_job(body)),
        lambda: bool(wire.read_submit_reply(body)),
    ]
    for read in readers:
        with contextlib.suppress(ProtocolViolation):
            assert read()


def test_output_files_are_found_by_their_names_and_flags_are_none() -> None:
    """Every kind of output counts; a flag beside the pictures does not."""
    image = {"filename": "a b.png", "subfolder": "x/y", "type": "temp"}
    outputs = {"9": {"images": [image], "animated": [True]}, "7": {"text": ["hello"]}}
    (file,) = wire.output_files(outputs)
    assert (file.node, file.kind) == ("9", "images")
    assert file.path == "/view?filename=a%20b.png&subfolder=x%2Fy&type=temp"
    assert wire.has_output(outputs)
    assert not wire.has_output({"9": {"images": [], "animated": [True]}})
    assert not wire.has_output({})


# ── frames ──


def event(kind: str, **data: Any) -> frames.JobEvent:
    found = frames.read_text(encoded({"type": kind, "data": {"prompt_id": "j", **data}}))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("kind", "data", "ends"),
    [
        ("execution_start", {}, False),
        ("executing", {"node": "3"}, False),
        ("executing", {"node": None}, True),
        ("execution_success", {}, True),
        ("execution_error", {"exception_type": "X"}, True),
        ("execution_interrupted", {}, True),
    ],
)
def test_an_end_is_an_end_and_never_a_success(kind: str, data: dict[str, Any], ends: bool) -> None:
    """Frames tell that a job has ended; how, only its record does."""
    assert event(kind, **data).ends is ends


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"status","data":{"status":{"exec_info":{"queue_remaining":1}},"sid":"x"}}',
        '{"type":"executing","data":{"node":"3"}}',
        '{"type":"progress"}',
        "[]",
        "\x00\xfe garbage",
        "",
    ],
)
def test_a_frame_that_names_no_job_is_nobodys(text: str) -> None:
    """Status frames, the replay after a reconnect and garbage belong to no job."""
    assert frames.read_text(text) is None


def test_only_a_preview_that_names_its_job_is_taken() -> None:
    """Type 4 is read whole; type 1, text, truncated and foreign bytes are dropped."""
    about = encoded({"node_id": "3", "prompt_id": "j", "image_type": "image/jpeg"})
    whole = struct.pack(">II", 4, len(about)) + about + b"picture"
    assert frames.read_binary(whole) == frames.Preview("j", "3", "image/jpeg", b"picture")
    for other in (
        struct.pack(">II", 1, 1) + b"stranger",
        struct.pack(">II", 3, 1) + b"3text",
        whole[:20],
        b"",
        b"\x00",
    ):
        assert frames.read_binary(other) is None


def preview_of(prompt_id: str) -> bytes:
    about = encoded({"node_id": "3", "prompt_id": prompt_id, "image_type": "image/png"})
    return struct.pack(">II", 4, len(about)) + about + b"picture"


def test_a_strangers_frames_never_push_out_ours() -> None:
    """While the job's task is busy, newer progress replaces older, strangers' frames only each other, ends nothing."""

    def said(kind: str, prompt_id: str = "j") -> str:
        return encoded({"type": kind, "data": {"prompt_id": prompt_id}}).decode()

    key_of = frames.key_for(lambda: "j")
    assert key_of(preview_of("j")) not in (None, key_of(preview_of("stranger")))
    assert key_of(said("progress")) not in (None, key_of(said("progress", "stranger")))
    nobodys: list[str | bytes] = [
        said("execution_success", "stranger"),
        '{"type":"status","data":{}}',
        "garbage",
        b"\x00\x00\x00\x01",
    ]
    assert {key_of(frame) for frame in nobodys} == {key_of(preview_of("stranger"))}
    for kind in ("execution_success", "executed", "executing", "execution_cached"):
        assert key_of(said(kind)) is None


def test_progress_counts_nodes_and_the_running_ones_part() -> None:
    """A cached, an executed and a half-done node of four are 2.5 of 4."""
    progress = frames.WorkflowProgress({"1": {}, "2": {}, "3": {}, "4": {}})
    progress.take(event("execution_cached", nodes=["1"]))
    progress.take(event("executing", node="2"))
    progress.take(event("executing", node="3"))
    progress.take(event("progress", node="3", value=5, max=10))
    assert progress.fraction == pytest.approx(0.625)
    assert progress.message == "node 3: 5 of 10"


VALUES = st.one_of(
    st.none(), st.booleans(), st.floats(), st.integers(), st.text(max_size=3), st.just([]), st.just({})
)
NODES = st.sampled_from(["1", "2", "3", "99", None, 7])
EVENTS = st.builds(
    lambda kind, node, value, most, nodes: (
        kind,
        {"node": node, "value": value, "max": most, "nodes": nodes},
    ),
    st.sampled_from(["progress", "progress_state", "executing", "executed", "execution_cached", "else"]),
    NODES,
    VALUES,
    VALUES,
    st.lists(NODES, max_size=3)
    | st.dictionaries(
        st.sampled_from(["1", "2", "x"]),
        st.fixed_dictionaries(
            {"state": st.sampled_from(["running", "finished", 1]), "value": VALUES, "max": VALUES}
        ),
        max_size=3,
    ),
)


@given(events=st.lists(EVENTS, max_size=20))
def test_progress_never_falls_and_stays_a_fraction(events: list[tuple[str, dict[str, Any]]]) -> None:
    """Whatever a server sends, progress is monotone within 0 and 1."""
    progress, before = frames.WorkflowProgress({"1": {}, "2": {}, "3": {}}), 0.0
    for kind, data in events:
        progress.take(frames.JobEvent(kind, "j", data))
        assert before <= progress.fraction <= 1.0
        before = progress.fraction
