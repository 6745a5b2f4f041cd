"""Rollouts on a real Redis: exact shares, automatic rollback for the whole fleet, an operator's verbs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from gateway.cli.app import run
from gateway.config import load_config
from gateway.connectors.simulation.wire import JournalEvent
from gateway.errors import ConfigError, FaultClass
from gateway.models import JobId
from gateway.rollout import RolloutPolicy, Side, side_of
from tests.chaos.fleet import until
from tests.runtime.live import LiveService, Stage, open_stage

JOBS = 400


def rollout(candidate: LiveService, **settings: Any) -> Mapping[str, Any]:
    """A rollout of worker ``w`` to another instance."""
    wanted = {"endpoint": candidate.url, "percent": 25, "attempts_min": 10, "window_attempts": 50, **settings}
    return {"workers": {"w": {"rollout": wanted}}, "retry": {"base_s": 0.05}}


async def submit(stage: Stage, count: int, prefix: str = "job") -> list[str]:
    return [
        await stage.watch.submit(f"{prefix}-{n}", {"duration_s": 0.01}, max_attempts=10) for n in range(count)
    ]


async def touched(service: LiveService) -> set[str]:
    """Jobs that were started at an instance."""
    return {
        entry.id.split(".")[0] for entry in await service.journal() if entry.event is JournalEvent.STARTED
    }


def chosen(job_ids: Sequence[str], percent: float) -> set[str]:
    policy = RolloutPolicy(percent=percent)
    return {job_id for job_id in job_ids if side_of(JobId(job_id), policy) is Side.CANDIDATE}


async def test_a_share_of_the_jobs_goes_to_the_candidate(redis_url: str) -> None:
    """Exactly the jobs that the hash names run at the candidate, all others at the stable side, each once."""
    async with open_stage(redis_url, "rollout-share") as stage:
        stable, candidate = await stage.service("stable"), await stage.service("candidate")
        # Room for all at once: a candidate that is full would send its share to the stable side.
        await stage.gateway({"w": stable}, rollout(candidate), slots=80)
        await until(
            lambda: bool(stage.gateways[0].worker().candidates[0].gate.healthy), 5, "a healthy candidate"
        )
        jobs = await submit(stage, 80)
        await stage.watch.wait_terminal(jobs, 20)
        assert await touched(candidate) == chosen(jobs, 25)
        assert await touched(stable) == set(jobs) - chosen(jobs, 25)
        assert len(stage.gateways[0].notes.rollouts) == 1
        await stage.watch.audited()


async def test_a_failing_candidate_is_rolled_back_by_itself(redis_url: str) -> None:
    """A candidate that fails 30 % is given up in every gateway; no job outside its share was touched, none is lost."""
    async with open_stage(redis_url, "rollout-back") as stage:
        stable = await stage.service("stable")
        candidate = await stage.service("candidate", out_of_memory_rate=0.3)
        for machine in ("a", "b"):
            await stage.gateway({"w": stable}, rollout(candidate), machine=machine, slots=8)
        jobs = await submit(stage, JOBS)
        await stage.watch.wait_terminal(jobs, 60)
        for live in stage.gateways:
            await until(
                lambda live=live: any(policy.stopped for _decision, policy in live.notes.rollouts),  # type: ignore[misc]
                10,
                "every gateway stopped it",
            )
        decisions = [decision for live in stage.gateways for decision, _policy in live.notes.rollouts]
        assert "rolled_back" in decisions
        before = await touched(candidate)
        assert before <= chosen(jobs, 25)
        later = await submit(stage, 40, "later")
        await stage.watch.wait_terminal(later, 20)
        assert await touched(candidate) == before
        told = [event for event in stage.watch.events if event.type == "configured"]
        assert [json.loads(event.detail)["key"] for event in told] == ["workers.w.rollout.stopped"]
        assert "of its" in json.loads(told[0].detail)["value"]
        report = await stage.watch.audited()
        assert report.completed == JOBS + 40


async def test_an_operator_sets_aborts_and_sees(redis_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The share changes live for every gateway, an abort ends it with its reason, and a new share begins anew."""
    queue = "rollout-verbs"
    target = ["--redis-url", redis_url, "--queue", queue, "--json"]
    async with open_stage(redis_url, queue) as stage:
        stable, candidate = await stage.service("stable"), await stage.service("candidate")
        live = await stage.gateway({"w": stable}, rollout(candidate, percent=0), slots=40)
        await until(lambda: bool(live.worker().candidates[0].gate.healthy), 5, "a healthy candidate")

        async def verb(*words: str) -> None:
            seen = len(live.notes.rollouts)
            assert run(["rollout", *words, *target]) == 0
            capsys.readouterr()
            await until(lambda: len(live.notes.rollouts) > seen, 10, f"the gateway heard of {words[0]}")

        await verb("set", "w", "--percent", "100")
        first = await submit(stage, 20, "all")
        await stage.watch.wait_terminal(first, 20)
        assert await touched(candidate) == set(first)
        await verb("abort", "w", "--reason", "wrong colours")
        second = await submit(stage, 20, "none")
        await stage.watch.wait_terminal(second, 20)
        assert await touched(stable) == set(second)

        def shown() -> Any:
            assert run(["rollout", "show", *target]) == 0
            return json.loads(capsys.readouterr().out)

        await until(lambda: bool(shown()[0]["stopped"]), 5, "the registry tells of the abort")
        (row,) = shown()
        assert (row["worker"], row["stopped"]) == ("m/w", "aborted: wrong colours")
        assert row["candidate"]["attempts"] == 20
        await verb("set", "w", "--percent", "50")
        assert live.notes.rollouts[-1][1] == RolloutPolicy(percent=50, attempts_min=10, window_attempts=50)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"percent": 101}, "workers.w.rollout.percent"),
        ({"attempts_min": 30, "window_attempts": 20}, "attempts_min = 30 is above window_attempts = 20"),
        ({"endpoint": "http://a", "endpoints": ["http://b"]}, "endpoint and endpoints: give one of them"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_an_impossible_rollout_is_refused(settings: dict[str, Any], told: str) -> None:
    """What cannot work is refused before a gateway starts, with the key and the values."""
    worker = {"connector": "simulation-http", "endpoint": "http://127.0.0.1:1", "rollout": settings}
    with pytest.raises(ConfigError) as refused:
        load_config(overrides={"workers": {"w": worker}}, environment={})
    assert told in str(refused.value)


async def test_a_reload_does_not_lift_a_rollback_that_is_not_told_yet(redis_url: str) -> None:
    """Settings read before the fleet heard of a rollback still say nothing of it: the candidate stays given up."""
    async with open_stage(redis_url, "rollout-untold") as stage:
        stable, candidate = await stage.service("stable"), await stage.service("candidate")
        live = await stage.gateway({"w": stable}, rollout(candidate))
        gateway, (endpoint,) = live.gateway, live.worker().candidates
        for _ in range(10):
            gateway.rollouts.ended(endpoint, FaultClass.SERVICE_ERROR, 0.1)
        gateway.rollouts.reload(gateway.config, ())
        assert [decision for decision, _policy in live.notes.rollouts] == ["started", "rolled_back"]
        assert live.notes.rollouts[-1][1].stopped.startswith("rolled back: ")
