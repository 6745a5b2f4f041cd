"""The contract leaves out what is declared and nothing else, and each of its cases can fail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import trio

from gateway.connector import ConnectorCapabilities, JobContext, JobResult, ServicePhase, ServiceStatus
from gateway.connectors.registry import default_registry
from gateway.connectors.simulation.http import HTTPPeer, SimulationHTTPConnector
from gateway.errors import FaultClass, JobFault
from protocols.base import HealthReport
from protocols.errors import ProtocolError
from simulator.contract import CASES, contract_runs
from simulator.contract.case import CAPABILITIES, NEEDS, case
from simulator.contract.runs import lacking
from simulator.dialects.catalogue import DIALECTS, Dialect, DialectError, dialect, dialect_of

#: Every need that excuses some pair from some case: what stands here is left out, and nothing else is.
LEFT_OUT: Mapping[str, frozenset[str]] = {
    "openinference-grpc": frozenset(
        {
            *("query", "cancel", "reattach", "dedupe", "progress", "credentials"),
            *("fail:refused", "fail:unavailable", "fail:out_of_memory", "out_of_memory_rate"),
            *("duplicate_event_rate", "out_of_order_rate", "event_after_terminal_rate"),
        }
    ),
    "simulation-grpc": frozenset({"credentials"}),
    "a1111-http": frozenset(
        {
            *("query", "reattach", "dedupe", "parallel", "fail:refused"),
            *("duplicate_event_rate", "out_of_order_rate", "event_after_terminal_rate"),
        }
    ),
    "openai-http": frozenset(
        {*("query", "cancel", "reattach", "dedupe", "progress"), "duplicate_event_rate", "out_of_order_rate"}
    ),
    "simulation-http": frozenset({"credentials"}),
    "simulation-websocket": frozenset({"credentials"}),
    "comfyui-http": frozenset({"credentials", "dedupe", "fail:refused", "progress", "stream"}),
    "comfyui-websocket": frozenset({"credentials", "dedupe", "fail:refused"}),
}


@pytest.mark.parametrize("key", [key for one in DIALECTS for key in one.connectors])
def test_what_is_left_out_is_what_is_declared(key: str) -> None:
    """A pair is excused by these capabilities, each declared with a reason, and by no other."""
    runs = contract_runs(keys=[key])
    skips = [skip for run in runs if (skip := run.skip()) is not None]
    assert {skip.need for skip in skips} == LEFT_OUT[key]
    assert all(skip.reason for skip in skips)
    assert len(runs) == len(CASES)


@pytest.mark.parametrize("one", DIALECTS, ids=lambda one: one.name)
def test_declarations_mean_something(one: Dialect) -> None:
    """Whatever a dialect says that it lacks is a known need, and excuses it from at least one case."""
    needed = {need for entry in CASES.values() for need in entry.needs}
    for key in one.connectors:
        declared = {**one.cannot, **one.cannot_by_connector.get(key, {})}
        assert set(declared) <= NEEDS & needed
        capabilities = default_registry().load(key).capabilities
        assert set(lacking(one, key, default_registry().load(key))) == set(declared) | {
            name for name in CAPABILITIES if not getattr(capabilities, name)
        }


def test_every_case_says_what_must_hold() -> None:
    """Each case has one sentence, and needs that are known; a case without either is refused."""
    assert all(entry.promise.endswith(".") for entry in CASES.values())

    async def success(_bench: Any) -> None:
        """Says something."""

    async def silent(_bench: Any) -> None:
        pass

    with pytest.raises(ValueError, match="two cases are called success"):
        case()(success)
    with pytest.raises(ValueError, match="does not say what must hold"):
        case()(silent)
    with pytest.raises(ValueError, match="unknown needs magic"):
        case("magic")


def test_the_catalogue_finds_or_says_what_there_is() -> None:
    """Dialects are found by name and by connector; an unknown one is one line that lists the known ones."""
    assert dialect("simulation-http") is dialect_of("simulation-http")
    assert dialect_of("nobody-http") is None
    with pytest.raises(DialectError, match=r"unknown dialect 'comfy-ui': known are .*simulation-http"):
        dialect("comfy-ui")


class _NeverCancels(SimulationHTTPConnector):
    async def cancel(self, reference: str) -> None:
        await trio.lowlevel.checkpoint()


class _CancelsEverybody(SimulationHTTPConnector):
    async def cancel(self, reference: str) -> None:
        for number in range(1, 20):
            await super().cancel(f"job-{number}.1")


class _MakesUpAResult(SimulationHTTPConnector):
    async def run(self, job: JobContext) -> JobResult:
        try:
            return await super().run(job)
        except JobFault:
            return JobResult({"echo": "mark-1"})


class _SubmitsUnderAnotherName(SimulationHTTPConnector):
    async def run(self, job: JobContext) -> JobResult:
        body = {"id": f"{job.reference}.copy", "payload": job.spec.payload}
        await self._http.request_json("POST", "/v1/jobs", json=body)
        return await super().run(job)


class _BelievesInEmptiness(SimulationHTTPConnector):
    async def run(self, job: JobContext) -> JobResult:
        try:
            return await super().run(job)
        except JobFault as fault:
            if fault.fault_class is FaultClass.SERVICE_ERROR:
                return JobResult(None)
            raise


class _BlindPeer(HTTPPeer):
    async def status(self) -> Any:
        await trio.sleep_forever()


class _NeverLooks(SimulationHTTPConnector):
    def _peer(self, job: JobContext) -> HTTPPeer:
        return _BlindPeer(self._http, job, self.options.stall_s)


class _OneClassForAll(SimulationHTTPConnector):
    async def run(self, job: JobContext) -> JobResult:
        try:
            return await super().run(job)
        except JobFault as fault:
            raise JobFault(FaultClass.INTERNAL, str(fault)) from fault


class _AnonymousPeer(HTTPPeer):
    async def submit(self) -> None:
        body = {"id": self.job.reference, "payload": self.job.spec.payload}
        await self.http.request_json("POST", "/v1/jobs", json=body)


class _TellsNobody(SimulationHTTPConnector):
    def _peer(self, job: JobContext) -> HTTPPeer:
        return _AnonymousPeer(self._http, job, self.options.stall_s)


class _DeafPeer(HTTPPeer):
    async def watch(self, seen: Any) -> JobResult | None:
        await trio.sleep(0.5)
        return None


class _Mute(SimulationHTTPConnector):
    def _peer(self, job: JobContext) -> HTTPPeer:
        return _DeafPeer(self._http, job, self.options.stall_s)


class _Crashes(SimulationHTTPConnector):
    async def health(self) -> HealthReport:
        try:
            await self._http.request_json("GET", "/health")
        except ProtocolError as error:
            raise RuntimeError("unwell") from error
        return HealthReport(healthy=True, detail="", latency_s=0.0)


class _KnowsEverything(SimulationHTTPConnector):
    async def query(self, reference: str) -> ServiceStatus:
        try:
            return await super().query(reference)
        except JobFault:
            return ServiceStatus(ServicePhase.UNKNOWN)


class _RunsWhenAskedToFollow(SimulationHTTPConnector):
    async def resume(self, job: JobContext) -> JobResult:
        return await self.run(job)


class _LeavesConnections(SimulationHTTPConnector):
    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class _SaysEverythingTwice(SimulationHTTPConnector):
    async def run(self, job: JobContext) -> JobResult:
        result = await super().run(job)
        for _ in range(2):
            await job.chunk("the end")
        return result


BROKEN: list[tuple[type[SimulationHTTPConnector], set[str]]] = [
    (_NeverCancels, {"timeout_ends_the_work", "cancel_ends_the_work", "a_crowd_of_cancels"}),
    (_CancelsEverybody, {"cancel_spares_others", "cancel_of_unknown_work"}),
    (_MakesUpAResult, {"restart_that_forgets", "oversize"}),
    (_SubmitsUnderAnotherName, {"success", "lost_submit_reply", "dedupe"}),
    (_BelievesInEmptiness, {"empty_output", "fails_service_error"}),
    (_NeverLooks, {"lost_completion", "half_open", "disconnect"}),
    (_OneClassForAll, {f"fails_{kind}" for kind in ("auth", "rate_limited", "validation", "refused")}),
    (_TellsNobody, {"routing"}),
    (_Mute, {"stream"}),
    (_Crashes, {"unhealthy", "four_percent_unhealthy"}),
    (_KnowsEverything, {"query_of_a_silent_service", "query_answered_with_garbage"}),
    (_RunsWhenAskedToFollow, {"reattach_to_forgotten_work"}),
    (_LeavesConnections, {"healthy"}),
    (_SaysEverythingTwice, {"stream", "duplicate_events"}),
]


@pytest.mark.parametrize(("broken", "caught_by"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_broken_connector_is_caught(broken: type[SimulationHTTPConnector], caught_by: set[str]) -> None:
    """For each kind of broken connector there are cases that fail, and they say which promise is broken."""
    for run in contract_runs(dialect("simulation-http"), make=broken):
        if run.case.name in caught_by:
            with pytest.raises((AssertionError, JobFault, RuntimeError, BaseExceptionGroup)):
                run()


def test_a_failing_case_says_its_promise() -> None:
    """The sentence that does not hold stands beside the failure."""
    runs = contract_runs(dialect("simulation-http"), make=_BelievesInEmptiness)
    run = next(run for run in runs if run.case.name == "empty_output")
    with pytest.raises(AssertionError) as caught:
        run()
    assert "An empty output that is marked as a success" in " ".join(caught.value.__notes__)


def test_a_capability_that_is_not_declared_excuses() -> None:
    """A connector that declares nothing is held to the cases that need nothing."""

    class Modest(SimulationHTTPConnector):
        capabilities = ConnectorCapabilities()

    runs = contract_runs(dialect("simulation-http"), make=Modest)
    left = {str(run.skip()).split(":")[0] for run in runs if run.skip() is not None}
    assert left == {
        f"needs {name}" for name in ("query", "cancel", "stream", "reattach", "dedupe", "credentials")
    }
