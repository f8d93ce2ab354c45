"""Stored by a stream or by a body, asked as either: a hit equals the live answer but for `id` and `created`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from tests.support.packs import changed_pack
from tests.support.payloads import CHAT_PAYLOADS, COMPLETIONS_PAYLOADS
from tests.support.proxy import proxy_settings, started

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import openai

    from tests.support.payloads import Payload
    from tests.support.proxy import Answered, Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIVE = {"cache-control": "no-store, no-cache"}
"""Answered by the backend alone, and forgotten."""

WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
FORMS: dict[str, dict[str, Any]] = {"body": {}, "stream": {"stream": True}, "stream with usage": WITH_USAGE}
ROWS = {
    f"{dialect}, {name}": payload
    for dialect, payloads in (("chat", CHAT_PAYLOADS), ("completions", COMPLETIONS_PAYLOADS))
    for name, payload in payloads.items()
}

every_row = pytest.mark.parametrize("payload", ROWS.values(), ids=ROWS)
stored_by = pytest.mark.parametrize("stored", [{}, {"stream": True}], ids=["stored by a body", "stored by a stream"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxy(module_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    """One proxy for the module, whose pack keeps answers that call tools."""
    pack = changed_pack(tmp_path_factory.mktemp("pack"), tool_calls=True)
    sections = {"policies": {"pack": str(pack)}}
    async with started(proxy_settings(module_upstream.url, tmp_path_factory.mktemp("data"), **sections)) as live:
        yield live


def timeless(answered: Answered) -> dict[str, Any]:
    return {name: value for name, value in answered.whole.items() if name not in ("id", "created")}


@pytest.mark.parametrize("asked", FORMS.values(), ids=[f"asked as a {form}" for form in FORMS])
@stored_by
@every_row
async def test_a_hit_equals_the_live_answer(
    proxy: Proxy,
    upstream: ScriptedUpstream,
    key: str,
    payload: Payload,
    stored: dict[str, Any],
    asked: dict[str, Any],
) -> None:
    upstream.always(payload.script())
    await proxy.fill(payload.ask | stored, key=key, target=payload.target)
    live = await proxy.ask(payload.ask | asked, key=key, headers=LIVE, target=payload.target)
    hit = await proxy.ask(payload.ask | asked, key=key, target=payload.target)
    assert (live.outcome == "hit", hit.outcome, hit.tier) == (False, "hit", "exact")
    assert (hit.streamed, hit.get("content-type")) == (live.streamed, live.get("content-type"))
    assert timeless(hit) == timeless(live)
    first, second = live.whole, hit.whole
    assert first["id"] != second["id"]
    assert first["id"].partition("-")[0] == second["id"].partition("-")[0]
    assert second["created"] > first["created"]


@every_row
async def test_a_live_answer_is_what_the_backend_sent(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, payload: Payload
) -> None:
    upstream.always(payload.script())
    for include_usage in (False, True):
        asked = payload.ask | (WITH_USAGE if include_usage else {"stream": True})
        first = await proxy.ask(asked, key=key, target=payload.target, headers={"cache-control": "no-cache"})
        assert first.outcome == "miss"
        seen, sent = first.chunks, payload.events(include_usage=include_usage)
        assert (first.body == sent, first.complete) == (True, True)
        assert all("usage" in one for one in seen) == include_usage


# The official client

TOOLS, PLAIN = CHAT_PAYLOADS["tool calls"], CHAT_PAYLOADS["reasoning_content"]


def dumped(answer: Any) -> dict[str, Any]:
    told: dict[str, Any] = answer.model_dump()
    return {name: value for name, value in told.items() if name not in ("id", "created")}


@pytest.mark.parametrize("payload", [TOOLS, PLAIN, CHAT_PAYLOADS["logprobs"]], ids=["tools", "reasoning", "logprobs"])
@stored_by
async def test_the_client_cannot_tell_a_hit_apart(
    proxy: Proxy,
    upstream: ScriptedUpstream,
    key: str,
    openai_client: openai.AsyncOpenAI,
    payload: Payload,
    stored: dict[str, Any],
) -> None:
    upstream.always(payload.script())
    await proxy.fill(payload.ask | stored, key=key)
    create = openai_client.chat.completions.create
    whole = [await create(**payload.ask, extra_headers=headers) for headers in (LIVE, {})]
    assert dumped(whole[0]) == dumped(whole[1])
    assert whole[0].id != whole[1].id
    helped = []
    for headers in (LIVE, {}):
        async with openai_client.chat.completions.stream(**payload.ask, extra_headers=headers) as stream:
            helped.append(await stream.get_final_completion())
    assert dumped(helped[0]) == dumped(helped[1])
    assert upstream.calls == 3


@pytest.mark.parametrize("name", ["text", "logprobs", "several prompts"])
@stored_by
async def test_the_client_cannot_tell_a_completion_apart(
    proxy: Proxy,
    upstream: ScriptedUpstream,
    key: str,
    openai_client: openai.AsyncOpenAI,
    name: str,
    stored: dict[str, Any],
) -> None:
    payload = COMPLETIONS_PAYLOADS[name]
    upstream.always(payload.script())
    await proxy.fill(payload.ask | stored, key=key, target=payload.target)
    create = openai_client.completions.create
    live, hit = [await create(**payload.ask, extra_headers=headers) for headers in (LIVE, {})]
    assert dumped(live) == dumped(hit)
    texts: list[dict[int, str]] = []
    for headers in (LIVE, {}):
        told: dict[int, str] = {}
        async for chunk in await create(**payload.ask, stream=True, extra_headers=headers):
            for choice in chunk.choices:
                told[choice.index] = told.get(choice.index, "") + choice.text
        texts.append(told)
    assert texts[0] == texts[1] == {choice.index: choice.text for choice in live.choices}
    assert upstream.calls == 3
