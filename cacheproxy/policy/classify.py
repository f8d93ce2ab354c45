"""Classify: which category a query belongs to, by the example questions it is near to. Pure; numpy only.

No model is asked and nothing is trained by the user: the embedding that the cache computes anyway is compared with the
examples' own, and a category is added by writing ten questions down. See docs/decisions/0024-classification.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np

from cacheproxy.model import Classification
from cacheproxy.policy.heads import Examples, logistics, prototypes
from cacheproxy.policy.odds import fit_odds

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from cacheproxy.policy.heads import Head
    from cacheproxy.policy.odds import Odds
    from cacheproxy.policy.pack import Classifier

NONE = ""
"""Stands for none of the other categories among the scores: the query then belongs to the default one."""

_CAUTION = 3.0
"""How many times its own probability a category that is never cached counts when doubt is asked for."""
_LEAST_NEAR = 0.4
_ENOUGH = 5
"""Examples of a category that can say how near they are to each other."""
_SHOWN = 4
"""Most scores that a decision carries."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ExampleClassifier:
    """Tells a query's category, with its probability and margin. Immutable; any number of threads may call it."""

    categories: tuple[str, ...]
    """Those with examples, in the order of the head's columns."""
    default: str
    doubt: float
    cautious: frozenset[str]
    head: Head
    odds: Odds
    private: tuple[tuple[str, NDArray[np.float32], float], ...] = ()
    """Categories never cached with their examples, and how near to one of these a query must be to be meant."""
    common: NDArray[np.float32] | None = None
    """The default category's examples, if it has any: what is nearer to one of these is not private."""
    names: tuple[str, ...] = field(init=False)
    """What `probabilities` has a column for: the named categories, then NONE."""

    def __post_init__(self) -> None:
        """Note what every request asks."""
        object.__setattr__(self, "names", (*(name for name in self.categories if name != self.default), NONE))

    @classmethod
    def fit(
        cls,
        examples: Mapping[str, NDArray[np.float32]],
        *,
        default: str,
        settings: Classifier,
        cautious: frozenset[str] = frozenset(),
    ) -> ExampleClassifier:
        """Return a classifier for examples by category: unit vectors of shape (n, dim).

        Scale, biases and the level of "none of these" come from the examples themselves, each scored without itself
        and without its whole category. `default` may have examples, too: they show what belongs to none. `cautious`
        names categories that are never cached: they are named second wherever they might be meant. The same
        examples give the same classifier. Raises ValueError when no category has an example, or the shapes differ.
        """
        given = {name: np.asarray(rows, dtype=np.float32) for name, rows in examples.items() if len(rows)}
        if not given:
            raise ValueError("no category has an example to classify by")
        if any(rows.ndim != 2 or rows.shape[1:] != next(iter(given.values())).shape[1:] for rows in given.values()):
            raise ValueError("examples must be rows of vectors that have one dimension")
        known = Examples(
            vectors=np.concatenate(list(given.values())), sizes=np.array([len(rows) for rows in given.values()])
        )
        column = list(given).index(default) if default in given else None
        # A logistic head tells categories from each other, so that it has nothing to say of one alone.
        logistic = settings.kind == "logistic" and len(given) > 1
        candidates = logistics(known) if logistic else prototypes(known)
        fitted = [(head, *fit_odds(held, column)) for head, held in candidates]
        head, odds, _ = min(fitted, key=lambda one: one[2])
        return cls(
            categories=tuple(given),
            default=default,
            doubt=settings.doubt,
            cautious=cautious,
            head=head,
            odds=odds,
            # Where any doubt at all is asked for, nothing is too far.
            private=tuple((name, rows, _nearness(rows)) for name, rows in given.items() if name in cautious)
            if settings.doubt < 1.0
            else (),
            common=given.get(default),
        )

    def __call__(self, vector: NDArray[np.float32]) -> Classification:
        """Return the category of a unit vector of shape (dim,); what is not finite could be of any category."""
        likenesses = self.head.of(vector)
        if not all(map(math.isfinite, likenesses)):
            return Classification(category=self.default, source="unknown")
        names, chances = self.names, self._named(self.odds.of(likenesses))
        common = -1.0 if self.common is None else _nearest(self.common, vector)
        for name, rows, level in self.private:
            if name != self.default and _nearest(rows, vector) < max(level, common):
                # Like no example of it, only less unlike them than others': that is no reason to keep it out.
                at = names.index(name)
                chances[-1], chances[at] = chances[-1] + chances[at], 0.0
        # Sorting is stable: of equal chances the first one in `names` stays the first.
        ranked = sorted(zip(chances, names, strict=True), key=itemgetter(0), reverse=True)
        margin = ranked[0][0] - ranked[1][0] if len(ranked) > 1 else 1.0
        return Classification(
            category=self._category(ranked[0][1]),
            second=self._second(ranked, margin),
            source="examples",
            margin=margin,
            scores=tuple((name, chance) for chance, name in ranked[:_SHOWN]),
        )

    def probabilities(self, vectors: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return shape (m, len(names)), rows that sum to 1, for unit vectors of shape (m, dim)."""
        chances = self.odds.probabilities(self.head.likenesses(vectors))
        if self.default not in self.categories:
            return chances
        at = self.categories.index(self.default)
        chances[:, -1] += chances[:, at]
        return np.delete(chances, at, axis=1)

    def _named(self, chances: list[float]) -> list[float]:
        """Return the chances of `names`: what the default category has is none's."""
        if self.default in self.categories:
            chances[-1] += chances.pop(self.categories.index(self.default))
        return chances

    def _second(self, ranked: Sequence[tuple[float, str]], margin: float) -> str:
        """Return the category that might be meant as well, or "".

        One that is never cached comes first, unless the best is such a one itself, and for it doubt begins earlier: to
        keep what is private costs more than to miss.
        """
        best, name = ranked[0]
        if self._category(name) not in self.cautious:
            for chance, other in ranked[1:]:
                if self._category(other) in self.cautious and best - _CAUTION * chance < self.doubt:
                    return self._category(other)
        return self._category(ranked[1][1]) if margin < self.doubt and len(ranked) > 1 else ""

    def _category(self, name: str) -> str:
        return name if name != NONE else self.default


def _nearest(rows: NDArray[np.float32], vector: NDArray[np.float32]) -> float:
    """Return how near to one of these a vector is; no matrix product, see `Prototype.likenesses`."""
    return float(np.vecdot(rows, vector).max())


def _nearness(rows: NDArray[np.float32]) -> float:
    """Return how near to another example of their category six in ten of these are (a cosine); -1 for too few."""
    if len(rows) < _ENOUGH:
        return -1.0
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -1.0)
    return float(np.quantile(cosines.max(axis=1), _LEAST_NEAR))
