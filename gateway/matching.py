"""Which worker may run which job: typed predicates over capabilities, evaluated once per class (pure).

``requires`` maps a capability's name to a predicate: an object with one or more of the operators below (all must
hold), or a plain value, short for ``{"==": value}``.

=======  ==================================================================================
``==``   the capability equals the value (or, for a list capability, contains it)
``>=``   the capability is a number not below the value
``<=``   the capability is a number not above the value
``in``   the capability is one of the listed values
``has``  the capability is a list that holds the value (or every one of the listed values)
``not``  the capability is absent, differs from the value(s), and holds none of them
=======  ==================================================================================
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import msgspec

from gateway.errors import InvalidSubmission
from gateway.models import ClassId, JobClass

REQUIREMENTS_MAX = 32
VALUES_MAX = 64
_OPERATORS = ("==", ">=", "<=", "in", "has", "not")
_Scalar = (str, int, float, bool)

_encode = msgspec.json.Encoder(order="sorted").encode
_decode_class = msgspec.json.Decoder(list[Any]).decode
_plain_classes: dict[str, tuple[JobClass, bytes]] = {}


def _fail(name: str, problem: str) -> InvalidSubmission:
    return InvalidSubmission(f"requires.{name}: {problem}")


def _check_scalar(name: str, operator: str, value: Any) -> None:
    if not isinstance(value, _Scalar) or (isinstance(value, float) and not math.isfinite(value)):
        raise _fail(name, f"{operator} takes text, a finite number or true/false, not {value!r}")


def _check_list(name: str, operator: str, value: Any, *, empty_allowed: bool) -> None:
    values = value if isinstance(value, list) else [value]
    if not values and not empty_allowed:
        raise _fail(name, f"{operator} with an empty list can never match")
    if len(values) > VALUES_MAX:
        raise _fail(name, f"{operator} takes at most {VALUES_MAX} values, not {len(values)}")
    for item in values:
        _check_scalar(name, operator, item)


def _check_operator(name: str, operator: str, value: Any) -> None:
    if operator not in _OPERATORS:
        raise _fail(name, f"unknown operator {operator!r}; known are {', '.join(_OPERATORS)}")
    if operator in (">=", "<="):
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise _fail(name, f"{operator} takes a finite number, not {value!r}")
    elif operator == "==":
        _check_scalar(name, operator, value)
    elif operator == "in" and not isinstance(value, list):
        raise _fail(name, f"in takes a list, not {value!r}")
    else:
        _check_list(name, operator, value, empty_allowed=operator == "not")


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _check_possible(name: str, predicate: Mapping[str, Any]) -> None:
    low, high = predicate.get(">=", -math.inf), predicate.get("<=", math.inf)
    if low > high:
        raise _fail(name, f">= {low} and <= {high} can never both hold")
    banned = _as_list(predicate.get("not", []))
    wanted = _as_list(predicate["has"]) if "has" in predicate else []
    if "==" in predicate:
        wanted = [*wanted, predicate["=="]]
    for value in wanted:
        if value in banned:
            raise _fail(name, f"{value!r} is both wanted and excluded")
    exact = [predicate["=="]] if "==" in predicate else None
    candidates = predicate.get("in", exact)
    if candidates is None or "has" in predicate:
        return
    if exact and "in" in predicate and exact[0] not in predicate["in"]:
        raise _fail(name, f"== {exact[0]!r} is not among in {predicate['in']!r}")
    bounded = ">=" in predicate or "<=" in predicate
    possible = [
        value
        for value in candidates
        if value not in banned and (not bounded or (_is_number(value) and low <= value <= high))
    ]
    if not possible:
        raise _fail(name, f"no value can satisfy {dict(predicate)!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def validate_requires(requires: Any) -> dict[str, Any]:
    """Check requirements and bring them into canonical form (every predicate an object).

    Args:
        requires: what the submitter wrote; None counts as no requirement.

    Raises:
        InvalidSubmission: malformed, or a predicate that no capability could ever satisfy.
    """
    if requires is None:
        return {}
    if not isinstance(requires, dict):
        raise InvalidSubmission(f"requires must be an object of predicates, not {type(requires).__name__}")
    if len(requires) > REQUIREMENTS_MAX:
        raise InvalidSubmission(
            f"requires has {len(requires)} entries; at most {REQUIREMENTS_MAX} are allowed"
        )
    canonical: dict[str, Any] = {}
    for name, given in requires.items():
        if not isinstance(name, str) or not name:
            raise InvalidSubmission(f"requires has a capability without a name: {name!r}")
        predicate = given if isinstance(given, dict) else {"==": given}
        if not predicate:
            raise _fail(name, "the predicate is empty")
        for operator, value in predicate.items():
            _check_operator(name, operator, value)
        _check_possible(name, predicate)
        canonical[name] = predicate
    return canonical


def class_of(service: str, requires: Mapping[str, Any], tenant: str = "") -> tuple[JobClass, bytes]:
    """The class of a job and its canonical JSON, which the store keeps once per class.

    Args:
        service: the job's service.
        requires: canonical requirements from ``validate_requires``.
        tenant: whose job it is; empty for nobody's in particular.
    """
    if not requires and not tenant:
        plain = _plain_classes.get(service)
        if plain is None:
            plain = _class_of(service, {}, "")
            if (
                len(_plain_classes) < 1024
            ):  # the cache is bounded: services are few, but their names are input
                _plain_classes[service] = plain
        return plain
    return _class_of(service, dict(requires), tenant)


def _class_of(service: str, requires: dict[str, Any], tenant: str) -> tuple[JobClass, bytes]:
    encoded = _encode((service, requires, tenant) if tenant else (service, requires))
    digest = hashlib.blake2b(encoded, digest_size=8).hexdigest()
    class_id = ClassId(f"{service}:{digest}" if requires or tenant else service)
    return JobClass(class_id, service, requires, tenant), encoded


def decode_class(class_id: str, encoded: bytes | str) -> JobClass:
    """Read back what ``class_of`` produced."""
    service, requires, *tenant = _decode_class(encoded)
    return JobClass(ClassId(class_id), service, requires, *tenant)


def unmet(requires: Mapping[str, Any], capabilities: Mapping[str, Any]) -> list[str]:
    """The predicates that these capabilities do not satisfy, as readable lines; empty means a match."""
    return [
        f"{name} {operator} {value!r} (worker has {repr(capabilities[name]) if name in capabilities else 'nothing'})"
        for name, predicate in requires.items()
        for operator, value in predicate.items()
        if not _holds(operator, value, capabilities.get(name))
    ]


def matches(requires: Mapping[str, Any], capabilities: Mapping[str, Any]) -> bool:
    """Whether these capabilities satisfy every predicate."""
    return not unmet(requires, capabilities)


def _holds(operator: str, value: Any, capability: Any) -> bool:
    held = [] if capability is None else _as_list(capability)
    if operator == "not":
        return not any(item in held for item in _as_list(value))
    if capability is None:
        return False
    if operator == "==":
        return capability == value or value in held
    if operator == "in":
        return any(item in value for item in held)
    if operator == "has":
        return isinstance(capability, list) and all(item in held for item in _as_list(value))
    if not _is_number(capability):
        return False
    return bool(capability >= value) if operator == ">=" else bool(capability <= value)
