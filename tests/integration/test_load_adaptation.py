"""A loaded backend lowers thresholds as far as their floors, for as long as it is loaded."""

from __future__ import annotations

import asyncio
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from cacheproxy.policy.loader import find_pack, load_pack
from tests.support.openai_wire import completion, encode
from tests.support.polling import eventually_true
from tests.support.proxy import PARAPHRASE, QUESTION, UNRELATED, Proxy, chat, proxy_settings, started
from tests.support.rawhttp import Connection, request_bytes
from tests.support.upstream import Hold, ScriptedUpstream, answer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.rawhttp import Exchange

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEY = "sk-of-one-tenant"
LIMIT = 4
BASE, FLOOR = 1.0, 0.9

PACK = """
schema = 1
name = "yielding"
description = "Gives way to load in one category, and in another one not."
default_category = "support"

[categories.support]
semantic = true
load_threshold_drop = {drop}

[categories.law]
semantic = true

[encoders.fp32]
fingerprint = "{fingerprint}"
calibrated_on = "nothing"
thresholds = {{ support = {base}, law = {base} }}
floors = {{ support = {floor}, law = {floor} }}
"""


def pack(directory: Path, drop: float) -> Path:
    fingerprint = load_pack(find_pack("balanced")).encoders["onnx-fp32"].fingerprint
    directory.mkdir(exist_ok=True)
    text = PACK.format(drop=drop, fingerprint=fingerprint, base=BASE, floor=FLOOR)
    (directory / "policy.toml").write_text(text)
    return directory


@asynccontextmanager
async def limited(upstream: ScriptedUpstream, tmp_path: Path, *, drop: float = 0.2) -> AsyncIterator[Proxy]:
    settings = proxy_settings(
        upstream.url,
        tmp_path / "data",
        upstream={"max_concurrency": LIMIT},
        load={"alpha": 1.0, "low": 0.5, "hold_s": 0.6},
        policies={"pack": str(pack(tmp_path / "pack", drop))},
        store={"url": "memory://"},
        encoder={"precision": "fp32", "device": "cpu"},
    )
    async with started(settings) as proxy:
        yield proxy


async def metrics(proxy: Proxy) -> str:
    async with await Connection.open(proxy.admin_url) as connection:
        connection.send(request_bytes("GET", "/metrics"))
        return (await connection.read_response("GET")).body.decode()


async def load(proxy: Proxy) -> float:
    told = re.search(r'^cacheproxy_load\{upstream="default"\} (\S+)$', await metrics(proxy), re.MULTILINE)
    return float(told.group(1)) if told else -1.0


async def threshold(proxy: Proxy, category: str) -> float:
    headers = {"cache-control": "only-if-cached", "x-cacheproxy-category": category}
    return float((await proxy.ask(chat(UNRELATED), key=KEY, headers=headers)).get("x-cacheproxy-threshold") or 0)


async def occupy(proxy: Proxy, upstream: ScriptedUpstream, until: asyncio.Event) -> list[asyncio.Task[Exchange]]:
    """Fill every place of the backend with requests that it answers only later."""
    upstream.reset()
    upstream.always([Hold(until), *answer(encode(completion("late")))])
    busy = [asyncio.create_task(proxy.begin(chat(f"{uuid4().hex}?"), key=f"sk-{place}")) for place in range(LIMIT)]
    await upstream.received(LIMIT)
    return busy


async def has_load(proxy: Proxy, wanted: float) -> None:
    async def reached() -> bool:
        return await load(proxy) == wanted

    await eventually_true(reached, f"a load of {wanted}", within_s=10)


async def test_thresholds_give_way_to_a_loaded_backend_and_come_back(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    until = asyncio.Event()
    async with limited(upstream, tmp_path) as proxy:
        await proxy.fill(chat(QUESTION), key=KEY, headers={"x-cacheproxy-category": "support"})
        strict = await proxy.ask(chat(PARAPHRASE), key=KEY, headers={"cache-control": "only-if-cached"})
        assert (strict.status, strict.reason) == (504, "below_threshold")
        assert await threshold(proxy, "support") == BASE

        busy = await occupy(proxy, upstream, until)
        await has_load(proxy, 1.0)
        assert await threshold(proxy, "support") == FLOOR
        assert await threshold(proxy, "law") == BASE
        eased = await proxy.ask(chat(PARAPHRASE), key=KEY)
        assert (eased.outcome, eased.tier) == ("hit", "semantic")
        similarity = float(eased.get("x-cacheproxy-similarity") or 0)
        assert FLOOR <= similarity < BASE

        until.set()
        for exchange in await asyncio.gather(*busy):
            assert (await exchange.rest()).status == 200
            exchange.leave()
        await has_load(proxy, 0.0)
        assert await threshold(proxy, "support") == BASE
        again = await proxy.ask(chat(PARAPHRASE), key=KEY, headers={"cache-control": "only-if-cached"})
        assert again.status == 504


async def test_a_callers_own_threshold_is_never_lowered(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    until = asyncio.Event()
    async with limited(upstream, tmp_path) as proxy:
        busy = await occupy(proxy, upstream, until)
        await has_load(proxy, 1.0)
        headers = {"cache-control": "only-if-cached", "x-cacheproxy-threshold": "0.97"}
        asked = await proxy.ask(chat(UNRELATED), key=KEY, headers=headers)
        assert float(asked.get("x-cacheproxy-threshold") or 0) == pytest.approx(0.97)
        until.set()
        for exchange in await asyncio.gather(*busy):
            await exchange.rest()
            exchange.leave()


async def test_whom_the_backend_has_no_place_for_is_told_before_the_encoder_gets_to_it(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        settings = proxy_settings(
            upstream.url,
            tmp_path / "data",
            upstream={"max_concurrency": 1, "queue": 4},
            store={"url": "memory://"},
            encoder={"precision": "fp32", "device": "cpu"},
        )
        async with started(settings) as proxy:
            await proxy.fill(chat(), key=KEY)
            hold = asyncio.Event()

            async def waits() -> bool:
                return 'cacheproxy_upstream_waiting{upstream="default"} 1.0' in await metrics(proxy)

            upstream.always([Hold(hold), *answer(encode(completion("Late.")))])
            first = [asyncio.create_task(proxy.ask(chat(f"Who is number {n}?"), key=KEY)) for n in range(2)]
            await eventually_true(waits, "one is answered, one waits")
            flood = [asyncio.create_task(proxy.ask(chat(f"Where is town {n}?"), key=KEY)) for n in range(120)]
            told = await asyncio.gather(*flood)
            assert {answered.status for answered in told} == {503}
            assert all(answered.get("retry-after") for answered in told)
            reasons = [answered.reason for answered in told]
            assert reasons.count("overloaded") > 60  # the others were told while the encoder had time for them
            assert (await proxy.ask(chat(), key=KEY)).tier == "exact"
            hold.set()
            assert {answered.status for answered in await asyncio.gather(*first)} == {200}
