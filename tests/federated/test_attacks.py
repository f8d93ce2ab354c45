"""Two nodes of twenty that lie, in whole runs with the settings that are shipped (reliability: G17)."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from tests.benchmarks import federated_attacks as attacks
from tests.benchmarks.federated_data import CLIENTS, Client
from tests.benchmarks.federated_learning import similarities
from tests.benchmarks.federated_scores import Ranked, scores
from tests.federated.topics import pairs

ROUNDS, PAIRS = 3, 60
TEST = pairs(1500, seed=99)
DOOR = pairs(40, seed=98)


@cache
def clients() -> list[Client]:
    made = [pairs(PAIRS, seed, category="all") for seed in range(1, CLIENTS + 1)]
    held = np.arange(PAIRS) % 5 < 2
    topic = np.zeros(int((~held).sum()), dtype=np.int64)
    return [Client(train=one.at(~held), held=one.at(held), topic=topic) for one in made]


@cache
def scored(attack: str, told: str = attacks.DEFAULT) -> dict[str, float]:
    """Return what comes of a run, on pairs that no client has."""
    artefact = attacks.trained(clients(), DOOR, told, attack, seed=1, rounds=ROUNDS)
    assert artefact is not None
    near = similarities(artefact.head, TEST)
    found = scores(Ranked(near=near, threshold=attacks.level_of(artefact)), TEST.right, np.ones((1, len(TEST))))
    return {name: float(value[0]) for name, value in found.items()}


@pytest.mark.parametrize("attack", [name for name in attacks.attacks() if name != "none"])
def test_two_of_twenty_that_lie_cost_the_default_a_point_at_most(attack: str) -> None:
    honest, lied = scored("none"), scored(attack)
    assert honest["auc"] - lied["auc"] <= 0.01
    assert honest["f05"] - lied["f05"] <= 0.01


def test_without_a_defence_the_same_lies_cost_more() -> None:
    reversed_, honest = (scored(name, "fedavg")["auc"] for name in ("x10 replacement", "none"))
    assert honest - reversed_ > 0.01


def test_a_gate_takes_an_honest_head_and_refuses_one_that_lies_have_spoiled() -> None:
    honest = attacks.trained(clients(), DOOR, attacks.DEFAULT, "none", seed=1, rounds=ROUNDS)
    spoiled = attacks.trained(
        clients()[:4], DOOR, "fedavg", "x10 replacement", seed=1, rounds=ROUNDS
    )  # half of them lie
    assert honest is not None
    assert spoiled is not None
    taken, refused = (attacks.asked(one.head, attacks.level_of(one), clients(), [TEST])[0] for one in (honest, spoiled))
    assert taken.problems == ()
    assert (refused.high or 0.0) < 0.0, "not for want of a gain, but since it is worse with confidence"
    assert any(problem.startswith("more hits would be wrong") for problem in refused.problems)
