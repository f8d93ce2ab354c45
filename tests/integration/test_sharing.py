"""Answers go beyond their tenant only once several tenants, vouched for by the operator, got them alike."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio

from cacheproxy.policy.kinds import PII_KINDS
from cacheproxy.privacy.gate import PresidioGate
from tests.support import openai_wire
from tests.support.operators import admin, told
from tests.support.packs import changed_pack
from tests.support.polling import eventually_true
from tests.support.proxy import Proxy, chat, proxy_settings, started
from tests.support.rawhttp import request_bytes, send_raw
from tests.support.upstream import answer
from tests.support.virtual_keys import KeyFile, keyed_proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.upstream import ScriptedUpstream, Step

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANSWER = "The Pro plan costs 12 dollars a month and takes cards only."
OTHER = "The Pro plan costs 15 dollars a month and takes cards only."
READ = {"cache-control": "no-store"}
THRESHOLDS = {"path": "off"}
"""Scopes are tested here, not who is alike: thresholds decide."""


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharing")


@pytest.fixture(scope="module")
def tenants(data_dir: Path) -> list[str]:
    """Six tenants' keys."""
    keys = KeyFile(data_dir)
    return [keys.add() for _ in range(6)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def sharing(
    module_upstream: ScriptedUpstream,
    data_dir: Path,
    tenants: list[str],
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Proxy]:
    assert tenants
    gate = PresidioGate()
    await gate.prepare(PII_KINDS)  # its library takes seconds to load, and what comes meanwhile is not shared
    gate.close()
    pack = changed_pack(tmp_path_factory.mktemp("pack"), share="agreed")
    async with keyed_proxy(
        module_upstream.url,
        data_dir,
        upstream={"api_key": "sk-backend"},
        policies={"pack": str(pack)},
        verifier=THRESHOLDS,
    ) as live:
        yield live


_SEEDS = count(1000)


def says(text: str) -> list[Step]:
    return answer(openai_wire.completion(text))


def question(text: str = "What does the Pro plan cost?") -> dict[str, Any]:
    """Return a request that is like that of no other test."""
    return chat(text, seed=next(_SEEDS))


async def get(proxy: Proxy, body: dict[str, Any], key: str, upstream: ScriptedUpstream, text: str = ANSWER) -> None:
    """Have the backend answer a tenant's question with a text, and wait until the answer is kept."""
    upstream.always(says(text))
    await proxy.fill(body, key=key)


async def shared_as(proxy: Proxy, body: dict[str, Any], key: str) -> str:
    """Return the reason by which a tenant is answered from the cache, "" when it is not."""
    sent = {"cache-control": "only-if-cached, no-store"}
    response = await proxy.ask(body, key=key, headers=sent)
    return response.reason if response.status == 200 else ""


async def settled(proxy: Proxy, results: float) -> None:
    """Wait until so many comparisons have ended."""

    async def counted() -> bool:
        return await compared(proxy) >= results

    await eventually_true(counted, "answers are compared", within_s=15.0)


async def compared(proxy: Proxy) -> float:
    metrics = (await admin_metrics(proxy)).splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in metrics if line.startswith("cacheproxy_shared_total{"))


async def admin_metrics(proxy: Proxy) -> str:
    response = await send_raw(proxy.admin_url, request_bytes("GET", "/metrics", []), "GET")
    return response.body.decode()


async def agree(
    proxy: Proxy, body: dict[str, Any], keys: list[str], upstream: ScriptedUpstream, texts: list[str]
) -> None:
    """Let tenants ask one after another, each getting its text, and wait until all is compared."""
    before = await compared(proxy)
    for key, text in zip(keys, texts, strict=True):
        await get(proxy, body, key, upstream, text)
    await settled(proxy, before + len(keys))


async def test_an_answer_that_two_tenants_got_alike_is_served_to_a_third(
    sharing: Proxy, tenants: list[str], upstream: ScriptedUpstream
) -> None:
    body = question()
    await agree(sharing, body, tenants[:2], upstream, [ANSWER, f" {ANSWER}\n"])
    calls = upstream.calls
    response = await sharing.ask(body, key=tenants[2])
    assert (response.outcome, response.reason) == ("hit", "shared")
    assert response.content.strip() == ANSWER
    assert upstream.calls == calls


async def test_what_is_like_a_shared_question_is_answered_by_similarity(
    sharing: Proxy, tenants: list[str], upstream: ScriptedUpstream
) -> None:
    body = question("How do I reset the password of my account?")
    await agree(sharing, body, tenants[:2], upstream, [ANSWER] * 2)
    near = {**body, "messages": [{"role": "user", "content": "How do I reset my account's password?"}]}
    response = await sharing.ask(near, key=tenants[2], headers=READ)
    assert (response.outcome, response.tier, response.reason) == ("hit", "semantic", "shared")


async def test_one_tenant_alone_reaches_nobody_however_often_it_asks(
    sharing: Proxy, tenants: list[str], upstream: ScriptedUpstream
) -> None:
    body = question()
    before = await compared(sharing)
    for _ in range(3):
        upstream.always(says(ANSWER))
        await sharing.ask(body, key=tenants[0], headers={"cache-control": "no-cache"})
    await settled(sharing, before + 3)
    assert [await shared_as(sharing, body, key) for key in tenants[1:]] == [""] * 5


async def test_who_asks_is_not_counted_so_that_a_hit_tells_of_two_others(
    sharing: Proxy, tenants: list[str], upstream: ScriptedUpstream
) -> None:
    body = question()
    before = await compared(sharing)
    await get(sharing, body, tenants[0], upstream)
    upstream.always(says(ANSWER))
    probing = {"x-cacheproxy-ttl": "1"}
    await sharing.ask(body, key=tenants[1], headers=probing)  # the prober takes part, and lets its own go
    await settled(sharing, before + 2)
    assert await shared_as(sharing, body, tenants[2]) == "shared"

    async def own_is_gone() -> bool:
        return await shared_as(sharing, body, tenants[1]) != "same_request"

    await eventually_true(own_is_gone, "the prober's own entry expired", within_s=5.0)
    assert await shared_as(sharing, body, tenants[1]) == ""


@pytest.mark.parametrize("second", [OTHER, "No, it does not.", "The Pro plan does not cost 12 dollars a month."])
async def test_answers_that_differ_in_what_decides_are_not_shared(
    sharing: Proxy, tenants: list[str], upstream: ScriptedUpstream, second: str
) -> None:
    body = question()
    await agree(sharing, body, tenants[:2], upstream, [ANSWER, second])
    assert await shared_as(sharing, body, tenants[2]) == ""


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("Where do I write to when my order is late?", "Write to jane.roe@example.com, she will help."),
        ("My card is 4111 1111 1111 1111, what do you do with it?", ANSWER),
    ],
)
async def test_what_holds_personal_data_is_not_shared(
    sharing: Proxy, tenants: list[str], upstream: ScriptedUpstream, asked: str, answered: str
) -> None:
    body = question(asked)
    await agree(sharing, body, tenants[:2], upstream, [answered] * 2)
    assert await shared_as(sharing, body, tenants[2]) == ""


async def test_personal_data_in_the_system_prompt_keeps_an_answer_unshared(
    sharing: Proxy, tenants: list[str], upstream: ScriptedUpstream
) -> None:
    body = question()
    body["messages"] = [{"role": "system", "content": "You serve jane.roe@example.com."}, *body["messages"]]
    await agree(sharing, body, tenants[:2], upstream, [ANSWER] * 2)
    assert await shared_as(sharing, body, tenants[2]) == ""


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 0.3},
        {"user": "alice"},
        {"seed": 7},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is this?"}]},
    ],
    ids=str,
)
async def test_everything_but_the_tenant_must_be_equal(
    sharing: Proxy, tenants: list[str], upstream: ScriptedUpstream, change: dict[str, Any]
) -> None:
    body = question()
    await agree(sharing, body, tenants[:2], upstream, [ANSWER] * 2)
    assert await shared_as(sharing, body, tenants[2]) == "shared"
    assert await shared_as(sharing, {**body, **change}, tenants[2]) == ""


async def test_follow_ups_and_end_users_are_never_shared(
    sharing: Proxy, tenants: list[str], upstream: ScriptedUpstream
) -> None:
    talk = question()
    talk["messages"] = [
        {"role": "user", "content": "What is shop 12?"},
        {"role": "assistant", "content": "A shop."},
        {"role": "user", "content": "What does its Pro plan cost?"},
    ]
    for body in (talk, {**question(), "user": "alice"}):
        for key in tenants[:2]:
            await get(sharing, body, key, upstream)
        await asyncio.sleep(0.2)
        assert await shared_as(sharing, body, tenants[2]) == ""


async def test_a_bad_word_takes_a_shared_answer_from_who_said_it_only(
    sharing: Proxy, tenants: list[str], upstream: ScriptedUpstream
) -> None:
    body = question()
    await agree(sharing, body, tenants[:2], upstream, [ANSWER] * 2)
    response = await sharing.ask(body, key=tenants[2], headers=READ)
    said = openai_wire.encode({"id": response.whole["id"], "verdict": "bad"})
    headers = {"authorization": f"Bearer {tenants[2]}", "content-type": "application/json"}
    assert (await sharing.call("POST", "/v1/cache/feedback", headers, said)).status == 200
    assert await shared_as(sharing, body, tenants[2]) == ""
    assert await shared_as(sharing, body, tenants[3]) == "shared"


async def test_the_shared_entry_tells_where_it_is_from_and_names_nobody(
    sharing: Proxy, tenants: list[str], upstream: ScriptedUpstream
) -> None:
    body = question()
    await agree(sharing, body, tenants[:2], upstream, [ANSWER] * 2)
    response = await sharing.ask(body, key=tenants[2], headers=READ)
    whole = await told(sharing, "GET", f"entries/{response.get('x-cacheproxy-entry')}")
    owned = [await told(sharing, "GET", f"entries/{parent}") for parent in whole["parents"]]
    assert (whole["origin"], len(whole["principals"]), len(owned)) == ("shared", 2, 2)
    assert {one["origin"] for one in owned} == {"backend"}
    assert all(one["policy_version"] >= 1 and one["answered_by"] for one in owned)
    assert not {one["entry"]["tenant"] for one in owned} & {*whole["principals"], whole["entry"]["tenant"]}


@pytest.mark.parametrize("descendants", [True, False])
async def test_a_purge_takes_what_was_made_of_an_entry_when_asked(
    sharing: Proxy, tenants: list[str], upstream: ScriptedUpstream, descendants: bool
) -> None:
    body = question()
    await agree(sharing, body, tenants[:2], upstream, [ANSWER] * 2)
    response = await sharing.ask(body, key=tenants[2], headers=READ)
    whole = await told(sharing, "GET", f"entries/{response.get('x-cacheproxy-entry')}")
    second = whole["parents"][1]
    await told(sharing, "POST", "purge", {"id": second, "descendants": descendants})
    assert await shared_as(sharing, body, tenants[2]) == ("" if descendants else "shared")
    left = await admin(sharing, "GET", f"entries/{whole['entry']['id']}")
    assert left.status == (404 if descendants else 200)


async def test_erasing_a_tenant_takes_the_shared_copies_of_its_answers(
    sharing: Proxy, tenants: list[str], upstream: ScriptedUpstream
) -> None:
    body = question()
    await agree(sharing, body, tenants[3:5], upstream, [ANSWER] * 2)
    response = await sharing.ask(body, key=tenants[2], headers=READ)
    entry = response.get("x-cacheproxy-entry")
    preview = await told(sharing, "POST", "purge", {"tenant": "key4", "dry_run": True})
    assert entry in preview["ids"]
    await told(sharing, "POST", "purge", {"tenant": "key4"})
    assert (await admin(sharing, "GET", f"entries/{entry}")).status == 404
    assert await shared_as(sharing, body, tenants[2]) == ""


async def test_an_operator_lets_all_tenants_have_an_answer(
    sharing: Proxy, tenants: list[str], upstream: ScriptedUpstream
) -> None:
    body = question()
    await get(sharing, body, tenants[0], upstream)
    response = await sharing.ask(body, key=tenants[0])
    entry = response.get("x-cacheproxy-entry")
    tried = await told(sharing, "POST", f"entries/{entry}/share?dry_run=true")
    assert tried["dry_run"]
    assert await shared_as(sharing, body, tenants[1]) == ""
    await told(sharing, "POST", f"entries/{entry}/share")
    assert [await shared_as(sharing, body, key) for key in tenants[1:]] == ["shared"] * 5
    assert b"entries.share" in (await admin(sharing, "GET", "audit")).body


async def test_a_caller_cannot_mark_an_answer_as_shareable(
    sharing: Proxy, tenants: list[str], upstream: ScriptedUpstream
) -> None:
    for tag in ("shared", "alias-of:" + "0" * 32, "common:" + "0" * 64, "principal:0"):
        response = await sharing.ask(question(), key=tenants[0], headers={"x-cacheproxy-tags": tag})
        response.assert_problem(400)


async def test_the_names_of_answers_shared_are_the_same_after_a_restart(
    module_upstream: ScriptedUpstream, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    keys = KeyFile(tmp_path / "data")
    three, body = [keys.add() for _ in range(3)], question()
    (tmp_path / "pack").mkdir()
    options: dict[str, Any] = {
        "upstream": {"api_key": "sk-backend"},
        "verifier": THRESHOLDS,
        "policies": {"pack": str(changed_pack(tmp_path / "pack", share="agreed"))},
    }
    async with keyed_proxy(module_upstream.url, tmp_path / "data", **options) as live:
        await agree(live, body, three[:1], upstream, [ANSWER])
    async with keyed_proxy(module_upstream.url, tmp_path / "data", **options) as live:
        await agree(live, body, three[1:2], upstream, [ANSWER])
        assert await shared_as(live, body, three[2]) == "shared"


@pytest.mark.parametrize("share", ["never", "approved"])
async def test_without_the_operators_leave_nothing_is_shared(
    module_upstream: ScriptedUpstream, upstream: ScriptedUpstream, tmp_path: Path, share: str
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "pack").mkdir()
    keys = KeyFile(tmp_path / "data")
    three, body = [keys.add() for _ in range(3)], question()
    pack = changed_pack(tmp_path / "pack", share=share)
    options: dict[str, Any] = {"policies": {"pack": str(pack)}, "verifier": THRESHOLDS}
    async with keyed_proxy(module_upstream.url, tmp_path / "data", upstream={"api_key": "sk-b"}, **options) as live:
        for key in three[:2]:
            await get(live, body, key, upstream)
        await asyncio.sleep(0.2)
        assert await shared_as(live, body, three[2]) == ""


async def test_invented_credentials_are_nobody_that_counts(
    module_upstream: ScriptedUpstream, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    pack, body = changed_pack(tmp_path, share="agreed"), question()
    settings = proxy_settings(module_upstream.url, tmp_path / "data", policies={"pack": str(pack)}, verifier=THRESHOLDS)
    async with started(settings) as live:
        for number in range(4):
            await get(live, body, f"sk-invented-{number}", upstream)
        await asyncio.sleep(0.2)
        assert await shared_as(live, body, "sk-invented-5") == ""
