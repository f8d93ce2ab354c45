from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING

import numpy as np
import pytest

from cacheproxy.errors import ConfigError
from cacheproxy.evaluate.calibration import Aim, calibrate, render_calibration
from cacheproxy.evaluate.pairfile import LabelledPair
from cacheproxy.evaluate.split import chosen, components, halves
from cacheproxy.policy.pack import Category, Pack
from tests.support.angles import AngleEncoder

if TYPE_CHECKING:
    from pathlib import Path

PACK = Pack(
    schema=1,
    name="mine",
    description="",
    default_category="default",
    categories={"default": Category(semantic=True), "code": Category(semantic=True)},
)


def write(file: Path, seed: int, n: int = 600, **extra: object) -> Path:
    """Pairs whose label is right with a probability that rises with similarity."""
    rng = np.random.default_rng(seed)
    with file.open("w") as lines:
        for at, similarity in enumerate(rng.uniform(0.3, 1.0, n)):
            row = {"a": f"question {at} of {file.name} a", "b": f"question {at} of {file.name} {similarity:.6f}"}
            lines.write(json.dumps({**row, "label": int(rng.random() < similarity**3), **extra}) + "\n")
    return file


def pair(a: str, b: str) -> LabelledPair:
    return LabelledPair(a=a, b=b, label=True)


def test_pairs_that_are_linked_by_any_question_are_one_component() -> None:
    pairs = [pair("a", "b"), pair("c", "d"), pair("e", "b"), pair("e", "f"), pair("g", "g"), pair("d", "c")]
    numbers = components(pairs).tolist()
    assert numbers == [0, 1, 0, 0, 2, 1]


def test_halves_never_share_a_question_and_follow_the_seed() -> None:
    rng = np.random.default_rng(0)
    pairs = [pair(str(a), str(b)) for a, b in rng.integers(0, 3000, (1000, 2))]
    first = halves(components(pairs), seed=1)
    texts = [
        {text for p, half in zip(pairs, first, strict=True) if half is side for text in (p.a, p.b)}
        for side in (True, False)
    ]
    assert not texts[0] & texts[1]
    assert 300 < first.sum() < 700
    assert (first == halves(components(pairs), seed=1)).all()
    assert (first != halves(components(pairs), seed=2)).any()


def test_a_split_that_a_pair_names_holds_for_all_that_share_a_question_with_it() -> None:
    pairs = [
        LabelledPair(a="a", b="b", label=True, split="choose"),
        LabelledPair(a="b", b="c", label=True),
        LabelledPair(a="d", b="e", label=True, split="measure"),
        LabelledPair(a="f", b="g", label=True, split="choose"),
        LabelledPair(a="g", b="h", label=True, split="measure"),
    ]
    for seed in range(5):
        assert chosen(pairs, components(pairs), seed).tolist() == [True, True, False, False, False]


def test_pairs_that_name_their_split_choose_and_measure_as_they_say(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "one.jsonl", 1, split="choose"),
        write(tmp_path / "two.jsonl", 2, n=300, split="measure"),
    ]
    [choice] = calibrate(files, PACK, AngleEncoder(), None, Aim()).choices.values()
    assert {name: counts[choice.threshold].n for name, counts in choice.held_out.items()} == {
        "all": 300,
        "two.jsonl": 300,
    }


def test_the_rendered_table_is_toml_that_a_pack_takes(tmp_path: Path) -> None:
    files = [write(tmp_path / "one.jsonl", 1), write(tmp_path / "two.jsonl", 2)]
    result = calibrate(files, PACK, AngleEncoder(), None, Aim())
    text = render_calibration(result)
    [(name, table)] = tomllib.loads(text)["encoders"].items()
    assert (name, table["fingerprint"]) == ("plane", "angles/plane/1-0")
    assert table["thresholds"] == {"default": result.choices["default"].threshold, "code": 1.0}
    assert "# No pair is of code: " in text
    assert table["calibrated_on"].startswith(
        "one.jsonl (600 pairs), two.jsonl (600 pairs); half of them, seed 0; best net"
    )
    assert "# one.jsonl" in text
    assert text == render_calibration(calibrate(files, PACK, AngleEncoder(), None, Aim()))


def test_the_threshold_lies_in_its_interval_and_holds_up_on_the_other_half(tmp_path: Path) -> None:
    [choice] = calibrate([write(tmp_path / "p.jsonl", 3, n=3000)], PACK, AngleEncoder(), None, Aim()).choices.values()
    low, high = choice.interval
    assert low <= choice.threshold <= high + 0.001
    counts = choice.held_out["p.jsonl"]
    benefit = {threshold: tally.tp - 2 * tally.fp for threshold, tally in counts.items()}
    assert benefit[choice.threshold] > 0.8 * max(benefit.values())


def test_a_precision_target_raises_the_threshold(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", 4, n=2000)
    thresholds = [
        calibrate([file], PACK, AngleEncoder(), None, Aim(target_precision=target)).choices["default"].threshold
        for target in (0.4, 0.6, 0.7)
    ]
    assert thresholds == sorted(set(thresholds))


def test_each_category_of_the_pack_gets_its_own_threshold(tmp_path: Path) -> None:
    files = [write(tmp_path / "p.jsonl", 5, category="code"), write(tmp_path / "q.jsonl", 6, category="elsewhere")]
    assert calibrate(files, PACK, AngleEncoder(), None, Aim()).choices.keys() == {"code", "default"}


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    files = [write(tmp_path / "p.jsonl", 9), write(tmp_path / "other" / "p.jsonl", 10, n=300)]
    result = calibrate(files, PACK, AngleEncoder(), None, Aim())
    assert result.pairs == {str(files[0]): 600, str(files[1]): 300}


def test_an_aim_that_cannot_be_met_is_refused_with_the_category(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", 7)
    with pytest.raises(
        ConfigError, match=r"category default: on \d+ pairs, no threshold gives precision of at least 0\.999"
    ):
        calibrate([file], PACK, AngleEncoder(), None, Aim(target_precision=0.999))
    lonely = write(tmp_path / "one.jsonl", 8, n=1)
    with pytest.raises(ConfigError, match="too few to split"):
        calibrate([lonely], PACK, AngleEncoder(), None, Aim())
