"""Attacks within one scope: what a member of it plants, and what then becomes of another member's question (G3)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import product
from random import Random
from typing import TYPE_CHECKING

from tests.attacks.planted import ORDERS, otherwise, prefixed, unseen
from tests.attacks.questions import blocks
from tests.attacks.rates import Rate
from tests.attacks.suffix import Climb, climb

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tests.attacks.defence import Defence
    from tests.attacks.suffix import Encode

Pairs = list[tuple[str, str]]
"""(kept, asked)."""

MUST_PERCENT = 5.0
"""G3: the share of attempts within a scope that may succeed, once answers are verified."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempts:
    """Pairs by family. `benign` are those that ought to be served."""

    families: Mapping[str, Pairs]
    benign: Pairs


def hard_negatives() -> Pairs:
    """Return near questions with other answers, each kept for the other one."""
    pairs = [(trap, block.question) for block in blocks() for _, trap in block.traps]
    return pairs + [(asked, kept) for kept, asked in pairs]


def by_kind(defence: Defence) -> list[Rate]:
    """Return the rate of each kind of hard negative."""
    kinds = [(family, (trap, block.question)) for block in blocks() for family, trap in block.traps]
    rulings = defence.rulings([pair for _, pair in kinds])
    tried = Counter(family for family, _ in kinds)
    got = Counter(family for (family, _), ruling in zip(kinds, rulings, strict=True) if ruling.served)
    return [
        Rate(policy=defence.label, family=f"hard negatives: {kind}", succeeded=got[kind], attempts=many)
        for kind, many in sorted(tried.items())
    ]


def prefixes(targets: int | None = None) -> Pairs:
    """Return what the prefix attack plants for each target."""
    return [(planted, block.question) for block in blocks()[:targets] for planted in prefixed(block.question)]


def other_prefixes(targets: int | None = None) -> Pairs:
    """Return the same in other words."""
    return [(planted, block.question) for block in blocks()[:targets] for planted in otherwise(block.question)]


def unseen_prefixes(targets: int | None = None) -> Pairs:
    """Return the same in frames that no rule was written against."""
    return [(planted, block.question) for block in blocks()[:targets] for planted in unseen(block.question)]


def suffixes(encode: Encode, many: int, how: Climb, seed: int = 1) -> Pairs:
    """Return texts that were climbed until they came near their targets by this encoder."""
    random = Random(seed)
    aims = list(product(range(len(blocks())), ORDERS))
    pairs = []
    for at, order in random.sample(aims, many):
        target = blocks()[at].question
        pairs.append((climb(target, order, encode, random, how).text, target))
    return pairs


def benign() -> Pairs:
    """Return what ought to be served: each question's answer to the other ways to ask it."""
    return [(block.question, alike) for block in blocks() for alike in block.alike]


def rates(defence: Defence, attempts: Attempts) -> list[Rate]:
    """Return the rate of each family under one defence, the benign hit rate last."""
    found = [
        Rate(policy=defence.label, family=family, succeeded=defence.served(pairs), attempts=len(pairs))
        for family, pairs in attempts.families.items()
    ]
    served = defence.served(attempts.benign)
    return [*found, Rate(policy=defence.label, family="benign hits", succeeded=served, attempts=len(attempts.benign))]


def collect(
    known: Encode, stand_in: Encode, *, known_many: int, transferred_many: int, how: Climb, targets: int | None = None
) -> Attempts:
    """Return all attempts. `known` is the encoder under attack, `stand_in` another one that the attacker has."""
    return Attempts(
        families={
            "hard negatives": hard_negatives(),
            "prefix": prefixes(targets),
            "prefix, in other words": other_prefixes(targets),
            "prefix, unseen": unseen_prefixes(),
            "suffix, encoder known": suffixes(known, known_many, how),
            "suffix, transferred": suffixes(stand_in, transferred_many, how, seed=2),
        },
        benign=benign(),
    )


def over(rates: Iterable[Rate], most_percent: float = MUST_PERCENT) -> Sequence[Rate]:
    """Return the attacks that succeed more often than they may."""
    return [rate for rate in rates if rate.family != "benign hits" and rate.percent > most_percent]
