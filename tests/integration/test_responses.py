"""The responses dialect from outside: a hit equals the live answer but for id and times, in either form."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.support.openai_wire import DONE, encode
from tests.support.packs import changed_pack
from tests.support.proxy import PARAPHRASE, QUESTION, UNRELATED, chat, proxy_settings, started
from tests.support.responses_wire import (
    PATH,
    default_response,
    events,
    function_call,
    message,
    outline,
    read_typed,
    reasoning,
    response,
    text_part,
    timeless,
)
from tests.support.upstream import CUT, Hold, Send, answer, head, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.proxy import Answered, Proxy
    from tests.support.upstream import Received, ScriptedUpstream, Step

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIVE = {"cache-control": "no-store, no-cache"}
FORMS: dict[str, dict[str, Any]] = {"body": {}, "stream": {"stream": True}}
TOOL = {"type": "function", "name": "look_up", "parameters": {"type": "object", "properties": {}}, "strict": False}
SCHEMA = {"format": {"type": "json_schema", "name": "v", "schema": {"type": "object"}, "strict": True}}
CITATION = {"type": "url_citation", "url": "https://x.test", "title": "X", "start_index": 0, "end_index": 3}
LOGPROBS = [
    {"token": word, "logprob": -0.25, "bytes": list(word.encode()), "top_logprobs": []} for word in ("It", " is", " 4")
]

PAYLOADS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text": ({}, response(message("It is 4, I think."))),
    "reasoning": (
        {"reasoning": {"summary": "auto"}, "include": ["reasoning.encrypted_content"]},
        response(reasoning("**Adding**\n\nTwo and two.", "Hence 4.", encrypted_content="gAAA=="), message("It is 4.")),
    ),
    "open reasoning": (
        {},
        response(reasoning(content=[{"type": "reasoning_text", "text": "2 + 2 = 4"}]), message("It is 4.")),
    ),
    "annotations": ({}, response(message(text_part("See X.", annotations=[CITATION, CITATION])))),
    "logprobs": ({"top_logprobs": 1}, response(message(text_part("It is 4", logprobs=LOGPROBS)))),
    "function calls": (
        {"tools": [TOOL]},
        response(
            function_call("look_up", '{"q": "two and two"}', item_id="fc_1"),
            function_call("look_up", "{}", item_id="fc_2"),
            tools=[TOOL],
        ),
    ),
    "text beside tools": ({"tools": [TOOL]}, response(message("No need to look."), tools=[TOOL])),
    "a schema": ({"text": SCHEMA}, response(message('{"answer": 4}'), text=SCHEMA)),
    "several items": (
        {},
        response(
            message("Let me see.", item_id="msg_1", phase="commentary"),
            reasoning("Two and two."),
            message("It is 4.", "Truly.", item_id="msg_2", phase="final_answer"),
        ),
    ),
    "all of Unicode": (
        {},
        response(message('▲ 東京 \U0001f5fc \u0000 \u2028\u2029\x85 "quoted" \\ </script>\r\n\r\n')),
    ),
    "unknown fields": (
        {"vendor": True},
        response(
            message(text_part("It is 4.", vendor_part=[1.5, None]), vendor_item={"a": []}),
            vendor_top={"deep": [True, 12345678901234567]},
            usage={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3, "cost": 1e-9},
        ),
    ),
}
every_payload = pytest.mark.parametrize(("fields", "whole"), PAYLOADS.values(), ids=PAYLOADS)
stored_by = pytest.mark.parametrize("stored", FORMS.values(), ids=[f"stored by a {form}" for form in FORMS])
asked_as = pytest.mark.parametrize("asked", FORMS.values(), ids=[f"asked as a {form}" for form in FORMS])


def ask(given: object = QUESTION, **fields: Any) -> dict[str, Any]:
    return {"model": "gpt-4o-mini", "input": given, **fields}


def script(whole: dict[str, Any]) -> Any:
    """Answer in the form that is asked for."""

    def steps(request: Received) -> Any:
        if request.json().get("stream"):
            return stream(*events(whole, obfuscated=True))
        return answer(whole)

    return steps


def whole_of(answered: Answered) -> dict[str, Any]:
    told: dict[str, Any] = read_typed(answered.body)[-1]["response"] if answered.streamed else answered.json()
    return told


async def ask_again(proxy: Proxy, body: dict[str, Any], key: str, **headers: str) -> Answered:
    return await proxy.ask(body, key=key, headers=headers, target=PATH)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxy(module_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    """One proxy for the module, whose pack keeps answers that call tools."""
    pack = changed_pack(tmp_path_factory.mktemp("pack"), tool_calls=True)
    sections = {"policies": {"pack": str(pack)}}
    async with started(proxy_settings(module_upstream.url, tmp_path_factory.mktemp("data"), **sections)) as live:
        yield live


@asked_as
@stored_by
@every_payload
async def test_a_hit_equals_the_live_answer(
    proxy: Proxy,
    upstream: ScriptedUpstream,
    key: str,
    fields: dict[str, Any],
    whole: dict[str, Any],
    stored: dict[str, Any],
    asked: dict[str, Any],
) -> None:
    upstream.always(script(whole))
    await proxy.fill(ask(**fields, **stored), key=key, target=PATH)
    live = await proxy.ask(ask(**fields, **asked), key=key, headers=LIVE, target=PATH)
    hit = await proxy.ask(ask(**fields, **asked), key=key, target=PATH)
    assert (hit.outcome, hit.tier) == ("hit", "exact")
    assert (hit.streamed, hit.get("content-type")) == (live.streamed, live.get("content-type"))
    assert list(whole_of(hit)) == list(whole)
    assert timeless(whole_of(hit)) == timeless(whole_of(live)) == timeless(whole)
    if hit.streamed:
        assert outline(read_typed(hit.body)) == outline(read_typed(live.body))
    first, second = whole_of(live), whole_of(hit)
    assert second["id"].startswith("resp_")
    assert second["id"] != first["id"]
    assert first["created_at"] < second["created_at"] <= second["completed_at"]
    assert second["completed_at"] - second["created_at"] == first["completed_at"] - first["created_at"]


@every_payload
async def test_a_live_stream_is_what_the_backend_sent(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, fields: dict[str, Any], whole: dict[str, Any]
) -> None:
    sent = [*events(whole, obfuscated=True), b": bye\n\n", DONE]
    upstream.always(stream(*sent))
    first = await proxy.ask(ask(**fields, stream=True), key=key, target=PATH)
    assert (first.outcome, first.complete, first.body) == ("miss", True, b"".join(sent))
    assert upstream.requests[0].body == encode(ask(**fields, stream=True))


@asked_as
@stored_by
async def test_a_paraphrase_is_answered_from_the_cache(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, stored: dict[str, Any], asked: dict[str, Any]
) -> None:
    live = await proxy.fill(ask(**stored), key=key, target=PATH)
    part = {"role": "user", "content": [{"type": "input_text", "text": PARAPHRASE}]}
    for given in (PARAPHRASE, [{"role": "user", "content": PARAPHRASE}], [part]):
        hit = await ask_again(proxy, ask(given, **asked), key)
        assert (hit.outcome, hit.tier) == ("hit", "semantic")
        assert timeless(whole_of(hit)) == timeless(whole_of(live))
    assert upstream.calls == 1
    other = await ask_again(proxy, ask(UNRELATED, **asked), key)
    assert other.outcome == "miss"


async def test_instructions_and_chat_keep_answers_apart(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    await proxy.fill(ask(), key=key, target=PATH)
    assert (await ask_again(proxy, ask(instructions="Be rude."), key)).outcome == "miss"
    assert (await proxy.ask(chat(), key=key)).outcome == "miss"
    assert upstream.calls == 3


async def test_a_tool_in_play_needs_the_very_same_request(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    await proxy.fill(ask(tools=[TOOL]), key=key, target=PATH)
    other = await ask_again(proxy, ask(PARAPHRASE, tools=[TOOL]), key)
    assert (other.outcome, other.reason, upstream.calls) == ("miss", "tools", 2)


BYPASSED: dict[str, tuple[dict[str, Any], str]] = {
    "previous_response_id": ({"previous_response_id": "resp_elsewhere"}, "stateful"),
    "conversation": ({"conversation": "conv_1"}, "stateful"),
    "store": ({"store": True}, "stateful"),
    "background": ({"background": True}, "stateful"),
    "prompt": ({"prompt": {"id": "pmpt_1"}}, "stateful"),
    "web search": ({"tools": [{"type": "web_search"}]}, "live_search"),
    "code interpreter": ({"tools": [{"type": "code_interpreter", "container": {"type": "auto"}}]}, "stateful"),
    "warm": ({"temperature": 1.0}, "temperature"),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize(("fields", "reason"), BYPASSED.values(), ids=BYPASSED)
async def test_state_and_live_results_bypass_the_cache(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, fields: dict[str, Any], reason: str, form: dict[str, Any]
) -> None:
    for _ in range(2):
        asked = await ask_again(proxy, ask(**fields, **form), key)
        assert (asked.status, asked.outcome, asked.reason) == (200, "bypass", reason)
    assert [request.json() for request in upstream.requests] == [ask(**fields, **form)] * 2


NOT_KEPT: dict[str, dict[str, Any]] = {
    "a refusal": response(message({"type": "refusal", "refusal": "I cannot."})),
    "incomplete": response(message("It is"), status="incomplete", incomplete_details={"reason": "max_output_tokens"}),
    "failed": response(status="failed", error={"code": "server_error", "message": "x"}),
    "no text": response(reasoning("Hm.")),
    "a search": response({"type": "web_search_call", "id": "ws_1", "status": "completed"}, message("x")),
}


@stored_by
@pytest.mark.parametrize("whole", NOT_KEPT.values(), ids=NOT_KEPT)
async def test_an_answer_that_is_not_whole_and_ordinary_is_not_kept(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, whole: dict[str, Any], stored: dict[str, Any]
) -> None:
    upstream.always(script(whole))
    first = await ask_again(proxy, ask(**stored), key)
    assert (first.status, first.complete, timeless(whole_of(first))) == (200, True, timeless(whole))
    upstream.always(None)
    await proxy.settled(key)
    assert not await proxy.cached(ask(), key=key, target=PATH)


async def test_a_stream_whose_deltas_tell_another_text_is_not_kept(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    sent = events(response(message("It is 4.")))
    lost = [event for event in sent if b'"delta":" is"' not in event]
    assert len(lost) == len(sent) - 1
    upstream.play(stream(*lost))
    first = await ask_again(proxy, ask(stream=True), key)
    assert (first.complete, first.body) == (True, b"".join(lost))
    await proxy.settled(key)
    assert not await proxy.cached(ask(), key=key, target=PATH)


SENT = events(response(reasoning("Two and two."), message("It is 4."), function_call("f", "{}")))
ENDINGS: dict[str, list[Step]] = {
    "a chunked body cut": stream(*SENT[:-1], CUT),
    "an event cut": stream(*SENT[:-1], SENT[-1][:-1], CUT),
    "an unmarked end": [
        Send(head(200, [("content-type", "text/event-stream"), ("connection", "close")]) + b"".join(SENT[:-1])),
        CUT,
    ],
}


@pytest.mark.parametrize("steps", ENDINGS.values(), ids=ENDINGS)
async def test_a_cut_stream_breaks_the_callers_stream_and_is_not_kept(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, steps: list[Step]
) -> None:
    upstream.play(steps)
    first = await ask_again(proxy, ask(stream=True), key)
    assert not first.complete
    assert b"".join(SENT[:-1]) in first.body
    await proxy.settled(key)
    assert not await proxy.cached(ask(), key=key, target=PATH)


async def test_a_stream_that_ends_with_its_connection_is_kept(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    sent = b"".join(events(response(message("It is 4."))))
    upstream.play([Send(head(200, [("content-type", "text/event-stream"), ("connection", "close")]) + sent), CUT])
    first = await ask_again(proxy, ask(stream=True), key)
    assert (first.complete, first.body) == (True, sent)
    assert (await ask_again(proxy, ask(stream=True), key)).outcome == "hit"


async def test_callers_of_one_question_share_one_exchange(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    held = asyncio.Event()
    sent = events(response(message("It is 4.")))
    upstream.play(stream(*sent[:3], Hold(held), *sent[3:]))
    exchanges = [await proxy.begin(ask(stream=True), key=key, target=PATH) for _ in range(3)]
    held.set()
    bodies = {(await exchange.rest()).body for exchange in exchanges}
    assert (bodies, upstream.calls) == ({b"".join(sent)}, 1)
    for exchange in exchanges:
        exchange.leave()


async def test_what_a_hit_saved_is_priced_by_this_dialects_usage(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    body = {**ask(), "model": "gpt-5-mini"}
    tokens = {"input_tokens": 1_000_000, "output_tokens": 1_000_000, "total_tokens": 2_000_000}
    upstream.always(answer({**default_response(body, 1), "model": "gpt-5-mini", "usage": tokens}))
    await proxy.fill(body, key=key, target=PATH)
    hit = await ask_again(proxy, body, key)
    assert float(hit.get("x-cacheproxy-saved-usd") or 0) == pytest.approx(2.25)
