"""Caution: a verifier that will meet questions unlike those it was calibrated on claims less, by a known measure."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING

import pytest
from click.testing import CliRunner

from cacheproxy.training import course
from cacheproxy.training.cheap import lowered
from cacheproxy.verifier_cli import render, verifier
from cacheproxy.verify.artefact import MANIFEST, Weights, load
from cacheproxy.verify.open import SHIPPED

if TYPE_CHECKING:
    from pathlib import Path

WEIGHTS = Weights(cheap=(0.3, 0.9), both=(-0.2, 0.5, 0.7), hopeless=-4.0)


def odds(weights: Weights, cheap: float, cross: float) -> tuple[float, float]:
    bias, trees, read = weights.both
    return weights.cheap[0] + weights.cheap[1] * cheap, bias + trees * cheap + read * cross


@pytest.mark.parametrize("caution", [0.0, 0.5, 1.5, 10.0])
@pytest.mark.parametrize(("cheap", "cross"), [(-3.0, 2.0), (0.0, 0.0), (4.0, 6.0)])
def test_caution_lowers_every_probability_by_exactly_so_many_log_odds(
    caution: float, cheap: float, cross: float
) -> None:
    less = lowered(WEIGHTS, caution)
    for before, after in zip(odds(WEIGHTS, cheap, cross), odds(less, cheap, cross), strict=True):
        assert before - after == pytest.approx(caution)
    assert less.hopeless == WEIGHTS.hopeless  # which questions the cross-encoder reads stays the same


def test_the_shipped_manifest_says_its_caution_and_show_prints_it() -> None:
    manifest = load(SHIPPED)[0]
    assert math.isfinite(manifest.caution)
    assert json.loads((SHIPPED / MANIFEST).read_bytes())["caution"] == manifest.caution
    assert (f"lowered by {manifest.caution:g} log-odds" in render(manifest)) == (manifest.caution > 0)


def test_the_order_of_a_training_holds_the_caution_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text('{"a": "How do I pay?", "b": "Ways to pay?", "label": 1}\n', encoding="utf-8")
    ordered: list[course.Order] = []

    def train(order: course.Order, *_: object) -> object:
        ordered.append(order)
        return load(SHIPPED)[0]

    monkeypatch.setattr(course, "train", train)
    given = ["train", "--pairs", str(pairs), "--out", str(tmp_path / "out"), "--caution", "1.5"]
    found = CliRunner().invoke(verifier, [*given, "--data-dir", str(tmp_path / "data")])
    assert found.exit_code == 0, found.output
    assert [order.caution for order in ordered] == [1.5]
