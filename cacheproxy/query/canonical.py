"""The canonical form of a request body, and the refusal of bodies that have none.

Two bodies with the same canonical bytes mean the same to a backend: key order and white space do not count, everything else does
(text is compared byte for byte, no Unicode normalisation).
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from cacheproxy.errors import InvalidRequest

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(order="deterministic").encode

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def decode(body: bytes, max_depth: int) -> dict[str, Any]:
    """Decode a JSON object that every parser reads alike.

    Raises InvalidRequest for anything else: bad UTF-8, unpaired surrogates, NaN, numbers out of range, a byte order mark, nesting
    deeper than `max_depth`, and repeated keys (two parsers may disagree on which one counts).
    """
    try:
        value = _decode(body)
    except UnicodeDecodeError as exc:
        raise InvalidRequest(
            f"the request body is not valid UTF-8 (byte {exc.object[exc.start]:#04x}); send UTF-8 JSON"
        ) from exc
    except RecursionError as exc:
        raise InvalidRequest(f"the request body is nested deeper than {max_depth} levels") from exc
    except msgspec.MsgspecError as exc:
        raise InvalidRequest(_why(body, exc)) from exc
    if not isinstance(value, dict):
        raise InvalidRequest(f"the request body must be a JSON object, got {_kind(value)}")
    # Both checks are exact; counting bytes first spares almost every body the walk.
    if body.count(b"{") + body.count(b"[") > max_depth and _depth(value) > max_depth:
        raise InvalidRequest(f"the request body is nested deeper than {max_depth} levels")
    if _may_repeat_keys(body, value) and _STRING.sub(b"", body).count(b":") != _pairs(value):
        raise InvalidRequest("the request body repeats a key within one object; send each key once")
    return value


def canonical(value: object) -> bytes:
    """Return the one byte string of a decoded JSON value: keys sorted at every level, no white space."""
    return _encode(value)


def _may_repeat_keys(body: bytes, value: object) -> bool:
    # A dropped duplicate takes at least one colon along, so equal counts mean none was dropped, unless an escaped colon balances it.
    return body.count(b":") != _encode(value).count(b":") or b"\\u003" in body


def _why(body: bytes, exc: Exception) -> str:
    if not body.strip():
        return "the request body is empty; send a JSON object"
    if body.startswith(b"\xef\xbb\xbf"):
        return "the request body starts with a byte order mark; send plain UTF-8"
    if "truncated" in str(exc) and _SURROGATE.search(body):
        return "the request body holds an unpaired UTF-16 surrogate (\\ud800 to \\udfff), which is not text"
    # msgspec's messages name positions and kinds, never content.
    return f"the request body is not valid JSON: {exc}"


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return {list: "an array", str: "a string", bool: "a boolean"}.get(type(value), "a number")


def _depth(value: object) -> int:
    deepest, stack = 0, [(value, 1)]
    while stack:
        node, depth = stack.pop()
        children = node.values() if isinstance(node, dict) else node if isinstance(node, list) else None
        if children is not None:
            deepest = max(deepest, depth)
            stack.extend((child, depth + 1) for child in children)
    return deepest


def _pairs(value: object) -> int:
    total, stack = 0, [value]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            total += len(node)
            stack.extend(node.values())
        elif isinstance(node, list):
            stack.extend(node)
    return total
