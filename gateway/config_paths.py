"""Paths through the settings: written as TOML writes keys, looked up in the schema and in nested values (pure)."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from gateway.config import ENV_DELIMITER, ENV_PREFIX, GatewayConfig
from gateway.config_secrets import is_reference
from gateway.config_toml import Path

#: Stands for every name at its place.
ANY = "*"


def text_of(path: Sequence[str]) -> str:
    """A path as TOML writes it: ``workers.gpu0.slots``, with quotation marks where a part needs them."""
    return ".".join(_part(part) for part in path)


def _part(part: str) -> str:
    plain = part.isascii() and part.replace("_", "").replace("-", "").isalnum()
    # JSON and TOML escape alike but for DEL, which TOML wants escaped.
    return part if plain or part == ANY else json.dumps(part, ensure_ascii=False).replace("\x7f", "\\u007f")


def matches(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether a path is the pattern's or lies below it; ``*`` in the pattern fits any one part."""
    return len(path) >= len(pattern) and all(
        wanted in (ANY, part) for part, wanted in zip(path, pattern, strict=False)
    )


def below(annotation: Any, part: str) -> Any:
    """The type one level down in the schema; None when there is no such level."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        info = annotation.model_fields.get(part)
        return info.annotation if info else None
    for inner in (annotation, *get_args(annotation)):
        if get_origin(inner) is dict:
            value_type = get_args(inner)[1]
            # Below a dictionary of anything there is no schema to turn text into numbers by: JSON only.
            return None if value_type is Any else value_type
        if inner is not annotation and below(inner, part) is not None:
            return below(inner, part)
    return None


def annotation_of(path: Sequence[str]) -> Any:
    """The type of the value at a path of the schema; None where the schema has no such place."""
    annotation: Any = GatewayConfig
    for part in path:
        annotation = below(annotation, part)
    return annotation


def is_section(annotation: Any) -> bool:
    """Whether the value is a table."""
    return any(
        get_origin(inner) is dict or (isinstance(inner, type) and issubclass(inner, BaseModel))
        for inner in (annotation, *get_args(annotation))
    )


def suggestion(annotation: Any, part: str) -> str:
    """What an unknown key may have been meant to be."""
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        return ""
    known = sorted(annotation.model_fields)
    for section in known:
        rest = part.removeprefix(f"{section}_")
        if rest != part and below(annotation.model_fields[section].annotation, rest) is not None:
            variable = f"{ENV_PREFIX}{section}{ENV_DELIMITER}{rest}".upper()
            return f"; did you mean {section}.{rest} ({variable})?"
    close = difflib.get_close_matches(part, known, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(known)}"


def leaves(values: Mapping[str, Any], path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Each single value with its path; empty tables and references to secrets count as single values."""
    for key, value in values.items():
        here = (*path, str(key))
        if isinstance(value, Mapping) and value and not is_reference(value):
            yield from leaves(value, here)
        else:
            yield here, value


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """``high`` over ``low``, table by table; a reference to a secret is replaced as a whole."""
    merged = dict(low)
    for key, value in high.items():
        old = merged.get(key)
        tables = isinstance(old, Mapping) and isinstance(value, Mapping)
        if tables and not is_reference(old) and not is_reference(value):
            merged[key] = merge(old, value)  # type: ignore[arg-type]
        else:
            merged[key] = value
    return merged


def holds(values: Any, path: Sequence[str]) -> bool:
    """Whether nested values have something at that path."""
    for part in path:
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def value_at(values: Any, path: Sequence[str]) -> Any:
    """The value at a path that ``holds`` found."""
    for part in path:
        values = values[part]
    return values


def nested(path: Sequence[str], value: Any) -> dict[str, Any]:
    """One value as nested settings."""
    for part in reversed(path):
        value = {part: value}
    result: dict[str, Any] = value
    return result
