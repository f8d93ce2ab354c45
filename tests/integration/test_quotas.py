"""Quotas of a pack, as callers and operators meet them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client.parser import text_string_to_metric_families

from tests.support.polling import eventually_true
from tests.support.proxy import chat, proxy_settings, started
from tests.support.rawhttp import Connection, request_bytes

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.proxy import Proxy
    from tests.support.upstream import ScriptedUpstream

import pytest

pytestmark = pytest.mark.asyncio(loop_scope="module")

PACK = """
schema = 1
name = "two"
description = "Two categories, half of the store each."
default_category = "calm"

[categories.calm]
quota = 0.5

[categories.flood]
quota = 0.5
"""


async def counted(proxy: Proxy, name: str) -> dict[tuple[str, ...], float]:
    """Return a metric's values by its labels."""
    async with await Connection.open(proxy.admin_url) as connection:
        connection.send(request_bytes("GET", "/metrics"))
        text = (await connection.read_response("GET")).body.decode()
    return {
        tuple(sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


async def test_a_flood_of_one_category_leaves_the_others_answers_and_is_counted(
    upstream: ScriptedUpstream, tmp_path: Path, key: str, other_key: str
) -> None:
    (tmp_path / "policy.toml").write_text(PACK, encoding="utf-8")
    limits = {"url": "memory://", "max_entries": 20}
    config = proxy_settings(upstream.url, tmp_path / "data", policies={"pack": str(tmp_path)}, store=limits)
    flood = {"x-cacheproxy-category": "flood"}
    async with started(config) as proxy:
        calm = [chat(f"Calm question {number}?") for number in range(9)]
        for body in calm:
            await proxy.fill(body, key=key)
        for number in range(60):
            assert (await proxy.ask(chat(f"Flood {number}?"), key=other_key, headers=flood)).status == 200

        async def swept() -> bool:
            return sum((await counted(proxy, "cacheproxy_category_entries")).values()) <= 20

        await eventually_true(swept, "the sweeper has made room")
        evictions = await counted(proxy, "cacheproxy_evictions_total")
        assert set(evictions) == {("flood", "over_quota")}
        assert evictions["flood", "over_quota"] >= 49
        held = await counted(proxy, "cacheproxy_category_entries")
        assert held["calm",] == 9
        for body in calm:
            assert (await proxy.ask(body, key=key)).outcome == "hit"
