"""The line with categories: what a text is near to decides which rules apply, and doubt only narrows."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from msgspec import structs

from cacheproxy.errors import EmbedderUnavailable
from cacheproxy.joining import Flown
from cacheproxy.model import Bypass, Classification, Controls, Hit, Miss, Tier
from cacheproxy.policy.active import Policy
from cacheproxy.policy.pack import Category, Rule
from cacheproxy.policy.rules import Rules
from tests.support.house import PACK, QUESTION, REPHRASED, House
from tests.support.polling import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import numpy as np
    from numpy.typing import NDArray

    from cacheproxy.model import Embedding

CATEGORIES = {
    "default": PACK.categories["default"],
    "faq": Category(semantic=True, ttl_s=50.0, examples=("How do I pay?",)),
    "private": Category(allow_caching=False, examples=("My password is lost",)),
}


class Told:
    """A classifier that says what the test told it of each text, by its vector."""

    def __init__(self, house: House) -> None:
        self._encoder = house.encoder
        self.answers: dict[bytes, Classification] = {}
        self.asked = 0

    def say(self, text: str, category: str, second: str = "") -> None:
        vector = self._encoder.encode([text])[0][0]
        self.answers[vector.tobytes()] = Classification(category=category, second=second, source="examples")

    def __call__(self, vector: NDArray[np.float32]) -> Classification:
        self.asked += 1
        return self.answers.get(vector.tobytes(), Classification(category="default", source="examples"))


@pytest_asyncio.fixture
async def house() -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        built = House()
        for part in (built.store, built.embedder, built.index, built.supervisor):
            await stack.enter_async_context(part)
        yield built


@pytest.fixture
def classifier(house: House) -> Told:
    said = Told(house)
    govern(house, said)
    return said


def govern(house: House, said: Told, **categories: Category) -> None:
    thresholds = {name: 0.6 for name in (*CATEGORIES, *categories)}
    encoders = {"e": structs.replace(next(iter(PACK.encoders.values())), thresholds=thresholds)}
    pack = structs.replace(PACK, categories={**CATEGORIES, **categories}, encoders=encoders)
    policy = Policy(pack=pack, rules=Rules(pack.categories, str), classify=said)
    house.pipeline.policy = lambda: policy


async def test_what_a_text_is_near_to_chooses_the_category(house: House, classifier: Told) -> None:
    classifier.say(QUESTION, "faq")
    journey, outcome = await house.look_up()
    assert (journey.plan.category, journey.plan.ttl_s, outcome.category) == ("faq", 50.0, "faq")
    await house.answer()
    _, outcome = await house.look_up()
    assert isinstance(outcome, Hit)
    assert (outcome.entry.partition.category, outcome.entry.expires_s) == ("faq", house.clock.now() + 50.0)


async def test_an_exact_hit_embeds_nothing(house: House, classifier: Told) -> None:
    classifier.say(QUESTION, "faq")
    await house.answer()
    calls, asked = len(house.encoder.calls), classifier.asked
    _, outcome = await house.look_up()
    assert isinstance(outcome, Hit)
    assert (outcome.category, outcome.tier) == ("faq", Tier.EXACT)
    assert (len(house.encoder.calls), classifier.asked) == (calls, asked)


async def test_a_text_of_a_category_never_cached_leaves_nothing(house: House, classifier: Told) -> None:
    classifier.say(QUESTION, "private")
    journey, outcome = await house.look_up()
    assert outcome == Bypass(category="private", reason="category_not_cached")
    assert not journey.plan.store
    assert journey.embedding is None
    calls = len(house.encoder.calls)
    await house.look_up()
    assert len(house.encoder.calls) == calls + 1, "its embedding is not remembered"


@pytest.mark.parametrize(("category", "second"), [("default", "private"), ("private", "faq")])
async def test_doubt_about_a_category_never_cached_is_enough(
    house: House, classifier: Told, category: str, second: str
) -> None:
    classifier.say(QUESTION, category, second)
    _, outcome = await house.look_up()
    assert isinstance(outcome, Bypass)


async def test_in_doubt_both_categories_are_searched_under_the_stricter_rules(house: House, classifier: Told) -> None:
    classifier.say(QUESTION, "faq")
    await house.answer()
    classifier.say(REPHRASED, "default", "faq")
    journey, outcome = await house.look_up(REPHRASED)
    assert isinstance(outcome, Hit)
    assert (outcome.tier, outcome.entry.partition.category) == (Tier.SEMANTIC, "faq")
    assert (journey.plan.category, journey.plan.second, journey.plan.ttl_s) == ("default", "faq", 50.0)


async def test_another_category_is_not_searched_without_doubt(house: House, classifier: Told) -> None:
    classifier.say(QUESTION, "faq")
    await house.answer()
    _, outcome = await house.look_up(REPHRASED)
    assert isinstance(outcome, Miss)


async def test_a_caller_cannot_open_a_category_never_cached(house: House, classifier: Told) -> None:
    classifier.say(QUESTION, "private")
    _, outcome = await house.look_up(controls=Controls(category="faq"))
    assert outcome == Bypass(category="faq", reason="category_in_doubt")


async def test_a_mere_doubt_does_not_outweigh_what_the_caller_names(house: House, classifier: Told) -> None:
    for category, second in (("default", "private"), ("private", "default")):
        classifier.say(QUESTION, category, second)
        _, outcome = await house.look_up(controls=Controls(category="faq"))
        assert isinstance(outcome, Miss)


async def test_a_caller_may_name_any_other_category(house: House, classifier: Told) -> None:
    classifier.say(QUESTION, "default")
    journey, outcome = await house.look_up(controls=Controls(category="faq"))
    assert isinstance(outcome, Miss)
    assert journey.plan.category == "faq"


async def test_a_rule_goes_before_examples_and_narrows_what_a_caller_names(house: House, classifier: Told) -> None:
    rule = Rule(models=("m*",), routes=("chat",))
    govern(house, classifier, strict=Category(ttl_s=5.0, rules=(rule,)))
    journey, _ = await house.look_up()
    assert (journey.plan.category, journey.told.source if journey.told else "") == ("strict", "rule")
    assert classifier.asked == 0
    journey, _ = await house.look_up(controls=Controls(category="faq"))
    assert (journey.plan.category, journey.plan.second, journey.plan.ttl_s) == ("faq", "strict", 5.0)


async def test_what_follows_a_private_question_is_not_cached(house: House, classifier: Told) -> None:
    classifier.say("I lost my password", "private")
    messages = [
        {"role": "user", "content": "I lost my password"},
        {"role": "assistant", "content": "I see."},
        {"role": "user", "content": QUESTION},
    ]
    _, outcome = await house.look_up(messages=messages)
    assert isinstance(outcome, Bypass)
    _, outcome = await house.look_up()
    assert isinstance(outcome, Miss)


async def test_while_nothing_can_be_embedded_nothing_is_kept(
    house: House, classifier: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    await house.answer()

    async def fail(text: str, *, scope: str = "") -> Embedding:
        raise EmbedderUnavailable("told to")

    monkeypatch.setattr(house.embedder, "embed", fail)
    journey, outcome = await house.look_up(REPHRASED)
    assert isinstance(outcome, Miss)
    assert (outcome.reason, journey.plan.store) == ("embedder_unavailable", False)
    assert isinstance((await house.look_up())[1], Hit), "what is kept already is of a known category"


async def test_one_request_is_decided_by_one_policy(house: House, classifier: Told) -> None:
    journey = house.pipeline.set_out(house.query())
    before = journey.policy
    govern(house, classifier, default=Category(allow_caching=False))
    outcome = await house.pipeline.look_up(journey)
    assert isinstance(outcome, Miss)
    assert journey.policy is before
    assert house.pipeline.policy() is not before


async def test_an_entry_of_a_category_that_is_gone_is_not_served(house: House, classifier: Told) -> None:
    classifier.say(QUESTION, "faq")
    await house.answer()
    only = {"default": CATEGORIES["default"]}
    pack = structs.replace(PACK, categories=only)
    house.pipeline.policy = lambda: Policy.of(pack)
    _, outcome = await house.look_up()
    assert isinstance(outcome, Miss)


async def test_doubt_between_two_categories_never_cached_is_no_doubt(house: House, classifier: Told) -> None:
    govern(house, classifier, secret=Category(allow_caching=False, examples=("The code is",)))
    classifier.say(QUESTION, "secret", "private")
    _, outcome = await house.look_up(controls=Controls(category="faq"))
    assert isinstance(outcome, Bypass)


async def test_what_a_leader_was_told_under_an_earlier_policy_does_not_count(house: House, classifier: Told) -> None:
    house.store.gate.clear()
    journey, miss = await house.look_up()
    assert isinstance(miss, Miss)
    flown = asyncio.create_task(house.fly(journey, miss))
    await eventually(lambda: house.pipeline.flights.find(journey.key) is not None, "the leader flies")
    classifier.say(QUESTION, "private")
    govern(house, classifier)
    _, outcome = await house.look_up()
    assert isinstance(outcome, Bypass)
    house.store.gate.set()
    answered = await flown
    assert isinstance(answered, Flown)
    answered.reader.leave()


async def test_an_answer_that_comes_after_its_text_became_private_is_not_kept(house: House, classifier: Told) -> None:
    journey, miss = await house.look_up()
    assert isinstance(miss, Miss)
    rule = Rule(text="password")
    govern(house, classifier, hidden=Category(allow_caching=False, rules=(rule,)))
    flown = await house.fly(journey, miss)
    assert isinstance(flown, Flown)
    settlement = await house.pipeline.settlement(flown)
    assert (settlement.stored, settlement.reason) == (False, "policy_changed")
    flown.reader.leave()


async def test_explaining_a_question_does_not_count_as_asking_it(house: House, classifier: Told) -> None:
    journey = house.pipeline.set_out(house.query())
    await house.pipeline.look_up(journey, remember=False)
    _, outcome = await house.look_up(temperature=0.5)
    assert isinstance(outcome, Miss)
    assert not outcome.asked_otherwise
