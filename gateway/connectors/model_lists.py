"""Asking a service over HTTP which models it has; what its answer looks like is the business of each connector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from protocols.errors import NotFound, ProtocolViolation, Unsupported
from protocols.http import JSON_TYPE, HTTPAdapter

#: Capability under which models are told, by every connector alike.
MODELS = "models"
#: Largest list, bytes: some ten thousand names. It bounds what is kept of an instance, too.
LIST_BYTES_MAX = 1024 * 1024
#: Longest wait for a list where the adapter's own bound is made for long work, seconds.
LIST_TIMEOUT_S = 10.0


async def ask_models(
    http: HTTPAdapter,
    path: str,
    read: Callable[[Any], list[str] | None],
    *,
    timeout_s: float | None = None,
    clean: Callable[[bytes], bytes] = bytes,
) -> list[str] | None:
    """Names of the models that a service lists; None when it has no such list (404, 501).

    Args:
        http: the adapter to the instance.
        path: where the list is, below the adapter's endpoint.
        read: takes the names from the JSON value; None for a value that is no such list.
        timeout_s: seconds for the question; the adapter's own bound by default.
        clean: applied to the answer before it is read, to take secrets out.

    Raises:
        ProtocolError: the service could not be asked, or answered something else.
    """
    headers = {"accept": JSON_TYPE}
    try:
        reply = await http.request(
            "GET", path, headers=headers, timeout_s=timeout_s, body_bytes_max=LIST_BYTES_MAX
        )
    except (NotFound, Unsupported):
        return None
    try:
        names = read(msgspec.json.decode(clean(reply.body)))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolViolation(f"GET {path}: the list of models is not JSON: {error}") from error
    if names is None:
        raise ProtocolViolation(f"GET {path}: the answer holds no list of models")
    return names


def names_in(items: Any, member: str = "") -> list[str] | None:
    """The names in a list, each once and in its order; entries without one are left out. None for no list (pure).

    Args:
        items: what should be a list of names, or of objects that hold one.
        member: where in such an object; empty when the entries are the names themselves.
    """
    if not isinstance(items, list):
        return None
    if member:
        items = [item.get(member) for item in items if isinstance(item, dict)]
    return list(dict.fromkeys(name for name in items if isinstance(name, str) and name))
