"""The canonical form of a request body, and the refusal of bodies that have none.

Two bodies with the same canonical bytes mean the same to a backend: key order and white space do not count, everything
else does (text is compared byte for byte, no Unicode normalisation).
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from cacheproxy.errors import BodyTooLarge, InvalidRequest

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(order="deterministic").encode

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
# A text of a million commas exceeds every model's window; a million tiny values hold the interpreter for a second.
_MAX_COMMAS = 1_000_000
_ONE_BRACKET = bytes.maketrans(b"{}", b"[]")


def decode(body: bytes, max_depth: int) -> dict[str, Any]:
    """Decode a JSON object that every parser reads alike.

    Raises InvalidRequest for anything else: bad UTF-8, unpaired surrogates, NaN, numbers out of range, a byte order
    mark, nesting deeper than `max_depth`, and repeated keys (two parsers may disagree on which one counts).
    Raises BodyTooLarge for more than a million values.
    """
    if body.count(b",") > _MAX_COMMAS:
        raise BodyTooLarge(f"the request body holds more than {_MAX_COMMAS} values; send less")
    try:
        value = _decode(body)
    except UnicodeDecodeError as exc:
        raise InvalidRequest(
            f"the request body is not valid UTF-8 (byte {exc.object[exc.start]:#04x}); send UTF-8 JSON"
        ) from exc
    except RecursionError as exc:
        raise _too_deep(max_depth) from exc
    except msgspec.MsgspecError as exc:
        raise InvalidRequest(_why(body, exc)) from exc
    if not isinstance(value, dict):
        raise InvalidRequest(f"the request body must be a JSON object, got {_kind(value)}")
    if deeper_than(body, max_depth):
        raise _too_deep(max_depth)
    if _repeats_key(body, value):
        raise InvalidRequest("the request body repeats a key within one object; send each key once")
    return value


def canonical(value: object) -> bytes:
    """Return the one byte string of a decoded JSON value: keys sorted at every level, no white space."""
    return _encode(value)


def deeper_than(document: bytes, limit: int) -> bool:
    """Whether a valid JSON document nests arrays and objects more than `limit` levels deep; linear in its size."""
    if document.count(b"{") + document.count(b"[") <= limit:
        return False
    # Brackets match in valid JSON, so one kind stands for both, and each pass takes away exactly the innermost level.
    left = _outside_strings(document).translate(_ONE_BRACKET, _NOT_BRACKETS)
    for _ in range(limit):
        left = left.replace(b"[]", b"")
    return bool(left)


def _repeats_key(body: bytes, value: object) -> bool:
    kept = _encode(value)
    # A dropped duplicate takes a colon along; only an escaped colon, written plainly in `kept`, can balance that.
    if b"\\u003" not in body and body.count(b":") == kept.count(b":"):
        return False
    return _outside_strings(body).count(b":") != _outside_strings(kept).count(b":")


def _outside_strings(document: bytes) -> bytes:
    # Without escaped backslashes and escaped quotes, in this order, every quote left begins or ends a string.
    bare = document.replace(b"\\\\", b"").replace(b'\\"', b"")
    return b"".join(bare.split(b'"')[::2])


def _too_deep(max_depth: int) -> InvalidRequest:
    return InvalidRequest(f"the request body is nested deeper than {max_depth} levels")


def _why(body: bytes, exc: Exception) -> str:
    if not body.strip():
        return "the request body is empty; send a JSON object"
    if body.startswith(b"\xef\xbb\xbf"):
        return "the request body starts with a byte order mark; send plain UTF-8"
    if ("truncated" in str(exc) or "surrogate" in str(exc)) and _SURROGATE.search(body):
        return "the request body holds an unpaired UTF-16 surrogate (\\ud800 to \\udfff), which is not text"
    # msgspec's messages name positions and kinds, never content.
    return f"the request body is not valid JSON: {exc}"


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return {list: "an array", str: "a string", bool: "a boolean"}.get(type(value), "a number")
