"""The gate: whether another similarity head may take the place of the one that serves. Pure; numpy only.

It must be better where this proxy's callers said what is right, with confidence, and nowhere worse by more than a
margin (algorithms.md, section 3.5). Pairs of one group (questions that hang together) are drawn together, so that one
question asked often does not pass for many.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from cacheproxy.policy.calibrate import counts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from cacheproxy.policy.calibrate import Counts

BETA = 0.5
"""Of F-beta: a wrong answer is worse than a miss."""
_AT_ONCE = 50
"""Draws held in memory together: of 40,000 groups they take 16 MB."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What a head must show. Shares and F-beta are in [0, 1]."""

    least_pairs: int = 100
    least_of_a_label: int = 20
    least_groups: int = 30
    """Questions that do not hang together: of fewer the interval says too little."""
    least_in_category: int = 40
    """Pairs from which on a category is looked at by itself."""
    wrong_margin: float = 0.01
    """By how much the share of wrong hits may be higher."""
    asked_margin: float = 0.03
    """By how much the share of right pairs may be lower that a verifier is asked of at all."""
    category_margin: float = 0.02
    """By how much F-beta may be lower in a category, where its interval does not reach 0."""
    elsewhere_margin: float = 0.02
    """The same on the pack's probes, which no caller has asked."""
    draws: int = 1000
    confidence: float = 0.95


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Told:
    """Labelled pairs as two heads see them: similarity and threshold of each pair, before and after."""

    right: NDArray[np.bool_]
    group: NDArray[np.int64]
    category: Sequence[str]
    before: NDArray[np.float64]
    after: NDArray[np.float64]
    threshold_before: NDArray[np.float64]
    threshold_after: NDArray[np.float64]
    asked_before: NDArray[np.bool_] | None = None
    """Whether a verifier would be asked of each pair, or it is served without one; None: as the thresholds say."""
    asked_after: NDArray[np.bool_] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a gate found. `problems` say why a head may not serve; none of them: it may."""

    problems: tuple[str, ...]
    pairs: int
    before: Mapping[str, float | None]
    after: Mapping[str, float | None]
    gain: float | None
    """F-beta after less before, on local pairs."""
    low: float | None
    high: float | None
    """Its interval."""
    categories: Mapping[str, float]
    """F-beta after less before, of each category with enough pairs."""
    elsewhere: float | None
    """F-beta after less before on the probes; None without any."""

    @property
    def passed(self) -> bool:
        """Whether the head may serve."""
        return not self.problems


def decide(local: Told, elsewhere: Told | None, terms: Terms, seed: int = 0) -> Verdict:
    """Return whether a head may serve, with the figures that say so."""
    before, after = (counts(_served(local, after=late), local.right) for late in (False, True))
    n = len(local.right)
    labels = Counter(local.right.tolist())
    groups = len(np.unique(local.group))
    enough = (
        n >= terms.least_pairs
        and min(labels[True], labels[False]) >= terms.least_of_a_label
        and groups >= terms.least_groups
    )
    gain, low, high = _gain(local, terms, seed) if enough else (None, None, None)
    apart = _by_category(local, terms, seed) if enough else {}
    far = None if elsewhere is None or not len(elsewhere.right) else _gain(elsewhere, terms, seed)
    problems = []
    if not enough:
        problems.append(
            f"too few labelled pairs are held back: {n}, {labels[True]} right and {labels[False]} wrong, of {groups} "
            f"questions; {terms.least_pairs} are needed, {terms.least_of_a_label} of each, of {terms.least_groups}"
        )
    elif low is not None and low <= 0.0:
        problems.append(f"it is not better with confidence: F{BETA:g} changes by {gain:+.3f} [{low:+.3f}, {high:+.3f}]")
    if enough and _wrong(after) > _wrong(before) + terms.wrong_margin:
        problems.append(f"more hits would be wrong: {_wrong(after):.1%} instead of {_wrong(before):.1%}")
    if enough and (fewer := _asked(local)) > terms.asked_margin:
        problems.append(f"a verifier would never be asked of {fewer:.1%} more of the right answers")
    problems += [
        f"it is worse in {name}: F{BETA:g} changes by {change:+.3f}"
        for name, (change, _, most) in apart.items()
        if change < -terms.category_margin and most < 0.0
    ]
    if far is not None and far[0] < -terms.elsewhere_margin and far[2] < 0.0:
        problems.append(f"it is worse on the pack's probes: F{BETA:g} changes by {far[0]:+.3f}")
    return Verdict(
        problems=tuple(problems),
        pairs=n,
        before=_figures(before),
        after=_figures(after),
        gain=gain,
        low=low,
        high=high,
        categories={name: change for name, (change, _, _) in apart.items()},
        elsewhere=None if far is None else far[0],
    )


def _served(told: Told, *, after: bool) -> NDArray[np.bool_]:
    similarity, threshold = (told.after, told.threshold_after) if after else (told.before, told.threshold_before)
    return similarity >= threshold


def _difference(told: Told) -> float:
    before, after = (counts(_served(told, after=late), told.right) for late in (False, True))
    return (after.f(BETA) or 0.0) - (before.f(BETA) or 0.0)


def _by_category(told: Told, terms: Terms, seed: int) -> dict[str, tuple[float, float, float]]:
    names, sizes = np.unique(np.array(told.category), return_counts=True)
    return {
        str(name): _gain(_part(told, np.array(told.category) == name), terms, seed)
        for name, size in zip(names, sizes, strict=True)
        if size >= terms.least_in_category
    }


def _part(told: Told, chosen: NDArray[np.bool_]) -> Told:
    return replace(
        told,
        right=told.right[chosen],
        group=told.group[chosen],
        category=[name for name, one in zip(told.category, chosen, strict=True) if one],
        before=told.before[chosen],
        after=told.after[chosen],
        threshold_before=told.threshold_before[chosen],
        threshold_after=told.threshold_after[chosen],
        asked_before=None,
        asked_after=None,
    )


def _asked(told: Told) -> float:
    """Return by how much the share of right pairs that a verifier is asked of is lower than before."""
    if told.asked_before is None or told.asked_after is None or not told.right.any():
        return 0.0
    return float(np.mean(told.asked_before[told.right]) - np.mean(told.asked_after[told.right]))


def _gain(told: Told, terms: Terms, seed: int) -> tuple[float, float, float]:
    """Return the change of F-beta with its interval: groups are drawn with replacement, both heads on the same ones."""
    random = np.random.default_rng(seed)
    _, group = np.unique(told.group, return_inverse=True)
    groups = int(group.max()) + 1
    before, after = (
        np.stack([np.bincount(group, weights=cell, minlength=groups) for cell in _cells(told, after=late)])
        for late in (False, True)
    )
    changes = []
    for _ in range(0, terms.draws, _AT_ONCE):
        drawn = random.multinomial(groups, np.full(groups, 1.0 / groups), size=_AT_ONCE).astype(np.float64)
        changes.append(_f(drawn @ after.T) - _f(drawn @ before.T))
    tail = (1 - terms.confidence) / 2
    low, high = np.quantile(np.concatenate(changes), [tail, 1 - tail])
    return _difference(told), float(low), float(high)


def _cells(told: Told, *, after: bool) -> tuple[NDArray[np.float64], ...]:
    served = _served(told, after=after)
    cells = (served & told.right, served & ~told.right, ~served & told.right)
    return tuple(cell.astype(np.float64) for cell in cells)


def _f(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    tp, fp, fn = sums.T
    below = (1 + BETA**2) * tp + BETA**2 * fn + fp
    found: NDArray[np.float64] = np.divide((1 + BETA**2) * tp, below, out=np.zeros_like(tp), where=below > 0)
    return found


def _wrong(fell: Counts) -> float:
    return 1.0 - (1.0 if fell.precision is None else fell.precision)


def _figures(fell: Counts) -> dict[str, float | None]:
    return {"precision": fell.precision, "recall": fell.recall, "f05": fell.f(BETA), "hit_rate": fell.hit_rate}
