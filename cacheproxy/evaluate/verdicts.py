"""A verifier's verdicts during a replay: asked for in the calling thread, and for no lookup twice."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from cacheproxy.policy.pairrule import Verify

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cacheproxy.model import Asking, Verification


class Scorer(Verify, Protocol):
    """What tells how probable it is that one question's answer is right for another."""

    @property
    def fingerprint(self) -> str:
        """A digest of everything its probabilities depend on."""
        ...


class ReplayVerifier:
    """`ports.Verifier` for replays: without a deadline, which would make a replay depend on the machine."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._known: dict[tuple[str, tuple[tuple[str, float], ...]], list[Verification]] = {}

    @property
    def fingerprint(self) -> str:
        """That of the scorer behind it."""
        return self._scorer.fingerprint

    def covers(self, epoch: str) -> bool:
        """Whether it was calibrated for an encoder: a replay has one, and whoever opens it sees to that."""
        return bool(epoch)

    async def verify(self, asked: Asking, kept: Sequence[tuple[Asking, float]]) -> list[Verification]:
        """Return a verification for each kept asking. Chains are not looked at."""
        pairs = tuple((asking.text, cosine) for asking, cosine in kept)
        key = asked.text, pairs
        if key not in self._known:
            self._known[key] = self._scorer.verify(asked.text, pairs)
        return self._known[key]

    def health(self) -> str:
        """Return "": it is always there."""
        return ""
