"""Embeddings: callers at once, purges meanwhile, and stores that fail."""

from __future__ import annotations

import asyncio
import base64
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from cacheproxy.errors import StoreUnavailable
from cacheproxy.serving import running
from tests.support.embeddings import ENCODINGS, TEXTS, ask, direct, fill, held
from tests.support.embeddings_wire import DIMENSIONS, MODEL, PATH, request, vector, whole
from tests.support.polling import eventually
from tests.support.proxy import Proxy, proxy_settings, started
from tests.support.rawhttp import Connection, request_bytes
from tests.support.upstream import Hold, answer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")


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
