"""The official client on the responses API: it changes its base URL and nothing else, and cannot tell a hit apart."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import openai
import pytest
import pytest_asyncio
from pydantic import BaseModel

from tests.support.openai_wire import MODEL
from tests.support.packs import changed_pack
from tests.support.polling import eventually_true
from tests.support.proxy import PARAPHRASE, QUESTION, proxy_settings, started
from tests.support.responses_wire import (
    PATH,
    events,
    function_call,
    message,
    outline,
    reasoning,
    response,
    text_part,
    timeless,
)
from tests.support.upstream import answer, stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.support.proxy import Proxy
    from tests.support.upstream import Received, ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIVE = {"cache-control": "no-store, no-cache"}
CITATION = {"type": "url_citation", "url": "https://x.test", "title": "X", "start_index": 0, "end_index": 3}
TOOLS: Any = [{"type": "function", "name": "look_up", "parameters": {}, "strict": False}]
RICH = response(
    reasoning("**Adding**\n\nTwo and two.", encrypted_content="gAAA=="),
    message(text_part("See X: it is 4.", annotations=[CITATION]), "And more."),
    message("Truly \u2028 4.", item_id="msg_2"),
)
CALLING = response(reasoning("Look it up."), function_call("look_up", '{"q": "four"}'), tools=TOOLS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxy(module_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    """One proxy for the module, whose pack keeps answers that call tools."""
    pack = changed_pack(tmp_path_factory.mktemp("pack"), tool_calls=True)
    sections = {"policies": {"pack": str(pack)}}
    async with started(proxy_settings(module_upstream.url, tmp_path_factory.mktemp("data"), **sections)) as live:
        yield live


def script(whole: dict[str, Any]) -> Any:
    def steps(request: Received) -> Any:
        return stream(*events(whole, obfuscated=True)) if request.json().get("stream") else answer(whole)

    return steps


async def created(client: openai.AsyncOpenAI, **asked: Any) -> dict[str, Any]:
    whole: dict[str, Any] = (await client.responses.create(model=MODEL, **asked)).model_dump()
    return whole


async def iterated(client: openai.AsyncOpenAI, **asked: Any) -> dict[str, Any]:
    told = [event async for event in await client.responses.create(model=MODEL, stream=True, **asked)]
    assert told[-1].type == "response.completed"
    final: dict[str, Any] = told[-1].response.model_dump()
    return final


async def helped(client: openai.AsyncOpenAI, **asked: Any) -> dict[str, Any]:
    async with client.responses.stream(model=MODEL, **asked) as told:
        final = await told.get_final_response()
    dumped: dict[str, Any] = final.model_dump()
    return dumped


ASK = {"create": created, "create(stream=True)": iterated, "stream": helped}
ANSWERS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "texts, reasoning, citations": ({}, RICH),
    "a call": ({"tools": TOOLS}, CALLING),
}


async def kept(proxy: Proxy, key: str, body: dict[str, Any]) -> None:
    await eventually_true(lambda: proxy.cached(body, key=key, target=PATH), "the answer is kept")


@pytest.mark.parametrize("then", ASK)
@pytest.mark.parametrize("first", ASK)
@pytest.mark.parametrize(("fields", "whole"), ANSWERS.values(), ids=ANSWERS)
async def test_every_way_to_ask_gives_the_live_answer(
    openai_client: openai.AsyncOpenAI,
    proxy: Proxy,
    upstream: ScriptedUpstream,
    key: str,
    first: str,
    then: str,
    fields: dict[str, Any],
    whole: dict[str, Any],
) -> None:
    upstream.always(script(whole))
    await ASK[first](openai_client, input=QUESTION, **fields)
    await kept(proxy, key, upstream.requests[0].json())
    hit = await ASK[then](openai_client, input=QUESTION, **fields)
    assert upstream.calls == 1
    live = await ASK[then](
        openai_client, input=QUESTION, extra_headers={"cache-control": "no-store, no-cache"}, **fields
    )
    assert upstream.calls == 2
    assert timeless(hit) == timeless(live)
    assert hit["id"] != live["id"]
    assert hit["created_at"] > live["created_at"]


async def test_the_events_of_a_hit_are_those_of_a_live_stream(
    openai_client: openai.AsyncOpenAI, proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    async def ask() -> list[dict[str, Any]]:
        told = await openai_client.responses.create(model=MODEL, input=QUESTION, stream=True)
        return outline([event.model_dump(exclude_unset=True) async for event in told])

    upstream.always(script(RICH))
    live = await ask()
    await kept(proxy, key, upstream.requests[0].json())
    assert await ask() == live
    assert upstream.calls == 1


async def test_the_stream_helper_assembles_the_text_of_a_hit(
    openai_client: openai.AsyncOpenAI, proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    upstream.always(script(RICH))
    await proxy.fill({"model": MODEL, "input": QUESTION}, key=key, target=PATH)
    snapshots: dict[tuple[int, int], str] = {}
    async with openai_client.responses.stream(model=MODEL, input=QUESTION) as told:
        async for event in told:
            if event.type == "response.output_text.delta":
                snapshots[event.output_index, event.content_index] = event.snapshot
        final = await told.get_final_response()
    assert "".join(snapshots.values()) == final.output_text == "See X: it is 4.And more.Truly \u2028 4."
    assert upstream.calls == 1


class Verdict(BaseModel):
    answer: str
    call: int


async def test_parsed_answers_are_cached_for_the_same_request_only(
    openai_client: openai.AsyncOpenAI, proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    async def parse(text: str) -> Verdict | None:
        return (await openai_client.responses.parse(model=MODEL, input=text, text_format=Verdict)).output_parsed

    async def streamed(text: str) -> Verdict | None:
        async with openai_client.responses.stream(model=MODEL, input=text, text_format=Verdict) as told:
            return (await told.get_final_response()).output_parsed

    live = await parse(QUESTION)
    assert live == Verdict(answer=QUESTION, call=live.call if live else 0)
    await kept(proxy, key, upstream.requests[0].json())
    assert await parse(QUESTION) == live
    assert await streamed(QUESTION) == live
    assert upstream.calls == 1
    rephrased = await parse(PARAPHRASE)
    assert rephrased is not None
    assert rephrased.answer == PARAPHRASE
    assert upstream.calls == 2


async def test_the_synchronous_client_gets_hits_too(
    sync_openai_client: openai.OpenAI, proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    def whole() -> dict[str, Any]:
        return sync_openai_client.responses.create(model=MODEL, input=QUESTION).model_dump()

    def helped() -> dict[str, Any]:
        with sync_openai_client.responses.stream(model=MODEL, input=QUESTION) as told:
            return told.get_final_response().model_dump()

    live = await asyncio.to_thread(whole)
    await kept(proxy, key, {"model": MODEL, "input": QUESTION})
    assert timeless(await asyncio.to_thread(whole)) == timeless(live)
    streamed = await asyncio.to_thread(helped)
    assert streamed["output"][0]["content"][0]["text"] == live["output"][0]["content"][0]["text"]
    assert upstream.calls == 1


@pytest.mark.parametrize("form", ASK)
async def test_a_paraphrase_is_answered_from_the_cache(
    openai_client: openai.AsyncOpenAI, proxy: Proxy, upstream: ScriptedUpstream, key: str, form: str
) -> None:
    live = await ASK[form](openai_client, input=QUESTION, instructions="Be brief.")
    await kept(proxy, key, upstream.requests[0].json())
    hit = await ASK[form](openai_client, input=[{"role": "user", "content": PARAPHRASE}], instructions="Be brief.")
    assert timeless(hit) == timeless(live)
    assert upstream.calls == 1


async def test_a_failing_stream_raises_the_clients_own_exception_and_is_not_kept(
    openai_client: openai.AsyncOpenAI, proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    failing = b'event: error\ndata: {"type":"error","error":{"message":"overloaded"},"sequence_number":2}\n\n'
    upstream.play(stream(*events(RICH)[:2], failing))
    with pytest.raises(openai.APIError, match="overloaded"):
        await iterated(openai_client, input=QUESTION)
    await proxy.settled(key)
    assert not await proxy.cached({"model": MODEL, "input": QUESTION}, key=key, target=PATH)
