from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

import pytest

from cacheproxy.errors import PackError
from cacheproxy.evaluate.check import check_pack, render_check
from cacheproxy.model import Classification
from cacheproxy.policy.loader import load_pack
from cacheproxy.policy.probes import ClassifiedProbe, holds, load_probes
from tests.support.angles import AngleEncoder

if TYPE_CHECKING:
    from pathlib import Path

POLICY = """\
schema = 1
name = "mine"
description = ""
default_category = "default"
[categories.default]
semantic = true
[categories.exact]
[encoders.angles]
fingerprint = "angles/plane/1-0"
calibrated_on = "nothing"
thresholds.default = 0.9
"""
PROBES = """\
[[probes]]
cached = "a"
asked = "b 0.95"
expect = "hit"
why = "near"

[[probes]]
cached = "a"
asked = "b 0.95"
category = "exact"
expect = "miss"
why = "exact only"

[[probes]]
cached = "a"
asked = "c 0.5"
expect = "miss"
why = "far"
"""


def no_encoder() -> NoReturn:
    raise AssertionError("the encoder was opened")


def write(directory: Path, policy: str = POLICY, probes: str | None = PROBES) -> Path:
    (directory / "policy.toml").write_text(policy)
    if probes is not None:
        (directory / "probes.toml").write_text(probes)
    return directory


def test_a_good_pack_passes_with_all_its_probes(tmp_path: Path) -> None:
    report = check_pack(write(tmp_path), AngleEncoder)
    assert report.passed
    assert [result.ruling.reason for result in report.results] == ["similar", "category_exact_only", "below_threshold"]
    assert render_check(report) == f"{tmp_path}: ok: 3 of 3 probes hold with encoder angles/plane/1-0"


def test_a_failing_probe_is_named_with_file_line_key_and_evidence(tmp_path: Path) -> None:
    report = check_pack(write(tmp_path, probes=PROBES.replace("c 0.5", "c 0.97")), AngleEncoder)
    assert not report.passed
    assert report.problems == (
        f"{tmp_path}/probes.toml:14: probes[2] expected a miss: "
        "similar (category default, similarity 0.970, threshold 0.900); far",
    )
    assert render_check(report).endswith(": failed: 2 of 3 probes hold with encoder angles/plane/1-0")


def test_an_encoder_without_thresholds_fails_every_probe_that_must_hit(tmp_path: Path) -> None:
    report = check_pack(write(tmp_path), lambda: AngleEncoder("angles/other/1-0"))
    assert [result.passed for result in report.results] == [False, True, True]
    assert "encoder_not_calibrated (category default, similarity 0.950, threshold none)" in report.problems[0]


def test_an_invalid_pack_is_a_report_and_opens_no_encoder(tmp_path: Path) -> None:
    report = check_pack(write(tmp_path, POLICY.replace("0.9", "1.9").replace("semantic", "semantics")), no_encoder)
    assert not report.passed
    assert [problem.split(" ")[0] for problem in report.problems] == [
        f"{tmp_path}/policy.toml:6:",
        f"{tmp_path}/policy.toml:11:",
    ]


def test_a_pack_without_probes_is_valid_and_opens_no_encoder(tmp_path: Path) -> None:
    report = check_pack(write(tmp_path, probes=None), no_encoder)
    assert report.passed
    assert render_check(report) == f"{tmp_path}: ok: no probes were run"


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ('expect = "hit"', 'expect = "maybe"', "4: probes[0].expect must be one of hit, miss, got 'maybe'"),
        ('category = "exact"', 'category = "chat"', "10: probes[1].category must be one of this pack's categories"),
        ('why = "far"', 'because = "far"', "14: probes[2].why is missing; add it"),
        ('cached = "a"\nasked = "c', 'cached = ""\nasked = "c', "15: probes[2].cached must be non-empty text, got ''"),
        ("[[probes]]", "[[probe]]", "1: probes is missing; add it"),
    ],
)
def test_a_wrong_probe_file_is_named_with_line_and_key(tmp_path: Path, old: str, new: str, problem: str) -> None:
    write(tmp_path, probes=PROBES.replace(old, new))
    with pytest.raises(PackError) as caught:
        load_probes(tmp_path, load_pack(tmp_path))
    assert any(line.startswith(f"{tmp_path}/probes.toml:{problem}") for line in str(caught.value).splitlines())


CLASSIFIED = """\
[[classified]]
text = "what is my pin"
category = "exact"
why = "a rule says so"

[[classified]]
text = "anything"
category = "default"
"""
RULE = '[[categories.exact.rules]]\ntext = "my pin"\n[encoders'


def test_a_probe_may_claim_what_a_question_is_taken_for(tmp_path: Path) -> None:
    report = check_pack(write(tmp_path, POLICY.replace("[encoders", RULE, 1), PROBES + CLASSIFIED), AngleEncoder)
    assert report.passed
    assert [(one.told.category, one.told.source) for one in report.classified] == [
        ("exact", "rule"),
        ("default", "default"),
    ]
    assert render_check(report) == f"{tmp_path}: ok: 5 of 5 probes hold with encoder angles/plane/1-0"


def test_a_question_that_is_taken_for_another_category_is_named_with_file_line_and_evidence(tmp_path: Path) -> None:
    report = check_pack(write(tmp_path, probes=PROBES + CLASSIFIED), AngleEncoder)
    assert report.problems == (
        f"{tmp_path}/probes.toml:19: classified[0] expected exact: default (default); a rule says so",
    )


def test_a_second_category_is_enough_only_where_the_probe_says_so() -> None:
    told = Classification(category="default", second="exact", source="examples", margin=0.1)
    assert holds(ClassifiedProbe(text="x", category="exact", or_second=True), told)
    assert not holds(ClassifiedProbe(text="x", category="exact"), told)


def test_a_classified_probe_of_an_unknown_category_is_refused_with_its_line(tmp_path: Path) -> None:
    write(tmp_path, probes=PROBES + CLASSIFIED.replace('"default"', '"defaults"'))
    [problem] = check_pack(tmp_path, no_encoder).problems
    assert problem.startswith(
        f"{tmp_path}/probes.toml:26: classified[1].category must be one of this pack's categories ("
    )


def test_a_problem_of_a_base_is_told_with_the_bases_file(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "mine").mkdir()
    write(tmp_path / "base", POLICY.replace("0.9", "1.9"))
    child = 'extends = "base"\nschema = 1\nname = "child"\ndescription = ""\n[categories.exact]\nttl = 1\n'
    report = check_pack(write(tmp_path / "mine", child, probes=None), no_encoder)
    assert [problem.split(" ")[0] for problem in report.problems] == [
        f"{tmp_path}/mine/policy.toml:6:",
        f"{tmp_path}/base/policy.toml:11:",
    ]
