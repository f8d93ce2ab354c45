"""What is never cached stays out when it comes as embeddings inputs: by a rule, by the gate, by a later policy."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from cacheproxy.errors import PiiUnavailable
from cacheproxy.serving import running
from tests.support.admin import ask_admin
from tests.support.embeddings_wire import PATH, request, whole
from tests.support.polling import eventually_true
from tests.support.proxy import Proxy, proxy_settings, started
from tests.support.rawhttp import request_bytes, send_raw
from tests.support.upstream import Hold, answer

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from tests.support.proxy import Answered
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXTS = ["the first", "a second one", "and the third of them"]
LARGE = ["plain words " * 20_000]


def settings(folder: Path, upstream: ScriptedUpstream, categories: str) -> Any:
    """Return the settings of a proxy with a pack of these categories, and no encoder."""
    pack = folder / "pack"
    pack.mkdir()
    head = 'schema = 1\nname = "own"\ndescription = "x"\ndefault_category = "default"\n[categories.default]\n'
    (pack / "policy.toml").write_text(head + categories, encoding="utf-8")
    return proxy_settings(upstream.url, folder / "data", policies={"pack": str(pack)})


RULES = """
[categories.wide]
ttl_s = 60
[[categories.wide.rules]]
text = "public"
[categories.private]
allow_caching = false
[[categories.private.rules]]
text = "^canary-private"
"""
GATED = 'pii = ["EMAIL_ADDRESS"]\n'


async def ask(proxy: Proxy, value: object, key: str, **headers: str) -> Answered:
    sent = {name.replace("_", "-"): told for name, told in headers.items()}
    return await proxy.ask(request(value), key=key, headers=sent, target=PATH)


async def held(proxy: Proxy, value: object, key: str) -> bool:
    return (await ask(proxy, value, key, cache_control="only-if-cached")).status == 200


async def admitted(proxy: Proxy, reason: str) -> bool:
    """Whether an answer met this end."""
    told = await send_raw(proxy.admin_url, request_bytes("GET", "/metrics"), "GET")
    return f'reason="{reason}"' in told.body.decode()


def holding(folder: Path, canary: str) -> list[str]:
    return [str(path) for path in folder.rglob("*") if path.is_file() and canary.encode() in path.read_bytes()]


@pytest.mark.parametrize("more", [[], TEXTS, ["a public word"], LARGE], ids=["alone", "listed", "claimed", "large"])
@pytest.mark.parametrize("named", [{}, {"x_cacheproxy_category": "default"}], ids=["", "named"])
async def test_one_input_that_is_never_cached_keeps_the_whole_list_out(
    upstream: ScriptedUpstream, tmp_path: Path, key: str, more: list[str], named: dict[str, str]
) -> None:
    canary = f"canary-private {uuid4().hex}"
    async with started(settings(tmp_path, upstream, RULES)) as proxy:
        for value in ([*more, canary], [*more, canary], *(() if more else (canary,))):
            answered = await ask(proxy, value, key, **named)
            assert (answered.outcome, answered.json()) == ("bypass", whole(request(value)))
        assert upstream.calls in (2, 3)
        for text in more:
            assert not await held(proxy, text, key)
    assert holding(tmp_path / "data", canary) == []


async def test_an_input_is_read_by_itself(upstream: ScriptedUpstream, tmp_path: Path, key: str) -> None:
    async with started(settings(tmp_path, upstream, RULES)) as proxy:
        value = ["no canary-private", "at its beginning"]
        assert (await ask(proxy, value, key)).outcome == "miss"
        assert (await ask(proxy, value, key)).outcome == "hit"
    assert holding(tmp_path / "data", "no canary-private") != [], "the same search finds what is kept"


async def test_a_rule_of_what_is_cached_tells_the_category_of_inputs(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    async with started(settings(tmp_path, upstream, RULES)) as proxy:
        for value, category in (("a public word", "wide"), ([*TEXTS, "a public word"], "wide"), (TEXTS, "default")):
            assert (await ask(proxy, value, key)).get("x-cacheproxy-category") == category


async def test_a_kept_input_is_not_served_within_a_list_that_is_kept_out(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    async with started(settings(tmp_path, upstream, RULES)) as proxy:
        await ask(proxy, TEXTS, key)
        assert await held(proxy, TEXTS, key)
        value = [*TEXTS, "canary-private"]
        assert (await ask(proxy, value, key)).outcome == "bypass"
        assert upstream.requests[-1].json()["input"] == value


@pytest.mark.parametrize("where", ["in an input", "in the answer", "in an item"])
async def test_a_list_with_personal_data_is_not_kept(
    upstream: ScriptedUpstream, tmp_path: Path, key: str, where: str
) -> None:
    mail = "anna.canary@example.com"
    value = [*TEXTS, f"write to {mail}"] if where == "in an input" else TEXTS
    told = whole(request(value))
    if where == "in the answer":
        told |= {"contact": {"mail": mail}}
    if where == "in an item":
        told["data"][1]["source"] = mail
    upstream.always(lambda _: answer(told))
    async with started(settings(tmp_path, upstream, GATED)) as proxy:
        async with asyncio.timeout(30):
            while not await admitted(proxy, "pii"):  # at first the recognisers may still be being loaded
                answered = await ask(proxy, value, key)
                assert (answered.outcome, answered.json()) == ("miss", told)
        assert not await held(proxy, TEXTS[0], key)
        upstream.always(None)
        await ask(proxy, TEXTS, key)
        assert await held(proxy, TEXTS, key)
    assert holding(tmp_path / "data", "anna.canary") == []


class _Gate:
    """Says what it is told to, and notes what it was shown."""

    def __init__(self, failing: bool = False) -> None:
        self.failing = failing
        self.shown: list[object] = []

    async def find(self, texts: object, kinds: Collection[str]) -> frozenset[str]:
        """Find nothing."""
        self.shown.append(texts)
        if self.failing:
            raise PiiUnavailable("gone")
        return frozenset()


@pytest.mark.parametrize(
    ("value", "failing", "asked", "kept"),
    [(TEXTS * 20, False, 1, True), (TEXTS, True, 1, False), ([[1, 2], [3]], False, 0, False)],
    ids=["once for a list", "failing", "tokens"],
)
async def test_what_the_gate_cannot_look_through_is_not_kept(
    upstream: ScriptedUpstream, tmp_path: Path, key: str, value: list[Any], failing: bool, asked: int, kept: bool
) -> None:
    async with running(settings(tmp_path, upstream, GATED)) as live:
        proxy, gate = Proxy(url=live.url, admin_url=live.admin_url), _Gate(failing)
        object.__setattr__(live.pipeline.parts, "pii", gate)
        assert (await ask(proxy, value, key)).json() == whole(request(value))
        await eventually_true(lambda: admitted(proxy, "kept" if kept else "pii_unavailable"), "the list is dealt with")
        assert await held(proxy, value, key) is kept
        assert len(gate.shown) == asked


async def test_an_answer_asked_for_under_an_earlier_policy_is_not_kept(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    let_go = asyncio.Event()
    upstream.play([Hold(let_go), *answer(whole(request(TEXTS)))])
    async with started(settings(tmp_path, upstream, "")) as proxy:
        asked = asyncio.create_task(ask(proxy, TEXTS, key))
        await upstream.received(1)
        rules = {"allow_caching": False, "rules": [{"text": "second"}]}
        put = await ask_admin(proxy, "PUT", "/policies/categories/private", rules)
        assert put.status in (200, 201), put.body
        let_go.set()
        answered = await asked
        assert (answered.outcome, answered.json()) == ("miss", whole(request(TEXTS)))
        assert "policy_changed" in (answered.get("cache-status") or "")
        assert not await held(proxy, TEXTS[0], key)
        assert (await ask(proxy, TEXTS, key)).outcome == "bypass"
    assert holding(tmp_path / "data", TEXTS[1]) == []


async def test_a_policy_changed_while_the_gate_looks_is_heeded(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    async with running(settings(tmp_path, upstream, GATED)) as live:
        proxy = Proxy(url=live.url, admin_url=live.admin_url)

        class Changing(_Gate):
            async def find(self, texts: object, kinds: Collection[str]) -> frozenset[str]:
                await ask_admin(proxy, "PATCH", "/policies/categories/default", {"allow_caching": False})
                return await super().find(texts, kinds)

        object.__setattr__(live.pipeline.parts, "pii", Changing())
        assert (await ask(proxy, TEXTS, key)).outcome == "miss"
        await eventually_true(lambda: admitted(proxy, "policy_changed"), "the list is dealt with")
    assert holding(tmp_path / "data", TEXTS[1]) == []
