"""Operators look at entries and remove them one by one, over HTTP, on a running proxy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest

from tests.support.operators import admin, tenant_of, told
from tests.support.proxy import QUESTION, UNRELATED, chat, complete

if TYPE_CHECKING:
    from tests.support.proxy import Proxy

PLAIN = {"x-cacheproxy-category": "default"}
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def listed(proxy: Proxy, key: str, query: str = "") -> list[dict[str, Any]]:
    """Return this tenant's entries."""
    tenant = await tenant_of(proxy, key)
    return list((await told(proxy, "GET", f"entries?tenant={tenant}&{query}"))["entries"])


async def test_an_entry_is_listed_with_what_it_is(proxy: Proxy, key: str) -> None:
    headers = {"x-cacheproxy-tags": "faq,v2", "x-cacheproxy-namespace": "shop", **PLAIN}
    await proxy.fill(chat(user="alice"), key=key, headers=headers)
    (entry,) = await listed(proxy, key)
    assert entry["text"] == QUESTION
    assert entry["tags"] == ["faq", "v2"]
    assert (entry["namespace"], entry["model"], entry["dialect"]) == ("shop", chat()["model"], "chat")
    assert entry["category"] == "default"
    assert entry["has_vector"] is True
    assert entry["size_bytes"] > 50
    assert entry["created"] < entry["expires"]
    assert entry["tenant"] == await tenant_of(proxy, key)
    assert len(entry["user"]) == 64
    assert "alice" not in str(entry)


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("q=PASSWORD", 1),
        ("q=nothing", 0),
        ("tag=faq", 1),
        ("tag=fa", 0),
        ("namespace=shop", 1),
        (f"model={chat()['model']}", 2),
        ("model=other", 0),
        ("category=default", 2),
        ("category=none-such", 0),
        ("user=alice", 1),
        ("user=bob", 0),
        ("tag=faq&namespace=elsewhere", 0),
    ],
)
async def test_entries_are_chosen_by_what_is_given(proxy: Proxy, key: str, query: str, found: int) -> None:
    headers = {"x-cacheproxy-tags": "faq", "x-cacheproxy-namespace": "shop", **PLAIN}
    await proxy.fill(chat(user="alice"), key=key, headers=headers)
    await proxy.fill(chat(UNRELATED), key=key, headers=PLAIN)
    assert len(await listed(proxy, key, query)) == found


async def test_pages_hold_every_entry_once(proxy: Proxy, key: str) -> None:
    for number in range(5):
        await proxy.fill(chat(f"What is {number} times {number}?"), key=key)
    tenant, cursor, texts = await tenant_of(proxy, key), 0, list[str]()
    for _ in range(20):
        page = await told(proxy, "GET", f"entries?tenant={tenant}&limit=2&cursor={cursor}")
        assert len(page["entries"]) <= 2
        texts += [entry["text"] for entry in page["entries"]]
        if page["next"] is None:
            break
        cursor = page["next"]
    assert sorted(texts) == [f"What is {number} times {number}?" for number in range(5)]


async def test_every_dialect_is_named(proxy: Proxy, key: str) -> None:
    requests = chat(), complete(), {"model": "m", "input": QUESTION}
    items = [{"request": request, "answer": "Yes.", "key": key} for request in requests]
    assert (await told(proxy, "POST", "warm", {"items": items}))["stored"] == 3
    assert {entry["dialect"] for entry in await listed(proxy, key)} == {"chat", "completions", "responses"}


async def test_one_entry_is_shown_with_its_answer(proxy: Proxy, key: str) -> None:
    first = await proxy.fill(chat(), key=key)
    (entry,) = await listed(proxy, key)
    response = await admin(proxy, "GET", f"entries/{entry['id']}")
    whole = response.json()
    assert whole["entry"] == entry
    assert whole["text"] == QUESTION
    assert whole["answer"]["choices"][0]["message"]["content"] == first.content
    assert (response.get("etag") or "").startswith('"')


async def test_a_deleted_entry_is_not_served_again(proxy: Proxy, key: str) -> None:
    await proxy.fill(chat(), key=key)
    (entry,) = await listed(proxy, key)
    tried = await told(proxy, "DELETE", f"entries/{entry['id']}?dry_run=true")
    nobody_else = {"acked": True, "laggards": [], "until_s": 0.0}
    assert tried == {"purged": 1, "ids": [entry["id"]], "dry_run": True, "parts": [], **nobody_else}
    assert await proxy.cached(chat(), key=key)
    done = await told(proxy, "DELETE", f"entries/{entry['id']}")
    assert (done["purged"], done["ids"], done["dry_run"]) == (1, [entry["id"]], False)
    assert not await proxy.cached(chat(), key=key)
    assert (await admin(proxy, "DELETE", f"entries/{entry['id']}")).status == 404


async def test_an_entry_that_was_answered_anew_is_not_deleted_blindly(proxy: Proxy, key: str) -> None:
    await proxy.fill(chat(), key=key)
    (entry,) = await listed(proxy, key)
    path = f"entries/{entry['id']}"
    etag = (await admin(proxy, "GET", path)).get("etag") or ""
    assert (await admin(proxy, "DELETE", path, headers={"if-match": '"other"'})).status == 412
    assert await proxy.cached(chat(), key=key)
    assert (await admin(proxy, "DELETE", path, headers={"if-match": etag})).status == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("entries?limit=0", 400),
        ("entries?limit=1001", 400),
        ("entries?limit=many", 400),
        ("entries?cursor=-1", 400),
        ("entries?cursor=x", 400),
        ("entries?categry=code", 400),
        ("entries?tenant=webshop", 400),
        ("entries?user=%20", 400),
        ("entries/none", 404),
        ("entries/" + "0" * 32, 404),
        ("entries/" + quote("../../etc/passwd", safe=""), 404),
    ],
)
async def test_what_makes_no_sense_is_refused(proxy: Proxy, path: str, status: int) -> None:
    response = await admin(proxy, "GET", path)
    assert response.status == status
    assert set(response.json()) == {"error"}


async def test_the_encoder_in_use_is_told(proxy: Proxy, key: str) -> None:
    await proxy.fill(chat(), key=key)
    in_use = (await told(proxy, "GET", "encoders"))["in_use"]
    (entry,) = await listed(proxy, key)
    assert (in_use["epoch"], in_use["dim"], in_use["calibrated"]) == (entry["epoch"], 384, True)
    assert in_use["entries"] >= 1
    (await admin(proxy, "POST", "encoders", {})).assert_problem(400)
