"""A shipped pack's README states the numbers that its policy has."""

from __future__ import annotations

import re

import pytest

from cacheproxy.policy.loader import find_pack, load_pack
from tests.support.markdown import ROOT, read

PACKS = sorted(path.parent.name for path in (ROOT / "policies").glob("*/policy.toml"))


@pytest.mark.parametrize("name", PACKS)
def test_the_thresholds_stated_are_those_in_force(name: str) -> None:
    pack = load_pack(find_pack(name))
    rows = read(f"policies/{name}/README.md").table(
        "encoder", "threshold", "95 % bootstrap interval", "average precision"
    )
    stated = {encoder: float(threshold) for encoder, threshold, _, _ in rows}
    assert stated == {encoder: told.thresholds[pack.default_category] for encoder, told in pack.encoders.items()}


@pytest.mark.parametrize("name", PACKS)
def test_the_behaviour_stated_is_that_in_force(name: str) -> None:
    pack = load_pack(find_pack(name))
    rules = pack.categories[pack.default_category]
    stated = {rule: value for rule, value, _ in read(f"policies/{name}/README.md").table("rule", "value", "why")}
    assert stated["similar questions"].startswith("served") is rules.semantic
    assert stated["candidates judged"] == f"{rules.candidates} nearest"
    assert stated["temperature"] == f"above {rules.max_temperature:g} bypasses"
    [days] = re.findall(r"^(\d+) days?$", stated["lifetime"])
    assert int(days) * 86_400 == rules.ttl_s
