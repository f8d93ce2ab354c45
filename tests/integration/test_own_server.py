"""The application in a server of the operator's own, by `cacheproxy.app:create_app`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import httpx2

from cacheproxy.app import create_app
from tests.support.proxy import CHAT, chat, proxy_settings
from tests.support.upstream import ScriptedUpstream

if TYPE_CHECKING:
    from pathlib import Path


async def test_an_application_that_is_started_again_serves_again(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        app: Any = create_app(proxy_settings(upstream.url, tmp_path))
        outcomes = []
        for _ in range(2):
            transport = httpx2.ASGITransport(app=app)
            async with app.lifespan(), httpx2.AsyncClient(transport=transport, base_url="http://proxy.test") as client:
                answer = await client.post(CHAT, json=chat(), headers={"authorization": "Bearer k"})
                outcomes.append((answer.status_code, answer.headers["x-cacheproxy-outcome"]))
        assert outcomes == [(200, "miss"), (200, "hit")]
