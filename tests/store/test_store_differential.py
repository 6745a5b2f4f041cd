"""The simulated Redis may stand in for a real one: the same operations leave the same replies and the same keys."""

from __future__ import annotations

from collections import Counter

import pytest

from gateway.models import (
    CancelStatus,
    JobState,
    LeaseStatus,
    RequeueStatus,
    SubmitStatus,
    SweepReport,
    Verdict,
)
from gateway.schedules import PausedStatus, PutStatus, RemovedStatus, ResumedStatus
from tests.store.bench import Backend, Bench
from tests.store.contents import dump
from tests.store.walk import Walk

STEPS = 600


@pytest.mark.parametrize("seed", range(6))
def test_thousands_of_operations_leave_no_difference(
    seed: int, fake_backend: Backend, real_backend: Backend
) -> None:
    """Replies are compared raw at every step, the whole keyspace now and then."""
    bench = Bench(fake_backend, real_backend, watch_every=100)
    walk = Walk(bench, seed, eager=seed % 2 == 0)
    kinds: set[str] = set()
    for _ in range(4):
        walk.run(STEPS // 4)
        bench.check()
        bench.look()
        fake, real = (dump(backend.client, bench.keys) for backend in bench.backends)
        assert fake == real
        kinds |= {key.rpartition(":")[2] for key in real}
    assert {"jobs", "specs", "events", "meta", "classes", "owners", "served"} <= kinds
    bench.close()


def test_walks_reach_every_answer_of_every_operation(fake_backend: Backend) -> None:
    """What no walk ever meets is not proven by walking."""
    seen: Counter[str] = Counter()
    for seed in range(30):
        bench = Bench(fake_backend, watch_every=50)
        Walk(bench, seed, eager=seed % 3 == 0).run(150)
        seen += bench.seen
        bench.close()
    wanted = {f"submit {status.value}" for status in SubmitStatus}
    wanted |= {f"cancel {status.value}" for status in CancelStatus}
    wanted |= {f"requeue {status.value}" for status in RequeueStatus}
    wanted |= {f"renew {status.value}" for status in LeaseStatus}
    wanted |= {f"{operation} {verdict.value}" for operation in ("attach", "progress") for verdict in Verdict}
    wanted |= {f"sweep {name}" for name in SweepReport.__struct_fields__}
    wanted |= {f"claim {answer}" for answer in ("granted", "nothing", "paused")}
    # A job waits for its parents before its first lease, never after one.
    leased = {state.value for state in JobState} - {"waiting"}
    wanted |= {f"settle accepted {state}" for state in leased - {"running"}}
    wanted |= {f"settle duplicate {state}" for state in leased}
    wanted |= {f"settle stale {state.value}" for state in JobState} | {"settle stale unknown"}
    wanted |= {f"schedule_put {status.value}" for status in PutStatus}
    wanted |= {f"schedule_remove {status.value}" for status in RemovedStatus}
    wanted |= {f"schedule_pause {status.value}" for status in PausedStatus}
    wanted |= {f"schedule_resume {status.value}" for status in ResumedStatus}
    wanted |= {"schedule_skip true", "schedule_skip false"}
    wanted |= {"limit set", "limit kept"}
    wanted |= {"pause true", "pause false", "resume true", "resume false"}
    assert wanted - set(seen) == set()
