from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from cacheproxy.learn.feedback import Feedback, Said
from cacheproxy.learn.lookups import Heard, LookupLog
from cacheproxy.learn.nearmisses import NearMiss, NearMisses
from cacheproxy.learn.tally import OTHERS
from cacheproxy.learn.verdicts import Verdicts, Word
from cacheproxy.model import Controls, Embedding, Looked, Lookup, Query, Scope, Selector, Wire
from cacheproxy.policy.active import Policy
from cacheproxy.policy.pack import Category, Encoder, Pack
from cacheproxy.telemetry import Telemetry
from tests.support.clock import FakeClock
from tests.support.entries import make_entry

if TYPE_CHECKING:
    from pathlib import Path

    from cacheproxy.learn.pairlog import Lesson

PACK = Pack(
    schema=1,
    name="test",
    description="",
    default_category="support",
    categories={"support": Category(semantic=True), "code": Category(semantic=True, near_miss_band=0.1)},
    encoders={"hash": Encoder(fingerprint="e", calibrated_on="x", thresholds={"support": 0.8, "code": 0.9})},
)
ASKED = Query(
    dialect="chat",
    scope=Scope(tenant="t", namespace=""),
    model="m",
    text="how",
    fingerprint=b"q" * 32,
    compatibility=b"c" * 32,
    wire=Wire(),
    controls=Controls(),
)


class Log:
    """A log, and the policy and the clock that it reads."""

    def __init__(self, **bounds: Any) -> None:
        self.policy = Policy.of(PACK)
        self.clock = FakeClock()
        self.telemetry = Telemetry()
        self.log = LookupLog(lambda: self.policy, self.telemetry, self.clock, "e", **bounds)

    def note(self, text: str = "how", **fields: Any) -> Looked:
        noted = looked(text, at_s=self.clock.now(), **fields)
        self.log.note(noted)
        return noted

    def change(self, **categories: Category) -> None:
        """Bring a pack into force with these categories changed."""
        pack = Pack(
            schema=1,
            name="test",
            description="",
            default_category="support",
            categories={**PACK.categories, **categories},
            encoders=PACK.encoders,
        )
        self.policy = Policy.of(pack)


def looked(text: str = "how", **fields: Any) -> Looked:
    plain = Looked(
        at_s=1000.0,
        tenant="t" * 64,
        namespace="",
        category="support",
        model="m",
        outcome="miss",
        tier="",
        reason="below_threshold",
        question=hashlib.sha256(text.encode()).digest(),
        text=text,
        similarity=0.78,
        threshold=0.8,
        entry_id="e" * 32,
        lookup_ms=5.0,
        load=0.0,
        embedding=Embedding(vector=np.full(4, 0.5, dtype=np.float32)),
        compatibility=b"c" * 32,
    )
    return replace(plain, **fields)


HIT: dict[str, Any] = {"outcome": "hit", "tier": "semantic", "reason": "similar", "similarity": 0.9, "fill_ms": 400.0}


def test_sums_are_kept_by_category_and_model() -> None:
    one = Log()
    one.note("a", **HIT, saved_usd=0.01)
    one.note("b", **{**HIT, "tier": "exact", "similarity": None})
    one.note("c", model="other")
    one.note("d", category="code", similarity=0.2, threshold=0.9)
    total = one.log.tally("support").total
    assert (total.lookups, total.exact, total.semantic) == (3, 1, 1)
    assert (total.fills, total.fill_ms, total.saved_usd) == (2, 800.0, 0.01)
    assert total.saved_ms == 2 * (400.0 - 5.0)
    assert {model: sums.lookups for model, sums in one.log.tally("support").models.items()} == {"m": 2, "other": 1}
    assert one.log.tally("code").total.lookups == 1


def test_models_beyond_the_first_fifty_share_their_sums() -> None:
    one = Log()
    for n in range(80):
        one.note(model=f"m{n}")
    models = one.log.tally("support").models
    assert len(models) == 51
    assert models[OTHERS].lookups == 30


@pytest.mark.parametrize(
    ("similarity", "near"), [(0.81, False), (0.8, False), (0.79, True), (0.75, True), (0.74, False), (math.nan, False)]
)
def test_near_is_within_the_band_below_the_threshold(similarity: float, near: bool) -> None:
    one = Log()
    one.note(similarity=similarity)
    assert bool(one.log.near_misses()) is near
    assert one.log.tally("support").near_misses == int(near)


@pytest.mark.parametrize(
    ("probability", "refusal", "near"),
    [
        (0.85, "improbable", True),
        (0.95, "over_budget", True),
        (0.5, "improbable", True),
        (0.49, "improbable", False),
        (0.85, "veto_number", False),
        (0.85, "source_removed", False),
        (None, "below_threshold", False),
    ],
)
def test_where_a_verifier_decides_near_is_what_is_nearly_probable_and_not_forbidden(
    probability: float | None, refusal: str, near: bool
) -> None:
    one = Log()
    one.note(similarity=0.78, probability=probability, min_probability=0.9, refusal=refusal, reason=refusal)
    assert bool(one.log.near_misses()) is near


def test_a_promotion_is_a_label_with_what_the_verifier_said() -> None:
    one = Log()
    one.note(similarity=0.7, probability=0.85, min_probability=0.9, refusal="improbable")
    [near] = one.log.near_misses()
    one.log.promoted(near)
    [label] = one.log.labels("support")
    assert (label.similarity, label.probability, label.good) == (0.7, 0.85, True)


def test_a_near_miss_asked_again_is_one_and_comes_first() -> None:
    one = Log()
    for text in ("a", "b", "a"):
        one.note(text)
    assert [(near.looked.text, near.times) for near in one.log.near_misses()] == [("a", 2), ("b", 1)]


@pytest.mark.parametrize(
    "fields",
    [{"text": "", "embedding": None}, {"text": "x" * 9000}, {"entry_id": ""}],
    ids=["no-store", "long", "none"],
)
def test_what_could_not_be_promoted_is_counted_and_not_kept(fields: dict[str, Any]) -> None:
    one = Log()
    one.note(**fields)
    assert one.log.tally("support").near_misses == 1
    assert one.log.near_misses() == []


def test_the_log_is_bounded() -> None:
    one = Log(most=3)
    for n in range(50):
        one.note(str(n))
    one.log.forget(Selector(ids=("0" * 32,)))
    for n in range(50):
        one.note(str(n))
    assert len(one.log.seen("support")) == 3


def test_near_misses_are_bounded_in_number_and_bytes() -> None:
    for bounds in ({"most": 3}, {"most_bytes": 3 * 2300}):
        kept = NearMisses(**bounds)
        for n in range(20):
            kept.keep(looked(str(n)), n)
        assert [near.looked.text for near in kept.latest()] == ["19", "18", "17"]
        kept.forget(lambda _: True)
        assert (len(kept), kept.held_bytes) == (0, 0)


def heard(noted: Looked, *, good: bool, similarity: float | None = 0.9, **fields: Any) -> Heard:
    plain = Heard(
        at_s=1001.0,
        tenant=noted.tenant,
        category=noted.category,
        entry_id=noted.entry_id,
        question=noted.question,
        similarity=similarity,
        good=good,
        user=noted.user,
    )
    return replace(plain, **fields)


def test_the_last_word_on_a_pair_is_its_label() -> None:
    one = Log()
    noted = one.note(**HIT)
    one.log.heard(heard(noted, good=True))
    one.log.heard(heard(noted, good=False, question=noted.question[:16]))
    assert [(label.similarity, label.good) for label in one.log.labels("support")] == [(0.9, False)]


def test_a_word_without_a_similarity_takes_it_from_the_log() -> None:
    one = Log()
    noted = one.note(**HIT)
    one.log.heard(heard(noted, good=False, similarity=math.nan))
    one.log.heard(heard(replace(noted, question=b"?" * 32), good=False, similarity=math.nan))
    assert [label.similarity for label in one.log.labels("support")] == [0.9]


def test_a_bad_word_on_the_questions_own_answer_is_a_complaint_and_no_label() -> None:
    one = Log()
    noted = one.note(**HIT)
    one.log.heard(heard(noted, good=False, similarity=None, age_s=300.0))
    one.log.heard(heard(noted, good=True, similarity=None, age_s=300.0))
    assert one.log.complaint_ages_s("support") == [300.0]
    assert one.log.labels("support") == []


def test_a_promotion_is_a_label_and_the_near_miss_is_gone() -> None:
    one = Log()
    one.note()
    [near] = one.log.near_misses()
    assert one.log.near_miss(near.id) is near
    one.log.promoted(near)
    assert one.log.near_misses() == []
    assert [(label.similarity, label.good) for label in one.log.labels("support")] == [(0.78, True)]


@pytest.mark.parametrize(
    ("selector", "left"),
    [
        (Selector(tenant="t" * 64), ["other tenant"]),
        (Selector(tenant="t" * 64, user="u"), ["other tenant", "plain", "other category"]),
        (Selector(category="code"), ["plain", "other tenant", "user"]),
        (Selector(tenant="t" * 64, category="code"), ["plain", "other tenant", "user"]),
        (Selector(ids=("e" * 32,)), ["plain", "other tenant", "user", "other category"]),
        (Selector(tag="x"), ["plain", "other tenant", "user", "other category"]),
        (Selector(tenant="t" * 64, text="plain"), ["plain", "other tenant", "user", "other category"]),
        (Selector(before_s=900.0), ["plain", "other tenant", "user", "other category"]),
        (Selector(), ["plain", "other tenant", "user", "other category"]),
    ],
)
def test_an_erasure_takes_rows_near_misses_and_labels(selector: Selector, left: list[str]) -> None:
    one = Log()
    noted = [
        one.note("plain"),
        one.note("other tenant", tenant="o" * 64, entry_id="f" * 32),
        one.note("user", user="u"),
        one.note("other category", category="code", threshold=0.8),
    ]
    for each in noted:
        one.log.heard(heard(each, good=False))
    one.log.forget(selector)
    assert {near.looked.text for near in one.log.near_misses()} == set(left)
    assert sum(len(one.log.seen(category)) for category in PACK.categories) == len(left)
    assert sum(len(one.log.labels(category)) for category in PACK.categories) == len(left)


def test_what_was_asked_of_an_erased_entry_and_what_made_it_is_forgotten() -> None:
    one = Log()
    own = one.note("own", entry_id="f" * 32)
    one.note("near it", entry_id=own.question[:16].hex())
    one.note("other", entry_id="0" * 32)
    assert one.log.forget(Selector(), [own.question[:16].hex()]) == 4
    assert [near.looked.text for near in one.log.near_misses()] == ["other"]


def test_sums_begin_anew_when_the_rules_of_their_category_change() -> None:
    one = Log()
    one.note()
    one.note(category="code", similarity=0.2)
    one.clock.advance(10)
    one.change(support=Category(semantic=True, ttl_s=5.0))
    assert one.log.tally("support").total.lookups == 0
    assert one.log.tally("support").since_s == one.clock.now()
    assert one.log.tally("code").total.lookups == 1
    assert len(one.log.seen("support")) == 1


def test_nothing_of_a_category_stays_once_it_is_not_cached() -> None:
    one = Log()
    noted = one.note("secret")
    one.note("perhaps of it", category="code", similarity=0.85, threshold=0.9)
    one.change(support=Category(allow_caching=False))
    one.log.policy_changed()
    assert one.log.near_misses() == []
    assert one.log.seen("support") == []
    assert one.log.tally("code").total.lookups == 1
    one.log.note(noted)  # decided under the policy before
    assert one.log.near_misses() == []
    assert one.log.seen("support") == []


def test_metrics_tell_categories_only() -> None:
    one = Log()
    one.note("very private", **HIT, saved_usd=0.5)
    one.note("very private", tenant="secret-tenant", user="secret-user", model="secret-model")
    rendered = one.telemetry.render().decode()
    assert 'cacheproxy_near_misses_total{category="support"} 1.0' in rendered
    assert 'cacheproxy_saved_seconds_total{category="support"} 0.395' in rendered
    assert 'cacheproxy_category_saved_usd_total{category="support"} 0.5' in rendered
    assert 'cacheproxy_similarity_count{category="support"} 2.0' in rendered
    assert "private" not in rendered
    assert "secret" not in rendered


def test_the_log_shows_no_text() -> None:
    one = Log()
    one.note("very private")
    assert "private" not in repr(one.log.near_misses())


def said(**fields: Any) -> Heard:
    told: dict[str, Any] = {
        "at_s": 1.0, "tenant": "t" * 64, "category": "support", "entry_id": "e" * 32, "question": b"q" * 32,
        "similarity": 0.9, "good": True,
    }  # fmt: skip
    return Heard(**{**told, **fields})


@pytest.mark.parametrize(
    ("searched", "epoch", "taken"),
    [("head", "head", True), ("head", "e", False), ("head", "", True), ("", "e", True)],
)
def test_what_comes_late_of_another_head_is_taught_and_nothing_else(searched: str, epoch: str, taken: bool) -> None:
    lessons: list[Lesson] = []
    one = Log(teach=lessons.append)
    one.note("early")
    one.log.restart(searched)
    one.note("late", epoch=epoch)
    assert len(one.log.seen("support")) == len(one.log.near_misses()) == int(taken)
    assert one.log.tally("support").total.lookups == 1
    one.log.heard(said(epoch=epoch))
    assert len(one.log.labels("support")) == int(taken)
    one.log.promoted(NearMiss(id="n", serial=1, times=1, looked=looked("promoted", epoch=epoch)))
    assert len(one.log.labels("support")) == 2 * int(taken)
    assert [lesson.source for lesson in lessons] == ["feedback", "promoted"]


async def test_a_late_word_on_what_was_served_before_a_head_is_no_label_beside_it(tmp_path: Path) -> None:
    one = Log()
    async with Verdicts(tmp_path / "f.sqlite3") as verdicts:
        feedback = Feedback(verdicts, one.clock, one.log)
        for id_, entry in (("before", make_entry("before")), ("after", make_entry("after"))):
            one.note(id_, epoch="e" if id_ == "before" else "head")
            query = replace(ASKED, fingerprint=hashlib.sha256(id_.encode()).digest())
            part = replace(entry.partition, category="support")
            feedback.served(id_, query, replace(entry, partition=part), Lookup(similarity=0.9))
            if id_ == "before":
                one.log.restart("head")
        for id_ in ("before", "after"):
            serve = feedback.recall("t", id_)
            assert serve is not None
            await feedback.judge(Said(tenant="t", given_id=id_, word=Word.GOOD), serve, None)
            assert len(one.log.labels("support")) == int(id_ == "after")
