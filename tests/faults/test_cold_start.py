"""Row 95: an empty cache, and everybody asks at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from tests.support.openai_wire import completion
from tests.support.packs import changed_pack
from tests.support.polling import eventually
from tests.support.proxy import chat, openai_error, proxy_settings, started
from tests.support.upstream import Hold, Received, Step, answer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cacheproxy.settings import Settings
    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMIT, QUEUE, TENANTS = 8, 64, 8


def cold(upstream: ScriptedUpstream, folder: Path, limits: Mapping[str, float]) -> Settings:
    """Return settings of a proxy that has seen nothing yet, and classifies and embeds nothing."""
    policies = {"pack": str(changed_pack(folder, semantic=False))}
    return proxy_settings(upstream.url, folder / "data", upstream=limits, policies=policies, store={"url": "memory://"})


@pytest.mark.slow
async def test_a_burst_on_an_empty_cache_is_held_to_the_backends_limit_and_the_queues_bound(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """Of 200 distinct questions, 8 are with the backend, 64 wait, the others are told at once to come back."""
    release = asyncio.Event()
    upstream.always([Hold(release), *answer(completion("At last."))])
    limits = {"max_concurrency": LIMIT, "queue": QUEUE, "queue_timeout_s": 60.0}
    async with started(cold(upstream, tmp_path, limits)) as proxy:
        asking = [
            asyncio.create_task(proxy.ask(chat(f"Question number {number}?"), key=f"sk-{number % TENANTS}"))
            for number in range(200)
        ]
        await eventually(lambda: sum(one.done() for one in asking) == 200 - LIMIT - QUEUE, "the rest are shed", 20.0)
        await eventually(lambda: upstream.calls == LIMIT, "the permits are used")
        shed = [one.result() for one in asking if one.done()]
        for one in shed:
            assert one.status == 503
            assert int(one.get("retry-after") or 0) >= 1
            openai_error(one, "upstream_busy")
        release.set()
        answers = [one for one in await asyncio.gather(*asking) if one not in shed]
        assert [one.status for one in answers] == [200] * (LIMIT + QUEUE)
        assert upstream.calls == LIMIT + QUEUE


@pytest.mark.slow
async def test_a_cold_cache_never_has_more_at_the_backend_than_its_limit(
    upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """The same burst in front of a backend that answers: every question is answered, never more than 8 at once."""
    open_now = most = 0

    async def end(request: Received) -> None:
        nonlocal open_now
        await eventually(lambda: request.answered, "an answer", 30.0)
        open_now -= 1

    ends: list[asyncio.Task[None]] = []

    def count(request: Received) -> list[Step]:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        ends.append(asyncio.create_task(end(request)))
        return answer(completion("Soon."))

    upstream.always(count)
    limits = {"max_concurrency": LIMIT, "queue": 400, "queue_timeout_s": 60.0}
    async with started(cold(upstream, tmp_path, limits)) as proxy:
        questions = [(chat(f"Question number {number % 150}?"), f"sk-{number % 150 % 50}") for number in range(300)]
        answers = await asyncio.gather(*(proxy.ask(body, key=key) for body, key in questions))
        assert {one.status for one in answers} == {200}
        assert upstream.calls == 150, "who asks the same at once shares an exchange"
        await asyncio.gather(*ends)
    assert most <= LIMIT
