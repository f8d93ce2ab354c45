"""What the reader of figures makes of the log: which changes it lets be recommended."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cacheproxy.learn.budget import Standing
from cacheproxy.learn.lookups import Heard, LookupLog
from cacheproxy.policy.active import Policy
from cacheproxy.policy.bound import share
from cacheproxy.policy.learnt import Learnt
from cacheproxy.policy.pack import Category, Encoder, Pack
from cacheproxy.stats.reader import Sources, Stats
from cacheproxy.telemetry import Telemetry
from tests.support.clock import FakeClock

HEAD = Learnt(base="e", thresholds={}, rest=0.6)
PACK = Pack(
    schema=1,
    name="test",
    description="",
    default_category="support",
    categories={"support": Category(semantic=True, min_probability=0.9)},
    encoders={"e1": Encoder(fingerprint="e", calibrated_on="x", thresholds={"support": 0.6}, verify_from=0.5)},
)


def stats(epoch: str, *, verifies: bool) -> Stats:
    """Return the figures of a category of whose hits many were wrong, just above what decides."""
    policy = replace(Policy.of(PACK), learnt={"head": HEAD}, verifies=verifies)
    lookups = LookupLog(lambda: policy, Telemetry(), FakeClock(), "e")
    for number in range(40):
        heard = Heard(
            at_s=1.0,
            tenant="t",
            category="support",
            entry_id=f"{number:032}",
            question=b"q" * 32,
            similarity=0.65 if number % 2 else 0.8,
            probability=0.91 if number % 2 else 0.99,
            good=number % 2 == 0,
        )
        lookups.heard(heard)
    return Stats(
        Sources(
            lookups=lookups,
            policy=lambda: policy,
            epoch=lambda: epoch,
            backends=tuple,
            beside=tuple,
            load=lambda name: 0.0,
            holdings=tuple,
            evictions=dict,
            standing=lambda name, least, delta: Standing(labels=0, share=share(0, 0), least=least, sources={}),
        )
    )


@pytest.mark.parametrize(
    ("epoch", "verifies", "kinds"),
    [
        ("e", False, ["raise_threshold"]),
        ("head", False, []),
        ("e", True, ["raise_min_probability"]),
        ("head", True, ["raise_min_probability"]),
    ],
)
def test_a_threshold_that_a_heads_similarities_speak_for_is_not_recommended_for_the_encoder(
    epoch: str, verifies: bool, kinds: list[str]
) -> None:
    assert [one.kind for one in stats(epoch, verifies=verifies).recommendations()] == kinds
