"""Embeddings are cached input by input: any list is answered from what any earlier list left, and nothing else."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from cacheproxy.errors import StoreUnavailable
from cacheproxy.serving import running
from tests.support.embeddings_wire import DIMENSIONS, MODEL, PATH, request, vector, whole
from tests.support.polling import eventually
from tests.support.proxy import Proxy, proxy_settings, started
from tests.support.rawhttp import Connection, request_bytes
from tests.support.upstream import CUT, RESET, Hold, Send, answer, head, stream

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.support.proxy import Answered
    from tests.support.upstream import ScriptedUpstream, Step

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXTS = ["the first", "a second one", "and the third of them", "4"]
TOKENS = [[1, 2, 3], [4, 5], [6]]
ENCODINGS = ["float", "base64"]


async def ask(
    proxy: Proxy, value: object, key: str | None, headers: Mapping[str, str] | None = None, **fields: Any
) -> Answered:
    return await proxy.ask(request(value, **fields), key=key, headers=headers, target=PATH)


async def fill(proxy: Proxy, value: object, key: str, **fields: Any) -> Answered:
    """Ask something new and return once a repetition is a hit."""
    first = await ask(proxy, value, key, **fields)
    assert (first.status, first.outcome) == (200, "miss"), (first.body[:300], first.reason)
    hit = await ask(proxy, value, key, headers={"cache-control": "only-if-cached"}, **fields)
    assert hit.status == 200, hit.reason
    return first


async def held(proxy: Proxy, value: object, key: str, **fields: Any) -> bool:
    headers = {"cache-control": "only-if-cached"}
    return (await ask(proxy, value, key, headers=headers, **fields)).status == 200


def direct(value: object, **fields: Any) -> dict[str, Any]:
    """What the backend says to the whole request."""
    return whole(request(value, **fields))


def vectors(answered: Answered) -> list[Any]:
    return [item["embedding"] for item in answered.json()["data"]]


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


# What is never served, never kept


BYPASSED: dict[str, dict[str, Any]] = {
    "empty text": {"input": ""},
    "empty list": {"input": []},
    "mixed": {"input": ["a", [1]]},
    "nested": {"input": [[["a"]]]},
    "unknown encoding": {"encoding_format": "int8"},
    "dimensions as text": {"dimensions": "8"},
}


@pytest.mark.parametrize("fields", BYPASSED.values(), ids=BYPASSED)
async def test_an_unknown_shape_is_the_backends_to_judge(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, fields: dict[str, Any]
) -> None:
    body = request("a") | fields
    refusal = {"error": {"message": "no", "type": "invalid_request_error", "param": "input", "code": None}}
    upstream.always(answer(refusal, status=400))
    for _ in range(2):
        judged = await proxy.ask(body, key=key, target=PATH)
        assert (judged.status, judged.json(), judged.outcome) == (400, refusal, "bypass")
        assert judged.reason == "unrecognised_shape"
    assert [received.json() for received in upstream.requests] == [body] * 2


async def test_nobody_is_served_anonymously(proxy: Proxy, upstream: ScriptedUpstream) -> None:
    for _ in range(2):
        assert (await ask(proxy, TEXTS, None)).reason == "anonymous"
    assert upstream.calls == 2


async def test_another_tenant_or_namespace_never_hits(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, other_key: str
) -> None:
    await fill(proxy, TEXTS, key)
    for who, headers in ((other_key, {}), (key, {"x-cacheproxy-namespace": "n"})):
        answered = await ask(proxy, TEXTS, who, headers=headers)
        assert (answered.outcome, answered.reason) == ("miss", "no_entry")
        mixed = await ask(proxy, [*TEXTS, "more"], who, headers=headers)
        assert mixed.cache_status.parameters["detail"] == "items=5;cached=4"
    assert upstream.calls == 5


@pytest.mark.parametrize(
    "fields", [{"model": "m"}, {"dimensions": 4}, {"user": "u"}, {"input_type": "query"}], ids=repr
)
async def test_another_request_is_another_vector(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, fields: dict[str, Any]
) -> None:
    await fill(proxy, TEXTS, key)
    assert (await proxy.ask(request(TEXTS) | fields, key=key, target=PATH)).outcome == "miss"


def data(*embeddings: object) -> list[dict[str, Any]]:
    return [{"object": "embedding", "index": at, "embedding": one} for at, one in enumerate(embeddings)]


ONE = [0.5, 0.25]
ODD: dict[str, dict[str, Any]] = {
    "too few": {"data": data(ONE)},
    "too many": {"data": data(ONE, ONE, ONE, ONE)},
    "none": {"data": []},
    "no data": {"data": None},
    "an index twice": {"data": data(ONE)[:1] * 2},
    "indexes from one": {"data": data(ONE, ONE, ONE)[1:]},
    "a vector empty": {"data": data(ONE, [])},
    "a vector null": {"data": data(ONE, None)},
    "lengths differ": {"data": data(ONE, [0.5])},
    "base64 broken": {"data": data(ONE, "AAAA")},
    "base64 of NaN": {"data": data("AADAfwAAwH8=", "AADAfwAAwH8=")},
    "an error beside": {"error": {"message": "half of it", "type": "server_error", "param": None, "code": None}},
}
RAW: dict[str, tuple[bytes, str]] = {
    "NaN": (msgspec.json.encode(direct(["a", "b"])).replace(b"0.", b"NaN,0.", 1), "application/json"),
    "infinity": (msgspec.json.encode(direct(["a", "b"])).replace(b"0.", b"1e999,0.", 1), "application/json"),
    "half of it": (msgspec.json.encode(direct(["a", "b"]))[:-30], "application/json"),
    "HTML": (b"<html>", "text/html"),
    "HTML said to be JSON": (b"<html>", "application/json"),
    "said to be text": (msgspec.json.encode(direct(["a", "b"])), "text/plain"),
    "empty": (b"", "application/json"),
}
TOLD = {name: (msgspec.json.encode(direct(["a", "b"]) | odd), "application/json") for name, odd in ODD.items()} | RAW


@pytest.mark.parametrize(("told", "content_type"), TOLD.values(), ids=TOLD)
async def test_an_unsound_answer_is_passed_on_and_forgotten(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, told: bytes, content_type: str
) -> None:
    upstream.play(answer(told, content_type=content_type))
    live = await ask(proxy, ["a", "b"], key)
    assert (live.status, live.body, live.get("content-type")) == (200, told, content_type)
    assert "stored" not in live.cache_status.parameters
    assert not await held(proxy, "a", key)
    assert not await held(proxy, "b", key)


@pytest.mark.parametrize(("told", "content_type"), TOLD.values(), ids=TOLD)
async def test_an_unsound_part_is_never_joined_to_what_was_found(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, told: bytes, content_type: str
) -> None:
    await fill(proxy, "found", key)
    upstream.play(answer(told, content_type=content_type), answer(told, content_type=content_type))
    live = await ask(proxy, ["found", "a", "b"], key)
    assert [received.json()["input"] for received in upstream.requests[1:]] == [["a", "b"], ["found", "a", "b"]]
    assert (live.status, live.body, live.get("content-type")) == (200, told, content_type)
    assert not await held(proxy, "a", key)


async def test_dimensions_other_than_asked_for_are_not_kept(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    upstream.play(answer(direct("a", dimensions=4)))
    live = await ask(proxy, "a", key, dimensions=5)
    assert live.json() == direct("a", dimensions=4)
    assert not await held(proxy, "a", key, dimensions=5)


ERROR = {"error": {"message": "input[1] is too long", "type": "t", "param": "input", "code": None}}


@pytest.mark.parametrize("status", [400, 401, 404, 429, 500, 503])
@pytest.mark.parametrize("found", [[], ["found"]], ids=["none found", "one found"])
async def test_an_error_is_passed_on_and_forgotten(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, found: list[str], status: int
) -> None:
    if found:
        await fill(proxy, found, key)
    upstream.always(answer(ERROR, status=status, headers=[("retry-after-ms", "1500")]))
    live = await ask(proxy, [*found, "a", "b"], key)
    assert (live.status, live.json(), live.get("retry-after-ms")) == (status, ERROR, "1500")
    assert not await held(proxy, ["a"], key)


async def test_a_fault_of_the_request_is_told_of_the_callers_own_list(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    await fill(proxy, "found", key)
    upstream.always(answer(ERROR, status=400))
    await ask(proxy, ["found", "too long"], key)
    assert upstream.requests[-1].json()["input"] == ["found", "too long"]


@pytest.mark.parametrize("status", [201, 202, 206])
async def test_only_status_200_is_kept(proxy: Proxy, upstream: ScriptedUpstream, key: str, status: int) -> None:
    upstream.play(answer(direct("a"), status=status))
    assert (await ask(proxy, "a", key)).status == status
    assert not await held(proxy, "a", key)


WHOLE = msgspec.json.encode(direct(["a", "b"]))
BROKEN: dict[str, list[Step]] = {
    "short of its length": [*answer(WHOLE[:-9], length=len(WHOLE)), CUT],
    "chunks cut": stream(WHOLE[:-9], CUT, content_type="application/json"),
    "reset": stream(WHOLE[:-9], RESET, content_type="application/json"),
    "no length": [Send(head(200, [("content-type", "application/json"), ("connection", "close")]) + WHOLE[:-9]), CUT],
}


@pytest.mark.parametrize("found", [[], ["found"]], ids=["none found", "one found"])
@pytest.mark.parametrize("told", BROKEN.values(), ids=BROKEN)
async def test_a_cut_answer_is_never_whole_for_the_caller(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, told: list[Step], found: list[str]
) -> None:
    if found:
        await fill(proxy, found, key)
    upstream.always(told)
    live = await ask(proxy, [*found, "a", "b"], key)
    assert live.status == 502 or not live.complete
    upstream.always(None)
    assert not await held(proxy, "a", key)


async def test_a_long_answer_that_is_cut_breaks_off_at_the_caller_too(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    long = msgspec.json.encode(direct(TEXTS, dimensions=6000))
    upstream.always(stream(long[:300_000], CUT, content_type="application/json"))
    live = await ask(proxy, TEXTS, key, dimensions=6000)
    assert live.status == 200
    assert not live.complete
    assert long.startswith(live.body)
    upstream.always(None)
    assert not await held(proxy, TEXTS[0], key, dimensions=6000)


@pytest.mark.parametrize(
    "headers",
    [[("cache-control", "no-store")], [("cache-control", "private")], [("vary", "accept-language")]],
    ids=repr,
)
async def test_the_backends_word_on_keeping_counts(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, headers: list[tuple[str, str]]
) -> None:
    await fill(proxy, "found", key)
    upstream.play(answer(direct(["a"]), headers=headers))
    mixed = await ask(proxy, ["found", "a"], key)
    assert mixed.json()["data"] == direct(["found", "a"])["data"]
    assert "stored" not in mixed.cache_status.parameters
    assert not await held(proxy, "a", key)


async def test_a_cookie_is_neither_kept_nor_replayed(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    upstream.play(answer(direct("a"), headers=[("set-cookie", "a=1"), ("set-cookie", "b=2")]))
    live = await ask(proxy, "a", key)
    assert live.all("set-cookie") == ["a=1", "b=2"]
    hit = await ask(proxy, "a", key)
    assert (hit.outcome, hit.all("set-cookie")) == ("hit", [])


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


# Together


async def test_callers_who_ask_the_same_share_one_call(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    await fill(proxy, TEXTS[0], key)
    for value in (TEXTS[1:3], TEXTS[:4]):
        upstream.reset()
        let_go = asyncio.Event()
        upstream.always(lambda received, until=let_go: [Hold(until), *answer(whole(received.json()))])
        asked = [asyncio.create_task(ask(proxy, value, key)) for _ in range(8)]
        await upstream.received(1)
        await asyncio.sleep(0.1)
        let_go.set()
        answers = await asyncio.gather(*asked)
        assert upstream.calls == 1
        assert [answered.json()["data"] for answered in answers] == [direct(value)["data"]] * 8
        assert sorted(answered.get("x-cacheproxy-coalesced") or "" for answered in answers) == ["false"] + ["true"] * 7


async def test_the_same_inputs_in_another_encoding_are_not_shared(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    let_go = asyncio.Event()
    upstream.always(lambda received: [Hold(let_go), *answer(whole(received.json()))])
    asked = [asyncio.create_task(ask(proxy, TEXTS, key, encoding_format=encoding)) for encoding in ENCODINGS]
    await upstream.received(2)
    let_go.set()
    for answered, encoding in zip(await asyncio.gather(*asked), ENCODINGS, strict=True):
        assert answered.json() == direct(TEXTS, encoding_format=encoding)


@pytest.mark.parametrize("value", [["a", "b"], ["found", "a"]], ids=["none found", "one found"])
async def test_a_caller_who_leaves_ends_the_call(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, value: list[str]
) -> None:
    await fill(proxy, "found", key)
    upstream.always([Hold(asyncio.Event())])
    connection = await Connection.open(proxy.url)
    body = msgspec.json.encode(request(value))
    headers = [("authorization", f"Bearer {key}"), ("content-type", "application/json")]
    connection.send(request_bytes("POST", PATH, headers, body))
    received = await upstream.received(2)
    connection.leave()
    await eventually(lambda: received.client_left_s is not None, "the call is cancelled")
    upstream.always(None)
    assert not await held(proxy, "a", key)


async def test_a_purge_meanwhile_keeps_what_was_asked_before_out(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    async with running(proxy_settings(upstream.url, tmp_path)) as live:
        proxy = Proxy(url=live.url, admin_url=live.admin_url)
        purged = (await fill(proxy, TEXTS[0], key)).get("x-cacheproxy-entry") or ""
        let_go = asyncio.Event()
        upstream.always(lambda received: [Hold(let_go), *answer(whole(received.json()))])
        asked = asyncio.create_task(ask(proxy, TEXTS, key, headers={"cache-control": "no-cache"}))
        await upstream.received(2)
        await live.pipeline.forget([purged])
        let_go.set()
        assert (await asked).json() == direct(TEXTS)
        assert await held(proxy, TEXTS[1:], key)
        assert not await held(proxy, TEXTS[0], key)


async def test_entries_survive_a_restart(upstream: ScriptedUpstream, tmp_path: Path, key: str) -> None:
    settings = proxy_settings(upstream.url, tmp_path)
    async with started(settings) as proxy:
        await fill(proxy, TEXTS, key, encoding_format="base64")
    async with started(settings) as proxy:
        hit = await ask(proxy, TEXTS, key)
        assert (hit.outcome, hit.json()) == ("hit", direct(TEXTS))


async def test_an_input_too_large_to_keep_is_asked_for_each_time(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    async with started(proxy_settings(upstream.url, tmp_path, store={"max_entry_bytes": 1000})) as proxy:
        for _ in range(2):
            live = await ask(proxy, "a", key, dimensions=100)
            assert (live.outcome, live.json()) == ("miss", direct("a", dimensions=100))
        await fill(proxy, "a", key)


async def test_a_store_that_fails_means_a_miss(
    upstream: ScriptedUpstream, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(proxy_settings(upstream.url, tmp_path)) as live:
        proxy = Proxy(url=live.url, admin_url=live.admin_url)
        await fill(proxy, TEXTS, key)
        store = live.pipeline.parts.store
        get, lost = store.get, set[str]()

        async def failing(entry_id: str) -> Any:
            if len(lost) < 1 or entry_id in lost:
                lost.add(entry_id)
                raise StoreUnavailable("gone")
            return await get(entry_id)

        monkeypatch.setattr(store, "get", failing)
        answered = await ask(proxy, TEXTS, key)
        assert answered.json()["data"] == direct(TEXTS)["data"]
        assert upstream.requests[-1].json()["input"] == TEXTS[:1]
        monkeypatch.undo()


async def test_what_is_not_read_in_time_is_missing(
    upstream: ScriptedUpstream, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(proxy_settings(upstream.url, tmp_path, server={"lookup_timeout_ms": 300})) as live:
        proxy = Proxy(url=live.url, admin_url=live.admin_url)
        many = [f"text {number}" for number in range(40)]
        await fill(proxy, many, key)
        store = live.pipeline.parts.store
        get, reads = store.get, 0

        async def stalling(entry_id: str) -> Any:
            nonlocal reads
            reads += 1
            if reads == len(many):
                await asyncio.Event().wait()
            return await get(entry_id)

        monkeypatch.setattr(store, "get", stalling)
        answered = await ask(proxy, many, key)
        assert answered.json()["data"] == direct(many)["data"]
        assert upstream.requests[-1].json()["input"] == many[32:]  # its group, and nothing read before
        monkeypatch.undo()


async def test_a_store_that_cannot_write_changes_no_answer(
    upstream: ScriptedUpstream, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(proxy_settings(upstream.url, tmp_path)) as live:
        proxy = Proxy(url=live.url, admin_url=live.admin_url)

        async def failing(entry: object, fence: int) -> bool:
            raise StoreUnavailable("full")

        store = live.pipeline.parts.store
        monkeypatch.setattr(store, "put", failing)
        for value in (TEXTS, TEXTS, "alone"):
            told = await ask(proxy, value, key)
            assert told.json() == direct(value)
            assert "stored" not in told.cache_status.parameters
        monkeypatch.undo()
        assert upstream.calls == 3


async def test_an_answer_never_says_stored_of_what_is_too_large_to_be_kept(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    async with running(proxy_settings(upstream.url, tmp_path, store={"max_entry_bytes": 1024})) as live:
        proxy = Proxy(url=live.url, admin_url=live.admin_url)
        told = await ask(proxy, TEXTS[:2], key, dimensions=500)
        assert told.json() == direct(TEXTS[:2], dimensions=500)
        assert "stored" not in told.cache_status.parameters
        assert not await held(proxy, TEXTS[:2], key, dimensions=500)
        counted = live.pipeline.parts.telemetry.admissions.labels("false", "too_large")
        assert counted._value.get() == 1


async def test_an_input_is_kept_under_the_policy_in_force_and_no_longer_than_it_is_fresh(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    async with running(proxy_settings(upstream.url, tmp_path, store={"url": "memory://"})) as live:
        told = await fill(Proxy(url=live.url, admin_url=live.admin_url), "a", key)
        entry = await live.pipeline.parts.store.get(told.get("x-cacheproxy-entry") or "")
        assert entry is not None
        assert entry.policy == live.pipeline.policy().version > 0
        assert entry.gone_s == entry.expires_s


async def test_a_bad_word_on_an_input_holds_though_its_entry_cannot_be_removed(
    upstream: ScriptedUpstream, tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(proxy_settings(upstream.url, tmp_path, store={"url": "memory://"})) as live:
        proxy = Proxy(url=live.url, admin_url=live.admin_url)
        entry = (await fill(proxy, "a", key)).get("x-cacheproxy-entry")

        async def failing(entry_ids: object) -> int:
            raise StoreUnavailable("full")

        monkeypatch.setattr(live.pipeline.parts.store, "purge", failing)
        word = {"id": entry, "verdict": "bad"}
        (await proxy.ask(word, key=key, target="/v1/cache/feedback")).assert_problem(503, "feedback_unavailable")
        assert (await ask(proxy, "a", key)).reason == "quarantined"
        assert await held(proxy, "a", key)  # a newer answer is another one


async def test_the_largest_list_is_answered_whole_and_in_parts(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    many = [f"text {number}" for number in range(2048)]
    live = await fill(proxy, many[:1000], key, encoding_format="base64")
    assert live.json() == direct(many[:1000], encoding_format="base64")
    mixed = await ask(proxy, many, key)
    assert mixed.json()["data"] == direct(many)["data"]
    assert upstream.requests[1].json()["input"] == many[1000:]
    backwards = await ask(proxy, many[::-1], key)
    assert (backwards.outcome, backwards.json()["data"]) == ("hit", direct(many[::-1])["data"])
    assert upstream.calls == 2


async def test_another_query_string_is_another_request(proxy: Proxy, key: str) -> None:
    await fill(proxy, "a", key)
    for target in (f"{PATH}?api-version=1", f"{PATH}?api-version=2"):
        assert (await proxy.ask(request("a"), key=key, target=target)).outcome == "miss"


async def test_the_backend_of_these_tests_writes_one_vector_in_both_encodings() -> None:
    listed, encoded = direct("a"), direct("a", encoding_format="base64")
    decoded = np.frombuffer(base64.b64decode(encoded["data"][0]["embedding"]), dtype="<f4")
    listed_as_float32 = np.array(listed["data"][0]["embedding"], dtype=np.float32).tolist()
    assert decoded.tolist() == listed_as_float32 == vector(MODEL, "a", DIMENSIONS).tolist()
