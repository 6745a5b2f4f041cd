"""Keys, models and the façade over the scripts: layouts are exact, nothing is parsed out of ids."""

from __future__ import annotations

import hashlib
import re
from dataclasses import fields

import msgspec
import pytest

from gateway.errors import ConfigError
from gateway.events import decode_entries, decode_entry
from gateway.lifecycle import EventType
from gateway.limits import AGING_MAX_S
from gateway.models import (
    PRIORITY_MAX,
    TERMINAL_STATES,
    ClaimRequest,
    ClassId,
    Epoch,
    Grant,
    JobId,
    JobSpec,
    JobState,
    LeaseRef,
    LeaseStatus,
    Settlement,
    SettlementKind,
    Submission,
    SubmitStatus,
    SubmitVerdict,
    SweepReport,
    Verdict,
    WorkerId,
)
from gateway.store import scripts
from gateway.store.calls import StoreLimits, milliseconds, script
from gateway.store.keys import QueueKeys

KEYS = QueueKeys("main")
LIMITS = StoreLimits()
SPEC = JobSpec(service="image", payload={"prompt": "ü"}, priority=70)
GRANT = Grant(JobId("a"), Epoch(7), ClassId("image"), SPEC, 1, 0, "", False, 1, 2, 3)
OPERATIONS = [
    "submit", "claim", "renew", "attach", "progress", "settle", "sweep", "cancel", "requeue", "pause", "resume",
    "heartbeat", "inspect", "stats", "limit", "limits",
]  # fmt: skip


@pytest.mark.parametrize("queue", ["main", "a", "A-b_c.9", "x" * 64])
def test_all_keys_of_a_queue_share_its_hash_tag(queue: str) -> None:
    """One queue lives in one Cluster slot, and no two keys collide."""
    keys = QueueKeys(queue)
    fixed = [getattr(keys, name) for name in QueueKeys.__slots__ if name not in ("_prefix", "queue")]
    every = [*fixed, keys.pending("c"), keys.stream("c"), keys.claim_memory("c")]
    assert all(re.match(r"tg:\{([^}]*)\}:", key)[1] == queue for key in every)  # type: ignore[index]
    assert len(set(every)) == len(every)


@pytest.mark.parametrize("queue", ["", "a b", "a{b}", "a:b", "x" * 65, "ü", "a\n"])
def test_a_queue_name_that_could_break_the_keys_is_refused(queue: str) -> None:
    """Braces would move the hash tag."""
    with pytest.raises(ConfigError):
        QueueKeys(queue)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_script_is_the_prelude_and_its_own_file_by_content(name: str) -> None:
    """The hash is that of the source, so versions can share a Redis."""
    found = script(name)
    assert found.source.startswith("-- Shared first part")
    assert f"\n-- {name}: " in found.source
    assert found.sha == hashlib.sha1(found.source.encode(), usedforsecurity=False).hexdigest()
    assert script(name) is found


@pytest.mark.parametrize(("seconds", "text"), [(0, "0"), (0.0004, "0"), (1.5, "1500"), (86400.0, "86400000")])
def test_times_are_sent_as_whole_milliseconds(seconds: float, text: str) -> None:
    """Never in exponent form."""
    assert milliseconds(seconds) == text


def test_every_bound_of_the_store_is_positive() -> None:
    """A bound of nothing would refuse everything."""
    assert all(getattr(LIMITS, found.name) > 0 for found in fields(LIMITS))


@pytest.mark.parametrize(
    ("settlement", "kind", "final"),
    [
        (Settlement.completed(GRANT, body="{}"), SettlementKind.COMPLETED, False),
        (
            Settlement.failed_for_retry(GRANT, body="{}", detail="", delay_s=1, avoid_s=2),
            SettlementKind.FAILED,
            False,
        ),
        (Settlement.failed_for_good(GRANT, body="{}", detail=""), SettlementKind.FAILED, True),
        (Settlement.snoozed(GRANT, body="{}", detail="", delay_s=1), SettlementKind.SNOOZED, False),
        (Settlement.released(GRANT), SettlementKind.RELEASED, False),
        (Settlement.cancelled(GRANT), SettlementKind.CANCELLED, False),
    ],
)
def test_a_settlement_carries_its_grants_lease(
    settlement: Settlement, kind: SettlementKind, final: bool
) -> None:
    """Id, epoch and class come from the grant, never from anywhere else; it survives the spool's encoding."""
    assert settlement.lease == LeaseRef(GRANT.job_id, GRANT.epoch)
    assert (settlement.class_id, settlement.kind, settlement.final) == (GRANT.class_id, kind, final)
    assert msgspec.json.decode(msgspec.json.encode(settlement), type=Settlement) == settlement


def test_priority_and_sequence_fit_into_an_exact_double() -> None:
    """The order of a job is exact as a sorted set's score."""
    ticks = (2055 - 2020) * 366 * 86_400 * 1_000_000 // 32
    aging_ticks = int(AGING_MAX_S * 1_000_000 / 32)
    assert (ticks + PRIORITY_MAX * aging_ticks + 1) * 128 <= 2**53


def test_terminal_states_are_those_without_a_way_on() -> None:
    """A view of an ended job says so."""
    open_states = {JobState.PENDING, JobState.SCHEDULED, JobState.WAITING, JobState.RUNNING}
    assert open_states == set(JobState) - TERMINAL_STATES


def test_a_submission_names_each_class_once() -> None:
    """Jobs of the same class share one pending key, by position."""
    other = JobSpec(service="text", priority=0)
    items = [
        Submission(job_id=JobId(name), spec=spec)
        for name, spec in zip("abc", (SPEC, other, SPEC), strict=True)
    ]
    call = scripts.submit_call(KEYS, LIMITS, items)
    assert call.keys[17:] == [KEYS.pending("image"), KEYS.pending("text")]
    assert call.args[4] == 3
    rows = [call.args[5 + 12 * i : 17 + 12 * i] for i in range(3)]
    assert [(row[0], row[2]) for row in rows] == [("a", 1), ("b", 2), ("c", 1)]
    assert [row[5] for row in rows] == [30, 100, 30]
    assert rows[0][1] == scripts.encode_spec(SPEC)


def test_claims_of_several_workers_share_the_class_list() -> None:
    """Each request names positions of its own classes; each has a memory of its own."""
    requests = [
        ClaimRequest("r1", WorkerId("w"), 2, 4, (ClassId("x"), ClassId("y"))),
        ClaimRequest("r2", WorkerId("v"), 1, 1, (ClassId("y"),)),
    ]
    call = scripts.claim_call(KEYS, LIMITS, 15.0, "i", requests)
    assert call.keys[11:] == [
        KEYS.claim_memory("w:i"), KEYS.claim_memory("v:i"), KEYS.pending("x"), KEYS.pending("y")
    ]  # fmt: skip
    assert call.args == [
        "15000", LIMITS.events_max, 2, 2, "x", "y", "r1", "w", 2, 4, 2, 1, 2, "r2", "v", 1, 1, 1, 2
    ]  # fmt: skip


def test_a_claim_reply_is_cut_at_its_requests() -> None:
    """Grants follow their own request's count."""
    spec = scripts.encode_spec(SPEC)
    grant = [b"a", spec, b"1700000000123457", b"image", b"1", b"2", b"ref", b"1", b"10", b"20", b"0"]
    raw = [b"5", b"0", b"30", b"0", b"0", b"1", b"0", *grant, b"0", b"17"]
    first, second, third = scripts.claim_reply(raw, 3)
    assert (first.grants, third.grants, first.wait_ms, third.wait_ms) == ((), (), 0, 17)
    assert (second.class_count, second.paused) == (5, False)
    assert second.grants == (
        Grant(JobId("a"), Epoch(1700000000123457), ClassId("image"), SPEC, 1, 2, "ref", True, 10, 20, 30),
    )


def test_replies_become_models() -> None:
    """Every short reply has one form."""
    assert scripts.submit_reply([b"duplicate", b"x"]) == [SubmitVerdict(SubmitStatus.DUPLICATE, JobId("x"))]
    assert scripts.renew_reply([b"held", b"lost"]) == [LeaseStatus.HELD, LeaseStatus.LOST]
    assert scripts.settle_unblocked([b"accepted", b"completed", b"2"]) == 2
    assert scripts.settle_reply([b"accepted", b"dead", b"stale", b"", b"0"]) == [
        (Verdict.ACCEPTED, JobState.DEAD),
        (Verdict.STALE, None),
    ]
    assert scripts.sweep_reply([b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"1", b"0"]) == SweepReport(
        1, 2, 3, 4, 5, 6, 7, 8, True, False
    )
    assert scripts.inspect_reply([b""] * 10, ["a", "b"]) == [None, None]


def test_a_job_view_separates_result_and_error() -> None:
    """Only a completed job has a result; an error is an object."""
    spec = scripts.encode_spec(SPEC)

    def row(state: str) -> bytes:
        return msgspec.json.encode(
            [state, "9", "5", "image", "3", "1", "2", "0", "w", "r", "1", "0.5", "4", "10", "20", "30", "", "0", "",
             "", "key", "0", "0", "", "0", "0", "acme", "image"]
        )  # fmt: skip

    done, dead, live = scripts.inspect_reply(
        [
            *(row("completed"), spec, b'{"x":1}', b"", b""),
            *(row("dead"), spec, b'{"kind":"k"}', b"", b""),
            *(row("running"), spec, b"", b"1700000000123", b""),
        ],
        ["a", "b", "c"],
    )
    assert done is not None
    assert dead is not None
    assert live is not None
    assert (done.result, done.error, done.terminal) == ({"x": 1}, None, True)
    assert (dead.result, dead.error, dead.terminal) == (None, {"kind": "k"}, True)
    assert (live.lease_until_ms, live.due_ms, live.terminal) == (1700000000123, None, False)
    assert (live.epoch, live.attempts, live.recoveries, live.cancel_requested) == (9, 1, 2, True)
    assert (live.worker_id, live.reference, live.progress, live.idempotency_key) == ("w", "r", 0.5, "key")


def test_a_stream_entry_unpacks_into_its_events() -> None:
    """All transitions of one call, each with a cursor of its own."""
    rows = [["claimed", "a", "7", "w", "4"], ["claimed", "b", "8", "w", "4"]]
    entry = {"at": "1700000000123", "e": msgspec.json.encode(rows).decode()}
    first, second = decode_entries([("5-0", entry)])
    assert (first.cursor, second.cursor) == ("5-0/0", "5-0/1")
    assert (first.type, first.job_id, first.epoch) == (EventType.CLAIMED, "a", 7)
    assert (second.worker_id, second.detail, second.at_ms) == ("w", "4", 1700000000123)
    assert decode_entry("5-0", b"1700000000123", entry["e"].encode()) == [first, second]
