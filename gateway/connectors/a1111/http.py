"""Connector ``a1111-http``: txt2img and img2img at a Stable Diffusion web UI, or a server of its interface.

The request is answered after the whole generation; beside it the progress is asked for. The server keeps no result:
an answer that is lost is lost, and the work is done again. Progress and interrupt are the server's, not a task's, so
both are used only while the server says that the task it runs is ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import msgspec
import trio

from gateway.connector import Connector, ConnectorCapabilities, ConnectorSetup, JobContext, JobResult
from gateway.connectors.a1111.wire import (
    INTERRUPT_PATH,
    MODELS_PATH,
    PROGRESS_PATH,
    Call,
    Progress,
    fault_of,
    interrupted_fault,
    read_call,
    read_images,
    read_models,
    read_progress,
    refuses_task_id,
)
from gateway.connectors.credentials import credential
from gateway.connectors.model_lists import MODELS, ask_models
from gateway.errors import ConfigError, FaultClass, JobFault
from protocols.base import HealthReport
from protocols.errors import ProtocolError, RequestTimeout, StatusFailure
from protocols.http import HTTPAdapter, HTTPLimits, RawReply

#: A preview above this is not told: the job's stream takes a mebibyte per entry.
PREVIEW_CHARS_MAX = 1_000_000
#: Looks for a task to stop that may still wait in line: 2.4 s, within the 3 s that the runner grants by default.
CANCEL_LOOKS = 12
CANCEL_PAUSE_S = 0.2
#: The look after the answer, seconds: a finished result must not wait long for it.
END_LOOK_S = 2.0
#: Needs a login where the others do, is short, and every server of this interface has it.
HEALTH_PATH_DEFAULT = "/sdapi/v1/samplers"


class A1111HTTPOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Options in ``[workers.X.options]``.

    Attributes:
        credentials: ``user:password`` for HTTP Basic (the server's ``--api-auth``); written ``{ env = "VARIABLE" }`` or
            ``{ file = "/path" }``.
        task_id: name tasks at the server (``force_task_id``); switched off by itself where the server refuses it.
        exclusive: nobody else uses this server: what it runs while one job of ours is under way is that job, even
            if the server does not say whose task it is.
        preview: tell the live preview as partial results.
        parallel: tasks handed over at once. The web UI runs one at a time, and one that waits in its line can't be
            cancelled, so that the others wait here.
        health_path: what is asked for health.
        stall_s: seconds between two looks at the progress.
        answer_grace_s: how long the answer may be missing once the server no longer runs the task, or tells nothing at
            all, in seconds: it may be encoding images or loading a model.
        request_timeout_s: longest request beside the generation itself, which is bounded by the job, in seconds.
        connections_max: requests to the server at once; a running job needs two.
        reply_bytes_max: largest answer, in bytes.
    """

    credentials: str = ""
    task_id: bool = True
    exclusive: bool = False
    preview: bool = False
    parallel: int = 1
    health_path: str = HEALTH_PATH_DEFAULT
    stall_s: float = 1.0
    answer_grace_s: float = 120.0
    request_timeout_s: float = 10.0
    connections_max: int = 16
    reply_bytes_max: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        numbers = (self.stall_s, self.answer_grace_s, self.request_timeout_s, self.reply_bytes_max)
        if not all(math.isfinite(number) and number > 0 for number in numbers):
            raise ValueError(
                "stall_s, answer_grace_s, request_timeout_s and reply_bytes_max must be positive"
            )
        if self.connections_max < 2:
            raise ValueError("connections_max must be at least 2: a job and its progress")
        if self.parallel < 1:
            raise ValueError("parallel must be at least 1")
        if not self.health_path.startswith("/"):
            raise ValueError("health_path must begin with a slash")


class _Run:
    """What is known of one generation under way."""

    def __init__(self) -> None:
        #: We told the server to stop it.
        self.asked = False
        #: The server was seen stopping it, whoever asked.
        self.interrupted = False
        #: Why it was given up beside its request: the job is no longer ours, or its answer will not come.
        self.failure: JobFault | ProtocolError | None = None
        self._began = False
        self._missing_since_s: float | None = None

    def missing(self, seen: Progress | None, *, ours: bool, now_s: float) -> float:
        """Take in a look, None for one that failed; returns for how many seconds the answer has been overdue.

        It is while the server tells nothing, runs nothing, or runs another task after having run this one. While it
        waits behind another task it is not.
        """
        self._began = self._began or ours
        overdue = seen is None or (not ours and (self._began or not seen.busy))
        if not overdue:
            self._missing_since_s = None
            return 0.0
        if self._missing_since_s is None:
            self._missing_since_s = now_s
        return now_s - self._missing_since_s


class A1111HTTPConnector(Connector):
    """Runs jobs at one web UI.

    Raises (constructor):
        ConfigError: unknown option, impossible value, or credentials that cannot be some.
    """

    key = "a1111-http"
    service = "a1111"
    #: No query: the server forgets a task with its answer. No dedupe: a task id may be used any number of times.
    capabilities = ConnectorCapabilities(cancel=True, stream=True)

    def __init__(self, setup: ConnectorSetup) -> None:
        super().__init__(setup)
        try:
            options = msgspec.convert(dict(setup.options), A1111HTTPOptions)
        except (msgspec.ValidationError, ValueError) as error:
            raise ConfigError(f"options of {self.key}: {error}") from None
        self._credential = credential(self.key, "credentials", options.credentials, token=False)
        #: Without the login: options are looked at and shown.
        self.options = msgspec.structs.replace(options, credentials="")
        if self._credential is not None and not self._credential.has_user:
            raise ConfigError(f"options of {self.key}: credentials: expected user:password")
        self._http = HTTPAdapter(
            setup.endpoint,
            open_stream=setup.open_stream,
            limits=HTTPLimits(
                connections_max=options.connections_max,
                request_timeout_s=options.request_timeout_s,
                idle_timeout_s=options.request_timeout_s,
                body_bytes_max=options.reply_bytes_max,
            ),
            auth_headers=None if self._credential is None else self._credential.basic(),
        )
        self._names_tasks = options.task_id
        self._turn = trio.CapacityLimiter(options.parallel)
        self._runs: dict[str, _Run] = {}

    async def health(self) -> HealthReport:
        report = await self._http.health(self.options.health_path)
        return dataclasses.replace(report, detail=self._redacted(report.detail))

    async def probe_capabilities(self) -> Mapping[str, Any]:
        """The checkpoints by the server's own names for them; nothing at a server that has no list of them."""
        try:
            names = await ask_models(self._http, MODELS_PATH, read_models, clean=self._clean)
        except ProtocolError as error:
            fault = self._told(fault_of(error))
        else:
            return {} if names is None else {MODELS: names}
        # Not chained, as in ``_perform``.
        raise fault

    async def aclose(self) -> None:
        await self._http.aclose()

    async def run(self, job: JobContext) -> JobResult:
        call = read_call(job.spec.payload)
        # Bounded by the job's own deadline.
        async with self._turn:
            return await self._perform(job, call)

    async def _perform(self, job: JobContext, call: Call) -> JobResult:
        run = self._runs[job.reference] = _Run()
        try:
            reply = await self._generate(job, call, run)
            if run.asked:
                raise interrupted_fault("we asked for it")
            if run.interrupted or await self._ended_interrupted(job):
                raise interrupted_fault("somebody asked for it")
            return JobResult(read_images(call, self._clean(reply.body)))
        except ProtocolError as error:
            fault = self._told(fault_of(error))
        finally:
            if self._runs.get(job.reference) is run:
                del self._runs[job.reference]
        # Not chained: the cause keeps the body of the answer, which may repeat the credentials.
        raise fault

    async def cancel(self, reference: str) -> None:
        """Interrupt the generation if, and only if, the server says that it is the one running.

        Between that look and the interrupt the server may have gone on to the next task: it offers no way to name
        the task that is meant. A task that still waits in line can't be stopped; its turn is waited for, but not for
        long: the server does not tell whether it waits or is unknown.

        Raises:
            JobFault: the server could not be told, or does not say whose task it runs.
        """
        try:
            await self._stop(reference)
        except ProtocolError as error:
            fault = self._told(fault_of(error))
        else:
            return
        raise fault  # not chained, see above

    async def _stop(self, reference: str) -> None:
        idle = False
        for _look in range(CANCEL_LOOKS):
            seen = await self._look()
            if self._is_ours(seen, reference):
                await self._interrupt(self._runs.get(reference))
                return
            if not seen.busy and idle:
                return
            # Once is not enough: the request that is being given up may still be on its way in.
            idle = not seen.busy
            if seen.busy and seen.current_task is None:
                message = "the server does not say whose task it runs, so nothing was interrupted"
                raise JobFault(FaultClass.UNSUPPORTED, message)
            await trio.sleep(CANCEL_PAUSE_S)

    async def _interrupt(self, run: _Run | None) -> None:
        # Noted before it is told, and kept when it may have been heard: what comes now may be half an image.
        if run is not None:
            run.asked = True
        try:
            await self._http.request_json("POST", INTERRUPT_PATH, json={})
        except ProtocolError as error:
            if run is not None:
                run.asked = error.outcome_unknown
            raise

    async def _generate(self, job: JobContext, call: Call, run: _Run) -> RawReply:
        """The one long request, with the looks at its progress beside it.

        Raises:
            ProtocolError, JobFault: it failed.
        """
        reply: RawReply | None = None
        failure: JobFault | ProtocolError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow, job, run, nursery.cancel_scope)
            try:
                reply = await self._post(job, call)
            except ProtocolError as error:
                failure = error  # raised outside, or it would come as a group
            nursery.cancel_scope.cancel()
        failure = run.failure or failure
        if failure is not None:
            raise failure
        assert reply is not None, "the request was answered, failed, or its job was lost"
        return reply

    async def _post(self, job: JobContext, call: Call) -> RawReply:
        for task_id in (job.reference if self._names_tasks else "", ""):
            try:
                return await self._http.request(
                    "POST",
                    call.path,
                    content=call.content(task_id),
                    headers={**job.headers, "content-type": "application/json", "accept": "application/json"},
                    timeout_s=job.spec.timeout_s,
                    idle_timeout_s=job.spec.timeout_s,
                )
            except StatusFailure as error:
                if not task_id or not refuses_task_id(error):
                    raise
                # Validation comes first: nothing was run.
                self._names_tasks = False
        raise AssertionError("unreachable: the last try returns or raises")

    async def _follow(self, job: JobContext, run: _Run, scope: trio.CancelScope) -> None:
        """Tell the progress, and see that the answer is still to be expected; ends the scope when it is not."""
        preview: str | None = None
        while run.failure is None:
            await trio.sleep(self.options.stall_s)
            seen: Progress | None = None
            with contextlib.suppress(ProtocolError):
                seen = await self._look(preview=self.options.preview)
            ours = seen is not None and self._is_ours(seen, job.reference)
            missing_s = run.missing(seen, ours=ours, now_s=self.setup.now_s())
            if missing_s >= self.options.answer_grace_s:
                message = f"neither an answer nor its task at the server for {missing_s:.0f} s"
                run.failure = RequestTimeout(message, outcome_unknown=True)
            elif seen is not None and ours:
                run.interrupted = run.interrupted or seen.interrupted
                job.progress(seen.fraction, seen.message)
                if seen.current_image != preview:
                    preview = seen.current_image
                    run.failure = await _show(job, seen)
            elif seen is not None and seen.current_task is not None:
                job.progress(0.0, "waiting for another task of the server")
        scope.cancel()

    async def _ended_interrupted(self, job: JobContext) -> bool:
        """Whether the generation that was just answered had been told to stop: the flag stays until the next begins."""
        try:
            seen = await self._look(timeout_s=min(END_LOOK_S, self.options.request_timeout_s))
        except ProtocolError:
            return False
        return seen.interrupted and (not seen.busy or self._is_ours(seen, job.reference))

    async def _look(self, *, preview: bool = False, timeout_s: float | None = None) -> Progress:
        path = PROGRESS_PATH if preview else f"{PROGRESS_PATH}?skip_current_image=true"
        headers = {"accept": "application/json"}
        reply = await self._http.request("GET", path, headers=headers, timeout_s=timeout_s)
        return read_progress(reply.body)

    def _is_ours(self, seen: Progress, reference: str) -> bool:
        if seen.current_task is not None:
            return seen.current_task == reference
        return self.options.exclusive and seen.busy and self._runs.keys() <= {reference}

    def _told(self, fault: JobFault) -> JobFault:
        """The fault as it may be told."""
        return JobFault(
            fault.fault_class,
            self._redacted(str(fault)),
            retry_after_s=fault.retry_after_s,
            outcome_unknown=fault.outcome_unknown,
        )

    def _redacted(self, text: str) -> str:
        return text if self._credential is None else self._credential.redact(text)

    def _clean(self, data: bytes) -> bytes:
        return data if self._credential is None else self._credential.redact_result(data)


async def _show(job: JobContext, seen: Progress) -> JobFault | None:
    """Tell a live preview; returns the fault that this met."""
    image = seen.current_image
    if image and len(image) <= PREVIEW_CHARS_MAX:
        try:
            await job.chunk({"preview": image, "progress": seen.fraction})
        except JobFault as fault:
            return fault
    return None
