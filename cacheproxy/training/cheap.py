"""Training the cheap part: boosted trees over features, and the weights by which its score and the other's add up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from msgspec import structs
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression

from cacheproxy.errors import ConfigError
from cacheproxy.evaluate.progress import progress
from cacheproxy.policy.calibrate import wilson_bounds
from cacheproxy.verify.artefact import Weights
from cacheproxy.verify.features import features, prepare
from cacheproxy.verify.trees import Trees, of_sklearn

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from cacheproxy.model import Embedding
    from cacheproxy.training.material import Example
    from cacheproxy.verify.cross import Words

_LOST = 0.005
"""Share of the right pairs that may be given up unread, since the trees see no chance for them."""
_WRONG = 0.015
"""Most of the pairs that may be wrong (95 % bound) where the trees decide alone, since they are sure."""


def rows_of(
    pairs: Sequence[Example], words: Words, embed: Callable[[Sequence[str]], Mapping[str, Embedding]]
) -> NDArray[np.float32]:
    """Return the features of each pair, (n, features), `a` being kept and `b` asked."""
    seen = embed(list(dict.fromkeys(text for pair in pairs for text in (pair.a, pair.b))))
    found = []
    with progress("comparing", len(pairs)) as advance:
        read = {text: prepare(text, words) for text in seen}
        for pair in pairs:
            cosine = float(np.dot(seen[pair.a].vector, seen[pair.b].vector))
            found.append(features(read[pair.b], read[pair.a], cosine))
            advance(1)
    return np.stack(found)


def grow_trees(rows: NDArray[np.float32], labels: NDArray[np.bool_], seed: int) -> Trees:
    """Fit boosted trees. Raises ValueError unless both labels are there."""
    model = HistGradientBoostingClassifier(
        max_iter=300,
        learning_rate=0.05,
        max_leaf_nodes=32,
        min_samples_leaf=max(2, min(80, len(labels) // 50)),
        l2_regularization=3.0,
        max_features=0.3,
        random_state=seed,
    )
    return of_sklearn(model.fit(rows, labels))


def weigh(
    cheap: NDArray[np.float64], cross: NDArray[np.float64], labels: NDArray[np.bool_], weights: NDArray[np.float64]
) -> Weights:
    """Fit how log-odds add up to a probability, on pairs that neither part was trained on.

    Where the cross-encoder cannot tell (minus infinity), it says nothing here. Raises ConfigError where it can tell of
    right pairs only, or of wrong ones only.
    """
    told = np.isfinite(cross)
    if len(set(labels[told].tolist())) < 2:
        raise ConfigError("nearly all questions are too long to be read together: give shorter ones as well")
    alone = LogisticRegression(C=100.0).fit(cheap[:, None], labels, sample_weight=weights)
    both = LogisticRegression(C=100.0).fit(np.stack([cheap, cross], 1)[told], labels[told], sample_weight=weights[told])
    return Weights(
        cheap=(float(alone.intercept_[0]), float(alone.coef_[0, 0])),
        both=(float(both.intercept_[0]), float(both.coef_[0, 0]), float(both.coef_[0, 1])),
        hopeless=float(np.quantile(cheap[labels], _LOST)),
        sure=sure_from(cheap, labels),
    )


def sure_from(cheap: NDArray[np.float64], labels: NDArray[np.bool_]) -> float | None:
    """Return the lowest log-odds of the trees from which on so few pairs are wrong that they need not be read.

    None where there are too few such pairs to know.
    """
    falling = np.argsort(-cheap)
    wrong = np.cumsum(~labels[falling], dtype=np.float64)
    _, most = wilson_bounds(wrong, np.arange(1.0, len(wrong) + 1.0), 0.95)
    few = np.flatnonzero(most <= _WRONG)
    return float(cheap[falling[few[-1]]]) if len(few) else None


def lowered(weights: Weights, caution: float) -> Weights:
    """Return weights that give every probability so many log-odds less."""
    cheap, both = weights.cheap, weights.both
    return structs.replace(weights, cheap=(cheap[0] - caution, cheap[1]), both=(both[0] - caution, *both[1:]))
