"""One request's patience with the engine: after one deadline in vain, all the rest of the request does without it.

A request asks for an entry, then whose turn it is, then has an answer kept: each with a deadline of its own. Where the
engine hangs, only the first one is waited for. What a request begins beside itself shares its patience.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

LOST_S = 1.0
"""How long it stays lost: by then the breaker tells, and an answer that took long may be kept."""


@dataclass(slots=True)
class _Patience:
    lost_until_s: float = float("-inf")


_OF_REQUEST: ContextVar[_Patience | None] = ContextVar("patience", default=None)


def begin() -> None:
    """Begin a request: it has all its patience."""
    _OF_REQUEST.set(_Patience())


def lose(now_s: float) -> None:
    """Note that a deadline passed in vain; nothing outside a request."""
    if (patience := _OF_REQUEST.get()) is not None:
        patience.lost_until_s = now_s + LOST_S


def lost(now_s: float) -> bool:
    """Whether this request has waited in vain already."""
    patience = _OF_REQUEST.get()
    return patience is not None and now_s < patience.lost_until_s
