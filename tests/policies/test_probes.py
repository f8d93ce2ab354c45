from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cacheproxy import settings
from cacheproxy.embed.locate import locate
from cacheproxy.embed.open import open_encoder
from cacheproxy.evaluate.check import check_pack
from cacheproxy.policy.loader import find_pack, load_pack
from cacheproxy.policy.probes import load_probes
from cacheproxy.verifying import open_verifier
from tests.support.proxy import ENCODERS

if TYPE_CHECKING:
    from pathlib import Path

PACKS = sorted(file.parent.name for file in find_pack("balanced").parent.glob("*/policy.toml"))
PRECISIONS = ["fp32", pytest.param("int8", marks=pytest.mark.slow)]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("name", PACKS)
def test_every_probe_of_a_shipped_pack_holds(name: str, precision: str, tmp_path: Path) -> None:
    encoder = settings.Encoder(device="cpu", precision=precision, cache_dir=str(ENCODERS))
    chosen = settings.Settings(encoder=encoder)
    report = check_pack(find_pack(name), lambda: open_encoder(encoder, tmp_path), lambda: open_verifier(chosen))
    assert report.results
    assert report.classified
    assert report.problems == ()


@pytest.mark.parametrize("name", PACKS)
def test_a_shipped_pack_is_calibrated_for_the_gpu_encoder_too(name: str) -> None:
    pack = load_pack(find_pack(name))
    fingerprint = locate(settings.Encoder().name).fingerprint("torch-fp16", "float16")
    semantic = {category for category, rules in pack.categories.items() if rules.semantic and rules.allow_caching}
    decided = semantic - set(VERIFIED_ONLY)
    assert {category for category in decided if pack.threshold(category, fingerprint) is None} == set()
    assert {category for category in semantic if pack.verify_from(category, fingerprint) is None} == set()


@pytest.mark.parametrize("name", PACKS)
def test_a_shipped_pack_is_whole(name: str) -> None:
    directory = find_pack(name)
    pack = load_pack(directory)
    assert pack.name == name
    probes = load_probes(directory, pack).probes
    assert {probe.expect for probe in probes} == {"hit", "miss"}
    assert len({(probe.cached, probe.asked, probe.category) for probe in probes}) == len(probes)
    assert (directory / "README.md").is_file()


CATEGORIES = [
    *("default", "code", "api_docs", "support", "chat", "math", "law", "health", "finance", "news", "personal"),
]
VERIFIED_ONLY = ["math", "law", "health"]
SAFETY_CRITICAL = ["math", "law", "health", "finance", "news", "personal"]


@pytest.mark.parametrize("name", PACKS)
def test_every_shipped_pack_has_the_same_categories_and_examples(name: str) -> None:
    pack = load_pack(find_pack(name))
    assert list(pack.categories) == CATEGORIES
    first = load_pack(find_pack("balanced")).categories
    assert {category: rules.examples for category, rules in pack.categories.items()} == {
        category: rules.examples for category, rules in first.items()
    }
    assert all(len(rules.examples) >= 10 for rules in pack.categories.values())


@pytest.mark.parametrize("name", PACKS)
def test_load_never_touches_what_is_safety_critical_or_volatile(name: str) -> None:
    pack = load_pack(find_pack(name))
    for category in SAFETY_CRITICAL:
        rules = pack.categories[category]
        assert (rules.load_threshold_drop, rules.load_ttl_stretch) == (0, 0), category
        assert (rules.max_stale_s, rules.stale_if_error_s, rules.stale_while_revalidate_s) == (0, 0, 0), category


@pytest.mark.parametrize("name", PACKS)
def test_where_numbers_decide_nothing_is_served_by_similarity_that_was_not_verified(name: str) -> None:
    pack = load_pack(find_pack(name))
    for category in VERIFIED_ONLY:
        rules = pack.categories[category]
        assert [told.thresholds.get(category) for told in pack.encoders.values()] == [None] * len(pack.encoders)
        if rules.semantic and rules.allow_caching:
            assert rules.verify
            assert rules.min_probability >= pack.categories["default"].min_probability
            assert rules.delta < pack.categories["default"].delta
    assert not pack.categories["personal"].allow_caching


@pytest.mark.parametrize("name", PACKS)
def test_a_load_threshold_drop_has_a_floor(name: str) -> None:
    pack = load_pack(find_pack(name))
    for encoder in pack.encoders.values():
        dropping = {category for category, rules in pack.categories.items() if rules.load_threshold_drop}
        assert dropping <= encoder.floors.keys()


def thresholds(name: str) -> dict[tuple[str, str], float]:
    """Every threshold in force of a pack; 2 where nothing is served by similarity."""
    pack = load_pack(find_pack(name))
    return {
        (encoder, category): told.thresholds.get(category, 2.0) if rules.semantic and rules.allow_caching else 2.0
        for encoder, told in pack.encoders.items()
        for category, rules in pack.categories.items()
    }


def test_packs_stand_in_order_from_loose_to_strict() -> None:
    frugal, balanced, strict, compliance = map(thresholds, ("frugal", "balanced", "strict", "compliance"))
    assert all(frugal[at] <= balanced[at] < strict[at] or balanced[at] == 2 for at in balanced)
    assert all(strict[at] <= compliance[at] for at in balanced)


def test_the_compliance_pack_looks_for_personal_data_in_all_it_keeps_and_keeps_it_a_day_at_most() -> None:
    for category, rules in load_pack(find_pack("compliance")).categories.items():
        if rules.allow_caching:
            assert len(rules.pii) >= 10, category
            assert rules.ttl_s <= 86_400, category
            assert rules.max_stale_s == rules.stale_if_error_s == rules.load_ttl_stretch == 0, category
            assert not rules.tool_calls, category
            assert not rules.structured_output, category
