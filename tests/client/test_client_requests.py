"""Validation and ids, without any Redis."""

from __future__ import annotations

import random
from typing import Any

import pytest

from gateway.client.core import split_cursor
from gateway.client.requests import JobRequest, build_submission, new_job_id, outcome_of
from gateway.errors import InvalidSubmission
from gateway.models import JobId, SubmitStatus, SubmitVerdict
from gateway.store.calls import StoreLimits

SOURCE = random.Random(7)


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"service": ""}, "service ''"),
        ({"service": "a b"}, "service 'a b'"),
        ({"service": 5}, "service 5"),
        ({"service": "x" * 65}, "1 to 64"),
        ({"payload": {"a": [1, {2}]}}, "payload.a[1]: JSON has no set"),
        ({"payload": {"a": b"x"}}, "payload.a: JSON has no bytes"),
        ({"payload": {"a": float("nan")}}, "payload.a: JSON has no nan"),
        ({"payload": [float("inf")]}, "payload[0]: JSON has no inf"),
        ({"payload": {1: 2}}, "payload: JSON keys are text, not 1"),
        ({"payload": "\ud800"}, "cannot be written as JSON"),
        ({"payload": nested(101)}, "nested deeper than 100"),
        ({"payload": "x" * 2000}, "at most 1000 are allowed"),
        ({"requires": []}, "requires must be an object"),
        ({"requires": "abc"}, "requires must be an object"),
        ({"requires": {"vram": {">": 5}}}, "unknown operator '>'"),
        ({"requires": {"vram": {">=": 9, "<=": 5}}}, "can never both hold"),
        ({"priority": 101}, "priority must be a whole number from 0 to 100"),
        ({"priority": -1}, "priority"),
        ({"priority": True}, "priority"),
        ({"priority": 1.5}, "priority"),
        ({"max_attempts": 0}, "max_attempts"),
        ({"timeout_s": 0}, "timeout_s must be more than 0"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"timeout_s": float("inf")}, "timeout_s"),
        ({"timeout_s": "5"}, "timeout_s"),
        ({"delay_s": -1}, "delay_s must be 0"),
        ({"idempotency_key": ""}, "idempotency_key"),
        ({"idempotency_key": "k" * 513}, "idempotency_key"),
        ({"job_id": ""}, "job_id ''"),
        ({"job_id": "a/b"}, "job_id 'a/b'"),
        ({"job_id": "{x}"}, "job_id '{x}'"),
        ({"job_id": "a\n"}, "job_id"),
        ({"tenant": "a b"}, "tenant 'a b'"),
        ({"tenant": "*"}, "tenant '*'"),
        ({"tenant": "x" * 65}, "1 to 64"),
        ({"tenant": None}, "tenant None"),
        ({"expires_in_s": 0}, "expires_in_s must be more than 0"),
        ({"expires_in_s": 5, "expires_at_s": 5}, "give one of them"),
        ({"expires_in_s": 5, "delay_s": 5}, "leaves no time before expires_in_s 5"),
        ({"expires_at_s": "soon"}, "seconds since the epoch, not 'soon'"),
        ({"expires_at_s": 1.7e12}, "seconds since the epoch"),
        ({"expires_at_s": float("nan")}, "seconds since the epoch"),
        ({"unique_key": ""}, "unique_key must be 1 to 512"),
        ({"unique_for_s": 5}, "give unique_key too"),
        ({"unique_key": "k", "unique_for_s": -1}, "unique_for_s"),
        ({"after": "abc"}, "after must be a list of job ids"),
        ({"after": [""]}, "job_id ''"),
        ({"after": [5]}, "job_id 5"),
        ({"after": [f"p{number}" for number in range(65)]}, "after names 65 jobs; at most 64"),
        ({"after": ["a"], "job_id": "a"}, "cannot wait for itself"),
        ({"on_parent_failure": "retry"}, "on_parent_failure must be cancel or release"),
    ],
)
def test_malformed_requests_are_refused(changes: dict[str, Any], fragment: str) -> None:
    """Each wrong part is refused before the store hears of it, naming the part."""
    request = JobRequest(**{"service": "simulation", **changes})
    with pytest.raises(InvalidSubmission) as caught:
        build_submission(request, StoreLimits(payload_bytes_max=1000), random=SOURCE, now_ms=1)
    assert fragment in str(caught.value)


@pytest.mark.parametrize("payload", [None, True, 0, -1.5, "ä", [], {}, [[1], {"a": None}], 2**70, nested(99)])
def test_json_payloads_pass_unchanged(payload: Any) -> None:
    """Whatever JSON can hold is accepted as it is."""
    built = build_submission(JobRequest("simulation", payload), StoreLimits(), random=SOURCE, now_ms=1)
    assert built.spec.payload == payload


def test_fresh_ids_have_the_layout_of_uuid_7() -> None:
    """Version and variant bits stand where RFC 9562 has them, and ids sort by time."""
    source = random.Random(1)
    ids = [new_job_id(source, now_ms) for now_ms in range(1_700_000_000_000, 1_700_000_000_100)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert {(len(job_id), job_id[14], job_id[19] in "89ab") for job_id in ids} == {(36, "7", True)}
    assert new_job_id(random.Random(3), 5) == new_job_id(random.Random(3), 5)


def test_own_earlier_try_is_no_duplicate() -> None:
    """A made-up id that is already there is the same call's lost reply; a chosen one is an earlier job."""
    for chosen, deduplicated in ((None, False), ("mine", True)):
        request = JobRequest("simulation", job_id=chosen)
        submission = build_submission(request, StoreLimits(), random=SOURCE, now_ms=1)
        outcome = outcome_of(request, submission, SubmitVerdict(SubmitStatus.DUPLICATE, submission.job_id))
        assert (outcome.deduplicated, outcome.stored) == (deduplicated, True)
    request = JobRequest("simulation", idempotency_key="k")
    submission = build_submission(request, StoreLimits(), random=SOURCE, now_ms=1)
    outcome = outcome_of(request, submission, SubmitVerdict(SubmitStatus.DUPLICATE, JobId("other")))
    assert (outcome.deduplicated, outcome.job_id) == (True, "other")


@pytest.mark.parametrize(
    ("cursor", "expected"),
    [
        ("0-0", ("0-0", "", -1)),
        ("17-3", ("17-3", "", -1)),
        ("17", ("17-0", "", -1)),
        ("17-3/2", ("17-2", "17-3", 2)),
        ("17-0/0", (f"16-{2**64 - 1}", "17-0", 0)),
    ],
)
def test_cursor_resumes_inside_an_entry(cursor: str, expected: tuple[str, str, int]) -> None:
    """Reading goes on from before the cursor's entry, so that the rest of that entry is not missed."""
    assert split_cursor(cursor) == expected


@pytest.mark.parametrize("cursor", ["", "x", "1-x", "1-1/", "1-1/x", "-1"])
def test_malformed_cursors_are_refused(cursor: str) -> None:
    """What is no cursor is told as such, not passed to Redis."""
    with pytest.raises(InvalidSubmission):
        split_cursor(cursor)
