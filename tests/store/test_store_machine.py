"""The proof of the store: any sequence of operations, replays included, does what the model says."""

from __future__ import annotations

from typing import ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from gateway.models import (
    JobId,
    ParentPolicy,
    ProgressKind,
    ProgressNote,
    Settlement,
    SettlementKind,
    Submission,
)
from tests.store.bench import Backend, Bench
from tests.store.walk import (
    CLASS_IDS,
    DEADLINES_S,
    DELAYS_S,
    JOB_IDS,
    LIMITS,
    PERIODS_S,
    PROGRESS_VALUES,
    SCHEDULES,
    STEPS_US,
    UNIQUE_KEY,
    WISHES,
    Wants,
    claim_request,
    lease_ref,
    note,
    schedule,
    settlement,
    submission,
)

#: Leases are counted from the newest, so that a shrunk example speaks of the latest one.
LEASES = st.integers(0, 12)
SUBMISSIONS = st.builds(
    submission,
    st.integers(0, len(JOB_IDS) - 1),
    st.integers(0, len(WISHES) - 1),
    st.sampled_from([50, 0, 100]),
    st.sampled_from(["", "k0", "k1"]),
    st.sampled_from(DELAYS_S),
    st.integers(1, 3),
    st.just(Wants())
    | st.builds(
        Wants,
        expires_in_s=st.sampled_from([0.0, *DEADLINES_S]),
        expires_at_s=st.sampled_from([0.0, 0.0, *DEADLINES_S]),
        unique_key=st.sampled_from(["", UNIQUE_KEY]),
        unique_for_s=st.sampled_from([0.0, 20.0]),
        after=st.lists(st.integers(0, len(JOB_IDS) - 1), max_size=2, unique=True).map(tuple),
        policy=st.sampled_from(ParentPolicy),
    ),
)
NAMES = st.sampled_from(SCHEDULES)
PERIODS = st.sampled_from(PERIODS_S)
JOBS = st.lists(st.sampled_from(JOB_IDS), min_size=1, max_size=3, unique=True)
WISH_LISTS = st.lists(st.integers(0, len(WISHES) - 1), min_size=1, unique=True)


class StoreMachine(RuleBasedStateMachine):
    """Rules are the operations; every one of them compares store, model and auditor before it returns."""

    backends: ClassVar[tuple[Backend, ...]]

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(*self.backends)
        self.requests = 0

    def teardown(self) -> None:
        self.bench.close()

    def _has_leases(self) -> bool:
        return bool(self.bench.leases)

    @initialize(items=st.lists(SUBMISSIONS, min_size=1, max_size=3))
    def first_jobs(self, items: list[Submission]) -> None:
        self.bench.submit(items)

    @rule(items=st.lists(SUBMISSIONS, min_size=1, max_size=3))
    def submit(self, items: list[Submission]) -> None:
        self.bench.submit(items)

    @rule(
        workers=st.lists(st.integers(0, 2), min_size=1, max_size=2, unique=True),
        count=st.integers(1, 3),
        wishes=WISH_LISTS,
    )
    def claim(self, workers: list[int], count: int, wishes: list[int]) -> None:
        requests = []
        for worker in workers:
            self.requests += 1
            requests.append(claim_request(self.requests, worker, count, wishes))
        self.bench.claim(requests)

    @precondition(_has_leases)
    @rule(leases=st.lists(LEASES, min_size=1, max_size=3))
    def renew(self, leases: list[int]) -> None:
        self.bench.renew([lease_ref(self.bench, lease) for lease in leases])

    @precondition(_has_leases)
    @rule(leases=st.lists(LEASES, min_size=1, max_size=3), name=st.sampled_from(["s1", "s2"]))
    def attach(self, leases: list[int], name: str) -> None:
        self.bench.attach([(lease_ref(self.bench, lease), name) for lease in leases])

    @precondition(_has_leases)
    @rule(
        notes=st.lists(
            st.tuples(
                LEASES, st.integers(1, 4), st.sampled_from(PROGRESS_VALUES), st.sampled_from(ProgressKind)
            ),
            min_size=1,
            max_size=3,
        )
    )
    def progress(self, notes: list[tuple[int, int, float, ProgressKind]]) -> None:
        built: list[ProgressNote] = [note(self.bench, *values) for values in notes]
        self.bench.progress(built)

    @precondition(_has_leases)
    @rule(
        items=st.lists(
            st.tuples(
                LEASES,
                st.sampled_from(SettlementKind),
                st.sampled_from(DELAYS_S),
                st.sampled_from([0.0, 3.0]),
                st.booleans(),
            ),
            min_size=1,
            max_size=3,
        )
    )
    def settle(self, items: list[tuple[int, SettlementKind, float, float, bool]]) -> None:
        built: list[Settlement] = [
            settlement(self.bench, lease, kind, delay_s, avoid_s, final=final)
            for lease, kind, delay_s, avoid_s, final in items
        ]
        self.bench.settle(built)

    @rule(classes=st.just(CLASS_IDS) | st.lists(st.sampled_from(CLASS_IDS), unique=True))
    def sweep(self, classes: list[str]) -> None:
        self.bench.sweep(classes)

    @rule(jobs=JOBS)
    def cancel(self, jobs: list[JobId]) -> None:
        self.bench.cancel(jobs)

    @rule(jobs=JOBS)
    def requeue(self, jobs: list[JobId]) -> None:
        self.bench.requeue(jobs)

    @rule()
    def pause(self) -> None:
        self.bench.pause()

    @rule()
    def resume(self) -> None:
        self.bench.resume()

    @rule(us=st.sampled_from(STEPS_US))
    def advance(self, us: int) -> None:
        self.bench.advance(us)

    @rule(back=st.integers(0, 20))
    def replay(self, back: int) -> None:
        self.bench.replay(len(self.bench.history) - 1 - back)

    @rule(name=st.integers(0, len(SCHEDULES) - 1), due_in_s=PERIODS, replace=st.booleans())
    def put_schedule(self, name: int, due_in_s: float, replace: bool) -> None:
        self.bench.put_schedule(schedule(name), due_in_s, replace=replace)

    @rule(name=NAMES)
    def remove_schedule(self, name: str) -> None:
        self.bench.remove_schedules([name])

    @rule(name=NAMES)
    def pause_schedule(self, name: str) -> None:
        self.bench.pause_schedules([name])

    @rule(name=NAMES, due_in_s=PERIODS, stale=st.booleans())
    def resume_schedule(self, name: str, due_in_s: float, stale: bool) -> None:
        self.bench.resume_schedules([name], due_in_s, stale=stale)

    @rule(name=NAMES, next_in_s=PERIODS)
    def skip_instant(self, name: str, next_in_s: float) -> None:
        self.bench.skip_instant(name, next_in_s)

    @rule(name=NAMES, item=SUBMISSIONS, next_in_s=PERIODS, stale=st.booleans())
    def fire(self, name: str, item: Submission, next_in_s: float, stale: bool) -> None:
        self.bench.fire(name, item, next_in_s, stale=stale)

    @rule(limit=st.sampled_from(LIMITS), remove=st.booleans(), only_new=st.booleans())
    def limit(self, limit: tuple[str, str], remove: bool, only_new: bool) -> None:
        self.bench.limit([(limit[0], "") if remove else limit], only_new=only_new)

    @rule()
    def forget_claims(self) -> None:
        self.bench.forget_claims()

    @rule()
    def look(self) -> None:
        self.bench.look()


def _run(examples: int, steps: int, *backends_used: Backend) -> None:
    class BoundMachine(StoreMachine):
        backends = backends_used

    run_state_machine_as_test(
        BoundMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.limit_s(300)
def test_the_store_follows_its_model_on_the_simulated_redis(fake_backend: Backend) -> None:
    """Verdicts, contents, conservation and events hold for any sequence of operations."""
    _run(200, 40, fake_backend)


@pytest.mark.limit_s(300)
def test_the_store_follows_its_model_on_a_real_redis(real_backend: Backend) -> None:
    """The same on a real Redis."""
    _run(60, 40, real_backend)


def test_both_redis_agree_step_by_step(fake_backend: Backend, real_backend: Backend) -> None:
    """The simulated Redis answers and holds what the real one does, byte for byte in every reply."""
    _run(20, 30, fake_backend, real_backend)
