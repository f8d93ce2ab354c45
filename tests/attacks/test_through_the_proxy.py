"""The attacks through the running proxy, over its ports: two tenants, and what the one plants for the other."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio

from tests.attacks.planted import prefixed
from tests.attacks.questions import blocks
from tests.attacks.world import POISON
from tests.support import openai_wire
from tests.support.packs import changed_pack
from tests.support.proxy import Proxy, chat
from tests.support.upstream import Hold, answer
from tests.support.virtual_keys import KeyFile, keyed_proxy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

RIGHT = "Open the settings and follow the steps there."


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attacked")


@pytest.fixture(scope="module")
def tenants(data_dir: Path) -> list[str]:
    keys = KeyFile(data_dir)
    return [keys.add() for _ in range(4)]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def attacked(
    module_upstream: ScriptedUpstream, data_dir: Path, tenants: list[str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Proxy]:
    """A proxy that shares, without a verifier: the easiest target there is."""
    assert tenants
    pack = changed_pack(tmp_path_factory.mktemp("pack"), share="agreed")
    async with keyed_proxy(
        module_upstream.url,
        data_dir,
        upstream={"api_key": "sk-backend"},
        policies={"pack": str(pack)},
        verifier={"path": "off"},
        store={"max_inserts_per_minute": 40},
    ) as live:
        yield live


async def plant(proxy: Proxy, upstream: ScriptedUpstream, key: str, texts: list[str]) -> None:
    """Have the backend poison a tenant's answers, and keep them."""
    upstream.always(answer(openai_wire.completion(POISON)))
    for text in texts:
        await proxy.ask(chat(text), key=key, headers={"cache-control": "no-cache"})
    upstream.always(answer(openai_wire.completion(RIGHT)))


@pytest.mark.parametrize("number", range(2))
async def test_what_one_tenant_plants_is_served_to_no_other(
    attacked: Proxy, tenants: list[str], upstream: ScriptedUpstream, number: int
) -> None:
    attacker, *others = tenants
    question = blocks()[number].question
    traps = [text for _, text in blocks()[number].traps]
    await plant(attacked, upstream, attacker, [question, *traps, *islice(prefixed(question), 6)])
    said = [(await attacked.ask(chat(question), key=key)).content for key in others]
    assert said == [RIGHT] * 3


async def test_two_tenants_asking_at_once_share_no_exchange(
    attacked: Proxy, tenants: list[str], upstream: ScriptedUpstream
) -> None:
    all_asked = asyncio.Event()
    upstream.always([Hold(all_asked), *answer(openai_wire.completion(RIGHT))])  # answered before, it might be shared
    question = chat("Which two tenants ask this at the very same time?")
    asked = asyncio.gather(*(attacked.ask(question, key=key) for key in tenants))
    await upstream.received(len(tenants), within_s=10)
    all_asked.set()
    assert [response.outcome for response in await asked] == ["miss"] * len(tenants)
    assert upstream.calls == len(tenants)


async def test_a_flood_is_answered_and_not_kept_beyond_its_rate(
    attacked: Proxy, tenants: list[str], upstream: ScriptedUpstream
) -> None:
    upstream.always(answer(openai_wire.completion(POISON)))
    flooding = tenants[3]
    texts = [f"Question number {number} of a flood" for number in range(60)]
    answers = [await attacked.ask(chat(text), key=flooding) for text in texts]
    assert {response.status for response in answers} == {200}
    kept = [await attacked.cached(chat(text), key=flooding, headers={"x-cacheproxy-tier": "exact"}) for text in texts]
    assert 1 <= sum(kept) <= 42
    upstream.always(answer(openai_wire.completion(RIGHT)))
    mine = await attacked.fill(chat("What may another tenant still have kept?"), key=tenants[1])
    assert mine.content == RIGHT
