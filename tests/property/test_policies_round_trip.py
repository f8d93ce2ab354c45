"""A pack survives being told as JSON and as TOML: what an operator reads is what he may send back."""

from __future__ import annotations

import json
import string
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from cacheproxy.policy.kinds import PII_KINDS
from cacheproxy.policy.loader import POLICY_FILE, find_pack, load_pack, pack_from, pack_tree, problems_of
from cacheproxy.policy.pack import Category, Classifier, Encoder, Pack, Price, Rule

if TYPE_CHECKING:
    from pathlib import Path

shares = st.floats(0, 1)
seconds = st.floats(1e-6, 3.2e9)
not_negative = st.floats(0, 1e9)
thresholds = st.floats(0, 1, exclude_min=True)
words = st.text(min_size=1, max_size=20).filter(str.strip)
names = st.text(string.ascii_letters + string.digits, min_size=1, max_size=8)
patterns = st.sampled_from(["", "order \\d+", "^hello", "(a|b)+", "\\bé\\b"])

rules = st.builds(
    Rule,
    models=st.lists(words, min_size=1, max_size=2).map(tuple),
    routes=st.lists(st.sampled_from(["chat", "resp*", "embeddings"]), max_size=2).map(tuple),
    tenants=st.lists(words, max_size=2).map(tuple),
    namespaces=st.lists(words, max_size=2).map(tuple),
    headers=st.dictionaries(words, patterns.filter(bool), max_size=2),
    text=patterns,
    system=patterns,
)
categories = st.builds(
    Category,
    description=st.text(max_size=20),
    allow_caching=st.booleans(),
    ttl_s=seconds,
    max_temperature=not_negative,
    max_stale_s=not_negative,
    candidates=st.integers(1, 64),
    tool_calls=st.booleans(),
    structured_output=st.booleans(),
    examples=st.lists(words, max_size=3).map(tuple),
    rules=st.lists(rules, max_size=2).map(tuple),
    priority=st.floats(0, 100, exclude_min=True),
    quota=st.floats(0, 0.2),
    tenant_share=st.floats(0, 1, exclude_min=True),
    ttl_jitter=st.floats(0, 0.5),
    load_threshold_drop=st.floats(0, 0.2),
    load_ttl_stretch=st.floats(0, 10),
    near_miss_band=st.floats(0, 0.5),
    probability_band=st.floats(0, 0.9),
    semantic=st.booleans(),
    augment=st.sampled_from(["off", "auto"]),
    example_similarity=shares,
    max_examples=st.integers(1, 32),
    example_tokens=st.integers(1, 1_000_000),
    augment_ttl_s=seconds,
    augment_judge_rate=shares,
    double_run_usd_per_day=not_negative,
    pii=st.lists(st.sampled_from(PII_KINDS), unique=True).map(tuple),
).filter(lambda category: category.semantic or not category.allow_caching or category.augment == "off")


@st.composite
def packs(draw: st.DrawFn) -> Pack:
    held = draw(st.dictionaries(names, categories, min_size=1, max_size=4))
    encoders = {}
    for at in range(draw(st.integers(0, 2))):
        chosen = {name: draw(thresholds) for name in held}
        floors = {name: threshold for name, threshold in chosen.items() if draw(st.booleans())}
        encoders[f"e {at}"] = Encoder(fingerprint=f"f/{at}", calibrated_on="x", thresholds=chosen, floors=floors)
    return Pack(
        schema=1,
        name=draw(words),
        description=draw(st.text(max_size=20)),
        default_category=draw(st.sampled_from([*held])),
        categories=held,
        classifier=draw(st.builds(Classifier, kind=st.sampled_from(["prototype", "logistic"]), doubt=shares)),
        encoders=encoders,
        prices=draw(
            st.lists(
                st.builds(Price, model=names, input_usd_per_mtok=not_negative, output_usd_per_mtok=not_negative),
                max_size=3,
                unique_by=lambda price: price.model.lower(),
            ).map(tuple)
        ),
    )


@given(packs())
def test_a_pack_survives_json_and_toml(pack: Pack) -> None:
    assert problems_of(pack_tree(pack)) == []
    assert pack_from(json.loads(json.dumps(pack_tree(pack)))) == pack
    assert pack_from(tomllib.loads(tomli_w.dumps(pack_tree(pack)))) == pack


@pytest.mark.parametrize("name", ["balanced", "strict", "frugal", "compliance"])
def test_a_shipped_pack_written_out_whole_loads_as_the_same(name: str, tmp_path: Path) -> None:
    pack = load_pack(find_pack(name))
    (tmp_path / POLICY_FILE).write_text(tomli_w.dumps(pack_tree(pack)), encoding="utf-8")
    assert load_pack(tmp_path) == pack


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(packs(), st.data())
def test_a_pack_with_anything_in_any_place_is_refused_with_a_reason_or_taken(pack: Pack, data: st.DataObject) -> None:
    tree = pack_tree(pack)
    table: Any = tree
    while True:
        key = data.draw(st.sampled_from(sorted(table) if isinstance(table, dict) else range(len(table))))
        if not isinstance(table[key], dict | list) or not table[key] or data.draw(st.booleans()):
            break
        table = table[key]
    table[key] = data.draw(junk)
    problems = problems_of(tree)
    assert all(text for _, text in problems)
    if not problems:
        assert pack_from(pack_tree(pack_from(tree))) == pack_from(tree)
