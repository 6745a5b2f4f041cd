"""Fixtures for tests of connectors and fleets, loaded by pytest as the plugin ``trio-gateway``.

Nothing heavy is imported before a fixture is used: a suite that uses none of them pays for one small module.

Fixtures: ``simulated_service``, ``gateway_fleet``, ``embedded_redis``, ``fault_plan``, ``gateway_seed``,
``contract_case``. Markers: ``gateway_faults``, ``gateway_fleet``, ``gateway_contract``. Options: ``--gateway-seeds``,
``--gateway-faults``. Hypothesis strategies are in ``simulator.strategies``. See docs/testing-your-connector.md and
docs/connectors.md.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from simulator.certify_fleet import ServiceHandle
    from simulator.certify_testing import FleetHandle
    from simulator.fault_plans import FleetFaults

SEEDS_MAX = 10_000
_SEEDS = re.compile(r"(\d{1,10})(?:-(\d{1,10}))?")
_FLEET: pytest.StashKey[FleetHandle] = pytest.StashKey()
_MARKERS = (
    "gateway_faults(plan=None, **knobs): faults of the simulated services of this test: a preset or TOML file, and "
    "knobs over it (see: simulator faults)",
    "gateway_fleet(connector='simulation-http', gateways=2, services=1, slots=4, endpoint='', options={}, "
    "settings={}, unfinished_ok=False): what the fixture of that name runs",
    "gateway_contract(*dialects, connector=None): the fixture contract_case is every case of the contract for the "
    "connectors of these dialects (by default those of the catalogue), connector being a class that is not installed",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add our options."""
    group = parser.getgroup("trio-gateway", "simulated services and gateway fleets")
    group.addoption(
        "--gateway-seeds",
        metavar="SEEDS",
        default=None,
        help="run tests with simulated services once per seed: 7, 0-19 or 1,5,9-12",
    )
    group.addoption(
        "--gateway-faults",
        metavar="PLAN",
        default=None,
        help="faults of simulated services where the test does not say: a preset (default, health-4pct, lossy, "
        "brutal, quiet) or a TOML file",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make the markers known and check the options."""
    for line in _MARKERS:
        config.addinivalue_line("markers", line)
    _seeds(config.getoption("--gateway-seeds"))


def _seeds(text: str | None) -> list[int]:
    """The seeds of the option, in order, each once.

    Raises:
        pytest.UsageError: not a list of numbers and ranges.
    """
    seeds: dict[int, None] = {}
    for part in (text or "").split(",") if text else ():
        match = _SEEDS.fullmatch(part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if last < first or last - first >= SEEDS_MAX:
            raise pytest.UsageError(
                f"--gateway-seeds {text}: {part.strip()!r} is no seed or range, such as 7 or 0-19"
            )
        seeds.update(dict.fromkeys(range(first, last + 1)))
    return list(seeds)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One run per seed, for tests that use one; one per case of the contract, for tests that are held to it."""
    if "contract_case" in metafunc.fixturenames:
        metafunc.parametrize("contract_case", _contract(metafunc))
    seeds = _seeds(metafunc.config.getoption("--gateway-seeds"))
    if seeds and "gateway_seed" in metafunc.fixturenames:
        metafunc.parametrize("gateway_seed", seeds, indirect=True, ids=[f"seed{seed}" for seed in seeds])


def _contract(metafunc: pytest.Metafunc) -> list[Any]:
    """Every case of the contract that the test's marker asks for; those that are excused are skipped with the reason.

    Raises:
        pytest.UsageError: no marker, or a connector that is not installed.
    """
    from gateway.errors import ConnectorError
    from simulator.contract import Dialect, contract_runs

    marker = metafunc.definition.get_closest_marker("gateway_contract")
    if marker is None or not all(isinstance(one, Dialect) for one in marker.args):
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid}: contract_case needs the marker gateway_contract with dialects, as in "
            "@pytest.mark.gateway_contract(MY_DIALECT)"
        )
    cases = []
    try:
        for run in contract_runs(*marker.args, make=marker.kwargs.get("connector")):
            skip = run.skip()
            marks = [] if skip is None else [pytest.mark.skip(reason=str(skip))]
            cases.append(pytest.param(run, id=str(run), marks=marks))
    except ConnectorError as error:
        raise pytest.UsageError(str(error)) from None
    return cases


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """After a test with a fleet: the auditor's verdict is part of the test's own."""
    try:
        result = yield
    except (Exception, pytest.fail.Exception):
        fleet = item.stash.get(_FLEET, None)
        if fleet is not None:
            text = "\n".join([*_try_judge(fleet), _replay(item, fleet)])
            item.add_report_section("call", "gateway fleet", text)
        raise
    fleet = item.stash.get(_FLEET, None)
    if fleet is not None:
        broken = fleet.judge()
        if broken:
            head = (
                f"the fleet broke {len(broken) - 1} promises"
                if len(broken) > 2
                else "the fleet broke a promise"
            )
            pytest.fail("\n".join([f"{head}:", *broken, _replay(item, fleet)]), pytrace=False)
    return result


def _try_judge(fleet: FleetHandle) -> list[str]:
    """The verdict beside a failure of the test itself; that one counts, whatever becomes of this."""
    from gateway.errors import GatewayError

    try:
        return fleet.judge(at_end=False) or ["every promise of the queue held so far"]
    except GatewayError as error:
        return [f"no verdict of the auditor: {error}"]


def _replay(item: pytest.Item, fleet: FleetHandle) -> str:
    command = ["pytest", item.nodeid]
    callspec = getattr(item, "callspec", None)
    if callspec is not None and "gateway_seed" in callspec.params:
        command += ["--gateway-seeds", str(fleet.plan.seed)]
    faults = item.config.getoption("--gateway-faults")
    if faults is not None:
        command += ["--gateway-faults", str(faults)]
    return f"seed {fleet.plan.seed}; replay: {shlex.join(command)}"


@pytest.fixture
def gateway_seed(request: pytest.FixtureRequest) -> int:
    """Seed of this run: of the option ``--gateway-seeds``, else 0."""
    return int(getattr(request, "param", 0))


@pytest.fixture
def fault_plan(request: pytest.FixtureRequest, gateway_seed: int) -> FleetFaults:
    """Faults of this test: its marker ``gateway_faults``, else ``--gateway-faults``, else none."""
    from simulator.certify_tables import PlanError
    from simulator.fault_plans import choose_plan
    from simulator.faults import FaultError

    name = request.config.getoption("--gateway-faults") or "quiet"
    knobs: dict[str, Any] = {}
    marker = request.node.get_closest_marker("gateway_faults")
    if marker is not None:
        given = dict(marker.kwargs)
        name = given.pop("plan", None) or (marker.args[0] if marker.args else name)
        knobs = given
    try:
        plan = choose_plan(str(name)).with_knobs(knobs)
    except (PlanError, FaultError) as error:
        raise pytest.UsageError(str(error)) from None
    return dataclasses.replace(plan, seed=gateway_seed)


@pytest.fixture
def embedded_redis(tmp_path: Path) -> Iterator[str]:
    """URL of a real Redis of this test alone, with its data under ``tmp_path``."""
    from simulator.certify_redis import PrivateRedis

    with PrivateRedis(tmp_path / "redis") as redis:
        yield redis.url


@pytest.fixture
def simulated_service(fault_plan: FleetFaults) -> Iterator[ServiceHandle]:
    """A simulated HTTP service on a real socket, with this test's faults: ``url``, ``journal()``, ``set_faults()``.

    It runs in a thread of its own, so it serves synchronous and asynchronous tests alike.
    """
    from simulator.certify_testing import serve_in_thread

    with serve_in_thread(fault_plan.knobs, seed=fault_plan.seed) as service:
        yield service


@pytest.fixture
def gateway_fleet(
    request: pytest.FixtureRequest, tmp_path: Path, fault_plan: FleetFaults
) -> Iterator[FleetHandle]:
    """Real gateway processes with the connector of the marker ``gateway_fleet``, on a Redis of their own.

    After the test the auditor judges the queue's events: a broken promise fails the test.
    """
    from simulator.certify_testing import FleetWish, open_fleet

    marker = request.node.get_closest_marker("gateway_fleet")
    try:
        wish = FleetWish(**(marker.kwargs if marker else {}))
    except TypeError as error:
        raise pytest.UsageError(f"marker gateway_fleet: {error}") from None
    with open_fleet(tmp_path, wish, fault_plan) as fleet:
        request.node.stash[_FLEET] = fleet
        yield fleet
