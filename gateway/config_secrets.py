"""Secrets in the configuration: named by reference, looked up where they are used, never shown.

A reference is ``{ env = "VARIABLE" }`` or ``{ file = "/absolute/path" }``. A secret written into a file, into Redis or
onto a command line is refused: those are copied, logged and listed. Environment variables may hold one themselves.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

#: Keys whose values are never shown.
SECRET_KEY = re.compile(
    r"url|token|secret|password|passwd|authorization|credential|api_?key|otlp_endpoint", re.IGNORECASE
)
#: Keys whose text is a secret whatever it says; a subset of the above, by whole words.
_SECRET_NAME = re.compile(
    r"(^|[_.-])(tokens?|secrets?|passwords?|passwd|authorization|credentials?|api_?keys?)($|[_.-])",
    re.IGNORECASE,
)
#: Connectors also take a secret's place by the names ``…_env`` and ``…_file``: these hold no secret.
_NAMES_A_PLACE = re.compile(r"_(env|file)$", re.IGNORECASE)
HIDDEN = "(hidden)"
#: Addresses of our own schema that are shown, without credentials.
PLAIN_URLS = frozenset({"base_url", "redis_url"})
HOW = 'name it instead: { env = "VARIABLE" } or { file = "/absolute/path" }'
_REFERENCE_KEYS = ("env", "file")
#: A secret is a line, not a document.
SECRET_BYTES_MAX = 64 * 1024


class SecretProblem(ValueError):
    """A reference cannot be followed, or a secret stands where it must not; the text never holds the secret."""


def is_reference(value: object) -> bool:
    """Whether a value is ``{ env = … }`` or ``{ file = … }`` and nothing else."""
    if not (isinstance(value, Mapping) and len(value) == 1):
        return False
    ((key, target),) = value.items()
    return key in _REFERENCE_KEYS and isinstance(target, str)


def resolve(reference: Mapping[str, str], environment: Mapping[str, str]) -> str:
    """The secret that a reference names.

    Raises:
        SecretProblem: the variable is not set, or the file cannot be read; empty counts as absent.
    """
    ((kind, target),) = reference.items()
    if kind == "env":
        found = environment.get(target, "")
        if not found:
            raise SecretProblem(f"environment variable {target!r} is not set")
        return found
    path = Path(target)
    if not path.is_absolute():
        raise SecretProblem(f"secret file {target!r}: give an absolute path")
    try:
        with path.open("rb") as file:
            content = file.read(SECRET_BYTES_MAX + 1)
        text = content.decode("utf-8").removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise SecretProblem(f"secret file {target!r}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SecretProblem(f"secret file {target!r}: not UTF-8 text") from None
    if not text or len(content) > SECRET_BYTES_MAX:
        what = "is empty" if not text else f"has more than {SECRET_BYTES_MAX} bytes"
        raise SecretProblem(f"secret file {target!r} {what}")
    return text


def reveal(value: Any, environment: Mapping[str, str]) -> Any:
    """A copy of nested settings with every reference replaced by its secret.

    Raises:
        SecretProblem: see ``resolve``.
    """
    if is_reference(value):
        return resolve(value, environment)
    if isinstance(value, Mapping):
        return {key: reveal(item, environment) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [reveal(item, environment) for item in value]
    return value


def inline_secrets(values: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where nested settings hold a secret instead of a reference to one."""
    for key, value in values.items():
        here = (*path, str(key))
        if is_reference(value):
            continue
        if isinstance(value, Mapping):
            yield from inline_secrets(value, here)
        elif any(_is_secret(key, text) for text in _texts(value)):
            yield here


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _is_secret(key: str, text: str) -> bool:
    named = _SECRET_NAME.search(key) and not _NAMES_A_PLACE.search(key)
    return bool(text) and (bool(named) or has_password(text))


def has_password(text: str) -> bool:
    """Whether a text is an address with a password (or a token in its place) in it."""
    if "://" not in text:
        return False
    try:
        user, at, _ = urlsplit(text).netloc.rpartition("@")
    except ValueError:
        return "@" in text
    return bool(at) and bool(user)


def public(key: str, value: Any) -> Any:
    """A value for people to see: references as they are, secrets hidden."""
    if is_reference(value):
        return dict(value)
    if isinstance(value, Mapping):
        return {name: public(name, item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [public(key, item) for item in value]
    if not isinstance(value, str) or not value or _NAMES_A_PLACE.search(key):
        return value
    if has_password(value) or key in PLAIN_URLS:
        return public_url(value)
    return HIDDEN if SECRET_KEY.search(key) else value


def public_url(url: str) -> str:
    """An address without its credentials."""
    if not url:
        return ""
    parts = urlsplit(url)
    login = f"{HIDDEN}@" if "@" in parts.netloc else ""
    return f"{parts.scheme}://{login}{parts.netloc.rpartition('@')[2]}{parts.path}"
