"""Odds: from how like its examples a query is to each category, to how probable each is. Pure; numpy only.

Likenesses mean what their encoder makes of them, so nothing here is a number of some encoder: the scale, the bias of
each category and the level of "none of them" are fitted to examples that were scored without themselves.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_BIAS_SPREAD = 2.0
"""Standard deviation expected of biases, in log-odds: weak enough for ten examples to overrule."""
_STEPS = 100
_DONE = 1e-8
_FEWEST = 2
"""Examples a category needs to be scored without one of them."""
_SURE = np.log(19.0)
"""Log-odds of 95 %."""
_SPREAD = 0.05
"""The least spread of likenesses that a category alone is credited with: one example says nothing of it."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOut:
    """How like each category every example is, arrays of shape (n, categories); NaN where that cannot be known.

    `own`: scored without the example itself. `strange`: by what never saw its category, whose column is NaN: such an
    example is what a query of no category looks like. `labels` has each example's category, of shape (n,).
    """

    own: Floats
    strange: Floats
    labels: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Odds:
    """Probability is proportional to exp(scale * likeness + bias); that of none of them to exp(`none`)."""

    scale: float
    biases: Floats
    none: float

    def probabilities(self, likenesses: Floats) -> Floats:
        """Return probabilities of shape (m, categories + 1) for likenesses of (m, categories); the last is none's."""
        none = np.full((likenesses.shape[0], 1), self.none)
        logits = np.concatenate([self.scale * likenesses + self.biases, none], axis=1)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(odds / odds.sum(axis=1, keepdims=True))

    def of(self, likenesses: Sequence[float]) -> list[float]:
        """Return the same for one vector's likenesses; NaN where one of them is no number."""
        logits = [self.scale * one + bias for one, bias in zip(likenesses, self.biases.tolist(), strict=True)]
        logits.append(self.none)
        top = max(logits)
        odds = [math.exp(one - top) for one in logits]
        total = sum(odds)
        return [one / total for one in odds]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Sample:
    """Likenesses of shape (rows, categories + 1), the last column 0 for none; what may be right; weights that sum to 1.

    Columns that are not `open` in a row take no part in it.
    """

    values: Floats
    open: NDArray[np.bool_]
    right: NDArray[np.bool_]
    weights: Floats


def fit_odds(held: HeldOut, default: int | None) -> tuple[Odds, float]:
    """Fit the odds to held-out likenesses; also return the loss, the weighted mean of -log p(right).

    `default` is the column of the default category, which the examples of none belong to as well. Every category
    weighs the same, however many examples it has; strange examples together weigh the root of the number of
    categories: more than one of them, less than all. Deterministic.
    """
    count = held.own.shape[1]
    sizes = np.bincount(held.labels, minlength=count)
    known = sizes >= _FEWEST
    sample = _sample(held, known, default)
    if sample is None:
        return _alone(held, count)
    # As many right answers as a rule of succession would grant keep separable examples from certainty.
    doubt = 1.0 / (held.labels.size + 2)
    fitted, loss = _descend(sample, doubt, ridge=1.0 / (_BIAS_SPREAD**2 * held.labels.size))
    biases = fitted[1:-1].copy()
    biases[~known] = biases[known].mean()
    return Odds(scale=float(fitted[0]), biases=biases, none=float(fitted[-1])), loss


def _sample(held: HeldOut, known: NDArray[np.bool_], default: int | None) -> _Sample | None:
    """Return the rows to fit; None without any of either sort, since one sort alone tells nothing apart."""
    labels, count = held.labels, known.size
    own = np.where(known, held.own, np.nan)[known[labels]]
    own_labels = labels[known[labels]]
    named = np.ones(labels.size, dtype=bool) if default is None else labels != default
    strange = np.where(known, held.strange, np.nan)[named]
    strange = strange[np.isfinite(strange).any(axis=1)]
    taught = default is not None and known[default]
    if not own.size or not (strange.size or (taught and (own_labels != default).any())):
        return None
    right = np.zeros((own.shape[0] + strange.shape[0], count + 1), dtype=bool)
    right[np.arange(own.shape[0]), own_labels] = True
    right[own.shape[0] :, -1] = True
    if default is not None:
        right[: own.shape[0], -1] = own_labels == default
        right[own.shape[0] :, default] = True
    categories = np.unique(labels[named]).size
    weights = np.concatenate(
        [
            1.0 / np.bincount(own_labels, minlength=count)[own_labels],
            np.full(strange.shape[0], categories**0.5 / max(strange.shape[0], 1)),
        ]
    )
    values = np.concatenate([own, strange])
    values = np.concatenate([values, np.zeros((values.shape[0], 1))], axis=1)
    is_open = np.isfinite(values)
    return _Sample(
        values=np.where(is_open, values, 0.0), open=is_open, right=right & is_open, weights=weights / weights.sum()
    )


def _descend(sample: _Sample, doubt: float, ridge: float) -> tuple[Floats, float]:
    """Minimise the loss over (scale, biases, none) by damped Newton steps on its convex part."""
    columns = sample.values.shape[1]
    spread = float(sample.values[sample.open].std()) or 1.0
    at = np.zeros(columns + 1)
    at[0] = 1.0 / spread
    at[-1] = float(np.median(sample.values[sample.right])) / spread
    ridges = np.full(columns + 1, ridge)
    ridges[[0, -1]] = 0.0
    loss, chances, share = _loss(sample, at, doubt, ridges)
    for _ in range(_STEPS):
        gradient, bend = _slopes(sample, chances, share, doubt)
        gradient = gradient + ridges * at
        step = np.linalg.solve(bend + np.diag(ridges + 1e-9), gradient)
        length = 1.0
        while length > _DONE:
            tried = at - length * step
            if tried[0] > 0:
                found = _loss(sample, tried, doubt, ridges)
                if found[0] <= loss - 1e-4 * length * float(gradient @ step):
                    break
            length /= 2
        else:
            break
        gained, at = loss - found[0], tried
        loss, chances, share = found
        if gained < _DONE:
            break
    return at, loss


def _loss(sample: _Sample, at: Floats, doubt: float, ridges: Floats) -> tuple[float, Floats, Floats]:
    """Return the loss, the probabilities, and those among what is right only."""
    logits = np.where(sample.open, at[0] * sample.values + at[1:], -np.inf)
    top = logits.max(axis=1, keepdims=True)
    raised = np.exp(logits - top)
    total = raised.sum(axis=1, keepdims=True)
    right = np.where(sample.right, logits, -np.inf)
    right_top = right.max(axis=1, keepdims=True)
    right_raised = np.exp(right - right_top)
    right_total = right_raised.sum(axis=1, keepdims=True)
    whole, part = (top + np.log(total))[:, 0], (right_top + np.log(right_total))[:, 0]
    evenly = np.where(sample.open, logits, 0.0).sum(axis=1) / sample.open.sum(axis=1)
    loss = sample.weights @ (whole - (1 - doubt) * part - doubt * evenly) + 0.5 * float(ridges @ at**2)
    return float(loss), raised / total, right_raised / right_total


def _slopes(sample: _Sample, chances: Floats, share: Floats, doubt: float) -> tuple[Floats, Floats]:
    """Return the gradient, and the curvature of the convex part, which bounds that of the whole."""
    even = sample.open / sample.open.sum(axis=1, keepdims=True)
    values, weighted = sample.values, sample.weights[:, None] * chances
    off = sample.weights[:, None] * (chances - (1 - doubt) * share - doubt * even)
    gradient = np.concatenate([[float((off * values).sum())], off.sum(axis=0)])
    mean = (chances * values).sum(axis=1)
    bend = np.empty((gradient.size, gradient.size))
    bend[0, 0] = float((weighted * values**2).sum() - sample.weights @ mean**2)
    bend[0, 1:] = bend[1:, 0] = (weighted * (values - mean[:, None])).sum(axis=0)
    bend[1:, 1:] = np.diag(weighted.sum(axis=0)) - weighted.T @ chances
    return gradient, bend


def _alone(held: HeldOut, count: int) -> tuple[Odds, float]:
    """Odds where nothing shows what a query of no category is like: it must be as near as its own examples are.

    At their mean likeness the odds are 95 %; two standard deviations below it, or halfway to a right angle where a few
    examples lie far apart, they are even.
    """
    own = held.own[np.arange(held.labels.size), held.labels]
    own = own[np.isfinite(own)]
    mean, spread = (float(own.mean()), max(float(own.std()), _SPREAD)) if own.size else (1.0, _SPREAD)
    even = max(mean - 2 * spread, mean / 2)
    scale = float(_SURE) / max(mean - even, _SPREAD)
    return Odds(scale=scale, biases=np.zeros(count), none=scale * even), 0.0
