"""A random walk over the store's operations from one seed: the same operations as in the state machine."""

from __future__ import annotations

import random as random_module
from collections.abc import Callable
from dataclasses import dataclass

from gateway.matching import class_of
from gateway.models import (
    ClaimRequest,
    JobId,
    JobSpec,
    LeaseRef,
    ParentPolicy,
    ProgressKind,
    ProgressNote,
    Settlement,
    SettlementKind,
    Submission,
    WorkerId,
)
from gateway.schedules import Schedule
from tests.store.bench import START_US, Bench

#: One class more than the bench's limit allows.
#: One service for two tenants, one tenant in two services.
WISHES: list[tuple[str, dict[str, object], str]] = [
    ("image", {}, ""),
    ("image", {"vram_gb": {">=": 24}}, "acme"),
    ("text", {}, "acme"),
    ("audio", {}, "zeta"),
]
CLASS_IDS = [class_of(*wish)[0].class_id for wish in WISHES]
JOB_IDS = [JobId(f"j{i}") for i in range(9)]
WORKER_IDS = [WorkerId(f"w{i}") for i in range(3)]
#: A tick, a moment, half a lease, just beyond a lease, the two retention times.
STEPS_US = [1, 1_000, 5_000_000, 10_001_000, 60_000_000, 120_000_000]
DELAYS_S = [0.0, 0.0, 2.0]
#: Limits to set: running jobs, rates with and without a burst, the default of all tenants.
LIMITS = [
    ("service image", "2 0 1"),
    ("tenant acme", "1 0 1"),
    ("tenant acme", "-1 4000000 2"),
    ("tenant *", "2 3000000 1"),
    ("tenant *", "0 0 1"),
    ("service text", "-1 2500 3"),
    ("aging_ms", "50"),
    ("aging_ms", "9000000000"),
]
DEADLINES_S = [1.0, 5.0, 15.0, 100.0]
#: One only, so that jobs meet; with the mark that ends the time in a record.
UNIQUE_KEY = "u:0"
#: One more than the bench's limit allows.
SCHEDULES = ["nightly", "hourly"]
#: An instant is always later than those before.
PERIODS_S = [0.001, 2.0]
PROGRESS_VALUES = [0.0, 0.005, 0.3, 1.0]


@dataclass(frozen=True, slots=True)
class Wants:
    """What a plain job has none of; parents are numbers of jobs."""

    expires_in_s: float = 0.0
    expires_at_s: float = 0.0
    unique_key: str = ""
    unique_for_s: float = 0.0
    after: tuple[int, ...] = ()
    policy: ParentPolicy = ParentPolicy.CANCEL


def submission(
    job: int, wish: int, priority: int, key: str, delay_s: float, max_attempts: int, wants: Wants = Wants()
) -> Submission:
    service, requires, tenant = WISHES[wish]
    spec = JobSpec(
        service=service,
        requires=requires,
        tenant=tenant,
        priority=priority,
        max_attempts=max_attempts,
        payload={"n": job},
        after=tuple(JOB_IDS[parent] for parent in wants.after),
        on_parent_failure=wants.policy,
    )
    return Submission(
        job_id=JOB_IDS[job],
        spec=spec,
        idempotency_key=key,
        delay_s=delay_s,
        expires_in_s=wants.expires_in_s,
        expires_at_ms=START_US // 1000 + round(wants.expires_at_s * 1000) if wants.expires_at_s else 0,
        unique_key=wants.unique_key,
        unique_for_s=wants.unique_for_s,
    )


def schedule(name: int) -> Schedule:
    return Schedule(name=SCHEDULES[name], cron="* * * * *", spec=JobSpec(service="image"))


def claim_request(number: int, worker: int, count: int, wishes: list[int]) -> ClaimRequest:
    return ClaimRequest(
        request_id=f"r{number}",
        worker_id=WORKER_IDS[worker],
        count=count,
        slots=99,
        class_ids=tuple(CLASS_IDS[wish] for wish in wishes),
    )


def lease_ref(bench: Bench, lease: int) -> LeaseRef:
    """Any lease ever granted, counted from the newest."""
    return bench.leases[-1 - lease % len(bench.leases)][0]


def settlement(
    bench: Bench, lease: int, kind: SettlementKind, delay_s: float, avoid_s: float, *, final: bool
) -> Settlement:
    found, class_id, _ = bench.leases[-1 - lease % len(bench.leases)]
    return Settlement(
        job_id=found.job_id,
        epoch=found.epoch,
        class_id=class_id,
        kind=kind,
        body="" if kind is SettlementKind.CANCELLED else f'{{"by":{found.epoch}}}',
        detail='{"why":"walk"}',
        delay_s=delay_s,
        avoid_s=avoid_s,
        final=final,
    )


def note(bench: Bench, lease: int, number: int, value: float, kind: ProgressKind) -> ProgressNote:
    found = lease_ref(bench, lease)
    return ProgressNote(
        job_id=found.job_id, epoch=found.epoch, number=number, kind=kind, value=value, body='{"m":1}'
    )


class Walk:
    """Drives one bench with operations drawn from a seeded source.

    Args:
        eager: more of the jobs have deadlines, unique keys and parents, less happens to leases.
    """

    def __init__(self, bench: Bench, seed: int, *, eager: bool = False) -> None:
        self.bench = bench
        self.eager = eager
        self.random = random_module.Random(seed)
        self.requests = 0
        self._operations: list[tuple[Callable[[], None], int]] = [
            (self.submit, 8),
            (self.claim, 9),
            (self.renew, 1 if eager else 3),
            (self.attach, 1 if eager else 3),
            (self.progress, 1 if eager else 3),
            (self.settle, 9),
            (self.sweep, 5),
            (self.cancel, 3),
            (self.requeue, 4 if eager else 2),
            (self.pause_or_resume, 1),
            (self.advance, 5),
            (self.replay, 6),
            (self.forget, 1),
            (self.schedule, 4),
            (self.fire, 3),
            (self.limit, 2),
        ]

    def run(self, steps: int) -> None:
        operations = [operation for operation, _ in self._operations]
        weights = [weight for _, weight in self._operations]
        for operation in self.random.choices(operations, weights, k=steps):
            operation()

    def _few(self, count_max: int = 3) -> range:
        return range(self.random.randint(1, count_max))

    def _lease(self) -> int:
        """Mostly the newest leases, sometimes any old one."""
        return self.random.randrange(4) if self.random.random() < 0.7 else self.random.randrange(1000)

    def submit(self) -> None:
        draw = self.random
        self.bench.submit(
            [
                submission(
                    self._job(),
                    draw.randrange(len(WISHES)),
                    draw.choice([0, 50, 100]),
                    draw.choice(["", "", "k0", "k1"]),
                    draw.choice(DELAYS_S),
                    draw.randint(1, 3),
                    self._wants(),
                )
                for _ in self._few()
            ]
        )

    def _wants(self) -> Wants:
        """Now and then a deadline, a unique key, parents: alone or together."""
        draw = self.random
        deadline_s = draw.choice(DEADLINES_S) if draw.random() < (0.4 if self.eager else 0.15) else 0.0
        absolute = draw.random() < 0.3
        unique = draw.random() < (0.6 if self.eager else 0.2)
        parents = self._parents() if draw.random() < (0.7 if self.eager else 0.35) else ()
        return Wants(
            expires_in_s=0.0 if absolute else deadline_s,
            expires_at_s=deadline_s if absolute else 0.0,
            unique_key=UNIQUE_KEY if unique else "",
            unique_for_s=draw.choice([0.0, 0.0, 20.0]) if unique else 0.0,
            after=parents,
            policy=draw.choice(list(ParentPolicy)),
        )

    def _parents(self) -> tuple[int, ...]:
        """Mostly jobs that have not ended, the eldest first, so that one of them gets many children."""
        draw, jobs = self.random, self.bench.model.jobs
        unended = [JOB_IDS.index(job_id) for job_id, job in jobs.items() if job.forget_ms is None][:2]
        if unended and draw.random() < 0.8:
            return tuple(draw.sample(unended, draw.randint(1, len(unended))))
        return tuple(draw.sample(range(len(JOB_IDS)), draw.randint(1, 2)))

    def _job(self) -> int:
        """A job's number, new to the store in half of the cases."""
        new = [number for number, job_id in enumerate(JOB_IDS) if job_id not in self.bench.model.jobs]
        return self.random.choice(new if new and self.random.random() < 0.5 else range(len(JOB_IDS)))

    def schedule(self) -> None:
        draw = self.random
        name, other = draw.sample(range(len(SCHEDULES)), 2)
        match draw.randrange(8):
            case 0 | 1:
                self.bench.put_schedule(schedule(name), draw.choice(PERIODS_S), replace=draw.random() < 0.7)
            case 2:
                self.bench.remove_schedules([SCHEDULES[name]])
            case 3:
                self.bench.pause_schedules([SCHEDULES[name], SCHEDULES[other]])
            case 4 | 5 | 6:
                stale = draw.random() < 0.2
                self.bench.resume_schedules([SCHEDULES[name]], draw.choice(PERIODS_S), stale=stale)
            case _:
                self.bench.skip_instant(SCHEDULES[name], draw.choice(PERIODS_S))

    def fire(self) -> None:
        draw = self.random
        job = submission(self._job(), 0, 50, "", 0.0, 1, self._wants())
        self.bench.fire(draw.choice(SCHEDULES), job, draw.choice([2.0, 60.0]), stale=draw.random() < 0.2)

    def claim(self) -> None:
        draw = self.random
        requests = []
        for worker in draw.sample(range(3), draw.randint(1, 2)):
            self.requests += 1
            wishes = draw.sample(range(len(WISHES)), draw.randint(1, len(WISHES)))
            requests.append(claim_request(self.requests, worker, draw.randint(1, 3), wishes))
        self.bench.claim(requests)

    def renew(self) -> None:
        if self.bench.leases:
            self.bench.renew([lease_ref(self.bench, self._lease()) for _ in self._few()])

    def attach(self) -> None:
        if self.bench.leases:
            name = self.random.choice(["s1", "s2"])
            self.bench.attach([(lease_ref(self.bench, self._lease()), name) for _ in self._few()])

    def progress(self) -> None:
        draw = self.random
        if self.bench.leases:
            self.bench.progress(
                [
                    note(
                        self.bench,
                        self._lease(),
                        draw.randint(1, 4),
                        draw.choice(PROGRESS_VALUES),
                        draw.choice(list(ProgressKind)),
                    )
                    for _ in self._few()
                ]
            )

    def settle(self) -> None:
        draw = self.random
        if self.bench.leases:
            self.bench.settle(
                [
                    settlement(
                        self.bench,
                        self._lease(),
                        draw.choice(list(SettlementKind)),
                        draw.choice(DELAYS_S),
                        draw.choice([0.0, 3.0]),
                        final=draw.random() < 0.2,
                    )
                    for _ in self._few()
                ]
            )

    def sweep(self) -> None:
        known = list(self.bench.model.classes)
        self.bench.sweep(known if self.random.random() < 0.8 else known[:1])

    def cancel(self) -> None:
        self.bench.cancel(self.random.sample(JOB_IDS, self.random.randint(1, 2)))

    def requeue(self) -> None:
        """Mostly dead letters, where there are any."""
        jobs = self.bench.model.jobs
        dead = [job_id for job_id in JOB_IDS if job_id in jobs and jobs[job_id].died_ms is not None]
        among = dead if dead and self.random.random() < 0.6 else JOB_IDS
        self.bench.requeue(self.random.sample(among, self.random.randint(1, min(3, len(among)))))

    def pause_or_resume(self) -> None:
        if self.bench.model.paused or self.random.random() < 0.5:
            self.bench.resume()
        else:
            self.bench.pause()

    def advance(self) -> None:
        weights = [1, 1, 4, 4, 5, 2] if self.eager else [2, 2, 4, 5, 1, 1]
        self.bench.advance(self.random.choices(STEPS_US, weights)[0])

    def replay(self) -> None:
        if self.bench.history:
            newest = len(self.bench.history) - 1
            self.bench.replay(newest - min(newest, int(self.random.expovariate(0.2))))

    def limit(self) -> None:
        """As often lifted as set, or nothing would move for long."""
        defined = [(name, "") for name in self.bench.model.shares.texts]
        chosen = [self.random.choice(LIMITS)] if self.random.random() < 0.5 else defined
        if chosen:
            self.bench.limit(chosen, only_new=self.random.random() < 0.2)

    def forget(self) -> None:
        self.bench.forget_claims()
