"""Every answer of a cached dialect says what the cache did and why."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.cachestatus import parse_cache_status
from tests.support.proxy import PARAPHRASE, QUESTION, Answered, chat
from tests.support.upstream import answer, stream

if TYPE_CHECKING:
    from tests.support.proxy import Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALWAYS = ("category", "reason", "lookup-ms", "model", "coalesced")
FORMS = pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["whole", "streamed"])


def number(answered: Answered, name: str) -> float:
    value = answered.get(f"x-cacheproxy-{name}")
    assert value is not None, name
    assert re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", value), (name, value)
    return float(value)


def assert_always(answered: Answered, outcome: str) -> None:
    """What every answer says, whatever the outcome."""
    assert answered.outcome == outcome
    for name in ALWAYS:
        assert answered.get(f"x-cacheproxy-{name}") is not None, name
    assert answered.reason
    assert number(answered, "lookup-ms") >= 0
    status = answered.cache_status
    assert status.hit is (outcome == "hit")
    assert (status.forwarded is None) is (outcome == "hit")


@FORMS
async def test_a_miss_says_so(proxy: Proxy, key: str, form: dict[str, Any]) -> None:
    missed = await proxy.ask(chat(**form), key=key)
    assert_always(missed, "miss")
    assert missed.cache_status.forwarded == "miss"
    assert missed.cache_status.parameters.get("fwd-status", 200) == 200
    assert missed.get("age") is None
    assert missed.tier is None


@FORMS
async def test_an_exact_hit_says_so(proxy: Proxy, key: str, form: dict[str, Any]) -> None:
    await proxy.fill(chat(), key=key)
    hit = await proxy.ask(chat(**form), key=key)
    assert_always(hit, "hit")
    assert hit.tier == "exact"
    assert re.fullmatch("[0-9]+", hit.get("age") or "")
    assert hit.get("x-cacheproxy-entry")
    assert number(hit, "saved-usd") >= 0
    ttl = hit.cache_status.parameters["ttl"]
    assert isinstance(ttl, int)
    assert ttl > 0


@FORMS
async def test_a_semantic_hit_shows_its_evidence(proxy: Proxy, key: str, form: dict[str, Any]) -> None:
    await proxy.fill(chat(), key=key)
    hit = await proxy.ask(chat(PARAPHRASE, **form), key=key)
    assert_always(hit, "hit")
    assert hit.tier == "semantic"
    assert 0 < number(hit, "threshold") <= number(hit, "similarity") <= 1
    assert re.fullmatch("[0-9]+", hit.get("age") or "")
    assert number(hit, "saved-usd") >= 0


async def test_a_semantic_miss_shows_how_near_it_was(proxy: Proxy, key: str) -> None:
    await proxy.fill(chat(), key=key)
    refused = await proxy.ask(chat("How do I cancel my subscription?"), key=key)
    assert_always(refused, "miss")
    assert number(refused, "similarity") >= number(refused, "threshold")
    assert 0 <= number(refused, "probability") < 0.5


@FORMS
async def test_every_lookup_that_similarity_might_decide_tells_the_threshold(
    proxy: Proxy, key: str, form: dict[str, Any]
) -> None:
    missed = await proxy.fill(chat(), key=key)
    exact, near = [await proxy.ask(chat(text, **form), key=key) for text in (QUESTION, PARAPHRASE)]
    assert number(missed, "threshold") == number(exact, "threshold") == number(near, "threshold") > 0
    raised = await proxy.ask(chat(**form), key=key, headers={"x-cacheproxy-threshold": "0.9999"})
    assert (raised.tier, number(raised, "threshold")) == ("exact", 0.9999)
    alone = await proxy.ask(chat(**form), key=key, headers={"x-cacheproxy-tier": "exact"})
    assert (alone.tier, alone.get("x-cacheproxy-threshold")) == ("exact", None)


@FORMS
async def test_a_bypass_says_why(proxy: Proxy, key: str, form: dict[str, Any]) -> None:
    bypassed = await proxy.ask(chat(temperature=1.9, **form), key=key)
    assert_always(bypassed, "bypass")
    assert bypassed.cache_status.forwarded == "bypass"
    assert "temperature" in bypassed.reason


async def test_both_hits_name_the_entry_that_the_exact_one_did(proxy: Proxy, key: str) -> None:
    await proxy.fill(chat(), key=key)
    exact, near = [await proxy.ask(chat(text), key=key) for text in (QUESTION, PARAPHRASE)]
    assert exact.get("x-cacheproxy-entry") == near.get("x-cacheproxy-entry")


@pytest.mark.parametrize("text", [QUESTION, PARAPHRASE], ids=["exact", "semantic"])
async def test_a_hit_names_the_model_that_answered(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, text: str
) -> None:
    upstream.always(lambda request: answer(whole(request.json()["model"] + "-2024-07-18")))
    await proxy.fill(chat(), key=key)
    hit = await proxy.ask(chat(text), key=key)
    assert hit.outcome == "hit"
    assert hit.get("x-cacheproxy-model") == "gpt-4o-mini-2024-07-18"


def whole(model: str) -> dict[str, Any]:
    choice = {"index": 0, "message": {"role": "assistant", "content": "Like so."}, "finish_reason": "stop"}
    return {"id": "x", "object": "chat.completion", "created": 1, "model": model, "choices": [choice]}


@FORMS
async def test_a_known_price_is_saved_on_a_hit(proxy: Proxy, key: str, form: dict[str, Any]) -> None:
    await proxy.fill(chat(), key=key)
    assert number(await proxy.ask(chat(**form), key=key), "saved-usd") > 0


@pytest.mark.parametrize("status", [400, 401, 429, 500, 503])
async def test_a_backend_error_keeps_the_cache_headers(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, status: int
) -> None:
    upstream.always(answer({"error": {"message": "no", "type": "t", "param": None, "code": None}}, status=status))
    failed = await proxy.ask(chat(), key=key)
    assert failed.status == status
    assert failed.outcome == "miss"
    assert failed.cache_status.parameters["fwd-status"] == status
    assert "stored" not in failed.cache_status.parameters


async def test_the_backends_own_cache_status_is_appended_to(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    upstream.always(answer(whole("m"), headers=[("cache-status", "Origin; fwd=miss"), ("cache-status", "Edge; hit")]))
    members = parse_cache_status(", ".join((await proxy.ask(chat(), key=key)).all("cache-status")))
    assert [member.cache for member in members] == ["Origin", "Edge", "cacheproxy"]


async def test_the_backend_cannot_speak_for_the_cache(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    upstream.always(answer(whole("m"), headers=[("x-cacheproxy-outcome", "hit"), ("x-cacheproxy-entry", "forged")]))
    assert (await proxy.ask(chat(), key=key)).outcome == "miss"


@FORMS
async def test_what_belongs_to_the_filling_request_is_not_replayed(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, form: dict[str, Any]
) -> None:
    private = {
        "set-cookie": "session=1",
        "x-request-id": "req-of-the-fill",
        "openai-organization": "org-of-the-fill",
        "openai-processing-ms": "1234",
        "x-ratelimit-remaining-requests": "7",
    }
    upstream.always(answer(whole("m"), headers=list(private.items())))
    live = await proxy.fill(chat(), key=key)
    assert {name: live.get(name) for name in private} == private
    hit = await proxy.ask(chat(**form), key=key)
    assert hit.outcome == "hit"
    assert [value for name in private for value in hit.all(name) if value in private.values()] == []


async def test_nothing_downstream_may_keep_an_answer(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    live = await proxy.fill(chat(), key=key)
    hit = await proxy.ask(chat(), key=key)
    assert [answered.get("cache-control") for answered in (live, hit)] == ["private", "private"]


async def test_a_stream_keeps_its_content_type_on_a_hit(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    await proxy.fill(chat(), key=key)
    hit = await proxy.ask(chat(stream=True), key=key)
    assert (hit.get("content-type") or "").partition(";")[0] == "text/event-stream"
    assert (await proxy.ask(chat(), key=key)).get("content-type") == "application/json"


async def test_headers_of_a_stream_come_before_its_body(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    upstream.always(stream(b": wait\n\n", b"data: [DONE]\n\n"))
    exchange = await proxy.begin(chat(stream=True), key=key)
    assert exchange.head.get("x-cacheproxy-outcome") == "miss"
    await exchange.rest()
    exchange.leave()
