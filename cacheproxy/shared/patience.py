"""One request's patience with the engine: after one deadline in vain, all the rest of the request does without it.

A request asks for an entry, then whose turn it is, then has an answer kept: each with a deadline of its own. Where the
engine hangs, only the first one is waited for. What a request begins beside itself shares its patience. A caller's
deadlines are short; an operator who keeps many answers at once would rather wait than hear which ones to send again.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

LOST_S = 1.0
"""How long it stays lost, unless the engine answers anybody: by then the breaker tells, and what took long is kept."""


OPERATORS_S = 2.0
"""How long an operator's work waits for one answer of the engine."""


@dataclass(slots=True)
class _Patience:
    least_s: float = 0.0
    lost_s: float = float("-inf")


_OF_REQUEST: ContextVar[_Patience | None] = ContextVar("patience", default=None)


def begin(least_s: float = 0.0) -> None:
    """Begin a request: it has all its patience, and waits at least so long where `replicas.timeout_ms` is less."""
    _OF_REQUEST.set(_Patience(least_s))


def least_s() -> float:
    """Return how long this request waits at least; 0 where that is for the settings to say."""
    patience = _OF_REQUEST.get()
    return 0.0 if patience is None else patience.least_s


def lose(now_s: float) -> None:
    """Note that a deadline passed in vain; nothing outside a request."""
    if (patience := _OF_REQUEST.get()) is not None:
        patience.lost_s = now_s


def lost(now_s: float, answered_s: float) -> bool:
    """Whether this request has waited in vain already, for an engine that last answered anybody at `answered_s`."""
    patience = _OF_REQUEST.get()
    return patience is not None and answered_s <= patience.lost_s and now_s < patience.lost_s + LOST_S
