from __future__ import annotations

import asyncio
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest

from cacheproxy.errors import StoreUnavailable
from cacheproxy.learn.verdicts import pairs
from cacheproxy.serving import running
from tests.support.openai_wire import completion
from tests.support.polling import eventually_true
from tests.support.proxy import PARAPHRASE, QUESTION, UNRELATED, Answered, Proxy, chat, proxy_settings, started
from tests.support.upstream import Hold, answer, default_steps

if TYPE_CHECKING:
    from pathlib import Path

    import openai

    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

FEEDBACK = "/v1/cache/feedback"


async def say(proxy: Proxy, key: str | None, given_id: str, verdict: str = "bad", **more: Any) -> Answered:
    return await proxy.ask({"id": given_id, "verdict": verdict, **more}, key=key, target=FEEDBACK)


async def similar_hit(proxy: Proxy, key: str) -> Answered:
    await proxy.fill(chat(QUESTION), key=key)
    hit = await proxy.ask(chat(PARAPHRASE), key=key)
    assert (hit.outcome, hit.tier) == ("hit", "semantic")
    return hit


@pytest.mark.parametrize("by", ["response", "entry"])
async def test_a_bad_word_on_a_similar_hit_quarantines_the_entry_for_that_question_alone(
    proxy: Proxy, key: str, by: str
) -> None:
    hit = await similar_hit(proxy, key)
    entry = hit.get("x-cacheproxy-entry") or ""
    told = await say(proxy, key, hit.whole["id"] if by == "response" else entry, comment="wrong account")
    assert told.status == 200
    assert told.json() == {
        "object": "cache.feedback",
        "id": told.json()["id"],
        "entry": entry,
        "verdict": "bad",
        "action": "quarantined",
        "standing": -1,
    }
    again = await proxy.ask(chat(PARAPHRASE), key=key)
    assert (again.outcome, again.reason) == ("miss", "quarantined")
    assert (await proxy.ask(chat(QUESTION), key=key)).tier == "exact"
    await eventually_true(lambda: proxy.cached(chat(PARAPHRASE), key=key), "the question's own answer is kept")
    assert (await proxy.ask(chat(PARAPHRASE), key=key)).get("x-cacheproxy-entry") != entry


@pytest.mark.parametrize("asked_as_stream", [False, True])
async def test_a_bad_word_on_an_exact_hit_removes_the_entry(proxy: Proxy, key: str, asked_as_stream: bool) -> None:
    body = chat(QUESTION, stream=asked_as_stream)
    await proxy.fill(body, key=key)
    hit = await proxy.ask(body, key=key)
    assert hit.tier == "exact"
    told = await say(proxy, key, hit.whole["id"])
    assert told.json()["action"] == "removed"
    assert (await proxy.ask(body, key=key)).outcome == "miss"


async def test_a_bad_word_on_a_live_answer_removes_what_was_kept_of_it(proxy: Proxy, key: str) -> None:
    live = await proxy.fill(chat(QUESTION), key=key)
    assert (await say(proxy, key, live.whole["id"])).json()["action"] == "removed"
    assert not await proxy.cached(chat(QUESTION), key=key)


@pytest.mark.parametrize("word", ["good", "bad"])
@pytest.mark.parametrize("on", ["live", "exact"])
async def test_a_word_on_an_answer_that_was_replaced_since_does_not_count_against_the_newer_one(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, on: str, word: str
) -> None:
    for own_id in ("chatcmpl-older", "chatcmpl-newer"):
        upstream.play(answer(completion("Paris.", id=own_id)))
    live = await proxy.fill(chat(QUESTION), key=key)
    exact = await proxy.ask(chat(QUESTION), key=key)
    given = {"live": live, "exact": exact}[on].whole["id"]
    await proxy.ask(chat(QUESTION), key=key, headers={"cache-control": "no-cache"})
    (await say(proxy, key, given, word)).assert_problem(404, "not_found")
    newer = await proxy.ask(chat(QUESTION), key=key)
    assert newer.outcome == "hit"
    assert (await say(proxy, key, newer.whole["id"], word)).json()["action"] == (
        "removed" if word == "bad" else "noted"
    )


async def test_a_word_on_an_answer_spares_other_tenants_fills(
    proxy: Proxy, upstream: ScriptedUpstream, key: str, other_key: str
) -> None:
    live = await proxy.fill(chat(QUESTION), key=key)
    let_go = asyncio.Event()
    upstream.always(lambda received: [Hold(let_go), *default_steps(received, 7)])
    asking = asyncio.create_task(proxy.ask(chat(UNRELATED), key=other_key))
    await upstream.received(2)
    await say(proxy, key, live.whole["id"])
    let_go.set()
    await asking
    await eventually_true(lambda: proxy.cached(chat(UNRELATED), key=other_key), "the other tenant's answer is kept")


async def test_a_bad_word_holds_though_the_entry_cannot_be_removed(
    upstream: ScriptedUpstream, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, key = proxy_settings(upstream.url, tmp_path, store={"url": "memory://"}), "sk-unremovable"
    async with running(settings) as live:
        proxy = Proxy(url=live.url, admin_url=live.admin_url)
        await proxy.fill(chat(QUESTION), key=key)
        hit = await proxy.ask(chat(QUESTION), key=key)

        async def failing(entry_ids: object) -> int:
            raise StoreUnavailable("full")

        monkeypatch.setattr(live.pipeline.parts.store, "purge", failing)
        (await say(proxy, key, hit.whole["id"])).assert_problem(503, "feedback_unavailable")
        again = await proxy.ask(chat(QUESTION), key=key)
        assert (again.outcome, again.reason) == ("miss", "quarantined")
        await eventually_true(lambda: proxy.cached(chat(QUESTION), key=key), "a newer answer is another one")


async def test_a_good_word_raises_the_standing_and_lifts_a_quarantine(proxy: Proxy, key: str) -> None:
    hit = await similar_hit(proxy, key)
    await say(proxy, key, hit.whole["id"], "bad")
    told = await say(proxy, key, hit.whole["id"], "good")
    assert (told.json()["action"], told.json()["standing"]) == ("noted", 1)
    assert (await say(proxy, key, hit.whole["id"], "good")).json()["standing"] == 1
    assert (await proxy.ask(chat(PARAPHRASE), key=key)).tier == "semantic"


async def test_an_answer_of_another_tenant_is_as_good_as_unknown(proxy: Proxy, key: str, other_key: str) -> None:
    hit = await similar_hit(proxy, key)
    for given in (hit.whole["id"], hit.get("x-cacheproxy-entry") or ""):
        foreign = await say(proxy, other_key, given)
        unknown = await say(proxy, other_key, "chatcmpl-unknown")
        assert foreign.body == unknown.body
        foreign.assert_problem(404, "not_found")
        (await say(proxy, None, given)).assert_problem(404, "not_found")
    assert (await proxy.ask(chat(PARAPHRASE), key=key)).tier == "semantic"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"id": "x"},
        {"verdict": "bad"},
        {"id": "", "verdict": "bad"},
        {"id": "x" * 257, "verdict": "bad"},
        {"id": 1, "verdict": "bad"},
        {"id": "x", "verdict": "BAD"},
        {"id": "x", "verdict": "bad", "comment": 1},
        {"id": "x", "verdict": "bad", "comment": "c" * 2001},
        {"id": "x", "verdict": "bad", "reason": "misspelt"},
        b"[]",
        b"{",
        b"\xff",
    ],
)
async def test_a_body_of_another_shape_is_refused(proxy: Proxy, key: str, body: Any) -> None:
    error = (await proxy.ask(body, key=key, target=FEEDBACK)).assert_problem(400)
    assert "c" * 100 not in error["message"]


async def test_a_long_body_and_other_methods_are_refused(proxy: Proxy, key: str, upstream: ScriptedUpstream) -> None:
    (await proxy.ask(b" " * 20_000, key=key, target=FEEDBACK)).assert_problem(413)
    for method in ("GET", "DELETE", "PUT"):
        (await proxy.call(method, FEEDBACK, {"authorization": f"Bearer {key}"})).assert_problem(405)
    assert upstream.calls == 0


async def test_the_official_client_can_give_feedback_by_response_id(
    proxy: Proxy, key: str, openai_client: openai.AsyncOpenAI
) -> None:
    await proxy.fill(chat(QUESTION), key=key)
    answer = await openai_client.chat.completions.create(**chat(PARAPHRASE))
    told = await openai_client.post("/cache/feedback", cast_to=object, body={"id": answer.id, "verdict": "bad"})
    assert isinstance(told, dict)
    assert told["action"] == "quarantined"


async def test_words_survive_a_restart_and_become_labelled_pairs(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    settings, key = proxy_settings(upstream.url, tmp_path), "sk-restart"
    async with started(settings) as proxy:
        hit = await similar_hit(proxy, key)
        await say(proxy, key, hit.whole["id"], "bad", comment="no")
        silent = await proxy.ask(chat(PARAPHRASE), key=key, headers={"cache-control": "no-store"})
        assert silent.reason == "quarantined"
        await proxy.fill(chat(UNRELATED), key=key)
    path = tmp_path / "feedback.sqlite3"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(pairs(path)) == [
        {"a": QUESTION, "b": PARAPHRASE, "label": 0, "category": "support", "similarity": pytest.approx(0.95, abs=0.05)}
    ]
    async with started(settings) as proxy:
        again = await proxy.ask(chat(PARAPHRASE), key=key)
        assert (again.outcome, again.reason) == ("miss", "quarantined")
        # A hit's id tells its entry and its question, so nothing about it is forgotten with a restart.
        assert (await say(proxy, key, hit.whole["id"], "good")).json()["action"] == "noted"
        assert (await say(proxy, key, hit.whole["id"], "bad")).json()["action"] == "quarantined"
        assert await proxy.cached(chat(QUESTION), key=key, headers={"x-cacheproxy-tier": "exact"})


async def test_a_question_that_may_not_be_stored_leaves_no_text_in_its_verdict(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    key = "sk-silent"
    async with started(proxy_settings(upstream.url, tmp_path)) as proxy:
        await proxy.fill(chat(QUESTION), key=key)
        hit = await proxy.ask(chat(PARAPHRASE), key=key, headers={"cache-control": "no-store"})
        assert hit.tier == "semantic"
        assert (await say(proxy, key, hit.whole["id"])).json()["action"] == "quarantined"
        assert (await proxy.ask(chat(PARAPHRASE), key=key)).reason == "quarantined"
    with sqlite3.connect(tmp_path / "feedback.sqlite3") as connection:
        rows = connection.execute("SELECT entry_text, question_text FROM verdicts").fetchall()
    assert rows == [("", "")]


async def test_a_verdict_that_cannot_be_written_still_holds(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    key = "sk-readonly"
    async with started(proxy_settings(upstream.url, tmp_path)) as proxy:
        hit = await similar_hit(proxy, key)
        blocker = sqlite3.connect(tmp_path / "feedback.sqlite3", isolation_level=None)
        blocker.execute("BEGIN EXCLUSIVE")
        (await say(proxy, key, hit.whole["id"])).assert_problem(503, "feedback_unavailable")
        blocker.close()
        assert (await proxy.ask(chat(PARAPHRASE), key=key)).reason == "quarantined"
