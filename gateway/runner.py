"""Run one job: reconcile, perform, normalise, settle: a short pipeline with a closed vocabulary of outcomes."""

from __future__ import annotations

import logging
import random as random_module
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import msgspec
import trio

from gateway.config import RunnerConfig
from gateway.connector import Connector, JobResult
from gateway.context import ProgressPump, RunningJob
from gateway.endpoints import BoundEndpoint
from gateway.errors import FaultClass, GatewayError, JobFault, StoreError
from gateway.headers import HEADER_EPOCH, HEADER_EXPECTED_ENDPOINT, HEADER_EXPECTED_INSTANCE, HEADER_WORKER
from gateway.leases import EndReason, LeaseKeeper, Ownership
from gateway.models import Grant, Settlement, SettlementKind, Verdict
from gateway.observer import AttemptObserver, Observer
from gateway.recovery import Finding, Reconciliation, Reference, reconcile, reference_name
from gateway.retry import Action, RetryPolicy, decide
from gateway.settling import Settler
from gateway.store.base import JobStore
from gateway.strategies import Strategy
from gateway.worker import Worker

log = logging.getLogger(__name__)

MESSAGE_CHARS_MAX = 500
#: How often silent jobs are looked for, seconds.
STALL_CHECK_S = 1.0
#: Time beyond a job's own time-out for which its lease is renewed: cancelling at the service and settling.
AFTERCARE_S = 60.0
_encode = msgspec.json.Encoder().encode
#: Recoveries that begin with the end of an ownership.
_STRATEGIES = {
    EndReason.TIMED_OUT: Strategy.JOB_TIMEOUT,
    EndReason.STALLED: Strategy.WORKER_STUCK,
    EndReason.LOST: Strategy.LEASE_LOST,
    EndReason.EXPIRED: Strategy.LEASE_LOST,
}

#: Makes a connector for another endpoint than the worker's own, to ask for work left there.
MakeConnector = Callable[[str, str, Worker], Connector]


class _Attempt:
    """Everything one attempt knows; lives as long as its task. ``home`` is the endpoint it was claimed for."""

    __slots__ = (
        "began_s",
        "connector",
        "foreign",
        "foreign_id",
        "grant",
        "home",
        "job",
        "observer",
        "ownership",
    )

    def __init__(
        self,
        grant: Grant,
        ownership: Ownership,
        home: BoundEndpoint,
        observer: AttemptObserver,
        *,
        began_s: float,
    ) -> None:
        self.grant = grant
        self.ownership = ownership
        self.home = home
        self.observer = observer
        self.connector: Connector = home.connector
        #: Speaks to the endpoint where an earlier owner left the work, when that is not the worker's own.
        self.foreign: Connector | None = None
        #: Registry id of the instance where an earlier owner left the work, when that is another one.
        self.foreign_id = ""
        self.job: RunningJob | None = None
        self.began_s = began_s

    @property
    def endpoint(self) -> str:
        """Address of the instance that does the work."""
        return self.home.url if self.at_home else self.connector.setup.endpoint.url

    @property
    def service_id(self) -> str:
        """The registry's id of the instance that does the work; empty when it is not from there."""
        return self.home.place.service_id if self.at_home else self.foreign_id

    def named(self, name: str) -> Reference:
        """What the store is to keep of work that the connector's instance knows by this name."""
        return Reference(self.connector.key, self.endpoint, name, self.service_id)

    @property
    def worker(self) -> Worker:
        return self.home.worker

    @property
    def at_home(self) -> bool:
        """Whether the worker's own instance does the work."""
        return self.connector is self.home.connector


class JobRunner:
    """Runs granted jobs, one task each.

    Args:
        store: for attach, progress and chunks.
        settler: records how each lease ended.
        keeper: ends ownership.
        pump: carries progress.
        observer: follows each attempt.
        make_connector: ``(key, endpoint, worker)`` for work left at another endpoint.
        address_of: where a service of the registry is now, by its id; None when that is not known.
        retry: bounds of the back-off.
        config: times of one run.
        result_bytes_max: largest recorded result.
        random: source of the back-off's jitter.
        now_s: monotonic clock.
        slot_freed: called when a worker has a free slot again.
        attempt_ended: told how each attempt at an endpoint of ours ended: ``(endpoint, fault, seconds)``.
    """

    def __init__(
        self,
        store: JobStore,
        settler: Settler,
        keeper: LeaseKeeper,
        pump: ProgressPump,
        observer: Observer,
        *,
        make_connector: MakeConnector,
        address_of: Callable[[str], str | None],
        retry: RetryPolicy,
        config: RunnerConfig,
        result_bytes_max: int,
        random: random_module.Random,
        now_s: Callable[[], float],
        slot_freed: Callable[[Worker], None],
        attempt_ended: Callable[[BoundEndpoint, FaultClass | None, float], None],
    ) -> None:
        self._store = store
        self._settler = settler
        self._keeper = keeper
        self._pump = pump
        self._observer = observer
        self._make_connector = make_connector
        self._address_of = address_of
        self._retry = retry
        self._config = config
        self.result_bytes_max = result_bytes_max
        self._random = random
        self._now_s = now_s
        self._slot_freed = slot_freed
        self._attempt_ended = attempt_ended
        self._running: dict[RunningJob, Ownership] = {}

    async def run(self, grant: Grant, ownership: Ownership, home: BoundEndpoint) -> None:
        """One job's task, from ownership to settlement; raises nothing but a cancellation."""
        ownership.limit(grant.timeout_s, aftercare_s=AFTERCARE_S)
        worker = home.worker
        try:
            with self._observer.attempt(
                grant, worker_id=worker.worker_id, connector_key=worker.connector_key, endpoint=home.url
            ) as observer:
                attempt = _Attempt(grant, ownership, home, observer, began_s=self._now_s())
                try:
                    settlement = await self._attempt(attempt)
                finally:
                    if attempt.foreign is not None:
                        with trio.move_on_after(self._config.cancel_timeout_s, shield=True):
                            await attempt.foreign.aclose()
                if settlement is not None:
                    verdict = await self._settler.settle(settlement, ownership)
                    observer.settled(settlement, verdict)
                    if verdict is Verdict.STALE and settlement.kind is SettlementKind.COMPLETED:
                        self._observer.recovering(Strategy.DUPLICATE_EXECUTION_DETECTED)
        finally:
            self._keeper.disown(ownership, "ended")
            home.job_ended()
            self._slot_freed(worker)

    async def watch_silence(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """End attempts whose service gave no sign of life for ``silence_max_s``; runs until cancelled."""
        task_status.started()
        while True:
            await trio.sleep(STALL_CHECK_S)
            limit_s = self._now_s() - self._config.silence_max_s
            for job, ownership in list(self._running.items()):
                if job.last_sign_s < limit_s:
                    ownership.end(EndReason.STALLED)

    async def _attempt(self, attempt: _Attempt) -> Settlement | None:
        """Perform inside the ownership's scope and turn whatever happened into one settlement (or none)."""
        result: JobResult | None = None
        fault: JobFault | None = None
        with attempt.ownership.scope:
            try:
                result = await self._perform(attempt)
            except JobFault as error:
                fault = error
            except StoreError as error:
                # Without a stored reference a later owner could not ask, so the work was not begun.
                fault = JobFault(FaultClass.INTERRUPTED, f"the store is away: {error}")
            except Exception as error:
                log.exception("job %s: error of ours", attempt.grant.job_id)
                fault = JobFault(FaultClass.INTERNAL, f"{type(error).__name__}: {error}")
        if attempt.job is not None:
            self._pump.forget(attempt.job)
            self._running.pop(attempt.job, None)
        if attempt.ownership.scope.cancelled_caught:
            return await self._stopped(attempt)
        if fault is not None:
            return await self._faulted(attempt, fault)
        if result is None:
            await self._cancel_at_service(attempt)
            return Settlement.cancelled(attempt.grant)
        return self._completed(attempt, result)

    async def _perform(self, attempt: _Attempt) -> JobResult | None:
        """The job's result; None for a job that was to be cancelled before it began."""
        left = self._locate(attempt)
        if attempt.grant.cancel_requested:
            self._prepare(attempt, left)
            return None
        return await self._dispatch(attempt, left)

    def _locate(self, attempt: _Attempt) -> Reference | None:
        """Where an earlier owner left the work, if anywhere we can ask; points the attempt's connector there."""
        left = Reference.read(attempt.grant.reference)
        if left is None:
            return None
        if left.service_id:
            # Its address may be another one by now.
            ours = attempt.home.place.service_id == left.service_id
            address = attempt.home.url if ours else self._address_of(left.service_id)
            left = replace(left, endpoint=address or left.endpoint)
        if left.endpoint == attempt.home.url:
            return left
        try:
            attempt.foreign = self._make_connector(left.connector_key, left.endpoint, attempt.worker)
        except GatewayError as error:
            log.warning("job %s was left at %s, which can't be asked: %s", attempt.grant.job_id, left, error)
            return None
        attempt.connector, attempt.foreign_id = attempt.foreign, left.service_id
        return left

    def _prepare(self, attempt: _Attempt, reference: Reference | None) -> RunningJob:
        """The context under which the attempt's connector sees the job."""
        worker, grant = attempt.worker, attempt.grant
        endpoint = attempt.endpoint
        if reference is None:
            reference = attempt.named(reference_name(grant))
        routing = {
            HEADER_WORKER: worker.worker_id,
            HEADER_EPOCH: str(grant.epoch),
            HEADER_EXPECTED_ENDPOINT: endpoint,
        }
        if attempt.at_home and attempt.home.place.instance:
            routing[HEADER_EXPECTED_INSTANCE] = attempt.home.place.instance

        def headers() -> dict[str, str]:
            return {**attempt.observer.headers, **routing}

        job = RunningJob(self._store, attempt.ownership, reference, headers, self._pump, now_s=self._now_s())
        if attempt.job is not None:
            self._running.pop(attempt.job, None)
        attempt.job = job
        if self._config.silence_max_s > 0:
            self._running[job] = attempt.ownership
        return job

    async def _dispatch(self, attempt: _Attempt, left: Reference | None) -> JobResult:
        """Collect or follow what an earlier owner left, else run."""
        if left is None:
            return await self._run_here(attempt, Finding.RUN)
        job = self._prepare(attempt, left)
        found = await self._ask(attempt, left)
        if found.finding is Finding.RUN:
            # The reference is stored before the work is handed over, so it may also never have arrived there.
            self._observer.recovering(Strategy.SERVICE_RESTARTED)
        if found.finding is Finding.COLLECT:
            assert found.result is not None
            log.info("job %s: collected the result an earlier owner left", attempt.grant.job_id)
            return found.result
        if found.finding is Finding.FOLLOW:
            log.info("job %s: following the run an earlier owner began", attempt.grant.job_id)
            with attempt.observer.service_call("resume"):
                return await attempt.connector.resume(job)
        return await self._run_here(attempt, found.finding)

    async def _ask(self, attempt: _Attempt, left: Reference) -> Reconciliation:
        """Ask the service for the work left there.

        The worker's own instance is asked again later when it does not answer (its breaker keeps claims away
        meanwhile); another one that does not answer is given up, or its jobs would wait for a dead machine.
        """
        try:
            with attempt.observer.service_call("query"), trio.fail_after(self._config.reconcile_timeout_s):
                return await reconcile(attempt.connector, left.name)
        except trio.TooSlowError:
            fault = JobFault(FaultClass.UNAVAILABLE, f"{left.endpoint} did not answer")
        except JobFault as error:
            fault = error
        if fault.fault_class is not FaultClass.UNAVAILABLE or attempt.at_home:
            raise fault
        log.warning("job %s was left at %s: %s; running it again", attempt.grant.job_id, left.endpoint, fault)
        return Reconciliation(Finding.RUN_FRESH)

    async def _run_here(self, attempt: _Attempt, finding: Finding) -> JobResult:
        """Hand the job to the worker's own instance, its reference stored first."""
        connector = attempt.connector = attempt.home.connector
        name = reference_name(attempt.grant, fresh=finding is Finding.RUN_FRESH)
        job = self._prepare(attempt, attempt.named(name))
        if connector.capabilities.query or connector.capabilities.cancel:
            await job.store_reference()
        with attempt.observer.service_call("run"):
            return await connector.run(job)

    def _endpoint_spoke(self, attempt: _Attempt, fault_class: FaultClass | None) -> None:
        """Feed breaker and rollout; what another endpoint does says nothing about the worker's own."""
        if attempt.at_home:
            attempt.home.spoke(fault_class)
            self._attempt_ended(attempt.home, fault_class, self._now_s() - attempt.began_s)
        else:
            attempt.home.breaker.undecided()

    def _completed(self, attempt: _Attempt, result: JobResult) -> Settlement:
        body = _encode(result.value)
        self._endpoint_spoke(attempt, None)
        if result.consumed:
            attempt.observer.consumed(result.consumed)
        if len(body) > self.result_bytes_max:
            message = f"the result of {len(body)} bytes exceeds {self.result_bytes_max}"
            return self._buried(attempt, JobFault(FaultClass.VALIDATION, message))
        detail: dict[str, Any] = {"endpoint": attempt.endpoint}
        if result.served_by:
            detail["served_by"] = result.served_by
        if attempt.at_home and attempt.home.place.instance:
            detail["expected"] = attempt.home.place.instance
        return Settlement.completed(attempt.grant, body=body.decode(), detail=_encode(detail).decode())

    async def _faulted(self, attempt: _Attempt, fault: JobFault) -> Settlement | None:
        """What a fault leads to: the one retry policy decides by its class."""
        grant, fault_class = attempt.grant, fault.fault_class
        attempt.observer.faulted(fault_class, str(fault))
        self._endpoint_spoke(attempt, fault_class)
        decision = decide(
            fault_class,
            attempts=grant.attempts,
            retry_after_s=fault.retry_after_s,
            jitter=self._random.random(),
            policy=self._retry,
        )
        log.info("job %s: %s (%s) → %s", grant.job_id, fault_class.value, fault, decision.action.value)
        if fault.forgotten:
            self._observer.recovering(Strategy.SERVICE_RESTARTED)
        if fault_class is FaultClass.UNAVAILABLE:
            self._observer.recovering(Strategy.SERVICE_UNAVAILABLE)
        if decision.action is Action.STOP:
            return None
        if decision.action is Action.BURY:
            return self._buried(attempt, fault)
        body = detail = _describe(fault)
        if decision.action is Action.SNOOZE:
            return Settlement.snoozed(grant, body=body, detail=detail, delay_s=decision.delay_s)
        if decision.action is Action.RELEASE:
            return Settlement.released(
                grant, body=body, detail=detail, delay_s=decision.delay_s, avoid_s=decision.avoid_s
            )
        # The next attempt goes under a new name: nothing of this one may go on working meanwhile.
        await self._cancel_at_service(attempt)
        return Settlement.failed_for_retry(
            grant, body=body, detail=detail, delay_s=decision.delay_s, avoid_s=decision.avoid_s
        )

    @staticmethod
    def _buried(attempt: _Attempt, fault: JobFault) -> Settlement:
        text = _describe(fault)
        return Settlement.failed_for_good(attempt.grant, body=text, detail=text)

    async def _stopped(self, attempt: _Attempt) -> Settlement | None:
        """The ownership's scope was cancelled: by loss, by request, by shutdown or for silence."""
        reason = attempt.ownership.end_reason()
        capabilities = attempt.connector.capabilities
        log.info("job %s (epoch %d) stopped: %s", attempt.grant.job_id, attempt.grant.epoch, reason.value)
        if (strategy := _STRATEGIES.get(reason)) is not None:
            self._observer.recovering(strategy)
        if reason is EndReason.TIMED_OUT:
            message = f"not done within {attempt.grant.timeout_s:g} s"
            return await self._faulted(attempt, JobFault(FaultClass.TIMEOUT, message, outcome_unknown=True))
        if reason is EndReason.STALLED:
            message = f"no sign of life for {self._config.silence_max_s:g} s"
            return await self._faulted(attempt, JobFault(FaultClass.TIMEOUT, message, outcome_unknown=True))
        if reason is EndReason.CANCEL_REQUESTED:
            attempt.home.breaker.undecided()
            await self._cancel_at_service(attempt)
            return Settlement.cancelled(attempt.grant)
        if reason is EndReason.INTERRUPTED:
            attempt.observer.faulted(FaultClass.INTERRUPTED, "shutdown")
            self._endpoint_spoke(attempt, FaultClass.INTERRUPTED)
            if not capabilities.reattach:
                await self._cancel_at_service(attempt)
            return Settlement.released(attempt.grant, detail='{"kind":"interrupted"}')
        self._keeper.disown(attempt.ownership, reason.value)
        attempt.observer.faulted(FaultClass.LEASE_LOST, reason.value)
        self._endpoint_spoke(attempt, FaultClass.LEASE_LOST)
        if not await self._adopted(attempt):
            await self._cancel_at_service(attempt)
        return None

    async def _adopted(self, attempt: _Attempt) -> bool:
        """Whether the work we leave at the service is, or will be, followed by the job's next owner.

        Cancelling it would kill the successor's work; not cancelling it would waste the machine when the successor
        runs the job elsewhere. When the store can't tell, a service that can be asked keeps the work: the next
        owner asks before it runs.
        """
        if not attempt.connector.capabilities.reattach or attempt.job is None:
            return False
        ours = attempt.named(attempt.job.reference)
        try:
            with trio.move_on_after(self._config.cancel_timeout_s):
                view = (await self._store.inspect([attempt.grant.job_id]))[0]
                return (
                    view is not None and not view.terminal and ours.same_work(Reference.read(view.reference))
                )
        except StoreError as error:
            log.info("job %s: its successor is unknown: %s", attempt.grant.job_id, error)
        return True

    async def _cancel_at_service(self, attempt: _Attempt) -> None:
        """Stop the work at the service, best effort and bounded; the fence makes a failure harmless."""
        if attempt.job is None or not attempt.connector.capabilities.cancel:
            return
        with trio.move_on_after(self._config.cancel_timeout_s) as scope:
            try:
                with attempt.observer.service_call("cancel"):
                    await attempt.connector.cancel(attempt.job.reference)
            except JobFault as fault:
                log.warning("job %s could not be cancelled at the service: %s", attempt.grant.job_id, fault)
        if scope.cancelled_caught:
            log.warning("job %s: the service did not answer its cancel", attempt.grant.job_id)


def _describe(fault: JobFault) -> str:
    """A fault as JSON, for the result and for the event."""
    return _encode({"kind": fault.fault_class.value, "message": str(fault)[:MESSAGE_CHARS_MAX]}).decode()
