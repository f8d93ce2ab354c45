"""What became of a stream's questions, counted as they pass and scored in the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from cacheproxy.evaluate.plot import line
from cacheproxy.model import Bypass, Hit, Tier
from cacheproxy.policy.calibrate import Interval, average_precision, best_f, curve, ratio, wilson

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cacheproxy.evaluate.plot import Line
    from cacheproxy.evaluate.replay import Asked
    from cacheproxy.model import Outcome

NEVER = -1.0
"""The rank of a question that nothing was proposed for."""
_COUNTS = ("n", "right", "missed", "hits", "stale_hits", "exact_hits", "bypasses", "repeated", "positives")


class StreamScore(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a stream's questions. An undefined ratio (0/0) is None.

    A hit is false when its entry holds another answer than the question's own. It is stale, too, when the right answer
    is known to have taken that one's place: some question had the one first and the other later. `repeated` questions
    have an answer that was given before: a perfect cache without limits would hit these and no others. Of these,
    `positives` could have been served: the answer was kept, and not expired. `evictions` count the entries that went
    before their time: because the store was full, or their category or tenant held too much of it.

    `tp` are right hits, `fp` false ones, `fn` positives that missed, `tn` all else that missed. `precision` is tp of
    all hits, `recall` tp of all positives: one that was served another answer is no success. `hit_rate` is hits / n,
    `false_hit_rate` false hits / hits, `error_rate` false hits / n, `stale_hit_rate` stale hits / hits. The last three
    rank questions by what decided on their best candidate (probability, else similarity), each as if asked alone.
    """

    n: int
    tp: int
    fp: int
    fn: int
    tn: int
    hits: int
    false_hits: int
    stale_hits: int
    evictions: int
    exact_hits: int
    bypasses: int
    repeated: int
    positives: int
    precision: float | None
    recall: float | None
    f1: float | None
    f05: float | None
    hit_rate: float | None
    false_hit_rate: float | None
    error_rate: float | None
    stale_hit_rate: float | None
    average_precision: float | None
    best_f1: float | None
    best_f1_threshold: float | None


class StreamIntervals(msgspec.Struct, frozen=True, kw_only=True):
    """95 % Wilson intervals; None where the ratio is undefined. They take questions for independent of each other."""

    precision: Interval | None
    recall: Interval | None
    hit_rate: Interval | None
    false_hit_rate: Interval | None
    error_rate: Interval | None
    stale_hit_rate: Interval | None


class CategoryScore(StreamScore, frozen=True, kw_only=True):
    """The same of one category, with its intervals."""

    intervals: StreamIntervals


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One question's end: what was decided, and what would have been right.

    `served` is the id of the answer that was served, `nearest` that of the best candidate's, served or not; both "" for
    none. `rank` is what decided on that candidate. `refused` are the candidates of a miss that were near enough to be
    served: why they were not, and whether rightly.
    """

    asked: Asked
    outcome: Outcome
    served: str = ""
    nearest: str = ""
    rank: float = NEVER
    refused: tuple[tuple[str, bool], ...] = ()


@dataclass(slots=True, kw_only=True)
class Tally:
    """Counts of one group of questions."""

    n: int = 0
    right: int = 0
    missed: int = 0
    """Positives without a hit."""
    hits: int = 0
    stale_hits: int = 0
    exact_hits: int = 0
    bypasses: int = 0
    repeated: int = 0
    positives: int = 0
    ranks: list[tuple[float, bool, bool]] = field(default_factory=list)
    """Of each question: what decided on its best candidate, whether that was right, and whether it was served."""
    refused: Counter[tuple[str, bool]] = field(default_factory=Counter)
    """By reason, and whether rightly: candidates that were near enough to be served."""

    def count(self, case: Case, *, repeated: bool, positive: bool, stale: bool) -> None:
        """Count one question."""
        self.n += 1
        self.repeated += repeated
        self.positives += positive
        self.bypasses += isinstance(case.outcome, Bypass)
        right = case.rank > NEVER and case.nearest == case.asked.answer_id
        self.ranks.append((case.rank, right, isinstance(case.outcome, Hit)))
        if isinstance(case.outcome, Hit):
            self.hits += 1
            self.exact_hits += case.outcome.tier is Tier.EXACT
            self.right += case.served == case.asked.answer_id
            self.stale_hits += stale
            return
        self.missed += positive
        self.refused.update(case.refused)

    @classmethod
    def total(cls, tallies: Iterable[Tally]) -> Tally:
        """Return the sum of several."""
        total = cls()
        for tally in tallies:
            for name in _COUNTS:
                setattr(total, name, getattr(total, name) + getattr(tally, name))
            total.ranks += tally.ranks
            total.refused += tally.refused
        return total

    def score(self, evictions: int) -> dict[str, Any]:
        """Return the fields of a StreamScore."""
        false = self.hits - self.right
        swept = curve([one[0] for one in self.ranks], [one[1] for one in self.ranks]) if self.n else None
        best = best_f(swept, 1.0) if swept else None
        return {
            "n": self.n,
            "tp": self.right,
            "fp": false,
            "fn": self.missed,
            "tn": self.n - self.hits - self.missed,
            "hits": self.hits,
            "false_hits": false,
            "stale_hits": self.stale_hits,
            "evictions": evictions,
            "exact_hits": self.exact_hits,
            "bypasses": self.bypasses,
            "repeated": self.repeated,
            "positives": self.positives,
            "precision": ratio(self.right, self.hits),
            "recall": ratio(self.right, self.positives),
            "f1": self._f(1.0),
            "f05": self._f(0.5),
            "hit_rate": ratio(self.hits, self.n),
            "false_hit_rate": ratio(false, self.hits),
            "error_rate": ratio(false, self.n),
            "stale_hit_rate": ratio(self.stale_hits, self.hits),
            "average_precision": average_precision(swept) if swept else None,
            "best_f1": best[0] if best else None,
            "best_f1_threshold": best[1] if best else None,
        }

    def intervals(self) -> StreamIntervals:
        """Return the intervals of the ratios."""
        false = self.hits - self.right
        return StreamIntervals(
            precision=wilson(self.right, self.hits),
            recall=wilson(self.right, self.positives),
            hit_rate=wilson(self.hits, self.n),
            false_hit_rate=wilson(false, self.hits),
            error_rate=wilson(false, self.n),
            stale_hit_rate=wilson(self.stale_hits, self.hits),
        )

    def line(self, name: str) -> Line:
        """Return precision against hit rate."""
        ranks, right, served = zip(*self.ranks, strict=True)
        return line(name, ranks, right, served)

    def _f(self, beta: float) -> float | None:
        """F-beta, of precision and recall as they are told; None without positives."""
        if not self.positives:
            return None
        squared = beta**2
        return ratio((1 + squared) * self.right, self.hits + squared * self.positives)


class Truth:
    """Which answers were right once, and until when they are kept: learnt from the stream as it passes."""

    def __init__(self) -> None:
        self._given: set[str] = set()
        self._expires_s: dict[str, float] = {}
        self._of_text: dict[str, list[str]] = {}
        self._replaced: set[tuple[str, str]] = set()

    def take(self, asked: Asked) -> bool:
        """Take a question with its right answer; return whether that answer was given before."""
        repeated = asked.answer_id in self._given
        self._given.add(asked.answer_id)
        answers = self._of_text.setdefault(asked.text, [])
        if asked.answer_id in answers:
            answers.remove(asked.answer_id)
        self._replaced.update((old, asked.answer_id) for old in answers)
        self._replaced.difference_update((asked.answer_id, old) for old in answers)
        answers.append(asked.answer_id)
        return repeated

    def superseded(self, served: str, right: str) -> bool:
        """Whether the right answer has taken the place of the one that was served."""
        return (served, right) in self._replaced

    def kept(self, asked: Asked, expires_s: float) -> None:
        """Note that the right answer of a question was kept until a moment."""
        self._expires_s[asked.answer_id] = max(expires_s, self._expires_s.get(asked.answer_id, expires_s))

    def positive(self, asked: Asked, at_s: float) -> bool:
        """Whether the right answer was kept before, and is not expired by now."""
        return at_s < self._expires_s.get(asked.answer_id, at_s)
