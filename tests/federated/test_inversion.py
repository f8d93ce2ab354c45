"""What one update tells of the questions behind it, and that noise hides it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cacheproxy.embed.head import unit
from tests.benchmarks.federated_data import Questions
from tests.benchmarks.federated_inversion import Public, attacked, bound, guessed, recovered, table

FIGURES = Path(__file__).parents[2] / "docs" / "benchmarks-inversion.json"
PAGE = FIGURES.parent / "federated.md"
DIM, TOPICS, MANY, PAIRS = 96, 12, 600, 8


@pytest.fixture(scope="module")
def public() -> Public:
    """Return made-up questions around topics, whose words are numbers."""
    random = np.random.default_rng(1)
    intent = np.arange(MANY) % TOPICS
    centres = random.normal(size=(TOPICS, DIM))
    vectors = unit((0.3 * centres[intent] + random.normal(size=(MANY, DIM))).astype(np.float32))
    texts = [
        f"word{chr(97 + at % 26)}{chr(97 + at // 26 % 26)} topic{chr(97 + at % TOPICS % 26)}" for at in range(MANY)
    ]
    return Public(texts=texts, questions=Questions(vectors=vectors, intent=intent))


def test_without_noise_an_update_tells_some_of_its_questions(public: Public) -> None:
    found = [attacked(public, PAIRS, None, seed)["questions"] for seed in range(3)]
    assert np.mean(found) > 0.2


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_the_noise_of_differential_privacy_leaves_the_attack_to_chance(public: Public, noise: float) -> None:
    found = [attacked(public, PAIRS, noise, seed)["questions"] for seed in range(3)]
    assert np.mean(found) < 0.12


def test_who_knows_all_but_one_of_two_batches_is_right_no_more_often_than_is_promised(public: Public) -> None:
    assert guessed(public, PAIRS, 2.0, 0, 200) <= bound(2.0) + 0.1
    assert guessed(public, PAIRS, 0.1, 0, 50) == 1.0, "without enough noise such an attacker is never wrong"


def test_a_node_that_learns_nothing_tells_nothing(public: Public) -> None:
    assert recovered(np.zeros((DIM, DIM)), public.questions.vectors, 5) == []
    found = attacked(public, 1, None, 0)
    assert (found["questions"], found["words"]) == (0.0, 0.0), "one pair has one label: the node declines"


def test_the_documentation_tells_what_was_measured() -> None:
    found: dict[str, Any] = json.loads(FIGURES.read_text(encoding="utf-8"))
    assert table(found) in PAGE.read_text(encoding="utf-8")
    by_noise = {
        noise: [one["questions"] for one in found["cells"] if (one["noise"], one["nodes"]) == (noise, 1)]
        for noise in (None, 0.5, 2.0)
    }
    assert max(by_noise[None]) > 0.2
    assert max(by_noise[0.5] + by_noise[2.0]) < 0.05
    assert all(one["right"] <= one["bound"] + 0.02 for one in found["guesses"])
