from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from cacheproxy.errors import PackError
from cacheproxy.evaluate.pairs import evaluate_pairs
from cacheproxy.evaluate.tables import render_pairs
from cacheproxy.policy.pack import Category, Encoder, Pack, Rule
from tests.support.angles import AngleEncoder

if TYPE_CHECKING:
    from pathlib import Path

CONTRACT = [
    *("n", "tp", "fp", "fn", "tn", "precision", "recall", "f1", "f05", "hit_rate", "false_hit_rate"),
    *("average_precision", "best_f1", "best_f1_threshold", "encoder", "policies", "by_category", "vetoes"),
]

# At 0.9: hit right, hit wrong, hit right (the same text), missed wrongly, missed rightly, refused for the unseen rest.
ROWS: list[tuple[str, str, int]] = [
    ("a", "b 0.95", 1),
    ("a", "c 0.92", 0),
    ("same", "same", 1),
    ("a", "d 0.85", 1),
    ("a", "e 0.2", 0),
    ("a", "f 0.99|rest", 0),
]


def pack(**categories: Category) -> Pack:
    return Pack(
        schema=1,
        name="mine",
        description="",
        default_category="default",
        categories={"default": Category(semantic=True), **categories},
        encoders={
            "angles": Encoder(
                fingerprint=AngleEncoder().fingerprint,
                calibrated_on="",
                thresholds={"default": 0.9, **{name: 0.5 for name, rules in categories.items() if rules.semantic}},
            )
        },
    )


def write(file: Path, rows: list[tuple[str, str, int]], **extra: object) -> Path:
    file.write_text("".join(json.dumps({"a": a, "b": b, "label": label, **extra}) + "\n" for a, b, label in rows))
    return file


def printed(report: object) -> dict[str, Any]:
    decoded: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(report))
    return decoded


def test_the_report_counts_by_hand_and_has_the_contracts_keys(tmp_path: Path) -> None:
    report = evaluate_pairs(write(tmp_path / "p.jsonl", ROWS), pack(), AngleEncoder(), None)
    told = printed(report)
    assert [*told] == [*CONTRACT, "intervals", "by_veto"]
    assert (report.n, report.tp, report.fp, report.fn, report.tn) == (6, 2, 1, 1, 2)
    assert (report.hit_rate, report.false_hit_rate) == (3 / 6, 1 / 3)
    assert (report.precision, report.recall, report.f1, report.f05) == pytest.approx((2 / 3,) * 4)
    assert (report.encoder, report.policies, report.vetoes) == ("angles/plane/1-0", "mine", {"unseen_text_differs": 1})
    # Ranked: same text (right), 0.95 (right), 0.92 (wrong), 0.85 (right), 0.2, and last what can never be served.
    assert report.average_precision == pytest.approx((1 + 1 + 3 / 4) / 3)
    assert report.best_f1 == pytest.approx(6 / 7)
    assert report.best_f1_threshold == pytest.approx(0.85)
    assert told["by_category"].keys() == {"default"}
    assert told["by_category"]["default"]["threshold"] == 0.9
    low, high = told["intervals"]["precision"]
    assert low < 2 / 3 < high


def test_the_threshold_itself_serves_and_nothing_below_it_does(tmp_path: Path) -> None:
    rows = [("a", "b 0.9000001", 1), ("a", "c 0.8999", 1)]
    report = evaluate_pairs(write(tmp_path / "p.jsonl", rows), pack(), AngleEncoder(), None)
    assert (report.tp, report.fn) == (1, 1)


def test_a_pairs_category_brings_its_own_rules_and_an_unknown_one_the_default_rules(tmp_path: Path) -> None:
    mine = pack(loose=Category(semantic=True), exact=Category(), never=Category(allow_caching=False))
    reports = {
        name: evaluate_pairs(write(tmp_path / "p.jsonl", ROWS, category=name), mine, AngleEncoder(), None)
        for name in ("loose", "exact", "never", "banking")
    }
    assert {name: report.tp + report.fp for name, report in reports.items()} == {
        "loose": 4,
        "exact": 1,
        "never": 0,
        "banking": 3,
    }
    assert {name: report.by_category[name].threshold for name, report in reports.items()} == {
        "loose": 0.5,
        "exact": None,
        "never": None,
        "banking": 0.9,
    }


def test_pairs_without_a_category_are_classified_by_the_packs_examples_and_rules(tmp_path: Path) -> None:
    mine = pack(
        code=Category(semantic=True, examples=tuple(f"code {at} 0.{90 + at}" for at in range(10))),
        never=Category(allow_caching=False, rules=(Rule(text="private"),)),
    )
    rows = [
        ("near to code 0.95", "also near to code 0.96", 1),
        ("private near to code 0.95", "also near to code 0.97", 1),
        ("far away -0.5", "far, too -0.51", 1),
    ]
    report = evaluate_pairs(write(tmp_path / "p.jsonl", rows), mine, AngleEncoder(), None)
    assert report.by_category.keys() == {"code", "default"}
    assert {name: score.n for name, score in report.by_category.items()} == {"code": 2, "default": 1}
    assert report.by_category["code"].tp == 1
    assert report.vetoes == {"answer_not_kept": 1}
    forced = evaluate_pairs(write(tmp_path / "p.jsonl", rows), mine, AngleEncoder(), None, category="default")
    assert forced.by_category.keys() == {"default"}
    assert forced.tp == 3


def test_a_forced_category_overrides_the_files_and_must_exist(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", ROWS, category="banking")
    report = evaluate_pairs(file, pack(exact=Category()), AngleEncoder(), None, category="exact")
    assert report.by_category.keys() == {"exact"}
    assert report.tp == 1
    with pytest.raises(PackError, match="no category 'chat'; known: default"):
        evaluate_pairs(file, pack(), AngleEncoder(), None, category="chat")


def test_an_encoder_that_the_pack_does_not_know_serves_nothing_by_similarity(tmp_path: Path) -> None:
    report = evaluate_pairs(write(tmp_path / "p.jsonl", ROWS), pack(), AngleEncoder("angles/other/1-0"), None)
    assert (report.tp, report.fp) == (1, 0)
    assert report.by_category["default"].threshold is None
    assert report.average_precision is not None


@pytest.mark.parametrize(
    ("rows", "undefined"),
    [
        (
            [("a", "b 0.1", 0)],
            {"precision", "recall", "f1", "f05", "average_precision", "best_f1", "best_f1_threshold"},
        ),
        ([("a", "b 0.1", 1)], {"precision", "false_hit_rate"}),
        ([("a", "b 0.95", 0)], {"recall", "average_precision", "best_f1", "best_f1_threshold"}),
        ([("a", "b 0.95", 1)], {"false_hit_rate"}),
    ],
)
def test_undefined_measures_are_null(tmp_path: Path, rows: list[tuple[str, str, int]], undefined: set[str]) -> None:
    report = evaluate_pairs(write(tmp_path / "p.jsonl", rows), pack(), AngleEncoder(), None, baseline="cosine")
    assert {key for key, value in printed(report).items() if value is None} == undefined
    assert " -" in render_pairs(report)


def test_the_baseline_is_plain_cosine_at_its_default_and_tuned(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", ROWS)
    told = printed(evaluate_pairs(file, pack(), AngleEncoder(), None, baseline="cosine"))
    assert [*told] == [*CONTRACT, "intervals", "by_veto", "baseline"]
    default, tuned = told["baseline"]["default"], told["baseline"]["tuned_f1"]
    # Plain cosine knows of no unseen text: it serves the trap at 0.99.
    assert (default["threshold"], default["tp"], default["fp"]) == (0.8, 3, 2)
    assert (tuned["threshold"], tuned["f1"]) == (pytest.approx(0.85), pytest.approx(0.75))


def test_the_text_form_tells_counts_intervals_categories_and_baselines(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", ROWS)
    text = render_pairs(evaluate_pairs(file, pack(), AngleEncoder(), None, baseline="cosine"))
    assert "6 pairs: 2 served rightly, 1 wrongly, 1 missed wrongly, 2 rightly" in text
    assert "unseen_text_differs              1        1         0        1.000  [0.207, 1.000]" in text
    assert "precision       0.667  [0.208, 0.939]" in text
    assert "default                      0.900        6     0.667" in text
    assert "cosine, default              0.800        6     0.600" in text
