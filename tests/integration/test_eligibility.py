"""Requests that may never be answered by similarity: exact only or not at all, and the reason says why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.proxy import PARAPHRASE, QUESTION, chat

if TYPE_CHECKING:
    from tests.support.proxy import Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

PIXEL = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
SOUND = {"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}
PAPER = {"type": "file", "file": {"file_id": "file-1"}}
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALLED = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}


def parts(*others: dict[str, Any]) -> Any:
    return lambda text: chat() | {"messages": [{"role": "user", "content": [{"type": "text", "text": text}, *others]}]}


def fields(**more: Any) -> Any:
    return lambda text: chat(text, **more)


def turns(*messages: dict[str, Any]) -> Any:
    return lambda text: chat() | {"messages": [{"role": "user", "content": text}, *messages]}


EXACT_ONLY: dict[str, tuple[Any, str]] = {
    "tools": (fields(tools=[WEATHER]), "tools"),
    "functions": (fields(functions=[{"name": "weather", "parameters": {}}]), "tools"),
    "tool results": (
        lambda text: (
            chat()
            | {
                "messages": [
                    {"role": "user", "content": "What is the weather?"},
                    {"role": "assistant", "content": None, "tool_calls": [CALLED]},
                    {"role": "tool", "tool_call_id": "c1", "content": "Sunny."},
                    {"role": "user", "content": text},
                ]
            }
        ),
        "tools",
    ),
    "image": (parts(PIXEL), "image"),
    "file": (parts(PAPER), "mixed_content"),
    "many choices": (fields(n=2), "n"),
    "logprobs": (fields(logprobs=True, top_logprobs=2), "logprobs"),
    "json schema": (fields(response_format=SCHEMA), "response_format"),
    "json object": (fields(response_format={"type": "json_object"}), "response_format"),
    "last message from the assistant": (turns({"role": "assistant", "content": "Well,"}), "last_message_not_user"),
    "last message from the system": (turns({"role": "system", "content": "Be brief."}), "last_message_not_user"),
}

BYPASSED: dict[str, tuple[Any, str]] = {
    "audio in": (parts(SOUND), "audio"),
    "audio out": (fields(modalities=["text", "audio"], audio={"voice": "alloy", "format": "wav"}), "audio"),
    "high temperature": (fields(temperature=1.5), "temperature"),
    "stateful response": (fields(previous_response_id="resp_1"), "stateful"),
    "stateful conversation": (fields(conversation="conv_1"), "stateful"),
    "kept by the backend": (fields(store=True), "stateful"),
    "live search": (fields(web_search_options={}), "live_search"),
}

EVERY = EXACT_ONLY | BYPASSED
PLAIN = {
    "text parts": parts(),
    "two text parts": parts({"type": "text", "text": "Please be brief."}),
    "plain format": fields(response_format={"type": "text"}),
    "one choice": fields(n=1),
    "no tools": fields(tools=[]),
    "moderate temperature": fields(temperature=0.7),
    "zero temperature": fields(temperature=0),
    "text modality": fields(modalities=["text"]),
    "not kept by the backend": fields(store=False),
}


@pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["whole", "streamed"])
@pytest.mark.parametrize(("ask", "reason"), EVERY.values(), ids=EVERY)
async def test_similarity_never_answers(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, ask: Any, reason: str, form: dict[str, Any]
) -> None:
    first = await proxy.ask(ask(QUESTION) | form, key=key)
    await proxy.settled(key)
    second = await proxy.ask(ask(PARAPHRASE) | form, key=key)
    assert (first.status, second.status) == (200, 200)
    assert second.outcome != "hit"
    assert first.reason == reason
    assert second.get("x-cacheproxy-similarity") is None


@pytest.mark.parametrize(("ask", "reason"), EXACT_ONLY.values(), ids=EXACT_ONLY)
async def test_the_very_same_request_may_still_be_answered(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, ask: Any, reason: str
) -> None:
    live = await proxy.fill(ask(QUESTION), key=key)
    hit = await proxy.ask(ask(QUESTION), key=key)
    assert (hit.outcome, hit.tier) == ("hit", "exact")
    assert hit.whole["choices"] == live.whole["choices"]
    assert upstream.calls == 1


@pytest.mark.parametrize(("ask", "reason"), BYPASSED.values(), ids=BYPASSED)
async def test_the_cache_takes_no_part(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, ask: Any, reason: str
) -> None:
    first = await proxy.ask(ask(QUESTION), key=key)
    await proxy.settled(key)
    second = await proxy.ask(ask(QUESTION), key=key)
    assert (first.outcome, second.outcome) == ("bypass", "bypass")
    assert second.reason == reason
    assert second.content != first.content


@pytest.mark.parametrize("ask", PLAIN.values(), ids=PLAIN)
async def test_an_ordinary_question_is_matched_by_similarity(proxy: Proxy, key: str, ask: Any) -> None:
    live = await proxy.fill(ask(QUESTION), key=key)
    near = await proxy.ask(ask(PARAPHRASE), key=key)
    assert (near.outcome, near.tier) == ("hit", "semantic"), near.reason
    assert near.content == live.content


@pytest.mark.parametrize(("ask", "reason"), EVERY.values(), ids=EVERY)
async def test_an_ordinary_answer_is_not_served_to_a_special_request(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, ask: Any, reason: str
) -> None:
    await proxy.fill(chat(), key=key)
    for text in (QUESTION, PARAPHRASE):
        assert (await proxy.ask(ask(text), key=key, headers={"cache-control": "no-store"})).outcome != "hit"


async def test_a_long_question_differing_only_in_its_middle_is_not_confused(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    filler = "The shop has many departments and each of them has its own opening hours. " * 80
    ask = "{} I want to buy {}. {} Where do I go?"
    await proxy.fill(chat(ask.format(filler, "bread", filler)), key=key)
    other = await proxy.ask(chat(ask.format(filler, "poison", filler)), key=key)
    assert other.outcome == "miss", other.reason


@pytest.mark.parametrize("text", ["", " ", "\n\t"], ids=["empty", "space", "white space"])
async def test_an_empty_question_is_never_matched_by_similarity(proxy: Proxy, key: str, text: str) -> None:
    first = await proxy.ask(chat(text), key=key)
    await proxy.settled(key)
    second = await proxy.ask(chat(text + " "), key=key)
    assert first.status == 200
    assert second.outcome != "hit"
    assert second.reason == "no_text"
