"""The benchmark of verified hits: what it keeps apart, what it makes of the data, and the section that it writes."""

from __future__ import annotations

import gzip
import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from cacheproxy.evaluate.pairfile import LabelledPair
from cacheproxy.policy.pack import Category, Encoder, Pack
from tests.benchmarks import precision
from tests.benchmarks import verification_data as data
from tests.benchmarks.verification import Bench, cosines, measured
from tests.benchmarks.verification_report import BEGIN, END, render, written
from tests.support.angles import AngleEncoder
from tests.support.verifiers import StepScorer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

EPOCH = AngleEncoder().fingerprint


def pack() -> Pack:
    encoder = Encoder(fingerprint=EPOCH, calibrated_on="", thresholds={"default": 0.9}, verify_from=0.6)
    return Pack(
        schema=1,
        name="mine",
        description="",
        default_category="default",
        categories={"default": Category(semantic=True, ttl_s=1e6)},
        encoders={"angles": encoder},
    )


def write(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    """Small data of every form, in a directory."""
    rows = [
        {"a": f"stored {n} ?", "b": f"p0.9 again {n} 0.9", "label": 1, "cluster": f"same {n}"} for n in range(60)
    ] + [
        {"a": f"stored o{n} ?", "b": f"p0.3 else {n} 0.{10 + n}", "label": 0, "cluster": f"other {n}"}
        for n in range(80)
    ]
    write(tmp_path / data.QQP, rows)
    talk = {"ctx_a": ["what ?", "that"], "q_a": "why ?", "ctx_b": ["what ?", "this"], "q_b": "why ?"}
    told = [{**talk, "label": 0, "kind": "same_question_other_context", "topic_a": f"t{n}"} for n in range(20)]
    write(tmp_path / data.CONVERSATIONS, told)
    hard = [{"a": f"trap {n} ?", "b": f"p0.9 no-number {n} 0.9", "label": 0, "kind": "number"} for n in range(20)]
    hard += [{"a": f"fine {n} ?", "b": f"p0.6 fine {n} 0.9", "label": 1, "kind": "reworded"} for n in range(20)]
    (tmp_path / "hard.jsonl").write_text("".join(json.dumps(row) + "\n" for row in hard))
    return Bench(
        directory=tmp_path,
        adversarial=tmp_path / "hard.jsonl",
        encoder=AngleEncoder(),
        pack=pack(),
        cache=tmp_path / "vectors",
    )


def test_what_is_reported_is_kept_from_training_and_choosing(bench: Bench) -> None:
    kept = {pair.a for pair in data.question_pairs(bench.directory)}
    clusters = {row["a"]: row["cluster"] for row in data.rows(bench.directory / data.QQP)}
    assert 0 < len(kept) < len(clusters) / 2
    assert all(data.is_kept_back(clusters[text]) for text in kept)
    reported = data.adversarial(bench.adversarial)
    assert 0 < len(reported) < 40
    assert all(data.reported(pair.a) for pair in reported)


def test_the_shipped_adversarial_pairs_have_both_halves_and_every_kind() -> None:
    kinds = {pair.category for pair in data.adversarial(data.ADVERSARIAL)}
    assert kinds == {"negation", "number", "entity", "scope", "near_repeat", "minimal", "reworded"}


def test_a_stream_asks_duplicates_of_stored_questions_among_novel_ones_that_are_near(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "KEPT_BACK", 0)
    monkeypatch.setattr(data, "DUPLICATES", 10)
    monkeypatch.setattr(data, "NOVEL", 20)
    monkeypatch.setattr(data, "HARD", 0.495)
    asked = data.stream(bench.directory, bench.vectors)
    stored, later = asked[:30], asked[30:]
    answers = {one.answer_id for one in stored}
    assert len(answers) == 30
    assert sum(one.answer_id in answers for one in later) == 10
    novel = sorted(float(one.text.rpartition(" ")[2]) for one in later if one.answer_id not in answers)
    assert len(novel) == 20
    assert min(novel) >= 0.5
    assert max(novel) - min(novel) > 0.2
    assert asked == data.stream(bench.directory, bench.vectors)


def test_every_table_is_written_between_the_markers(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "KEPT_BACK", 50)
    times = {"wall_ms": {"p50": 1.0, "p90": 1.0, "p99": 2.0}, "cpu_ms": {"p50": 1.0, "p90": 1.0, "p99": 2.0}}
    report: dict[str, Any] = {
        "encoder": EPOCH,
        "policies": "mine",
        "machine": {"cpu": "x", "python": "3"},
        "cosine": cosines(bench),
        "verifiers": {"built": measured(bench, StepScorer())},
        "thresholds": measured(bench, None),
        "latency": {"built": {"lookups": 3, "steps": {"rules and features": times}}},
    }
    found = report["verifiers"]["built"]["adversarial"]
    assert found["by_veto"]["veto_number"]["rightly"] == found["by_kind"]["number"]["n"]
    assert (found["recall"], found["judged"]["recall"]) == (0.0, 1.0)  # a judge finds every near miss right
    section = render(report)
    for title in ("Adversarial pairs", "Question pairs", "Stream", "Conversations", "Added latency", "What each step"):
        assert f"### {title}" in section
    assert "(published)" in section
    page = written(f"before\n{BEGIN}\nwhat was there\n{END}\nafter\n", section)
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "what was there" not in page
    assert written(page, section) == page


def test_a_page_without_markers_is_left_alone() -> None:
    with pytest.raises(ValueError, match="verified hits"):
        written("nothing here", "section")


def test_two_encoders_are_compared_on_the_same_pairs_and_what_they_decide_otherwise_is_counted(bench: Bench) -> None:
    encoders = {"fp32": AngleEncoder(), "int8": AngleEncoder("angles/coarse/1-0")}
    kept = pack()
    coarse = Encoder(fingerprint="angles/coarse/1-0", calibrated_on="", thresholds={"default": 0.7}, verify_from=0.6)
    both = msgspec.structs.replace(kept, encoders={**kept.encoders, "coarse": coarse})
    near = [LabelledPair(a=f"one {n} ?", b=f"other {n} 0.8", label=n < 6) for n in range(10)]
    nearest = [LabelledPair(a=f"same {n} ?", b=f"again {n} 0.95", label=True) for n in range(4)]
    found = precision.compared([*near, *nearest], both, encoders, bench.cache, None)
    assert (found["fp32"]["tp"], found["fp32"]["fp"]) == (4, 0)
    assert (found["int8"]["tp"], found["int8"]["fp"]) == (10, 4)
    assert (found["only_fp32"], found["only_int8"]) == ({"n": 0, "rightly": 0}, {"n": 10, "rightly": 6})
    assert found["otherwise"] == 10
    epochs = {name: encoder.fingerprint for name, encoder in encoders.items()}
    report = {
        "policies": "mine",
        "encoders": epochs,
        "verifier": "v/1-0",
        "pairs": {"adversarial": {"verified": found}},
    }
    told = precision.render(report)
    assert "| adversarial pairs | verified | int8 | 14 | 0.714 [" in told
    assert "| 0, 0 | 10, 6 |" in told


def test_verified_pairs_are_compared_by_the_verifier_with_both_encoders(bench: Bench) -> None:
    encoders = {"fp32": AngleEncoder(), "int8": AngleEncoder()}
    found = precision.compared(data.adversarial(bench.adversarial), bench.pack, encoders, bench.cache, StepScorer())
    assert found["fp32"] == found["int8"]
    assert (found["otherwise"], found["otherwise_interval"][0]) == (0, 0.0)
