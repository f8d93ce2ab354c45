"""Edits of a pack: merge patches, categories in and out, what differs, and when two packs say the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cacheproxy.policy.edit import (
    UNCALIBRATED,
    category_tree,
    differences,
    digest,
    merged,
    no_longer_kept,
    with_category,
    without_category,
)
from cacheproxy.policy.loader import find_pack, load_pack, pack_from, pack_tree, problems_of

if TYPE_CHECKING:
    from cacheproxy.policy.pack import Pack

BALANCED = load_pack(find_pack("balanced"))
ENCODERS = list(BALANCED.encoders.values())
EPOCH = ENCODERS[0].fingerprint

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("target", "patch", "result"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_a_merge_patch_does_what_rfc_7396_appendix_a_lists(target: Any, patch: Any, result: Any) -> None:
    assert merged(target, patch) == result


@given(json_values, json_values)
def test_a_merge_patch_twice_is_a_merge_patch_once(target: Any, patch: Any) -> None:
    assert merged(merged(target, patch), patch) == merged(target, patch)


@given(st.dictionaries(st.text(max_size=3), json_values, max_size=4))
def test_nothing_differs_from_itself(tree: dict[str, Any]) -> None:
    assert differences(tree, tree) == []


def test_differences_name_each_key_by_its_path_with_both_values() -> None:
    before = {"a": {"b": 1, "c": [1]}, "d": 1}
    after = {"a": {"b": 2, "c": [1]}, "e": {"f": 3}}
    assert [(one.key, one.before, one.after) for one in differences(before, after)] == [
        ("a.b", 1, 2),
        ("e", None, {"f": 3}),
        ("d", 1, None),
    ]


@pytest.mark.parametrize("name", BALANCED.categories)
def test_a_category_that_is_told_and_put_back_changes_nothing(name: str) -> None:
    told = category_tree(BALANCED, name, EPOCH)
    assert pack_from(with_category(BALANCED, name, told, EPOCH)) == BALANCED


def test_a_new_category_serves_equal_texts_only_for_encoders_that_nobody_calibrated_it_for() -> None:
    for verify, elsewhere in ((False, UNCALIBRATED), (True, None)):  # what is verified needs no threshold
        body = {"semantic": True, "verify": verify, "threshold": 0.9, "floor": 0.85}
        made = pack_from(with_category(BALANCED, "new", body, EPOCH))
        assert (made.threshold("new", EPOCH), made.floor("new", EPOCH)) == (0.9, 0.85)
        assert {made.threshold("new", encoder.fingerprint) for encoder in ENCODERS[1:]} <= {elsewhere}


def test_a_category_served_by_similarity_needs_a_threshold_for_the_encoder_in_use_or_to_be_verified() -> None:
    assert problems_of(with_category(BALANCED, "new", {"semantic": True}, EPOCH)) == []
    problems = problems_of(with_category(BALANCED, "new", {"semantic": True, "verify": False}, EPOCH))
    assert [key.rpartition(".")[2] for key, _ in problems] == ["new"]
    assert "thresholds" in problems[0][0]


def test_a_threshold_for_an_encoder_that_the_pack_does_not_know_is_refused_by_its_name() -> None:
    [(key, _)] = problems_of(with_category(BALANCED, "new", {"threshold": 0.9}, "another encoder"))
    assert key == "categories.new.threshold"


@pytest.mark.parametrize("threshold", [0, 1.1, -1, "x", True])
def test_a_bad_threshold_is_refused(threshold: Any) -> None:
    [(key, _)] = problems_of(with_category(BALANCED, "new", {"threshold": threshold}, EPOCH))
    assert key.endswith("thresholds.new")


def test_augmentation_is_allowed_by_a_patch_and_taken_back_by_null() -> None:
    told = category_tree(BALANCED, "chat", EPOCH)
    patch = {"augment": "auto", "max_examples": 3, "augment_ttl_s": 600}
    made = pack_from(with_category(BALANCED, "chat", merged(told, patch), EPOCH))
    rules = made.categories["chat"]
    assert (rules.augment, rules.max_examples, rules.augment_ttl_s) == ("auto", 3, 600.0)
    back = merged(category_tree(made, "chat", EPOCH), dict.fromkeys(patch))
    assert pack_from(with_category(made, "chat", back, EPOCH)) == BALANCED


def test_a_category_taken_out_takes_its_thresholds_along() -> None:
    made = pack_from(with_category(BALANCED, "new", {"semantic": True, "threshold": 0.9}, EPOCH))
    assert pack_from(without_category(made, "new")) == BALANCED


def never(pack: Pack, name: str) -> Pack:
    return pack_from(merged(pack_tree(pack), {"categories": {name: {"allow_caching": False, "semantic": False}}}))


def test_what_is_no_longer_kept_are_categories_that_went_or_are_not_cached_any_more() -> None:
    made = pack_from(with_category(BALANCED, "new", {}, EPOCH))
    closed = never(made, "new")
    assert no_longer_kept(made, closed) == no_longer_kept(made, BALANCED) == ("new",)
    assert no_longer_kept(closed, BALANCED) == no_longer_kept(closed, made) == ()


def test_two_packs_share_a_digest_exactly_where_they_say_the_same() -> None:
    tree = pack_tree(BALANCED)
    assert digest(pack_from(tree)) == digest(BALANCED)
    said = merged(tree, {"categories": {"default": {"priority": None}}})
    assert digest(pack_from(said)) == digest(BALANCED)
    assert digest(pack_from(merged(tree, {"categories": {"default": {"ttl_s": 1}}}))) != digest(BALANCED)
