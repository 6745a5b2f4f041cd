"""The simulated fleet can fail: every deliberately broken variant of the product is caught, the product itself passes.

The hunt over 200 seeds is ``simulator mutants``; here each mutant meets one seed that is known to expose it.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import msgspec
import pytest

from gateway.store import calls, scripts
from simulator.invariants import Promise
from simulator.mutants.catalogue import MUTANTS
from simulator.mutants.hunt import Kill, hunt_one, judge_of, judged, verdict_on
from simulator.mutants.model import DoesNotApply, Edit, Judge, edited_scripts, replaced
from simulator.plan import FleetPlan
from simulator.run import Outcome, simulate

#: The first seed whose run each mutant fails, found by ``simulator mutants``.
KILLED_BY: dict[str, int] = {
    "lock-and-busy-flag": 0,
    "settlement-in-two-steps": 2,
    "settlement-dropped": 2,
    "release-before-disowning": 0,
    "lease-from-reply": 22,
    "unknown-renewal-believed": 4,
    "connection-kept-after-timeout": 0,
    "time-from-clients": 5,
    "health-without-hysteresis": 0,
    "slots-not-counted": 2,
    "one-connector-per-key": 6,
    "moves-not-followed": 0,
    "claim-not-replayable": 0,
    "epoch-is-attempt": 2,
    "claim-loses-avoided-job": 0,
    "settle-without-epoch": 3,
    "terminal-does-not-absorb": 3,
    "completion-leaves-lease": 0,
    "release-charges-attempt": 2,
    "renew-resurrects": 2,
    "progress-unfenced": 1,
    "sweep-ignores-live-leases": 0,
    "sweep-without-recovery-count": 4,
    "cancel-frees-slot-early": 7,
    "submit-not-idempotent": 2,
    "expiry-unchecked-in-claim": 7,
    "expired-jobs-linger": 4,
    "unique-key-ignored": 3,
    "unique-key-not-released": 0,
    "dependency-released-on-failure": 0,
    "first-parent-releases": 3,
    "children-forgotten": 0,
    "schedule-fires-twice": 3,
    "limit-not-checked": 0,
    "limit-not-released": 0,
    "lapsed-lease-counts-on": 1,
    "rate-not-metered": 0,
    "no-turns": 0,
    "priority-does-not-age": 0,
}
MUTANTS_MIN = 18


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Injected faults are logged by the thousand; capturing them would cost more than the runs."""
    caplog.set_level(logging.CRITICAL + 1)
    yield
    gc.collect()


@cache
def shipped(encoded: bytes) -> Outcome:
    """What the unbroken product makes of a plan; many mutants share one."""
    return simulate(msgspec.json.decode(encoded, type=FleetPlan)).outcome


@pytest.mark.parametrize("name", MUTANTS)
def test_the_mutant_is_caught_and_the_product_passes(name: str) -> None:
    """On one and the same plan the broken variant fails before one of its judges, and the shipped product passes."""
    mutant = MUTANTS[name]
    plan = mutant.favour.plan(KILLED_BY[name])
    assert judged(shipped(plan.encoded())) == []
    found = verdict_on(mutant, plan)
    assert found is not None
    judge, text = found
    assert judge in mutant.judges
    assert text


def test_the_catalogue_is_complete() -> None:
    """At least eighteen faults; each says what it breaks, which promise that is, and who judges it."""
    assert len(MUTANTS) >= MUTANTS_MIN
    for mutant in MUTANTS.values():
        assert mutant.breaks
        assert mutant.promise
        assert mutant.judges
        plain = mutant.favour.plan(0) == type(mutant.favour)().plan(0)
        assert plain == (not mutant.favour.why), f"{mutant.name}: plans that favour it need a reason"
    assert set(KILLED_BY) == set(MUTANTS)
    promises = " ".join(mutant.promise for mutant in MUTANTS.values()).lower()
    for words in (
        "one live owner",
        "epochs strictly increase",
        "one accepted completion",
        "terminal state",
        "nothing accepted is lost",
        "slots are never exceeded",
        "own endpoint",
    ):
        assert words in promises


@pytest.mark.parametrize("name", MUTANTS)
def test_nothing_of_a_mutant_stays(name: str) -> None:
    """A mutant changes something while it is in place, and afterwards the shipped code is back to the object."""
    before = _watched()
    with MUTANTS[name].put_in():
        assert _watched() != before
    assert _watched() == before


def _watched() -> list[object]:
    """Everything that a mutant may replace, by identity, with the sources of the scripts in use."""
    from simulator.mutants import in_code

    owners = [value for value in vars(in_code).values() if isinstance(value, type)]
    attributes = [value for owner in owners for value in vars(owner).values() if callable(value)]
    names = ("submit", "claim", "renew", "attach", "progress", "settle", "sweep", "cancel", "requeue")
    return [*map(id, attributes), _facade(), *map(calls.script, names)]


def _facade() -> object:
    """What the typed façade makes its calls from."""
    return vars(scripts)["script"]


def test_an_edit_that_does_not_fit_is_an_error() -> None:
    """When a script changes, its mutants must follow; they may not silently turn into the original."""
    misfit = edited_scripts(Edit("settle", "no such text", ""))
    with pytest.raises(DoesNotApply), misfit:
        pass
    with pytest.raises(DoesNotApply), replaced(calls, "no_such_name", None):
        pass
    assert calls.script is _facade()


def test_findings_name_their_judge() -> None:
    """The first word of a finding tells who wrote it; without one it is about beliefs."""
    assert judge_of("one_owner: job-1: claimed while another lease is alive") is Judge.AUDITOR
    assert judge_of("routed_correctly: job-1: served by 'b' instead of 'a'") is Judge.AUDITOR
    assert judge_of("routed_correctly: service-0 got 2 requests meant for another instance") is Judge.JOURNALS
    assert judge_of("attempts_charged: job-1: 2 attempts for 1 failures") is Judge.PROMISES
    assert judge_of("job-1: a owns epoch 2 while b believes in 1 for 0.5 s more") is Judge.BELIEFS


def test_a_hunt_stops_at_the_first_kill() -> None:
    """The seeds are tried in order, those after the first kill are not, and a survivor says how many it passed."""
    name = "health-without-hysteresis"
    kill = hunt_one(name, [KILLED_BY[name], 1, 2])
    assert isinstance(kill, Kill)
    assert (kill.seed, kill.seeds, kill.judge) == (KILLED_BY[name], 1, Judge.PROMISES.value)
    survivor = hunt_one(name, [])
    assert (survivor.killed, survivor.seeds) == (False, 0)


def test_the_documentation_lists_every_mutant_and_promise() -> None:
    """docs/mutants.md says of each mutant what is broken and which promise shows it, and names every promise."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "mutants.md").read_text("utf-8")
    rows = [f"| `{one.name}` | {one.breaks} | {one.promise} |" for one in MUTANTS.values()]
    assert [row for row in rows if row not in text] == []
    assert [promise.value for promise in Promise if f"| {promise.value} |" not in text] == []
