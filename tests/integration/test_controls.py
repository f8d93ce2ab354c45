"""What one request may ask of the cache: RFC 9111's directives, our own headers, LiteLLM's body field."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.support.openai_wire import completion, events
from tests.support.proxy import PARAPHRASE, QUESTION, chat
from tests.support.upstream import answer, stream

if TYPE_CHECKING:
    from tests.support.proxy import Answered, Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

Headers = dict[str, str]


def outcomes(*answers: Answered) -> list[str | None]:
    return [answered.outcome for answered in answers]


REFRESHING: dict[str, tuple[Headers, dict[str, Any]]] = {
    "no-cache": ({"cache-control": "no-cache"}, {}),
    "max-age=0": ({"cache-control": "max-age=0"}, {}),
    "pragma": ({"pragma": "no-cache"}, {}),
    "in a list": ({"cache-control": "foo, No-Cache , bar=1"}, {}),
    "body": ({}, {"cache": {"no-cache": True}}),
}


@pytest.mark.parametrize(("headers", "fields"), REFRESHING.values(), ids=REFRESHING)
async def test_a_refresh_asks_the_backend_and_replaces_the_entry(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, headers: Headers, fields: dict[str, Any]
) -> None:
    old = await proxy.fill(chat(), key=key)
    new = await proxy.ask(chat(**fields), key=key, headers=headers)
    assert new.outcome in ("miss", "bypass")
    assert new.content != old.content
    await proxy.settled(key)
    assert (await proxy.ask(chat(), key=key)).content == new.content


SECRETIVE: dict[str, tuple[Headers, dict[str, Any]]] = {
    "no-store": ({"cache-control": "no-store"}, {}),
    "tier off": ({"x-cacheproxy-tier": "off"}, {}),
    "body no-store": ({}, {"cache": {"no-store": True}}),
    "body use-cache false": ({}, {"cache": {"use-cache": False}}),
}


@pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["whole", "streamed"])
@pytest.mark.parametrize(("headers", "fields"), SECRETIVE.values(), ids=SECRETIVE)
async def test_an_answer_is_not_kept_where_the_request_forbids_it(
    proxy: Proxy,
    upstream: ScriptedUpstream,
    key: str,
    headers: Headers,
    fields: dict[str, Any],
    form: dict[str, Any],
) -> None:
    first = await proxy.ask(chat(**form, **fields), key=key, headers=headers)
    assert first.status == 200
    assert "stored" not in first.cache_status.parameters
    await proxy.settled(key)
    assert not await proxy.cached(chat(), key=key)
    assert not await proxy.cached(chat(PARAPHRASE), key=key)


@pytest.mark.parametrize("text", [QUESTION, PARAPHRASE], ids=["exact", "semantic"])
async def test_no_store_still_reads(proxy: Proxy, upstream: ScriptedUpstream, key: str, text: str) -> None:
    await proxy.fill(chat(), key=key)
    hit = await proxy.ask(chat(text), key=key, headers={"cache-control": "no-store"})
    assert hit.outcome == "hit"


OFF: dict[str, tuple[Headers, dict[str, Any]]] = {
    "tier off": ({"x-cacheproxy-tier": "off"}, {}),
    "use-cache false": ({}, {"cache": {"use-cache": False}}),
}


@pytest.mark.parametrize(("headers", "fields"), OFF.values(), ids=OFF)
async def test_the_cache_can_be_switched_off(proxy: Proxy, key: str, headers: Headers, fields: dict[str, Any]) -> None:
    old = await proxy.fill(chat(), key=key)
    new = await proxy.ask(chat(**fields), key=key, headers=headers)
    assert new.outcome == "bypass"
    assert new.content != old.content


async def test_the_exact_tier_alone_serves_no_paraphrase(proxy: Proxy, key: str) -> None:
    await proxy.fill(chat(), key=key)
    only = {"x-cacheproxy-tier": "exact"}
    answers = [await proxy.ask(chat(text), key=key, headers=only) for text in (QUESTION, PARAPHRASE)]
    assert outcomes(*answers) == ["hit", "miss"]


@pytest.mark.parametrize("form", [{}, {"stream": True}], ids=["whole", "streamed"])
async def test_only_if_cached_never_goes_to_the_backend(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, form: dict[str, Any]
) -> None:
    only = {"cache-control": "only-if-cached"}
    absent = await proxy.ask(chat(**form), key=key, headers=only)
    absent.assert_problem(504, "not_cached")
    assert upstream.calls == 0
    await proxy.fill(chat(), key=key)
    answers = [await proxy.ask(chat(text, **form), key=key, headers=only) for text in (QUESTION, PARAPHRASE)]
    assert outcomes(*answers) == ["hit", "hit"]
    assert upstream.calls == 1


@pytest.mark.parametrize("text", [QUESTION, PARAPHRASE], ids=["exact", "semantic"])
@pytest.mark.parametrize(
    ("directive", "outcome"), [("max-age=3600", "hit"), ("min-fresh=1", "hit"), ("min-fresh=999999999", "miss")]
)
async def test_freshness_is_what_the_request_demands(
    proxy: Proxy, key: str, text: str, directive: str, outcome: str
) -> None:
    await proxy.fill(chat(), key=key)
    assert (await proxy.ask(chat(text), key=key, headers={"cache-control": directive})).outcome == outcome


@pytest.mark.parametrize("how", ["header", "body"])
async def test_a_shorter_life_is_granted_and_a_longer_one_is_clamped(proxy: Proxy, key: str, how: str) -> None:
    async def life(ttl: int, text: str) -> int:
        headers, fields = ({"x-cacheproxy-ttl": str(ttl)}, {}) if how == "header" else ({}, {"cache": {"ttl": ttl}})
        await proxy.fill(chat(text, **fields), key=key, headers=headers)
        left = (await proxy.ask(chat(text), key=key)).cache_status.parameters["ttl"]
        assert isinstance(left, int)
        return left

    assert life_of(await life(60, QUESTION), 60)
    assert await life(10**9, "Who painted the ceiling of the Sistine Chapel?") < 10**9


def life_of(left: int, whole: int) -> bool:
    return whole - 10 <= left <= whole


async def test_a_threshold_may_only_be_raised(proxy: Proxy, key: str) -> None:
    await proxy.fill(chat(), key=key)
    policy = (await proxy.ask(chat(PARAPHRASE), key=key)).get("x-cacheproxy-threshold")
    lowered = await proxy.ask(chat(PARAPHRASE), key=key, headers={"x-cacheproxy-threshold": "0.01"})
    assert lowered.get("x-cacheproxy-threshold") == policy
    raised = await proxy.ask(chat(PARAPHRASE), key=key, headers={"x-cacheproxy-threshold": "0.9999"})
    assert raised.outcome == "miss"
    assert float(raised.get("x-cacheproxy-threshold") or 0) == pytest.approx(0.9999)


@pytest.mark.parametrize("how", ["header", "body"])
@pytest.mark.parametrize("text", [QUESTION, PARAPHRASE], ids=["exact", "semantic"])
async def test_namespaces_do_not_see_each_other(proxy: Proxy, key: str, how: str, text: str) -> None:
    def asked(name: str, text: str) -> tuple[dict[str, Any], Headers]:
        if how == "body":
            return chat(text, cache={"namespace": name}), {}
        return chat(text), {"x-cacheproxy-namespace": name}

    body, headers = asked("blue", QUESTION)
    await proxy.fill(body, key=key, headers=headers)
    for name, outcome in (("green", "miss"), ("blue", "hit")):
        body, headers = asked(name, text)
        probed = await proxy.ask(body, key=key, headers={**headers, "cache-control": "no-store"})
        assert (name, probed.outcome) == (name, outcome)
    assert not await proxy.cached(chat(text), key=key)


async def test_the_cache_field_is_not_forwarded_and_not_part_of_the_key(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    await proxy.fill(chat(cache={"ttl": 600}), key=key)
    assert "cache" not in upstream.requests[0].json()
    assert (await proxy.ask(chat(), key=key)).outcome == "hit"


async def test_our_request_headers_are_not_forwarded(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    headers = {"x-cacheproxy-tags": "a,b", "x-cacheproxy-namespace": "n", "x-cacheproxy-ttl": "60"}
    await proxy.ask(chat(), key=key, headers=headers)
    assert [name for name, _ in upstream.requests[0].headers if name.lower().startswith("x-cacheproxy")] == []


WRONG: dict[str, tuple[Headers, dict[str, Any]]] = {
    "unknown name": ({"x-cacheproxy-threshhold": "0.9"}, {}),
    "unknown category": ({"x-cacheproxy-category": "no-such-category"}, {}),
    "threshold above one": ({"x-cacheproxy-threshold": "1.5"}, {}),
    "threshold NaN": ({"x-cacheproxy-threshold": "nan"}, {}),
    "threshold word": ({"x-cacheproxy-threshold": "high"}, {}),
    "ttl negative": ({"x-cacheproxy-ttl": "-1"}, {}),
    "ttl infinite": ({"x-cacheproxy-ttl": "inf"}, {}),
    "tier": ({"x-cacheproxy-tier": "both"}, {}),
    "augment": ({"x-cacheproxy-augment": "yes"}, {}),
    "namespace": ({"x-cacheproxy-namespace": "a b"}, {}),
    "namespace too long": ({"x-cacheproxy-namespace": "n" * 500}, {}),
    "tags": ({"x-cacheproxy-tags": "ok,not ok"}, {}),
    "cache not an object": ({}, {"cache": True}),
    "cache unknown key": ({}, {"cache": {"no-chache": True}}),
    "cache wrong type": ({}, {"cache": {"ttl": "soon"}}),
}


@pytest.mark.parametrize(("headers", "fields"), WRONG.values(), ids=WRONG)
async def test_a_control_that_cannot_be_honoured_is_refused(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, headers: Headers, fields: dict[str, Any]
) -> None:
    refused = await proxy.ask(chat(**fields), key=key, headers=headers)
    error = refused.assert_problem(400)
    assert error["param"]
    assert upstream.calls == 0


@pytest.mark.parametrize("directive", ["no-cash", "max-age=soon", "max-age=-1", "max-age", "=", ",,", "private=x"])
async def test_an_unknown_or_malformed_directive_is_ignored(proxy: Proxy, key: str, directive: str) -> None:
    await proxy.fill(chat(), key=key)
    assert (await proxy.ask(chat(), key=key, headers={"cache-control": directive})).outcome == "hit"


@pytest.mark.parametrize(
    "directive", ["no-store", "private, no-store", "no-cache, no-store", "max-age=0", "s-maxage=0, max-age=600"]
)
async def test_an_answer_is_not_kept_where_the_backend_forbids_it(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, directive: str
) -> None:
    upstream.play(answer(completion("No."), headers=[("cache-control", directive)]))
    assert (await proxy.ask(chat(), key=key)).content == "No."
    await proxy.settled(key)
    assert not await proxy.cached(chat(), key=key)


async def test_a_stream_that_says_no_cache_out_of_habit_is_kept(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    upstream.always(stream(*events("Yes."), headers=[("cache-control", "no-cache")]))
    await proxy.fill(chat(stream=True), key=key)
    assert (await proxy.ask(chat(), key=key)).content == "Yes."


async def test_the_backends_freshness_limits_a_life(proxy: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    upstream.always(answer(completion("Yes."), headers=[("cache-control", "max-age=50")]))
    await proxy.fill(chat(), key=key)
    left = (await proxy.ask(chat(), key=key)).cache_status.parameters["ttl"]
    assert isinstance(left, int)
    assert life_of(left, 50)
