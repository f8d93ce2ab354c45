"""Embeddings: lists of inputs are answered from the cache whole and in parts, and controls are followed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.embeddings import ENCODINGS, TEXTS, ask, data, direct, fill, held
from tests.support.embeddings_wire import PATH, request
from tests.support.upstream import answer

if TYPE_CHECKING:
    from tests.support.proxy import Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")
TOKENS = [[1, 2, 3], [4, 5], [6]]


# Hits


@pytest.mark.parametrize("encoding", [None, *ENCODINGS])
@pytest.mark.parametrize("value", [TEXTS[0], TEXTS[:1], TEXTS, TOKENS[0], TOKENS], ids=repr)
async def test_a_hit_equals_the_live_answer(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, value: object, encoding: str | None
) -> None:
    fields: dict[str, Any] = {} if encoding is None else {"encoding_format": encoding}
    live = await fill(proxy, value, key, **fields)
    assert live.json() == direct(value, **fields)
    hit = await ask(proxy, value, key, **fields)
    assert (hit.outcome, hit.tier, hit.json()) == ("hit", "exact", live.json())
    assert upstream.calls == 1


async def test_a_miss_passes_both_ways_byte_for_byte(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    asked = b'{ "input" : ["\\u0061", "b"],\n "model":"m", "x-unknown": 1.50 }'
    told = b'{ "object":"list", "model":"m",\n "data":[ {"embedding":[1,2.50],"index":1}, '
    told += b'{"index":0,"embedding":[1E-2,3]} ] }'
    upstream.play(answer(told))
    live = await proxy.ask(asked, key=key, target=PATH)
    assert (live.body, upstream.requests[0].body) == (told, asked)
    hit = await proxy.ask(asked, key=key, target=PATH)
    assert hit.outcome == "hit"
    assert [item["embedding"] for item in hit.json()["data"]] == [[0.01, 3], [1, 2.5]]


@pytest.mark.parametrize("kept", ENCODINGS)
@pytest.mark.parametrize("wanted", ENCODINGS)
async def test_one_entry_serves_both_encodings(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, kept: str, wanted: str
) -> None:
    await fill(proxy, TEXTS, key, encoding_format=kept)
    hit = await ask(proxy, TEXTS, key, encoding_format=wanted)
    assert (hit.outcome, hit.json()["data"]) == ("hit", direct(TEXTS, encoding_format=wanted)["data"])
    assert upstream.calls == 1


async def test_numbers_that_float32_cannot_hold_are_asked_for_again_as_base64(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    item = {"object": "embedding", "index": 0, "embedding": [1e300, 0.5]}
    upstream.play(answer(direct("a") | {"data": [item]}))
    await fill(proxy, "a", key)
    again = await ask(proxy, "a", key, encoding_format="base64")
    assert (again.outcome, again.reason) == ("miss", "not_convertible")
    assert again.json() == direct("a", encoding_format="base64")


async def test_unknown_fields_are_kept_and_an_id_is_new(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    told = direct("a") | {"id": "embd-live", "created": 1, "vendor": {"region": "eu"}}
    told["data"][0]["truncated"] = False
    upstream.play(answer(told))
    await fill(proxy, "a", key)
    hit = (await ask(proxy, "a", key)).json()
    assert list(hit) == list(told)
    assert hit | {"id": "embd-live", "created": 1} == told
    assert hit["id"].startswith("embd-")
    assert hit["id"] != "embd-live"
    assert hit["created"] > 1


async def test_order_and_repetition_are_the_callers(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    await fill(proxy, TOKENS, key)
    value = [TOKENS[2], TOKENS[0], TOKENS[2]]
    hit = await ask(proxy, value, key)
    assert (hit.outcome, hit.json()) == ("hit", direct(value))
    assert upstream.calls == 1


# Partial hits


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("kept", ENCODINGS)
async def test_the_backend_is_asked_for_exactly_what_is_missing(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, kept: str, encoding: str
) -> None:
    await fill(proxy, TEXTS[1], key, encoding_format=kept)
    value = [TEXTS[3], TEXTS[1], TEXTS[0], TEXTS[3]]
    mixed = await ask(proxy, value, key, encoding_format=encoding)
    assert upstream.requests[1].json() == request([TEXTS[3], TEXTS[0]], encoding_format=encoding)
    assert mixed.json()["data"] == direct(value, encoding_format=encoding)["data"]
    assert (mixed.outcome, mixed.reason) == ("miss", "some_items_missing")
    assert mixed.cache_status.forwarded == "miss"
    assert mixed.cache_status.parameters["detail"] == "items=4;cached=1"
    assert mixed.get("x-request-id")
    assert await held(proxy, TEXTS[:2] + TEXTS[3:], key)


async def test_a_repeated_input_is_asked_for_once(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    value = [TOKENS[0], TOKENS[1], TOKENS[0]]
    live = await ask(proxy, value, key)
    assert upstream.requests[0].json()["input"] == TOKENS[:2]
    assert live.json() == direct(value)
    assert await held(proxy, value, key)


async def test_usage_is_of_the_whole_answer(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    live = await fill(proxy, TEXTS[:3], key)
    hit = await ask(proxy, TEXTS[:3], key)
    assert hit.json()["usage"] == live.json()["usage"] == direct(TEXTS[:3])["usage"]
    parts = [(await ask(proxy, text, key)).json()["usage"]["prompt_tokens"] for text in TEXTS[:3]]
    assert sum(parts) == live.json()["usage"]["prompt_tokens"]
    mixed = await ask(proxy, TEXTS, key)
    assert mixed.json()["usage"] == direct(TEXTS)["usage"]


async def test_what_the_cache_saved_is_told_for_its_part(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    tokens = list(range(1000))
    await fill(proxy, tokens, key)
    for value in (tokens, [tokens, [7]]):
        answered = await ask(proxy, value, key)
        assert answered.get("x-cacheproxy-saved-usd") == "0.000020"
    assert (await ask(proxy, [8], key)).get("x-cacheproxy-saved-usd") == "0.000000"


async def test_entries_of_two_models_are_not_mixed(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    await fill(proxy, "a", key)
    upstream.play(answer(direct("b") | {"model": "another"}))
    await fill(proxy, "b", key)
    both = await ask(proxy, ["a", "b"], key)
    assert (both.outcome, both.reason, both.json()) == ("miss", "entries_differ", direct(["a", "b"]))
    assert upstream.requests[-1].json()["input"] == ["a", "b"]
    assert await held(proxy, ["a", "b"], key)


@pytest.mark.parametrize(
    "changed",
    [{"model": "another"}, {"data": [{"object": "embedding", "index": 0, "embedding": [0.5]}]}],
    ids=["model", "length"],
)
async def test_a_live_part_of_another_model_makes_the_whole_list_new(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, changed: dict[str, Any]
) -> None:
    await fill(proxy, "a", key)
    upstream.play(answer(direct("b") | changed))
    whole_list = await ask(proxy, ["a", "b"], key)
    assert [received.json()["input"] for received in upstream.requests[1:]] == [["b"], ["a", "b"]]
    assert (whole_list.reason, whole_list.json()) == ("not_mergeable", direct(["a", "b"]))
    assert (await ask(proxy, ["b", "a"], key)).outcome == "hit"


# Controls


async def test_no_cache_asks_again_and_replaces(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    await fill(proxy, TEXTS, key)
    newer = direct(TEXTS) | {"data": data(*[[float(at), 1.0] for at in range(4)])}
    upstream.play(answer(newer))
    live = await ask(proxy, TEXTS, key, headers={"cache-control": "no-cache"})
    assert (live.reason, live.json()) == ("request_no_cache", newer)
    assert (await ask(proxy, TEXTS, key)).json()["data"] == newer["data"]


@pytest.mark.parametrize(
    ("headers", "fields"),
    [
        ({"cache-control": "no-store"}, {}),
        ({"x-cacheproxy-tier": "off"}, {}),
        ({}, {"cache": {"no-store": True}}),
        ({}, {"cache": {"use-cache": False}}),
    ],
    ids=repr,
)
async def test_nothing_is_kept_where_the_request_forbids_it(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, headers: dict[str, str], fields: dict[str, Any]
) -> None:
    live = await ask(proxy, TEXTS, key, headers=headers, **fields)
    assert live.json() == direct(TEXTS)
    assert "cache" not in upstream.requests[0].json()
    assert not await held(proxy, TEXTS[0], key)


@pytest.mark.parametrize("value", ["off", "auto"])
async def test_the_augment_header_changes_nothing(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, value: str
) -> None:
    await fill(proxy, TEXTS, key)
    assert (await ask(proxy, TEXTS, key, headers={"x-cacheproxy-augment": value})).outcome == "hit"
    (await ask(proxy, TEXTS, key, headers={"x-cacheproxy-augment": "yes"})).assert_problem(400)


async def test_no_store_still_reads(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    await fill(proxy, TEXTS[:2], key)
    headers = {"cache-control": "no-store"}
    assert (await ask(proxy, TEXTS[:2], key, headers=headers)).outcome == "hit"
    mixed = await ask(proxy, TEXTS[:3], key, headers=headers)
    assert mixed.json()["data"] == direct(TEXTS[:3])["data"]
    assert upstream.requests[1].json()["input"] == TEXTS[2:3]
    assert not await held(proxy, TEXTS[2], key)


async def test_only_if_cached_is_a_hit_or_504(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    await fill(proxy, TEXTS[:2], key)
    headers = {"cache-control": "only-if-cached"}
    assert (await ask(proxy, TEXTS[1::-1], key, headers=headers)).outcome == "hit"
    (await ask(proxy, TEXTS, key, headers=headers)).assert_problem(504, "not_cached")
    assert upstream.calls == 1


@pytest.mark.parametrize("directive", ["max-age=0", "min-fresh=100000000"], ids=repr)
async def test_freshness_can_be_asked_for(proxy: Proxy, upstream: ScriptedUpstream, key: str, directive: str) -> None:
    await fill(proxy, TEXTS, key)
    answered = await ask(proxy, TEXTS, key, headers={"cache-control": directive})
    assert (answered.outcome, answered.cache_status.forwarded) == ("miss", "request")
    assert answered.reason in ("request_no_cache", "not_fresh_enough")


async def test_a_time_to_live_is_clamped_and_the_least_one_is_told(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    await fill(proxy, "a", key)
    await ask(proxy, "b", key, headers={"x-cacheproxy-ttl": "100"})
    both = await ask(proxy, ["a", "b"], key)
    assert 90 < int(both.cache_status.parameters["ttl"]) <= 100
    (await ask(proxy, "a", key, headers={"x-cacheproxy-category": "nonsense"})).assert_problem(400)


async def test_every_answer_says_what_the_cache_did(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    alone = await fill(proxy, "a", key)
    told = [alone, await ask(proxy, "a", key), await ask(proxy, ["a", "b"], key), await ask(proxy, ["b", "a"], key)]
    assert [answered.outcome for answered in told] == ["miss", "hit", "miss", "hit"]
    for answered in told:
        for name in ("category", "reason", "lookup-ms", "saved-usd", "model", "coalesced"):
            assert answered.get(f"x-cacheproxy-{name}") is not None, name
    entries = [answered.get("x-cacheproxy-entry") for answered in told]
    assert entries == [entries[0], entries[0], None, None]
    assert entries[0]
    assert told[1].cache_status.parameters["detail"] == "exact"
    assert told[3].cache_status.parameters["detail"] == "exact;items=2"
    assert told[3].get("age") == "0"
    assert told[3].get("cache-control") == "private"
