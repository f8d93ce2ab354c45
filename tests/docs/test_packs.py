"""A shipped pack's README states the numbers that its policy has."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from cacheproxy.policy.loader import find_pack, load_pack
from tests.support.markdown import ROOT, read

if TYPE_CHECKING:
    from cacheproxy.policy.pack import Category, Pack

PACKS = sorted(path.parent.name for path in (ROOT / "policies").glob("*/policy.toml"))
UNITS = {"minute": 60, "hour": 3600, "day": 86_400}


def seconds(stated: str) -> float:
    """`30 days` in seconds, `-` as none."""
    if stated == "-":
        return 0
    number, unit = stated.split(" ")
    return int(number) * UNITS[unit.removesuffix("s")]


VERIFIED_ONLY = {"math", "law", "health"}
"""Without a threshold: only what is verified is served by similarity."""


def similar(pack: Pack) -> dict[str, Category]:
    return {name: rules for name, rules in pack.categories.items() if rules.allow_caching and rules.semantic}


@pytest.mark.parametrize("name", PACKS)
def test_the_thresholds_stated_are_those_in_force(name: str) -> None:
    pack = load_pack(find_pack(name))
    encoders = list(pack.encoders)
    rows = read(f"policies/{name}/README.md").table("category", *encoders, "floor under load (onnx-fp32)")
    assert {row[0]: [float(cell) for cell in row[1:-1]] for row in rows} == {
        category: [pack.encoders[encoder].thresholds[category] for encoder in encoders]
        for category in similar(pack)
        if category not in VERIFIED_ONLY
    }
    floors = pack.encoders["onnx-fp32"].floors
    assert {row[0]: row[-1] for row in rows} == {
        category: f"{floors[category]:.3f}" if rules.load_threshold_drop and category in floors else "-"
        for category, rules in similar(pack).items()
        if category not in VERIFIED_ONLY
    }


@pytest.mark.parametrize("name", PACKS)
def test_the_behaviour_stated_is_that_in_force(name: str) -> None:
    pack = load_pack(find_pack(name))
    rows = read(f"policies/{name}/README.md").table(
        "category", "answers", "lifetime", "stale at most", "share of the store", "under full load", "personal data"
    )
    assert [row[0] for row in rows] == list(pack.categories)
    for category, answers, lifetime, stale, share, load, personal in rows:
        rules = pack.categories[category]
        kinds = ("similar" if rules.semantic else "exact only") if rules.allow_caching else "never cached"
        assert answers == kinds, category
        if not rules.allow_caching:
            assert {lifetime, stale, share, load, personal} == {"-"}, category
            continue
        assert seconds(lifetime) == rules.ttl_s, category
        assert seconds(stale) == rules.max_stale_s, category
        assert share == f"{rules.quota * 100:g} %", category
        given_way = (
            [f"threshold -{rules.load_threshold_drop:g}"] if rules.semantic and rules.load_threshold_drop else []
        )
        given_way += [f"lifetime x{1 + rules.load_ttl_stretch:g}"] if rules.load_ttl_stretch else []
        assert load == (", ".join(given_way) or "unchanged"), category
        assert personal == (f"{len(rules.pii)} kinds refused" if rules.pii else "not looked for"), category


@pytest.mark.parametrize("name", PACKS)
def test_where_a_small_model_may_answer_is_stated_as_it_is(name: str) -> None:
    prose = " ".join(read(f"policies/{name}/README.md").prose.split())
    [stated] = re.findall(r"A small model may answer in (no category|`[^,.:]*)[,.:]", prose)
    allowed = {category for category, rules in load_pack(find_pack(name)).categories.items() if rules.augment == "auto"}
    assert set(re.findall(r"`(\w+)`", stated)) == allowed


def test_what_holds_in_every_category_is_stated_as_it_is() -> None:
    pack = load_pack(find_pack("balanced"))
    stated = {rule: value for rule, value, _ in read("policies/balanced/README.md").table("rule", "value", "why")}
    for category, rules in pack.categories.items():
        assert stated["candidates judged"] == f"{rules.candidates} nearest", category
        assert stated["temperature"] == f"above {rules.max_temperature:g} bypasses", category
        assert f"`tool_calls = {str(rules.tool_calls).lower()}`" in stated["answers that call tools"], category
    assert f"margin below {pack.classifier.doubt:g}" in stated["category"]
