"""What ComfyUI says over HTTP, read into values (pure: data in, data out; no I/O).

Built from what a real server (v0.3.64) was recorded to answer, and from the routes that newer ones add. Where the
server's words can mislead, the reading here is the careful one:

* an empty history says nothing: it is empty for a queued, a running and an unknown job alike. Only the queue and then
  the history, in this order, can say that a job is unknown;
* ``status_str`` "error" stands for failures and for interruptions; the messages tell which;
* an accepted submission can carry ``node_errors``: those outputs will silently be missing from a "success".

A job's payload is ``{"prompt": {node id: {"class_type": ..., "inputs": {...}}}, "extra_data"?: {...}}``.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote, urlencode

import msgspec

from gateway.connector import ServicePhase
from gateway.connectors.model_lists import names_in
from gateway.errors import FaultClass, JobFault
from protocols.errors import ProtocolViolation

PROMPT_PATH = "/prompt"
QUEUE_PATH = "/queue"
INTERRUPT_PATH = "/interrupt"
SYSTEM_STATS_PATH = "/system_stats"
#: The checkpoints as a list of file names, and the node that loads them with its choices: older servers have only that.
CHECKPOINTS_PATH = "/models/checkpoints"
LOADER_PATH = "/object_info/CheckpointLoaderSimple"
#: The list of the newer interface; whether it answers 200 tells whether a server has that interface.
JOBS_PROBE_PATH = "/api/jobs?limit=1"

PAYLOAD_KEYS = ("prompt", "extra_data")
#: Problems of a refused workflow that one message lists; a broken workflow can have hundreds.
PROBLEMS_SHOWN_MAX = 5
#: Longest excerpt of the server's own words in a message, characters.
WORDS_CHARS_MAX = 200

StructT = TypeVar("StructT")


def history_path(reference: str) -> str:
    """Path of one job's record."""
    return f"/history/{quote(reference, safe='')}"


def job_path(reference: str) -> str:
    """Path of one job in the newer interface."""
    return f"/api/jobs/{quote(reference, safe='')}"


# ── what it has ──


def read_loader(value: Any) -> list[str] | None:
    """The checkpoints that the loading node can choose from; none at a server without that node (``{}``).

    Servers write the choices as ``[[name, ...], {...}]``, newer ones as ``["COMBO", {"options": [name, ...]}]``.
    Returns None for anything else.
    """
    if value == {}:
        return []
    for member in ("CheckpointLoaderSimple", "input", "required", "ckpt_name"):
        value = value.get(member) if isinstance(value, dict) else None
    if not isinstance(value, list) or not value:
        return None
    if value[0] == "COMBO" and len(value) > 1 and isinstance(value[1], dict):
        return names_in(value[1].get("options"))
    return names_in(value[0])


# ── what we send ──


@dataclass(frozen=True, slots=True)
class Workflow:
    """A job's payload, checked.

    Attributes:
        nodes: the graph in API format, by node id.
        extra_data: passed on as it is, None when the payload has none.
    """

    nodes: Mapping[str, Any]
    extra_data: Mapping[str, Any] | None = None


def read_payload(payload: object) -> Workflow:
    """Check a job's payload as far as one can without the server's nodes.

    Raises:
        JobFault: VALIDATION, with one line that names what is wrong and what to do.
    """
    if not isinstance(payload, dict):
        raise _invalid(f"the payload is {_kind(payload)}, not an object with the key prompt")
    if "prompt" not in payload and any(isinstance(v, dict) and "class_type" in v for v in payload.values()):
        raise _invalid('the payload is a bare workflow: wrap it as {"prompt": workflow}')
    if unknown := sorted(set(payload) - set(PAYLOAD_KEYS)):
        raise _invalid(f"the payload has the unknown key {unknown[0]!r}; known are {', '.join(PAYLOAD_KEYS)}")
    nodes, extra_data = payload.get("prompt"), payload.get("extra_data")
    if not isinstance(nodes, dict) or not nodes:
        raise _invalid("payload.prompt must be a workflow: an object of nodes by id, with at least one node")
    if isinstance(nodes.get("nodes"), list):
        raise _invalid("payload.prompt is in the editor's format: export the workflow in API format")
    for node_id, node in nodes.items():
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            raise _invalid(f"payload.prompt: node {node_id} must be an object with a class_type")
        if not isinstance(node.get("inputs", {}), dict):
            raise _invalid(
                f"payload.prompt: inputs of node {node_id} ({node['class_type']}) must be an object"
            )
    if extra_data is not None and not isinstance(extra_data, dict):
        raise _invalid(f"payload.extra_data is {_kind(extra_data)}, not an object")
    return Workflow(nodes, extra_data)


def submit_body(workflow: Workflow, *, reference: str, client_id: str) -> bytes:
    """Body of ``POST /prompt``.

    There is no ``number`` in it: two prompts of one id and one number make the server answer 500 and run both. And
    there is always a ``client_id``: without one the job's progress would be sent to every socket.
    """
    body: dict[str, Any] = {"prompt": workflow.nodes, "prompt_id": reference, "client_id": client_id}
    if workflow.extra_data is not None:
        body["extra_data"] = workflow.extra_data
    return msgspec.json.encode(body)


# ── answers to a submission ──


class _Problem(msgspec.Struct, frozen=True):
    type: str = ""
    message: str = ""
    details: str = ""
    extra_info: Any = None


class _NodeProblems(msgspec.Struct, frozen=True):
    errors: list[_Problem] = []
    class_type: str = ""


class SubmitReply(msgspec.Struct, frozen=True):
    """A 200; ``node_errors`` tells of outputs that will be missing."""

    prompt_id: str
    node_errors: dict[str, _NodeProblems] = {}

    @property
    def problems(self) -> str:
        """What is wrong with the skipped outputs, in one line; empty when nothing was skipped."""
        return _problems(self.node_errors)


class _Refusal(msgspec.Struct, frozen=True):
    error: _Problem
    node_errors: dict[str, _NodeProblems] = {}


def read_submit_reply(body: bytes) -> SubmitReply:
    """Read a 200.

    Raises:
        ProtocolViolation: it is something else; whether the job was accepted is unknown then.
    """
    return _decode(body, SubmitReply, "the answer to POST /prompt")


def refusal(body: bytes) -> JobFault | None:
    """The fault in a 400's body, or None when the body is not ComfyUI's own."""
    try:
        refused = msgspec.json.decode(body, type=_Refusal)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    nodes = _problems(refused.node_errors)
    words = nodes or _line(refused.error.message, refused.error.details)
    return JobFault(FaultClass.VALIDATION, f"ComfyUI refuses the workflow ({refused.error.type}): {words}")


def _problems(node_errors: Mapping[str, _NodeProblems]) -> str:
    found = list(_each_problem(node_errors))
    more = len(found) - PROBLEMS_SHOWN_MAX
    shown = "; ".join(found[:PROBLEMS_SHOWN_MAX])
    return f"{shown}; and {more} more" if more > 0 else shown


def _each_problem(node_errors: Mapping[str, _NodeProblems]) -> Iterator[str]:
    for node_id, node in node_errors.items():
        where = f"node {node_id} ({node.class_type})" if node.class_type else f"node {node_id}"
        if not node.errors:
            yield where
        for problem in node.errors:
            info = problem.extra_info
            name = info.get("input_name") if isinstance(info, dict) else None
            yield f"{where}{f', input {name}' if name else ''}: {_line(problem.message, problem.details)}"


# ── where a job stands ──


class Place(enum.Enum):
    """Where a job is."""

    PENDING = "queued"
    RUNNING = "running"
    ENDED = "ended"
    ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a job ended; ``fault`` comes with FAILED, ``outputs`` (by node id) with COMPLETED."""

    phase: ServicePhase
    outputs: Mapping[str, Any] = field(default_factory=dict)
    fault: JobFault | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """Answer of one look; ``outcome`` comes with ENDED."""

    place: Place
    outcome: Outcome | None = None


class _Queue(msgspec.Struct, frozen=True):
    # Raw: a queue holds whole workflows, and only the ids in it are of interest.
    queue_running: list[list[msgspec.Raw]]
    queue_pending: list[list[msgspec.Raw]]


class _Status(msgspec.Struct, frozen=True):
    status_str: str | None = None
    completed: bool = False
    messages: list[Any] = []


class _Entry(msgspec.Struct, frozen=True):
    outputs: dict[str, Any] = {}
    status: _Status | None = None


class _Job(msgspec.Struct, frozen=True):
    status: str
    outputs: dict[str, Any] = {}
    execution_error: Any = None
    execution_status: _Status | None = None


def place_in_queue(body: bytes, reference: str) -> Place:
    """Where a job stands in the answer of ``GET /queue``: RUNNING, PENDING or ABSENT.

    Raises:
        ProtocolViolation: not such an answer.
    """
    queue = _decode(body, _Queue, "the answer to GET /queue")
    name = msgspec.json.encode(reference)
    for place, items in ((Place.RUNNING, queue.queue_running), (Place.PENDING, queue.queue_pending)):
        for item in items:
            # The server may escape other characters than we do, so the bytes alone do not decide.
            if len(item) > 1 and (bytes(item[1]) == name or _text(item[1]) == reference):
                return place
    return Place.ABSENT


def read_history(body: bytes, reference: str) -> Outcome | None:
    """How a job ended, by the answer of ``GET /history/{id}``; None while (or because) there is no record.

    Raises:
        ProtocolViolation: not such an answer.
    """
    entry = _decode(body, dict[str, _Entry], "the answer to GET /history").get(reference)
    if entry is None:
        return None
    return _outcome(entry.status or _Status("success", True), entry.outputs)


def read_job(body: bytes) -> Found:
    """Where a job stands, by a 200 of ``GET /api/jobs/{id}`` of newer servers.

    Raises:
        ProtocolViolation: not such an answer.
    """
    job = _decode(body, _Job, "the answer to GET /api/jobs")
    if job.status == "pending":
        return Found(Place.PENDING)
    if job.status == "in_progress":
        return Found(Place.RUNNING)
    if job.status == "completed":
        return Found(Place.ENDED, Outcome(ServicePhase.COMPLETED, job.outputs))
    if job.status == "cancelled":
        return Found(Place.ENDED, Outcome(ServicePhase.CANCELLED))
    if job.status == "failed":
        if isinstance(job.execution_error, dict):
            return Found(
                Place.ENDED, Outcome(ServicePhase.FAILED, fault=execution_fault(job.execution_error))
            )
        return Found(Place.ENDED, _outcome(job.execution_status or _Status("error"), {}))
    raise ProtocolViolation(f"GET /api/jobs answered the unknown status {job.status!r}", outcome_unknown=True)


def _outcome(status: _Status, outputs: Mapping[str, Any]) -> Outcome:
    if status.status_str == "success" and status.completed:
        return Outcome(ServicePhase.COMPLETED, outputs)
    messages = dict(_messages(status))
    if "execution_error" in messages:
        return Outcome(ServicePhase.FAILED, fault=execution_fault(messages["execution_error"]))
    if "execution_interrupted" in messages:
        return Outcome(ServicePhase.CANCELLED)
    fault = JobFault(
        FaultClass.SERVICE_ERROR, f"ComfyUI ended the job as {status.status_str!r} and does not say why"
    )
    return Outcome(ServicePhase.FAILED, fault=fault)


def _messages(status: _Status) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for message in status.messages:
        if isinstance(message, list) and len(message) == 2 and isinstance(message[0], str):
            yield message[0], message[1] if isinstance(message[1], dict) else {}


def execution_fault(data: Mapping[str, Any]) -> JobFault:
    """The fault of an ``execution_error``, classified by the type of the exception, never by its words."""
    kind = str(data.get("exception_type") or "")
    out_of_memory = kind.rpartition(".")[2] in {"OutOfMemoryError", "MemoryError"}
    node = f"node {data.get('node_id')} ({data.get('node_type')})"
    words = _line(str(data.get("exception_message") or ""), "")
    return JobFault(
        FaultClass.OUT_OF_MEMORY if out_of_memory else FaultClass.SERVICE_ERROR,
        f"{node} failed with {kind or 'an unknown exception'}: {words}",
    )


# ── outputs ──


@dataclass(frozen=True, slots=True)
class OutputFile:
    """One file that a node wrote; ``kind`` is the node's word for it, such as ``images``."""

    node: str
    kind: str
    filename: str
    subfolder: str
    type: str

    @property
    def path(self) -> str:
        """Path and query under which the server hands it out."""
        query = {"filename": self.filename, "subfolder": self.subfolder, "type": self.type}
        return f"/view?{urlencode(query, quote_via=quote)}"


def output_files(outputs: Mapping[str, Any]) -> list[OutputFile]:
    """All files named in a job's outputs, in order."""
    return [
        OutputFile(
            node, kind, item["filename"], _str(item.get("subfolder")), _str(item.get("type")) or "output"
        )
        for node, kind, item in _items(outputs)
        if isinstance(item, dict) and isinstance(item.get("filename"), str)
    ]


def has_output(outputs: Mapping[str, Any]) -> bool:
    """Whether any node put out anything at all."""
    return any(True for _ in _items(outputs))


def _items(outputs: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    for node, kinds in outputs.items():
        if isinstance(kinds, dict):
            for kind, items in kinds.items():
                # "animated" is a flag beside the images, not an output.
                if kind != "animated" and isinstance(items, list):
                    yield from ((node, kind, item) for item in items)


# ── helpers ──


def _decode(body: bytes, kind: type[StructT], what: str) -> StructT:
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolViolation(f"{what} is not ComfyUI's: {error}", outcome_unknown=True) from error


def _text(raw: msgspec.Raw) -> object:
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def _str(value: object) -> str:
    return value if isinstance(value, str) else ""


def _kind(value: object) -> str:
    return "null" if value is None else f"a {type(value).__name__}"


def _line(message: str, details: str) -> str:
    """The server's words in one bounded line."""
    words = " ".join(f"{message} ({details})".split() if details else message.split())
    return words if len(words) <= WORDS_CHARS_MAX else f"{words[:WORDS_CHARS_MAX]}…"


def _invalid(message: str) -> JobFault:
    return JobFault(FaultClass.VALIDATION, message)
