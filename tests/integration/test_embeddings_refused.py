"""Embeddings: what is never served, and what of an answer is never kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from tests.support.embeddings import TEXTS, ask, data, direct, fill, held
from tests.support.embeddings_wire import PATH, request
from tests.support.upstream import CUT, RESET, Send, answer, head, stream

if TYPE_CHECKING:
    from tests.support.proxy import Proxy
    from tests.support.upstream import ScriptedUpstream, Step

pytestmark = pytest.mark.asyncio(loop_scope="module")


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
