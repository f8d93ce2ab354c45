"""How long a caller may keep a connection waiting: pure rules over what each sweep sees."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, assert_never

if TYPE_CHECKING:
    from cacheproxy import settings

LINGER_S = 2.0
"""How long a caller who was refused may go on sending, so that it gets to read why (RFC 9112 section 9.6)."""


class Awaited(Enum):
    """What a connection waits for, from its caller."""

    NOTHING = "nothing"
    """The answer is ours to give, or it is us who stopped reading."""
    HEAD = "header_timeout"
    """The rest of a request's head."""
    BODY = "body_timeout"
    """The rest of a request's body."""
    LEFTOVER = "leftover_timeout"
    """The rest of a body whose request was answered already."""
    READER = "write_timeout"
    """That the caller takes what was written."""
    END = "linger_timeout"
    """That a caller who was refused ends its side."""
    REQUEST = "idle"
    """The next request."""


@dataclass(slots=True)
class Patience:
    """The clock of one connection. It starts at the first sweep that sees a wait, so it may run late, never early."""

    limits: settings.Server
    _awaited: Awaited = Awaited.NOTHING
    _turn: int = -1
    _since_s: float = 0.0
    _heard_s: float = 0.0
    _heard: int = 0
    _window_s: float = 0.0
    _window: int = 0

    def ends(self, awaited: Awaited, *, turn: int, received: int, now_s: float) -> bool:
        """Whether a wait has lasted too long.

        Another `turn` is another wait of the same kind; `received` counts all bytes of the connection.
        """
        if awaited is Awaited.NOTHING or awaited is not self._awaited or turn != self._turn:
            self._awaited, self._turn = awaited, turn
            self._since_s = self._heard_s = self._window_s = now_s
            self._heard = self._window = received
            return False
        if awaited is Awaited.BODY:
            return self._body_late(received, now_s)
        return now_s - self._since_s > self._most_s(awaited)

    def _body_late(self, received: int, now_s: float) -> bool:
        """Whether the body was silent for too long, or slower than allowed over one whole such span."""
        limits = self.limits
        if received != self._heard:
            self._heard, self._heard_s = received, now_s
        if now_s - self._heard_s > limits.body_timeout_s:
            return True
        span_s = now_s - self._window_s
        if span_s < limits.body_timeout_s:
            return False
        slow = received - self._window < span_s * limits.min_body_bytes_per_s
        self._window, self._window_s = received, now_s
        return slow

    def _most_s(self, awaited: Awaited) -> float:
        limits = self.limits
        match awaited:
            case Awaited.HEAD | Awaited.LEFTOVER:
                return limits.header_timeout_s
            case Awaited.READER:
                return limits.write_timeout_s
            case Awaited.END:
                return min(LINGER_S, limits.write_timeout_s)
            case Awaited.REQUEST:
                return limits.keep_alive_s
            case Awaited.BODY:
                return limits.body_timeout_s
            case Awaited.NOTHING:
                return float("inf")
            case _:
                assert_never(awaited)
