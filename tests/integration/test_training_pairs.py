"""Training pairs of a running proxy: collected of those who consent, where categories allow it, and erased for good."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import structlog

from cacheproxy import opening
from cacheproxy.learn.pairfile import FILE, PairRows, read_pairs
from cacheproxy.policy.loader import POLICY_FILE, find_pack, load_pack
from tests.support.openai_wire import completion
from tests.support.operators import admin, told
from tests.support.pairs import held_in
from tests.support.polling import eventually_true
from tests.support.proxy import QUESTION, Answered, Proxy, chat, proxy_settings, started
from tests.support.upstream import Hold, answer
from tests.support.verifiers import StepScorer
from tests.support.virtual_keys import KeyFile, keyed_proxy

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

CANARY = "canary1a2b3c"
NOTHING: dict[str, str] = {}
FINGERPRINTS = [one.fingerprint for one in load_pack(find_pack("balanced")).encoders.values()]
PACK = """
schema = 1
name = "test"
description = "x"
default_category = "default"
[categories.default]
semantic = true
min_probability = 0.8
explore_rate = 1.0
[categories.private]
allow_caching = false
rules = [{ text = "privately" }]
[categories.closed]
semantic = true
min_probability = 0.8
train = "never"
rules = [{ text = "closely" }]
"""


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the logging of the test process alone."""
    monkeypatch.setattr("cacheproxy.logs.configure", lambda _: None)


@pytest.fixture(autouse=True)
def believing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every proxy here has a verifier that believes what a question says of itself."""
    monkeypatch.setattr(opening, "open_verifier", lambda settings: StepScorer())


def sections(folder: Path, federated: Mapping[str, object], **more: Mapping[str, object]) -> dict[str, Any]:
    """Return settings for a proxy with a pack of its own."""
    place = folder / "pack"
    place.mkdir(exist_ok=True)
    encoders = [
        f'[encoders.e{number}]\nfingerprint = "{one}"\ncalibrated_on = "x"\nverify_from = 0.5\n'
        "thresholds = { default = 0.999, closed = 0.999 }\n"
        for number, one in enumerate(FINGERPRINTS)
    ]
    (place / POLICY_FILE).write_text("".join([PACK, *encoders]), encoding="utf-8")
    return {"policies": {"pack": str(place)}, "federated": federated, **more}


def asked(number: int, words: str = "", probability: float = 0.95) -> dict[str, Any]:
    """Return a question near to the one of `kept`, that the verifier finds so probable."""
    return chat(f"{QUESTION} {CANARY} {words} {number} p{probability}")


def kept(words: str = "") -> dict[str, Any]:
    return chat(f"{QUESTION} {CANARY} {words}")


async def similar(proxy: Proxy, body: dict[str, Any], key: str, headers: Mapping[str, str] = NOTHING) -> Answered:
    found = await proxy.ask(body, key=key, headers=headers)
    assert (found.outcome, found.tier) == ("hit", "semantic"), found.reason
    return found


async def say(proxy: Proxy, hit: Answered, key: str, verdict: str = "good") -> None:
    done = await proxy.ask({"id": hit.whole["id"], "verdict": verdict}, key=key, target="/v1/cache/feedback")
    assert done.status == 200, done.body


async def counted(proxy: Proxy, name: str, **labels: str) -> float:
    text = (await Proxy(url=proxy.admin_url, admin_url=proxy.admin_url).call("GET", "/metrics")).body.decode()
    lines = [line for line in text.splitlines() if line.startswith(f"cacheproxy_training_pairs_{name}total")]
    wanted = [line for line in lines if all(f'{key}="{value}"' in line for key, value in labels.items())]
    return sum(float(line.rpartition(" ")[2]) for line in wanted)


async def settled(proxy: Proxy, pairs: int, **refused: int) -> None:
    """Wait until so many pairs were made, and so many labels refused for these reasons."""

    async def there() -> bool:
        if await counted(proxy, "") != pairs:
            return False
        return all([await counted(proxy, "refused_", reason=why) == count for why, count in refused.items()])

    await eventually_true(there, f"{pairs} pairs, {refused}")


def training(data_dir: Path) -> bytes:
    """Return every byte of the file of pairs and its log."""
    return b"".join(path.read_bytes() for path in data_dir.glob(f"{FILE}*"))


def pairs_in(data_dir: Path) -> PairRows:
    [found] = [rows for one in FINGERPRINTS if len((rows := read_pairs(data_dir / FILE, one)).a)] or [
        read_pairs(data_dir / FILE, FINGERPRINTS[0])
    ]
    return found


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir(mode=0o700)
    return tmp_path / "data"


async def test_words_of_callers_who_consent_become_pairs_without_texts(
    upstream: ScriptedUpstream, tmp_path: Path, data_dir: Path
) -> None:
    keys = KeyFile(data_dir)
    key = keys.add(tenant="shop", train=True)
    more = {"upstream": {"api_key": "sk-backend"}}
    chosen = sections(tmp_path, {"collect": "consenting"}, **more)
    async with keyed_proxy(upstream.url, data_dir, **chosen) as proxy:
        await proxy.fill(kept(), key=key)
        await say(proxy, await similar(proxy, asked(1), key), key)
        await say(proxy, await similar(proxy, asked(2), key), key, "bad")
        exact = await proxy.ask(kept(), key=key)
        assert exact.tier == "exact"
        await say(proxy, exact, key)
        await settled(proxy, 2)
        assert await counted(proxy, "", source="feedback", right="false") == 1
        found = pairs_in(data_dir)
        assert found.right.tolist() == [True, False]
        assert found.group.tolist() == [0, 0]
        assert found.texts is None
        assert (await told(proxy, "GET", "config"))["federated"]["collect"] == "consenting"
        texts = training(data_dir)
        assert CANARY.encode() not in texts
        assert CANARY.encode() in held_in(data_dir)  # where entries are
    assert CANARY.encode() not in (data_dir / FILE).read_bytes()


async def test_neither_question_of_a_pair_is_of_a_key_that_does_not_consent(
    upstream: ScriptedUpstream, tmp_path: Path, data_dir: Path
) -> None:
    keys = KeyFile(data_dir)
    consenting, silent = keys.add(tenant="shop", train=True), keys.add(tenant="shop")
    chosen = sections(tmp_path, {"collect": "consenting"}, upstream={"api_key": "sk-backend"})
    async with keyed_proxy(upstream.url, data_dir, **chosen) as proxy:
        await proxy.fill(kept(), key=consenting)
        await say(proxy, await similar(proxy, asked(1), silent), silent)
        await settled(proxy, 0, no_consent=1)
        # Whoever says the word, the question is of another key.
        await say(proxy, await similar(proxy, asked(2), silent), consenting)
        await settled(proxy, 0, no_consent=2)
        await proxy.fill(chat("Where is the closest library to my house?"), key=silent)
        near = chat("Where is the closest library to my house? 3 p0.95")
        await say(proxy, await similar(proxy, near, consenting), consenting)
        await settled(proxy, 0, no_consent=3)
        await say(proxy, await similar(proxy, asked(4), consenting), consenting)
        await settled(proxy, 1, no_consent=3)


async def test_what_may_not_be_stored_or_is_of_a_closed_category_never_enters(
    upstream: ScriptedUpstream, tmp_path: Path, data_dir: Path, key: str
) -> None:
    chosen = sections(tmp_path, {"collect": "all", "keep_texts": True})
    async with started(proxy_settings(upstream.url, data_dir, **chosen)) as proxy:
        await proxy.fill(kept(), key=key)
        silent = {"cache-control": "no-store"}
        await say(proxy, await similar(proxy, asked(1, "unstored"), key, silent), key)
        await proxy.fill(kept("closely"), key=key)
        await say(proxy, await similar(proxy, asked(2, "closely"), key), key)
        for number in (3, 4):
            assert (await proxy.ask(asked(number, "privately"), key=key)).reason == "category_not_cached"
        await settled(proxy, 0, no_store=1, category=1)
        follow_up = [
            {"role": "user", "content": "Hello there"},
            {"role": "assistant", "content": "Hello! What can I do for you?"},
        ]
        for text in (f"{QUESTION} {CANARY} talk", f"{QUESTION} {CANARY} talk 5 p0.95"):
            said = await proxy.ask(chat(text, messages=[*follow_up, {"role": "user", "content": text}]), key=key)
        assert said.tier == "semantic"
        await say(proxy, said, key)
        await settled(proxy, 0, conversation=1)
        await say(proxy, await similar(proxy, asked(6, "open"), key), key)
        await settled(proxy, 1)
        texts = training(data_dir)
        assert b"open 6 p0.95" in texts
        for word in (b"unstored", b"closely", b"privately", b"talk"):
            assert word not in texts


async def test_a_category_that_is_closed_loses_its_pairs(
    upstream: ScriptedUpstream, tmp_path: Path, data_dir: Path, key: str
) -> None:
    chosen = sections(tmp_path, {"collect": "all", "keep_texts": True})
    async with started(proxy_settings(upstream.url, data_dir, **chosen)) as proxy:
        await proxy.fill(kept(), key=key)
        hit = await similar(proxy, asked(1), key)
        await say(proxy, hit, key)
        await settled(proxy, 1)
        category = "policies/categories/default"
        patched = await admin(proxy, "PATCH", category, {"train": "never"}, headers={"if-match": '"1"'})
        assert patched.status == 200, patched.body

        async def emptied() -> bool:
            return not len(pairs_in(data_dir).a)

        await eventually_true(emptied, "its pairs are gone")
        await say(proxy, hit, key, "bad")
        await settled(proxy, 1, category=1)
        assert not len(pairs_in(data_dir).a)


async def test_compared_judged_and_promoted_labels_become_pairs(
    upstream: ScriptedUpstream, tmp_path: Path, data_dir: Path, key: str
) -> None:
    upstream.always(lambda received: answer(completion("Open the settings.")))
    chosen = sections(tmp_path, {"collect": "all"}, learn={"shadow": True})
    policy = tmp_path / "pack" / POLICY_FILE
    policy.write_text(policy.read_text().replace("explore_rate = 1.0", "explore_rate = 1.0\nshadow_rate = 1.0", 1))
    async with started(proxy_settings(upstream.url, data_dir, **chosen)) as proxy:
        await proxy.fill(kept(), key=key)
        await similar(proxy, asked(1), key)
        await settled(proxy, 1)
        assert await counted(proxy, "", source="shadow", right="true") == 1
        upstream.always(lambda received: answer(completion("No, in 2021.")))
        assert (await proxy.ask(asked(2, probability=0.6), key=key)).outcome == "miss"
        await settled(proxy, 2)
        assert await counted(proxy, "", source="explored", right="false") == 1
        [near] = (await told(proxy, "GET", "near-misses"))["near_misses"]
        await told(proxy, "POST", f"near-misses/{near['id']}/promote")
        await settled(proxy, 3)
        assert await counted(proxy, "", source="promoted", right="true") == 1
        found = pairs_in(data_dir)
        # The promoted pair is the explored one, on which the operator had the last word.
        assert found.right.tolist() == [True, True]
        assert len(set(found.group.tolist())) == 1


async def test_purges_and_erasures_reach_the_pairs(upstream: ScriptedUpstream, tmp_path: Path, data_dir: Path) -> None:
    keys = KeyFile(data_dir)
    shop, other = keys.add(tenant="shop", train=True), keys.add(tenant="other", train=True)
    chosen = sections(tmp_path, {"collect": "consenting", "keep_texts": True}, upstream={"api_key": "sk-backend"})
    async with keyed_proxy(upstream.url, data_dir, **chosen) as proxy:
        hits = {}
        for key, words, user in ((shop, "first", "alice"), (shop, "second", "bob"), (other, "third", "alice")):
            await proxy.fill({**kept(f"{words} {words} {words}"), "user": user}, key=key)
            hits[words] = await similar(proxy, {**asked(1, f"{words} {words} {words}"), "user": user}, key)
            await say(proxy, hits[words], key)
        await settled(proxy, 3)
        entry = hits["first"].get("x-cacheproxy-entry") or ""

        def holding(word: str) -> bool:
            return f"{CANARY} {word}".encode() in training(data_dir)

        await told(proxy, "POST", "purge?dry_run=true", {"id": entry})
        await told(proxy, "POST", "purge?dry_run=true", {"tenant": "shop"})
        assert [holding(word) for word in hits] == [True, True, True]
        await told(proxy, "POST", "purge", {"tag": "unknown"})
        assert [holding(word) for word in hits] == [True, True, True]
        done = await told(proxy, "POST", "purge", {"id": entry})
        assert {part["part"]: part["removed"] for part in done["parts"]} == {"entries": 1, "training_pairs": 1}
        assert [holding(word) for word in hits] == [False, True, True]
        done = await told(proxy, "POST", "purge", {"tenant": "other", "user": "alice"})
        assert {part["part"]: part["removed"] for part in done["parts"]}["training"] == 1
        assert [holding(word) for word in hits] == [False, True, False]
    # What was collected can be erased where nothing is collected any more.
    chosen = sections(tmp_path, {"collect": "none"}, upstream={"api_key": "sk-backend"})
    async with keyed_proxy(upstream.url, data_dir, **chosen) as proxy:
        await say(proxy, await similar(proxy, {**asked(2, "second second"), "user": "bob"}, shop), shop)
        assert await counted(proxy, "refused_") == 0
        assert len(pairs_in(data_dir).a) == 1
        await told(proxy, "POST", "purge", {"tenant": "shop"})
        assert not holding("second")
        assert not len(pairs_in(data_dir).a)


async def test_a_user_erased_while_a_comparison_is_under_way_leaves_no_pair(
    upstream: ScriptedUpstream, tmp_path: Path, data_dir: Path, key: str
) -> None:
    upstream.always(lambda received: answer(completion("Open the settings.")))
    chosen = sections(tmp_path, {"collect": "all"}, learn={"shadow": True})
    policy = tmp_path / "pack" / POLICY_FILE
    policy.write_text(policy.read_text().replace("explore_rate = 1.0", "shadow_rate = 1.0", 1))
    async with started(proxy_settings(upstream.url, data_dir, **chosen)) as proxy:
        await proxy.fill({**kept(), "user": "alice"}, key=key)
        going_on = asyncio.Event()
        upstream.play([Hold(going_on), *answer(completion("Open the settings."))])
        await similar(proxy, {**asked(1), "user": "alice"}, key)
        await upstream.received(2)
        await told(proxy, "POST", "purge", {"user": "alice"})
        await proxy.fill({**kept(), "user": "alice"}, key=key)  # the same entry, made anew
        going_on.set()
        await settled(proxy, 0, erased=1)
        assert not len(pairs_in(data_dir).a)
        await similar(proxy, {**asked(2), "user": "alice"}, key)
        await settled(proxy, 1, erased=1)


async def test_consent_that_is_taken_back_holds_from_then_on(
    upstream: ScriptedUpstream, tmp_path: Path, data_dir: Path
) -> None:
    from click.testing import CliRunner

    from cacheproxy.cli import main

    key = KeyFile(data_dir).add(id="k1", tenant="shop", train=True)
    chosen = sections(tmp_path, {"collect": "consenting"}, upstream={"api_key": "sk-backend"})
    async with keyed_proxy(upstream.url, data_dir, **chosen) as proxy:
        await proxy.fill(kept(), key=key)
        await say(proxy, await similar(proxy, asked(1), key), key)
        await settled(proxy, 1)
        done = CliRunner().invoke(main, ["keys", "limit", "k1", "--no-train", "--data-dir", str(data_dir)])
        assert done.exit_code == 0, done.output

        numbers = iter(range(2, 100))

        async def refused() -> bool:
            await say(proxy, await similar(proxy, asked(next(numbers)), key), key)
            return await counted(proxy, "refused_", reason="no_consent") > 0

        await eventually_true(refused, "the key consents no more")
        assert len(pairs_in(data_dir).a) >= 1


async def test_by_default_nothing_is_collected(
    upstream: ScriptedUpstream, tmp_path: Path, data_dir: Path, key: str
) -> None:
    async with started(proxy_settings(upstream.url, data_dir, **sections(tmp_path, {}))) as proxy:
        await proxy.fill(kept(), key=key)
        await say(proxy, await similar(proxy, asked(1), key), key)
        assert not (data_dir / FILE).exists()


async def test_without_virtual_keys_nobody_consents_and_the_start_says_so(
    upstream: ScriptedUpstream, tmp_path: Path, data_dir: Path, key: str
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with started(
            proxy_settings(upstream.url, data_dir, **sections(tmp_path, {"collect": "consenting"}))
        ) as proxy:
            await proxy.fill(kept(), key=key)
            await say(proxy, await similar(proxy, asked(1), key), key)
            await settled(proxy, 0, no_consent=1)
    assert "training_pairs_none" in [line["event"] for line in logs]
