"""ComfyUI's twin on a real port, asked by a client that is not ours."""

from __future__ import annotations

import functools

import httpx
import trio
import trio_websocket

from simulator.dialects.comfyui import ComfyUIService
from simulator.faults import FaultPlan
from simulator.model import ServiceConfig
from simulator.seeding import streams


async def test_one_port_serves_http_and_sockets() -> None:
    """What a browser's libraries say is understood, over TCP."""
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            config = ServiceConfig(instance="comfy", duration_s=0.05)
            twin = ComfyUIService(config, FaultPlan.none(), random_for=streams(1, "comfy"))
            handle = await nursery.start(functools.partial(twin.run, host="127.0.0.1", port=0))
            url = f"ws://127.0.0.1:{handle.port}/ws?clientId=me"
            async with (
                httpx.AsyncClient(base_url=handle.url) as http,
                trio_websocket.open_websocket_url(url) as web,
            ):
                assert '"sid":"me"' in str(await web.get_message())
                body = {
                    "prompt": {"3": {"class_type": "KSampler", "inputs": {}}},
                    "client_id": "me",
                    "prompt_id": "j",
                }
                assert (await http.post("/prompt", json=body)).json()["prompt_id"] == "j"
                while '"node":null' not in str(await web.get_message()):
                    pass
                assert (await http.get("/history/j")).json()["j"]["status"]["completed"] is True
            nursery.cancel_scope.cancel()
