"""What choosing costs against who knew it all, in simulated worlds."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from cacheproxy.augment.arms import (
    optimistic,
)
from tests.benchmarks.bandits import RULES, Ran, Rule, Setting, Words, World, interval, run, table

HELPFUL_WORLD = World(kind="stationary", large=0.9, small=0.55, help=0.45)
HELPLESS_WORLD = World(kind="stationary", large=0.93, small=0.5, help=0.0)
DRIFTING_WORLD = replace(HELPFUL_WORLD, kind="drifting")
SEEDS = range(3)
OURS, LARGE, AUGMENTED = RULES[0], *(rule for rule in RULES if rule.always)


def mean(rule: Rule, world: World, field: str, questions: int = 2000) -> float:
    setting = Setting(kind=world.kind, world=world, questions=questions, words=Words(share=0.5, late=20))
    return float(sum(getattr(run(rule, setting, seed), field) for seed in SEEDS) / len(SEEDS))


def test_where_examples_help_regret_ends_up_below_that_of_any_one_arm() -> None:
    ours = mean(OURS, HELPFUL_WORLD, "late_regret")
    assert ours < 0.6 * mean(LARGE, HELPFUL_WORLD, "late_regret")
    assert ours < 0.6 * mean(AUGMENTED, HELPFUL_WORLD, "late_regret")


def test_where_examples_do_not_help_no_more_is_lost_than_by_trying() -> None:
    assert mean(OURS, HELPLESS_WORLD, "regret") < 0.05 * 0.5
    assert mean(OURS, HELPLESS_WORLD, "quality") > mean(LARGE, HELPLESS_WORLD, "quality") - 0.02


def test_where_examples_stop_helping_the_large_model_is_back_in_time() -> None:
    assert mean(OURS, DRIFTING_WORLD, "regret", 3000) < 0.5 * mean(AUGMENTED, DRIFTING_WORLD, "regret", 3000)


def test_the_simulation_is_seeded() -> None:
    setting = Setting(questions=150)
    assert run(OURS, setting, 1) == run(OURS, setting, 1) != run(OURS, setting, 2)
    assert isinstance(run(LARGE, setting, 1), Ran)
    assert interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.484), abs=0.001)


def test_every_rule_is_compared_on_the_same_questions() -> None:
    told = table(Setting(questions=40), 2)
    assert all(f"| {rule.name} |" in told for rule in RULES)


def test_how_wide_the_optimism_is_can_be_told() -> None:
    assert optimistic(2.0)(0.5, 0.1, Random(1)) == pytest.approx(0.7)
