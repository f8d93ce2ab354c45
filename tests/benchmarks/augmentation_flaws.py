"""Flaws: past answers some of which are wrong, and what was said of them, as the proxy would have heard it. Simulated.

The large model's recorded answers are right by construction, and nobody has spoken of them. What example quality is
worth shows only where some are wrong and callers' words, which are few and not always right, tell which.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from cacheproxy.augment.rewards import Source, said
from cacheproxy.augment.worth import Standing, heard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.benchmarks.augmentation_data import Item

MOST_WORDS = 6
"""Words on one answer, at most; any number from none to this is as frequent."""
MISTAKEN = 0.1
"""Share of the words that are wrong."""


def flawed(items: Sequence[Item], share: float, seed: int) -> tuple[Item, ...]:
    """Return past questions, so many of them with another one's label for an answer, each with its quality by words.

    Which are wrong, and what is said, is drawn by each question's text: it does not depend on the others.
    """
    labels = sorted({one.reference for one in items})
    return tuple(_flawed(one, labels, share, Random(f"{seed} {one.text}")) for one in items)


def _flawed(item: Item, labels: Sequence[str], share: float, random: Random) -> Item:
    wrong = len(labels) > 1 and random.random() < share
    answer = random.choice([label for label in labels if label != item.reference]) if wrong else item.reference
    return replace(item, reference=answer, quality=_quality(random, good=not wrong))


def _quality(random: Random, *, good: bool) -> float:
    known = Standing(entry_id="", tenant="", category="", tokens=0, since_s=0.0, at_s=0.0)
    for _ in range(random.randint(0, MOST_WORDS)):
        word = said(Source.FEEDBACK, good=good != (random.random() < MISTAKEN))
        known = heard(known, word.value, word.weight)
    return known.quality
