"""What the web UI's interface says, and what a job's payload asks of it (pure).

``{"operation": "txt2img", "body": {...}}``: the body goes to the server as it is. Without ``operation`` a body with
``init_images`` is an img2img, and the body may be the whole payload.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass
from typing import Any

import msgspec

from gateway.connectors.faults import job_fault
from gateway.connectors.model_lists import names_in
from gateway.errors import FaultClass, JobFault
from protocols.errors import ProtocolError, ProtocolViolation, StatusFailure

PROGRESS_PATH = "/sdapi/v1/progress"
INTERRUPT_PATH = "/sdapi/v1/interrupt"
MODELS_PATH = "/sdapi/v1/sd-models"
TASK_ID = "force_task_id"
#: Class names of PyTorch's and the web UI's own errors, which the server passes on as ``error``.
OUT_OF_MEMORY_ERRORS = frozenset({"OutOfMemoryError", "torch.cuda.OutOfMemoryError", "MemoryError"})
_MESSAGE_CHARS_MAX = 300
_EXAMPLE = '{"operation": "txt2img", "body": {...}}'


class Operation(enum.StrEnum):
    """What can be asked for."""

    TXT2IMG = "txt2img"
    IMG2IMG = "img2img"


@dataclass(frozen=True, slots=True)
class Call:
    """One request to the server.

    Attributes:
        operation: which one.
        body: as it is sent.
    """

    operation: Operation
    body: dict[str, Any]

    @property
    def path(self) -> str:
        """Where it goes."""
        return f"/sdapi/v1/{self.operation}"

    @property
    def wants_images(self) -> bool:
        """Whether images are to come back; else the server only saves them."""
        return self.body.get("send_images") is not False

    @property
    def images_wanted(self) -> int:
        """So many images are to come at least; 0 when a script decides."""
        if not self.wants_images or self.body.get("script_name"):
            return 0
        counts = (self.body.get("batch_size") or 1, self.body.get("n_iter") or 1)
        return math.prod(count for count in counts if isinstance(count, int))

    def content(self, task_id: str) -> bytes:
        """The body as bytes, under our task id unless that is empty."""
        return msgspec.json.encode({**self.body, TASK_ID: task_id} if task_id else self.body)


def read_call(payload: Any) -> Call:
    """Read a payload.

    Raises:
        JobFault: VALIDATION, with one line that says what is wrong and what would be right.
    """
    if not isinstance(payload, dict):
        raise _refused(f"payload: expected an object such as {_EXAMPLE}")
    if not {"operation", "body"} & payload.keys():
        payload = {"body": payload}
    unknown = sorted(map(str, payload.keys() - {"operation", "body"}))
    if unknown:
        raise _refused(f"payload: unknown member {unknown[0]!r}: expected {_EXAMPLE}")
    body, named = payload.get("body"), payload.get("operation")
    if not isinstance(body, dict):
        raise _refused("payload.body: expected an object, the server's own request")
    if TASK_ID in body:
        raise _refused(f"payload.body.{TASK_ID}: the gateway names the task; leave it out")
    initial = bool(body.get("init_images"))
    if named is None:
        if not initial and "prompt" not in body:
            raise _refused(
                "payload.body: has neither prompt nor init_images; name the operation if that is meant"
            )
        return Call(Operation.IMG2IMG if initial else Operation.TXT2IMG, body)
    try:
        operation = Operation(named)
    except ValueError:
        raise _refused(f"payload.operation: expected one of {', '.join(Operation)}") from None
    if operation is Operation.IMG2IMG and not initial:
        raise _refused("payload.body.init_images: an img2img needs at least one image to start from")
    return Call(operation, body)


def _refused(message: str) -> JobFault:
    return JobFault(FaultClass.VALIDATION, message)


class State(msgspec.Struct, frozen=True):
    """What the server does just now, for whomever; ``job_count`` is -1 while a task is being set up."""

    interrupted: bool = False
    stopping_generation: bool = False
    job: str = ""
    job_count: int = 0
    sampling_step: int = 0
    sampling_steps: int = 0


class Progress(msgspec.Struct, frozen=True):
    """Answer of the progress route: of the whole server, not of a task.

    Attributes:
        progress: 0..1, but negative while ``job_count`` is.
        current_task: whose task runs; None when none does, and always on servers that don't tell.
    """

    progress: float = 0.0
    state: State = State()
    current_image: str | None = None
    textinfo: str | None = None
    current_task: str | None = None

    @property
    def busy(self) -> bool:
        """Whether something runs."""
        return bool(self.current_task or self.state.job or self.state.job_count)

    @property
    def interrupted(self) -> bool:
        """Whether what runs (or ran last) was told to stop."""
        return self.state.interrupted or self.state.stopping_generation

    @property
    def fraction(self) -> float:
        """The progress within its bounds."""
        return min(1.0, max(0.0, self.progress)) if math.isfinite(self.progress) else 0.0

    @property
    def message(self) -> str:
        """The progress in words."""
        if self.textinfo:
            return self.textinfo[:_MESSAGE_CHARS_MAX]
        steps = self.state.sampling_steps
        return f"step {self.state.sampling_step} of {steps}" if steps > 0 else ""


def read_progress(data: bytes) -> Progress:
    """Decode the answer of the progress route.

    Raises:
        ProtocolViolation: it is something else.
    """
    try:
        return msgspec.json.decode(data, type=Progress)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolViolation(f"the server's progress is not readable: {error}") from error


def read_models(value: Any) -> list[str] | None:
    """The checkpoints that a request may choose by ``sd_model_checkpoint``; None for something else."""
    return names_in(value, "model_name")


def read_images(call: Call, data: bytes) -> dict[str, Any]:
    """Decode the answer to a finished call: ``images``, ``parameters`` and ``info`` (which is JSON in a string).

    Raises:
        ProtocolViolation: it is something else.
        JobFault: it holds fewer images than asked for, or reports an interruption.
    """
    try:
        reply = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolViolation(f"the server's answer is not JSON: {error}", outcome_unknown=True) from error
    images = reply.get("images") if isinstance(reply, dict) else None
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise ProtocolViolation("the server's answer has no list of images", outcome_unknown=True)
    if call.wants_images and not any(images):
        # Success without output is a known lie of real services; a retry may bring the output.
        raise JobFault(FaultClass.SERVICE_ERROR, "the server reported success without an image")
    info = _info(reply.get("info"))
    if isinstance(info, dict) and info.get("interrupted") is True:
        raise interrupted_fault("the server says so")
    if len(images) < call.images_wanted:
        raise interrupted_fault(f"{len(images)} of {call.images_wanted} images came")
    return {"images": images, "parameters": reply.get("parameters"), "info": info}


def _info(text: Any) -> Any:
    if not isinstance(text, str):
        return text
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return text


def interrupted_fault(how_known: str) -> JobFault:
    """The fault of a generation that was interrupted and answered all the same."""
    return JobFault(
        FaultClass.SERVICE_ERROR, f"the generation was interrupted, its image is not whole ({how_known})"
    )


def fault_of(error: ProtocolError) -> JobFault:
    """The job fault of a failed exchange: by status, then by the class name in ``error``, never by the message."""
    plain = job_fault(error)
    if not isinstance(error, StatusFailure):
        return plain
    body = _error_body(error.body)
    name, fault_class = body.get("error"), plain.fault_class
    message = " ".join(str(body.get("detail") or body.get("errors") or "no message").split())[
        :_MESSAGE_CHARS_MAX
    ]
    if error.status == 404 and name is None:
        fault_class, message = FaultClass.UNSUPPORTED, "no such route: was the server started with --api?"
    elif error.status >= 500 and isinstance(name, str) and name in OUT_OF_MEMORY_ERRORS:
        fault_class = FaultClass.OUT_OF_MEMORY
    shown = f"{name}: {message}" if isinstance(name, str) and name else message
    return JobFault(
        fault_class,
        f"status {error.status}: {shown}",
        retry_after_s=error.retry_after_s,
        outcome_unknown=error.outcome_unknown,
    )


def refuses_task_id(error: StatusFailure) -> bool:
    """Whether the server refused the request for our task id alone (validation that forbids unknown members)."""
    detail = _error_body(error.body).get("detail")
    if error.status != 422 or not isinstance(detail, list) or not detail:
        return False
    return all(
        isinstance(item, dict) and isinstance(item.get("loc"), list) and TASK_ID in item["loc"]
        for item in detail
    )


def _error_body(body: bytes) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
