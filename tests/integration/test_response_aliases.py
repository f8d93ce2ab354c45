"""The id of a hit is good for what an id is good for: going on from it, reading it, deleting it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.polling import eventually_true
from tests.support.proxy import PARAPHRASE, QUESTION
from tests.support.responses_wire import PATH, default_response
from tests.support.upstream import answer

if TYPE_CHECKING:
    import openai

    from tests.support.proxy import Answered, Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = "gpt-4o-mini"


def ask(given: object = QUESTION, **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": given, **fields}


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def hit_of(proxy: Proxy, key: str, **fields: Any) -> tuple[str, str]:
    """Return the response id of a live answer, and that of a hit on it."""
    live = await proxy.fill(ask(**fields), key=key, target=PATH)
    hit = await proxy.ask(ask(**fields), key=key, target=PATH)
    assert hit.outcome == "hit"
    return str(live.json()["id"]), str(hit.json()["id"])


async def go_on(proxy: Proxy, key: str, previous: str) -> Answered:
    return await proxy.ask(ask("And then?", previous_response_id=previous), key=key, target=PATH)


@pytest.mark.parametrize("question", [QUESTION, PARAPHRASE], ids=["exact", "semantic"])
async def test_a_second_turn_goes_on_from_a_hit(
    openai_client: openai.AsyncOpenAI, proxy: Proxy, upstream: ScriptedUpstream, key: str, question: str
) -> None:
    live = await openai_client.responses.create(model=MODEL, input=QUESTION)
    await eventually_true(lambda: proxy.cached(ask(), key=key, target=PATH), "the answer is kept")
    hit = await openai_client.responses.create(model=MODEL, input=question)
    assert hit.id != live.id
    second = await openai_client.responses.create(model=MODEL, input="And then?", previous_response_id=hit.id)
    assert upstream.calls == 2
    assert upstream.requests[1].json() == ask("And then?", previous_response_id=live.id)
    assert second.previous_response_id == live.id


async def test_a_body_that_names_no_hit_is_forwarded_as_it_came(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    raw = b'{ "input":"x",  "model":"m", "temperature": 0.10, "previous_response_id":"resp_abc" }'
    await proxy.ask(raw, key=key, target=PATH)
    unknown = "resp_" + "0" * 32 + "0c" + "0" * 16
    await go_on(proxy, key, unknown)
    assert upstream.requests[0].body == raw
    assert upstream.requests[1].json()["previous_response_id"] == unknown


async def test_another_tenants_hit_is_a_stranger(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, other_key: str
) -> None:
    live, hit = await hit_of(proxy, key)
    await go_on(proxy, other_key, hit)
    assert upstream.requests[1].json()["previous_response_id"] == hit
    for method in ("GET", "DELETE"):
        for name in (hit, live):
            await proxy.call(method, f"{PATH}/{name}", bearer(other_key))
            assert upstream.requests[-1].target == f"{PATH}/{name}"
    assert await proxy.cached(ask(), key=key, target=PATH)
    await proxy.call("GET", f"{PATH}/{hit}")
    assert upstream.requests[-1].target == f"{PATH}/{hit}"


PATHS = {
    "the response": ("GET", "", ""),
    "with a query": ("GET", "", "?include=a&include=b&stream=true"),
    "its input": ("GET", "/input_items", "?limit=2"),
    "cancelled": ("POST", "/cancel", ""),
}


@pytest.mark.parametrize(("method", "rest", "query"), PATHS.values(), ids=PATHS)
async def test_a_path_that_names_a_hit_reaches_the_backends_own_response(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, method: str, rest: str, query: str
) -> None:
    live, hit = await hit_of(proxy, key)
    upstream.always(answer({"id": live, "object": "response"}))
    told = await proxy.call(method, f"{PATH}/{hit}{rest}{query}", bearer(key))
    assert (told.status, told.json()["id"]) == (200, live)
    seen = upstream.requests[-1]
    assert (seen.method, seen.target) == (method, f"{PATH}/{live}{rest}{query}")
    assert seen.header("authorization") == f"Bearer {key}"
    assert await proxy.cached(ask(), key=key, target=PATH)


@pytest.mark.parametrize("name", ["hit", "live"])
async def test_deleting_a_response_takes_its_entry_along(
    openai_client: openai.AsyncOpenAI, proxy: Proxy, upstream: ScriptedUpstream, key: str, name: str
) -> None:
    ids = dict(zip(("live", "hit"), await hit_of(proxy, key), strict=True))
    upstream.play(answer({"id": ids["live"], "object": "response", "deleted": True}))
    await openai_client.responses.delete(ids[name])
    assert (upstream.requests[-1].method, upstream.requests[-1].target) == ("DELETE", f"{PATH}/{ids['live']}")
    assert not await proxy.cached(ask(), key=key, target=PATH)
    paraphrased = await proxy.ask(ask(PARAPHRASE), key=key, target=PATH)
    assert (paraphrased.outcome, upstream.calls) == ("miss", 3)


async def test_deleting_a_response_that_was_replaced_since_spares_the_new_one(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    old, _ = await hit_of(proxy, key)
    renewed = await proxy.ask(ask(), key=key, target=PATH, headers={"cache-control": "no-cache"})
    new = renewed.json()["id"]
    assert (await proxy.ask(ask(), key=key, target=PATH)).json()["output"][0]["id"] == renewed.json()["output"][0]["id"]
    await proxy.call("DELETE", f"{PATH}/{old}", bearer(key))
    assert upstream.requests[-1].target == f"{PATH}/{old}" != f"{PATH}/{new}"
    assert await proxy.cached(ask(), key=key, target=PATH)


async def test_nobody_goes_on_from_an_answer_he_never_saw(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    _, hit = await hit_of(proxy, key)
    await proxy.ask(ask(), key=key, target=PATH, headers={"cache-control": "no-cache"})
    newer = (await proxy.ask(ask(), key=key, target=PATH)).json()["id"]
    await go_on(proxy, key, hit)
    assert upstream.requests[-1].json()["previous_response_id"] == hit
    for method in ("GET", "DELETE"):
        upstream.play(answer({"error": {"message": "x"}}, status=404))
        await proxy.call(method, f"{PATH}/{hit}", bearer(key))
        assert upstream.requests[-1].target == f"{PATH}/{hit}"
    assert await proxy.cached(ask(), key=key, target=PATH)
    await go_on(proxy, key, newer)
    assert upstream.requests[-1].json()["previous_response_id"] not in (hit, newer)


@pytest.mark.parametrize(("status", "cached"), [(404, False), (410, False), (401, True), (500, True)])
async def test_an_entry_goes_only_when_the_response_is_gone(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, status: int, cached: bool
) -> None:
    _, hit = await hit_of(proxy, key)
    upstream.play(answer({"error": {"message": "x"}}, status=status))
    assert (await proxy.call("DELETE", f"{PATH}/{hit}", bearer(key))).status == status
    assert await proxy.cached(ask(), key=key, target=PATH) == cached


async def test_once_its_entry_is_gone_a_hits_id_goes_as_it_is(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    _, hit = await hit_of(proxy, key)
    await proxy.call("DELETE", f"{PATH}/{hit}", bearer(key))
    await go_on(proxy, key, hit)
    assert upstream.requests[-1].json()["previous_response_id"] == hit


async def test_an_id_that_could_lead_elsewhere_is_not_put_into_a_path(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    for number, strange in enumerate(("../files/f", "resp?x", "resp#x", "..", "résp", "resp\r\nx: y", "", 7)):
        question = f"{QUESTION} Number {number}?"
        upstream.play(answer({**default_response(ask(question), 1), "id": strange}))
        await proxy.fill(ask(question), key=key, target=PATH, headers={"x-cacheproxy-tier": "exact"})
        hit = (await proxy.ask(ask(question), key=key, target=PATH)).json()["id"]
        await proxy.call("GET", f"{PATH}/{hit}", bearer(key))
        assert upstream.requests[-1].target == f"{PATH}/{hit}"
