"""Which dialects the simulator speaks: one literal list, each entry loaded on first use.

Whatever serves, tests or certifies a dialect reads it here: ``simulator serve``, the contract suite, certification.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random
from types import MappingProxyType
from typing import Any, Protocol, cast

import msgspec
import trio

from gateway.connectors.simulation.wire import JournalEntry, WorkPayload
from simulator.faults import FaultPlan
from simulator.model import ServiceConfig
from simulator.services.shell import ServiceShell

_NOTHING: Mapping[str, Any] = MappingProxyType({})


class DialectError(ValueError):
    """An unknown dialect, or one whose parts cannot be loaded; the message is one line."""


class Listening(Protocol):
    """Where a running twin listens."""

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...

    @property
    def url(self) -> str: ...


class Twin(Protocol):
    """One simulated instance: a shell around the behaviour core that speaks one protocol."""

    #: What it shares with all twins: the behaviour, its faults and journal, and the verbs that steer it.
    shell: ServiceShell

    async def run(
        self, *, host: str, port: int, task_status: trio.TaskStatus[Any] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve on a TCP port until cancelled; starts with a :class:`Listening`."""
        ...


class StreamTwin(Twin, Protocol):
    """A twin that can be served over any byte stream, and so under virtual time."""

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        """Serve one connection until it ends; closes the stream."""
        ...


class MakeTwin(Protocol):
    """The constructor that all twins share."""

    def __call__(
        self,
        config: ServiceConfig,
        plan: FaultPlan,
        *,
        random_for: Callable[[str], Random],
        sink: Callable[[JournalEntry], None] | None = None,
    ) -> Twin: ...


def work_as_json(work: WorkPayload) -> Any:
    """The payload of the simulated service itself: the description of the work as it is."""
    return msgspec.to_builtins(work)


def load(text: str) -> Any:
    """What ``module:name`` names.

    Raises:
        DialectError: it cannot be imported.
    """
    module, _, name = text.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise DialectError(f"{text}: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How one kind of service speaks, and what of it can be simulated.

    Attributes:
        name: as ``simulator serve --dialect`` takes it.
        twin: its simulated instance, as ``"module:Class"`` or the class itself.
        scheme: of the instance's address, as ``protocols.base.Endpoint`` takes it.
        port: where such a service listens when nobody says otherwise.
        connectors: keys of the connectors that speak to it.
        payload: makes a job's payload out of the work it is to be, as ``"module:function"`` or the function itself.
        options: the connectors' options under test, chosen short so that a silence is noticed soon.
        streams: whether the twin is served over any byte stream, under virtual time; else over real sockets.
        steered: whether the twin answers journal and control verbs on its own port; else it gets a listener for them.
        cannot: what this service cannot be asked for, by need of the contract suite, each with the reason.
        cannot_by_connector: the same for single connectors.
        secrets: options that hold a credential, with one to try; no error may ever repeat it.
        oversize_bytes: an output of this size is more than the connectors accept.
    """

    name: str
    twin: str | type
    scheme: str
    port: int
    connectors: tuple[str, ...]
    payload: str | Callable[[WorkPayload], Any] = work_as_json
    options: Mapping[str, Any] = field(default_factory=lambda: _NOTHING)
    streams: bool = True
    steered: bool = True
    cannot: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    cannot_by_connector: Mapping[str, Mapping[str, str]] = field(default_factory=lambda: _NOTHING)
    secrets: Mapping[str, str] = field(default_factory=lambda: _NOTHING)
    oversize_bytes: int = 72 * 1024 * 1024

    @property
    def instance_name(self) -> str:
        """What instances are called when nobody names them; the simulated HTTP service was always ``simulation``."""
        return self.name.removesuffix("-http")

    def load_twin(self) -> MakeTwin:
        """The class of its simulated instances.

        Raises:
            DialectError: it cannot be imported.
        """
        return cast(MakeTwin, load(self.twin) if isinstance(self.twin, str) else self.twin)

    def payload_for(self, work: WorkPayload) -> Any:
        """The payload of a job that is to be this work.

        Raises:
            DialectError: the function that makes it cannot be imported.
        """
        make = load(self.payload) if isinstance(self.payload, str) else self.payload
        return make(work)


#: Short enough that a silent stream is noticed within a moment of virtual time.
_STALL = MappingProxyType({"stall_s": 1.0})
_NO_CREDENTIALS = "the simulated service asks for no credentials"

_GRPC_OVERSIZE = MappingProxyType({"message_bytes_max": 8 * 1024 * 1024})

_ONE_ANSWER = "one answer on one connection: nothing in it can come twice or overtake"

DIALECTS: tuple[Dialect, ...] = (
    Dialect(
        name="a1111",
        twin="simulator.dialects.a1111:A1111Service",
        scheme="http",
        port=7860,
        connectors=("a1111-http",),
        payload="simulator.dialects.a1111:payload",
        options=MappingProxyType(
            {"stall_s": 1.0, "answer_grace_s": 10.0, "request_timeout_s": 5.0, "preview": True}
        ),
        cannot={
            "parallel": "the web UI runs one task at a time",
            "fail:refused": "the web UI has no policy that refuses, and no status or name for it",
            "duplicate_event_rate": _ONE_ANSWER,
            "out_of_order_rate": _ONE_ANSWER,
            "event_after_terminal_rate": _ONE_ANSWER,
        },
        secrets=MappingProxyType({"credentials": "user:contract-password-1f9c"}),
    ),
    Dialect(
        name="openai",
        twin="simulator.dialects.openai:OpenAIService",
        scheme="http",
        port=8000,
        connectors=("openai-http",),
        payload="simulator.dialects.openai:payload",
        options=MappingProxyType({"stream_idle_s": 40.0}),
        cannot={
            "progress": "these servers do not tell how far a completion has come",
            "duplicate_event_rate": _ONE_ANSWER,
            "out_of_order_rate": _ONE_ANSWER,
        },
        secrets=MappingProxyType({"api_key": "sk-contract-0b1e6f42a7d94c55"}),
    ),
    Dialect(
        name="openinference",
        twin="simulator.dialects.openinference:OpenInferenceService",
        scheme="grpc",
        port=8081,
        connectors=("openinference-grpc",),
        payload="simulator.dialects.openinference:payload",
        options=MappingProxyType({"model": "simulation", "infer_timeout_s": 5.0, **_GRPC_OVERSIZE}),
        streams=False,
        steered=False,
        cannot={
            "progress": "the protocol does not tell how far an inference has come",
            "fail:refused": "the protocol has no policy that refuses, and no status for it",
            "fail:unavailable": "without a wish to wait it is the status of a connection that broke",
            "fail:out_of_memory": "the protocol has no status that means it",
            "out_of_memory_rate": "the protocol has no status that means it",
            "duplicate_event_rate": "within one call nothing can come twice",
            "out_of_order_rate": "within one call nothing can overtake",
            "event_after_terminal_rate": "after its status a call is over",
            "credentials": "a token needs TLS, which the twin does not speak",
        },
        oversize_bytes=9 * 1024 * 1024,
    ),
    Dialect(
        name="simulation-http",
        twin="simulator.services.http:SimulationHTTPService",
        scheme="http",
        port=8299,
        connectors=("simulation-http",),
        options=_STALL,
        cannot={"credentials": _NO_CREDENTIALS},
    ),
    Dialect(
        name="simulation-websocket",
        twin="simulator.services.websocket:SimulationWebSocketService",
        scheme="ws",
        port=8399,
        connectors=("simulation-websocket",),
        options=_STALL,
        cannot={"credentials": _NO_CREDENTIALS},
    ),
    Dialect(
        name="comfyui",
        twin="simulator.dialects.comfyui:ComfyUIService",
        scheme="http",
        port=8188,
        connectors=("comfyui-http", "comfyui-websocket"),
        payload="simulator.dialects.comfyui:payload",
        options=MappingProxyType({"stall_s": 1.0, "outputs": "inline"}),
        cannot={
            "credentials": "ComfyUI asks for no credentials",
            "fail:refused": "ComfyUI knows no policy that refuses a workflow",
        },
        cannot_by_connector={"comfyui-http": {"progress": "ComfyUI tells progress over its socket only"}},
    ),
    Dialect(
        name="simulation-grpc",
        twin="simulator.services.grpc:SimulationGRPCService",
        scheme="grpc",
        port=8499,
        connectors=("simulation-grpc",),
        options=MappingProxyType({"stall_s": 0.5, "request_timeout_s": 2.0, **_GRPC_OVERSIZE}),
        streams=False,
        steered=False,
        cannot={"credentials": _NO_CREDENTIALS},
        oversize_bytes=9 * 1024 * 1024,
    ),
)


@functools.cache
def _by_name() -> Mapping[str, Dialect]:
    return MappingProxyType({dialect.name: dialect for dialect in DIALECTS})


def dialect(name: str) -> Dialect:
    """The dialect of that name.

    Raises:
        DialectError: no such dialect; lists those there are.
    """
    found = _by_name().get(name)
    if found is None:
        raise DialectError(f"unknown dialect {name!r}: known are {', '.join(_by_name())}")
    return found


def dialect_of(connector_key: str) -> Dialect | None:
    """The dialect that a connector speaks to, or None."""
    return next((one for one in DIALECTS if connector_key in one.connectors), None)
