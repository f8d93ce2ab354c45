"""A call whose body is not ours: which model it asks for, and the same call asking for another."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

import msgspec

from cacheproxy.query.peek import peek_model

if TYPE_CHECKING:
    from cacheproxy.ports import Call

_PEEKED_BYTES = 1024 * 1024
_ONE_MODEL = "/v1/models/"

_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


def asked_model(call: Call) -> str:
    """Return the model that a call is about, by its path or by a JSON body of reasonable size; "" when unknown."""
    path = call.target.partition("?")[0]
    if path.startswith(_ONE_MODEL):
        return unquote(path.removeprefix(_ONE_MODEL))
    if isinstance(call.body, bytes) and 0 < len(call.body) <= _PEEKED_BYTES:
        return peek_model(call.body)
    return ""


def renamed(call: Call, old: str, new: str) -> Call:
    """Return the call asking for `new` instead: in the `model` of its JSON body, or in the path of `/v1/models/<name>`.

    All other values of the body stay as they were written, to the byte.
    """
    path, mark, query = call.target.partition("?")
    if path.startswith(_ONE_MODEL) and unquote(path.removeprefix(_ONE_MODEL)) == old:
        call = replace(call, target=_ONE_MODEL + quote(new, safe="") + mark + query)
    if not isinstance(call.body, bytes) or not call.body:
        return call
    try:
        body = _decode(call.body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return call
    if "model" not in body:
        return call
    body["model"] = msgspec.Raw(_encode(new))
    return replace(call, body=_encode(body))
