"""Proxy, gains and selection together, in a world where what helps is not what is near. Seeded."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

from cacheproxy.augment.gains import Gains
from cacheproxy.augment.helpful import Helpfulness, features
from cacheproxy.augment.select import Room, Selection, select, select_nearest, select_random
from tests.support.examples import example

if TYPE_CHECKING:
    from cacheproxy.augment.example import Example

ROOM = Room(tokens=400, most=3)
TOKENS = 30
ALONE = 0.3
"""How often the small model is right without examples."""


def candidates(random: Random) -> list[Example]:
    return [
        example(
            str(number),
            question_cosine=random.uniform(0.5, 0.95),
            quality=random.random(),
            age_s=random.uniform(0, 1e6),
            vector=[random.gauss(0, 1) for _ in range(8)],
        )
        for number in range(12)
    ]


def chance(found: Selection, *, useful: bool) -> float:
    """Return how often the small model is right with these: good ones help, bad ones mislead, nearness does nothing."""
    if not found.examples:
        return ALONE
    mean = sum(one.quality for one in found.examples) / len(found.examples)
    return ALONE + (0.9 * (mean - 0.35) if useful else -0.2)


def taught(*, useful: bool) -> tuple[Helpfulness, Gains]:
    """Return what is learnt of 600 questions whose arm was drawn by chance."""
    random, proxy, gains = Random(7), Helpfulness(), Gains()
    for _ in range(600):
        found = select_random(
            candidates(random), proxy=lambda one: proxy.score(one, TOKENS, "faq"), room=ROOM, random=random
        )
        augment = random.random() < 0.5
        reward = float(random.random() < (chance(found, useful=useful) if augment else ALONE))
        gains.learn("faq", found.mean_helpfulness, reward, augmented=augment)
        for one in found.examples if augment else ():
            proxy.learn(features(one, TOKENS), reward, category="faq", weight=1 / len(found.examples))
    return proxy, gains


def test_what_is_learnt_selects_better_than_nearness_and_nearness_no_better_than_chance() -> None:
    proxy, gains = taught(useful=True)
    random, told = Random(8), {"learnt": 0.0, "nearest": 0.0, "random": 0.0}

    def score(one: Example) -> float:
        return proxy.score(one, TOKENS, "faq")

    for _ in range(300):
        given = candidates(random)
        theta = gains.threshold("faq")
        told["learnt"] += chance(select(given, proxy=score, threshold=theta, room=ROOM), useful=True) / 300
        told["nearest"] += chance(select_nearest(given, proxy=score, room=ROOM), useful=True) / 300
        told["random"] += chance(select_random(given, proxy=score, room=ROOM, random=random), useful=True) / 300
    assert told["learnt"] > told["nearest"] + 0.15
    assert abs(told["nearest"] - told["random"]) < 0.05
    assert told["learnt"] > ALONE + 0.25


def test_where_examples_mislead_none_is_selected_in_the_end() -> None:
    proxy, gains = taught(useful=False)
    random, theta = Random(9), gains.threshold("faq")
    for _ in range(100):
        found = select(
            candidates(random), proxy=lambda one: proxy.score(one, TOKENS, "faq"), threshold=theta, room=ROOM
        )
        assert found.examples == ()


def test_a_hard_category_where_answers_are_seldom_right_still_uses_what_helps() -> None:
    random, proxy, gains = Random(3), Helpfulness(), Gains()
    for _ in range(1200):
        found = select_random(
            candidates(random), proxy=lambda one: proxy.score(one, TOKENS, "hard"), room=ROOM, random=random
        )
        augment = random.random() < 0.5
        reward = float(random.random() < (0.3 if augment else 0.02))
        gains.learn("hard", found.mean_helpfulness, reward, augmented=augment)
        for one in found.examples if augment else ():
            proxy.learn(features(one, TOKENS), reward, category="hard", weight=1 / len(found.examples))
    scores = [proxy.score(one, TOKENS, "hard") for one in candidates(random)]
    assert max(scores) < 0.5
    assert min(scores) > gains.threshold("hard")
