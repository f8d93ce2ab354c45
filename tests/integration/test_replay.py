"""A hit equals the live answer in every field but `id` and `created`, in either form, whichever form filled it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.openai_wire import DONE, chunk, delta, event
from tests.support.proxy import PARAPHRASE, QUESTION, chat
from tests.support.sse import fold
from tests.support.upstream import answer, stream

if TYPE_CHECKING:
    from tests.support.proxy import Answered, Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

TIERS = pytest.mark.parametrize("text", [QUESTION, PARAPHRASE], ids=["exact", "semantic"])

CITATION = {"type": "url_citation", "url_citation": {"url": "https://x.test", "title": "X", "start_index": 0}}
USAGE = {
    "prompt_tokens": 12,
    "completion_tokens": 34,
    "total_tokens": 46,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 30},
    "vendor_cost": 0.00012,
}

RICH_MESSAGE: dict[str, Any] = {
    "role": "assistant",
    "content": 'It is 4 — ▲ 東京 \U0001f5fc \u0000 \u2028 "quoted" \\ </script>',
    "reasoning_content": "Two and two.\n\nHence four.",
    "reasoning": "Two and two.",
    "reasoning_details": [{"type": "reasoning.text", "text": "Two and two.", "index": 0}],
    "refusal": None,
    "annotations": [CITATION],
    "vendor_message": {"nested": [1, 2.5, None, True, {"deep": "x"}]},
    "empty_list": [],
    "tool_calls": None,
}
RICH: dict[str, Any] = {
    "id": "chatcmpl-rich",
    "object": "chat.completion",
    "created": 1_700_000_001,
    "model": "vendor/model-2024",
    "provider": "Vendor",
    "choices": [
        {
            "index": 0,
            "message": RICH_MESSAGE,
            "logprobs": None,
            "finish_reason": "stop",
            "native_finish_reason": "end_turn",
            "vendor_choice": {"scores": [0.1, 1e-9, 12345678901234567]},
        }
    ],
    "usage": USAGE,
    "service_tier": "priority",
    "system_fingerprint": "fp_rich",
    "vendor_top": {"a": None, "b": []},
    "citations": ["https://x.test"],
}


def timeless(body: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in ("id", "created")}


def formless(body: dict[str, Any]) -> dict[str, Any]:
    """An answer without what differs between the two forms by design, and without nulls that a stream cannot carry."""

    def known(fields: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in fields.items() if value is not None}

    choices = [known(choice) | {"message": known(choice["message"])} for choice in body["choices"]]
    return known(timeless(body)) | {"object": None, "choices": choices}


def assert_fresh(live: Answered, hit: Answered) -> None:
    first, second = live.whole, hit.whole
    assert hit.outcome == "hit"
    assert isinstance(second["id"], str)
    assert second["id"] not in ("", first["id"])
    assert second["created"] > first["created"]


@TIERS
async def test_a_body_is_replayed_as_a_body(proxy: Proxy, upstream: ScriptedUpstream, key: str, text: str) -> None:
    upstream.always(answer(RICH))
    live = await proxy.fill(chat(), key=key)
    hit = await proxy.ask(chat(text), key=key)
    assert live.json() == RICH
    assert_fresh(live, hit)
    assert timeless(hit.json()) == timeless(RICH)
    assert list(hit.json()) == list(RICH)


@TIERS
async def test_a_body_is_replayed_as_a_stream(proxy: Proxy, upstream: ScriptedUpstream, key: str, text: str) -> None:
    upstream.always(answer(RICH))
    live = await proxy.fill(chat(), key=key)
    hit = await proxy.ask(chat(text, stream=True, stream_options={"include_usage": True}), key=key)
    assert_fresh(live, hit)
    assert {one["object"] for one in hit.chunks} == {"chat.completion.chunk"}
    assert len({(one["id"], one["created"]) for one in hit.chunks}) == 1
    assert formless(hit.whole) == formless(RICH)


RICH_CHUNKS = [
    chunk([delta({"role": "assistant", "content": "", "refusal": None})], usage=None, provider="Vendor"),
    chunk([delta({"reasoning_content": "Two and two."})], usage=None, provider="Vendor"),
    chunk([delta({"reasoning_content": "\n\nHence"})], usage=None, provider="Vendor"),
    chunk([delta({"reasoning_content": " four.", "vendor_message": {"n": [1, None]}})], usage=None, provider="Vendor"),
    chunk([delta({"content": "It"})], usage=None, provider="Vendor"),
    chunk([delta({"content": " is"}, vendor_choice={"s": 0.5})], usage=None, provider="Vendor"),
    chunk([delta({"content": " 4 東京"})], usage=None, provider="Vendor", vendor_top={"a": 1}),
    chunk([delta({"annotations": [CITATION]})], usage=None, provider="Vendor"),
    chunk([delta({}, finish="stop", native_finish_reason="end_turn")], usage=None, provider="Vendor"),
    chunk([], usage=USAGE, provider="Vendor"),
]
RICH_STREAM = b"".join([*map(event, RICH_CHUNKS), DONE])
WITH_USAGE: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}


@pytest.mark.parametrize("then", [WITH_USAGE, {}], ids=["stream", "body"])
@TIERS
async def test_a_stream_is_replayed_in_either_form(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, text: str, then: dict[str, Any]
) -> None:
    upstream.always(stream(RICH_STREAM))
    live = await proxy.fill(chat(**WITH_USAGE), key=key)
    hit = await proxy.ask(chat(text, **then), key=key)
    assert live.body == RICH_STREAM
    assert_fresh(live, hit)
    assert formless(hit.whole) == formless(fold(RICH_CHUNKS))


FILLS: dict[str, dict[str, Any]] = {
    "filled by a body": {},
    "filled by a stream": {"stream": True},
    "filled by a stream with usage": WITH_USAGE,
}


def assert_usage(answered: Answered, form: dict[str, Any], usage: dict[str, Any] | None) -> None:
    """Usage is where OpenAI puts it for that form, and nowhere else."""
    if not form:
        assert answered.json()["usage"] == usage
    elif "stream_options" not in form:
        assert not any("usage" in one for one in answered.chunks)
        assert all(one["choices"] for one in answered.chunks)
    else:
        *earlier, last = answered.chunks
        assert [one["usage"] for one in earlier] == [None] * len(earlier)
        assert all(one["choices"] for one in earlier)
        assert (last["choices"], last["usage"]) == ([], usage)


@pytest.mark.parametrize("then", FILLS.values(), ids=["asked a body", "asked a stream", "asked a stream with usage"])
@pytest.mark.parametrize("first", FILLS.values(), ids=FILLS)
async def test_usage_is_told_only_where_asked(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, first: dict[str, Any], then: dict[str, Any]
) -> None:
    live = await proxy.fill(chat(**first), key=key)
    tokens = len(QUESTION.split()) + 3, len(live.content.split()) + 1
    usage = {"prompt_tokens": tokens[0], "completion_tokens": tokens[1], "total_tokens": sum(tokens)}
    assert_usage(live, first, usage)
    for text in (QUESTION, PARAPHRASE):
        hit = await proxy.ask(chat(text, **then), key=key)
        assert hit.outcome == "hit"
        assert_usage(hit, then, usage)


async def test_a_backend_that_never_tells_usage_still_fills(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    told = [chunk([delta({"role": "assistant", "content": "Yes."})]), chunk([delta({}, finish="stop")])]
    upstream.always(stream(*map(event, told), DONE))
    live = await proxy.ask(chat(**WITH_USAGE), key=key)
    assert live.body == b"".join([*map(event, told), DONE])
    upstream.always(None)
    await proxy.settled(key)
    for form in FILLS.values():
        again = await proxy.ask(chat(**form), key=key, headers={"cache-control": "no-store"})
        assert again.status == 200
        if again.outcome == "hit":
            assert again.content == "Yes."


async def test_every_hit_has_its_own_id(proxy: Proxy, key: str) -> None:
    await proxy.fill(chat(), key=key)
    ids = {(await proxy.ask(chat(), key=key)).json()["id"] for _ in range(20)}
    assert len(ids) == 20


async def test_a_hit_stream_starts_with_the_role_and_ends_with_the_finish(proxy: Proxy, key: str) -> None:
    await proxy.fill(chat(), key=key)
    chunks = (await proxy.ask(chat(stream=True), key=key)).chunks
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [one["choices"][0]["finish_reason"] for one in chunks] == [*[None] * (len(chunks) - 1), "stop"]
    assert chunks[-1]["choices"][0]["delta"] == {}


async def test_a_completion_without_optional_fields_gains_none(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    message = {"role": "assistant", "content": "Yes."}
    bare = {
        "id": "x",
        "object": "chat.completion",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
    }
    upstream.always(answer(bare))
    await proxy.fill(chat(), key=key)
    hit = await proxy.ask(chat(), key=key)
    assert timeless(hit.json()) == timeless(bare)
    streamed = await proxy.ask(chat(stream=True), key=key)
    assert set(streamed.whole) == set(bare)
