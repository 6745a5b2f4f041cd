"""The end of a gateway: nothing that still runs meets something already closed."""

from __future__ import annotations

import trio

from tests.runtime.live import open_stage


async def test_a_gateway_that_stops_while_probing_ends_without_an_error(redis_url: str) -> None:
    """Probes go on until the services end; none of them finds its connector closed."""
    async with open_stage(redis_url, "probing-end") as stage:
        service = await stage.service()
        for number in range(5):
            workers = {f"w{index}": service for index in range(4)}
            live = await stage.gateway(workers, {"health": {"probe_s": 0.001}}, machine=f"m{number}")
            live.stop.drain()
            with trio.fail_after(5):
                await live.stopped.wait()
