"""Trees from arrays say what scikit-learn's say, and tables that cannot be walked are refused."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from cacheproxy.errors import ConfigError
from cacheproxy.verify.trees import Trees, of_sklearn
from tests.support.artefacts import stumps

if TYPE_CHECKING:
    from numpy.typing import NDArray

FEATURES = 50


def drawn(seed: int, rows: int) -> NDArray[np.float32]:
    """Draw what features are like: some in [0, 1], some counts, some with a few values only."""
    random = np.random.default_rng(seed)
    table = random.random((rows, 12))
    table[:, 4:8] = random.integers(0, 5, (rows, 4))
    table[:, 8:] = np.round(table[:, 8:], 1)
    return table.astype(np.float32)


@pytest.mark.parametrize("seed", range(3))
def test_trees_give_scikit_learns_own_predictions(seed: int) -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier

    rows = drawn(seed, 600)
    labels = (rows[:, 0] + rows[:, 5] / 5 + np.random.default_rng(seed).random(600)) > 1.3
    model = HistGradientBoostingClassifier(max_iter=40, max_leaf_nodes=15, min_samples_leaf=3, random_state=seed)
    model.fit(rows, labels)
    trees = of_sklearn(model)
    asked = np.concatenate([rows, drawn(seed + 100, 3000)])
    assert np.abs(trees.logits(asked) - model.decision_function(asked)).max() < 1e-5


def test_a_value_exactly_at_a_threshold_goes_the_way_it_went_in_training() -> None:
    from sklearn.ensemble import HistGradientBoostingClassifier

    rows = np.repeat(np.linspace(0, 1, 40, dtype=np.float32), 10)[:, None]
    model = HistGradientBoostingClassifier(max_iter=20, min_samples_leaf=2).fit(rows, rows[:, 0] > 0.33)
    trees = of_sklearn(model)
    edges = trees.threshold[trees.left != np.arange(len(trees.left))]
    asked = np.concatenate([np.nextafter(edges, np.float32(-9)), edges, np.nextafter(edges, np.float32(9))])[:, None]
    assert np.abs(trees.logits(asked) - model.decision_function(asked)).max() < 1e-5


def test_a_row_does_not_depend_on_its_neighbours() -> None:
    trees, rows = stumps(), np.random.default_rng(0).random((40, FEATURES)).astype(np.float32)
    alone = np.concatenate([trees.logits(row[None]) for row in rows])
    assert (trees.logits(rows) == alone).all()
    assert trees.logits(rows[:0]).shape == (0,)


def test_arrays_and_back_are_the_same_trees() -> None:
    trees, rows = stumps(), np.random.default_rng(0).random((40, FEATURES)).astype(np.float32)
    again = Trees.from_arrays(trees.arrays(), FEATURES)
    assert (again.logits(rows) == trees.logits(rows)).all()
    assert set(trees.logits(rows)) <= {-4.0, -2.0, 2.0, 4.0}


def ints(*values: int) -> NDArray[np.int32]:
    return np.array(values, dtype=np.int32)


@pytest.mark.parametrize(
    "damage",
    [
        {"feature": ints(FEATURES, 0, 0, 0, 0, 0)},
        {"feature": ints(-1, 0, 0, 0, 0, 0)},
        {"left": ints(6, 1, 2, 4, 4, 5)},
        {"right": ints(-2, 1, 2, 5, 4, 5)},
        {"roots": ints(0, 6)},
        {"roots": ints(0, 3).astype(np.int64)},
        {"roots": ints(0, 3)[:, None]},
        {"feature": ints(0, 0)},
        {"left": ints(1, 1, 2, 4, 4, 5)[:, None]},
        {"threshold": np.full(6, np.nan, dtype=np.float32)},
        {"threshold": np.zeros(6)},
        {"value": np.full(6, np.inf, dtype=np.float32)},
        {"value": np.zeros(6, dtype=np.int32)},
        {"depth": 65},
        {"depth": -1},
        {"base": float("nan")},
        {"base": float("inf")},
    ],
    ids=lambda damage: next(iter(damage)),
)
def test_tables_that_point_nowhere_are_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="train or install it again"):
        Trees.from_arrays(replace(stumps(), **damage).arrays(), FEATURES)


@pytest.mark.parametrize("shape", [[np.inf, 0.0], [np.nan, 0.0], [1.0], [1.0, 0.0, 0.0]])
def test_a_shape_that_is_none_is_refused(shape: list[float]) -> None:
    with pytest.raises(ConfigError, match="not whole"):
        Trees.from_arrays({**stumps().arrays(), "shape": np.array(shape)}, FEATURES)


@pytest.mark.parametrize("name", ["feature", "threshold", "left", "right", "value", "roots", "shape"])
def test_a_missing_table_is_refused(name: str) -> None:
    arrays = stumps().arrays()
    del arrays[name]
    with pytest.raises(ConfigError, match="not whole"):
        Trees.from_arrays(arrays, FEATURES)


def test_a_walk_that_goes_in_circles_ends() -> None:
    circle = replace(stumps(), left=ints(0, 0, 0, 3, 3, 3), right=ints(0, 0, 0, 3, 3, 3), depth=64)
    trees = Trees.from_arrays(circle.arrays(), FEATURES)
    assert np.isfinite(trees.logits(np.zeros((3, FEATURES), dtype=np.float32))).all()
