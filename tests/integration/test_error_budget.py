"""The error budget, live: hits are compared with fresh answers beside the path, and what is found out has effects."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import structlog

from cacheproxy import opening
from cacheproxy.policy.loader import POLICY_FILE, find_pack, load_pack
from cacheproxy.serving import running
from tests.support.openai_wire import completion
from tests.support.polling import eventually, eventually_true
from tests.support.proxy import QUESTION, Answered, Proxy, chat, proxy_settings, started
from tests.support.upstream import Hold, answer, default_steps
from tests.support.verifiers import StepScorer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.upstream import Received, ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

V1 = "/admin/v1"
SUBJECTS = (
    "boil an egg", "paint a fence", "renew a passport", "tune a guitar", "prune a rose", "file my taxes", "sail a boat",
    "bake bread", "learn chess", "fix a flat tyre", "plant potatoes", "train a puppy", "write a poem", "clean an oven",
    "sell my car",
)  # fmt: skip
OVER = "How do I boil an egg? 99 p0.95"


def asked(number: int, probability: float = 0.95) -> dict[str, Any]:
    """Return a question near to QUESTION that the verifier finds so probable."""
    return chat(f"{QUESTION} {number} p{probability}")


def pack(folder: Path, **keys: object) -> str:
    """Write a pack of one verified category with these keys, and return where."""
    folder.mkdir(exist_ok=True)
    told = {"semantic": True, "ttl_s": 1000, "min_probability": 0.8, "delta": 0.1, **keys}
    lines = [f"{name} = {msgspec.json.encode(value).decode()}" for name, value in told.items()]
    head = ['schema = 1\nname = "test"\ndescription = "x"\ndefault_category = "default"\n[categories.default]', *lines]
    encoders = [
        f'[encoders.{name}]\nfingerprint = "{one.fingerprint}"\ncalibrated_on = "x"\nverify_from = 0.5\n'
        "thresholds = { default = 0.999 }"
        for name, one in load_pack(find_pack("balanced")).encoders.items()
    ]
    (folder / POLICY_FILE).write_text("\n".join([*head, *encoders, ""]), encoding="utf-8")
    return str(folder)


@asynccontextmanager
async def proxy_of(
    upstream: ScriptedUpstream, tmp_path: Path, learn: dict[str, object] | None = None, **keys: object
) -> AsyncIterator[Proxy]:
    settings = proxy_settings(
        upstream.url,
        tmp_path / "data",
        policies={"pack": pack(tmp_path / "pack", **keys)},
        learn={"shadow": True, **(learn or {})},
    )
    async with started(settings) as live:
        yield live


@pytest.fixture(autouse=True)
def believing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every proxy here has a verifier that believes what a question says of itself."""
    monkeypatch.setattr(opening, "open_verifier", lambda settings: StepScorer())


def says(text: str) -> Any:
    """Return what always answers with a text."""
    return lambda received: answer(completion(text))


async def admin(proxy: Proxy, path: str, body: object = None) -> Any:
    at = Proxy(url=proxy.admin_url, admin_url=proxy.admin_url)
    raw = None if body is None else msgspec.json.encode(body)
    found = await at.call("GET" if raw is None else "POST", f"{V1}{path}", {"content-type": "application/json"}, raw)
    assert found.status == 200, found.body
    return found.json()


async def budget(proxy: Proxy) -> dict[str, Any]:
    [category] = (await admin(proxy, "/stats"))["categories"]
    found: dict[str, Any] = category["budget"]
    return found


async def labelled(proxy: Proxy, count: int) -> dict[str, Any]:
    async def there() -> bool:
        told: dict[str, int] = (await budget(proxy))["sources"]
        return sum(told.values()) >= count

    await eventually_true(there, f"{count} labels")
    return await budget(proxy)


async def hit(proxy: Proxy, number: int, key: str, probability: float = 0.95) -> Answered:
    found = await proxy.ask(asked(number, probability), key=key)
    assert found.tier == "semantic", found.reason
    return found


async def test_a_hit_whose_fresh_answer_is_the_same_is_labelled_right(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    upstream.always(says("Open the settings."))
    async with proxy_of(upstream, tmp_path, shadow_rate=1.0) as proxy:
        await proxy.fill(chat(QUESTION), key=key)
        await hit(proxy, 1, key)
        found = await labelled(proxy, 1)
        assert found["sources"] == {"shadow": 1}
        assert (found["wrong"]["labelled"], found["wrong"]["false"]) == (1, 0)
        assert upstream.calls == 2
        assert (await proxy.ask(asked(1), key=key)).tier == "semantic"


async def test_a_hit_found_wrong_is_not_served_to_that_question_again(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    upstream.always(says("Yes, in 2020."))
    async with proxy_of(upstream, tmp_path, shadow_rate=1.0) as proxy:
        await proxy.fill(chat(QUESTION), key=key)
        upstream.always(says("No, in 2021."))
        await hit(proxy, 1, key)
        found = await labelled(proxy, 1)
        assert (found["wrong"]["labelled"], found["wrong"]["false"]) == (1, 1)
        await eventually_true(
            lambda: _reason(proxy, asked(1), key, "quarantined"), "the entry is quarantined for that question"
        )


async def _reason(proxy: Proxy, body: dict[str, Any], key: str, reason: str) -> bool:
    headers = {"cache-control": "only-if-cached"}
    found = await proxy.ask(body, key=key, headers=headers)
    return found.reason == reason


async def test_a_shadow_sample_keeps_no_caller_waiting_and_its_failure_is_no_label(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    async with proxy_of(upstream, tmp_path, shadow_rate=1.0) as proxy:
        await proxy.fill(chat(QUESTION), key=key)
        let_go = asyncio.Event()
        upstream.always(lambda received: [Hold(let_go), *default_steps(received, 7)])
        async with asyncio.timeout(2):
            await hit(proxy, 1, key)
            await hit(proxy, 2, key)
        await upstream.received(3)
        upstream.always(lambda received: answer({"error": {"message": "x"}}, status=500))
        let_go.set()
        await hit(proxy, 3, key)
        await upstream.received(4)
        assert (await budget(proxy))["wrong"]["false"] == 0


async def test_a_question_that_must_not_be_stored_is_never_fetched_again(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    async with proxy_of(upstream, tmp_path, shadow_rate=1.0) as proxy:
        await proxy.fill(chat(QUESTION), key=key)
        found = await proxy.ask(asked(1), key=key, headers={"cache-control": "no-store"})
        assert found.tier == "semantic"
        await proxy.settled(key)
        assert upstream.calls == 2  # the first answer, and that of `settled`


async def test_no_more_is_fetched_than_the_category_allows(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    upstream.always(says("Open the settings."))
    async with proxy_of(upstream, tmp_path, shadow_rate=1.0, learning_calls_per_hour=2) as proxy:
        await proxy.fill(chat(QUESTION), key=key)
        for number in range(5):
            await hit(proxy, number, key)
        await labelled(proxy, 2)
        assert upstream.calls == 3


async def test_wrong_hits_raise_what_is_served_and_a_restart_forgets_nothing(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    upstream.always(says("Yes, in 2020."))
    keys: dict[str, Any] = {"shadow_rate": 1.0, "delta": 0.05, "learning_calls_per_hour": 1000}
    async with proxy_of(upstream, tmp_path, **keys) as proxy:
        for subject in SUBJECTS:
            await proxy.fill(chat(f"How do I {subject}?"), key=key)
        upstream.always(says("No, in 2021."))
        with structlog.testing.capture_logs() as logs:
            for number, subject in enumerate(SUBJECTS):
                found = await proxy.ask(chat(f"How do I {subject}? {number} p0.95"), key=key)
                if found.reason == "over_budget":
                    break
                assert found.tier == "semantic", found.reason
                await labelled(proxy, number + 1)
            assert number <= 5  # where every hit is wrong, few labels are enough
        before = await budget(proxy)
        assert before["tightened"]
        assert before["served_from"] > 0.8
        assert any(line["event"] == "budget_tightened" for line in logs)
        assert not any("How do I" in str(line) for line in logs)
        shown = await admin(proxy, "/explain", {"request": chat(OVER), "key": key})
        assert shown["served_from"] == before["served_from"]
        assert shown["candidates"][0]["verdict"] == "over_budget"
    async with proxy_of(upstream, tmp_path, **keys) as proxy:
        after = await budget(proxy)
        assert (after["labels"], after["sources"]) == (before["labels"], before["sources"])
        assert after["served_from"] == pytest.approx(before["served_from"])
        refused = await proxy.ask(chat(OVER), key=key)
        assert (refused.outcome, refused.reason) == ("miss", "over_budget")


async def test_a_refused_candidate_is_compared_with_the_answer_that_the_miss_brought(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    upstream.always(says("Open the settings."))
    async with proxy_of(upstream, tmp_path, explore_rate=1.0) as proxy:
        await proxy.fill(chat(QUESTION), key=key)
        found = await proxy.ask(asked(1, 0.6), key=key)
        assert (found.outcome, found.reason) == ("miss", "improbable")
        told = await labelled(proxy, 1)
        assert told["sources"] == {"explored": 1}
        assert told["wrong"]["labelled"] == 0  # what was refused is no hit
        assert upstream.calls == 2


async def test_what_a_caller_says_moves_the_entry_and_not_its_category(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    async with proxy_of(upstream, tmp_path) as proxy:
        await proxy.fill(chat(QUESTION), key=key)
        for number in range(12):
            found = await proxy.ask(asked(number, 0.85), key=key)
            if found.reason == "over_budget":
                break
            body = msgspec.json.encode({"id": found.whole["id"], "verdict": "bad"})
            headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
            assert (await proxy.call("POST", "/v1/cache/feedback", headers, body)).status == 200
        else:
            pytest.fail("an entry that is called wrong again and again is served on")
        told = await budget(proxy)
        assert told["labels"] == 0
        assert not told["tightened"]


async def test_the_file_holds_no_text_and_an_erased_entry_leaves_it(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    upstream.always(says("Open the settings."))
    path = tmp_path / "data" / "budget.sqlite3"
    async with proxy_of(upstream, tmp_path, shadow_rate=1.0) as proxy:
        await proxy.fill(chat(QUESTION), key=key)
        entry = (await hit(proxy, 1, key)).get("x-cacheproxy-entry")
        await labelled(proxy, 1)
        await eventually(lambda: _rows(path) == 1, "the label is written", within_s=6)
        assert b"password" not in path.read_bytes()
        await admin(proxy, "/purge", {"ids": [entry], "erase": True})
        assert _rows(path) == 0
    assert path.stat().st_mode & 0o777 == 0o600


async def test_what_was_purged_while_it_was_compared_leaves_no_trace(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    path = tmp_path / "data" / "budget.sqlite3"
    async with proxy_of(upstream, tmp_path, shadow_rate=1.0) as proxy:
        await proxy.fill(chat(QUESTION), key=key)
        let_go = asyncio.Event()
        upstream.always(lambda received: [Hold(let_go), *default_steps(received, 7)])
        entry = (await hit(proxy, 1, key)).get("x-cacheproxy-entry")
        await upstream.received(2)
        await admin(proxy, "/purge", {"ids": [entry], "erase": True})
        upstream.always(None)
        let_go.set()
        await proxy.settled(key)
        assert (await budget(proxy))["sources"] == {}
    assert _rows(path) == 0


@pytest.mark.parametrize("another", [False, True])
async def test_a_comparison_that_ends_under_another_head_is_no_label_of_that_one(
    upstream: ScriptedUpstream, tmp_path: Path, key: str, another: bool
) -> None:
    upstream.always(says("Open the settings."))
    settings = proxy_settings(
        upstream.url,
        tmp_path / "data",
        policies={"pack": pack(tmp_path / "pack", shadow_rate=1.0)},
        learn={"shadow": True},
    )
    async with running(settings) as live:
        proxy = Proxy(url=live.url, admin_url=live.admin_url)
        await proxy.fill(chat(QUESTION), key=key)
        let_go = asyncio.Event()
        upstream.always(lambda received: [Hold(let_go), *answer(completion("Open the settings."))])
        await hit(proxy, 1, key)
        await upstream.received(2)
        if another:
            live.house.lookups.restart("another epoch")
        let_go.set()
        await labelled(proxy, 1)  # of the category and the entry it is one all the same
        assert live.house.stats.wrong_hits().trials == int(not another)


def _rows(path: Path) -> int:
    connection = sqlite3.connect(path)
    try:
        return int(connection.execute("SELECT count(*) FROM entries").fetchone()[0])
    finally:
        connection.close()


def judging(word: str, fresh: str) -> Any:
    """Return what answers a judge's question with a word, and any other with a text."""

    def steps(received: Received) -> Any:
        body = received.json()
        judge = body["messages"][0]["role"] == "system"
        return answer(completion(word if judge else fresh))

    return steps


@pytest.mark.parametrize("word", ["RIGHT", "WRONG"])
async def test_a_judge_labels_what_comparing_cannot_tell(
    upstream: ScriptedUpstream, tmp_path: Path, key: str, word: str
) -> None:
    upstream.always(says("Open the settings, then the account, and choose a new one."))
    async with proxy_of(upstream, tmp_path, judge="async") as proxy:
        await proxy.fill(chat(QUESTION), key=key)
        upstream.always(judging(word, "Go to your account page; there you will find how to do it again."))
        await proxy.ask(asked(1, 0.6), key=key)
        assert (await labelled(proxy, 1))["sources"] == {"judge": 1}


@pytest.mark.parametrize("word", ["", "RIGHT, I think", "yes", "RIGHT WRONG", '{"verdict": "RIGHT"}'])
async def test_a_judge_who_does_not_keep_to_the_form_has_said_nothing(
    upstream: ScriptedUpstream, tmp_path: Path, key: str, word: str
) -> None:
    async with proxy_of(upstream, tmp_path, judge="inline") as proxy:
        await proxy.fill(chat(QUESTION), key=key)
        upstream.always(judging(word, "Something else."))
        found = await proxy.ask(asked(1, 0.6), key=key)
        assert (found.outcome, found.reason) == ("miss", "improbable")


async def test_an_inline_judge_has_an_answer_of_the_grey_zone_served(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    async with proxy_of(upstream, tmp_path, judge="inline") as proxy:
        first = await proxy.fill(chat(QUESTION), key=key)
        upstream.always(judging("RIGHT", "Something else."))
        found = await proxy.ask(asked(1, 0.6), key=key)
        assert (found.outcome, found.reason, found.content) == ("hit", "judged", first.content)
        refused = await proxy.ask(asked(2, 0.3), key=key)
        assert refused.outcome == "miss"  # far from grey: nobody is asked
        assert (await proxy.ask(chat(f"{QUESTION} no-number p0.9"), key=key)).reason == "veto_number"


async def test_a_judge_who_would_see_a_part_only_is_not_asked(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    upstream.always(says("word " * 1200 + "and the end."))
    async with proxy_of(upstream, tmp_path, judge="inline") as proxy:
        await proxy.fill(chat(QUESTION), key=key)
        upstream.always(judging("RIGHT", "Something else."))
        found = await proxy.ask(asked(1, 0.6), key=key)
        assert (found.outcome, found.reason) == ("miss", "improbable")
        assert upstream.calls == 2  # what was kept, and this miss: nobody was asked to judge


async def test_an_inline_judge_who_hangs_is_a_miss_in_time(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    async with proxy_of(upstream, tmp_path, {"judge_timeout_ms": 100}, judge="inline") as proxy:
        await proxy.fill(chat(QUESTION), key=key)
        never = asyncio.Event()

        def steps(received: Received) -> Any:
            judge = received.json()["messages"][0]["role"] == "system"
            return [Hold(never)] if judge else default_steps(received, 7)

        upstream.always(steps)
        async with asyncio.timeout(3):
            found = await proxy.ask(asked(1, 0.6), key=key)
        assert (found.outcome, found.reason) == ("miss", "improbable")
        assert (await budget(proxy))["sources"] == {}
        never.set()


async def test_an_approved_near_miss_without_an_entry_of_its_own_gets_the_answer(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    async with proxy_of(upstream, tmp_path, judge="async") as proxy:
        first = await proxy.fill(chat(QUESTION), key=key)
        cut = completion("Half an")
        cut["choices"][0]["finish_reason"] = "length"

        def steps(received: Received) -> Any:
            judge = received.json()["messages"][0]["role"] == "system"
            return answer(completion("RIGHT") if judge else cut)

        upstream.always(steps)
        assert (await proxy.ask(asked(1, 0.6), key=key)).outcome == "miss"
        await eventually_true(lambda: proxy.cached(asked(1, 0.6), key=key), "the near miss is promoted")
        again = await proxy.ask(asked(1, 0.6), key=key)
        assert (again.tier, again.content) == ("exact", first.content)
