from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cacheproxy.errors import PackError
from cacheproxy.policy.loader import find_pack, load_pack, pack_from, pack_tree, problems_of
from cacheproxy.policy.pack import Category, Pack

if TYPE_CHECKING:
    from pathlib import Path

BASE = """\
schema = 1
name = "base"
description = "for tests"
default_category = "default"

[categories.default]
semantic = true
ttl_s = 60
examples = ["a", "b"]

[categories.code]
ttl_s = 30

[encoders.small]
fingerprint = "aaa"
calibrated_on = "nothing"
thresholds = { default = 0.9 }

[[prices]]
model = "gpt*"
input_usd_per_mtok = 1
output_usd_per_mtok = 2
"""
CHILD = """\
extends = "base"
schema = 1
name = "child"
description = "mine"

[categories.default]
ttl_s = 5
examples = ["c"]
"""


def write(directory: Path, name: str, text: str) -> Path:
    (directory / name).mkdir(exist_ok=True)
    (directory / name / "policy.toml").write_text(text, encoding="utf-8")
    return directory / name


def family(directory: Path, child: str = CHILD, base: str = BASE) -> Path:
    write(directory, "base", base)
    return write(directory, "child", child)


def told(directory: Path) -> list[str]:
    with pytest.raises(PackError) as caught:
        load_pack(directory)
    return str(caught.value).replace(f"{directory.parent}/", "").replace("/policy.toml", "").splitlines()


def test_tables_merge_deeply_and_everything_else_replaces(tmp_path: Path) -> None:
    pack = load_pack(family(tmp_path, CHILD + "[encoders.small.thresholds]\ncode = 0.8\n"))
    assert pack.name == "child"
    assert pack.categories["default"] == Category(semantic=True, ttl_s=5, examples=("c",))
    assert pack.categories["code"] == Category(ttl_s=30)
    assert pack.encoders["small"].thresholds == {"default": 0.9, "code": 0.8}
    assert [price.model for price in pack.prices] == ["gpt*"]


def test_an_array_of_tables_replaces_the_bases(tmp_path: Path) -> None:
    price = '[[prices]]\nmodel = "mine"\ninput_usd_per_mtok = 3\noutput_usd_per_mtok = 4\n'
    assert [price.model for price in load_pack(family(tmp_path, CHILD + price)).prices] == ["mine"]


def test_a_pack_builds_on_a_shipped_one_unless_one_of_that_name_stands_beside_it(tmp_path: Path) -> None:
    child = write(tmp_path, "child", CHILD.replace('"base"', '"balanced"'))
    shipped = load_pack(find_pack("balanced"))
    assert load_pack(child).prices == shipped.prices
    write(tmp_path, "balanced", BASE)
    assert [price.model for price in load_pack(child).prices] == ["gpt*"]


def test_two_bases_deep_the_nearest_wins(tmp_path: Path) -> None:
    family(tmp_path)
    grandchild = write(
        tmp_path,
        "leaf",
        'extends = "child"\nschema = 1\nname = "leaf"\ndescription = ""\n[categories.code]\nttl_s = 1\n',
    )
    pack = load_pack(grandchild)
    assert (pack.categories["default"].ttl_s, pack.categories["code"].ttl_s, pack.name) == (5, 1, "leaf")


@pytest.mark.parametrize("key", ["schema", "name", "description"])
def test_what_a_pack_says_of_itself_is_never_a_bases(tmp_path: Path, key: str) -> None:
    lines = [line for line in CHILD.splitlines() if not line.startswith(key)]
    assert told(family(tmp_path, "\n".join(lines))) == [f"child:1: {key} is missing; add it"]


@pytest.mark.parametrize(
    ("child", "base", "problems"),
    [
        # The wrong key stands in the base.
        (
            CHILD,
            BASE.replace("ttl_s = 30", "ttl_s = -1"),
            ["base:12: categories.code.ttl_s must be in (0, 3.2e+09], got -1"],
        ),
        (CHILD, BASE.replace("0.9", "nan"), ["base:17: encoders.small.thresholds.default must be finite, got nan"]),
        (CHILD, BASE.replace("[[prices]]", "[[price]]"), ["base:19: price is not a known key; did you mean prices? "]),
        # In the child.
        (
            CHILD.replace("ttl_s = 5", "ttl_s = 0"),
            BASE,
            ["child:7: categories.default.ttl_s must be in (0, 3.2e+09], got 0"],
        ),
        (CHILD + "typo = 1\n", BASE, ["child:9: categories.default.typo is not a known key; "]),
        # In both: the child's first.
        (
            CHILD.replace("ttl_s = 5", "ttl_s = inf"),
            BASE.replace("ttl_s = 30", "ttl_s = -1").replace("ttl_s = 60", "ttl_s = -5"),
            [
                "child:7: categories.default.ttl_s must be finite, got inf",
                "base:12: categories.code.ttl_s must be in (0, 3.2e+09], got -1",
            ],
        ),
        # A child's item is no item of the array it replaces.
        (
            CHILD.replace('["c"]', '["c", 1]'),
            BASE.replace('["a", "b"]', '["a",\n"b",\n"c"]'),
            ["child:8: categories.default.examples[1] must be text, got 1"],
        ),
        # What contradicts: the child opens a category for which the base has no threshold.
        (
            CHILD + "[categories.code]\nsemantic = true\n",
            BASE,
            ["base:17: encoders.small.thresholds.code is missing; calibrate it or set "],
        ),
        (
            CHILD + "[encoders.small.floors]\ndefault = 0.95\n",
            BASE,
            ["child:10: encoders.small.floors.default must be at most its threshold (0.9), got 0.95"],
        ),
    ],
)
def test_a_problem_is_told_where_the_key_really_stands(
    tmp_path: Path, child: str, base: str, problems: list[str]
) -> None:
    found = told(family(tmp_path, child, base))
    assert len(found) == len(problems)
    assert all(line.startswith(start) for line, start in zip(found, problems, strict=True)), found


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ('"nowhere"', "child:1: extends names no pack beside this one and none that is shipped ("),
        ('"../base"', "child:1: extends must be the name of one pack, got '../base'"),
        ('"/etc"', "child:1: extends must be the name of one pack, got '/etc'"),
        ('".."', "child:1: extends must be the name of one pack, got '..'"),
        ('""', "child:1: extends must be the name of one pack, got ''"),
        ('["base"]', "child:1: extends must be the name of one pack, got ['base']"),
        ('"child"', "child:1: extends goes in a circle: child -> child"),
    ],
)
def test_a_base_that_cannot_be_is_refused(tmp_path: Path, value: str, problem: str) -> None:
    [line] = told(family(tmp_path, CHILD.replace('"base"', value)))
    assert line.startswith(problem)


def test_a_circle_of_packs_is_refused(tmp_path: Path) -> None:
    assert told(family(tmp_path, CHILD, 'extends = "child"\n' + BASE)) == [
        "base:1: extends goes in a circle: child -> base -> child"
    ]


def test_a_third_base_is_refused(tmp_path: Path) -> None:
    for at in range(3):
        write(tmp_path, f"p{at}", CHILD.replace('"base"', f'"p{at + 1}"'))
    write(tmp_path, "p3", BASE)
    assert told(tmp_path / "p0") == ["p2:1: extends is one base too many: p0 -> p1 -> p2 -> p3 (at most 2)"]
    assert load_pack(tmp_path / "p1").name == "child"


def test_a_base_of_another_schema_or_with_broken_toml_is_named(tmp_path: Path) -> None:
    child = family(tmp_path, CHILD, BASE.replace("schema = 1", "schema = 2"))
    assert told(child) == ["base:1: schema must be 1, the schema this cacheproxy reads, got 2"]
    family(tmp_path, CHILD, BASE.replace("ttl_s = 30", "ttl_s ="))
    [line] = told(child)
    assert line.startswith("base:12: not valid TOML: ")


# Packs that come as plain tables, as the admin API takes them.


def tree(**changes: Any) -> dict[str, Any]:
    pack = Pack(schema=1, name="mine", description="", default_category="default", categories={"default": Category()})
    return {**pack_tree(pack), **changes}


def test_a_pack_given_as_tables_comes_back_the_same() -> None:
    for name in ("balanced", "strict", "frugal", "compliance"):
        pack = load_pack(find_pack(name))
        assert pack_from(pack_tree(pack)) == pack


def calibrated(**thresholds: float) -> dict[str, Any]:
    return {"encoders": {"e": {"fingerprint": "f", "calibrated_on": "x", "thresholds": thresholds}}}


def ruled(**rule: Any) -> dict[str, Any]:
    return {"categories": {"default": {"rules": [rule]}}}


@pytest.mark.parametrize(
    ("changes", "key", "problem"),
    [
        (calibrated(default=0), "encoders.e.thresholds.default", "(0, 1], got 0"),
        (calibrated(default=1.01), "encoders.e.thresholds.default", "got 1.01"),
        (calibrated(default=float("nan")), "encoders.e.thresholds.default", "nan"),
        (calibrated(other=0.9), "encoders.e.thresholds.other", "no category"),
        ({"categories": {"default": {"ttl_s": float("inf")}}}, "categories.default.ttl_s", "must be finite"),
        ({"categories": {"default": {"ttl_s": -1}}}, "categories.default.ttl_s", "must be in (0, 3.2e+09], got -1"),
        ({"categories": {"default": {"ttl_s": 10**400}}}, "categories.default.ttl_s", "must be of at most 15 digits"),
        ({"categories": {"default": {"candidates": 10**30}}}, "categories.default.candidates", "at most 15 digits"),
        ({"categories": {"default": {"quota": 1.5}}}, "categories.default.quota", "must be in [0, 1], got 1.5"),
        ({"categories": {"default": {"ttl": 1}}}, "categories.default.ttl", "is not a known key; did you mean ttl_s?"),
        ({"categories": {"default": None}}, "categories.default", "must be a table, got None"),
        (ruled(), "categories.default.rules[0]", "asks for nothing"),
        (ruled(text="("), "categories.default.rules[0].text", "not an RE2"),
        (ruled(text="a" * 1001), "categories.default.rules[0].text", "at most 1000 characters"),
        (ruled(routes=["/v1"]), "categories.default.rules[0].routes[0]", "matches none of chat, completions, "),
        ({"default_category": "chat"}, "default_category", "must be one of this pack's categories (default), "),
        ({"schema": 2}, "schema", "must be 1"),
        ({"extends": "balanced"}, "extends", "a pack that is sent is sent whole"),
        ({"name": ""}, "name", "must be non-empty text"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_refused_with_its_key(changes: dict[str, Any], key: str, problem: str) -> None:
    [(found, text)] = problems_of(tree(**changes))
    assert found == key
    assert problem in text
    with pytest.raises(PackError) as caught:
        pack_from(tree(**changes))
    assert str(caught.value) == f"{key} {text}"


def test_quotas_that_promise_more_than_the_store_are_refused() -> None:
    shares = {"default": {"quota": 0.6}, "code": {"quota": 0.5}}
    assert problems_of(tree(categories=shares)) == [
        ("categories", "guarantee more than the whole store: the quotas add up to 1.1")
    ]


def test_every_problem_is_told_at_once() -> None:
    wrong = tree(name=1, categories={"default": {"ttl_s": 0, "quota": 2}})
    assert [key for key, _ in problems_of(wrong)] == ["name", "categories.default.ttl_s", "categories.default.quota"]


@pytest.mark.parametrize("not_a_pack", [{}, {"schema": 1}])
def test_a_pack_without_its_required_keys_is_refused(not_a_pack: dict[str, Any]) -> None:
    missing = {key for key, text in problems_of(not_a_pack) if text == "is missing; add it"}
    assert missing == {"schema", "name", "description", "default_category", "categories"} - not_a_pack.keys()
