"""The benchmark of examples: who is right, what is kept apart, what is remembered, and what its tables say."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from statistics import mean
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from cacheproxy.augment.arms import Situation
from cacheproxy.augment.tokens import Estimated
from tests.benchmarks import augmentation_data as data
from tests.benchmarks.augmentation import main, measured
from tests.benchmarks.augmentation_data import Item, Sizes
from tests.benchmarks.augmentation_flaws import flawed
from tests.benchmarks.augmentation_line import Bench
from tests.benchmarks.augmentation_model import Answer, kept
from tests.benchmarks.augmentation_report import accuracy, difference, printed
from tests.benchmarks.augmentation_routing import Seen, routed
from tests.support.angles import AngleEncoder

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

CHOICE = Item(text="?", reference="B", accepted=("swimming pool",))
FACT = Item(text="?", reference="14 December 1972 UTC", accepted=("December 1972", "The Eagles"))
NUMBER = Item(text="?", reference="1200")


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("card_arrival", "card_arrival", True),
        ("Card_Arrival.", "card_arrival", True),
        ("card arrival", "card_arrival", True),
        ("The intent is card_arrival", "card_arrival", True),
        ("card_arrival\nlost_or_stolen_card", "card_arrival", True),
        ("lost_card or card_arrival", "card_arrival", False),
        ("no_card_arrival", "card_arrival", False),
        ("reverted_card_payment", "reverted_card_payment?", True),
        ("weather", "weather", True),
        ("the weather in Paris is fine", "weather", False),
        ("Answer: weather", "weather", True),
        ("", "weather", False),
    ],
)
def test_a_label_is_right_where_it_is_the_first_that_is_named(answer: str, reference: str, right: bool) -> None:
    assert data.labelled(answer, Item(text="?", reference=reference)) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("B", True),
        ("b.", True),
        ("(B) swimming pool", True),
        ("Answer: B", True),
        ("B\nA", True),
        ("A", False),
        ("A swimming pool", True),  # an article, and the text of the choice
        ("Swimming pool.", True),
        ("But nobody swims", False),
        ("A place where B is", False),
        ("", False),
    ],
)
def test_a_choice_is_right_by_its_letter_or_its_text(answer: str, right: bool) -> None:
    assert data.chosen(answer, CHOICE) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("It was in December 1972, on Apollo 17.", True),
        ("The last man left the moon in December of 1972", False),
        ("eagles", True),
        ("beagles", False),
        ("", False),
    ],
)
def test_a_fact_is_right_where_a_sentence_says_it_word_by_word(answer: str, right: bool) -> None:
    assert data.told(answer, FACT) is right


@pytest.mark.parametrize(
    ("answer", "right"),
    [("1200", True), ("$1,200.00", True), ("3 * 400 = 1200", True), ("1200 - 5", False), ("", False)],
)
def test_a_sum_is_right_by_the_number_that_it_ends_with(answer: str, right: bool) -> None:
    assert data.numbered(answer, NUMBER) is right


def test_no_question_is_in_two_parts_and_more_questions_hold_the_fewer(tmp_path: Path) -> None:
    bank(tmp_path, 300)
    large = data.task("banking77", tmp_path, Sizes(questions=40, training=40, pool=100), 0)
    small = data.task("banking77", tmp_path, Sizes(questions=10, training=10, pool=50), 0)
    parts = [{one.text for one in part} for part in (large.reported, large.training, large.pool)]
    assert all(parts)
    assert len(set.union(*parts)) == sum(map(len, parts))
    assert large.reported[:10] == small.reported
    assert large.pool[:50] == small.pool
    assert "card_lost, pin_blocked, rate_wrong" in large.system
    assert data.task("banking77", tmp_path, Sizes(questions=10, training=10, pool=50), 1).reported != small.reported


def test_a_flawed_pool_is_wrong_so_often_and_what_was_said_tells_which(tmp_path: Path) -> None:
    bank(tmp_path, 900)
    told = data.task("banking77", tmp_path, Sizes(questions=9, training=9, pool=400), 0).pool
    found = flawed(told, 0.2, 0)
    wrong = [one for one, was in zip(found, told, strict=True) if one.reference != was.reference]
    right = [one for one, was in zip(found, told, strict=True) if one.reference == was.reference]
    assert 0.14 < len(wrong) / len(found) < 0.26
    assert {one.reference for one in wrong} == {one.reference for one in told}
    assert mean([one.quality for one in wrong]) < 0.42
    assert mean([one.quality for one in right]) > 0.58
    assert any(one.quality == 0.5 for one in found)  # nobody spoke of it
    assert any(one.quality < 0.5 for one in right)  # somebody was wrong
    assert flawed(told[:50], 0.2, 0) == found[:50]
    assert {one.quality for one in told} == {0.5}


def test_intervals_hold_what_was_seen_and_a_paired_difference_is_surer_than_two_shares() -> None:
    one, other = np.array([1.0] * 60 + [0.0] * 40), np.array([1.0] * 40 + [0.0] * 60)
    told = accuracy(one)
    assert (told["right"], told["n"], told["accuracy"]) == (60, 100, 0.6)
    assert told["interval"] == pytest.approx((0.502, 0.691), abs=0.001)
    apart = difference(one, other, seed=0)
    assert apart == difference(one, other, seed=0)
    assert (apart["mean"], apart["won"], apart["lost"]) == (pytest.approx(0.2), 20, 0)
    assert 0.1 < apart["interval"][0] < 0.2 < apart["interval"][1] < 0.3
    assert accuracy(np.zeros(0))["accuracy"] is None
    assert difference(np.zeros(0), np.zeros(0), seed=0)["mean"] is None


def test_a_router_leaves_small_arms_alone_where_they_are_wrong_and_asks_them_where_they_are_right() -> None:
    asked = Situation(max_similarity=0.9, mean_helpfulness=0.7, examples=5, question_tokens=20)
    for good, share in ((1.0, 1.0), (0.0, 0.0)):
        seen = [Seen(situation=asked, augmented=good, small=0.0)] * 60
        cold, *_, last = routed("faq", seen, seen, seed=0)
        assert cold["after"] == 0
        assert cold["shares"]["large"] >= 0.9  # but for what is explored
        assert last["shares"]["augmented"] == share
        assert last["quality"] == 1.0


def test_fewer_training_questions_than_the_router_needs_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out.json")
    monkeypatch.setattr("sys.argv", ["augmentation", "--data", str(tmp_path), "--out", out, "--training", "39"])
    with pytest.raises(SystemExit):
        main()
    assert "at least 40" in capsys.readouterr().err


def test_an_answer_that_was_cut_short_is_asked_again_and_the_others_are_not(tmp_path: Path) -> None:
    answer = {"text": "a", "prompt_tokens": 1, "completion_tokens": 1, "cpu_s": 0.0, "wall_s": 0.0}
    line = json.dumps({"key": "one", "answer": answer})
    file = tmp_path / "new" / "answers.jsonl"
    assert kept(file) == {}
    file.write_text(f"{line}\n{line[:20]}")
    assert set(kept(file)) == {"one"}
    with file.open("a") as end:
        end.write(line.replace("one", "two") + "\n")
    assert set(kept(file)) == {"one", "two"}


def bank(directory: Path, number: int) -> None:
    kinds = (("pin_blocked", 0.1), ("card_lost", 0.5), ("rate_wrong", 0.9))
    told = [kinds[n % 3] for n in range(number)]
    rows = [{"text": f"number {n} asks {cosine}", "intent": intent} for n, (intent, cosine) in enumerate(told)]
    raw = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "banking77_dev.jsonl.gz").write_bytes(gzip.compress(raw.encode()))


class Parrot:
    """Answers as the last example does, and without examples what nobody asked."""

    def answer(self, body: Mapping[str, Any]) -> Answer:
        told = [message["content"] for message in body["messages"] if message["role"] == "assistant"]
        text = told[-1] if told else "hello"
        return Answer(text=text, prompt_tokens=len(body["messages"]), completion_tokens=1, cpu_s=0.1, wall_s=0.1)


def test_where_past_answers_are_wrong_what_was_said_of_them_beats_nearness(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank(tmp_path, 600)
    kind = replace(data.KINDS["banking77"], flawed=0.4)
    monkeypatch.setattr(data, "KINDS", {"banking77": kind})
    bench = Bench(small=Parrot(), counter=Estimated(), encoder=AngleEncoder(), vectors=tmp_path / "vectors")
    found = measured([data.task("banking77", tmp_path, Sizes(questions=60, training=60, pool=200), 0)], bench)
    shares = {arm: one["accuracy"] for arm, one in found["banking77"]["arms"].items()}
    assert shares["replayed"] < 0.8
    assert shares["selected"] > shares["nearest"] + 0.1


def test_every_arm_is_measured_and_a_model_that_repeats_examples_gains_by_near_ones(tmp_path: Path) -> None:
    bank(tmp_path, 300)
    sizes = Sizes(questions=20, training=30, pool=60)
    bench = Bench(small=Parrot(), counter=Estimated(), encoder=AngleEncoder(), vectors=tmp_path / "vectors")
    tasks = measured([data.task("banking77", tmp_path, sizes, 0)], bench)
    found = tasks["banking77"]
    shares = {arm: one["accuracy"] for arm, one in found["arms"].items()}
    assert shares["alone"] == 0.0
    assert shares["nearest"] == shares["replayed"] == shares["large"] == 1.0
    assert 0.0 < shares["random"] < 0.9
    assert shares["selected"] > 0.9
    assert found["selected_less"]["alone"]["interval"][0] > 0.8
    assert found["learnt"]["threshold"] < 0.5
    assert found["routing"][-1]["after"] == 30
    table = printed({"tasks": tasks})
    assert "| banking77 | 20 | 0.0% [0%, 16%] |" in table
