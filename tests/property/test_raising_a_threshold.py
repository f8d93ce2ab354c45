from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cacheproxy.model import Embedding
from cacheproxy.policy.active import Policy
from cacheproxy.policy.pack import Category, Encoder, Pack
from cacheproxy.policy.pairrule import PairRule, Text

COSINES = st.floats(-1, 1, width=32)
THRESHOLDS = st.floats(0, 1, exclude_min=True)


def text(content: str, similarity: float) -> Text:
    vector = np.array([similarity, math.sqrt(1 - similarity**2)], dtype=np.float32)
    return Text(text=content, embedding=Embedding(vector=vector))


def served(threshold: float, similarity: float) -> bool:
    pack = Pack(
        schema=1,
        name="any",
        description="",
        default_category="default",
        categories={"default": Category(semantic=True)},
        encoders={"e": Encoder(fingerprint="epoch", calibrated_on="", thresholds={"default": threshold})},
    )
    return PairRule(Policy.of(pack), "epoch").decide(text("a", 1.0), text("b", similarity)).served


@given(similarity=COSINES, one=THRESHOLDS, other=THRESHOLDS)
def test_raising_a_threshold_never_creates_a_hit(similarity: float, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert served(low, similarity) or not served(high, similarity)


@given(similarity=COSINES, threshold=THRESHOLDS)
def test_nothing_below_the_threshold_is_served_by_similarity(similarity: float, threshold: float) -> None:
    assert served(threshold, similarity) == (similarity >= threshold)
