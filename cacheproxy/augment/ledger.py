"""Ledger: what became of the questions that the small model might have had, counted by category. Pure; in memory."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cacheproxy.augment.arms import Arm

if TYPE_CHECKING:
    from cacheproxy.augment.arms import Choice


@dataclass(slots=True, kw_only=True)
class Page:
    """One category's counts since the start."""

    answers: Counter[Arm] = field(default_factory=Counter)
    """Answers given to their end, by who gave them."""
    reasons: Counter[str] = field(default_factory=Counter)
    """The same by why that arm was chosen."""
    failures: Counter[str] = field(default_factory=Counter)
    """Times the small model was to answer and did not, by reason; the large one answered unless words were out."""
    regret: float = 0.0
    """Score given up, as expected beforehand (`Choice.regret`)."""
    saved_s: float = 0.0
    saved_usd: float = 0.0

    @property
    def offloaded(self) -> int:
        """Answers that the small model gave."""
        return self.answers[Arm.AUGMENTED] + self.answers[Arm.SMALL]

    @property
    def ratio(self) -> float | None:
        """Share of the answers that the small model gave; None where nobody was answered."""
        every = self.answers.total()
        return self.offloaded / every if every else None


class Ledger:
    """Pages by category, of which packs have few. Not for several threads at once."""

    def __init__(self) -> None:
        self._pages: dict[str, Page] = {}

    def page(self, category: str) -> Page:
        """Return what was counted of a category; an empty page, not kept, where nothing was."""
        return self._pages.get(category) or Page()

    def answered(self, category: str, arm: Arm, choice: Choice) -> None:
        """Count an answer, by who gave it."""
        page = self._open(category)
        page.answers[arm] += 1
        page.reasons[choice.reason.value] += 1
        page.regret += choice.regret

    def failed(self, category: str, reason: str) -> None:
        """Count that the small model did not answer."""
        self._open(category).failures[reason] += 1

    def saved(self, category: str, *, seconds: float, usd: float) -> None:
        """Count what an answer of the small model spared; what is below 0 counts as nothing."""
        page = self._open(category)
        page.saved_s += max(0.0, seconds)
        page.saved_usd += max(0.0, usd)

    def _open(self, category: str) -> Page:
        return self._pages.setdefault(category, Page())
