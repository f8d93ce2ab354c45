"""Bugs that other caches were reported for, each as a test of ours.

Elsewhere: keys that leave out a field (test_keys, test_completions; semantic-router 3423), answers cut at the limit
(test_admission; OmniRoute 12885, LightRAG 3446), whole replays in either form (test_replay_matrix; semantic-router
2140, litellm 24579), streams cut before their end (test_streams; APISIX ai-cache).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.support.openai_wire import completion, encode
from tests.support.packs import changed_pack
from tests.support.payloads import CHAT_PAYLOADS, WEATHER
from tests.support.proxy import PARAPHRASE, chat, proxy_settings, started
from tests.support.upstream import CUT, answer, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.proxy import Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROBE = {"cache-control": "no-store"}
CALLING, TEXT = CHAT_PAYLOADS["tool call"], CHAT_PAYLOADS["text"]
STREAM: dict[str, Any] = {"stream": True}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def keeping(module_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    """A proxy whose pack keeps answers that call tools."""
    pack = changed_pack(tmp_path_factory.mktemp("pack"), tool_calls=True)
    sections = {"policies": {"pack": str(pack)}}
    async with started(proxy_settings(module_upstream.url, tmp_path_factory.mktemp("data"), **sections)) as live:
        yield live


REFUSING: dict[str, dict[str, Any]] = {
    "tool_choice none": {"tool_choice": "none"},
    "another tool_choice": {"tool_choice": "auto"},
    "no tools": {"tools": []},
    "other tools": {"tools": [{**WEATHER, "function": {**WEATHER["function"], "name": "forecast"}}]},
    "one tool more": {"tools": [WEATHER, WEATHER]},
    "no parallel calls": {"parallel_tool_calls": False},
    "another format": {"response_format": {"type": "json_object"}},
}


@pytest.mark.parametrize("form", [{}, STREAM], ids=["whole", "streamed"])
@pytest.mark.parametrize("fields", REFUSING.values(), ids=REFUSING)
async def test_a_kept_tool_call_never_answers_a_request_with_other_tools(
    keeping: Proxy, upstream: ScriptedUpstream, key: str, fields: dict[str, Any], form: dict[str, Any]
) -> None:
    """OmniRoute 12734, 13267: `tool_choice: "none"` was answered with cached tool calls."""
    upstream.always(CALLING.script())
    await keeping.fill(CALLING.ask, key=key)
    upstream.always(TEXT.script())
    other = await keeping.ask(CALLING.ask | fields | form, key=key, headers=PROBE)
    assert other.outcome != "hit"
    assert "tool_calls" not in other.whole["choices"][0]["message"]
    assert (await keeping.ask(CALLING.ask | form, key=key)).outcome == "hit"


@pytest.mark.parametrize("form", [{}, STREAM], ids=["whole", "streamed"])
async def test_tool_calls_are_forgotten_by_default_and_kept_only_for_the_same_request(
    proxy: Proxy, keeping: Proxy, upstream: ScriptedUpstream, key: str, form: dict[str, Any]
) -> None:
    """A kept call names a tool run once: policy must ask for it, and similarity must never find it."""
    upstream.always(CALLING.script())
    for live in [await proxy.ask(CALLING.ask | form, key=key) for _ in range(2)]:
        assert live.outcome == "miss"
    assert upstream.calls == 2
    await keeping.fill(CALLING.ask | form, key=key)
    for body in (CALLING.ask | {"messages": chat(PARAPHRASE)["messages"]}, chat(), chat(PARAPHRASE)):
        assert (await keeping.ask(body, key=key, headers=PROBE)).outcome == "miss"


@pytest.mark.parametrize("finish", ["length", "content_filter"])
@pytest.mark.parametrize("form", [{}, STREAM], ids=["whole", "streamed"])
async def test_a_tool_call_that_was_cut_short_is_forgotten(
    keeping: Proxy, upstream: ScriptedUpstream, key: str, finish: str, form: dict[str, Any]
) -> None:
    """OmniRoute 12885, LightRAG 3446, 3883: an answer cut at the limit was cached, and served for ever."""
    raw = encode(CALLING.whole).replace(b'"finish_reason":"tool_calls"', b'"finish_reason":"%s"' % finish.encode())
    events = CALLING.events(include_usage=False).replace(b'"tool_calls"}', b'"%s"}' % finish.encode())
    assert finish.encode() in raw
    assert finish.encode() in events
    upstream.always(stream(events) if form else answer(raw))
    assert (await keeping.ask(CALLING.ask | form, key=key)).outcome == "miss"
    upstream.always(None)
    await keeping.settled(key)
    assert not await keeping.cached(CALLING.ask, key=key)


async def test_a_stream_is_answered_with_a_stream_of_many_chunks(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    """semantic-router 913, 378; litellm 11145: cached JSON was sent to a stream's reader, or all in one chunk."""
    told = "one two three four five six seven eight nine ten " * 10
    upstream.always(answer(completion(told)))
    await proxy.fill(chat(), key=key)
    hit = await proxy.ask(chat(stream=True), key=key)
    assert (hit.outcome, hit.get("content-type")) == ("hit", "text/event-stream; charset=utf-8")
    pieces = [one["choices"][0]["delta"].get("content") for one in hit.chunks]
    assert sum(map(bool, pieces)) > 10
    assert hit.content == told


ERRORS = [400, 401, 403, 404, 422, 429, 500, 502, 503, 529]


@pytest.mark.parametrize("status", ERRORS)
@pytest.mark.parametrize("first", [{}, STREAM], ids=["asked whole", "asked as a stream"])
async def test_an_error_is_never_replayed_in_any_form(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, status: int, first: dict[str, Any]
) -> None:
    """semantic-router 937: a cached error was turned into a stream. The same for one that comes with status 200."""
    error = {"error": {"message": "no", "type": "t", "param": None, "code": None}}
    for script in (answer(error, status=status), answer(error)):
        upstream.always(script)
        assert (await proxy.ask(chat(**first), key=key)).json() == error
    upstream.always(TEXT.script())
    for form in ({}, STREAM):
        then = await proxy.ask(chat(**form), key=key, headers=PROBE)
        assert (then.status, then.outcome, then.content) == (200, "miss", "It is four.")


@pytest.mark.parametrize("form", [{}, STREAM], ids=["whole", "streamed"])
async def test_what_the_proxy_says_of_a_failure_does_not_outlive_it(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, form: dict[str, Any]
) -> None:
    """Devwhisper 293: the apology for a failed call was cached and outlived the outage."""
    upstream.always([CUT])
    failed = await proxy.ask(chat(**form), key=key)
    failed.assert_problem(502)
    upstream.always(TEXT.script())
    for text in (chat(**form), chat(PARAPHRASE, **form)):
        after = await proxy.ask(text, key=key, headers=PROBE)
        assert (after.status, after.outcome, after.content) == (200, "miss", "It is four.")


@pytest.mark.parametrize("text", ["a" * 1_000_000, "word " * 60_000], ids=["one word", "many words"])
async def test_a_text_beyond_the_encoders_window_is_answered_and_kept(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, text: str
) -> None:
    """litellm 37367: input too long for the embedding failed silently, and the cache was dead for it."""
    upstream.always(TEXT.script())
    await proxy.fill(chat(text), key=key)
    assert (await proxy.ask(chat(text), key=key)).tier == "exact"
    other = await proxy.ask(chat(f"{text[:40_000]}b{text[40_001:]}"), key=key, headers=PROBE)
    assert (other.status, other.outcome) == (200, "miss")
    assert upstream.calls == 2


@pytest.mark.parametrize("form", [{}, STREAM], ids=["whole", "streamed"])
async def test_reasoning_is_part_of_every_hit(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, form: dict[str, Any]
) -> None:
    """semantic-router 2140: the streaming path dropped `reasoning_content`; here also by similarity."""
    payload = CHAT_PAYLOADS["reasoning_content"]
    upstream.always(payload.script())
    await proxy.fill(payload.ask | form, key=key)
    for body in (payload.ask, chat(PARAPHRASE)):
        for then in ({}, STREAM):
            hit = await proxy.ask(body | then, key=key, headers=PROBE)
            assert hit.outcome == "hit"
            message = hit.whole["choices"][0]["message"]
            assert message["reasoning_content"] == payload.whole["choices"][0]["message"]["reasoning_content"]
