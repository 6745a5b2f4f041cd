"""What ComfyUI says over its WebSocket, read into values (pure).

A frame counts only when it names a job: a server also broadcasts the progress of jobs that were submitted without a
client id, and its old binary previews (type 1) name nobody, so that they may show a stranger's picture. So previews of
type 4 are negotiated by :data:`HELLO`, which must be the first text frame of a socket, and everything else unnamed is
dropped.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import msgspec

#: The first text frame we send: asks for previews that name their job.
HELLO = '{"type":"feature_flags","data":{"supports_preview_metadata":true}}'

#: Binary event that carries a preview with the job's name.
PREVIEW_WITH_METADATA = 4

#: Events after which a job has ended. The last one follows failures and interruptions too: it never means success.
SUCCESS = "execution_success"
ERROR = "execution_error"
INTERRUPTED = "execution_interrupted"
EXECUTING = "executing"


def socket_path(client_id: str) -> str:
    """Path of the socket that hears about the jobs submitted with this client id."""
    return f"/ws?clientId={quote(client_id, safe='')}"


@dataclass(frozen=True, slots=True)
class JobEvent:
    """A text frame about one job."""

    kind: str
    prompt_id: str
    data: Mapping[str, Any]

    @property
    def ends(self) -> bool:
        """Whether the job has ended, one way or another; its record tells how."""
        if self.kind == EXECUTING:
            return self.data.get("node") is None
        return self.kind in (SUCCESS, ERROR, INTERRUPTED)


@dataclass(frozen=True, slots=True)
class Preview:
    """A picture of a job's work in progress."""

    prompt_id: str
    node_id: str
    media_type: str
    image: bytes


class _Frame(msgspec.Struct, frozen=True):
    type: str
    data: dict[str, Any] = {}


def read_text(text: str | bytes) -> JobEvent | None:
    """An event of a job; None for everything else: status frames, garbage, and frames that name no job."""
    try:
        frame = msgspec.json.decode(text, type=_Frame)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    prompt_id = frame.data.get("prompt_id")
    return JobEvent(frame.type, prompt_id, frame.data) if isinstance(prompt_id, str) else None


def read_binary(data: bytes) -> Preview | None:
    """A preview that names its job; None for everything else."""
    if len(data) < 8:
        return None
    event, size_bytes = struct.unpack_from(">II", data)
    if event != PREVIEW_WITH_METADATA or 8 + size_bytes > len(data):
        return None
    try:
        about = msgspec.json.decode(data[8 : 8 + size_bytes], type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    prompt_id, node_id, media_type = (about.get(key) for key in ("prompt_id", "node_id", "image_type"))
    if not isinstance(prompt_id, str):
        return None
    return Preview(
        prompt_id,
        node_id if isinstance(node_id, str) else "",
        media_type if isinstance(media_type, str) else "application/octet-stream",
        data[8 + size_bytes :],
    )


def key_for(reference: Callable[[], str]) -> Callable[[str | bytes], str | None]:
    """Which frames replace each other while a job's task is busy.

    Of its progress and its previews the newest is enough; so it is of everything that does not concern the job, however
    much a server broadcasts. Its other events must all arrive.

    Args:
        reference: the job's name at the server, which may change once when the job is submitted.
    """

    def key_of(frame: str | bytes) -> str | None:
        if isinstance(frame, bytes):
            preview = read_binary(frame)
            return "preview" if preview is not None and preview.prompt_id == reference() else "other"
        event = read_text(frame)
        if event is None or event.prompt_id != reference():
            return "other"
        return event.kind if event.kind in ("progress", "progress_state") else None

    return key_of


class WorkflowProgress:
    """How much of a workflow is done, as a fraction that never falls (pure).

    Every node of the workflow counts the same, since nobody knows what one costs; a running node counts by its own
    progress. Nodes that the server made up while it ran (expanded subgraphs) are left out.
    """

    def __init__(self, nodes: Mapping[str, Any]) -> None:
        self._nodes = frozenset(nodes)
        self._done: set[str] = set()
        self._parts: dict[str, float] = {}
        self._current = ""
        self.fraction = 0.0
        self.message = ""

    def take(self, event: JobEvent) -> None:
        """Learn from one event; an event that makes no sense changes nothing."""
        data = event.data
        if event.kind == "execution_cached":
            self._finish(*_strings(data.get("nodes")))
        elif event.kind == "executed":
            self._finish(*_strings([data.get("node")]))
        elif event.kind == "progress":
            self._part(data.get("node"), data)
        elif event.kind == "progress_state" and isinstance(data.get("nodes"), dict):
            for node_id, state in data["nodes"].items():
                if isinstance(state, dict):
                    self._node_state(node_id, state)
        elif event.kind == EXECUTING and isinstance(data.get("node"), str):
            # Nodes run one after the other: when the next one begins, the one before has finished.
            if self._current and self._current != data["node"]:
                self._finish(self._current)
            self._current = data["node"]
            self.message = f"node {self._current}"
        total = len(self._nodes) or 1
        running = sum(part for node_id, part in self._parts.items() if node_id not in self._done)
        self.fraction = max(self.fraction, min(1.0, (len(self._done) + running) / total))

    def _node_state(self, node_id: str, state: Mapping[str, Any]) -> None:
        if state.get("state") == "finished":
            self._finish(node_id)
        elif state.get("state") == "running":
            self._part(node_id, state)

    def _part(self, node_id: object, data: Mapping[str, Any]) -> None:
        value, most = _number(data.get("value")), _number(data.get("max"))
        if isinstance(node_id, str) and node_id in self._nodes and value is not None and most:
            self._parts[node_id] = min(1.0, max(0.0, value / most))
            self.message = f"node {node_id}: {value:g} of {most:g}"

    def _finish(self, *node_ids: str) -> None:
        self._done.update(self._nodes.intersection(node_ids))


def _number(value: object) -> float | None:
    """A finite number that is not negative, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        return None
    return float(value)


def _strings(values: object) -> list[str]:
    return [value for value in values if isinstance(value, str)] if isinstance(values, list) else []
