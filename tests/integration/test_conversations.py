"""Conversations through a proxy with default settings: what may be shared, and what never is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from tests.support import openai_wire
from tests.support.proxy import Proxy, proxy_settings, started
from tests.support.upstream import ScriptedUpstream, answer

if TYPE_CHECKING:
    from pathlib import Path

    import openai

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANSWER = (
    "The Great Barrier Reef is the largest coral reef system of the world. It lies off the coast of Queensland in "
    "Australia and is made of almost three thousand reefs."
)
REEF = ("What is the Great Barrier Reef?", ANSWER)
REEF_REWORDED = ("Can you tell me what the Great Barrier Reef is?", ANSWER)
FOREST = ("What is the Black Forest?", "The Black Forest is a mountain range in the south-west of Germany.")
FOLLOW = "How many fish species live there?"
SIMILAR = "How many species of fish live there?"

Messages = list[dict[str, Any]]


def said(*texts: str) -> Messages:
    roles = ("user", "assistant")
    return [{"role": roles[place % 2], "content": text} for place, text in enumerate(texts)]


def ask(messages: Messages, text: str = FOLLOW, **fields: Any) -> dict[str, Any]:
    return {"model": openai_wire.MODEL, "messages": [*messages, {"role": "user", "content": text}], **fields}


async def test_the_same_follow_up_in_other_words_is_a_hit(proxy: Proxy, key: str) -> None:
    await proxy.fill(ask(said(*REEF)), key=key)
    hit = await proxy.ask(ask(said(*REEF), SIMILAR), key=key)
    assert (hit.outcome, hit.tier) == ("hit", "semantic"), hit.reason


LIGHT = (
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen. It happens in the chloroplasts of the "
    "leaves."
)
TUBE = "Turn the bike over, take the wheel out, lever the tyre off and pull out the old tube."
HELLO = "Hello! How can I help you today?"

# The same conversation told twice: what users said before differs in words alone, the last question in none.
REWORDED: dict[str, tuple[Messages, Messages, str]] = {
    "asked in a frame": (said(*REEF), said(*REEF_REWORDED), FOLLOW),
    "asked in other words": (
        said("How do I change a bicycle tube?", TUBE),
        said("How do I replace a bicycle tube?", TUBE),
        "Which tools do I need?",
    ),
    "both turns": (
        said("Hello", HELLO, "How does photosynthesis work?", LIGHT),
        said("Hi there", HELLO, "Please explain how photosynthesis works.", LIGHT),
        "Why is it important?",
    ),
}


@pytest.mark.parametrize(("kept", "asked", "text"), REWORDED.values(), ids=REWORDED)
async def test_an_earlier_turn_in_other_words_is_the_same_context(
    proxy: Proxy, key: str, kept: Messages, asked: Messages, text: str
) -> None:
    for one, other in ((kept, asked), (asked, kept)):
        namespace = {"x-cacheproxy-namespace": uuid4().hex}
        first = await proxy.fill(ask(one, text), key=key, headers=namespace)
        hit = await proxy.ask(ask(other, text), key=key, headers=namespace)
        assert (hit.outcome, hit.tier, hit.content) == ("hit", "semantic", first.content), hit.reason


async def test_the_very_same_conversation_is_an_exact_hit(proxy: Proxy, key: str) -> None:
    await proxy.fill(ask(said(*REEF)), key=key)
    assert (await proxy.ask(ask(said(*REEF)), key=key)).tier == "exact"


TOOLS: Messages = [
    {"role": "user", "content": REEF[0]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}],
    },
    {"role": "tool", "tool_call_id": "c1", "content": ANSWER},
]
SYSTEM = {"role": "system", "content": "You are a marine biologist."}
GROWN = (*REEF, "Is it in danger?", "Yes, bleaching has harmed much of it.")

# What was said before when the answer was kept, and when it is asked for.
NEVER: dict[str, tuple[Messages, Messages]] = {
    "another context": (said(*REEF), said(*FOREST)),
    "another earlier question": (
        said("Tell me about Lake Malawi.", "Gladly."),
        said("Tell me about Lake Como.", "Gladly."),
    ),
    "another number before": (said("I have 2 tanks of 60 l.", "Noted."), said("I have 2 tanks of 600 l.", "Noted.")),
    "the opposite before": (said("I keep marine fish.", "Noted."), said("I do not keep marine fish.", "Noted.")),
    "the same turns, otherwise about": (
        said("Compare Lake Como with Lake Garda.", "Which one first?", "Lake Como.", "It is deep."),
        said("Compare Lake Como with Lake Garda.", "Which one first?", "Lake Garda.", "It is deep."),
    ),
    "another number in the answer": (said(*REEF), said(REEF[0], ANSWER.replace("three", "four"))),
    "a question in place of a follow-up": ([], said(*REEF)),
    "a follow-up in place of a question": (said(*REEF), []),
    "one more turn": (said(*REEF), said(*GROWN)),
    "one turn less": (said(*GROWN), said(*REEF)),
    "a system prompt": (said(*REEF), [SYSTEM, *said(*REEF)]),
    "a tool's result": (TOOLS, said(*REEF)),
    "a picture": (
        said(*REEF),
        [
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]},
            {"role": "assistant", "content": ANSWER},
        ],
    ),
}


@pytest.mark.parametrize(("kept", "asked"), NEVER.values(), ids=NEVER)
@pytest.mark.parametrize("text", [FOLLOW, SIMILAR], ids=["same", "similar"])
async def test_another_context_never_gets_the_answer(
    proxy: Proxy, key: str, kept: Messages, asked: Messages, text: str
) -> None:
    await proxy.fill(ask(kept), key=key)
    refused = await proxy.ask(ask(asked, text), key=key)
    assert (refused.status, refused.outcome) == (200, "miss"), refused.reason


async def test_turns_with_tools_are_shared_to_the_byte_only(proxy: Proxy, key: str) -> None:
    await proxy.fill(ask(TOOLS), key=key)
    assert (await proxy.ask(ask(TOOLS), key=key)).tier == "exact"
    refused = await proxy.ask(ask(TOOLS, SIMILAR), key=key)
    assert (refused.outcome, refused.reason) == ("miss", "tools")


@pytest.mark.parametrize("history", [said(*REEF), said(REEF[0])], ids=["after its answer", "twice in a row"])
async def test_asking_again_is_not_a_repeat(proxy: Proxy, key: str, history: Messages) -> None:
    await proxy.fill(ask([], REEF[0]), key=key)
    again = await proxy.ask(ask(history, REEF[0]), key=key)
    assert (again.outcome, again.reason) == ("miss", "asked_again")
    await proxy.settled(key)
    other = await proxy.ask(ask(history, REEF[0].lower()), key=key)
    assert (other.outcome, other.reason) == ("miss", "asked_again")


@pytest.mark.parametrize("opening", [REEF, REEF_REWORDED], ids=["same opening", "opening in other words"])
async def test_a_follow_up_asked_again_is_not_a_repeat(proxy: Proxy, key: str, opening: tuple[str, str]) -> None:
    first = await proxy.fill(ask(said(*REEF)), key=key)
    for text in (FOLLOW, FOLLOW.lower()):
        again = await proxy.ask(ask(said(*opening, FOLLOW, first.content), text), key=key)
        assert (again.outcome, again.reason) == ("miss", "asked_again")


async def test_a_continued_answer_is_not_a_repeat(proxy: Proxy, key: str) -> None:
    body = {"model": openai_wire.MODEL, "messages": said(*REEF)}
    await proxy.fill(ask([], REEF[0]), key=key)
    assert (await proxy.ask(body, key=key)).reason == "last_message_not_user"


@pytest.mark.parametrize("text", [FOLLOW, SIMILAR], ids=["same", "similar"])
async def test_two_tenants_share_no_conversation(proxy: Proxy, key: str, other_key: str, text: str) -> None:
    await proxy.fill(ask(said(*REEF)), key=key)
    assert (await proxy.ask(ask(said(*REEF), text), key=other_key)).outcome == "miss"


async def test_official_clients_get_a_follow_up_from_the_cache(
    openai_client: openai.AsyncOpenAI, proxy: Proxy, key: str
) -> None:
    first = await openai_client.chat.completions.create(
        model=openai_wire.MODEL, messages=[{"role": "user", "content": REEF[0]}]
    )
    told: Any = [{"role": "user", "content": REEF[0]}, first.choices[0].message.model_dump()]
    await proxy.fill(ask(told), key=key)
    raw = await openai_client.chat.completions.with_raw_response.create(
        model=openai_wire.MODEL, messages=[*told, {"role": "user", "content": SIMILAR}]
    )
    assert (raw.headers["x-cacheproxy-outcome"], raw.headers["x-cacheproxy-tier"]) == ("hit", "semantic")


async def test_a_conversation_of_the_responses_api_is_shared_whatever_its_answers_ids(proxy: Proxy, key: str) -> None:
    def body(ident: str, text: str) -> dict[str, Any]:
        parts = [{"type": "output_text", "text": ANSWER, "annotations": []}]
        message = {"type": "message", "id": ident, "status": "completed", "role": "assistant", "content": parts}
        given = [{"role": "user", "content": REEF[0]}, message, {"role": "user", "content": text}]
        return {"model": openai_wire.MODEL, "input": given, "store": False}

    await proxy.fill(body("msg_1", FOLLOW), key=key, target="/v1/responses")
    hit = await proxy.ask(body("msg_2", SIMILAR), key=key, target="/v1/responses")
    assert (hit.outcome, hit.tier) == ("hit", "semantic"), hit.reason


async def test_explain_tells_that_the_context_differs(proxy: Proxy, key: str) -> None:
    await proxy.fill(ask(said(*REEF)), key=key)
    asked = {"request": ask(said(*FOREST)), "key": key}
    told = await proxy_explain(proxy, asked)
    assert told["outcome"] == "miss"
    assert told["reason"] in {"other_context", "veto_context_answer", "below_threshold"}


async def proxy_explain(proxy: Proxy, asked: dict[str, Any]) -> dict[str, Any]:
    admin = Proxy(url=proxy.admin_url, admin_url=proxy.admin_url)
    told = await admin.call(
        "POST", "/admin/v1/explain", {"content-type": "application/json"}, openai_wire.encode(asked)
    )
    assert told.status in (200, 201), told.body[:300]
    found: dict[str, Any] = told.json()
    return found


async def test_a_conversation_is_found_again_after_a_restart(tmp_path: Path, key: str) -> None:
    async with ScriptedUpstream() as upstream:
        upstream.always(answer(openai_wire.completion("1,500.")))
        async with started(proxy_settings(upstream.url, tmp_path)) as live:
            await live.fill(ask(said(*REEF)), key=key)
        async with started(proxy_settings(upstream.url, tmp_path)) as live:
            hit = await live.ask(ask(said(*REEF), SIMILAR), key=key)
            assert (hit.outcome, hit.tier) == ("hit", "semantic"), hit.reason
            assert (await live.ask(ask(said(*FOREST), SIMILAR), key=key)).outcome == "miss"
