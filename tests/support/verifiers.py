"""Verifiers for tests: one that believes the cosine, and one that fails when told to."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from cacheproxy.errors import VerifierUnavailable
from cacheproxy.model import Verification

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cacheproxy.model import Asking

LIKELY, UNLIKELY = 0.95, 0.1


class CosineScorer:
    """Finds two texts to be one question from a cosine on, unless one of them holds a word that vetoes."""

    def __init__(self, bar: float = 0.8, *, vetoes: frozenset[str] = frozenset()) -> None:
        self.asked: list[tuple[str, str]] = []
        self._bar = bar
        self._vetoes = vetoes

    def score(self, pairs: Sequence[tuple[str, str, float]]) -> list[Verification]:
        """Return a verification for each pair."""
        self.asked += [pair[:2] for pair in pairs]
        return [self._word(*pair) for pair in pairs]

    def _word(self, asked: str, kept: str, cosine: float) -> Verification:
        told = {*asked.lower().split(), *kept.lower().split()}
        veto = next((word for word in sorted(self._vetoes) if word in told), "")
        return Verification(probability=LIKELY if cosine >= self._bar else UNLIKELY, veto=veto)


class CosineVerifier:
    """A Verifier that asks a CosineScorer; `broken` makes it fail."""

    fingerprint = "cosine"

    def __init__(self, scorer: CosineScorer | None = None) -> None:
        self.scorer = scorer or CosineScorer()
        self.broken = False

    def covers(self, epoch: str) -> bool:
        """Cover every encoder."""
        return bool(epoch)

    async def verify(self, asked: Asking, kept: Sequence[tuple[Asking, float]]) -> list[Verification]:
        """Return a verification for each kept asking."""
        if self.broken:
            raise VerifierUnavailable("told to")
        return self.scorer.score([(asked.text, asking.text, cosine) for asking, cosine in kept])

    def health(self) -> str:
        """Tell whether it is broken."""
        return "broken" if self.broken else ""


class StepScorer:
    """A verifier's scorer whose word a test writes down: `p0.7` in a text is the probability, `no-NAME` a veto.

    Its steps are those of the real one; the cheap score is surer than it should be of texts that say `bold`, and what
    says `spared` is read with the rules off only.
    """

    fingerprint = "steps/1"

    def __init__(self, *, rules: bool = True) -> None:
        self.asked: list[tuple[str, str]] = []
        self._rules = rules

    def without_rules(self) -> StepScorer:
        """Return the same one with its rules off."""
        return StepScorer(rules=False)

    def forget(self) -> int:
        """Forget what was asked."""
        known = len(self.asked)
        self.asked.clear()
        return known

    def score(self, pairs: Sequence[tuple[str, str, float]]) -> list[Verification]:
        """Return a verification for each pair."""
        return [word for asked, kept, cosine in pairs for word in self.verify(asked, [(kept, cosine)])]

    def verify(self, asked: str, kept: Iterable[tuple[str, float]]) -> list[Verification]:
        """Return a verification for each kept text."""
        found = []
        for text, cosine in kept:
            self.asked.append((asked, text))
            both = f"{asked} {text}"
            told = re.search(r"\bp(0\.\d+)", both)
            veto = re.search(r"\bno-(\w+)", both) if self._rules else None
            probability = float(told[1]) if told else LIKELY
            cheap = LIKELY if "bold" in both else probability
            spared = self._rules and "spared" in both
            steps = (("cosine", cosine), ("cheap", cheap), ("sure" if spared else "cross", probability))
            found.append(Verification(probability=probability, veto=veto[1] if veto else "", steps=steps))
        return found
