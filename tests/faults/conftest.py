"""What several files of faults share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest_asyncio

from tests.support.limits import HASTY
from tests.support.proxy import Proxy, proxy_settings, started

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import pytest

    from tests.support.upstream import ScriptedUpstream


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hasty(module_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    """A proxy with little patience."""
    settings = proxy_settings(
        module_upstream.url, tmp_path_factory.mktemp("data"), server=HASTY, store={"url": "memory://"}
    )
    async with started(settings) as live:
        yield live
