"""Response ids of hits: new each time, in the form of the backend's own, telling what was served for what."""

from __future__ import annotations

import hashlib
import random
import re

_PREFIX = re.compile(r"[A-Za-z]{1,30}[-_]")
_OURS = re.compile(r"[A-Za-z]{1,30}[-_](([0-9a-f]{32})0c([0-9a-f]{8})[0-9a-f]{8}([0-9a-f]{32})?)")


def new_tail(entry_id: str, original: object, question: bytes = b"") -> str:
    """Return the last 50 hex digits of a new response id, 82 for a similarity hit.

    The entry's id, a mark, a digest of the backend's own id (which answer it was: an entry may be refreshed), 32 random
    bits, and the first half of the exact fingerprint of a `question` that is not the entry's own.
    """
    return f"{entry_id}0c{_digest(original)}{random.getrandbits(32):08x}{question[:16].hex()}"


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


def question_of(response_id: str) -> bytes:
    """Return the first half of the exact fingerprint of a similarity hit's question (16 bytes); b"" for other ids."""
    found = _OURS.fullmatch(response_id)
    return bytes.fromhex(found[4] or "") if found else b""


def made_of(response_id: str, original: object) -> bool:
    """Whether `new_id` made this id for the answer that the backend gave under the id `original`."""
    found = _OURS.fullmatch(response_id)
    return found is not None and found[3] == _digest(original)


def _digest(original: object) -> str:
    told = original.encode("utf-8", "surrogatepass") if isinstance(original, str) else b""
    return hashlib.sha256(told).hexdigest()[:8]
