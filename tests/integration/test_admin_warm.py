"""Answers that an operator has are kept as the backend's own would be; whatever else comes is refused, item by item."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import openai_wire
from tests.support.operators import admin, tenant_of, told
from tests.support.proxy import PARAPHRASE, QUESTION, UNRELATED, chat, complete

if TYPE_CHECKING:
    from tests.support.proxy import Proxy
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")
ANSWER = "Use the link below the sign-in form."
MODEL = chat()["model"]


def item(key: str, text: str = QUESTION, **fields: Any) -> dict[str, Any]:
    return {"text": text, "model": MODEL, "answer": ANSWER, "key": key, **fields}


async def warmed(proxy: Proxy, *items: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return await told(proxy, "POST", "warm", {"items": list(items), **fields})


@pytest.mark.parametrize("stream", [False, True])
async def test_a_warmed_answer_is_served_without_the_backend(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, stream: bool
) -> None:
    report = await warmed(proxy, item(key))
    assert (report["stored"], report["items"][0]["reason"]) == (1, "kept")
    for text, tier in ((QUESTION, "exact"), (PARAPHRASE, "semantic")):
        hit = await proxy.ask(chat(text, stream=stream), key=key)
        assert (hit.outcome, hit.tier, hit.content) == ("hit", tier, ANSWER)
        assert hit.get("x-cacheproxy-entry") == report["items"][0]["entry"]
    assert upstream.calls == 0


async def test_every_form_of_a_question_is_the_same_request(proxy: Proxy, key: str, other_key: str) -> None:
    forms = (
        {"text": QUESTION, "model": MODEL},
        {"messages": [{"role": "user", "content": QUESTION}], "model": MODEL},
        {"request": chat()},
        {"request": chat(stream=True)},
    )
    report = await warmed(proxy, *({**form, "answer": ANSWER} for form in forms), key=key)
    assert report["stored"] == len(forms)
    assert len({one["entry"] for one in report["items"]}) == 1
    assert not await proxy.cached(chat(), key=other_key)


async def test_a_whole_answer_is_kept_field_by_field(proxy: Proxy, key: str) -> None:
    live = await proxy.fill(chat(UNRELATED), key=key)
    await warmed(proxy, item(key, answer=live.whole))
    hit = await proxy.ask(chat(), key=key)
    assert {**hit.whole, "id": "", "created": 0} == {**live.whole, "id": "", "created": 0}


@pytest.mark.parametrize(
    ("request_", "target"),
    [(complete(), "/v1/completions"), ({"model": "m", "input": QUESTION}, "/v1/responses")],
)
async def test_other_dialects_are_warmed_too(proxy: Proxy, key: str, request_: dict[str, Any], target: str) -> None:
    report = await warmed(proxy, {"request": request_, "answer": ANSWER, "key": key})
    assert report["stored"] == 1, report
    hit = await proxy.ask(request_, key=key, target=target)
    assert hit.outcome == "hit"
    assert ANSWER in hit.body.decode()


async def test_an_item_says_how_long_where_and_under_which_tags(proxy: Proxy, key: str) -> None:
    fields: dict[str, Any] = {"ttl": 60, "tags": ["v2"], "namespace": "shop", "category": "default"}
    await warmed(proxy, item(key, **fields))
    tenant = await tenant_of(proxy, key)
    (entry,) = (await told(proxy, "GET", f"entries?tenant={tenant}"))["entries"]
    assert (entry["tags"], entry["namespace"], entry["category"]) == (["v2"], "shop", "default")
    assert entry["expires"] - time.time() < 61


async def test_warming_again_replaces_and_keeps_one(proxy: Proxy, key: str) -> None:
    tenant = await tenant_of(proxy, key)
    for answer in ("first", "second"):
        assert (await warmed(proxy, {"text": QUESTION, "model": MODEL, "answer": answer, "tenant": tenant}))[
            "stored"
        ] == 1
    assert len((await told(proxy, "GET", f"entries?tenant={tenant}"))["entries"]) == 1
    assert (await proxy.ask(chat(), key=key)).content == "second"


async def test_a_dry_run_keeps_nothing(proxy: Proxy, key: str) -> None:
    report = await warmed(proxy, item(key), item(key, temperature=1), dry_run=True)
    assert (report["dry_run"], report["stored"], report["invalid"]) == (True, 1, 1)
    assert not await proxy.cached(chat(), key=key)


@pytest.mark.parametrize(
    ("fields", "outcome", "reason"),
    [
        ({"answer": ""}, "refused", "no_content"),
        ({"answer": {}}, "refused", "no_choices"),
        ({"answer": {"error": {"message": "x"}}}, "refused", "error_object"),
        (
            {"answer": {"choices": [{"message": {"content": "a"}, "finish_reason": "length"}]}},
            "refused",
            "finish_length",
        ),
        ({"answer": "x" * 1_048_570}, "refused", "too_large"),
        ({"text": None, "request": chat(temperature=1.5), "model": ""}, "refused", "temperature"),
        ({"text": None, "request": chat(store=True), "model": ""}, "refused", "stateful"),
        ({"text": None, "request": {"model": "m", "messages": "x"}, "model": ""}, "refused", "unrecognised_shape"),
        ({"category": "none-such"}, "invalid", "unknown category"),
        ({"ttl": 0}, "invalid", "ttl"),
        ({"ttl": -5}, "invalid", "ttl"),
        ({"ttl": "soon"}, "invalid", "ttl"),
        ({"tags": ["a b"]}, "invalid", "tags"),
        ({"namespace": "a\r\nx: y"}, "invalid", "namespace"),
        ({"model": ""}, "invalid", "model"),
        ({"answer": 5}, "invalid", "answer"),
        ({"answer": None}, "invalid", "answer"),
        ({"text": None}, "invalid", "request, messages and text"),
        ({"messages": []}, "invalid", "request, messages and text"),
        ({"tenant": "a" * 64}, "invalid", "one of the two"),
        ({"key": ""}, "invalid", "one of the two"),
        ({"key": "ümlaut"}, "invalid", "ASCII"),
        ({"key": "", "tenant": "webshop"}, "invalid", "64 hex"),
        ({"surprise": 1}, "invalid", "surprise"),
    ],
    ids=lambda value: str(value)[:40],
)
async def test_a_bad_item_is_named_and_the_others_are_kept(
    proxy: Proxy, key: str, fields: dict[str, Any], outcome: str, reason: str
) -> None:
    bad = {name: value for name, value in {**item(key), **fields}.items() if value is not None or name == "answer"}
    report = await warmed(proxy, item(key, UNRELATED), bad)
    assert [one["outcome"] for one in report["items"]] == ["stored", outcome]
    assert reason in report["items"][1]["reason"]
    assert (report["stored"], report[outcome]) == (1, 1)
    assert await proxy.cached(chat(UNRELATED), key=key)


HOSTILE: list[tuple[bytes, int]] = [
    (b"", 400),
    (b"[]", 400),
    (b'{"items": []}', 400),
    (b'{"items": [1]}', 400),
    (b'{"items": null}', 400),
    (b'{"items": [{}], "x": 1}', 400),
    (b'{"items": [{}], "items": [{}]}', 400),
    (b'{"items": [{"text": "\xff\xfe"}]}', 400),
    (b'{"items": [{"text": "\\ud800"}]}', 400),
    (b'{"items": [{"a": ' + b"[" * 100 + b"]" * 100 + b"}]}", 400),
    (b'{"items": [' + b"[" * 500_000, 400),
    (b'{"items": [{"ttl": NaN}]}', 400),
    (b'{"items": [{"ttl": 1e999}]}', 400),
    (b'{"items": [' + b"{}," * 500 + b"{}]}", 413),
    (b'{"items": [' + b"{}," * 1_000_000 + b"{}]}", 413),
    (b'{"items": [{"answer": "' + b"x" * 9_000_000 + b'"}]}', 413),
    (b"\x1f\x8b\x08\x00" + b"\x00" * 100, 400),
    (b"\x80\x04\x95pickle", 400),
]


@pytest.mark.parametrize(("body", "status"), HOSTILE, ids=lambda value: str(value)[:40])
async def test_a_hostile_body_keeps_nothing(proxy: Proxy, key: str, body: bytes, status: int) -> None:
    before = time.perf_counter()
    response = await admin(proxy, "POST", "warm", body)
    assert response.status == status, response.body[:300]
    assert set(response.json()) == {"error"}
    assert time.perf_counter() - before < 5
    assert (await proxy.fill(chat(), key=key)).outcome == "miss"


async def test_a_category_in_no_letters_is_only_that_items_fault(proxy: Proxy, key: str) -> None:
    report = await warmed(proxy, item(key, category="\u2603" * 10), item(key, UNRELATED))
    assert [one["outcome"] for one in report["items"]] == ["invalid", "stored"]


async def test_personal_data_and_categories_never_cached_are_refused(proxy: Proxy, key: str) -> None:
    pack = await told(proxy, "GET", "policies")
    never = [name for name, rules in pack["categories"].items() if not rules.get("allow_caching", True)]
    assert never
    report = await warmed(proxy, *(item(key, category=name) for name in never))
    assert [(one["outcome"], one["reason"]) for one in report["items"]] == [("refused", "category_not_cached")] * len(
        never
    )
    assert not await proxy.cached(chat(), key=key)


async def test_a_full_batch_is_kept(proxy: Proxy, key: str) -> None:
    items = [{"text": f"What is {n} plus {n}?", "model": MODEL, "answer": str(2 * n)} for n in range(1, 101)]
    report = await warmed(proxy, *items, key=key)
    assert report["stored"] == 100, [one for one in report["items"] if one["outcome"] != "stored"][:3]
    body = openai_wire.encode(chat("What is 50 plus 50?"))
    assert (await proxy.ask(body, key=key)).content == "100"
