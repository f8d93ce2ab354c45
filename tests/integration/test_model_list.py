"""The list of models of several backends, where the request for it fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cacheproxy.clock import SystemClock
from cacheproxy.errors import InvalidRequest, UpstreamUnreachable
from cacheproxy.ports import Call
from cacheproxy.upstream.open import open_pool
from tests.support.proxy import proxy_settings
from tests.support.upstream import ScriptedUpstream

if TYPE_CHECKING:
    from pathlib import Path

NOWHERE = "http://127.0.0.1:9/v1"


async def listed(tmp_path: Path, default: str, other: str, headers: tuple[tuple[str, str], ...]) -> int:
    settings = proxy_settings(default, tmp_path, upstreams={"other": {"url": other, "models": ["m*"]}})
    call = Call(method="GET", target="/v1/models", headers=headers, body=b"")
    async with open_pool(settings, SystemClock()) as pool, await pool.send(call) as answer:
        return answer.status


async def test_a_request_that_cannot_be_sent_is_its_callers_error_and_no_group(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        with pytest.raises(InvalidRequest):
            await listed(tmp_path, upstream.url, upstream.url, (("x-a", "a\nb"),))
        assert upstream.calls == 0


async def test_only_the_default_backends_failure_counts(tmp_path: Path) -> None:
    async with ScriptedUpstream() as upstream:
        assert await listed(tmp_path, upstream.url, NOWHERE, ()) == 200
        with pytest.raises(UpstreamUnreachable):
            await listed(tmp_path, NOWHERE, upstream.url, ())
