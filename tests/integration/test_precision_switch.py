"""Another precision of the encoder, and back: what is found of what was kept before (docs/tuning.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.proxy import PARAPHRASE, QUESTION, Answered, Proxy, chat, proxy_settings, started

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from tests.support.upstream import ScriptedUpstream

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow]


def verified(answer: Answered) -> bool:
    """Whether it was served by similarity, and the verifier said how probably it is right."""
    return (answer.outcome, answer.tier) == ("hit", "semantic") and answer.get("x-cacheproxy-probability") is not None


async def test_another_precision_finds_by_similarity_only_what_it_kept_and_exact_hits_go_on(
    upstream: ScriptedUpstream, key: str, tmp_path: Path
) -> None:
    def proxy(precision: str) -> AbstractAsyncContextManager[Proxy]:
        return started(proxy_settings(upstream.url, tmp_path, encoder={"precision": precision}))

    async with proxy("fp32") as live:
        await live.fill(chat(), key=key)
        assert verified(await live.ask(chat(PARAPHRASE), key=key))
    async with proxy("int8") as live:
        assert (await live.ask(chat(), key=key)).tier == "exact"
        await live.fill(chat(PARAPHRASE), key=key)
        assert verified(await live.ask(chat(f"{PARAPHRASE} Thanks"), key=key))
    async with proxy("fp32") as live:
        assert (await live.ask(chat(PARAPHRASE), key=key)).tier == "exact"
        assert verified(await live.ask(chat(f"{QUESTION} Thanks"), key=key))
