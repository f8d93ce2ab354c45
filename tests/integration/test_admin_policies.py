"""Policies over HTTP: seen, tried, changed, refused, rolled back, while traffic flows."""

from __future__ import annotations

import asyncio
import stat
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from cacheproxy.http.admin.config import masked
from tests.support.admin import ask_admin, told
from tests.support.proxy import PARAPHRASE, QUESTION, Proxy, chat, proxy_settings, started

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

DEFAULT = "/policies/categories/default"


@pytest_asyncio.fixture(loop_scope="module")
async def own(upstream: ScriptedUpstream, tmp_path: Path) -> AsyncIterator[Proxy]:
    """A proxy of the test's own, since policies are everybody's; thresholds decide alone, so that a change shows."""
    async with started(proxy_settings(upstream.url, tmp_path, verifier={"path": "off"})) as proxy:
        yield proxy


async def test_the_pack_that_is_told_can_be_put_back_unchanged(own: Proxy) -> None:
    told_pack = await ask_admin(own, "GET", "/policies")
    assert told_pack.get("etag") == '"1"'
    put = await ask_admin(own, "PUT", "/policies", told_pack.body, headers={"if-match": '"1"'})
    assert (put.status, put.json()) == (
        200,
        {"version": 1, "etag": '"1"', "dry_run": False, "changed": [], "dropped": []},
    )


async def test_a_category_that_is_told_can_be_put_back_unchanged(own: Proxy) -> None:
    category = await ask_admin(own, "GET", DEFAULT)
    assert {"ttl_s", "threshold", "floor", "examples", "allow_caching"} <= set(category.json())
    put = await ask_admin(own, "PUT", DEFAULT, category.body)
    assert (put.status, put.json()["changed"]) == (200, [])


async def test_a_raised_threshold_rules_the_next_request_and_a_rollback_the_one_after(
    own: Proxy, upstream: ScriptedUpstream, key: str
) -> None:
    label = {"x-cacheproxy-category": "default"}
    await own.fill(chat(QUESTION), key=key, headers=label)
    ask = {"cache-control": "only-if-cached", **label}
    assert (await own.ask(chat(PARAPHRASE), key=key, headers=ask)).outcome == "hit"
    patch = await ask_admin(own, "PATCH", DEFAULT, {"threshold": 1.0}, headers={"if-match": '"1"'})
    assert (patch.status, patch.get("etag")) == (200, '"2"')
    [changed] = patch.json()["changed"]
    assert (changed["key"].rpartition(".")[2], changed["after"]) == ("default", 1.0)
    refused = await own.ask(chat(PARAPHRASE), key=key, headers=ask)
    assert (refused.status, refused.get("x-cacheproxy-threshold")) == (504, "1.0000")
    back = await ask_admin(own, "POST", "/policies/rollback", {"version": 1, "reason": "too strict"})
    assert (back.status, back.json()["version"]) == (200, 3)
    assert (await own.ask(chat(PARAPHRASE), key=key, headers=ask)).outcome == "hit"
    versions = (await told(own, "/policies/versions"))["versions"]
    assert [(one["version"], one["in_force"], one["reason"]) for one in versions[:2]] == [
        (3, True, "too strict"),
        (2, False, ""),
    ]


async def test_a_merge_patch_changes_what_it_names_and_null_gives_the_default_back(own: Proxy) -> None:
    before = await told(own, DEFAULT)
    await ask_admin(own, "PATCH", DEFAULT, {"ttl_s": 12, "priority": 3})
    after = await told(own, DEFAULT)
    assert after == before | {"ttl_s": 12, "priority": 3}
    assert (await ask_admin(own, "PATCH", DEFAULT, {"priority": None})).status == 200
    assert (await told(own, DEFAULT))["priority"] == 1.0


async def test_a_small_model_is_allowed_by_a_patch_and_explain_says_so(own: Proxy) -> None:
    async def allowed() -> bool:
        body = {"text": QUESTION, "model": "m", "key": "sk-1", "category": "default"}
        told = (await ask_admin(own, "POST", "/explain", body)).json()
        assert isinstance(told["augment_allowed"], bool)
        return bool(told["augment_allowed"])

    assert not await allowed()
    patch = {"augment": "auto", "max_examples": 3, "example_similarity": 0.6}
    assert (await ask_admin(own, "PATCH", DEFAULT, patch)).status == 200
    assert (await told(own, DEFAULT)).items() >= patch.items()
    assert await allowed()
    refused = await ask_admin(own, "PATCH", DEFAULT, {"semantic": False})
    assert refused.status == 400
    assert [problem["key"] for problem in refused.json()["problems"]] == ["categories.default.augment"]
    assert (await ask_admin(own, "PATCH", DEFAULT, {"augment": None})).status == 200
    assert not await allowed()


async def test_a_category_is_added_with_examples_and_taken_out_again(own: Proxy) -> None:
    body = {"examples": ["How do I sort a list in Python?"], "semantic": True, "threshold": 0.93, "ttl_s": 60}
    put = await ask_admin(own, "PUT", "/policies/categories/code", body)
    assert put.status == 200, put.body
    code = await told(own, "/policies/categories/code")
    assert (code["threshold"], code["examples"], code["ttl_s"]) == (0.93, body["examples"], 60)
    dry = await ask_admin(own, "DELETE", "/policies/categories/code?dry_run=true")
    assert (dry.json()["dropped"], dry.json()["dry_run"], dry.get("etag")) == (["code"], True, None)
    assert (await told(own, "/policies/categories/code")) == code
    assert (await ask_admin(own, "DELETE", "/policies/categories/code")).json()["dropped"] == ["code"]
    (await ask_admin(own, "GET", "/policies/categories/code")).assert_problem(404, "not_found")


async def test_the_default_category_cannot_be_taken_out(own: Proxy) -> None:
    refused = await ask_admin(own, "DELETE", DEFAULT)
    assert refused.status == 400
    assert "default_category" in {problem["key"] for problem in refused.json()["problems"]}


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
async def test_another_version_than_the_one_in_force_is_a_412(own: Proxy, method: str) -> None:
    body = None if method == "DELETE" else {"ttl_s": 5}
    refused = await ask_admin(own, method, DEFAULT, body, headers={"if-match": '"9"'})
    refused.assert_problem(412, "version_conflict")
    assert (await ask_admin(own, "GET", "/policies")).get("etag") == '"1"'


async def test_of_ten_operators_who_read_the_same_version_one_writes(own: Proxy) -> None:
    tried = (ask_admin(own, "PATCH", DEFAULT, {"ttl_s": 100 + at}, headers={"if-match": '"1"'}) for at in range(10))
    assert sorted(answer.status for answer in await asyncio.gather(*tried)) == [200] + [412] * 9


BAD = {
    "negative": b'{"ttl_s": -1}',
    "zero": b'{"ttl_s": 0}',
    "NaN": b'{"ttl_s": NaN}',
    "Infinity": b'{"ttl_s": Infinity}',
    "too large for a float": b'{"ttl_s": 1e999}',
    "above one": b'{"threshold": 1.2}',
    "threshold of zero": b'{"threshold": 0}',
    "text for a number": b'{"ttl_s": "1h"}',
    "unknown key": b'{"ttl": 5}',
    "mass assignment": b'{"tenant": "x", "version": 9}',
    "bad pattern": b'{"rules": [{"text": "("}]}',
    "rule that claims all": b'{"rules": [{}]}',
    "too much quota": b'{"quota": 1.5}',
    "repeated key": b'{"ttl_s": 5, "ttl_s": 6}',
    "not an object": b"[]",
    "not JSON": b"{",
    "empty": b"",
    "not UTF-8": b'{"description": "\xff"}',
    "deep": b'{"rules": ' + b"[" * 200 + b"]" * 200 + b"}",
    "semantic without a threshold": b'{"semantic": true, "verify": false, "threshold": null}',
}


@pytest.mark.parametrize("method", ["PATCH", "PUT"])
@pytest.mark.parametrize("body", BAD.values(), ids=BAD)
async def test_a_bad_policy_is_a_400_and_the_old_one_stays(proxy: Proxy, method: str, body: bytes) -> None:
    before = await ask_admin(proxy, "GET", DEFAULT)
    refused = await ask_admin(proxy, method, DEFAULT, body)
    assert refused.status == 400, refused.body
    assert {"message", "type", "param", "code"} == set(refused.json()["error"])
    after = await ask_admin(proxy, "GET", DEFAULT)
    assert (after.body, after.get("etag")) == (before.body, before.get("etag"))


async def test_every_problem_is_told_with_its_key(proxy: Proxy) -> None:
    refused = await ask_admin(proxy, "PATCH", DEFAULT, {"ttl_s": -1, "candidates": 0, "nope": 1})
    assert {problem["key"] for problem in refused.json()["problems"]} == {
        f"categories.default.{key}" for key in ("ttl_s", "candidates", "nope")
    }


async def test_a_misspelt_dry_run_changes_nothing(proxy: Proxy) -> None:
    for query in ("?dryrun=true", "?dry_run=yes", "?dry_run=true&dry_run=false"):
        (await ask_admin(proxy, "PATCH", DEFAULT + query, {"ttl_s": 5})).assert_problem(400)
    assert (await told(proxy, DEFAULT))["ttl_s"] != 5


async def test_validate_tells_problems_probes_and_changes_and_does_nothing(proxy: Proxy) -> None:
    pack = await told(proxy, "/policies")
    good = (await ask_admin(proxy, "POST", "/policies/validate", {"pack": pack})).json()
    assert (good["problems"], good["changed"], good["dropped"]) == ([], [], [])
    assert good["probes"]
    assert all(probe["passed"] for probe in good["probes"])
    strict = pack | {
        "encoders": {
            name: one | {"thresholds": dict.fromkeys(one["thresholds"], 1.0), "verify_from": 1.0}
            for name, one in pack["encoders"].items()
        }
    }
    found = (await ask_admin(proxy, "POST", "/policies/validate", {"pack": strict})).json()
    assert {probe["expected"] for probe in found["probes"] if not probe["passed"]} == {"hit"}
    assert found["changed"]
    bad = (await ask_admin(proxy, "POST", "/policies/validate", {"pack": pack | {"schema": 9}})).json()
    assert [problem["key"] for problem in bad["problems"]] == ["schema"]
    assert (await told(proxy, "/policies")) == pack


async def test_each_request_sees_one_policy_while_it_changes(own: Proxy, upstream: ScriptedUpstream, key: str) -> None:
    """The threshold and the lifetime of a request's category always come from the same version."""
    await own.fill(chat(QUESTION), key=key)
    pairs = {"0.9900": 111, "0.9800": 222}
    stop = False

    async def change(threshold: str) -> None:
        body = {"threshold": float(threshold), "ttl_s": pairs[threshold]}
        assert (await ask_admin(own, "PATCH", DEFAULT, body)).status == 200

    async def flip() -> None:
        while not stop:
            for threshold in pairs:
                await change(threshold)

    await change("0.9900")
    flipping = asyncio.create_task(flip())
    seen = set()
    for _ in range(60):
        explained = (
            await ask_admin(own, "POST", "/explain", {"text": QUESTION, "key": key, "category": "default"})
        ).json()
        seen.add((f"{explained['threshold']:.4f}", explained["ttl_s"]))
    stop = True
    await flipping
    assert seen <= set(pairs.items())


async def test_a_change_survives_a_restart(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    settings = proxy_settings(upstream.url, tmp_path)
    async with started(settings) as proxy:
        await ask_admin(proxy, "PATCH", DEFAULT, {"ttl_s": 77})
    async with started(settings) as proxy:
        assert (await told(proxy, DEFAULT))["ttl_s"] == 77
    assert stat.S_IMODE((tmp_path / "policies.sqlite3").stat().st_mode) == 0o600


async def test_answers_of_a_category_that_may_not_be_cached_any_more_are_gone(own: Proxy, key: str) -> None:
    await ask_admin(own, "PUT", "/policies/categories/salary", {"description": "for now"})
    label = {"x-cacheproxy-category": "salary"}
    await own.fill(chat(QUESTION), key=key, headers=label)
    changed = await ask_admin(own, "PATCH", "/policies/categories/salary", {"allow_caching": False})
    assert changed.json()["dropped"] == ["salary"]
    assert (await told(own, "/entries?category=salary"))["entries"] == []


async def test_the_audit_log_names_the_actor_and_pages(own: Proxy) -> None:
    for at in range(5):
        await ask_admin(own, "PATCH", DEFAULT, {"ttl_s": 50 + at}, headers={"x-cacheproxy-actor": "ada"})
    first = await told(own, "/audit?limit=3")
    assert [deed["n"] for deed in first["deeds"]] == [6, 5, 4]
    assert first["deeds"][0]["actor"] == "operator@127.0.0.1 'ada'"
    assert first["deeds"][0]["after"]["keys"] == {"categories.default.ttl_s": 54}
    rest = await told(own, f"/audit?limit=3&cursor={first['cursor']}")
    assert ([deed["n"] for deed in rest["deeds"]], rest["cursor"]) == ([3, 2, 1], None)
    for query in ("limit=0", "limit=100000", "cursor=x"):
        assert (await ask_admin(own, "GET", f"/audit?{query}")).status == 400


async def test_the_settings_are_told_with_their_secrets_masked(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    secrets: dict[str, Any] = {
        "admin": {"token": "s3cret-admin", "read_token": "s3cret-reader"},
        "upstream": {"api_key": "s3cret-key"},
        "upstreams": {"gpu": {"url": "http://127.0.0.1:9/v1", "models": ["x"]}},
        "small": {"url": "http://127.0.0.1:9/v1", "model": "x", "api_key": "s3cret-small"},
    }
    async with started(proxy_settings(upstream.url, tmp_path, **secrets)) as proxy:
        answer = await ask_admin(proxy, "GET", "/config", token="s3cret-reader")
    assert answer.status == 200
    assert b"s3cret" not in answer.body
    config = answer.json()
    assert (config["admin"]["token"], config["upstream"]["api_key"], config["upstreams"]["gpu"]["api_key"]) == (
        "***",
        "***",
        "",
    )
    assert config["small"]["api_key"] == "***"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:pw@host:1/0", "redis://***@host:1/0"),
        ("https://a:b@c@host/v1", "https://***@host/v1"),
        ("https://host/v1?mail=a@b", "https://host/v1?mail=a@b"),
        ("a@b", "a@b"),
    ],
)
async def test_credentials_within_a_url_are_masked(url: str, shown: str) -> None:
    assert masked({"urls": [url]}) == {"urls": [shown]}
