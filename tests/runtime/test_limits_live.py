"""A running gateway under limits: it defines what the queue lacks, changes nothing, and comes back when due."""

from __future__ import annotations

import logging

import pytest
import trio

from gateway.limits import Limit, encode_limits
from tests.runtime.live import open_stage


async def test_a_gateway_defines_what_the_queue_lacks_and_changes_nothing(
    redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A live change is never reverted by a process that starts with an older file; its log says so."""
    async with open_stage(redis_url, "limits-defined") as stage:
        store, service = stage.watch.store, await stage.service()
        await store.define_limits(encode_limits({"tenant *": Limit(running_max=7)}), only_new=False)
        section = {"services": {"simulation": {"running_max": 3}}, "tenants": {"*": {"running_max": 1}}}
        with caplog.at_level(logging.WARNING):
            await stage.gateway({"w": service}, {"limits": section})
        limits = await store.limits_now()
        assert {view.name: view.running_max for view in limits.views()} == {
            "service simulation": 3,
            "tenant *": 7,
        }
        assert "limit 'tenant *': the queue keeps its own value" in caplog.text


async def test_a_rate_is_used_up_to_its_measure_without_polling(redis_url: str) -> None:
    """A claim that a rate holds back is told when the next start is due: the poll would be minutes too late."""
    async with open_stage(redis_url, "limits-due") as stage:
        watch, service = stage.watch, await stage.service()
        section = {"services": {"simulation": {"rate": 20}}}
        await stage.gateway({"w": service}, {"limits": section, "intake": {"poll_s": 600.0}}, slots=64)
        with trio.fail_after(30):
            jobs = [await watch.submit(f"job-{i}", {"duration_s": 0.01}) for i in range(12)]
            await watch.wait_terminal(jobs, 25)
