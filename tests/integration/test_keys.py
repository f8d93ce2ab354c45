"""Who may share an answer, and what must be equal before one is shared."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.openai_wire import encode
from tests.support.proxy import CHAT, PARAPHRASE, QUESTION, UNRELATED, answered, chat
from tests.support.rawhttp import Connection, request_bytes

if TYPE_CHECKING:
    from tests.support.proxy import Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROBE = {"cache-control": "no-store"}
"""Looks up without leaving a trace, so that one probe cannot answer the next."""


def talk(last: str, **fields: Any) -> dict[str, Any]:
    """A request with something to change in every place, still fit for similarity."""
    return {
        "model": "gpt-4o-mini",
        "messages": [
            {"role": "system", "content": "You help customers of a web shop."},
            {"role": "user", "content": "Hello there!"},
            {"role": "assistant", "content": "Good day. What can I do for you?"},
            {"role": "user", "content": last},
        ],
        "temperature": 0.2,
        "top_p": 0.9,
        "seed": 7,
        "stop": ["END"],
        "max_tokens": 200,
        "user": "u-1",
        "presence_penalty": 0.0,
        "vendor": {"mode": "fast"},
        **fields,
    }


def with_message(position: int, **fields: Any) -> Any:
    def change(body: dict[str, Any]) -> dict[str, Any]:
        messages = list(body["messages"])
        messages[position] = {**messages[position], **fields}
        return {**body, "messages": messages}

    return change


def with_fields(**fields: Any) -> Any:
    return lambda body: {**body, **fields}


def without(name: str) -> Any:
    return lambda body: {key: value for key, value in body.items() if key != name}


def with_history(change: Any) -> Any:
    return lambda body: {**body, "messages": [*change(body["messages"][:-1]), body["messages"][-1]]}


WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}

CHANGES: dict[str, Any] = {
    "system message": with_message(0, content="You help pirates."),
    "system role": with_message(0, role="developer"),
    "no system message": with_history(lambda history: history[1:]),
    "earlier user turn": with_message(1, content="I am a lawyer."),
    "earlier assistant turn": with_message(2, content="I am afraid that I cannot help you."),
    "shorter history": with_history(lambda history: [history[0]]),
    "longer history": with_history(lambda history: [*history, history[1], history[2]]),
    "swapped history": with_history(lambda history: [history[0], history[2], history[1]]),
    "name of the speaker": with_message(3, name="bob"),
    "unknown field of the last message": with_message(3, vendor_hint=1),
    "tools": with_fields(tools=[WEATHER]),
    "tool_choice": with_fields(tools=[WEATHER], tool_choice="none"),
    "parallel_tool_calls": with_fields(parallel_tool_calls=False),
    "functions": with_fields(functions=[{"name": "weather", "parameters": {}}]),
    "response_format": with_fields(response_format={"type": "json_object"}),
    "temperature": with_fields(temperature=0.3),
    "no temperature": without("temperature"),
    "top_p": with_fields(top_p=0.8),
    "seed": with_fields(seed=8),
    "no seed": without("seed"),
    "stop": with_fields(stop=["STOP"]),
    "max_tokens": with_fields(max_tokens=201),
    "max_completion_tokens": with_fields(max_completion_tokens=200),
    "model": with_fields(model="gpt-4o"),
    "user": with_fields(user="u-2"),
    "presence_penalty": with_fields(presence_penalty=0.1),
    "frequency_penalty": with_fields(frequency_penalty=0.1),
    "logit_bias": with_fields(logit_bias={"50256": -100}),
    "reasoning_effort": with_fields(reasoning_effort="low"),
    "service_tier": with_fields(service_tier="flex"),
    "verbosity": with_fields(verbosity="low"),
    "metadata": with_fields(metadata={"team": "a"}),
    "unknown vendor field": with_fields(top_k=40),
    "unknown vendor field, null": with_fields(top_k=None),
    "inside a vendor field": with_fields(vendor={"mode": "slow"}),
    "type inside a vendor field": with_fields(vendor={"mode": ["fast"]}),
    "unknown stream option": with_fields(stream=True, stream_options={"vendor": 1}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_any_other_request_is_another_question(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, change: Any
) -> None:
    await proxy.fill(talk(QUESTION), key=key)
    for text, tier in ((QUESTION, "exact"), (PARAPHRASE, "semantic")):
        same = await proxy.ask(talk(text), key=key, headers=PROBE)
        assert (same.outcome, same.tier) == ("hit", tier)
        other = await proxy.ask(change(talk(text)), key=key, headers=PROBE)
        assert other.status == 200
        assert other.outcome != "hit", (tier, other.reason)
    assert upstream.calls == 3


SAME: dict[str, Any] = {
    "streamed": with_fields(stream=True),
    "not streamed": with_fields(stream=False),
    "with usage": with_fields(stream=True, stream_options={"include_usage": True}),
    "fields in another order": lambda body: dict(reversed(body.items())),
    "nested fields in another order": lambda body: {
        **body,
        "messages": [dict(reversed(message.items())) for message in body["messages"]],
    },
}


@pytest.mark.parametrize("change", SAME.values(), ids=SAME)
async def test_the_wire_form_is_not_part_of_the_question(proxy: Proxy, key: str, change: Any) -> None:
    await proxy.fill(talk(QUESTION), key=key)
    for text in (QUESTION, PARAPHRASE):
        assert (await proxy.ask(change(talk(text)), key=key, headers=PROBE)).outcome == "hit"


@pytest.mark.parametrize(
    "other",
    [
        "How do I reset my password? ",
        "how do I reset my password?",
        "How do I reset my password?\u200b",
        "How do I reset my passwo\u0072\u0301d?",
    ],
    ids=["space", "case", "zero width", "combining mark"],
)
async def test_another_spelling_is_never_an_exact_hit(proxy: Proxy, key: str, other: str) -> None:
    await proxy.fill(chat(), key=key)
    assert (await proxy.ask(chat(other), key=key, headers=PROBE)).tier != "exact"


async def test_beta_features_are_part_of_the_question(proxy: Proxy, key: str) -> None:
    await proxy.fill(chat(), key=key, headers={"openai-beta": "a=v1"})
    assert not await proxy.cached(chat(), key=key)
    assert not await proxy.cached(chat(), key=key, headers={"openai-beta": "a=v2"})
    assert await proxy.cached(chat(), key=key, headers={"openai-beta": "a=v1"})


async def test_beta_features_on_two_lines_all_count(proxy: Proxy, key: str) -> None:
    body = encode(chat())
    head = {"authorization": f"Bearer {key}", "content-type": "application/json"}

    async def ask(*betas: str) -> str | None:
        sent = [*head.items(), *(("openai-beta", beta) for beta in betas)]
        async with await Connection.open(proxy.url) as connection:
            connection.send(request_bytes("POST", CHAT, sent, body))
            return answered(await connection.read_response("POST")).outcome

    assert [await ask("one"), await ask("one", "two"), await ask("one"), await ask("one", "two")] == [
        "miss",
        "miss",
        "hit",
        "hit",
    ]


@pytest.mark.parametrize("name", ["x-portkey-provider", "x-portkey-config", "helicone-target-url", "anthropic-beta"])
async def test_headers_that_choose_a_model_at_a_gateway_are_part_of_the_question(
    proxy: Proxy, key: str, name: str
) -> None:
    await proxy.fill(chat(), key=key, headers={name: "one"})
    assert not await proxy.cached(chat(), key=key)
    assert not await proxy.cached(chat(), key=key, headers={name: "two"})
    assert await proxy.cached(chat(), key=key, headers={name: "one"})


async def test_two_google_keys_beside_one_dummy_share_nothing(proxy: Proxy, key: str) -> None:
    await proxy.fill(chat(), key=key, headers={"x-goog-api-key": "one"})
    assert not await proxy.cached(chat(), key=key, headers={"x-goog-api-key": "two"})
    assert await proxy.cached(chat(), key=key, headers={"x-goog-api-key": "one"})


async def test_the_query_string_is_part_of_the_question(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    await proxy.fill(chat(), key=key)
    for text in (QUESTION, PARAPHRASE):
        other = await proxy.ask(chat(text), key=key, headers=PROBE, target="/v1/chat/completions?api-version=2")
        assert other.outcome != "hit"
    assert upstream.requests[-1].target == "/v1/chat/completions?api-version=2"


@pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["whole", "streamed"])
@pytest.mark.parametrize("text", [QUESTION, PARAPHRASE], ids=["exact", "semantic"])
async def test_a_tenant_never_sees_anothers_answer(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, other_key: str, text: str, form: dict[str, Any]
) -> None:
    mine = await proxy.fill(chat(), key=key)
    theirs = await proxy.ask(chat(text, **form), key=other_key)
    assert theirs.outcome == "miss"
    assert theirs.content != mine.content
    assert theirs.get("x-cacheproxy-similarity") is None
    assert upstream.calls == 2


KEYLESS: dict[str, dict[str, str]] = {
    "no key": {},
    "empty": {"authorization": ""},
    "empty bearer": {"authorization": "Bearer "},
    "other scheme": {"authorization": "Basic c2s6"},
}


@pytest.mark.parametrize("headers", KEYLESS.values(), ids=KEYLESS)
async def test_a_caller_without_the_key_never_sees_its_answer(proxy: Proxy, key: str, headers: dict[str, str]) -> None:
    await proxy.fill(chat(), key=key)
    for text in (QUESTION, PARAPHRASE):
        assert (await proxy.ask(chat(text), key=None, headers={**headers, **PROBE})).outcome != "hit"


async def test_callers_without_a_key_share_nothing(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    first = await proxy.ask(chat(), key=None)
    await proxy.settled(key)
    second = await proxy.ask(chat(), key=None)
    assert (first.outcome, second.outcome) == ("bypass", "bypass")
    assert second.reason == "anonymous"
    assert first.content != second.content


@pytest.mark.parametrize("name", ["x-tenant", "x-tenant-id", "x-user-id", "x-forwarded-user", "openai-organization"])
async def test_a_header_does_not_make_a_caller_someone_else(proxy: Proxy, key: str, other_key: str, name: str) -> None:
    await proxy.fill(chat(), key=key, headers={name: "acme"})
    assert (await proxy.ask(chat(), key=other_key, headers={name: "acme"})).outcome == "miss"


async def test_two_keys_in_one_request_never_read_either_cache(proxy: Proxy, key: str, other_key: str) -> None:
    await proxy.fill(chat(), key=key)
    twice = await proxy.ask(chat(), key=other_key, headers={"Authorization": f"Bearer {key}", **PROBE})
    assert twice.outcome != "hit"


async def test_one_tenants_concurrent_questions_do_not_mix(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    async def one(number: int) -> None:
        text = f"{UNRELATED} Egg number {number}."
        answered = await proxy.ask(chat(text), key=f"sk-tenant-{number}")
        assert answered.content.endswith(text)

    await asyncio.gather(*(one(number) for number in range(40)))
    assert upstream.calls == 40
