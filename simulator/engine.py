"""The work of the simulated service: jobs, executions, slots and time (pure state machine).

It does no I/O and reads no clock: every call brings the time, and first performs all that was due until
then, at the moment it was due. So it does not matter how often anybody looks, and the same calls under the
same seed always give the same story.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from gateway.connectors.simulation.wire import (
    ErrorKind,
    EventType,
    FailureWish,
    JournalEntry,
    JournalEvent,
    RunState,
    ServiceFailure,
    WorkPayload,
)
from simulator.faults import FaultDice, FaultPlan
from simulator.journal import Journal
from simulator.model import Caller, Execution, Job, ServiceConfig, StepKind, plan_steps

if TYPE_CHECKING:
    from random import Random


class Engine:
    """Runs ``slots`` jobs at once, the rest in line, and decides the faults of an execution at its start.

    Args:
        config: name, capacity and defaults.
        plan: the faults at first.
        random_for: random stream by knob name.
        start_s: the moment it starts; schedules and journal count from there, in seconds.
        sink: called with each new journal entry.
    """

    def __init__(
        self,
        config: ServiceConfig,
        plan: FaultPlan,
        random_for: Callable[[str], Random],
        *,
        start_s: float = 0.0,
        sink: Callable[[JournalEntry], None] | None = None,
    ) -> None:
        self.config = config
        self.dice = FaultDice(plan, random_for)
        self.journal = Journal(config.instance, entries_max=config.journal_entries_max, sink=sink)
        self.jobs: dict[str, Job] = {}
        self._start_s = start_s
        #: The newest planned restart that is over, in seconds since the start.
        self._restarted_until_s = -1.0
        self._waiting: deque[Execution] = deque()
        self._running: set[Execution] = set()
        self._ended: deque[Job] = deque()
        self._due: list[tuple[float, int, Execution]] = []
        self._order = itertools.count()
        self._touched: set[str] = set()
        self._paused_s: float | None = None
        self._resumed_s = start_s
        #: How often all jobs were forgotten.
        self.restarts = 0
        self._padding = ""
        #: Executions by the key of the failure they were asked for.
        self._wished: Counter[str] = Counter()

    @property
    def full(self) -> bool:
        """Whether no more job may wait."""
        return len(self._waiting) >= self.config.queue_max

    @property
    def running(self) -> int:
        """Executions in slots."""
        return len(self._running)

    def live_executions(self) -> tuple[list[Execution], list[Execution]]:
        """Executions in slots and in line, each in the order of their start or arrival."""
        running = sorted(self._running, key=lambda run: run.order)
        return running, list(self._waiting)

    @property
    def paused(self) -> bool:
        """Whether everything hangs."""
        return self._paused_s is not None

    def advance(self, now_s: float) -> None:
        """Do everything that is due until ``now_s``."""
        while not self.paused:
            due_s = self.next_due_s()
            if due_s is None or due_s > now_s:
                break
            moment_s = self._next_restart()
            if moment_s is not None and self._start_s + moment_s <= due_s:
                self._restarted_until_s = moment_s
                # A restart that was due during a pause happens right after it.
                self.forget_all(max(due_s, self._resumed_s))
            else:
                self._step(heapq.heappop(self._due)[2], due_s)

    def next_due_s(self) -> float | None:
        """When something happens next without anybody asking, or None."""
        if self.paused:
            return None
        while self._due and not self._due[0][2].alive:
            heapq.heappop(self._due)
        moments = [self._due[0][0]] if self._due else []
        restart_s = self.next_restart_s()
        return min([*moments, restart_s]) if restart_s is not None else (moments[0] if moments else None)

    def next_due_for(self, job: Job) -> float | None:
        """When a listener of this job should look again at the latest, or None; a wake-up may come before."""
        if self.paused or job.forgotten:
            return None
        restart_s = self.next_restart_s()
        if job.state is RunState.RUNNING and job.newest is not None:
            return job.newest.due_s if restart_s is None else min(job.newest.due_s, restart_s)
        return self.next_due_s() if job.state is RunState.QUEUED else restart_s

    def drain_touched(self) -> set[str]:
        """Ids of the jobs with news since the last call."""
        touched, self._touched = self._touched, set()
        return touched

    def elapsed_s(self, now_s: float) -> float:
        """Seconds since the service started."""
        return now_s - self._start_s

    def _next_restart(self) -> float | None:
        """The next planned restart, in seconds since the start."""
        planned = self.dice.plan.restart_forgets_at_s
        return next((moment_s for moment_s in planned if moment_s > self._restarted_until_s), None)

    def next_restart_s(self) -> float | None:
        """When the next planned restart is, or None."""
        moment_s = self._next_restart()
        return None if moment_s is None else self._start_s + moment_s

    def set_faults(self, now_s: float, values: Mapping[str, object]) -> FaultPlan:
        """Change some knobs from now on.

        Raises:
            FaultError: an unknown knob or bad value; nothing is changed then.
        """
        self.advance(now_s)
        plan = self.dice.plan.updated(values)
        if plan.restart_forgets_at_s != self.dice.plan.restart_forgets_at_s:
            # Moments already past are not made up for.
            self._restarted_until_s = self.elapsed_s(now_s)
            self._touched.update(self.jobs)
        self.dice.plan = plan
        return plan

    def pause(self, now_s: float) -> None:
        """Let all work stand still until :meth:`resume`."""
        self.advance(now_s)
        if self._paused_s is None:
            self._paused_s = now_s

    def resume(self, now_s: float) -> None:
        """Go on where :meth:`pause` stopped; whatever was due is due so much later."""
        if self._paused_s is not None:
            for execution in self._running:
                # One that was started meanwhile waits only since then.
                lag_s = now_s - max(self._paused_s, execution.started_s)
                execution.started_s += lag_s
                execution.due_s += lag_s
            self._due = [(run.due_s, order, run) for _due_s, order, run in self._due if run.alive]
            heapq.heapify(self._due)
            self._paused_s, self._resumed_s = None, now_s
            self._touched.update(self.jobs)
        self.advance(now_s)

    def enqueue(self, now_s: float, job_id: str, work: WorkPayload, caller: Caller) -> Job:
        """Run a job, anew if it is known; it starts at once when a slot is free."""
        job = self.jobs.get(job_id)
        if job is None:
            job = self.jobs[job_id] = Job(job_id, self.config.instance)
        else:
            job.reset()
        self.note(now_s, JournalEvent.SUBMITTED, job, caller)
        execution = Execution(job, work, caller)
        job.newest = execution
        job.live.append(execution)
        self._waiting.append(execution)
        self._touched.add(job.id)
        self._fill_slots(now_s)
        self.advance(now_s)
        return job

    def stop(self, now_s: float, job: Job, caller: Caller) -> None:
        """Cancel a job that has not ended: its work really stops, its slot is free."""
        for execution in tuple(job.live):
            self._end(execution)
        number = job.newest.number if job.newest is not None else 0
        self._close(job, RunState.CANCELLED, EventType.CANCELLED, "cancelled")
        self.note(now_s, JournalEvent.CANCELLED, job, caller, execution=number)
        self._fill_slots(now_s)
        self.advance(now_s)

    def _fill_slots(self, at_s: float) -> None:
        while self._waiting and len(self._running) < self.config.slots:
            self._start(self._waiting.popleft(), at_s)

    def _start(self, execution: Execution, at_s: float) -> None:
        """Begin an execution and decide all that will happen to it."""
        job, work = execution.job, execution.work
        execution.number = self.journal.executions(job.id) + 1
        self.note(at_s, JournalEvent.STARTED, job, execution.caller, execution=execution.number)
        elapsed_s, roll = self.elapsed_s(at_s), self.dice.roll
        slow, instant, no_memory = (
            roll(knob, elapsed_s)
            for knob in ("slow_rate", "finished_before_listening_rate", "out_of_memory_rate")
        )
        execution.empty_output, execution.oversize, execution.lost = (
            roll(knob, elapsed_s) for knob in ("empty_output_rate", "oversize_rate", "lost_completion_rate")
        )
        duration_s = self.config.duration_s if work.duration_s is None else work.duration_s
        duration_s *= 0.0 if instant else self.dice.plan.slow_factor if slow else 1.0
        wish = work.fail
        if wish is not None and self._comes_true(wish, execution.number):
            execution.failure = ServiceFailure(
                kind=wish.kind, message=wish.message, retry_after_s=wish.retry_after_s
            )
        elif no_memory:
            execution.failure = ServiceFailure(
                kind=ErrorKind.OUT_OF_MEMORY, message="simulated: out of memory"
            )
        execution.steps = plan_steps(work, duration_s, fails=execution.failure is not None)
        execution.late_record = roll("late_record_rate", elapsed_s)
        execution.started_s = at_s
        execution.order = next(self._order)
        self._running.add(execution)
        self._schedule(execution)
        if job.newest is execution:
            job.state, job.message = RunState.RUNNING, "started"
            self._show(job, EventType.PROGRESS)

    def _comes_true(self, wish: FailureWish, number: int) -> bool:
        """Whether an execution, the ``number``-th of its id, fails as its payload asks."""
        if wish.key:
            self._wished[wish.key] += 1
            number = self._wished[wish.key]
        return wish.times is None or number <= wish.times

    def _schedule(self, execution: Execution) -> None:
        execution.due_s = execution.started_s + execution.steps[execution.position].at_s
        heapq.heappush(self._due, (execution.due_s, next(self._order), execution))

    def _step(self, execution: Execution, at_s: float) -> None:
        """Perform the next step of a live execution; one that was superseded works on unseen."""
        step, job = execution.steps[execution.position], execution.job
        seen = job.newest is execution
        if step.kind is StepKind.FINISH or step.kind is StepKind.FAIL:
            self._finish(execution, at_s)
            return
        if step.kind is StepKind.CHUNK and seen:
            self._show(job, EventType.CHUNK, data={"index": step.index, "text": f"chunk {step.index}"})
        elif seen:
            job.progress = step.index / execution.work.steps
            job.message = f"step {step.index} of {execution.work.steps}"
            self._show(job, EventType.PROGRESS)
        execution.position += 1
        self._schedule(execution)

    def _finish(self, execution: Execution, at_s: float) -> None:
        job, failure = execution.job, execution.failure
        self._end(execution)
        if job.newest is execution:
            job.error = failure
            if failure is None:
                job.progress, job.result = 1.0, self._result(execution)
                terminal_seq = self._close(job, RunState.COMPLETED, EventType.COMPLETED, "completed")
            else:
                terminal_seq = self._close(job, RunState.FAILED, EventType.FAILED, failure.message)
            job.muted_seq = terminal_seq if execution.lost else 0
            job.readable_s = at_s + self.dice.plan.late_record_s if execution.late_record else at_s
        self.note(
            at_s,
            JournalEvent.FINISHED if failure is None else JournalEvent.FAILED,
            job,
            execution.caller,
            execution=execution.number,
            detail="" if failure is None else str(failure.kind),
        )
        self._fill_slots(at_s)

    def _result(self, execution: Execution) -> Any:
        if execution.empty_output:
            return None
        result = {
            "echo": execution.work.result,
            "instance": self.config.instance,
            "execution": execution.number,
        }
        if execution.oversize:
            # One string is shared by all oversize results: they cost memory once, not per job.
            if len(self._padding) != self.dice.plan.oversize_bytes:
                self._padding = "x" * self.dice.plan.oversize_bytes
            result["padding"] = self._padding
        return result

    def _end(self, execution: Execution) -> None:
        """Take an execution out of its slot or out of the line."""
        execution.alive = False
        execution.job.live.remove(execution)
        if execution in self._running:
            self._running.discard(execution)
        else:
            self._waiting.remove(execution)

    def _show(self, job: Job, kind: EventType, *, data: Any = None) -> int:
        self._touched.add(job.id)
        return job.add(kind, data=data).seq

    def _close(self, job: Job, state: RunState, kind: EventType, message: str) -> int:
        """Put a job into a terminal state; returns the number of its terminal event."""
        job.state, job.message = state, message
        self._ended.append(job)
        while len(self._ended) > self.config.jobs_kept_max:
            oldest = self._ended.popleft()
            if oldest.ended and self.jobs.get(oldest.id) is oldest and oldest is not job:
                del self.jobs[oldest.id]
        return self._show(job, kind)

    def forget_all(self, at_s: float) -> int:
        """Drop all jobs and all work; returns how many jobs were known."""
        self.restarts += 1
        forgotten = list(self.jobs.values())
        for job in forgotten:
            job.forgotten = True
            for execution in job.live:
                execution.alive = False
            self.note(at_s, JournalEvent.FORGOTTEN, job, Caller(), detail=str(job.state))
        self._touched.update(self.jobs)
        self.jobs.clear()
        self._running.clear()
        self._waiting.clear()
        self._ended.clear()
        self._due.clear()
        return len(forgotten)

    def note(
        self,
        at_s: float,
        event: JournalEvent,
        job: Job,
        caller: Caller,
        *,
        execution: int = 0,
        detail: str = "",
    ) -> None:
        """Enter an event of a job into the journal."""
        self.journal.add(self.elapsed_s(at_s), event, job.id, caller, execution=execution, detail=detail)
