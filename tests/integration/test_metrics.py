"""What the parts count themselves can be read as Prometheus metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.support.proxy import chat
from tests.support.rawhttp import Connection, request_bytes

if TYPE_CHECKING:
    from tests.support.proxy import Proxy

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def figures(proxy: Proxy) -> dict[str, float]:
    async with await Connection.open(proxy.admin_url) as connection:
        connection.send(request_bytes("GET", "/metrics"))
        text = (await connection.read_response("GET")).body.decode()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }


async def test_a_kept_answer_moves_the_figures_of_every_part(proxy: Proxy, key: str) -> None:
    before = await figures(proxy)
    await proxy.fill(chat("How long is the river Nile?"), key=key)
    after = await figures(proxy)
    moved = {name: after[name] - before[name] for name in after}
    assert moved["cacheproxy_store_entries"] == 1
    assert moved["cacheproxy_store_bytes"] > 0
    assert moved["cacheproxy_entries_indexed"] == 1
    assert moved["cacheproxy_index_partitions"] == 1
    assert moved["cacheproxy_encoder_texts_total"] == 1
    assert after["cacheproxy_store_corrupt_records_total"] == 0
    assert after["cacheproxy_background_failures_total"] == 0
