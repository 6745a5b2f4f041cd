"""Whatever a simulated ComfyUI does wrong, in any mix: a job's work is begun at most once, and no result is made up."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from gateway.errors import JobFault
from simulator.contract.bench import marked
from simulator.scheduling import deterministic_scheduler
from tests.support.comfyui_stage import CONNECTORS, ComfyUIStage, open_comfyui

#: Everything a server or its connections may do to a job that runs, short of forgetting it.
TROUBLE = (
    *(
        "lost_completion_rate",
        "error_5xx_rate",
        "unavailable_rate",
        "rate_limit_rate",
        "hang_rate",
        "slow_rate",
    ),
    *("disconnect_rate", "half_open_rate", "submit_reply_lost_rate", "submit_500_after_accept_rate"),
    *("duplicate_event_rate", "out_of_order_rate", "event_after_terminal_rate", "garbage_rate"),
    *("finished_before_listening_rate", "empty_output_rate", "out_of_memory_rate", "late_record_rate"),
)
#: Longest virtual time that a job of one second may take under all of it, seconds.
LIMIT_S = 600.0
JOBS = 3


async def one_job(stage: ComfyUIStage, key: str, number: int) -> None:
    """Run one job; its own result, or a fault."""
    connector = stage.connector(key, request_timeout_s=2.0)
    name = f"job-{number}.1"
    with trio.fail_after(LIMIT_S):
        try:
            result = await connector.run(stage.job(name, result=f"mark-{number}-", duration_s=1.0, chunks=2))
        except JobFault:
            return
        finally:
            await connector.aclose()
    assert marked(result.value, f"mark-{number}-")
    assert stage.executions(name) == 1


async def some_jobs(key: str, faults: dict[str, Any]) -> None:
    async with open_comfyui(slots=2, **faults) as stage:
        async with trio.open_nursery() as nursery:
            for number in range(JOBS):
                nursery.start_soon(one_job, stage, key, number)
        assert all(stage.executions(f"job-{number}.1") <= 1 for number in range(JOBS))


@pytest.mark.limit_s(240)
@pytest.mark.parametrize("key", sorted(CONNECTORS))
@given(
    faults=st.dictionaries(st.sampled_from(TROUBLE), st.sampled_from([0.1, 0.3, 0.6, 1.0]), max_size=6),
    seed=st.integers(0, 2**32 - 1),
)
def test_work_is_begun_at_most_once(key: str, faults: dict[str, Any], seed: int) -> None:
    """Nothing is deduplicated at the server, so nothing may ever be submitted on a guess."""
    with deterministic_scheduler(seed):
        trio.run(some_jobs, key, faults, clock=trio.testing.MockClock(autojump_threshold=0))
