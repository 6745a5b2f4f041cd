"""The simulated service as a state machine: what it promises, whatever is asked of it in whatever order."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.connectors.simulation import wire
from gateway.connectors.simulation.wire import JournalEvent, RunState
from simulator.behaviour import SimulatedService
from simulator.cursor import EventCursor, StreamAct
from simulator.faults import RATE_NAMES, FaultPlan
from simulator.model import Caller, Delivery, Reply, ServiceConfig

NOBODY = Caller()
QUIET = FaultPlan.none()


def service(plan: FaultPlan = QUIET, *, seed: int = 0, **config: Any) -> SimulatedService:
    return SimulatedService(
        ServiceConfig(instance="sim-a", **config), plan, lambda knob: Random(f"{seed}/{knob}")
    )


def submit(
    sim: SimulatedService, now_s: float, job_id: str = "j", payload: Any = None, caller: Caller = NOBODY
) -> Reply:
    return sim.submit(now_s, wire.SubmitRequest(id=job_id, payload=payload), caller)


def status(sim: SimulatedService, now_s: float, job_id: str = "j") -> wire.JobStatus:
    body = sim.status(now_s, job_id, NOBODY).body
    assert isinstance(body, wire.JobStatus)
    return body


def listen(sim: SimulatedService, now_s: float, job_id: str = "j", after: int = 0) -> EventCursor:
    cursor = sim.listen(now_s, job_id, after, NOBODY)
    assert isinstance(cursor, EventCursor)
    return cursor


def lines(cursor: EventCursor, at_s: float = 99.0) -> tuple[list[wire.StreamEvent], StreamAct | None]:
    """The events of a stream so far, and the act that ended it."""
    steps = cursor.pull(at_s)
    events = [wire.decode_event(step.data) for step in steps if step.act is StreamAct.LINE]
    return events, steps[-1].act if steps and steps[-1].act is not StreamAct.LINE else None


def journal(sim: SimulatedService) -> list[str]:
    return [str(entry.event) for entry in sim.journal.page().entries]


def test_a_job_runs_through_its_steps_and_completes_at_its_moment() -> None:
    """Progress and result appear exactly when they are due, however late anybody looks."""
    sim = service()
    payload = {"duration_s": 4, "steps": 4, "chunks": 1, "result": {"a": 1}, "unknown": "ignored"}
    reply = submit(sim, 10.0, payload=payload)
    assert reply.status == 202
    assert reply.body == wire.SubmitReply(id="j", state=RunState.RUNNING, instance="sim-a")
    assert sim.next_due_s() == 11.0
    assert status(sim, 12.5).progress == 0.5
    assert status(sim, 14.0) == wire.JobStatus(
        id="j",
        state=RunState.COMPLETED,
        instance="sim-a",
        progress=1.0,
        message="completed",
        result={"echo": {"a": 1}, "instance": "sim-a", "execution": 1},
        executions=1,
    )
    events, act = lines(listen(sim, 15.0))
    assert act is StreamAct.END
    assert [event.seq for event in events] == list(range(1, 7))
    assert [event.type for event in events] == ["progress"] * 3 + ["chunk", "progress", "completed"]
    entries = sim.journal.page().entries
    assert [(entry.event, entry.at_s) for entry in entries] == [
        ("submitted", 10),
        ("started", 10),
        ("finished", 14),
    ]


def test_a_stream_is_resumable_by_number() -> None:
    """A listener that comes back gets exactly what it missed."""
    sim = service()
    submit(sim, 0.0, payload={"duration_s": 4})
    first, act = lines(listen(sim, 2.0))
    assert act is None
    rest, act = lines(listen(sim, 4.0, after=first[-1].seq))
    assert [event.seq for event in first + rest] == [1, 2, 3, 4, 5]
    assert act is StreamAct.END
    assert lines(listen(sim, 4.0, after=99)) == ([], None)


def test_capacity_is_kept_and_the_line_is_first_in_first_out() -> None:
    """No more than ``slots`` jobs run at once; each waiting one starts the moment a slot is free."""
    sim = service(slots=2, duration_s=1.0, queue_max=2)
    for number in range(4):
        assert submit(sim, 0.0, f"j{number}").status == 202
    assert submit(sim, 0.0, "too many").status == 503
    assert [status(sim, 0.5, f"j{n}").state for n in range(4)] == ["running", "running", "queued", "queued"]
    sim.advance(9.0)
    started = [(e.id, e.at_s) for e in sim.journal.page().entries if e.event is JournalEvent.STARTED]
    assert started == [("j0", 0), ("j1", 0), ("j2", 1), ("j3", 1)]


def test_a_repeat_is_deduplicated_while_alive_or_completed_and_retries_after_failure() -> None:
    """With dedupe on, our id runs once, unless the run before has failed or was cancelled."""
    sim = service(duration_s=1.0)
    payload = {"fail": {"kind": "service_error", "message": "no luck", "times": 1}}
    submit(sim, 0.0, payload=payload)
    again = submit(sim, 0.1, payload=payload)
    assert again.body == wire.SubmitReply(id="j", state=RunState.RUNNING, instance="sim-a", deduplicated=True)
    failed = status(sim, 1.0)
    assert failed.state is RunState.FAILED
    assert failed.error == wire.ServiceFailure(kind=wire.ErrorKind.SERVICE_ERROR, message="no luck")
    submit(sim, 1.0, payload=payload)
    assert lines(listen(sim, 1.0))[0][0].seq > 3
    assert status(sim, 2.0).executions == 2
    assert status(sim, 2.0).state is RunState.COMPLETED
    assert submit(sim, 3.0, payload=payload).body == wire.SubmitReply(
        id="j", state=RunState.COMPLETED, instance="sim-a", deduplicated=True
    )
    summary = sim.journal.summary()
    assert (summary.executions_by_job, summary.completed, summary.duplicates) == ({"j": 2}, 1, 0)


def test_without_dedupe_every_repeat_does_the_work_again() -> None:
    """The journal counts double work that the job itself no longer shows."""
    sim = service(QUIET.updated({"dedupe": False}), duration_s=1.0)
    submit(sim, 0.0)
    submit(sim, 0.5)
    assert status(sim, 1.2).state is RunState.RUNNING
    assert status(sim, 1.5).result["execution"] == 2
    assert sim.journal.summary().duplicates == 1


def test_cancel_stops_the_work_and_frees_the_slot() -> None:
    """A cancelled job does nothing any more, waiting or running; a repeat of the cancel changes nothing."""
    sim = service(slots=1, duration_s=1.0)
    for job_id in ("a", "b", "c"):
        submit(sim, 0.0, job_id)
    for job_id in ("b", "a", "a"):
        assert sim.cancel(0.5, job_id, NOBODY).body == wire.CancelReply(id=job_id, state=RunState.CANCELLED)
    assert sim.cancel(0.5, "unknown", NOBODY).status == 404
    sim.advance(9.0)
    finished = [(e.id, e.at_s) for e in sim.journal.page().entries if e.event is JournalEvent.FINISHED]
    assert finished == [("c", 1.5)]
    assert sim.journal.summary().executions_by_job == {"a": 1, "c": 1}
    assert lines(listen(sim, 9.0, "a"))[0][-1].type is wire.EventType.CANCELLED


def test_an_ignored_cancel_is_acknowledged_and_the_job_completes() -> None:
    """The origin's bug: the answer says cancelled, the work goes on."""
    sim = service(QUIET.updated({"cancel_ignored_rate": 1.0}), duration_s=1.0)
    submit(sim, 0.0)
    assert sim.cancel(0.5, "j", NOBODY).body == wire.CancelReply(id="j", state=RunState.CANCELLED)
    assert status(sim, 0.6).state is RunState.RUNNING
    assert status(sim, 1.0).state is RunState.COMPLETED


def test_a_restart_forgets_jobs_but_not_the_journal() -> None:
    """After a restart, planned or asked for, jobs are unknown, listeners are cut, and counts go on."""
    sim = service(QUIET.updated({"restart_forgets_at_s": [0.25]}), slots=1, duration_s=1.0)
    submit(sim, 0.0, "a")
    submit(sim, 0.0, "b")
    cursor = listen(sim, 0.1, "a")
    assert sim.next_due_s() == 0.25
    assert sim.status(0.3, "a", NOBODY).status == 404
    assert lines(cursor)[1] is StreamAct.CUT
    submit(sim, 0.5, "a")
    assert status(sim, 0.6, "a").executions == 2
    assert sim.restart(0.7).jobs == 1
    sim.advance(99.0)
    summary = sim.journal.summary()
    assert (summary.completed, summary.executions_by_job) == (0, {"a": 2})
    assert journal(sim).count("forgotten") == 3


def test_a_pause_moves_everything_that_was_due() -> None:
    """Work stands still while paused and takes as long as ever in all."""
    sim = service(duration_s=4.0)
    submit(sim, 0.0)
    sim.pause(1.5)
    sim.pause(5.0)
    assert sim.next_due_s() is None
    sim.advance(100.0)
    sim.resume(101.5)
    assert status(sim, 101.9).progress == 0.25
    assert status(sim, 103.9).state is RunState.RUNNING
    assert status(sim, 104.0).state is RunState.COMPLETED


def test_work_that_comes_during_a_pause_waits_for_its_own_share_of_it() -> None:
    """A job submitted while everything stands still takes its whole duration after the pause, no more."""
    sim = service(duration_s=4.0)
    sim.pause(10.0)
    submit(sim, 15.0)
    sim.resume(20.0)
    assert status(sim, 23.9).state is RunState.RUNNING
    assert status(sim, 24.0).state is RunState.COMPLETED


@pytest.mark.parametrize(
    ("caller", "misrouted"),
    [
        (Caller(), 0),
        (Caller(instance="sim-a"), 0),
        (Caller(instance="sim-b"), 1),
        (Caller(endpoint="http://127.0.0.1:8299"), 0),
        (Caller(endpoint="http://localhost:8299/"), 0),
        (Caller(endpoint="127.0.0.1:8299"), 0),
        (Caller(endpoint="http://127.0.0.1:8300"), 1),
        (Caller(endpoint="http://10.0.0.1:8299"), 1),
        (Caller(endpoint="http://127.0.0.1"), 1),
        (Caller(endpoint="http://127.0.0.1:port"), 1),
    ],
)
def test_a_call_meant_for_another_instance_is_journalled_as_misrouted(caller: Caller, misrouted: int) -> None:
    """Wrong routing is never silent: the journal says whom the caller meant."""
    sim = service()
    sim.listening_on("127.0.0.1", 8299)
    assert submit(sim, 0.0, caller=caller).status == 202
    assert sim.journal.summary().misrouted == misrouted
    if misrouted:
        assert sim.journal.page().entries[0].detail in (caller.instance, caller.endpoint)


@pytest.mark.parametrize(
    ("job_id", "payload"),
    [
        ("", {}),
        ("x" * 201, {}),
        ("j", []),
        ("j", {"steps": 0}),
        ("j", {"steps": 10_001}),
        ("j", {"chunks": -1}),
        ("j", {"duration_s": -1}),
        ("j", {"duration_s": "1"}),
        ("j", {"duration_s": 1e99}),
        ("j", {"fail": {"kind": "bored"}}),
    ],
)
def test_a_malformed_submit_is_refused_and_runs_nothing(job_id: str, payload: Any) -> None:
    """What the service does not understand is 400, with nothing accepted."""
    sim = service()
    reply = submit(sim, 0.0, job_id, payload)
    assert reply.status == 400
    assert isinstance(reply.body, wire.ErrorReply)
    assert reply.body.error.kind is wire.ErrorKind.VALIDATION
    assert journal(sim) == []


def test_ended_jobs_and_journal_entries_are_bounded_while_counts_are_not() -> None:
    """A soak run keeps only the newest jobs and entries, and still knows how many there were."""
    sim = service(duration_s=0.0, jobs_kept_max=2, journal_entries_max=4)
    for number in range(5):
        submit(sim, float(number), f"j{number}")
    assert [sim.status(9.0, f"j{n}", NOBODY).status for n in range(5)] == [404, 404, 404, 200, 200]
    page = sim.journal.page(after=0, limit=3)
    assert [entry.seq for entry in page.entries] == [12, 13, 14]
    assert [entry.seq for entry in sim.journal.page(after=14).entries] == [15]
    assert (page.summary.completed, page.summary.last_seq, page.summary.dropped) == (5, 15, 11)


def test_stream_faults_are_seen_in_the_lines() -> None:
    """Each line fault leaves its mark, and the true events are all still there."""

    def story(knob: str) -> tuple[list[bytes], StreamAct]:
        sim = service(QUIET.updated({knob: 1.0}), duration_s=1.0)
        submit(sim, 0.0)
        steps = listen(sim, 1.0).pull(1.0)
        return [step.data for step in steps if step.act is StreamAct.LINE], steps[-1].act

    def seqs(knob: str) -> list[int]:
        return [wire.decode_event(line).seq for line in story(knob)[0]]

    assert seqs("slow_rate") == [1]
    assert seqs("duplicate_event_rate") == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert seqs("out_of_order_rate") == [2, 1, 4, 3, 5]
    assert seqs("event_after_terminal_rate") == [1, 2, 3, 4, 5, 6]
    garbled, act = story("garbage_rate")
    assert len(garbled) == 10
    assert act is StreamAct.END
    for line in garbled[::2]:
        with pytest.raises(wire.WireFormatError):
            wire.decode_event(line)
    for knob, expected in (("disconnect_rate", StreamAct.CUT), ("half_open_rate", StreamAct.SILENCE)):
        shown, act = story(knob)
        assert len(shown) <= 2
        assert act is expected
    shown, act = story("lost_completion_rate")
    assert [wire.decode_event(line).type for line in shown] == ["progress"] * 4
    assert act is StreamAct.SILENCE


OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["submit", "submit", "status", "cancel", "listen", "restart", "pause", "resume", "faults"]
        ),
        st.sampled_from(["a", "b", "c"]),
        st.floats(min_value=0.0, max_value=2.0, allow_nan=False),
        st.sampled_from(
            [
                None,
                {"duration_s": 0},
                {"steps": 3, "chunks": 2},
                {"fail": {"kind": "refused", "times": 1}},
                {"duration_s": 9},
            ]
        ),
    ),
    max_size=40,
)
PLANS = st.fixed_dictionaries(
    {"dedupe": st.booleans()}, optional={name: st.sampled_from([0.0, 0.3, 1.0]) for name in RATE_NAMES}
)


def perform(sim: SimulatedService, operations: list[tuple[str, str, float, Any]]) -> list[Any]:
    """Do the operations in turn; everything that was answered, shown or forgotten."""
    now_s = 0.0
    seen: list[Any] = []
    cursors: list[EventCursor] = []
    for verb, job_id, wait_s, payload in operations:
        now_s += wait_s
        if verb == "submit":
            seen.append(submit(sim, now_s, job_id, payload))
        elif verb == "status":
            seen.append(sim.status(now_s, job_id, NOBODY))
        elif verb == "cancel":
            seen.append(sim.cancel(now_s, job_id, NOBODY))
        elif verb == "listen":
            cursor = sim.listen(now_s, job_id, 0, NOBODY)
            cursors += [cursor] if isinstance(cursor, EventCursor) else []
        elif verb == "faults":
            sim.set_faults(now_s, {"slow_rate": round(wait_s / 2, 1), "restart_forgets_at_s": [now_s + 1]})
        else:
            seen.append(getattr(sim, verb)(now_s))
        seen.append([cursor.pull(now_s) for cursor in cursors])
        seen.append((sim.next_due_s(), sim.drain_touched()))
    sim.resume(now_s)
    sim.advance(now_s + 1e6)
    return [*seen, sim.journal.page(limit=10_000)]


@settings(max_examples=150)
@given(operations=OPERATIONS, knobs=PLANS, slots=st.integers(1, 3), seed=st.integers(0, 3))
def test_whatever_is_asked_the_books_balance(
    operations: list[tuple[str, str, float, Any]], knobs: dict[str, Any], slots: int, seed: int
) -> None:
    """Executions are started entries, each ends at most once, slots hold, a seed repeats its story."""
    plan = QUIET.updated({**knobs, "restart_forgets_at_s": [3.0], "oversize_bytes": 10})
    first, second = (service(plan, seed=seed, slots=slots, duration_s=0.5) for _ in range(2))
    assert perform(first, operations) == perform(second, operations)
    entries = first.journal.page(limit=10_000).entries
    assert [entry.seq for entry in entries] == list(range(1, len(entries) + 1))
    assert [entry.at_s for entry in entries] == sorted(entry.at_s for entry in entries)
    running: set[tuple[str, int]] = set()
    counted: dict[str, int] = {}
    for entry in entries:
        run = (entry.id, entry.execution)
        if entry.event is JournalEvent.STARTED:
            counted[entry.id] = counted.get(entry.id, 0) + 1
            assert entry.execution == counted[entry.id]
            running.add(run)
        elif entry.event in (JournalEvent.FINISHED, JournalEvent.FAILED):
            running.remove(run)
        elif entry.event in (JournalEvent.CANCELLED, JournalEvent.FORGOTTEN):
            running = {other for other in running if other[0] != entry.id}
        assert len(running) <= slots
    assert running == set()
    assert first.journal.summary().executions_by_job == counted
    first.set_faults(2e6, dict.fromkeys(RATE_NAMES, 0.0))
    for job_id, count in counted.items():
        body = first.status(2e6, job_id, NOBODY).body
        if isinstance(body, wire.JobStatus):
            assert body.executions == count
            assert body.state in wire.TERMINAL_RUN_STATES


@settings(max_examples=100)
@given(operations=OPERATIONS, later_s=st.floats(0.0, 100.0))
def test_a_terminal_state_absorbs(operations: list[tuple[str, str, float, Any]], later_s: float) -> None:
    """With dedupe on and no new submit, nothing moves a job out of a terminal state."""
    sim = service(duration_s=0.5)
    perform(sim, [step for step in operations if step[0] not in ("restart", "faults")])
    ended = {job_id: sim.status(1e7, job_id, NOBODY).body for job_id in "abc"}
    for job_id in "abc":
        sim.cancel(1e7, job_id, NOBODY)
        if isinstance(body := ended[job_id], wire.JobStatus) and body.state is RunState.COMPLETED:
            submit(sim, 1e7, job_id)
    assert {job_id: sim.status(1e7 + later_s, job_id, NOBODY).body for job_id in "abc"} == ended


def test_request_faults_do_nothing_before_they_strike() -> None:
    """A request that is refused, limited or hung by a fault leaves no trace but its answer."""
    expected = {
        "hang_rate": (503, Delivery.HANG),
        "unavailable_rate": (503, Delivery.NORMAL),
        "error_5xx_rate": (500, Delivery.NORMAL),
        "error_4xx_rate": (400, Delivery.NORMAL),
        "rate_limit_rate": (429, Delivery.NORMAL),
    }
    for knob, (code, delivery) in expected.items():
        sim = service(QUIET.updated({knob: 1.0, "retry_after_s": 7}))
        reply = submit(sim, 0.0)
        assert (reply.status, reply.delivery) == (code, delivery)
        assert journal(sim) == []
        assert reply.retry_after_s == (7 if knob in ("unavailable_rate", "rate_limit_rate") else None)
