"""Which second category is named, told from probabilities that a test can write down."""

from __future__ import annotations

import numpy as np
import pytest

from cacheproxy.policy.classify import ExampleClassifier
from cacheproxy.policy.heads import Logistic
from cacheproxy.policy.odds import Odds

NAMES = ("code", "law", "personal")


def second(chances: tuple[float, float, float, float], doubt: float, cautious: str = "personal") -> tuple[str, str]:
    """Classify a vector whose probabilities are given: of NAMES in order, and of none of them."""
    head = Logistic(slopes=np.eye(3), offsets=np.zeros(3))
    odds = Odds(scale=1.0, biases=np.zeros(3), none=float(np.log(chances[3])))
    classify = ExampleClassifier(
        categories=NAMES, default="default", doubt=doubt, cautious=frozenset({cautious}), head=head, odds=odds
    )
    found = classify(np.log(np.array(chances[:3], dtype=np.float32)))
    return found.category, found.second


@pytest.mark.parametrize(
    ("chances", "doubt", "expected"),
    [
        pytest.param((0.70, 0.10, 0.10, 0.10), 0.2, ("code", ""), id="no doubt"),
        pytest.param((0.45, 0.40, 0.05, 0.10), 0.2, ("code", "law"), id="the next best"),
        pytest.param((0.46, 0.10, 0.02, 0.42), 0.2, ("code", "default"), id="none of them stands for the default"),
        pytest.param((0.38, 0.34, 0.25, 0.03), 0.2, ("code", "personal"), id="never cached before the next best"),
        pytest.param((0.65, 0.05, 0.25, 0.05), 0.2, ("code", "personal"), id="for it doubt begins earlier"),
        pytest.param((0.10, 0.05, 0.25, 0.60), 0.2, ("default", "personal"), id="against the default, too"),
        pytest.param((0.80, 0.03, 0.14, 0.03), 0.2, ("code", ""), id="but it ends"),
        pytest.param((0.45, 0.02, 0.50, 0.03), 0.2, ("personal", "code"), id="never cached is the best itself"),
        pytest.param((0.36, 0.35, 0.02, 0.27), 0.0, ("code", ""), id="doubt switched off"),
    ],
)
def test_which_second_category_is_named(
    chances: tuple[float, float, float, float], doubt: float, expected: tuple[str, str]
) -> None:
    assert second(chances, doubt) == expected


def test_a_default_category_that_is_never_cached_is_named_second_as_well() -> None:
    assert second((0.65, 0.05, 0.05, 0.25), 0.2, cautious="default") == ("code", "default")


def test_a_default_category_that_is_never_cached_may_be_the_best_itself() -> None:
    assert second((0.3, 0.05, 0.25, 0.40), 0.2, cautious="default") == ("default", "code")
