"""The model of a body that is passed on unread."""

from __future__ import annotations

import msgspec

_LONGEST_NAME = 256


class _Asked(msgspec.Struct):
    model: str = ""


_decode = msgspec.json.Decoder(_Asked).decode


def peek_model(body: bytes) -> str:
    """Return the top-level `model` of a JSON object, or "" for anything else. Never raises."""
    try:
        model = _decode(body).model
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):  # ValidationError is a DecodeError
        return ""
    return model if len(model) <= _LONGEST_NAME else ""
