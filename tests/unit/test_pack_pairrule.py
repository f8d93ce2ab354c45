from __future__ import annotations

import math

import numpy as np
import pytest

from cacheproxy.errors import PackError
from cacheproxy.model import Embedding, Tier
from cacheproxy.policy.pack import Category, Encoder, Pack
from cacheproxy.policy.pairrule import PairRule, Ruling, Text

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
    return PairRule(PACK, epoch).decide(text("a"), asked, category)


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
