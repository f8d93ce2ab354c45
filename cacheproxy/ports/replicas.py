"""The other replicas of this proxy, where it has any: who has applied what, and who is there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledgement:
    """Whether every replica has removed what was removed here.

    Each of the `laggards` may serve it for `until_s` seconds more, and none of them longer.
    """

    laggards: tuple[str, ...] = ()
    until_s: float = 0.0

    @property
    def everybody(self) -> bool:
        """Whether nobody serves it any more."""
        return not self.laggards


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaState:
    """One replica, as the engine knows it."""

    replica: str
    state: str
    """`serving`, `syncing`, or `gone`: not heard of for longer than its lease."""
    heard_s: float
    """How long ago its last heartbeat arrived, the oldest of all logs."""
    applied: Mapping[str, str]
    """Log -> the last message it has applied."""
    lease_s: float
    """For how long it may serve without another heartbeat."""
    behind_s: float
    """How old what it has applied is against the replica that has applied most."""
    up_s: float | None
    """How long it has been there; None where it does not tell."""


class Replicas(Protocol):
    """All replicas, this one among them."""

    @property
    def own(self) -> str:
        """The name of this one; "" where nothing is shared."""
        ...

    def asked(self) -> Mapping[int, str]:
        """Return up to where removals were asked for here so far, to be handed to `acknowledged` after the next one."""
        ...

    async def acknowledged(self, since: Mapping[int, str]) -> Acknowledgement:
        """Wait, but not long, until every replica has applied all removals that were asked for here since then."""
        ...

    async def listed(self) -> Sequence[ReplicaState]:
        """Return those that were heard of of late. Raises SharedUnavailable."""
        ...

    def lag_s(self) -> float:
        """Return how far this one is behind."""
        ...

    def lease_s(self) -> float:
        """Return for how long this one may serve without hearing from the engine again; 0 while it may not."""
        ...

    def ails(self) -> str:
        """Return why this one serves nothing that is kept, or keeps nothing more, and what to do; "" when it does."""
        ...

    def openings(self) -> int:
        """Return how often the engine failed so that it was left alone for a moment."""
        ...
