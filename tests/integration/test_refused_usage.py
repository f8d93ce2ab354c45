"""Backends that refuse `stream_options`: their callers never see it, and no usage is made up for what is kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.openai_wire import DONE, MODEL, delta, encode, event
from tests.support.proxy import CHAT, chat
from tests.support.upstream import answer, default_steps, stream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.support.proxy import Proxy
    from tests.support.upstream import Received, ScriptedUpstream, Step

pytestmark = pytest.mark.asyncio(loop_scope="module")

WITH_USAGE: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
# It tells a null that nobody asked for: not ours to take out.
EVENTS = [
    event({"id": "c-1", "object": "chat.completion.chunk", "model": MODEL, "usage": None, "choices": [part]})
    for part in (delta({"role": "assistant", "content": "Yes."}), delta({}, finish="stop"))
]


def strict(status: int) -> Callable[[Received], Sequence[Step]]:
    def steps(request: Received) -> Sequence[Step]:
        if "stream_options" in request.json():
            return answer({"error": {"message": "unknown field: stream_options"}}, status=status)
        return stream(*EVENTS, DONE) if request.json().get("stream") else default_steps(request, 1)

    return steps


def model(name: str) -> dict[str, Any]:
    return {"model": name}  # what is learnt is learnt for a model


@pytest.mark.parametrize("status", [400, 422])
async def test_a_refused_stream_goes_out_as_its_caller_wrote_it(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, status: int
) -> None:
    upstream.always(strict(status))
    asked = chat(stream=True) | model(f"strict-{status}")
    live = await proxy.fill(asked, key=key)
    assert live.body == b"".join([*EVENTS, DONE])
    assert [request.json() for request in upstream.requests[:2]] == [
        {**asked, "stream_options": {"include_usage": True}},
        asked,
    ]
    assert upstream.requests[1].body == encode(asked)
    assert (await proxy.ask(asked, key=key)).outcome == "hit"


async def test_a_refusal_is_remembered_for_its_model(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    upstream.always(strict(400))
    await proxy.fill(chat("One?", stream=True) | model("once"), key=key)
    upstream.requests.clear()
    await proxy.fill(chat("What of whales?", stream=True) | model("once"), key=key)
    assert upstream.calls == 1
    await proxy.fill(chat("What of whales?", stream=True) | model("another"), key=key)
    assert upstream.calls == 3


async def test_what_is_wrong_in_both_forms_is_told_and_nothing_learnt(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    refusal = {"error": {"message": "no such model, and no stream_options"}}
    upstream.always(answer(refusal, status=400))
    asked = chat(stream=True) | model("wrong")
    for calls in (2, 4):
        live = await proxy.ask(asked, key=key)
        assert (live.status, live.json()) == (400, refusal)
        assert upstream.calls == calls
    await proxy.ask(chat() | model("wrong"), key=key)
    assert upstream.calls == 5, "what we did not alter is sent once"


@pytest.mark.parametrize("size", [10, 100_000])
async def test_a_refusal_of_something_else_is_told_once(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, size: int
) -> None:
    refusal = {"error": {"message": "no such model" + "!" * size}}
    upstream.always(answer(refusal, status=400))
    live = await proxy.ask(chat(stream=True) | model("else"), key=key)
    assert (live.status, live.json(), live.complete) == (400, refusal, True)
    assert upstream.calls == 1


async def test_an_entry_without_usage_serves_nobody_who_is_told_usage(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    upstream.always(strict(400))
    asked = chat() | model("unasked")
    await proxy.fill(asked | {"stream": True}, key=key)
    with_usage = await proxy.ask(asked | WITH_USAGE, key=key)
    assert (with_usage.outcome, with_usage.status) == ("miss", 400), "as the backend says to this caller"
    assert with_usage.reason == "no_usage"
    body = await proxy.ask(asked, key=key)
    assert (body.outcome, body.reason) == ("miss", "no_usage")
    assert body.json()["usage"]
    for form in ({}, {"stream": True}, WITH_USAGE):
        assert (await proxy.ask(asked | form, key=key)).outcome == "hit", "a body's entry serves every form"


async def test_no_usage_is_made_up_where_the_backend_told_none(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    untold = [one.replace(b',"usage":null', b"").replace(b'"usage":null,', b"") for one in EVENTS]
    upstream.always(stream(*untold, DONE))
    await proxy.fill(chat(**WITH_USAGE), key=key, target=CHAT)
    hit = await proxy.ask(chat(**WITH_USAGE), key=key)
    assert (hit.outcome, b"usage" in hit.body) == ("hit", False)
