"""From a job record of the replaced system to a submission of ours (pure).

Its layout: ``jobs:pending`` is a sorted set of ids, ``job:{id}`` a hash of texts, ``jobs:active:{worker}`` a hash of
claimed jobs, ``jobs:completed`` and ``jobs:failed`` hashes of ended ones. What has no counterpart here is refused with
a reason, never dropped in silence.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from gateway.client.requests import JobRequest
from gateway.models import PRIORITY_DEFAULT, TIMEOUT_S_DEFAULT

#: Attempts of a job that does not say: the replaced system's default, counted as all tries.
MAX_ATTEMPTS_DEFAULT = 3
#: What it called a worker's memory, and what our examples call it.
_HARDWARE = {"gpu_memory_gb": "vram_gb", "ram_gb": "ram_gb", "cpu_cores": "cpu_cores"}
#: The value by which it said "whatever".
_ANY = "all"
_ENDED = frozenset({"completed", "failed", "cancelled", "timeout", "unworkable"})
_HELD = frozenset({"assigned", "accepted", "in_progress"})


class LegacyFate(enum.StrEnum):
    """What an import does with one id of the replaced system."""

    READY = "ready"
    RUNNING = "running"
    ENDED = "ended"
    NO_RECORD = "no_record"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class LegacyRules:
    """How to translate.

    Attributes:
        services: our service by its ``service_required``; a name that is missing stays as it is.
        ignored: requirements that are left out, by the name of the job's own key.
        take_running: also take jobs that a worker of the replaced system holds.
    """

    services: Mapping[str, str] = field(default_factory=dict)
    ignored: Collection[str] = ()
    take_running: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LegacyJob:
    """One id with its fate.

    Attributes:
        job_id: its id there, and here.
        fate: what becomes of it.
        reason: for people; why it is not ready.
        request: what to submit when ready.
        order: sorts jobs as the replaced system meant to run them: by priority, then by age.
    """

    job_id: str
    fate: LegacyFate
    reason: str = ""
    request: JobRequest | None = None
    order: tuple[int, float, str] = (0, 0.0, "")


class _Refusal(Exception):
    """A record that cannot be translated; the message says which field and why."""


def translate(job_id: str, record: Mapping[str, str], rules: LegacyRules) -> LegacyJob:
    """Decide about one job.

    Args:
        job_id: member of ``jobs:pending`` or of a worker's active hash.
        record: fields of ``job:{id}``; empty when there is no such hash.
        rules: how to translate.
    """
    if not record:
        return LegacyJob(job_id=job_id, fate=LegacyFate.NO_RECORD, reason=f"there is no hash job:{job_id}")
    status = record.get("status", "")
    if status in _ENDED:
        return LegacyJob(job_id=job_id, fate=LegacyFate.ENDED, reason=f"its status is {status}")
    if status in _HELD and not rules.take_running:
        holder = record.get("worker_id") or "a worker"
        return LegacyJob(job_id=job_id, fate=LegacyFate.RUNNING, reason=f"{holder} holds it ({status})")
    try:
        priority = _priority(record)
        request = JobRequest(
            service=_service(record, rules),
            payload=_json(record, "payload"),
            requires=_requires(record, rules) or None,
            priority=priority,
            max_attempts=_attempts_left(record),
            timeout_s=_timeout_s(record),
            job_id=job_id,
            tenant=record.get("customer_id", ""),
        )
        order = (-priority, _age_key_s(record), job_id)
    except _Refusal as refusal:
        return LegacyJob(job_id=job_id, fate=LegacyFate.REFUSED, reason=str(refusal))
    return LegacyJob(job_id=job_id, fate=LegacyFate.READY, request=request, order=order)


def _service(record: Mapping[str, str], rules: LegacyRules) -> str:
    named = record.get("service_required") or record.get("job_type") or record.get("type") or ""
    if not named:
        raise _Refusal("service_required: is missing")
    return rules.services.get(named, named)


def _json(record: Mapping[str, str], name: str) -> Any:
    text = record.get(name, "")
    if not text:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _Refusal(f"{name}: is no JSON: {error}") from None


def _whole(record: Mapping[str, str], name: str, default: int) -> int:
    text = record.get(name, "")
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise _Refusal(f"{name}: {text!r} is no whole number") from None


def _priority(record: Mapping[str, str]) -> int:
    """A workflow's priority stands above the job's own."""
    return _whole(record, "workflow_priority", _whole(record, "priority", PRIORITY_DEFAULT))


def _attempts_left(record: Mapping[str, str]) -> int:
    spent = _whole(record, "retry_count", 0)
    return max(1, _whole(record, "max_retries", MAX_ATTEMPTS_DEFAULT) - spent)


def _timeout_s(record: Mapping[str, str]) -> float:
    """The replaced system never read ``timeout_minutes``; what the submitter asked for holds from now on."""
    wanted = _requirements(record)[0].get("timeout_minutes")
    if wanted is None:
        return TIMEOUT_S_DEFAULT
    if isinstance(wanted, bool) or not isinstance(wanted, int | float) or not math.isfinite(wanted):
        raise _Refusal(f"requirements.timeout_minutes: {wanted!r} is no number")
    return wanted * 60.0


def _age_key_s(record: Mapping[str, str]) -> float:
    """When the workflow, or else the job, was submitted: seconds since 1970."""
    started_ms = _whole(record, "workflow_datetime", 0)
    if started_ms:
        return started_ms / 1000.0
    text = record.get("created_at", "")
    if not text:
        return 0.0
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise _Refusal(f"created_at: {text!r} is no ISO time") from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _requirements(record: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Positive and negative requirements; the flat shape holds positive ones only."""
    found = _json(record, "requirements")
    if found is None:
        return {}, {}
    if not isinstance(found, dict):
        raise _Refusal("requirements: is no JSON object")
    if {"positive_requirements", "negative_requirements"} & found.keys():
        positive, negative = (
            found.get("positive_requirements") or {},
            found.get("negative_requirements") or {},
        )
        if set(found) - {"positive_requirements", "negative_requirements"}:
            raise _Refusal("requirements: mixes the flat shape with positive_requirements")
    else:
        positive, negative = found, {}
    if not isinstance(positive, dict) or not isinstance(negative, dict):
        raise _Refusal("requirements: positive_requirements and negative_requirements are JSON objects")
    return positive, negative


def _requires(record: Mapping[str, str], rules: LegacyRules) -> dict[str, Any]:
    """Our predicates; both shapes of theirs."""
    positive, negative = _requirements(record)
    requires: dict[str, Any] = {}
    for name, value in positive.items():
        if name not in rules.ignored and name != "timeout_minutes":
            requires.update(_wanted(name, value))
    for name, value in negative.items():
        if name in rules.ignored or value == _ANY:
            continue
        if isinstance(value, dict):
            raise _Refusal(f"requirements.negative_requirements.{name}: an object has no counterpart here")
        requires.setdefault(name, {})
        requires[name]["not"] = value
    return requires


def _wanted(name: str, value: Any) -> dict[str, Any]:
    """Predicates for one positive requirement: lists must be contained, numbers reached, the rest equal."""
    if name == "customer_isolation":
        raise _Refusal(
            "requirements.customer_isolation: has no counterpart; give workers a capability and "
            "--ignore-requirement customer_isolation, or keep these jobs where they are"
        )
    if value == _ANY or value is None:
        return {}
    if name == "hardware" and isinstance(value, dict):
        unknown = sorted(set(value) - set(_HARDWARE))
        if unknown:
            raise _Refusal(f"requirements.hardware.{unknown[0]}: is not known")
        return {_HARDWARE[part]: _predicate(size) for part, size in value.items() if size != _ANY}
    if isinstance(value, dict):
        nested: dict[str, Any] = {}
        for part, inner in value.items():
            nested.update(_wanted(f"{name}.{part}", inner))
        return nested
    return {name: _predicate(value)}


def _predicate(value: Any) -> dict[str, Any]:
    if isinstance(value, list):
        return {"has": value}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return {">=": value}
    return {"==": value}
