"""Operators purge by every selector, and nothing else goes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.operators import admin, tenant_of, told
from tests.support.proxy import PARAPHRASE, QUESTION, UNRELATED, chat
from tests.support.upstream import Hold, answer

if TYPE_CHECKING:
    from tests.support.proxy import Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")
PLAIN = {"x-cacheproxy-category": "default"}
SHOP = {"x-cacheproxy-tags": "faq", "x-cacheproxy-namespace": "shop", **PLAIN}


async def two(proxy: Proxy, key: str) -> None:
    """Keep two answers: one tagged, named and of a user, one plain."""
    await proxy.fill(chat(user="alice"), key=key, headers=SHOP)
    await proxy.fill(chat(UNRELATED), key=key, headers=PLAIN)


async def left(proxy: Proxy, key: str) -> tuple[bool, bool]:
    """Return whether each of the two is still served."""
    return (
        await proxy.cached(chat(user="alice"), key=key, headers=SHOP),
        await proxy.cached(chat(UNRELATED), key=key, headers=PLAIN),
    )


@pytest.mark.parametrize(
    ("selector", "kept"),
    [
        ({"tag": "faq"}, (False, True)),
        ({"namespace": "shop"}, (False, True)),
        ({"user": "alice"}, (False, True)),
        ({"user": " alice "}, (False, True)),
        ({"user": "bob"}, (True, True)),
        ({"category": "default"}, (False, False)),
        ({"model": chat()["model"]}, (False, False)),
        ({"model": "other"}, (True, True)),
        ({"older_than": 0}, (False, False)),
        ({"older_than": 3600}, (True, True)),
        ({"tag": "faq", "namespace": "elsewhere"}, (True, True)),
        ({"similar_to": {"text": PARAPHRASE, "radius": 0.2}}, (False, True)),
        ({"similar_to": {"text": PARAPHRASE, "radius": 0}}, (True, True)),
        ({"similar_to": {"text": QUESTION, "radius": 0.001}, "namespace": "shop"}, (False, True)),
        ({"similar_to": {"text": QUESTION, "radius": 0.001}, "tag": "other"}, (True, True)),
    ],
)
async def test_a_purge_takes_what_is_meant_and_nothing_else(
    proxy: Proxy, key: str, selector: dict[str, Any], kept: tuple[bool, bool]
) -> None:
    await two(proxy, key)
    selector = {**selector, "tenant": await tenant_of(proxy, key)}
    meant = kept.count(False)
    tried = await told(proxy, "POST", "purge", {**selector, "dry_run": True})
    assert (tried["purged"], tried["dry_run"], len(tried["ids"])) == (meant, True, meant)
    assert await told(proxy, "POST", "purge?dry_run=true", selector) == tried
    assert await left(proxy, key) == (True, True)
    done = await told(proxy, "POST", "purge", selector)
    assert (done["purged"], done["ids"], done["dry_run"]) == (meant, tried["ids"], False)
    assert all(part["pending"] == "" for part in done["parts"])
    assert await left(proxy, key) == kept


async def test_a_tenant_takes_no_other_tenant_along(proxy: Proxy, key: str, other_key: str) -> None:
    for one in (key, other_key):
        await two(proxy, one)
    assert (await told(proxy, "POST", "purge", {"tenant": await tenant_of(proxy, key)}))["purged"] == 2
    assert await left(proxy, key) == (False, False)
    assert await left(proxy, other_key) == (True, True)


async def test_ids_are_purged_together(proxy: Proxy, key: str) -> None:
    await two(proxy, key)
    tenant = await tenant_of(proxy, key)
    ids = [entry["id"] for entry in (await told(proxy, "GET", f"entries?tenant={tenant}"))["entries"]]
    done = await told(proxy, "POST", "purge", {"ids": [*ids, "0" * 32]})
    assert sorted(done["ids"]) == sorted(ids)
    assert await left(proxy, key) == (False, False)


async def test_a_purged_paraphrase_finds_nothing(proxy: Proxy, key: str) -> None:
    await proxy.fill(chat(), key=key)
    assert await proxy.cached(chat(PARAPHRASE), key=key)
    await told(proxy, "POST", "purge", {"tenant": await tenant_of(proxy, key)})
    assert not await proxy.cached(chat(PARAPHRASE), key=key)


async def test_an_answer_that_was_under_way_does_not_come_back(
    proxy: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    release = asyncio.Event()
    whole = answer({"id": "c1", "object": "chat.completion", "choices": [_choice("too late")]})
    upstream.play([Hold(release), *whole])
    asking = asyncio.create_task(proxy.ask(chat(), key=key))
    await upstream.received(1)
    await told(proxy, "POST", "purge", {"tenant": await tenant_of(proxy, key)})
    release.set()
    answered = await asking
    assert answered.content == "too late"
    await proxy.settled(key)
    assert not await proxy.cached(chat(), key=key)


def _choice(text: str) -> dict[str, Any]:
    return {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"dry_run": True},
        {"erase": True},
        {"tag": ""},
        {"tag": None},
        {"ids": []},
        {"id": "x"},
        {"id": "0" * 32, "ids": ["0" * 32]},
        {"ids": ["0" * 32] * 10_001},
        {"tagg": "faq"},
        {"older_than": -1},
        {"older_than": "1d"},
        {"tenant": "webshop"},
        {"user": " "},
        {"similar_to": {"text": "a"}},
        {"similar_to": {"text": "", "radius": 0.1}},
        {"similar_to": {"text": "a", "radius": 1.5}},
        {"similar_to": {"text": "a", "radius": -0.1}},
        {"similar_to": "a"},
        {"all": True},
        b"[]",
        b"",
        b'{"tag": "a", "tag": "b"}',
        b'{"older_than": NaN}',
        b'{"older_than": 1e999}',
        b'{"tag": "\xff"}',
        b'{"tag": "\\ud800"}',
        b"[" * 100_000,
    ],
    ids=lambda body: str(body)[:40],
)
async def test_a_purge_of_nothing_or_nonsense_is_refused_and_removes_nothing(
    proxy: Proxy, key: str, body: object
) -> None:
    await two(proxy, key)
    assert (await admin(proxy, "POST", "purge", body)).status == 400
    assert await left(proxy, key) == (True, True)


async def test_no_refusal_quotes_a_name(proxy: Proxy) -> None:
    for body in ({"user": "canary-user", "x": 1}, {"tenant": "canary-tenant"}, {"similar_to": {"text": "canary"}}):
        assert b"canary" not in (await admin(proxy, "POST", "purge", body)).body


async def test_a_purge_is_audited_by_digest(proxy: Proxy, key: str) -> None:
    await proxy.fill(chat(user="canary-alice"), key=key)
    await told(proxy, "POST", "purge", {"user": "canary-alice"})
    lines = (await told(proxy, "GET", "audit"))["deeds"]
    assert [(line["action"], line["outcome"]) for line in lines[:2]] == [("erase", "done"), ("erase", "begun")]
    assert lines[0]["after"]["entries"] == 1
    assert "canary" not in str(lines)
