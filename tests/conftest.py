"""The rig every black-box test stands on: a scripted backend, a proxy in front of it, and official clients."""

from __future__ import annotations

import asyncio
import gc
from collections import defaultdict
from typing import TYPE_CHECKING
from uuid import uuid4

import openai
import pytest
import pytest_asyncio

from tests.support.proxy import Proxy, proxy_settings, started
from tests.support.redis import RedisServer, redis_server
from tests.support.upstream import ScriptedUpstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where files are dealt out to processes: first those that may take longest, so that none is left over."""
    if hasattr(config, "workerinput"):  # one of pytest-xdist's processes
        usual_s = float(config.getini("timeout"))
        allowed_s: dict[Path, float] = defaultdict(float)
        for item in items:
            if item.get_closest_marker("slow"):
                asked = item.get_closest_marker("timeout")
                allowed_s[item.path] += asked.args[0] if asked else usual_s
        items.sort(key=lambda item: -allowed_s[item.path])


def pytest_collection_finish() -> None:
    """Spare the collector the thousands of collected tests: walking them takes a second, in the midst of some test."""
    gc.collect()
    gc.freeze()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def module_upstream() -> AsyncIterator[ScriptedUpstream]:
    """One backend for the module."""
    async with ScriptedUpstream() as upstream:
        yield upstream


@pytest.fixture
def upstream(module_upstream: ScriptedUpstream) -> Iterator[ScriptedUpstream]:
    """The module's backend, with nothing scripted and nothing recorded."""
    module_upstream.reset()
    yield module_upstream
    module_upstream.reset()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def proxy(module_upstream: ScriptedUpstream, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Proxy]:
    """One proxy for the module, with default settings. Tests are kept apart by their keys: a key is a tenant."""
    async with started(proxy_settings(module_upstream.url, tmp_path_factory.mktemp("data"))) as live:
        yield live


@pytest_asyncio.fixture
async def redis() -> AsyncIterator[RedisServer]:
    """An empty engine, this test's own."""
    async with redis_server() as server:
        yield server


@pytest.fixture
def key() -> str:
    """A key no other test uses, hence an empty cache."""
    return f"sk-test-{uuid4().hex}"


@pytest.fixture
def other_key() -> str:
    """Another tenant's key."""
    return f"sk-other-{uuid4().hex}"


@pytest_asyncio.fixture(loop_scope="module")
async def openai_client(proxy: Proxy, key: str) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official client, asynchronous; it never retries by itself."""
    async with openai.AsyncOpenAI(api_key=key, base_url=f"{proxy.url}/v1", max_retries=0, timeout=20) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="module")
async def sync_openai_client(proxy: Proxy, key: str) -> AsyncIterator[openai.OpenAI]:
    """The official client, synchronous: to be called in another thread."""
    client = openai.OpenAI(api_key=key, base_url=f"{proxy.url}/v1", max_retries=0, timeout=20)
    yield client
    await asyncio.to_thread(client.close)
