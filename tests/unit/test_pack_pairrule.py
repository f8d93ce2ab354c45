from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cacheproxy.errors import PackError
from cacheproxy.model import Classification, Embedding, Tier
from cacheproxy.policy.active import Policy
from cacheproxy.policy.pack import Category, Encoder, Pack
from cacheproxy.policy.pack import Rule as RuleOf
from cacheproxy.policy.pairrule import PairRule, Ruling, Text
from cacheproxy.policy.rules import Rules

if TYPE_CHECKING:
    from numpy.typing import NDArray

PACK = Pack(
    schema=1,
    name="mine",
    description="",
    default_category="default",
    categories={
        "default": Category(semantic=True),
        "exact": Category(),
        "never": Category(allow_caching=False, semantic=True),
    },
    encoders={"e": Encoder(fingerprint="epoch", calibrated_on="", thresholds={"default": 0.9, "never": 0.9})},
)


def text(content: str, similarity: float = 1.0, unseen: bytes = b"") -> Text:
    vector = np.array([similarity, math.sqrt(1 - similarity**2)], dtype=np.float32)
    return Text(text=content, embedding=Embedding(vector=vector, unseen=unseen))


def rule(asked: Text, category: str = "", epoch: str = "epoch") -> Ruling:
    return PairRule(Policy.of(PACK), epoch).decide(text("a"), asked, category)


@pytest.mark.parametrize(
    ("asked", "category", "epoch", "tier", "reason"),
    [
        (text("b", 0.95), "", "epoch", Tier.SEMANTIC, "similar"),
        (text("b", 0.89), "", "epoch", None, "below_threshold"),
        (text("b", 0.95, b"rest"), "", "epoch", None, "unseen_text_differs"),
        (text("b", float("nan")), "", "epoch", None, "below_threshold"),
        (text("b", 0.95), "", "another", None, "encoder_not_calibrated"),
        (text("b", 0.95), "exact", "epoch", None, "category_exact_only"),
        (text("b", 0.95), "never", "epoch", None, "category_not_cached"),
        (text("a"), "", "epoch", Tier.EXACT, "same_request"),
        (text("a"), "", "another", Tier.EXACT, "same_request"),
        (text("a"), "exact", "epoch", Tier.EXACT, "same_request"),
        (text("a"), "never", "epoch", None, "category_not_cached"),
        (text(" ", 0.95), "", "epoch", None, "no_text"),
    ],
)
def test_a_pair_is_ruled_on_as_the_proxy_would(
    asked: Text, category: str, epoch: str, tier: Tier | None, reason: str
) -> None:
    ruling = rule(asked, category, epoch)
    assert (ruling.tier, ruling.served, ruling.reason) == (tier, tier is not None, reason)


def test_the_threshold_is_shown_only_where_similarity_may_serve() -> None:
    assert rule(text("b", 0.5)).threshold == 0.9
    assert rule(text("b", 0.5), "exact").threshold is None
    assert rule(text("b", 0.5), epoch="another").threshold is None


def test_an_unknown_category_is_refused() -> None:
    with pytest.raises(PackError, match="no category 'chat'; known: default, exact, never"):
        rule(text("b"), "chat")


# Each question under its own category.

MANY = Pack(
    schema=1,
    name="many",
    description="",
    default_category="default",
    categories={
        "default": Category(semantic=True),
        "code": Category(semantic=True, examples=("x",)),
        "careful": Category(examples=("y",)),
        "private": Category(allow_caching=False, examples=("z",), rules=(RuleOf(text="my pin"),)),
    },
    encoders={"e": Encoder(fingerprint="epoch", calibrated_on="", thresholds={"default": 0.8, "code": 0.9})},
)


NAMES = ["default", "code", "careful", "private", "default/code", "code/default", "default/careful", "default/private"]


def by_mark(vector: NDArray[np.float32]) -> Classification:
    """The third coordinate names the category, so that a test can write it down."""
    first, _, second = NAMES[round(float(vector[2]) * 100)].partition("/")
    return Classification(category=first, second=second, source="examples")


def question(content: str, kind: str, similarity: float = 1.0) -> Text:
    mark = NAMES.index(kind) / 100
    vector = np.array([similarity, math.sqrt(1 - similarity**2), mark], dtype=np.float32)
    return Text(text=content, embedding=Embedding(vector=vector))


@pytest.mark.parametrize(
    ("cached", "asked", "similarity", "reason", "threshold"),
    [
        ("default", "default", 0.85, "similar", 0.8),
        ("code", "code", 0.85, "below_threshold", 0.9),
        ("code", "code", 0.95, "similar", 0.9),
        # Another category's entry is not searched ...
        ("code", "default", 0.95, "other_category", 0.8),
        ("default", "code", 0.95, "other_category", 0.9),
        # ... unless the question is in doubt between the two, under the stricter rules of both.
        ("code", "default/code", 0.95, "similar", 0.9),
        ("code", "default/code", 0.85, "below_threshold", 0.9),
        ("default", "code/default", 0.95, "similar", 0.9),
        # A doubt about the cached question does not help: it is kept under its best category.
        ("code/default", "default", 0.95, "other_category", 0.8),
        ("default", "careful", 0.95, "category_exact_only", None),
        ("default", "default/careful", 0.95, "category_exact_only", None),
        ("default/careful", "default", 0.95, "not_in_index", 0.8),
        ("default", "private", 0.95, "category_not_cached", None),
        ("default", "default/private", 0.95, "category_in_doubt", None),
        ("private", "default", 0.95, "answer_not_kept", 0.8),
        ("default/private", "default", 0.95, "answer_not_kept", 0.8),
    ],
)
def test_each_question_counts_under_the_category_that_it_is_taken_for(
    cached: str, asked: str, similarity: float, reason: str, threshold: float | None
) -> None:
    policy = Policy(pack=MANY, rules=Rules(MANY.categories, str), classify=by_mark)
    ruling = PairRule(policy, "epoch").decide(question("a", cached), question("b", asked, similarity))
    assert (ruling.reason, ruling.served, ruling.threshold) == (reason, reason == "similar", threshold)
    assert ruling.category == asked.partition("/")[0]


def test_a_category_given_wins_over_rules_and_examples() -> None:
    policy = Policy(pack=MANY, rules=Rules(MANY.categories, str), classify=by_mark)
    ruling = PairRule(policy, "epoch").decide(question("a", "code"), question("my pin", "careful", 0.85), "default")
    assert (ruling.reason, ruling.category) == ("similar", "default")


def test_a_rule_wins_over_examples() -> None:
    policy = Policy(pack=MANY, rules=Rules(MANY.categories, str), classify=by_mark)
    told = PairRule(policy, "epoch").classify(question("What is my pin?", "code"))
    assert (told.category, told.source) == ("private", "rule")
