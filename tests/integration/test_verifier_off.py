"""Without a verifier: what has a threshold is served by it, what has none says why it is not, and the start says so."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import structlog

from tests.support.admin import ask_admin
from tests.support.proxy import PARAPHRASE, QUESTION, chat, proxy_settings, started

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.upstream import ScriptedUpstream

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_categories_without_a_threshold_become_exact_only_and_the_start_names_them(
    upstream: ScriptedUpstream, tmp_path: Path, key: str
) -> None:
    settings = proxy_settings(upstream.url, tmp_path / "data", verifier={"path": "off"})
    with structlog.testing.capture_logs() as logs:
        async with started(settings) as proxy:
            law = {"x-cacheproxy-category": "law"}
            await proxy.fill(chat(QUESTION), key=key, headers=law)
            asked = await proxy.ask(chat(PARAPHRASE), key=key, headers=law)
            assert (asked.outcome, asked.reason) == ("miss", "no_verifier")
            shown = await ask_admin(proxy, "POST", "/explain", {"text": PARAPHRASE, "key": key, "category": "law"})
            assert "no_verifier" in shown.body.decode()
    [told] = [line for line in logs if line["event"] == "verifier_off"]
    assert (told["log_level"], told["exact_only"]) == ("warning", ["math", "law", "health"])


async def test_with_a_verifier_the_start_warns_of_nothing(upstream: ScriptedUpstream, tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        async with started(proxy_settings(upstream.url, tmp_path / "data")):
            pass
    assert "verifier_off" not in [line["event"] for line in logs]
