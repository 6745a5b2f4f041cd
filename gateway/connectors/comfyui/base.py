"""What both ComfyUI connectors do over HTTP: submit, look, conclude, cancel.

ComfyUI deduplicates nothing, so a submission of unknown outcome (time-out, reset, any 5xx: the server was seen to
answer 500 and to run the job all the same) is never repeated before the server has said twice, with a pause between,
that it knows the job neither in its queue nor in its history.
"""

from __future__ import annotations

import base64
import logging
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Generic

import trio

from gateway.connector import (
    Connector,
    ConnectorSetup,
    JobContext,
    JobResult,
    ServicePhase,
    ServiceStatus,
)
from gateway.connectors.comfyui import wire
from gateway.connectors.comfyui.options import OptionsT
from gateway.connectors.comfyui.wire import Found, Outcome, Place, Workflow
from gateway.connectors.faults import job_fault
from gateway.connectors.model_lists import MODELS, ask_models, names_in
from gateway.errors import FaultClass, JobFault
from protocols.base import HealthReport
from protocols.errors import (
    BodyTooLarge,
    FaultKind,
    NotFound,
    ProtocolError,
    ProtocolViolation,
    Rejected,
    Unsupported,
)
from protocols.http import HTTPAdapter, HTTPLimits

log = logging.getLogger(__name__)

#: Looks at a server that can't be reached, before the attempt counts as failed: with the pauses about 6 s.
LOOK_TRIES = 6
LOOK_PAUSE_S = 0.2
#: Submissions of one attempt: the first and, once the server has said that it does not know the job, two more.
SUBMIT_TRIES = 3
#: Pauses between the rounds of a cancel, seconds; together below the 3 s that the runner gives it by default. An
#: interrupt that arrives between a job's turn and its start is lost, and a long step notices one only at its end.
CANCEL_PAUSES_S = (0.05, 0.1, 0.2, 0.4, 0.75, 0.75)
#: Tries of one download.
DOWNLOAD_TRIES = 3
#: Pauses while the record of an announced end is missing, seconds: first and longest.
SETTLE_PAUSE_S = 0.02
SETTLE_PAUSE_S_MAX = 0.5

#: Kinds of trouble with a look that say something about the server; all others concern the question and would, taken
#: for the job's own trouble, bury it.
_LOOK_KINDS = frozenset(
    {
        FaultKind.UNREACHABLE,
        FaultKind.LOCAL_OVERLOAD,
        FaultKind.TIMEOUT,
        FaultKind.NETWORK,
        FaultKind.AUTH,
        FaultKind.RATE_LIMITED,
        FaultKind.UNAVAILABLE,
        FaultKind.SERVICE_ERROR,
    }
)
#: Classes of a fault that says that the server could not be asked, not that a job failed.
_ASK_AGAIN = frozenset(
    {FaultClass.UNAVAILABLE, FaultClass.TIMEOUT, FaultClass.NETWORK, FaultClass.RATE_LIMITED}
)


class ComfyUIConnector(Connector, Generic[OptionsT]):
    """Base of the ComfyUI connectors: everything but how a running job is followed."""

    service = "comfyui"

    def __init__(self, setup: ConnectorSetup, options: OptionsT) -> None:
        super().__init__(setup)
        self.options = options
        #: Whether the server has the newer interface for jobs; None until it has been asked.
        self._has_jobs: bool | None = None
        self._http = HTTPAdapter(
            setup.endpoint,
            open_stream=setup.open_stream,
            limits=HTTPLimits(
                connections_max=options.connections_max,
                request_timeout_s=options.request_timeout_s,
                idle_timeout_s=options.request_timeout_s,
            ),
        )

    async def health(self) -> HealthReport:
        return await self._http.health(self.options.health_path)

    async def probe_capabilities(self) -> Mapping[str, Any]:
        """The checkpoints by file name, as workflows name them; nothing where the server tells neither way."""
        try:
            names = await ask_models(self._http, wire.CHECKPOINTS_PATH, names_in)
            if names is None:
                names = await ask_models(self._http, wire.LOADER_PATH, wire.read_loader)
        except ProtocolError as error:
            raise job_fault(error) from error
        return {} if names is None else {MODELS: names}

    async def aclose(self) -> None:
        await self._http.aclose()

    async def run(self, job: JobContext) -> JobResult:
        workflow = wire.read_payload(job.spec.payload)
        return await self._run(job, workflow)

    async def resume(self, job: JobContext) -> JobResult:
        return await self._resume(job, wire.read_payload(job.spec.payload))

    @abstractmethod
    async def _run(self, job: JobContext, workflow: Workflow) -> JobResult:
        """Submit and follow."""

    @abstractmethod
    async def _resume(self, job: JobContext, workflow: Workflow) -> JobResult:
        """Follow a job that was submitted earlier."""

    async def query(self, reference: str) -> ServiceStatus:
        try:
            found = await self._certain_look(reference, {})
        except ProtocolError as error:
            raise _look_fault(error) from error
        if found.place is Place.ABSENT:
            return ServiceStatus(ServicePhase.UNKNOWN)
        if found.outcome is None:
            return ServiceStatus(ServicePhase.RUNNING)
        if found.outcome.phase is ServicePhase.CANCELLED:
            return ServiceStatus(ServicePhase.CANCELLED)
        try:
            result = await self._conclude(reference, found.outcome, {})
        except JobFault as fault:
            if fault.fault_class in _ASK_AGAIN:
                # Its outputs are there and could not be fetched just now: no reason to run it once more.
                raise
            return ServiceStatus(ServicePhase.FAILED, fault=fault)
        return ServiceStatus(ServicePhase.COMPLETED, result=result)

    async def cancel(self, reference: str) -> None:
        """Take the job out of the queue, or interrupt it, until the server shows it neither waiting nor running.

        Never the interrupt without an id, which stops whatever runs. And only a job seen running is interrupted: older
        servers ignore the id.

        Raises:
            JobFault: the server could not be told.
        """
        absences = 0
        try:
            for pause_s in CANCEL_PAUSES_S:
                await self._http.request_json("POST", wire.QUEUE_PATH, json={"delete": [reference]})
                found = await self._look(reference, {})
                if found.place is Place.RUNNING:
                    await self._http.request_json("POST", wire.INTERRUPT_PATH, json={"prompt_id": reference})
                    absences = 1
                elif found.place is Place.ENDED or (found.place is Place.ABSENT and absences):
                    return
                elif found.place is Place.ABSENT:
                    # Deleted, never accepted, or submitted so late that it has not arrived: look once more.
                    absences, pause_s = 1, max(pause_s, self.options.grace_s)
                await trio.sleep(pause_s)
        except ProtocolError as error:
            raise _look_fault(error) from error
        # It was told; a node that never looks whether it should stop ends only by itself.
        log.warning("%s: %s has not stopped yet", self.setup.endpoint, reference)

    def _client_id(self, reference: str) -> str:
        """Whose events a job's are: never shared, since a server tells only the newest socket of a client id."""
        return f"{self.options.client_id}.{reference}" if self.options.client_id else reference

    # ── submission ──

    async def _submit(self, job: JobContext, workflow: Workflow) -> None:
        """Hand the job over; again only after the server has said twice that it does not know it.

        Raises:
            JobFault: refused, or accepted in part.
        """
        for last in (tries == SUBMIT_TRIES for tries in range(1, SUBMIT_TRIES + 1)):
            body = wire.submit_body(
                workflow, reference=job.reference, client_id=self._client_id(job.reference)
            )
            headers = {"content-type": "application/json", **job.headers}
            try:
                reply = await self._http.request("POST", wire.PROMPT_PATH, content=body, headers=headers)
                await self._accepted(job, wire.read_submit_reply(reply.body))
                return
            except ProtocolError as error:
                if not error.outcome_unknown:
                    raise _refused(error) from error
                unknown = error
            if (await self._patient_look(job)).place is not Place.ABSENT:
                return
            if last:
                raise job_fault(unknown) from unknown

    async def _accepted(self, job: JobContext, reply: wire.SubmitReply) -> None:
        if reply.prompt_id != job.reference:
            # A server that chooses its ids itself: a later owner must ask for that one.
            await job.attach(reply.prompt_id)
        if reply.problems and not self.options.accept_partial:
            await self._best_effort_cancel(job.reference)
            raise JobFault(
                FaultClass.VALIDATION, f"ComfyUI would skip outputs of the workflow: {reply.problems}"
            )

    async def _best_effort_cancel(self, reference: str) -> None:
        """Stop work whose result nobody wants; that it could not be stopped matters less than why it is unwanted."""
        try:
            await self.cancel(reference)
        except JobFault:
            return

    # ── looking ──

    async def _look(self, reference: str, headers: Mapping[str, str]) -> Found:
        """Where the job is, by one look.

        Raises:
            ProtocolError: the server could not be asked.
        """
        if self._has_jobs is None:
            self._has_jobs = await self._answers_jobs()
        if self._has_jobs:
            try:
                return wire.read_job(await self._record_bytes(wire.job_path(reference), headers))
            except NotFound:
                return Found(Place.ABSENT)
            except BodyTooLarge as error:
                return Found(Place.ENDED, _too_large(error))
        # The order matters: a job goes from the queue to the history, so the other order can miss it in both.
        queue = await self._http.request("GET", wire.QUEUE_PATH, headers=headers)
        place = wire.place_in_queue(queue.body, reference)
        if place is not Place.ABSENT:
            return Found(place)
        outcome = await self._record(reference, headers)
        return Found(Place.ABSENT if outcome is None else Place.ENDED, outcome)

    async def _record(self, reference: str, headers: Mapping[str, str]) -> Outcome | None:
        """How the job ended; None while there is no record, which alone says nothing.

        Raises:
            ProtocolError: the server could not be asked.
        """
        try:
            body = await self._record_bytes(wire.history_path(reference), headers)
        except BodyTooLarge as error:
            return _too_large(error)
        return wire.read_history(body, reference)

    async def _answers_jobs(self) -> bool:
        try:
            await self._http.request_json("GET", wire.JOBS_PROBE_PATH)
        except (NotFound, Rejected, Unsupported, ProtocolViolation):
            return False
        return True

    async def _record_bytes(self, path: str, headers: Mapping[str, str]) -> bytes:
        limit = self.options.record_bytes_max
        return (await self._http.request("GET", path, headers=headers, body_bytes_max=limit)).body

    async def _certain_look(self, reference: str, headers: Mapping[str, str]) -> Found:
        """Look; a job that is not there is looked for once more after a grace."""
        found = await self._look(reference, headers)
        if found.place is Place.ABSENT:
            await trio.sleep(self.options.grace_s)
            found = await self._look(reference, headers)
        return found

    async def _patient_look(self, job: JobContext) -> Found:
        """A certain look that waits out passing faults, bounded.

        Raises:
            JobFault: the server could not be asked.
        """
        for pause in range(LOOK_TRIES):
            try:
                return await self._certain_look(job.reference, job.headers)
            except ProtocolError as error:
                if pause == LOOK_TRIES - 1:
                    raise _look_fault(error) from error
            await trio.sleep(LOOK_PAUSE_S * 2**pause * self.setup.random.uniform(0.5, 1.0))
        raise AssertionError("unreachable: the last try returns or raises")

    async def _glance(self, job: JobContext) -> Found:
        """Whether there is a record by now; a server that does not answer is asked properly later."""
        try:
            outcome = await self._record(job.reference, job.headers)
        except ProtocolError:
            outcome = None
        return Found(Place.RUNNING if outcome is None else Place.ENDED, outcome)

    async def _poll(self, job: JobContext) -> JobResult:
        """Follow a job by asking alone: for its record often, for the queue too every ``look_s``."""
        pause_s, looked_s = self.options.poll_s, self.setup.now_s()
        while True:
            await trio.sleep(pause_s)
            pause_s = min(pause_s * 2, self.options.stall_s)
            found = await self._glance(job)
            if found.outcome is None and self.setup.now_s() - looked_s >= self.options.look_s:
                found, looked_s = await self._patient_look(job), self.setup.now_s()
                job.progress(0.0, found.place.value)
            result = await self._concluded(job, found)
            if result is not None:
                return result

    async def _settle(self, job: JobContext) -> JobResult | None:
        """The result of a job whose end was announced; None when the server says that it runs on.

        The announcement comes before the record, so its absence proves nothing for a moment.

        Raises:
            JobFault: see ``_concluded``.
        """
        found, pause_s = await self._glance(job), SETTLE_PAUSE_S
        with trio.move_on_after(self.options.settle_s):
            while found.outcome is None:
                await trio.sleep(pause_s)
                found, pause_s = await self._glance(job), min(pause_s * 2, SETTLE_PAUSE_S_MAX)
        if found.outcome is None:
            found = await self._patient_look(job)
        return await self._concluded(job, found)

    # ── the end ──

    async def _concluded(self, job: JobContext, found: Found) -> JobResult | None:
        """The result of a job that was found to have ended; None while it has not.

        Raises:
            JobFault: it failed, was interrupted, or is gone.
        """
        if found.place is Place.ABSENT:
            raise JobFault(FaultClass.SERVICE_ERROR, f"ComfyUI does not know {job.reference} (any more)")
        if found.outcome is None:
            return None
        return await self._conclude(job.reference, found.outcome, job.headers)

    async def _conclude(self, reference: str, outcome: Outcome, headers: Mapping[str, str]) -> JobResult:
        """The result of an ended job, or its fault raised."""
        if outcome.phase is ServicePhase.CANCELLED:
            raise JobFault(FaultClass.SERVICE_ERROR, "the job was interrupted at ComfyUI by somebody else")
        if outcome.fault is not None:
            raise outcome.fault
        if not wire.has_output(outcome.outputs) and not self.options.empty_output_ok:
            # Success without output is a known lie of real services; a retry may bring the output.
            raise JobFault(FaultClass.SERVICE_ERROR, "ComfyUI reported success without any output")
        return JobResult(
            {
                "prompt_id": reference,
                "outputs": outcome.outputs,
                "files": await self._files(outcome.outputs, headers),
            }
        )

    async def _files(self, outputs: Mapping[str, Any], headers: Mapping[str, str]) -> list[dict[str, Any]]:
        """The output files: their addresses, or themselves."""
        inline, left_bytes = self.options.outputs == "inline", self.options.output_bytes_max
        files: list[dict[str, Any]] = []
        for file in wire.output_files(outputs):
            shown: dict[str, Any] = {"node": file.node, "kind": file.kind, "filename": file.filename}
            if inline:
                body, shown["media_type"] = await self._download(file, headers, left_bytes)
                left_bytes -= len(body)
                shown["data"] = base64.b64encode(body).decode("ascii")
            else:
                shown["url"] = f"{self.setup.endpoint.url}{file.path}"
            files.append(shown)
        return files

    async def _download(
        self, file: wire.OutputFile, headers: Mapping[str, str], bytes_max: int
    ) -> tuple[bytes, str]:
        for tries in range(1, DOWNLOAD_TRIES + 1):
            try:
                reply = await self._http.request(
                    "GET", file.path, headers=headers, body_bytes_max=max(bytes_max, 1)
                )
                return reply.body, reply.headers.get("content-type", "application/octet-stream")
            except ProtocolError as error:
                if error.fault is FaultKind.TOO_LARGE:
                    limit = self.options.output_bytes_max
                    message = f"the outputs exceed output_bytes_max ({limit}): {file.filename}"
                    raise JobFault(FaultClass.VALIDATION, message) from error
                if error.fault not in _LOOK_KINDS:
                    message = f"an output cannot be fetched: {error}"
                    raise JobFault(FaultClass.SERVICE_ERROR, message) from error
                if tries == DOWNLOAD_TRIES:
                    raise job_fault(error) from error
            await trio.sleep(LOOK_PAUSE_S * 2**tries * self.setup.random.uniform(0.5, 1.0))
        raise AssertionError("unreachable: the last try returns or raises")


def _too_large(error: BodyTooLarge) -> Outcome:
    """The end of a job whose record is more than we take in: no repetition would make it smaller."""
    fault = JobFault(FaultClass.VALIDATION, f"the record of the job is too large: {error}")
    return Outcome(ServicePhase.FAILED, fault=fault)


def _refused(error: ProtocolError) -> JobFault:
    """A refused submission: in the server's own words where they are, else by its status."""
    own = wire.refusal(error.body) if isinstance(error, Rejected) else None
    return own or job_fault(error)


def _look_fault(error: ProtocolError) -> JobFault:
    """The fault of a look that failed: never one that blames the job."""
    if error.fault in _LOOK_KINDS:
        return job_fault(error)
    return JobFault(FaultClass.PROTOCOL, f"ComfyUI cannot be asked: {error}", outcome_unknown=True)
