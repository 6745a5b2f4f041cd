"""Options of the ComfyUI connectors, in ``[workers.X.options]``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

import msgspec

from gateway.errors import ConfigError

OptionsT = TypeVar("OptionsT", bound="ComfyUIOptions")


#: Largest preview that still fits into one chunk of a job's stream once it is base64, bytes.
PREVIEW_BYTES_MAX = 700 * 1024


class ComfyUIOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What both connectors understand; ``comfyui-http`` understands nothing more.

    Attributes:
        client_id: first part of the client ids under which jobs are submitted; the job's own name follows, so that no
            two jobs ever share one. It stays the same over restarts, so that a job that is followed again is heard.
        request_timeout_s: longest single request, seconds.
        connections_max: HTTP connections to the instance at once.
        poll_s: first pause between two looks at a job's record where there is no socket, seconds; doubles up to
            ``stall_s``.
        stall_s: longest silence about a job before its record is looked for, seconds.
        look_s: longest time without asking the queue as well, seconds; the record of a job that the server has
            forgotten is as empty as that of one that runs.
        grace_s: pause before a job that the server does not know is looked for once more, seconds: a submission that
            timed out may still be on its way.
        settle_s: how long after the announced end of a job its record may be missing, seconds.
        accept_partial: run a workflow although the server skips some of its outputs (``node_errors``).
        empty_output_ok: a job that ended without any output is a success, for example one that only sends its pictures
            over a socket.
        outputs: ``reference`` leaves output files at the server and gives their addresses; ``inline`` downloads them
            and puts them into the result in base64.
        record_bytes_max: size of a job's record, bytes; a larger one fails the job.
        output_bytes_max: size of all downloaded files of a job together, bytes; more fail the job.
        health_path: what a probe asks for: ``/system_stats``, or the cheaper ``/prompt``.
    """

    client_id: str = "trio-gateway"
    request_timeout_s: float = 10.0
    connections_max: int = 32
    poll_s: float = 0.1
    stall_s: float = 1.0
    look_s: float = 5.0
    grace_s: float = 0.5
    settle_s: float = 5.0
    accept_partial: bool = False
    empty_output_ok: bool = False
    outputs: Literal["reference", "inline"] = "reference"
    record_bytes_max: int = 16 * 1024 * 1024
    output_bytes_max: int = 8 * 1024 * 1024
    health_path: Literal["/system_stats", "/prompt"] = "/system_stats"

    def __post_init__(self) -> None:
        for name in _POSITIVE:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive")
        if self.grace_s < 0:
            raise ValueError("grace_s must not be negative")


_POSITIVE = (
    *("request_timeout_s", "connections_max", "poll_s", "stall_s", "look_s", "settle_s"),
    *("output_bytes_max", "record_bytes_max"),
)


class ComfyUIWebSocketOptions(ComfyUIOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What ``comfyui-websocket`` understands besides.

    Attributes:
        previews: pictures of the work in progress go to the job's own stream.
        preview_bytes_max: larger previews are dropped, bytes.
        preview_every_s: shortest time between two previews of one job, seconds; those between are dropped.
        deaf_s: silence about a running job after which its socket is opened anew, seconds: a server can forget whom it
            should tell while the connection stays open.
    """

    previews: bool = True
    preview_bytes_max: int = 256 * 1024
    preview_every_s: float = 0.5
    deaf_s: float = 30.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.preview_bytes_max <= PREVIEW_BYTES_MAX:
            raise ValueError(f"preview_bytes_max must be within 1..{PREVIEW_BYTES_MAX}")
        if self.preview_every_s < 0 or self.deaf_s <= 0:
            raise ValueError("preview_every_s must not be negative, and deaf_s must be positive")


def read_options(key: str, options: Mapping[str, Any], kind: type[OptionsT]) -> OptionsT:
    """The options of one connector.

    Raises:
        ConfigError: unknown option or impossible value.
    """
    try:
        return msgspec.convert(dict(options), kind)
    except (msgspec.ValidationError, ValueError) as error:
        raise ConfigError(f"options of {key}: {error}") from None
