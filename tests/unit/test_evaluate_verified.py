"""Evaluations with a verifier: pairs, ablations and streams, counted by hand."""

from __future__ import annotations

import builtins
import json
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import pytest

from cacheproxy.errors import ConfigError
from cacheproxy.evaluate.conversations import evaluate_conversations
from cacheproxy.evaluate.pairs import Extras, evaluate_pairs
from cacheproxy.evaluate.plot import line, plot
from cacheproxy.evaluate.stream import Ask, evaluate_stream
from cacheproxy.evaluate.tables import render_pairs, render_stream
from cacheproxy.policy.pack import Category, Encoder, Pack
from cacheproxy.settings import Settings
from tests.support.angles import AngleEncoder
from tests.support.verifiers import StepScorer

if TYPE_CHECKING:
    from pathlib import Path

    from cacheproxy.evaluate.pairs import PairsReport
    from cacheproxy.evaluate.stream import StreamReport

EPOCH = AngleEncoder().fingerprint
STREAM_ADDS = {"hits", "false_hits", "stale_hits", "evictions", "by_category"}


def pack(**rules: Any) -> Pack:
    told = {"semantic": True, "min_probability": 0.8, "ttl_s": 100.0, **rules}
    encoder = Encoder(fingerprint=EPOCH, calibrated_on="", thresholds={"default": 0.99}, verify_from=0.6)
    return Pack(
        schema=1,
        name="mine",
        description="",
        default_category="default",
        categories={"default": Category(**told)},
        encoders={"angles": encoder},
    )


# Served rightly, wrongly; refused by a rule rightly, wrongly; improbable; too far to be verified; the very same text.
PAIRS = [
    ("pay", "how p0.9 0.7", 1),
    ("pay", "who p0.85 0.9", 0),
    ("pay", "no-number p0.99 0.95", 0),
    ("pay", "no-order p0.95 0.96", 1),
    ("pay", "when p0.3 0.97", 0),
    ("pay", "far p0.99 0.5", 1),
    ("same", "same", 1),
]


def evaluated(
    folder: Path, extras: Extras | None = None, rows: list[tuple[str, str, int]] | None = None
) -> PairsReport:
    file = folder / "p.jsonl"
    file.write_text("".join(json.dumps({"a": a, "b": b, "label": label}) + "\n" for a, b, label in rows or PAIRS))
    return evaluate_pairs(file, pack(), AngleEncoder(), None, verifier=StepScorer(), extras=extras)


def test_a_pair_is_served_by_its_probability_and_not_by_its_cosine(tmp_path: Path) -> None:
    report = evaluated(tmp_path)
    assert (report.n, report.tp, report.fp, report.fn, report.tn) == (7, 2, 1, 2, 2)
    assert report.vetoes == {"improbable": 1, "veto_number": 1, "veto_order": 1}


def test_each_veto_tells_how_often_it_was_right(tmp_path: Path) -> None:
    told = {reason: (one.n, one.rightly, one.wrongly) for reason, one in evaluated(tmp_path).by_veto.items()}
    assert told == {"improbable": (1, 1, 0), "veto_number": (1, 1, 0), "veto_order": (1, 0, 1)}


def test_the_ranking_is_by_probability_and_what_a_rule_forbids_ranks_last(tmp_path: Path) -> None:
    # The same text, 0.9 (right), 0.85 (wrong), 0.3 (wrong), then both vetoes at 0, then what was not verified.
    report = evaluated(tmp_path)
    assert report.average_precision == pytest.approx((1 + 1 + 3 / 6 + 4 / 7) / 4)


def halves(rows: int) -> list[tuple[str, str, int]]:
    """Return pairs of which only both steps and the rules together tell right from wrong."""
    return [
        *((f"a{n} ?", f"right {n} {'spared ' * (n % 2)}p0.9 0.9", 1) for n in range(rows)),
        *((f"b{n} ?", f"bold {n} p0.3 0.9", 0) for n in range(rows)),
        *((f"c{n} ?", f"no-number {n} p0.9 0.9", 0) for n in range(rows)),
    ]


def test_an_ablation_tells_what_each_step_adds_at_the_precision_of_all_of_them(tmp_path: Path) -> None:
    report = evaluated(tmp_path, Extras(ablate=True, without_rules=StepScorer(rules=False)), halves(40))
    ablation = report.ablation
    assert not isinstance(ablation, msgspec.UnsetType)
    recalls = {way.steps: way.recall for way in ablation.ways}
    assert ablation.precision_aimed_at == 1.0
    assert recalls == {
        "cosine": 0.0,
        "cosine, rules": 0.0,
        "features alone": 0.0,
        "rules, features": 0.0,
        "rules, cross-encoder": 1.0,
        "features, cross-encoder": 0.0,
        "rules, features, cross-encoder": 1.0,
    }
    text = render_pairs(report)
    assert "ablation, precision 1.000" in text
    assert "rules, features, cross-encoder    1.000" in text


def test_an_ablation_without_a_verifier_holds_cosine_alone(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"a": "x", "b": "y 0.995", "label": 1}\n{"a": "v", "b": "w 0.2", "label": 0}\n')
    report = evaluate_pairs(file, pack(), AngleEncoder(), None, extras=Extras(ablate=True))
    assert not isinstance(report.ablation, msgspec.UnsetType)
    assert [way.steps for way in report.ablation.ways] == ["cosine", "cosine, rules"]


# Streams

STREAM = [
    ("pay", "pay"),  # new
    ("p0.9 pay please 0.9", "pay"),  # a right hit
    ("p0.9 lend 0.92", "lend"),  # a false hit: its own answer was never kept
    ("p0.3 borrow 0.9", "borrow"),  # improbable, rightly; kept
    ("no-number p0.9 pay 0.95", "pay"),  # vetoed, wrongly: a positive that missed
    ("p0.9 far -0.9", "borrow"),  # too far from everything: a positive that missed
]


async def streamed(folder: Path, rows: list[tuple[str, str]] | None = None, **asked: Any) -> StreamReport:
    file = folder / "s.jsonl"
    file.write_text("".join(json.dumps({"text": text, "answer_id": told}) + "\n" for text, told in rows or STREAM))
    rules = asked.pop("rules", None) or pack()
    return await evaluate_stream(file, rules, AngleEncoder(), None, Settings(), scorer=StepScorer(), ask=Ask(**asked))


async def test_a_verified_stream_counts_by_hand(tmp_path: Path) -> None:
    report = await streamed(tmp_path)
    told = msgspec.json.decode(msgspec.json.encode(report))
    assert told.keys() >= STREAM_ADDS | {"n", "tp", "fp", "fn", "tn", "precision", "recall", "f1", "f05", "vetoes"}
    assert (report.n, report.tp, report.fp, report.fn, report.tn, report.positives) == (6, 1, 1, 2, 2, 3)
    assert (report.precision, report.recall, report.hit_rate) == (1 / 2, 1 / 3, 2 / 6)
    assert report.f05 == pytest.approx(1.25 * 1 / (2 + 0.25 * 3))
    # The last but one is near to two entries, and the rule refuses both: only one of them rightly.
    assert report.vetoes == {"improbable": 1, "veto_number": 2}
    assert {reason: (one.rightly, one.wrongly) for reason, one in report.by_veto.items()} == {
        "improbable": (1, 0),
        "veto_number": (1, 1),
    }
    assert report.verifier == "steps/1"


async def test_an_expired_answer_makes_no_positive(tmp_path: Path) -> None:
    report = await streamed(tmp_path, [("one", "a"), ("two 0.1", "b"), ("three -0.5", "a")], rules=pack(ttl_s=1.5))
    assert (report.repeated, report.positives, report.fn) == (1, 0, 0)


async def test_a_wrong_answer_to_a_positive_is_false_and_no_success(tmp_path: Path) -> None:
    rows = [("one", "a"), ("two 0.1", "b"), ("p0.9 three 0.99", "b")]
    report = await streamed(tmp_path, rows)
    assert (report.positives, report.tp, report.fp, report.fn, report.recall) == (1, 0, 1, 0, 0.0)


async def test_an_error_budget_stops_hits_that_labels_found_wrong(tmp_path: Path) -> None:
    rows = [("pay", "pay"), *((f"p0.9 {n} 0.9", f"other {n}") for n in range(90))]
    without = await streamed(tmp_path, rows, labels=0.0)
    within = await streamed(tmp_path, rows, labels=1.0, delta=0.02)
    assert (without.labels, without.fp) == (0, 90)
    assert within.labels >= 30
    assert within.fp < 60
    assert within.vetoes["over_budget"] >= 30


async def test_the_baseline_is_plain_cosine_on_the_same_stream(tmp_path: Path) -> None:
    report = await streamed(tmp_path, baseline=True)
    assert not isinstance(report.baseline, msgspec.UnsetType)
    default = report.baseline.default
    assert (default.threshold, default.n, default.hits) == (0.8, 6, 4)
    assert (report.baseline.tuned_f05.f05 or 0) >= (default.f05 or 0)
    assert "cosine, tuned for F0.5" in render_stream(report)


# Plots


async def test_a_plot_is_drawn_for_pairs_and_streams(tmp_path: Path) -> None:
    evaluated(tmp_path, Extras(plot=tmp_path / "pairs.png"))
    await streamed(tmp_path, plot=tmp_path / "stream.png")
    for name in ("pairs.png", "stream.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_a_line_holds_precision_at_every_hit_rate_and_leaves_out_what_nothing_serves() -> None:
    found = line("x", [0.9, 0.8, 0.0, -1.0], [True, False, True, True], [True, True, False, False])
    assert np.allclose(found.hit_rate, [0.25, 0.5])
    assert np.allclose(found.precision, [1.0, 0.5])
    assert found.stands == (0.5, 0.5)
    assert found.area == pytest.approx(0.75)


def test_a_plot_without_matplotlib_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def without(name: str, *given: Any, **more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *given, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"cacheproxy\[plot\]"):
        plot([], "x", tmp_path / "x.png")


@pytest.mark.parametrize("name", ["no-such-folder/x.png", "x.nonsense"])
def test_a_plot_that_cannot_be_written_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"x\.(png|nonsense): "):
        plot([line("x", [0.5], [True])], "x", tmp_path / name)


async def test_a_plot_is_drawn_for_conversations(tmp_path: Path) -> None:
    talk = {"ctx_a": ["what", "that"], "q_a": "why", "ctx_b": ["what", "that"], "q_b": "p0.9 why 0.9", "label": 1}
    (tmp_path / "c.jsonl").write_text(json.dumps(talk) + "\n")
    report = evaluate_conversations(
        tmp_path / "c.jsonl", pack(), AngleEncoder(), None, scorer=StepScorer(), plot=tmp_path / "c.png"
    )
    assert (report.n, report.tp) == (1, 1)
    assert report.by_category["default"].intervals.recall is not None
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")
