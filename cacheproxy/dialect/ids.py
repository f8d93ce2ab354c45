"""Response ids of hits: new each time, in the form of the backend's own, and telling which entry stands behind them."""

from __future__ import annotations

import random
import re

_PREFIX = re.compile(r"[A-Za-z]{1,30}[-_]")
_OURS = re.compile(r"[A-Za-z]{1,30}[-_](([0-9a-f]{32})0c[0-9a-f]{16})")


def new_tail(entry_id: str) -> str:
    """Return the last 50 hex digits of a new response id: the entry's id, a mark, and 64 random bits."""
    return f"{entry_id}0c{random.getrandbits(64):016x}"


def new_id(original: object, tail: str, default_prefix: str) -> str:
    """Return a fresh response id: the prefix of the backend's own (`chatcmpl-`, `resp_`) and the tail."""
    found = _PREFIX.match(original) if isinstance(original, str) else None
    return f"{found[0] if found else default_prefix}{tail}"


def tail_of(response_id: str) -> str:
    """Return the tail of an id that `new_id` made, or "" for any other."""
    found = _OURS.fullmatch(response_id)
    return found[1] if found else ""


def entry_of(response_id: str) -> str | None:
    """Return the id of the entry behind an id that `new_id` made, or None for any other."""
    found = _OURS.fullmatch(response_id)
    return found[2] if found else None
