"""A random walk over the store's operations from one seed: the same operations as in the state machine."""

from __future__ import annotations

import random as random_module
from collections.abc import Callable

from gateway.matching import class_of
from gateway.models import (
    ClaimRequest,
    JobId,
    JobSpec,
    LeaseRef,
    ProgressKind,
    ProgressNote,
    Settlement,
    SettlementKind,
    Submission,
    WorkerId,
)
from tests.store.bench import Bench

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
PROGRESS_VALUES = [0.0, 0.005, 0.3, 1.0]


def submission(job: int, wish: int, priority: int, key: str, delay_s: float, max_attempts: int) -> Submission:
    service, requires, tenant = WISHES[wish]
    spec = JobSpec(
        service=service,
        requires=requires,
        tenant=tenant,
        priority=priority,
        max_attempts=max_attempts,
        payload={"n": job},
    )
    return Submission(job_id=JOB_IDS[job], spec=spec, idempotency_key=key, delay_s=delay_s)


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
    """Drives one bench with operations drawn from a seeded source."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench = bench
        self.random = random_module.Random(seed)
        self.requests = 0
        self._operations: list[tuple[Callable[[], None], int]] = [
            (self.submit, 8),
            (self.claim, 8),
            (self.renew, 3),
            (self.attach, 2),
            (self.progress, 3),
            (self.settle, 7),
            (self.sweep, 5),
            (self.cancel, 3),
            (self.requeue, 2),
            (self.pause_or_resume, 1),
            (self.advance, 5),
            (self.replay, 6),
            (self.forget, 1),
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
                    draw.randrange(len(JOB_IDS)),
                    draw.randrange(len(WISHES)),
                    draw.choice([0, 50, 100]),
                    draw.choice(["", "", "k0", "k1"]),
                    draw.choice(DELAYS_S),
                    draw.randint(1, 3),
                )
                for _ in self._few()
            ]
        )

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
        self.bench.requeue(self.random.sample(JOB_IDS, self.random.randint(1, 3)))

    def pause_or_resume(self) -> None:
        if self.bench.model.paused or self.random.random() < 0.5:
            self.bench.resume()
        else:
            self.bench.pause()

    def advance(self) -> None:
        self.bench.advance(self.random.choices(STEPS_US, [2, 2, 4, 5, 1, 1])[0])

    def replay(self) -> None:
        if self.bench.history:
            newest = len(self.bench.history) - 1
            self.bench.replay(newest - min(newest, int(self.random.expovariate(0.2))))

    def forget(self) -> None:
        self.bench.forget_claims()
