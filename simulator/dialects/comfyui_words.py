"""ComfyUI's words: the bodies and frames that a real server (v0.3.64) was recorded to send (pure).

The twin says them from a record of its own, not from the connector's reader, so that a mistake in the one shows in the
other.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.connectors.simulation.wire import (
    ErrorKind,
    EventType,
    RunState,
    StreamEvent,
    WireFormatError,
    WorkPayload,
    decode_payload,
)
from simulator.model import Job

#: The node whose inputs are a ``WorkPayload``: what is simulated in the place of diffusion.
WORK_CLASS = "SimulationWork"
WORK_NODE = "1"

#: A failure's exception, by kind; whatever ComfyUI has no exception for is a plain RuntimeError.
EXCEPTION_TYPES = {ErrorKind.OUT_OF_MEMORY: "torch.OutOfMemoryError"}

#: Member of a simulated result that makes it oversize.
PADDING = "padding"

PREVIEW_IMAGE = 1
PREVIEW_IMAGE_WITH_METADATA = 4
FORMAT_PNG = 2
PNG_TYPE = "image/png"


def payload(work: WorkPayload) -> dict[str, Any]:
    """The payload of a ComfyUI job that is to be this work."""
    node = {"class_type": WORK_CLASS, "inputs": msgspec.to_builtins(work)}
    return {"prompt": {WORK_NODE: node}}


# ── submissions ──


@dataclass(frozen=True, slots=True)
class Prompt:
    """One accepted submission, as the queue shows it."""

    number: float
    prompt_id: str
    nodes: Mapping[str, Any]
    extra_data: Mapping[str, Any]
    client_id: str
    node: str
    node_type: str

    def queue_item(self) -> list[Any]:
        """Its entry in the queue and in its history."""
        return [self.number, self.prompt_id, self.nodes, self.extra_data, [self.node]]


class Refused(ValueError):
    """A workflow that the server refuses; ``body`` is its 400."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__("refused")
        self.body = body


def check_workflow(nodes: object) -> tuple[str, str, Any]:
    """The node that works, its class, and the work it asks for (None for a workflow of real nodes).

    Raises:
        Refused: with the server's own body.
    """
    if not isinstance(nodes, dict):
        raise Refused(refusal("no_prompt", "No prompt provided", "No prompt provided"))
    for node_id, node in nodes.items():
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            text = "Cannot execute because a node is missing the class_type property."
            raise Refused(refusal("invalid_prompt", text, f"Node ID '#{node_id}'"))
    if not nodes:
        raise Refused(refusal("prompt_no_outputs", "Prompt has no outputs", ""))
    works = [node_id for node_id, node in nodes.items() if node["class_type"] == WORK_CLASS]
    if not works:
        node_id = list(nodes)[-1]
        return node_id, nodes[node_id]["class_type"], None
    inputs = nodes[works[0]].get("inputs")
    try:
        decode_payload(inputs)
    except WireFormatError as error:
        raise Refused(invalid_input(works[0], error.detail)) from error
    return works[0], WORK_CLASS, inputs


def refusal(
    kind: str, message: str, details: str, node_errors: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """A 400's body."""
    return {
        "error": {"type": kind, "message": message, "details": details, "extra_info": {}},
        "node_errors": dict(node_errors or {}),
    }


def invalid_input(node_id: str, detail: str) -> dict[str, Any]:
    """The 400 of a work node whose input is wrong; the details name the input where they can."""
    name = next((name for name in WorkPayload.__struct_fields__ if name in detail), "")
    errors = node_errors(node_id, "invalid_input_type", "Failed to convert an input value", detail, name)
    return refusal("prompt_outputs_failed_validation", "Prompt outputs failed validation", "", errors)


def node_errors(node_id: str, kind: str, message: str, details: str, input_name: str) -> dict[str, Any]:
    """What is wrong with one node."""
    info = {"input_name": input_name, "input_config": ["INT", {}], "received_value": None}
    error = {"type": kind, "message": message, "details": details, "extra_info": info}
    return {node_id: {"errors": [error], "dependent_outputs": [node_id], "class_type": WORK_CLASS}}


#: Errors of an accepted submission: a second output that will be missing.
SKIPPED_OUTPUT = node_errors(
    "99", "value_not_in_list", "Value not in list", "ckpt_name: 'gone.safetensors'", "ckpt_name"
)


# ── records ──


def loader_info(names: list[str]) -> dict[str, Any]:
    """What the node that loads checkpoints takes and gives."""
    choices = [names, {"tooltip": "The name of the checkpoint (model) to load."}]
    return {
        "CheckpointLoaderSimple": {
            "input": {"required": {"ckpt_name": choices}},
            "output": ["MODEL", "CLIP", "VAE"],
            "name": "CheckpointLoaderSimple",
        }
    }


def history_entry(job: Job, prompt: Prompt, outputs: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
    """The record of an ended job."""
    success = job.state is RunState.COMPLETED
    events = [
        ["execution_start", {"prompt_id": prompt.prompt_id, "timestamp": now_ms}],
        ["execution_cached", {"nodes": [], "prompt_id": prompt.prompt_id, "timestamp": now_ms}],
        list(_end(job, prompt, now_ms)),
    ]
    meta = {
        "node_id": prompt.node,
        "display_node": prompt.node,
        "parent_node": None,
        "real_node_id": prompt.node,
    }
    return {
        "prompt": prompt.queue_item(),
        "outputs": outputs,
        "status": {
            "status_str": "success" if success else "error",
            "completed": success,
            "messages": events,
        },
        "meta": {prompt.node: meta},
    }


def job_view(prompt_id: str, record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as the newer interface for jobs shows it."""
    status = record["status"]
    errors = [data for kind, data in status["messages"] if kind == "execution_error"]
    return {
        "id": prompt_id,
        "status": "completed" if status["status_str"] == "success" else "failed",
        "outputs_count": len(record["outputs"]),
        "outputs": record["outputs"],
        "execution_status": status,
        **({"execution_error": errors[0]} if errors else {}),
    }


def outputs_of(job: Job, prompt: Prompt, filename: str) -> dict[str, Any]:
    """What the working node put out; nothing when it put out nothing."""
    if job.state is not RunState.COMPLETED or job.result is None:
        return {}
    image = {"filename": filename, "subfolder": "", "type": "output"}
    # What makes an output oversize is in the picture, as with a real server.
    result = {key: value for key, value in job.result.items() if key != PADDING}
    return {prompt.node: {"images": [image], "simulation": [result]}}


def _end(job: Job, prompt: Prompt, now_ms: int) -> tuple[str, dict[str, Any]]:
    """The event with which a job ended."""
    about: dict[str, Any] = {"prompt_id": prompt.prompt_id, "timestamp": now_ms}
    if job.state is RunState.COMPLETED:
        return "execution_success", about
    about |= {"node_id": prompt.node, "node_type": prompt.node_type, "executed": []}
    if job.state is RunState.CANCELLED:
        return "execution_interrupted", about
    failure = job.error
    assert failure is not None, "a job that neither completed nor was cancelled has failed"
    return "execution_error", {
        **about,
        "exception_message": failure.message,
        "exception_type": EXCEPTION_TYPES.get(failure.kind, "RuntimeError"),
        "traceback": [],
        "current_inputs": {},
        "current_outputs": [],
    }


# ── frames ──


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame to send.

    Attributes:
        data: text or bytes.
        everyone: goes to every socket, not only to the one of the prompt's client.
        unnamed: what a socket gets instead that negotiated no previews with names; only for previews.
    """

    data: str | bytes
    everyone: bool = False
    unnamed: bytes | None = None


def text(kind: str, data: Mapping[str, Any]) -> str:
    """A text frame."""
    return msgspec.json.encode({"type": kind, "data": data}).decode()


def status(remaining: int, sid: str | None = None) -> str:
    """How much is waiting and running; ``sid`` only right after a socket opened."""
    data: dict[str, Any] = {"status": {"exec_info": {"queue_remaining": remaining}}}
    return text("status", data if sid is None else {**data, "sid": sid})


def executing(prompt: Prompt, node: str | None) -> str:
    """Which node runs; none: the job has ended, however."""
    data: dict[str, Any] = {"node": node, "prompt_id": prompt.prompt_id}
    return text("executing", data if node is None else {**data, "display_node": node})


def resumed(prompt: Prompt) -> str:
    """What a socket that comes back is told of the running job: the node, without the job's name."""
    return text("executing", {"node": prompt.node})


def frames(
    event: StreamEvent, job: Job, prompt: Prompt, outputs: Mapping[str, Any], now_ms: int
) -> Iterator[Frame]:
    """The frames that one event of the work becomes, in order.

    A prompt without a client id has nobody to tell: its ``execution_*`` and ``executing`` frames go nowhere, but its
    progress and its previews go to everyone.
    """
    everyone = not prompt.client_id
    if event.type is EventType.CHUNK:
        yield _preview(event, prompt, everyone=everyone)
    elif not event.terminal:
        if event.progress == 0.0 and not everyone:
            yield from map(Frame, _start(prompt, now_ms))
        yield from (Frame(frame, everyone) for frame in _progress(event, prompt))
        if event.progress == 0.0 and not everyone:
            yield Frame(executing(prompt, prompt.node))
    else:
        if event.type is EventType.COMPLETED and outputs and not everyone:
            shown = {"node": prompt.node, "display_node": prompt.node, "output": outputs[prompt.node]}
            yield Frame(text("executed", {**shown, "prompt_id": prompt.prompt_id}))
        kind, data = _end(job, prompt, now_ms)
        if kind == "execution_interrupted" or not everyone:
            yield Frame(text(kind, data), everyone=kind == "execution_interrupted")


def _start(prompt: Prompt, now_ms: int) -> Iterator[str]:
    about = {"prompt_id": prompt.prompt_id, "timestamp": now_ms}
    yield text("execution_start", about)
    yield text("execution_cached", {"nodes": [], **about})


def _progress(event: StreamEvent, prompt: Prompt) -> Iterator[str]:
    """How far the working node is; the real one tells it twice."""
    node, prompt_id = prompt.node, prompt.prompt_id
    value, most = round(event.progress * 1000) / 10, 100.0
    names = {"display_node_id": node, "parent_node_id": None, "real_node_id": node}
    state = {
        "value": value,
        "max": most,
        "state": "running",
        "node_id": node,
        "prompt_id": prompt_id,
        **names,
    }
    yield text("progress_state", {"prompt_id": prompt_id, "nodes": {node: state}})
    if event.progress > 0.0:
        yield text("progress", {"value": value, "max": most, "prompt_id": prompt_id, "node": node})


def _preview(event: StreamEvent, prompt: Prompt, *, everyone: bool) -> Frame:
    node, picture = prompt.node, png(msgspec.json.encode(event.data))
    about = {"node_id": node, "prompt_id": prompt.prompt_id, "display_node_id": node, "parent_node_id": None}
    head = msgspec.json.encode({**about, "real_node_id": node, "image_type": PNG_TYPE})
    named = struct.pack(">II", PREVIEW_IMAGE_WITH_METADATA, len(head)) + head + picture
    return Frame(named, everyone, struct.pack(">II", PREVIEW_IMAGE, FORMAT_PNG) + picture)


def png(words: bytes = b"", size_bytes: int = 0) -> bytes:
    """A valid picture of one pixel that carries some words, so that no two are alike.

    Args:
        words: latin-1 text, kept in a comment.
        size_bytes: pad it to this size.
    """
    head = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"tEXt", b"Comment\x00" + words), (b"IDAT", zlib.compress(b"\x00\x7f"))]
    made = b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(*chunk) for chunk in chunks) + _png_chunk(b"IEND", b"")
    # Bytes after the end chunk are ignored by every reader.
    return made + b"\x00" * (size_bytes - len(made))


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
