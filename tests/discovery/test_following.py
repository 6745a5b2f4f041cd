"""Workers follow their services through the registry without a restart: appearing, moving, swapping, vanishing."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from gateway.errors import ConfigError
from gateway.registration import ServiceEntry
from gateway.store.fleet_scripts import Registration
from tests.chaos.fleet import until
from tests.runtime.live import LiveService, Stage, open_stage

TTL_S = 30.0


def followers(*names: str, **more: Any) -> dict[str, Any]:
    """Workers that know their instance's name and no address."""
    workers = {name: {"connector": "simulation-http", "instance": name, "slots": 2} for name in names}
    return {"workers": workers, "discovery": {"start_wait_s": 5.0}, **more}


async def say(
    stage: Stage, *services: LiveService, id_: str = "", ttl_s: float = TTL_S, **fields: Any
) -> None:
    registrations = [
        Registration(
            id_ or service.name,
            ServiceEntry(
                service="simulation", protocol="http", url=service.url, instance=service.name, **fields
            ),
            ttl_s,
        )
        for service in services
    ]
    await stage.watch.store.register(registrations)


def misrouted(*services: LiveService) -> int:
    return sum(service.shell.service.journal.summary().misrouted for service in services)


def executed(service: LiveService) -> set[str]:
    return {name.split(".")[0] for name in service.shell.service.journal.summary().executions_by_job}


async def test_a_service_that_moves_is_followed(redis_url: str) -> None:
    """Jobs go to the new address as soon as it is registered; those that run at the old one end there."""
    async with open_stage(redis_url, "move") as stage:
        old = await stage.service("a")
        await say(stage, old)
        live = await stage.gateway({}, followers("a"))
        running = await stage.watch.submit("running", {"duration_s": 1.0})
        await until(lambda: live.worker("a").running == 1, 5, "the first job runs")
        new = await stage.service("a")
        await say(stage, new)
        await until(lambda: live.worker("a").url == new.url, 5, "followed")
        jobs = [await stage.watch.submit(f"job-{number}", {"duration_s": 0.01}) for number in range(10)]
        await stage.watch.wait_terminal([running, *jobs], 15)
        assert (executed(old), executed(new)) == ({running}, set(jobs))
        assert misrouted(old, new) == 0
        await until(lambda: not live.worker("a").leaving, 5, "the old endpoint is closed")
        assert live.notes.left_endpoints == [old.url]
        await stage.watch.audited()


async def test_a_service_that_vanishes_stops_its_own_worker_only(redis_url: str) -> None:
    """Its entry lapses, nothing is claimed for it, and the state says why; another worker's jobs go on."""
    async with open_stage(redis_url, "vanish") as stage:
        a, b = await stage.service("a"), await stage.service("b")
        await say(stage, a)
        await say(stage, b, ttl_s=1.0)
        live = await stage.gateway({}, followers("a", "b"))
        await until(lambda: not live.worker("b").endpoints, 10, "the entry lapsed")
        assert "'instance': 'b'" in live.worker("b").refusal()
        jobs = [await stage.watch.submit(f"job-{number}", {"duration_s": 0.01}) for number in range(10)]
        await stage.watch.wait_terminal(jobs, 15)
        assert (executed(a), executed(b)) == (set(jobs), set())
        await say(stage, b)
        await until(lambda: live.worker("b").healthy, 5, "back")


async def test_an_unresolvable_worker_is_an_error_at_start(redis_url: str) -> None:
    """After the time to wait the start fails with the worker, what it wanted, and what there is."""
    async with open_stage(redis_url, "unresolved") as stage:
        await say(stage, await stage.service("b"))
        settings = followers("a") | {"discovery": {"start_wait_s": 0.5}}
        error = await failed_start(stage, settings)
        assert isinstance(error, ConfigError)
        assert str(error).startswith("workers.a: no simulation over http")
        assert "'a'" in str(error)
        assert "b at http" in str(error)
        assert "workers.b" not in str(error)
        optional = followers("a") | {"discovery": {"start_wait_s": 0.1, "required": False}}
        live = await stage.gateway({}, optional)
        assert live.worker("a").refusal().startswith("no simulation over http")


async def failed_start(stage: Stage, settings: dict[str, Any]) -> BaseException:
    """The one error of a start."""

    async def start() -> None:
        async with trio.open_nursery() as nursery:
            stage_of_its_own = Stage(nursery, stage.redis_url, stage.queue, stage.watch)
            await stage_of_its_own.gateway({}, settings, machine="failing")

    with pytest.raises(BaseExceptionGroup) as caught:
        await start()
    error: BaseException = caught.value
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def test_a_pool_uses_every_endpoint_and_spares_the_bad_one(redis_url: str) -> None:
    """Jobs spread over the pool; an endpoint that fails is ejected, gets at most trials, and the others go on."""
    async with open_stage(redis_url, "pool") as stage:
        good = [await stage.service(f"good-{number}") for number in range(2)]
        bad = await stage.service("bad", unavailable_rate=1.0)
        await say(stage, *good, bad)
        worker = {"connector": "simulation-http", "slots": 2, "discover": {"all": True}}
        live = await stage.gateway(
            {},
            {
                "workers": {"w": worker},
                "health": {"breaker_faults_max": 2, "breaker_open_s": 30.0, "breaker_open_max_s": 30.0},
            },
        )
        await until(lambda: len(live.worker().endpoints) == 3 and live.worker().slots == 6, 5, "bound")
        jobs = [
            await stage.watch.submit(f"job-{number}", {"duration_s": 0.02}, max_attempts=9)
            for number in range(60)
        ]
        await stage.watch.wait_terminal(jobs, 40)
        assert executed(good[0]) | executed(good[1]) == set(jobs)
        assert min(len(executed(one)) for one in good) >= 15
        states = {endpoint.place.instance: endpoint.ejected for endpoint in live.worker().endpoints}
        assert states == {"good-0": False, "good-1": False, "bad": True}
        await stage.watch.audited()


async def test_probed_capabilities_gate_what_is_claimed(redis_url: str) -> None:
    """A job that needs a model waits until an instance says that it has it, and goes to that one of the pool."""
    async with open_stage(redis_url, "probed") as stage:
        plain, able = await stage.service("plain"), await stage.service("able")
        worker = {
            "connector": "simulation-http", "slots": 2, "probe_capabilities": True, "endpoints": [plain.url, able.url]
        }  # fmt: skip
        live = await stage.gateway({}, {"workers": {"w": worker}, "health": {"capabilities_s": 0.2}})
        waiting = await stage.watch.submit("needs-it", requires={"models": {"has": "sdxl"}})
        other = await stage.watch.submit("needs-nothing")
        await stage.watch.wait_terminal([other], 10)
        assert executed(plain) | executed(able) == {other}
        await able.down()
        able.models = ("sdxl", "flux")
        await able.up()
        await stage.watch.wait_terminal([waiting], 10)
        assert (waiting in executed(able), waiting in executed(plain)) == (True, False)
        told = {one.url: one.capabilities.get("models") for one in live.worker().endpoints}
        assert told == {plain.url: [], able.url: ["sdxl", "flux"]}


async def test_another_instance_at_the_address_gets_no_jobs(redis_url: str) -> None:
    """A port that changed hands before anybody was told: the probe notices who answers."""
    async with open_stage(redis_url, "identity") as stage:
        service = await stage.service("b")
        worker = {"connector": "simulation-http", "endpoint": service.url, "instance": "a"}
        live = await stage.gateway({}, {"workers": {"w": worker}})
        job = await stage.watch.submit("job")
        await until(lambda: "another instance answers: b" in live.worker().refusal(), 5, "noticed")
        await until(lambda: len(live.notes.probes) > 8, 10, "some probes later")
        assert (executed(service), misrouted(service)) == (set(), 0)
        view = (await stage.watch.store.inspect([job]))[0]
        assert view is not None
        assert view.state == "pending"
