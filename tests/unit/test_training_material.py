"""What is trained on: every usable line is read, no question is in both halves, errors quote no text."""

from __future__ import annotations

import gzip
import json
from random import Random
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from cacheproxy.errors import ConfigError
from cacheproxy.training.material import SETS, Asked, Other, pairs_of_sets, read_material

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from cacheproxy.training.material import Material, Part

SECRET = "the secret of the question"
PAIR = {"a": "How do I pay?", "b": "Ways to pay?", "label": 1}


def written(file: Path, rows: Iterable[object]) -> Path:
    lines = "\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows).encode()
    file.write_bytes(gzip.compress(lines) if file.suffix == ".gz" else lines)
    return file


def many(prefix: str, count: int) -> list[dict[str, object]]:
    return [{"a": f"{prefix} {number} a", "b": f"{prefix} {number} b", "label": number % 2} for number in range(count)]


def said(part: Part) -> set[str]:
    pairs = {text for found in part.pairs.values() for pair in found for text in (pair.a, pair.b)}
    sets = {text for one in part.sets for text in one.same}
    traps = {text for one in part.sets for trap in one.other for text in (trap.text, trap.reworded) if text}
    return pairs | sets | traps | set(part.questions)


def counted(material: Material) -> int:
    return sum(len(found) for part in (material.learn, material.calibrate) for found in part.pairs.values())


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_pairs_sets_and_questions_are_read_from_plain_and_gzip(tmp_path: Path, name: str) -> None:
    rows = [
        PAIR,
        {"a": "x", "b": "y", "same_answer": False, "more": [1]},
        {"same": ["s", "t"], "other": [["kind", "u"], ["kind", "v", "w"]]},
        {"text": "q", "intent": "i"},
        {"question": "r", "answers": []},
        "",
    ]
    material = read_material([written(tmp_path / name, rows)], {name: "CC0"})
    both = said(material.learn) | said(material.calibrate)
    assert both == {PAIR["a"], PAIR["b"], *"xystuvwqr"}
    assert [(one.name, one.pairs, one.licence) for one in material.sources] == [(name, 2, "CC0")]


def test_no_question_is_in_both_halves_whatever_joins_them(tmp_path: Path) -> None:
    random = Random(4)
    names = [f"question {number}" for number in range(400)]
    pairs = [{"a": a, "b": b, "label": 1} for a, b in (random.sample(names, 2) for _ in range(150))]
    more = [{"a": a, "b": b, "label": 0} for a, b in (random.sample(names, 2) for _ in range(50))]
    sets = [{"same": random.sample(names, 2), "other": [["kind", *random.sample(names, 2)]]} for _ in range(15)]
    files = [
        written(tmp_path / "a.jsonl", pairs),
        written(tmp_path / "b.jsonl", more),
        written(tmp_path / "c.jsonl", [*sets, *({"text": name} for name in names)]),
    ]
    material = read_material(files)
    assert said(material.learn).isdisjoint(said(material.calibrate))
    assert said(material.learn) | said(material.calibrate) == set(names)
    assert counted(material) == 200
    assert material.calibrate.pairs


def test_about_a_seventh_is_kept_for_calibration_and_always_the_same(tmp_path: Path) -> None:
    file = written(tmp_path / "a.jsonl", many("question", 2000))
    one, other = read_material([file]), read_material([file])
    assert one == other
    assert 0.11 < len(one.calibrate.pairs["a.jsonl"]) / 2000 < 0.19


def test_files_of_one_name_are_both_read(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    files = [written(tmp_path / folder / "pairs.jsonl", many(folder, 40)) for folder in "xy"]
    assert counted(read_material(files)) == 80


UNUSABLE = [
    {"a": SECRET, "b": "b", "score": 4.2},
    {"a": SECRET, "b": "b", "label": 2},
    {"a": SECRET, "b": "b", "label": SECRET},
    {"a": SECRET, "b": "b", "label": 1, "same_answer": False},
    {"a": SECRET, "b": "", "label": 1},
    {"a": SECRET},
    {"q0": SECRET, "q1": "b"},
    {"ctx_a": [SECRET], "q_a": "b", "label": 1},
    {"prompt": SECRET},
    {"same": [SECRET]},
    {"same": SECRET},
    {"same": [SECRET, "b"], "other": [[SECRET]]},
    {"text": 5},
    {"text": ""},
    {},
    5,
    [SECRET],
    None,
]


@pytest.mark.parametrize("row", UNUSABLE, ids=range(len(UNUSABLE)))
def test_a_line_of_another_form_is_left_out_with_a_warning_that_names_it(tmp_path: Path, row: object) -> None:
    file = written(tmp_path / "mixed.jsonl", [*many("good", 30), row, *many("more", 5)])
    with capture_logs() as logs:
        material = read_material([file])
    assert counted(material) == 35
    [warning] = logs
    assert (warning["event"], warning["file"], warning["lines"]) == ("training_lines_skipped", "mixed.jsonl", 1)
    assert f"{file}:31: " in warning["first"]
    assert SECRET not in str(warning)


@pytest.mark.parametrize("row", UNUSABLE, ids=range(len(UNUSABLE)))
def test_where_no_file_given_can_be_used_the_first_line_says_why(tmp_path: Path, row: object) -> None:
    file = written(tmp_path / "bad.jsonl", [row, row])
    with pytest.raises(ConfigError) as caught:
        read_material([SETS, file])
    assert caught.value.message.startswith(f"{file}:1: ")
    assert "each line must be" in caught.value.message or "is none of" in caught.value.message
    assert SECRET not in caught.value.message


def test_a_file_of_nothing_else_does_not_stop_the_good_ones(tmp_path: Path) -> None:
    good = written(tmp_path / "good.jsonl", many("good", 30))
    odd = written(tmp_path / "odd.jsonl.gz", [{"prompt": SECRET}] * 3)
    with capture_logs() as logs:
        material = read_material([odd, good])
    assert [one.name for one in material.sources] == ["good.jsonl"]
    assert [log["lines"] for log in logs] == [3]


@pytest.mark.parametrize("line", ['{"a": "' + SECRET, SECRET, '{"a": "\\ud800"}', "{]"])
def test_a_line_that_is_no_json_is_an_error_by_file_and_line(tmp_path: Path, line: str) -> None:
    file = written(tmp_path / "bad.jsonl", [PAIR, line])
    with pytest.raises(ConfigError) as caught:
        read_material([file])
    assert caught.value.message.startswith(f"{file}:2: ")
    assert SECRET not in caught.value.message


def test_damaged_missing_and_empty_files_are_errors(tmp_path: Path) -> None:
    whole = gzip.compress(json.dumps(PAIR).encode() * 100)
    (tmp_path / "cut.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.jsonl").write_bytes(b"\n\n")
    for name in ("cut.jsonl.gz", "empty.jsonl", "none.jsonl"):
        with pytest.raises(ConfigError, match=name):
            read_material([tmp_path / name])


def test_questions_alone_teach_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to learn from"):
        read_material([written(tmp_path / "q.jsonl", [{"text": f"question {number}"} for number in range(50)])])


def test_the_sets_that_come_along_can_be_used_whole() -> None:
    with capture_logs() as logs:
        material = read_material([SETS])
    assert logs == []
    assert len(material.learn.sets) + len(material.calibrate.sets) == material.sources[0].pairs
    assert len(material.calibrate.sets) > 0.1 * material.sources[0].pairs
    assert said(material.learn).isdisjoint(said(material.calibrate))
    kinds = {trap.kind for one in material.learn.sets for trap in one.other}
    assert {"number", "negation", "entity", "scope", "direction", "aspect"} <= kinds


def test_pairs_of_sets_are_right_within_and_wrong_across_and_seeded() -> None:
    one = Asked(same=["s1", "s2", "s3"], other=[Other("k", "t1", "t1 again"), Other("k", "t2")])
    found = pairs_of_sets([one] * 40, Random(1), most_same=2)
    assert found == pairs_of_sets([one] * 40, Random(1), most_same=2)
    for pair in found:
        sides = {pair.a[0], pair.b[0]}
        trapped = {pair.a[:2], pair.b[:2]}
        assert pair.label == (sides == {"s"} or trapped == {"t1"})
        assert pair.a != pair.b
    assert sum(pair.label and pair.a[0] == "s" for pair in found) == 2 * 40
