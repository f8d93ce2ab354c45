"""The simulated day of the load benchmark: who waits, who shares, who is turned away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from cacheproxy.evaluate.replay import Asked, KnownVectors
from cacheproxy.model import Embedding
from cacheproxy.policy.active import Policy
from cacheproxy.policy.pack import Category, Encoder, Pack
from tests.benchmarks.corpus import Answer, Asking
from tests.benchmarks.load_replay import HIT_S, Request, figures, run, spread
from tests.support.angles import AngleEncoder

if TYPE_CHECKING:
    from tests.benchmarks.load_replay import Record

EPOCH = AngleEncoder().fingerprint
PACK = Pack(
    schema=1,
    name="mine",
    description="",
    default_category="chat",
    categories={"chat": Category(semantic=True, load_threshold_drop=0.2)},
    encoders={"angles": Encoder(fingerprint=EPOCH, calibrated_on="", thresholds={"chat": 0.95}, floors={"chat": 0.85})},
)


def request(text: str, at_s: float, service_s: float) -> Request:
    asked = Asked(text=text, answer_id=text, category="chat")
    return Request(at_s=at_s, asked=asked, source="qqp", service_s=service_s)


async def day(requests: list[Request], slots: int, *, adapts: bool = False) -> Record:
    texts = [one.asked.text for one in requests]
    vectors, _ = AngleEncoder().encode(texts)
    known = {text: Embedding(vector=vector) for text, vector in zip(texts, vectors, strict=True)}
    return await run(Policy.of(PACK), KnownVectors(known, EPOCH), requests, slots, adapts=adapts)


async def test_who_finds_no_slot_waits_in_turn_and_not_for_ever() -> None:
    record = await day([request(f"q {cos}", 0.0, 8.0) for cos in (0.9, 0.5, 0.1)], slots=1)
    assert record.kinds == ["backend", "backend", "shed"]
    assert record.latency_s[:2] == pytest.approx([8.0 + HIT_S, 16.0 + HIT_S])


async def test_who_asks_the_same_meanwhile_shares_the_answer_and_later_hits() -> None:
    asked = [request("q 0.5", at_s, 8.0) for at_s in (0.0, 3.0, 9.0)]
    record = await day(asked, slots=1)
    assert record.kinds == ["backend", "joined", "hit"]
    assert record.latency_s == pytest.approx([8.0 + HIT_S, 5.0 + HIT_S, HIT_S])
    assert figures(asked, record, None)["sent"] == 1


async def test_only_an_adapting_policy_serves_what_is_a_little_further_under_load() -> None:
    busy = [request(f"{at_s} -0.{at_s:02}", float(at_s), 60.0) for at_s in range(10, 40)]
    asked = [request("plain", 0.0, 1.0), *busy, request("near 0.9", 45.0, 1.0)]
    kinds = [(await day(asked, slots=4, adapts=adapts)).kinds[-1] for adapts in (False, True)]
    assert kinds[1] == "hit"
    assert kinds[0] != "hit"


def test_popular_answers_are_asked_more_often() -> None:
    answers = [Answer(answer_id=f"a{number}", texts=("one", "other")) for number in range(50)]
    asking = Asking(answers, 1.0, np.random.default_rng(1))
    counts = sorted(
        np.unique([asking.draw()[0].answer_id for _ in range(4000)], return_counts=True)[1].tolist(), reverse=True
    )
    assert 700 < counts[0] < 1100  # one in 4.5: the sum of 1/1 to 1/50
    assert counts[-1] < 60


def test_an_interval_over_seeds_is_students() -> None:
    assert spread([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2.0 - 4.303 / 3**0.5, 2.0 + 4.303 / 3**0.5))
