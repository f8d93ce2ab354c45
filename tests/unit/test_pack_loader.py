from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cacheproxy.errors import PackError
from cacheproxy.policy.loader import find_pack, load_pack

if TYPE_CHECKING:
    from pathlib import Path

GOOD = """\
schema = 1
name = "mine"
description = "for tests"
default_category = "default"

[categories.default]
semantic = true
ttl_s = 60

[categories.code]
allow_caching = false

[encoders.small]
fingerprint = "aaa"
calibrated_on = "nothing"
thresholds = { default = 0.9 }

[[prices]]
model = "gpt-mini*"
input_usd_per_mtok = 1
output_usd_per_mtok = 2.5
"""


def write(directory: Path, text: str) -> Path:
    (directory / "policy.toml").write_text(text, encoding="utf-8")
    return directory


def problems(directory: Path, text: str) -> list[str]:
    """What load_pack says about a text, line by line, without the file."""
    with pytest.raises(PackError) as caught:
        load_pack(write(directory, text))
    return [line.removeprefix(f"{directory}/policy.toml:") for line in str(caught.value).splitlines()]


def test_a_good_pack_loads_with_its_safe_defaults(tmp_path: Path) -> None:
    pack = load_pack(write(tmp_path, GOOD))
    assert pack.threshold("default", "aaa") == 0.9
    assert pack.threshold("default", "another encoder") is None
    assert pack.categories["code"].semantic is False
    assert pack.categories["default"].max_temperature == 0.7
    price = pack.price("gpt-mini-2025")
    assert price is not None
    assert price.output_usd_per_mtok == 2.5


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("default = 0.9", "default = 1.2", "16: encoders.small.thresholds.default must be in (0, 1], got 1.2"),
        ("default = 0.9", "default = 0", "16: encoders.small.thresholds.default must be in (0, 1], got 0"),
        ("default = 0.9", "default = nan", "16: encoders.small.thresholds.default must be finite, got nan"),
        ("default = 0.9", "default = '0.9'", "16: encoders.small.thresholds.default must be a number, got '0.9'"),
        ("ttl_s = 60", "ttl_s = -1", "8: categories.default.ttl_s must be in (0, 3.2e+09], got -1"),
        ("ttl_s = 60", "ttl_s = inf", "8: categories.default.ttl_s must be finite, got inf"),
        ("ttl_s = 60", "ttl_s = true", "8: categories.default.ttl_s must be a number, got True"),
        ("ttl_s = 60", "augment = true", "8: categories.default.augment must be one of auto, off, got True"),
        ("ttl_s = 60", "example_similarity = -1", "8: categories.default.example_similarity must be in [0, 1], got -1"),
        ("ttl_s = 60", "max_examples = 0", "8: categories.default.max_examples must be in [1, 32], got 0"),
        ("ttl_s = 60", "example_tokens = 1.5", "8: categories.default.example_tokens must be an integer, got 1.5"),
        ("ttl_s = 60", "augment_ttl_s = 0", "8: categories.default.augment_ttl_s must be in (0, 3.2e+09], got 0"),
        ("ttl_s = 60", "augment_judge_rate = 2", "8: categories.default.augment_judge_rate must be in [0, 1], got 2"),
        ("ttl_s = 60", "candidates = 65", "8: categories.default.candidates must be in [1, 64], got 65"),
        ("ttl_s = 60", "candidates = 2.0", "8: categories.default.candidates must be an integer, got 2.0"),
        ("semantic = true", "semantic = 1", "7: categories.default.semantic must be true or false, got 1"),
        ('fingerprint = "aaa"\n', "", "13: encoders.small.fingerprint is missing; add it"),
        ('fingerprint = "aaa"', 'fingerprint = " "', "14: encoders.small.fingerprint must be non-empty text, got ' '"),
        ('model = "gpt-mini*"', "model = 3", "19: prices[0].model must be text, got 3"),
        (
            "input_usd_per_mtok = 1",
            "input_usd_per_mtok = -0.1",
            "20: prices[0].input_usd_per_mtok must be in [0, 3.2e+09], got -0.1",
        ),
        ("schema = 1\n", "", "1: schema is missing; add it"),
        ("schema = 1", "schema = 2", "1: schema must be 1, the schema this cacheproxy reads, got 2"),
        ('name = "mine"', "name = ['mine']", "2: name must be text, got ['mine']"),
        (
            "[categories.code]\nallow_caching = false",
            "[categories]\ncode = 7",
            "11: categories.code must be a table, got 7",
        ),
        (
            "[[prices]]",
            "[prices]",
            "18: prices must be an array, got {'model': 'gpt-mini*', 'input_usd_per_mtok': 1, 'output_u...",
        ),
    ],
)
def test_a_wrong_value_is_named_with_line_and_key(tmp_path: Path, old: str, new: str, problem: str) -> None:
    assert problems(tmp_path, GOOD.replace(old, new)) == [problem]


def test_an_unknown_key_is_refused_with_the_likely_one(tmp_path: Path) -> None:
    [problem] = problems(tmp_path, GOOD.replace("ttl_s", "tll_s"))
    assert problem.startswith(
        "8: categories.default.tll_s is not a known key; did you mean ttl_s? known: description, "
    )


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "ttl_s = 60",
            "stale_if_error_s = 5",
            "8: categories.default.stale_if_error_s must be at most max_stale_s (0), which caps everything stale",
        ),
        (
            "semantic = true",
            'augment = "auto"',
            '7: categories.default.augment must be "off" where semantic = false: examples are found by similarity; '
            "set it, or categories.default.semantic = true",
        ),
        (
            'default_category = "default"',
            'default_category = "chat"',
            "4: default_category must be one of this pack's categories (default, code), got 'chat'",
        ),
        (
            "{ default = 0.9 }",
            "{ default = 0.9, chat = 0.8 }",
            "16: encoders.small.thresholds.chat names no category of this pack; known: default, code",
        ),
        (
            "{ default = 0.9 }",
            "{}",
            "16: encoders.small.thresholds.default is missing; calibrate it or set categories.default.semantic = false",
        ),
        (
            "[[prices]]",
            '[encoders."the twin"]\nfingerprint = "aaa"\ncalibrated_on = "x"\nthresholds.default = 0.5\n[[prices]]',
            '19: encoders."the twin".fingerprint is also that of encoders.small; keep one of the two',
        ),
        (
            "[categories.code]",
            '[categories."co\\r\\nde"]',
            "10: categories.\"co\\r\\nde\" is not a usable name; use 1 to 64 letters, digits, '_', '.' or '-'",
        ),
        (
            "output_usd_per_mtok = 2.5\n",
            "output_usd_per_mtok = 2.5\n"
            '[[prices]]\nmodel = "gpt-mini-x*"\ninput_usd_per_mtok = 1\noutput_usd_per_mtok = 1\n',
            "23: prices[1].model is never reached: 'gpt-mini*' above matches first; move it up",
        ),
    ],
)
def test_a_contradiction_between_keys_is_named_with_line_and_key(
    tmp_path: Path, old: str, new: str, problem: str
) -> None:
    assert problems(tmp_path, GOOD.replace(old, new)) == [problem]


def test_a_category_is_closed_by_one_key_whatever_else_it_allows(tmp_path: Path) -> None:
    text = GOOD.replace("allow_caching = false", 'allow_caching = false\naugment = "auto"')
    assert not load_pack(write(tmp_path, text)).categories["code"].allow_caching


def test_several_problems_are_told_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = GOOD.replace("0.9", "9").replace("ttl_s = 60", "ttl_s = 0").replace('description = "for tests"\n', "")
    told = problems(tmp_path, text)
    assert [line.split(" ")[0:2] for line in told] == [
        ["1:", "description"],
        ["7:", "categories.default.ttl_s"],
        ["15:", "encoders.small.thresholds.default"],
    ]


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ("schema = 1\nname = \n", "2: not valid TOML: "),
        ("schema = 1\nschema = 1\n", "2: not valid TOML: "),
        ("schema = [1,\n", "2: not valid TOML: "),
        ("a = " + "[" * 5000 + "]" * 5000, "1: nested too deeply"),
    ],
)
def test_broken_toml_is_named_with_its_line(tmp_path: Path, text: str, start: str) -> None:
    [problem] = problems(tmp_path, text)
    assert problem.startswith(start)


def test_a_file_that_is_not_utf_8_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_bytes(b"schema = 1\nname = '\xff'\n")
    with pytest.raises(PackError, match=r"policy\.toml:2: not UTF-8"):
        load_pack(tmp_path)


def test_a_missing_file_says_what_a_pack_is(tmp_path: Path) -> None:
    with pytest.raises(
        PackError, match=r"policy\.toml: cannot be read \(No such file or directory\); a pack is a directory"
    ):
        load_pack(tmp_path)


def test_the_shipped_pack_is_found_by_name_and_loads() -> None:
    assert load_pack(find_pack("balanced")).name == "balanced"


def test_a_directory_beats_a_shipped_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "balanced").mkdir()
    write(tmp_path / "balanced", GOOD)
    assert find_pack(str(tmp_path / "balanced")) == tmp_path / "balanced"
    monkeypatch.chdir(tmp_path)
    assert load_pack(find_pack("balanced")).name == "mine"


def test_a_bare_directory_without_a_pack_does_not_hide_a_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "balanced").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_pack(find_pack("balanced")).name == "balanced"
    with pytest.raises(PackError, match=r"holds no policy\.toml"):
        find_pack(str(tmp_path))


@pytest.mark.parametrize("name", ["no-such-pack", "../policies", "./balanced", ""])
def test_an_unknown_pack_lists_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PackError, match="balanced"):
        find_pack(name)


def test_more_examples_than_can_be_compared_are_refused(tmp_path: Path) -> None:
    examples = ", ".join(f'"question {number}"' for number in range(2001))
    with pytest.raises(PackError, match="2001 examples; 2000 are the most"):
        load_pack(
            write(tmp_path, GOOD.replace("[categories.default]", f"[categories.default]\nexamples = [{examples}]"))
        )
