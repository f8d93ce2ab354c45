"""Figures, sweeps, near misses and recommendations, asked of a proxy that serves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec
import pytest
import pytest_asyncio

from cacheproxy.policy.loader import POLICY_FILE, find_pack, load_pack
from tests.support.proxy import PARAPHRASE, QUESTION, UNRELATED, Answered, Proxy, chat, proxy_settings, started

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

V1 = "/admin/v1"
NEARLY = 0.999
"""Above every paraphrase: with a band of a half each is a near miss."""


def pack(folder: Path, threshold: float) -> str:
    """Write a pack of one category, whose band of near misses is wide, and return where."""
    head = (
        'schema = 1\nname = "test"\ndescription = "x"\ndefault_category = "default"\n'
        "[categories.default]\nsemantic = true\nttl_s = 1000\nnear_miss_band = 0.5\n"
    )
    encoders = [
        f'[encoders.{name}]\nfingerprint = "{one.fingerprint}"\ncalibrated_on = "x"\n'
        f"thresholds = {{ default = {threshold} }}\n"
        for name, one in load_pack(find_pack("balanced")).encoders.items()
    ]
    (folder / POLICY_FILE).write_text(head + "".join(encoders), encoding="utf-8")
    return str(folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def near(module_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    """A proxy whose threshold nothing but the very same question reaches."""
    chosen = {"pack": pack(tmp_path_factory.mktemp("pack"), NEARLY)}
    async with started(proxy_settings(module_upstream.url, tmp_path_factory.mktemp("near"), policies=chosen)) as live:
        yield live


@pytest_asyncio.fixture(loop_scope="module")
async def own(upstream: ScriptedUpstream, tmp_path: Path) -> AsyncIterator[Proxy]:
    """A proxy of one test alone, which serves paraphrases."""
    (tmp_path / "pack").mkdir()
    chosen = {"pack": pack(tmp_path / "pack", 0.85)}
    settings = proxy_settings(upstream.url, tmp_path / "data", policies=chosen, store={"url": "memory://"})
    async with started(settings) as live:
        yield live


async def admin(
    proxy: Proxy, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
) -> Answered:
    asked = Proxy(url=proxy.admin_url, admin_url=proxy.admin_url)
    sent = {"content-type": "application/json", **(headers or {})}
    return await asked.call(method, f"{V1}{path}", sent, None if body is None else msgspec.json.encode(body))


async def told(proxy: Proxy, path: str) -> dict[str, Any]:
    answer = await admin(proxy, "GET", path)
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.json()
    return found


async def default_stats(proxy: Proxy) -> dict[str, Any]:
    [found] = [one for one in (await told(proxy, "/stats"))["categories"] if one["category"] == "default"]
    stats: dict[str, Any] = found
    return stats


async def near_miss_of(proxy: Proxy, text: str) -> dict[str, Any] | None:
    found = (await told(proxy, "/near-misses"))["near_misses"]
    return next((one for one in found if one["text"] == text), None)


async def listed(proxy: Proxy, near_miss_id: str) -> bool:
    return near_miss_id in [one["id"] for one in (await told(proxy, "/near-misses?limit=500"))["near_misses"]]


async def nearly(proxy: Proxy, key: str, question: str, rephrased: str) -> dict[str, Any]:
    """Ask a question and then nearly the same; return the near miss."""
    await proxy.fill(chat(question), key=key)
    asked = await proxy.ask(chat(rephrased), key=key)
    assert (asked.outcome, asked.reason) == ("miss", "below_threshold")
    found = await near_miss_of(proxy, rephrased)
    assert found is not None
    return found


async def test_stats_tell_what_was_served_and_what_it_is_worth(own: Proxy, key: str) -> None:
    await own.fill(chat(QUESTION), key=key)
    for body in (chat(QUESTION), chat(PARAPHRASE), chat(UNRELATED)):
        await own.ask(body, key=key)
    found = await default_stats(own)
    total = found["total"]
    assert (found["exact_hits"], found["semantic_hits"]) == (total["hits"] - 1, 1)
    assert total["hit_rate"] == total["hits"] / total["lookups"]
    assert total["backend_ms"] > 0
    assert total["net_ms"] == pytest.approx(
        total["hit_rate"] * (total["backend_ms"] - total["fetch_ms"]) - total["lookup_ms"]
    )
    assert found["false_hits"] == {"labelled": 0, "false": 0, "rate": None, "low": 0.0, "high": 1.0}
    assert found["effective"]["default"]["threshold"] == found["threshold"]
    assert found["entries"] >= 1
    assert list(found["models"]) == [chat()["model"]]
    assert "lookup" in found["verdict"]


async def test_a_word_of_a_caller_becomes_a_label(own: Proxy, key: str) -> None:
    await own.fill(chat(QUESTION), key=key)
    hit = await own.ask(chat(PARAPHRASE), key=key)
    assert hit.tier == "semantic"
    word = {"id": hit.whole["id"], "verdict": "bad"}
    assert (await own.ask(word, key=key, target="/v1/cache/feedback")).status == 200
    wrong = (await default_stats(own))["false_hits"]
    assert (wrong["labelled"], wrong["false"], wrong["rate"]) == (1, 1, 1.0)
    assert wrong["low"] == pytest.approx(0.025, abs=1e-3)
    swept = await admin(own, "POST", "/sweep", {"category": "default", "thresholds": [0.8, 0.999]})
    low, high = swept.json()["swept"]
    assert (low["false_hits"]["rate"], high["false_hits"]["rate"]) == (1.0, None)


async def test_a_sweep_tells_what_other_thresholds_would_have_done(own: Proxy, key: str) -> None:
    await own.fill(chat(QUESTION), key=key)
    await own.ask(chat(PARAPHRASE), key=key)
    answer = (await admin(own, "POST", "/sweep", {"category": "default", "thresholds": [0.5, 1.0]})).json()
    low, high = answer["swept"]
    assert low["hits"] == high["hits"] + 1
    assert answer["lookups"] == (await default_stats(own))["total"]["lookups"]


@pytest.mark.parametrize(
    "body",
    [
        {"category": "nobody's", "thresholds": [0.9]},
        {"category": "default", "thresholds": []},
        {"category": "default", "thresholds": [0.0]},
        {"category": "default", "thresholds": [1.2]},
        {"category": "default", "thresholds": [0.9] * 101},
        {"category": "default"},
        {"category": "default", "thresholds": [0.9], "more": 1},
    ],
)
async def test_a_sweep_that_makes_no_sense_is_refused(proxy: Proxy, body: dict[str, Any]) -> None:
    assert (await admin(proxy, "POST", "/sweep", body)).status == 400


async def test_a_threshold_that_is_no_number_is_refused(proxy: Proxy) -> None:
    asked = Proxy(url=proxy.admin_url, admin_url=proxy.admin_url)
    body = b'{"category": "default", "thresholds": [NaN]}'
    assert (await asked.call("POST", f"{V1}/sweep", {"content-type": "application/json"}, body)).status == 400


async def test_upstreams_tell_state_and_latency(own: Proxy, key: str) -> None:
    await own.fill(chat(QUESTION), key=key)
    [backend] = (await told(own, "/upstreams"))["upstreams"]
    assert (backend["name"], backend["state"], backend["breaker"]) == ("default", "ok", "closed")
    assert backend["first_byte_ms"] > 0
    assert (backend["in_flight"], backend["waiting"], backend["load"]) == (0, 0, 0.0)


async def test_a_near_miss_is_shown_with_what_nearly_answered_it(near: Proxy, key: str) -> None:
    found = await nearly(near, key, QUESTION, PARAPHRASE)
    assert found["entry_text"] == QUESTION
    assert NEARLY - 0.5 <= found["similarity"] < found["threshold"] == NEARLY
    assert (found["category"], found["times"]) == ("default", 1)


async def test_nothing_of_a_question_that_must_not_be_stored_is_shown(near: Proxy, key: str) -> None:
    await near.fill(chat(QUESTION), key=key)
    text = f"How can I reset my password {uuid4().hex}?"
    await near.ask(chat(text), key=key, headers={"cache-control": "no-store"})
    assert await near_miss_of(near, text) is None


async def test_near_misses_are_listed_in_pages(near: Proxy, key: str) -> None:
    await near.fill(chat(QUESTION), key=key)
    for n in range(3):
        await near.ask(chat(f"{PARAPHRASE} ({n})"), key=key, headers={"cache-control": "no-store"})
        await near.ask(chat(f"{PARAPHRASE} [{n}]"), key=key)
    whole = [one["id"] for one in (await told(near, "/near-misses"))["near_misses"]]
    paged: list[str] = []
    cursor = ""
    while True:
        page = await told(near, f"/near-misses?limit=2&cursor={cursor}")
        paged += [one["id"] for one in page["near_misses"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert paged == whole
    assert len(whole) >= 3
    assert (await told(near, "/near-misses?category=other"))["near_misses"] == []
    assert (await admin(near, "GET", "/near-misses?limit=0")).status == 400
    assert (await admin(near, "GET", "/near-misses?cursor=x")).status == 400


async def test_a_promoted_near_miss_is_answered_as_its_candidate_from_then_on(near: Proxy, key: str) -> None:
    found = await nearly(near, key, QUESTION, PARAPHRASE)
    first = await near.ask(chat(QUESTION), key=key)
    tried = await admin(near, "POST", f"/near-misses/{found['id']}/promote?dry_run=true")
    assert (tried.status, tried.json()["dry_run"]) == (200, True)
    assert await listed(near, found["id"])
    done = await admin(near, "POST", f"/near-misses/{found['id']}/promote")
    assert (done.status, done.json()["source"]) == (200, found["entry"])
    again = await near.ask(chat(PARAPHRASE), key=key)
    assert (again.outcome, again.tier, again.content) == ("hit", "exact", first.content)
    assert again.get("x-cacheproxy-entry") == done.json()["entry"]
    assert not await listed(near, found["id"])
    assert (await admin(near, "POST", f"/near-misses/{found['id']}/promote")).status == 404
    audit = (await admin(near, "GET", "/audit")).body.decode()
    assert "near_misses.promote" in audit
    assert QUESTION not in audit


async def test_a_promotion_is_never_seen_by_another_tenant(near: Proxy, key: str, other_key: str) -> None:
    found = await nearly(near, key, QUESTION, PARAPHRASE)
    await admin(near, "POST", f"/near-misses/{found['id']}/promote")
    assert (await near.ask(chat(PARAPHRASE), key=other_key)).outcome == "miss"


@pytest.mark.parametrize("what", ["near-misses/0/promote", "recommendations/0/apply"])
async def test_a_misspelt_dry_run_does_nothing_for_real(near: Proxy, what: str) -> None:
    refused = await admin(near, "POST", f"/{what}?dryrun=true")
    assert (refused.status, b"dryrun" in refused.body) == (400, True)


async def test_what_is_gone_is_not_promoted(near: Proxy, key: str) -> None:
    found = await nearly(near, key, QUESTION, PARAPHRASE)
    assert (await admin(near, "DELETE", f"/entries/{found['entry']}")).status == 200
    assert (await admin(near, "POST", f"/near-misses/{found['id']}/promote")).status == 404


async def test_a_label_each_of_three_false_hits_recommends_a_higher_threshold_and_applying_it_ends_them(
    own: Proxy, key: str
) -> None:
    asked = [(QUESTION, PARAPHRASE), ("How do I bake bread?", "How can I bake bread?"), (UNRELATED, UNRELATED + "!")]
    for question, rephrased in asked:
        await own.fill(chat(question), key=key)
        hit = await own.ask(chat(rephrased), key=key)
        assert hit.tier == "semantic", rephrased
        word = {"id": hit.whole["id"], "verdict": "bad"}
        await own.ask(word, key=key, target="/v1/cache/feedback")
    page = await admin(own, "GET", "/recommendations")
    [found] = page.json()["recommendations"]
    assert found["kind"] in ("raise_threshold", "semantic_off")
    assert (found["evidence"]["labelled"], found["evidence"]["false"]) == (3, 3)
    etag = page.get("etag") or ""
    refused = await admin(own, "POST", f"/recommendations/{found['id']}/apply", headers={"if-match": '"999"'})
    assert refused.status == 412
    tried = await admin(own, "POST", f"/recommendations/{found['id']}/apply?dry_run=true")
    assert tried.json()["differences"]
    assert (await told(own, "/stats"))["policy_version"] == page.json()["policy_version"]
    done = await admin(own, "POST", f"/recommendations/{found['id']}/apply", headers={"if-match": etag})
    assert done.status == 200, done.body
    assert (await told(own, "/recommendations"))["recommendations"] == []
    assert (await admin(own, "POST", f"/recommendations/{found['id']}/apply")).status == 404
    fresh = f"sk-{uuid4().hex}"
    await own.fill(chat(QUESTION), key=fresh)
    assert (await own.ask(chat(PARAPHRASE), key=fresh)).outcome == "miss"
    assert "recommendations.apply" in (await admin(own, "GET", "/audit")).body.decode()


async def test_what_is_forgotten_of_a_tenant_is_gone_from_near_misses(near: Proxy, key: str) -> None:
    found = await nearly(near, key, QUESTION, PARAPHRASE)
    answer = await admin(near, "POST", "/purge", {"tenant": found["tenant"]})
    assert answer.status == 200, answer.body
    assert not await listed(near, found["id"])
