"""How the web UI's interface puts things: progress, images and errors (pure)."""

from __future__ import annotations

from typing import Any

import msgspec

from gateway.connectors.simulation.wire import ErrorKind, EventType, ServiceFailure, WorkPayload
from simulator.model import Job

#: Member of a request that describes the simulated work, and of the answer's ``info`` that holds its result.
EXTENSION = "simulation"
#: A PNG of one grey pixel, in base64.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
SAMPLERS = ("Euler a", "Euler", "DPM++ 2M")
STEPS_DEFAULT = 20
#: Up to this part of a task its ``job_count`` is still -1 on a real server, and its progress below zero.
SETTING_UP_PART = 0.3

#: Status and class name of the error, by kind. The web UI has no refusals; the rest is said by a proxy before it.
_ERRORS = {
    ErrorKind.VALIDATION: (422, "HTTPException"),
    ErrorKind.AUTH: (401, "HTTPException"),
    ErrorKind.REFUSED: (403, "HTTPException"),
    ErrorKind.NOT_FOUND: (404, "HTTPException"),
    ErrorKind.RATE_LIMITED: (429, "HTTPException"),
    ErrorKind.SERVICE_ERROR: (500, "RuntimeError"),
    ErrorKind.OUT_OF_MEMORY: (500, "OutOfMemoryError"),
    ErrorKind.UNAVAILABLE: (503, "HTTPException"),
}


class Oddities(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What an instance does differently.

    Attributes:
        tells_task: the progress says whose task runs (1.10 and Forge do, older servers don't).
        forbids_task_id: a request that names its task is refused as invalid.
        negative_progress: the progress is below zero while a task is being set up.
        hung: health and progress are fine, but no generation ever begins.
        disconnect_stops: a generation ends when its client leaves (KoboldCpp); the web UI itself works on.
        unmarked: an interrupted generation is answered with as many images as asked for.
        credentials: ``user:password`` asked for, empty for none; wrong ones are repeated in the error.
    """

    tells_task: bool = True
    forbids_task_id: bool = False
    negative_progress: bool = True
    hung: bool = False
    disconnect_stops: bool = False
    unmarked: bool = True
    credentials: str = ""


def error(failure: ServiceFailure) -> tuple[int, dict[str, Any]]:
    """Status and body of an error."""
    status, name = _ERRORS[failure.kind]
    mine = name == "HTTPException"
    detail, errors = (failure.message, "") if mine else ("", failure.message)
    return status, {"error": name, "detail": detail, "body": "", "errors": errors}


def invalid(member: str, message: str) -> tuple[int, dict[str, Any]]:
    """What the validation answers."""
    return 422, {"detail": [{"loc": ["body", member], "msg": message, "type": "value_error"}]}


def models(names: tuple[str, ...]) -> list[dict[str, Any]]:
    """The list of checkpoints."""
    return [
        {
            "title": f"{name}.safetensors",
            "model_name": name,
            "hash": None,
            "sha256": None,
            "filename": f"/models/{name}.safetensors",
            "config": None,
        }
        for name in names
    ]


def progress(job: Job | None, oddities: Oddities, *, interrupted: bool, image: bool) -> dict[str, Any]:
    """What the server does just now, for whomever."""
    state: dict[str, Any] = {
        "skipped": False,
        "interrupted": interrupted,
        "stopping_generation": False,
        "job": "",
        "job_count": 0,
        "job_timestamp": "0",
        "job_no": 0,
        "sampling_step": 0,
        "sampling_steps": 0,
    }
    answer = {
        "progress": 0.0,
        "eta_relative": 0.0,
        "state": state,
        "current_image": None,
        "textinfo": None,
        "current_task": None,
    }
    if job is None:
        return answer
    done = job.progress
    setting_up = oddities.negative_progress and done <= SETTING_UP_PART
    state.update(
        job="scripts_txt2img",
        job_count=-1 if setting_up else 1,
        sampling_step=int(done * STEPS_DEFAULT),
        sampling_steps=STEPS_DEFAULT,
    )
    # The server's own sum: 0.01 + (1 / job_count) * (step / steps).
    answer["progress"] = 0.01 - done if setting_up else min(1.0, 0.01 + done)
    if oddities.tells_task:
        answer["current_task"] = job.id
    if image:
        shown = [event.data for event in job.events if event.type is EventType.CHUNK]
        answer["current_image"] = f"{PIXEL}#{shown[-1]['index']}" if shown else None
    return answer


def images(body: dict[str, Any], result: Any, *, asked: int, made: int) -> dict[str, Any]:
    """The answer to a generation that ended, by itself or by an interrupt: nothing in it tells which."""
    sent = made if result is not None and body.get("send_images") is not False else 0
    info = {"prompt": body.get("prompt", ""), "all_seeds": list(range(asked)), EXTENSION: result}
    parameters = {name: value for name, value in body.items() if name not in ("init_images", EXTENSION)}
    return {"images": [PIXEL] * sent, "parameters": parameters, "info": msgspec.json.encode(info).decode()}


def payload(work: WorkPayload) -> dict[str, Any]:
    """A job's payload for ``a1111-http`` that asks for this work: a txt2img with the work as an extension."""
    body = {"prompt": "simulate", "steps": STEPS_DEFAULT, EXTENSION: msgspec.to_builtins(work)}
    return {"operation": "txt2img", "body": body}
