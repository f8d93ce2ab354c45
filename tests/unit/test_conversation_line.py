"""The line with conversations: a follow-up is found in its context, and served only once all of it is verified."""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from msgspec import structs

from cacheproxy.model import Classification, Hit, Miss, Tier
from cacheproxy.pipeline import Pipeline
from cacheproxy.policy.active import Policy, of_conversation
from cacheproxy.policy.pack import Category
from cacheproxy.policy.rules import Rules
from tests.support.house import OTHER, PACK, House
from tests.support.verifiers import CosineScorer, CosineVerifier

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cacheproxy.journey import Journey
    from cacheproxy.model import Bypass

ANSWER = (
    "The Great Barrier Reef is the largest coral reef system of the world, off the coast of Queensland in Australia."
)
REEF = ("What is the Great Barrier Reef?", ANSWER)
REEF_AGAIN = ("What is the Great Barrier Reef exactly?", ANSWER)
FOREST = (
    "What is the Black Forest?",
    "The Black Forest is a large forested mountain range in the south-west of Germany.",
)
FOLLOW = "How large is it in square kilometres?"
REPHRASED = "How large is it in square kilometres, please?"


@pytest_asyncio.fixture
async def house() -> AsyncIterator[House]:
    async with AsyncExitStack() as stack:
        built = House()
        for part in (built.store, built.embedder, built.index, built.supervisor):
            await stack.enter_async_context(part)
        yield built


@pytest.fixture
def verifier(house: House) -> CosineVerifier:
    """Let a verifier decide from a low similarity on."""
    made = CosineVerifier(CosineScorer(0.75))
    encoders = {"e": structs.replace(next(iter(PACK.encoders.values())), verify_from=0.4)}
    policy = replace(Policy.of(structs.replace(PACK, encoders=encoders)), verifies=True)
    parts = replace(house.pipeline.parts, verifier=made)
    house.pipeline = Pipeline(
        parts, lambda: policy, house.pipeline.flights, lookup_timeout_s=1000.0, coalesce_timeout_s=1000.0
    )
    return made


def after(*said: str, ask: str = FOLLOW) -> dict[str, Any]:
    roles = ("user", "assistant")
    told = [{"role": roles[place % 2], "content": text} for place, text in enumerate(said)]
    return {"messages": [*told, {"role": "user", "content": ask}]}


async def ask(house: House, *said: str, text: str = FOLLOW, **asked: Any) -> tuple[Journey, Hit | Miss | Bypass]:
    return await house.look_up(**after(*said, ask=text), **asked)


async def keep(house: House, *said: str, text: str = FOLLOW) -> None:
    await house.answer(**after(*said, ask=text))


async def test_a_rephrased_follow_up_in_the_same_context_is_a_hit(house: House) -> None:
    await keep(house, *REEF)
    _, found = await ask(house, *REEF, text=REPHRASED)
    assert isinstance(found, Hit)
    assert (found.tier, found.entry.chain) == (Tier.SEMANTIC, REEF)
    assert found.evidence.similarity is not None
    assert 0.8 <= found.evidence.similarity < 1.0


async def test_thresholds_are_of_the_last_question_not_of_the_conversation(house: House) -> None:
    await keep(house, *REEF)
    _, found = await ask(house, *REEF, text="Who discovered it?")
    assert isinstance(found, Miss)
    assert found.reason == "below_threshold"
    assert found.evidence.similarity is not None
    assert found.evidence.similarity < 0.8


@pytest.mark.parametrize("said", [FOREST, REEF_AGAIN], ids=["another", "reworded"])
@pytest.mark.parametrize("text", [FOLLOW, REPHRASED])
async def test_without_a_verifier_another_context_is_another_question(
    house: House, said: tuple[str, ...], text: str
) -> None:
    await keep(house, *REEF)
    _, found = await ask(house, *said, text=text)
    assert isinstance(found, Miss)
    assert found.reason in {"other_context", "below_threshold"}


@pytest.mark.usefixtures("verifier")
@pytest.mark.parametrize("text", [FOLLOW, REPHRASED])
async def test_a_reworded_ancestor_is_the_same_context_once_verified(house: House, text: str) -> None:
    await keep(house, *REEF)
    _, found = await ask(house, *REEF_AGAIN, text=text)
    assert isinstance(found, Hit)
    assert found.tier is Tier.SEMANTIC
    assert found.evidence.probability is not None


async def test_the_same_words_in_another_context_are_refused(house: House, verifier: CosineVerifier) -> None:
    await keep(house, *REEF)
    _, found = await ask(house, *FOREST)
    assert isinstance(found, Miss)
    assert found.reason in {"veto_context_answer", "below_threshold"}
    assert verifier.scorer.asked == []


@pytest.mark.usefixtures("verifier")
@pytest.mark.parametrize(
    "said",
    [(), (*REEF, "Is it old?", "Yes."), (REEF[0],), (*REEF, *REEF)],
    ids=["standing alone", "grown by a turn", "without the answer", "twice"],
)
async def test_another_shape_never_meets(house: House, said: tuple[str, ...]) -> None:
    await keep(house, *REEF)
    _, found = await ask(house, *said)
    assert isinstance(found, Miss)
    assert found.reason == "no_candidate"


@pytest.mark.usefixtures("verifier")
async def test_a_question_that_stands_alone_never_gets_a_follow_ups_answer(house: House) -> None:
    await keep(house, *REEF)
    _, found = await house.look_up(FOLLOW)
    assert isinstance(found, Miss)
    assert found.reason == "no_candidate"


@pytest.mark.usefixtures("verifier")
async def test_another_tenant_never_meets(house: House) -> None:
    await keep(house, *REEF)
    for said in (REEF, REEF_AGAIN):
        _, found = await ask(house, *said, scope=OTHER)
        assert isinstance(found, Miss)
        assert found.reason == "no_candidate"


@pytest.mark.usefixtures("verifier")
async def test_asking_again_is_not_answered_from_another_conversation(house: House) -> None:
    await keep(house, *REEF, text=REEF[0])
    _, found = await ask(house, *REEF_AGAIN, text=REEF_AGAIN[0])
    assert isinstance(found, Miss)
    assert found.reason == "asked_again"


async def test_a_verifier_that_fails_means_a_miss(house: House, verifier: CosineVerifier) -> None:
    await keep(house, *REEF)
    verifier.broken = True
    _, found = await ask(house, *REEF_AGAIN)
    assert isinstance(found, Miss)
    assert found.reason == "verifier_unavailable"


async def test_of_many_near_conversations_the_verifier_is_asked_about_two(
    house: House, verifier: CosineVerifier
) -> None:
    for number in range(4):
        await keep(house, f"{REEF[0]} {number}", ANSWER)
    verifier.scorer.asked.clear()
    await ask(house, *REEF_AGAIN)
    assert len(verifier.scorer.asked) <= 2


async def test_nothing_of_a_conversation_is_kept_that_is_kept_for_exact_matches_only(house: House) -> None:
    await house.answer(**after(*REEF), tools=[{"type": "function"}])
    _, found = await ask(house, *REEF, tools=[{"type": "function"}])
    assert isinstance(found, Hit)
    assert (found.entry.chain, found.entry.vector) == ((), None)


async def test_a_near_miss_tells_its_conversation_to_what_promotes_it(house: House) -> None:
    await keep(house, *REEF)
    journey, _ = await ask(house, *FOREST)
    assert journey.placed is not None
    assert journey.embedding is not None
    assert (journey.placed.vector != journey.embedding.vector).any()


class Spoken:
    """A classifier that knows questions about reefs, by how near they are."""

    def __init__(self, house: House, text: str) -> None:
        self._vector = house.encoder.encode([text])[0][0]

    def __call__(self, vector: Any) -> Classification:
        near = float(self._vector @ vector) > 0.5
        return Classification(category="nature" if near else "default", source="examples")


async def test_a_follow_up_is_of_what_its_conversation_is_of(house: House) -> None:
    categories = {
        "default": PACK.categories["default"],
        "nature": Category(semantic=True, ttl_s=10.0, examples=("Reefs",)),
    }
    encoders = {"e": structs.replace(next(iter(PACK.encoders.values())), thresholds=dict.fromkeys(categories, 0.8))}
    pack = structs.replace(PACK, categories=categories, encoders=encoders)
    policy = Policy(pack=pack, rules=Rules(pack.categories, str), classify=Spoken(house, REEF[0]))
    house.pipeline.policy = lambda: policy
    journey, _ = await ask(house, *REEF, text="Why?")
    assert journey.plan.category == "nature"
    journey, _ = await ask(house, *FOREST, text="Why?")
    assert journey.plan.category == "default"


OWN: dict[str, tuple[Classification, Classification, str]] = {
    "a question without a category of its own": (
        Classification(category="law", source="examples"),
        Classification(category="default", second="law", source="examples"),
        "",
    ),
    "one beyond doubt of another": (
        Classification(category="chat", source="examples"),
        Classification(category="health", source="examples"),
        "health",
    ),
    "one of the same": (
        Classification(category="law", source="examples"),
        Classification(category="law", source="examples"),
        "",
    ),
    "a conversation in doubt already": (
        Classification(category="law", second="chat", source="examples"),
        Classification(category="health", source="examples"),
        "health",
    ),
    "a doubt of its own": (
        Classification(category="law", second="chat", source="examples"),
        Classification(category="health", second="law", source="examples"),
        "chat",
    ),
}


@pytest.mark.parametrize(("whole", "own", "second"), OWN.values(), ids=OWN)
def test_a_question_beyond_doubt_brings_its_own_rules_along(
    whole: Classification, own: Classification, second: str
) -> None:
    told = of_conversation(whole, own)
    assert (told.category, told.second) == (whole.category, second)
