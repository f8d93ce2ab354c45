"""The lease of one log, and what counts as a gap in it. No I/O and no clock: times are passed in, in seconds.

The rule of all: a lease runs from the moment *before* a heartbeat was sent, and only once everything that the log held
when the heartbeat arrived was applied here. So who holds a lease that was granted after a purge has applied the purge.
"""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from cacheproxy.shared.wire import Identity

MARGIN_PART, MARGIN_S = 0.1, 0.05
SCHEMA = 1
"""Of what is kept in the engine: a greater number is of a later version that this one must not touch."""


class Position(NamedTuple):
    """A place in a log: milliseconds, and a number within one."""

    ms: int
    number: int

    @classmethod
    def read(cls, text: str | bytes) -> Position:
        """Read an id of a stream; an empty one is the beginning."""
        said = text.decode() if isinstance(text, bytes) else text
        ms, _, number = said.partition("-")
        return cls(int(ms or 0), int(number or 0))

    def __str__(self) -> str:
        return f"{self.ms}-{self.number}"


BEGINNING = Position(0, 0)


class Data(NamedTuple):
    """Which data a lease was granted on: its mark, and its history, which a restart or a failover changes."""

    epoch: str
    replication_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a heartbeat brought back."""

    head: Position
    """The last id that the log gave out."""
    first: Position | None
    """The oldest message that it still holds."""
    epoch: str
    identity: Identity
    replication_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What was true before a heartbeat was sent."""

    at_s: float
    serving: bool
    applied: Position
    turn: int


def margin_s(lease_s: float) -> float:
    """Return what is added to another replica's lease before it counts as over: clocks do not run alike."""
    return lease_s * MARGIN_PART + MARGIN_S


def schema_of(epoch: str) -> int | None:
    """Return the version an epoch was made by, None for what is not an epoch of ours."""
    found = re.fullmatch(r"([0-9]{1,6}):[0-9a-f]{32}", epoch)
    return int(found[1]) if found else None


class Lease:
    """Whether what is known of one log may be served. It begins in a gap: nothing is known."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._pending: deque[tuple[Position, float]] = deque()
        self._until_s = float("-inf")
        self._heard_s = float("-inf")
        self._turn = 0
        self.applied = BEGINNING
        self.head = BEGINNING
        self.gap: str | None = "start"
        self.seen: Seen | None = None
        self.changed_s = float("-inf")
        """When the engine was last found to be another one than before."""

    @property
    def state(self) -> str:
        """`syncing` or `serving`, as others are told."""
        return "syncing" if self.gap else "serving"

    def held(self, now_s: float, identity: Identity | None) -> bool:
        """Whether it holds at this moment, for the engine that answers at this moment."""
        return now_s < self._until_s and self.seen is not None and identity == self.seen.identity

    def left_s(self, now_s: float) -> float:
        """Return for how long it still holds."""
        return max(0.0, self._until_s - now_s)

    def send(self, now_s: float) -> Sent:
        """Note that a heartbeat is about to be sent."""
        return Sent(at_s=now_s, serving=self.gap is None, applied=self.applied, turn=self._turn)

    def hear(self, sent: Sent, seen: Seen, now_s: float, *, confirmed: bool = True) -> str | None:
        """Take what a heartbeat brought back; return the gap that it showed, if it did."""
        before, away_s = self.seen, now_s - self._heard_s
        self.seen, self.head, self._heard_s = seen, seen.head, now_s
        if before is not None and (_another(before, seen) or before.epoch != seen.epoch):
            self.changed_s = now_s
            if self.gap is not None:
                self._turn += 1  # what is being read again may be of both
        if self.gap is not None or sent.turn != self._turn:
            return None
        gap = _gap(before, seen, sent.applied, away_s > self._lease_s)
        if gap is not None:
            self.lose(gap)
        elif sent.serving and confirmed:
            if self._pending and self._pending[-1][0] == seen.head:
                self._pending.pop()
            self._pending.append((seen.head, sent.at_s))
            while self._pending[0][1] + self._lease_s < now_s:
                self._pending.popleft()
                if not self._pending:
                    return None
            self._extend()
        return gap

    def apply(self, position: Position) -> None:
        """Note that everything up to this message was applied."""
        self.applied = max(self.applied, position)
        self._extend()

    def lose(self, reason: str) -> None:
        """Stop: something may have been missed."""
        self.gap = reason
        self._turn += 1
        self._until_s = float("-inf")
        self._pending.clear()

    def begin(self) -> int:
        """Note that everything is read again; the number says for which loss."""
        return self._turn

    def end(self, turn: int, position: Position) -> bool:
        """Note that everything up to `position` was read; False where something was lost again in the meantime."""
        if turn != self._turn:
            return False
        self.gap = None
        self._turn += 1
        self.applied = position
        self._pending.clear()
        return True

    def _extend(self) -> None:
        while self._pending and self._pending[0][0] <= self.applied:
            _, at_s = self._pending.popleft()
            self._until_s = max(self._until_s, at_s + self._lease_s)


def _another(before: Seen, seen: Seen) -> bool:
    return (before.identity, before.replication_id) != (seen.identity, seen.replication_id)


def _gap(before: Seen | None, seen: Seen, applied: Position, cut_off: bool) -> str | None:
    if before is not None and before.epoch != seen.epoch:
        return "epoch"
    if before is not None and _another(before, seen):
        return "engine"
    if seen.head < applied:
        return "rolled_back"
    if seen.head > applied and (seen.first is None or seen.first > applied):
        return "trimmed"
    return "cut_off" if cut_off else None
