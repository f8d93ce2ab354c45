"""What callers and operators see where a verifier decides: headers, explain, near misses, sweeps, recommendations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import pytest_asyncio

from cacheproxy import opening
from cacheproxy.policy.loader import POLICY_FILE, find_pack, load_pack
from tests.support.proxy import QUESTION, Answered, Proxy, chat, proxy_settings, started
from tests.support.verifiers import StepScorer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

V1 = "/admin/v1"
SURE, LESS_SURE, DOUBTFUL, FORBIDDEN = (f"{QUESTION} {mark}" for mark in ("p0.9", "p0.85", "p0.6", "no-number p0.9"))


def pack(folder: Path) -> str:
    """Write a pack of one verified category, and return where."""
    head = (
        'schema = 1\nname = "test"\ndescription = "x"\ndefault_category = "default"\n'
        "[categories.default]\nsemantic = true\nttl_s = 1000\nmin_probability = 0.8\nprobability_band = 0.3\n"
    )
    encoders = [
        f'[encoders.{name}]\nfingerprint = "{one.fingerprint}"\ncalibrated_on = "x"\nverify_from = 0.5\n'
        "thresholds = { default = 0.999 }\n"
        for name, one in load_pack(find_pack("balanced")).encoders.items()
    ]
    (folder / POLICY_FILE).write_text(head + "".join(encoders), encoding="utf-8")
    return str(folder)


@pytest_asyncio.fixture(loop_scope="module")
async def verified(upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Proxy]:
    """A proxy whose verifier believes what a question says of itself."""
    monkeypatch.setattr(opening, "open_verifier", lambda settings: StepScorer())
    (tmp_path / "pack").mkdir()
    chosen = {"pack": pack(tmp_path / "pack")}
    settings = proxy_settings(upstream.url, tmp_path / "data", policies=chosen, store={"url": "memory://"})
    async with started(settings) as live:
        yield live


async def admin(proxy: Proxy, method: str, path: str, body: object = None) -> Answered:
    asked = Proxy(url=proxy.admin_url, admin_url=proxy.admin_url)
    raw = None if body is None else msgspec.json.encode(body)
    return await asked.call(method, f"{V1}{path}", {"content-type": "application/json"}, raw)


async def told(proxy: Proxy, path: str, body: object = None) -> dict[str, Any]:
    answer = await admin(proxy, "POST" if body is not None else "GET", path, body)
    assert answer.status == 200, answer.body
    found: dict[str, Any] = answer.json()
    return found


async def test_headers_tell_the_probability_of_what_was_served_or_refused(verified: Proxy, key: str) -> None:
    first = await verified.fill(chat(QUESTION), key=key)
    assert first.get("x-cacheproxy-probability") is None
    hit = await verified.ask(chat(SURE), key=key)
    assert (hit.tier, hit.get("x-cacheproxy-probability")) == ("semantic", "0.9000")
    doubted = await verified.ask(chat(DOUBTFUL), key=key)
    assert (doubted.reason, doubted.get("x-cacheproxy-probability")) == ("improbable", "0.6000")
    assert (await verified.ask(chat(FORBIDDEN), key=key)).reason == "veto_number"


async def test_explain_shows_every_step_of_a_verification_and_its_veto(verified: Proxy, key: str) -> None:
    await verified.fill(chat(QUESTION), key=key)
    for question, verdict, veto in ((SURE, "similar", ""), (FORBIDDEN, "veto_number", "number")):
        shown = await told(verified, "/explain", {"request": chat(question), "key": key})
        [near] = shown["candidates"]
        assert (near["verdict"], near["veto"], near["probability"]) == (verdict, veto, 0.9)
        assert [step["name"] for step in near["steps"]] == ["cosine", "cheap", "cross"]
        assert (shown["min_probability"], shown["probability"]) == (0.8, 0.9)


async def test_a_near_miss_is_nearly_probable_and_a_forbidden_hit_is_none(verified: Proxy, key: str) -> None:
    await verified.fill(chat(QUESTION), key=key)
    for question in (DOUBTFUL, FORBIDDEN):
        await verified.ask(chat(question), key=key)
    [near] = (await told(verified, "/near-misses"))["near_misses"]
    assert (near["text"], near["probability"], near["min_probability"]) == (DOUBTFUL, 0.6, 0.8)
    done = await told(verified, f"/near-misses/{near['id']}/promote", {})
    assert done["replaced"]  # the miss had brought an answer of its own
    assert (await verified.ask(chat(DOUBTFUL), key=key)).outcome == "hit"


async def test_a_sweep_over_probabilities_tells_what_each_would_serve(verified: Proxy, key: str) -> None:
    await verified.fill(chat(QUESTION), key=key)
    for question in (SURE, DOUBTFUL, FORBIDDEN):
        await verified.ask(chat(question), key=key)
    asked = {"category": "default", "probabilities": [0.5, 0.8, 0.95], "thresholds": [0.5]}
    swept = await told(verified, "/sweep", asked)
    assert (swept["threshold"], swept["min_probability"]) == (0.5, 0.8)
    by_similarity, low, now, high = swept["swept"]
    served = now["hits"]
    assert (by_similarity["hits"], low["hits"], high["hits"]) == (served, served + 1, served - 1)
    assert (now["min_probability"], now["threshold"], now["near_misses"]) == (0.8, None, 1)
    nothing = await admin(verified, "POST", "/sweep", {"category": "default"})
    assert nothing.status == 400
    assert "probabilities" in nothing.body.decode()


async def test_wrong_verified_hits_recommend_a_higher_least_probability(verified: Proxy) -> None:
    for number, (question, verdict) in enumerate(((SURE, "good"), (LESS_SURE, "bad"), (LESS_SURE, "bad"))):
        own = f"sk-{number}"
        await verified.fill(chat(QUESTION), key=own)
        hit = await verified.ask(chat(question), key=own)
        assert hit.tier == "semantic"
        word = {"id": hit.whole["id"], "verdict": verdict}
        assert (await verified.ask(word, key=own, target="/v1/cache/feedback")).status == 200
    [found] = (await told(verified, "/recommendations"))["recommendations"]
    assert found["kind"] == "raise_min_probability"
    assert found["patch"] == {"categories": {"default": {"min_probability": 0.851}}}
    await told(verified, f"/recommendations/{found['id']}/apply", {})
    await verified.fill(chat(QUESTION), key="sk-later")
    assert (await verified.ask(chat(LESS_SURE), key="sk-later")).reason == "improbable"
    [stats] = (await told(verified, "/stats"))["categories"]
    assert (stats["min_probability"], stats["effective"]["default"]["min_probability"]) == (0.851, 0.851)
