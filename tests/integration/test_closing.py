"""The end of a proxy: what a flight uses while it ends is still open."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from cacheproxy.app import assemble
from cacheproxy.errors import PiiUnavailable
from tests.support.proxy import proxy_settings

if TYPE_CHECKING:
    from pathlib import Path


async def test_a_late_fill_still_has_its_thread_and_the_gate(tmp_path: Path) -> None:
    done: list[str] = []
    async with assemble(proxy_settings("http://127.0.0.1:9/v1", tmp_path)) as house:
        route, gate = house.edge._cached["/v1/embeddings"], house.pipeline.parts.pii
        assert gate is not None
        begun = asyncio.Event()

        async def fill() -> None:
            try:
                begun.set()
                await asyncio.Event().wait()
            finally:
                done.append(await route._aside(lambda: "understood"))
                with contextlib.suppress(PiiUnavailable):  # without the library: said so by the thread itself
                    await gate.find("someone@example.com", ["EMAIL_ADDRESS"])
                done.append("looked through")

        house.pipeline.flights._spawn(fill())
        await begun.wait()
    assert done == ["understood", "looked through"]
