"""Schemas: whether a JSON value conforms to a JSON Schema that somebody else wrote. Pure.

Nothing is fetched, patterns run in linear time, and a schema whose check could take longer than the value is large is
refused: one that recurses, or that unfolds to more than a bounded number of parts.
"""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

import jsonschema_rs

_MOST_PARTS = 2_000
_MOST_DEPTH = 64
_ELSEWHERE = frozenset(("$id", "$anchor", "$dynamicAnchor", "$dynamicRef", "$recursiveAnchor", "$recursiveRef"))
"""What makes references mean something else than a place in the schema."""


def conforms(value: Any, schema: object) -> bool | None:
    """Return whether `value` conforms; None for a schema that is none, or that is refused."""
    if not isinstance(schema, (dict, bool)) or _unfolded(schema) > _MOST_PARTS:
        return None
    try:
        validator = jsonschema_rs.validator_for(
            schema, retriever=_nothing, pattern_options=jsonschema_rs.RegexOptions(), validate_formats=False
        )
        return bool(validator.is_valid(value))
    except ValueError:  # ValidationError and ReferencingError, and numbers that it cannot hold
        return None


def _nothing(address: str) -> Any:
    raise LookupError(f"schemas are not fetched, asked for one at {len(address)} characters")


def _unfolded(schema: dict[str, Any] | bool) -> int:
    """Return how many parts a schema has when every reference is replaced by what it means.

    More than enough for one that recurses, and for references that are not plain pointers into the schema.
    """
    known: dict[str, int] = {}
    too_many = _MOST_PARTS + 1

    def count(part: object, depth: int) -> int:
        if depth > _MOST_DEPTH:
            return too_many
        if isinstance(part, list):
            return min(too_many, 1 + sum(count(one, depth + 1) for one in part))
        if not isinstance(part, dict):
            return 1
        if depth and not _ELSEWHERE.isdisjoint(part):
            return too_many
        parts = 1 + sum(count(one, depth + 1) for one in part.values())
        address = part.get("$ref")
        return min(too_many, parts + (meant(address, depth) if isinstance(address, str) else 0))

    def meant(address: str, depth: int) -> int:
        if address not in known:
            known[address] = too_many  # until it is counted: one that comes back to itself
            target = _at(schema, address)
            known[address] = too_many if target is None else count(target, depth + 1)
        return known[address]

    return count(schema, 0)


def _at(schema: object, address: str) -> object:
    """Return what a pointer into the schema means (RFC 6901 section 6); None where it is none."""
    if address != "#" and not address.startswith("#/"):
        return None
    part = schema
    for raw in address.split("/")[1:]:
        name = unquote(raw).replace("~1", "/").replace("~0", "~")
        if isinstance(part, dict):
            part = part.get(name)
        elif isinstance(part, list) and name.isascii() and name.isdigit() and len(name) < 6:
            part = part[int(name)] if int(name) < len(part) else None
        else:
            return None
    return part
