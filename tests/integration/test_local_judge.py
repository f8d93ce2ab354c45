"""The embedded model as the judge: far too small to be a good one, and still nobody's answer suffers from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from cacheproxy import opening
from cacheproxy.policy.loader import POLICY_FILE, find_pack, load_pack
from tests.support.polling import eventually_true
from tests.support.proxy import ENCODERS, Proxy, chat, proxy_settings, started
from tests.support.verifiers import StepScorer

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300), pytest.mark.asyncio(loop_scope="module")]

KEPT, NEAR = "What is the largest animal in the ocean?", "What is the largest animal of the ocean? p0.6"
_WAIT_S = 120.0


def pack(folder: Path, judge: str) -> str:
    """Write a pack of one verified category that has the grey zone judged, and return where."""
    folder.mkdir()
    lines = [
        'schema = 1\nname = "test"\ndescription = "x"\ndefault_category = "default"\n[categories.default]',
        f'semantic = true\nttl_s = 1000\nmin_probability = 0.8\njudge = "{judge}"\nexplore_rate = 1.0',
    ]
    lines += [
        f'[encoders.{name}]\nfingerprint = "{one.fingerprint}"\ncalibrated_on = "x"\nverify_from = 0.5\n'
        "thresholds = { default = 0.999 }"
        for name, one in load_pack(find_pack("balanced")).encoders.items()
    ]
    (folder / POLICY_FILE).write_text("\n".join([*lines, ""]), encoding="utf-8")
    return str(folder)


async def learnt(proxy: Proxy) -> dict[tuple[str, str], float]:
    """Return what came of comparing and judging, by why and what, as counted."""
    metrics = await Proxy(url=proxy.admin_url, admin_url=proxy.admin_url).call("GET", "/metrics")
    families = text_string_to_metric_families(metrics.body.decode())
    samples = [one for family in families for one in family.samples if one.name == "cacheproxy_learning_total"]
    return {(one.labels["source"], one.labels["came"]): one.value for one in samples}


async def ready(proxy: Proxy) -> bool:
    return (await proxy.call("GET", "/readyz")).status == 200


@pytest.mark.parametrize("judge", ["async", "inline"])
async def test_an_embedded_model_may_judge_and_every_caller_is_answered(
    tmp_path: Path, key: str, monkeypatch: pytest.MonkeyPatch, judge: str
) -> None:
    monkeypatch.setattr(opening, "open_verifier", lambda settings: StepScorer())
    settings = proxy_settings(
        "local",
        tmp_path / "data",
        upstream={"local_cache_dir": str(ENCODERS.parent), "first_byte_timeout_s": _WAIT_S},
        policies={"pack": pack(tmp_path / "pack", judge)},
        learn={"shadow": True, "judge_timeout_ms": 60_000, "timeout_s": _WAIT_S},
    )
    asked: dict[str, Any] = {"temperature": 0}
    async with started(settings) as proxy:
        await eventually_true(lambda: ready(proxy), "the model is ready", within_s=_WAIT_S)
        first = await proxy.fill(chat(KEPT, **asked), key=key)  # short enough to end by itself: it is kept
        found = await proxy.ask(chat(NEAR, **asked), key=key)
        assert (found.status, found.complete) == (200, True), found.body[:300]
        assert (found.outcome, found.reason) in {("hit", "judged"), ("miss", "improbable")}
        assert found.content.strip()
        if found.outcome == "hit":
            assert found.content == first.content

        async def counted() -> bool:
            found = await learnt(proxy)
            return sum(found.values()) >= 1 if judge == "inline" else any(why == "explored" for why, _ in found)

        await eventually_true(counted, "what was found out is counted", within_s=_WAIT_S)
        told = await learnt(proxy)
        assert {came for why, came in told if why == "judge"} <= {"right", "wrong", "no_word"}
        assert {came for why, came in told if why == "explored"} <= {"right", "wrong", "unsure"}
        if judge == "inline":
            assert any(why == "judge" for why, _ in told)
        again = await proxy.ask(chat(KEPT, **asked), key=key)
        assert (again.outcome, again.tier, again.content) == ("hit", "exact", first.content)
        assert (await proxy.call("GET", "/readyz")).status == 200
